"""Masks that belong elsewhere: mirrored, or of another case. Found by asking whether another mask fits much better."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from maskmend.audit.estimate import Opinion
from maskmend.data.preprocess import resample

GRID = {2: 24, 3: 14}  # cells per axis of the coarse masks that are compared between all cases
POOR = 0.7  # Dice of a mask that may be of another case or mirrored
FITS = 0.7  # Dice that the other one must reach
BETTER = 0.2  # and by how much it must be better


def mirrored_fit(opinion: Opinion) -> tuple[float, float]:
    """Soft Dice of the given foreground with the probabilities, and the best one after mirroring one axis."""
    look = opinion.look
    likely, drawn = look.whole(1 - look.probs[0]), look.whole(look.label > 0)
    flips = [np.flip(drawn, axis) for axis in range(drawn.ndim)]
    return soft_dice(drawn, likely), max(soft_dice(one, likely) for one in flips)


def soft_dice(mask: np.ndarray, likely: np.ndarray) -> float:
    """2 sum(mask likely) / (sum mask + sum likely), of arrays of one shape."""
    return float(2 * (mask * likely).sum() / max(float(mask.sum() + likely.sum()), 1e-6))


@dataclass
class Mixups:
    """Coarse masks and predictions of all cases: some kilobytes each, so that each can be compared with each."""

    cases: list[str] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    likely: list[np.ndarray] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def add(self, opinion: Opinion) -> None:
        """Remember a case."""
        look = opinion.look
        cells = (GRID[look.label.ndim],) * look.label.ndim
        drawn = look.whole((look.label > 0).astype(np.float32))
        self.cases.append(look.case)
        self.masks.append(resample(drawn[None], cells).ravel().astype(np.float16))
        self.likely.append(resample(look.whole(1 - look.probs[0])[None], cells).ravel().astype(np.float16))
        same = hashlib.blake2b(look.label.tobytes() + str(look.box).encode(), digest_size=12).hexdigest()
        self.digests.append(same if look.label.any() else "")

    def elsewhere(self) -> dict[str, tuple[str, float]]:
        """Cases whose mask seems to be of another case: to the case that it seems to be of, and how sure.

        A mask that two cases share to the voxel is wrong for the one that it fits worse. Else another case's mask
        must fit much better than a poor own one.
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
            elif own < POOR and fit[best] > FITS and fit[best] - own > BETTER:
                found[case] = self.cases[best], float(min(1.0, fit[best] - own))
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
