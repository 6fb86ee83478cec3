"""What an opinion becomes once it has heard the image: whether the model is lost, and which mask to suggest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maskmend.audit.estimate import Opinion, mask_dice, mean_dice
from maskmend.audit.kinds import holes_apart, in_slices_apart, parts_apart
from maskmend.audit.look import Look
from maskmend.audit.mending import Outlined
from maskmend.audit.outlines import HARDLY, ImageWitness
from maskmend.audit.population import logit, sigmoid
from maskmend.audit.suggest import suggest
from maskmend.boxes import bounding_box

SAME = 0.5
"""Share of a change that must be of the outline, and Dice of each class, for it to be a matter of the outline."""

DOUBTING = (1.5, 0.5)
"""Spreads above the usual doubt at which a model is half suspected to be lost, and how sharply."""

UNSEEN = (0.1, 0.05)
"""Share that the images leave unexplained of what the model sees, beyond the believed outlines: likewise."""

LEAST_DOUBT = 0.05
"""Suspicion below which the images are not asked what they think of a model."""

HEARD = 0.9
"""How likely a voxel is wrong that the images would change, in a mask that is surely flawed."""

KEPT_DOUBT = 0.3
"""What is left of the model's doubts about a mask that the images keep."""

KEPT = "the images explain the given outline better than the model's, so it was kept"
MIRRORED = "suggested is the given mask mirrored, where the images explain it"


@dataclass(frozen=True)
class Heard:
    """What is thought of a case after its image was heard.

    Args:
        opinion: with the images' odds; its look may be wider than before.
        suggested: (*B) class indices, in the box of the opinion's look.
        remark: what the images had to say of the suggestion; "" for nothing.
        mirrored: how sure it is that the mask is mirrored, in [0, 1]; 0: not at all.
    """

    opinion: Opinion
    suggested: np.ndarray
    remark: str = ""
    mirrored: float = 0.0


def hear(opinion: Opinion, image: np.ndarray, witness: ImageWitness) -> Heard:
    """The opinion of a case that has heard its image (C, *S) too, and the mask to suggest."""
    opinion = opinion.lost_by(misled(opinion, image, witness))
    odds = witness(opinion.look.case)
    if odds > 0 or not _beyond_images(opinion.look):
        opinion = replace(opinion, odds=opinion.odds + odds)
    given = _outlined(opinion.look, opinion.look.label, image, witness)
    found = given.mirrored() if witness.doubts(given.case) else None
    if found is not None:
        opinion = opinion.within(bounding_box(found[0] > 0))
        opinion = replace(opinion, odds=max(opinion.odds, float(logit(np.float64(found[1])))))
        better, remark, sure = found[0][opinion.look.box], MIRRORED, found[1]
    else:
        better, remark = advised(opinion.look, suggest(opinion), image, witness, given=given)
        sure = 0.0
    opinion = opinion.backed(witness.backing)  # now, for suggestions go by the verdict on the mask
    if remark:
        opinion = replace(opinion, noise=_heard_noise(opinion, better))
    return Heard(opinion, better, remark, sure)


def _heard_noise(opinion: Opinion, suggested: np.ndarray) -> np.ndarray:
    """(*B) the noise of an opinion whose suggestion (*B) the images made: they know of the voxels that it changes."""
    changed = suggested != opinion.look.label
    if not changed.any():
        return (KEPT_DOUBT * opinion.noise).astype(np.float32)
    return np.where(changed, np.maximum(opinion.noise, HEARD * opinion.flawed), opinion.noise).astype(
        np.float32
    )


def misled(opinion: Opinion, image: np.ndarray, witness: ImageWitness) -> float:
    """How likely a model is lost on an image (C, *S), in [0, 1].

    Two witnesses must agree: the model doubts more than usual, *and* the image explains the outline that it sees worse
    than it explains the outlines that are believed. Doubts alone are an image's difficulty as often as a model's
    failure. Measured on assorted flaws of HC18 (five seeds), hippocampus slices and a crowd's masks (two each).
    """
    doubting = float(sigmoid(np.float64((opinion.doubt - DOUBTING[0]) / DOUBTING[1])))
    look = opinion.look
    if doubting < LEAST_DOUBT or not witness.knows(look.case):
        return 0.0
    assert witness.mender is not None
    seen = _outlined(look, look.decided, image, witness).unexplained
    most = max(1.0, float(witness.mender.plausible[0]) + UNSEEN[0])
    return doubting * float(sigmoid(np.float64((seen - most) / UNSEEN[1]))) if np.isfinite(seen) else 0.0


