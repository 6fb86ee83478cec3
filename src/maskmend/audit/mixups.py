"""Masks that belong elsewhere: mirrored, or of another case. Found by asking whether another mask fits much better."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from maskmend.audit.estimate import Opinion
from maskmend.audit.look import Look, bounding_box
from maskmend.data.preprocess import resample

GRID = {2: 24, 3: 14}  # cells per axis of the coarse masks that are compared between all cases
DOUBTED = 0.85  # estimated Dice from which on a mask is not asked whether it is mirrored
FITS = 0.75  # Dice that a mirrored mask or one of another case must reach
EXPLAINS = 0.5  # and the share of the difference that it must take away
POOR = 0.5  # Dice of a mask that may be of another case, if no simple act explains it
LEAST_VOXELS = 20  # of a mask before an equal one is no chance
SIMPLE = ("over-drawn", "under-drawn", "missing object", "invented object", "swapped class", "sound")


def mirrored(opinion: Opinion) -> float:
    """How sure it is that the mask is mirrored along an axis, in [0, 1]; 0: not at all.

    The mirrored foreground must fit the probabilities well, and explain most of what the given one does not.
    """
    if opinion.flawed < 0.5:
        return 0.0
    look = opinion.look
    likely, drawn = look.whole(1 - look.probs[0]), look.whole(look.label > 0)
    own = soft_dice(drawn, likely)
    best = max(soft_dice(np.flip(drawn, axis), likely) for axis in range(drawn.ndim))
    explained = (best - own) / max(1 - own, 1e-6)
    return explained if best > FITS and explained > EXPLAINS else 0.0


def flipped(opinion: Opinion, quality: float, by_image: float) -> float:
    """How sure it is that a mask is mirrored, in [0, 1], by its image or, if it is a poor one, by the model.

    Args:
        opinion: of the case. quality: its estimated Dice.
        by_image: how sure the image is.
    """
    return max(by_image, mirrored(opinion) if quality < DOUBTED else 0.0)


def soft_dice(mask: np.ndarray, likely: np.ndarray) -> float:
    """2 sum(mask likely) / (sum mask + sum likely), of arrays of one shape."""
    return float(2 * (mask * likely).sum() / max(float(mask.sum() + likely.sum()), 1e-6))


@dataclass
class Mixups:
    """Coarse masks and predictions of all cases: some kilobytes each, so that each can be compared with each."""

    cases: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    likely: list[np.ndarray] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def add(self, opinion: Opinion, kind: str) -> None:
        """Remember a case and the kind of error that its mask seems to have."""
        look = opinion.look
        cells = (GRID[look.label.ndim],) * look.label.ndim
        drawn = look.whole((look.label > 0).astype(np.float32))
        self.cases.append(look.case)
        self.masks.append(resample(drawn[None], cells).ravel().astype(np.float16))
        self.likely.append(resample(look.whole(1 - look.probs[0])[None], cells).ravel().astype(np.float16))
        self.kinds.append(kind)
        self.digests.append(_digest(look))

    def elsewhere(self) -> dict[str, tuple[str, float]]:
        """Cases whose mask seems to be of another case: to the case that it seems to be of, and how sure.

        A mask that two cases share to the voxel is wrong for the one that it fits worse. Else another case's mask must
        fit much better than a poor own one whose error has no simple kind.
        """
        if len(self.cases) < 2:
            return {}
        masks = np.stack(self.masks).astype(np.float32)
        likely = np.stack(self.likely).astype(np.float32)
        sizes = masks.sum(axis=1), likely.sum(axis=1)
        found = {}
        for number, case in enumerate(self.cases):
            fit = 2 * masks @ likely[number] / np.maximum(sizes[0] + sizes[1][number], 1e-6)
            own = float(fit[number])
            twin = self._twin(number, masks, likely, own)
            fit[number] = 0
            best = int(fit.argmax())
            if twin is not None:
                found[case] = self.cases[twin], 0.95
            elif self.kinds[number] not in SIMPLE and own < POOR and fit[best] > FITS:
                found[case] = self.cases[best], float((fit[best] - own) / (1 - own))
        return found

    def _twin(self, number: int, masks: np.ndarray, likely: np.ndarray, own: float) -> int | None:
        """Another case with this very mask, which it fits better there."""
        same = [
            other
            for other, digest in enumerate(self.digests)
            if other != number and digest and digest == self.digests[number]
        ]
        fits = {other: soft_dice(masks[other], likely[other]) for other in same}
        better = [other for other, fit in fits.items() if fit > own]
        return max(better, key=lambda other: fits[other]) if better else None


def _digest(look: Look) -> str:
    """Of the drawn voxels and where they lie; empty for masks too small to be equal by more than chance."""
    if np.count_nonzero(look.label) < LEAST_VOXELS:
        return ""
    inner = bounding_box(look.label > 0)
    start = [a.start + b.start for a, b in zip(look.box, inner, strict=True)]
    content = (
        np.ascontiguousarray(look.label[inner]).tobytes() + str((start, look.label[inner].shape)).encode()
    )
    return hashlib.blake2b(content, digest_size=12).hexdigest()
