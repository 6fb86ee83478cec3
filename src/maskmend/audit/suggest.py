"""The mended mask: changed only where the evidence supports it, in one piece, and not against the images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from maskmend.audit.estimate import Opinion, mask_dice, mean_dice
from maskmend.audit.look import Look
from maskmend.audit.mending import Outlined
from maskmend.audit.outlines import ImageWitness

SUPPORTED = 0.5
"""Probability of being wrong above which a voxel is changed."""

SPECK = 3
"""Changed parts and leftovers of fewer voxels stay as they were."""

SAME = 0.5
"""Share of a change that must be of the outline, and Dice of each class, for it to be a matter of the outline."""

KEPT = "the images explain the given outline better than the model's, so it was kept"


def suggest(opinion: Opinion) -> np.ndarray:
    """The proposed mask (*B) uint8: the most likely other class where the given one is probably wrong.

    Holes and specks that the change would make are filled and left out: nobody draws them.
    """
    look = opinion.look
    change = opinion.noise > SUPPORTED
    if look.valid is not None:
        change &= look.valid
    change = _without_specks(change)
    if not change.any():
        return look.label.copy()
    others = look.probs.copy()
    np.put_along_axis(others, look.label[None].astype(np.intp), 0, axis=0)
    return np.where(change, others.argmax(axis=0), look.label).astype(np.uint8)


def with_images(
    opinion: Opinion, image: np.ndarray, witness: ImageWitness
) -> tuple[Opinion, np.ndarray, str]:
    """The opinion of a case that has heard its image (C, *S) too, the mask (*B) to suggest, and a remark on it."""
    opinion = replace(opinion, odds=opinion.odds + witness(opinion.look.case))
    return opinion, *advised(opinion.look, suggest(opinion), image, witness)


def advised(
    look: Look, suggested: np.ndarray, image: np.ndarray, witness: ImageWitness
) -> tuple[np.ndarray, str]:
    """What the images say of a suggestion that rests on a model: the mask (*B) to suggest, and a remark on it.

    - An outline that the images believe is not exchanged for one that they explain worse. They see outlines only:
      where a class is missing, or drawn as another, they are not asked.
    - An outline that they disbelieve is drawn wider or tighter instead, as `screen --mend` does, if that is explained
      better than the suggestion and brings the mask nearer to the model: two witnesses who do not know of one another.

    Measured on assorted flaws of hippocampus slices and of HC18, two seeds each; see docs/results/audit.

    Args:
        look: of the case, with calibrated probabilities.
        suggested: (*B) class indices.
        image: (C, *S), any numbers.
        witness: what the images say of all masks.
    """
    if witness.mender is None or look.case not in witness.numbers:
        return suggested, ""
    valid = None if look.valid is None else look.whole(look.valid, fill=True)

    def outlined(label: np.ndarray) -> Outlined:
        return Outlined(image, look.whole(label), valid, look.spacing_mm, witness, look.case)

    given = outlined(look.label)
    if not witness.disbelieves(look.case):
        if (
            not _of_the_outline(look.label, suggested, look.classes)
            or outlined(suggested).unexplained <= given.unexplained
        ):
            return suggested, ""
        return look.label.copy(), KEPT
    found = given.mended()
    if found is None:
        return suggested, ""
    moved, outwards = found[0][look.box].astype(np.uint8), found[1]
    if look.valid is not None:
        moved = np.where(look.valid, moved, look.label)
    model = look.probs.argmax(axis=0)
    before, after = (mean_dice(mask_dice(one, model, look.classes)) for one in (look.label, moved))
    if after <= before or outlined(moved).unexplained >= outlined(suggested).unexplained:
        return suggested, ""
    way = "wider" if outwards > 0 else "tighter"
    return moved, f"suggested is the given outline {abs(outwards):.1f} mm {way}, where the images explain it"


def _of_the_outline(given: np.ndarray, suggested: np.ndarray, classes: int) -> bool:
    """Whether two masks differ by the outline of the foreground, and not by what is drawn or as what."""
    changed = int((given != suggested).sum())
    outside = int(((given > 0) != (suggested > 0)).sum())
    return outside > SAME * changed and float(np.nanmin(mask_dice(given, suggested, classes))) > SAME


def _without_specks(mask: np.ndarray) -> np.ndarray:
    numbered, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if not count:
        return mask
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    kept: np.ndarray = (sizes >= SPECK)[numbered]
    return kept