def advised(
    look: Look,
    suggested: np.ndarray,
    image: np.ndarray,
    witness: ImageWitness,
    *,
    given: Outlined | None = None,
) -> tuple[np.ndarray, str]:
    """What the images say of a suggestion that rests on a model: the mask (*B) to suggest, and a remark on it.

    - An outline that the images believe and explain is not exchanged for one that they explain worse. They see outlines
      only: where a class is missing, or drawn as another, they are not asked.
    - An outline that they disbelieve is drawn wider or tighter instead, as `screen --mend` does, if that is explained
      better than the suggestion and brings the mask nearer to the model: two witnesses who do not know of one another.

    Measured on assorted flaws of hippocampus slices and of HC18, two seeds each; see docs/results/audit. Of outlines
    that are explained better than the model's, those explained well are nearly all right; those hardly explained at all
    are as wrong as the model says (HC18, five seeds; slices and a crowd's masks, two).

    Args:
        look: of the case, with calibrated probabilities.
        suggested: (*B) class indices.
        image: (C, *S), any numbers.
        witness: what the images say of all masks.
        given: the look's mask before this witness, if it has been heard already.
    """
    if not witness.knows(look.case):
        return suggested, ""

    def outlined(label: np.ndarray) -> Outlined:
        return _outlined(look, label, image, witness)

    given = given or outlined(look.label)
    if not witness.disbelieves(look.case):
        if (
            not _of_the_outline(look.label, suggested, look.classes)
            or given.unexplained > HARDLY
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
    before, after = (mean_dice(mask_dice(one, look.decided, look.classes)) for one in (look.label, moved))
    if after <= before or outlined(moved).unexplained >= outlined(suggested).unexplained:
        return suggested, ""
    way = "wider" if outwards > 0 else "tighter"
    return moved, f"suggested is the given outline {abs(outwards):.1f} mm {way}, where the images explain it"


def _outlined(look: Look, label: np.ndarray, image: np.ndarray, witness: ImageWitness) -> Outlined:
    valid = None if look.valid is None else look.whole(look.valid, fill=True)
    return Outlined(image, look.whole(label), valid, look.spacing_mm, witness, look.case)


def _beyond_images(look: Look) -> bool:
    """Whether the model objects to something that no outline shows: a class left out, or taken for another.

    Then a sound outline does not speak for the mask.
    """
    counts = [np.bincount(one.ravel(), minlength=look.classes) for one in (look.decided, look.label)]
    if ((counts[0] > 0) & (counts[1] == 0)).any():
        return True
    changed, outside = _differing(look.label, look.decided)
    return outside < SAME * changed


def _of_the_outline(given: np.ndarray, suggested: np.ndarray, classes: int) -> bool:
    """Whether two masks differ by the outline of the foreground, and not by what is drawn or as what.

    An object, slices or a hole that one of them lacks show in no outline that is drawn.
    """
    changed, outside = _differing(given, suggested)
    if outside <= SAME * changed or float(np.nanmin(mask_dice(given, suggested, classes))) <= SAME:
        return False
    first, second = given > 0, suggested > 0
    apart = int(np.count_nonzero(parts_apart(first, second) | parts_apart(second, first)))
    if apart <= SAME * changed:
        apart = int(np.count_nonzero(holes_apart(first, second) | holes_apart(second, first)))
    return max(apart, in_slices_apart(first, second, given != suggested)) <= SAME * changed


def _differing(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """In how many voxels two masks differ, and in how many by foreground against background."""
    return int((first != second).sum()), int(((first > 0) != (second > 0)).sum())
