"""Masks that belong elsewhere: mirrored, or of another case. Found by asking whether another mask fits much better."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.audit.estimate import Opinion
from maskmend.audit.look import Look
from maskmend.boxes import bounding_box
from maskmend.data.preprocess import resample

GRID = {2: 24, 3: 14}  # cells per axis of the coarse masks that are compared between all cases
DOUBTED = 0.85  # estimated Dice from which on a mask is not asked whether it is mirrored
FITS = 0.75  # Dice that a mirrored mask or one of another case must reach
EXPLAINS = 0.5  # and the share of the difference that it must take away
POOR = 0.5  # Dice of a mask that may be of another case, if no simple act explains it
BLOCK = 256  # cases that are compared with all at a time
BETTER = 0.02  # by which a mask must fit another case better that has it too
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


@dataclass(frozen=True)
class Trace:
    """What is kept of a case, some kilobytes, so that each can be compared with each.

    Args:
        case: id. kind: of the error that its mask seems to have.
        mask, likely: (cells,) float16, the drawn and the probable foreground, made coarse.
        digest: of the drawn voxels and where they lie; "" for masks too small to be equal by more than chance.
        image: the same of the image, "" where it is not known or the mask is too small.
    """

    case: str
    kind: str
    mask: np.ndarray
    likely: np.ndarray
    digest: str
    image: str = ""

    @classmethod
    def of(cls, opinion: Opinion, kind: str, image: np.ndarray | None = None) -> Trace:
        """Of a judged case whose mask seems to have this kind of error, and its image (C, *S)."""
        look = opinion.look
        cells = (GRID[look.label.ndim],) * look.label.ndim
        parts = look.whole((look.label > 0).astype(np.float32)), look.whole(1 - look.probs[0])
        mask, likely = (resample(part[None], cells).ravel().astype(np.float16) for part in parts)
        digest = _digest(look)
        seen = _hash(image, image.shape) if digest and image is not None else ""
        return cls(look.case, kind, mask, likely, digest, seen)


def elsewhere(traces: Sequence[Trace]) -> dict[str, tuple[str, float]]:
    """Cases whose mask seems to be of another case: to the case that it seems to be of, and how sure.

    A mask that two cases share to the voxel is wrong for the one that it fits worse, unless they are the same image
    twice. Else another case's mask must fit much better than a poor own one whose error has no simple kind.
    """
    if len(traces) < 2:
        return {}
    masks = np.stack([one.mask for one in traces]).astype(np.float32)
    likely = np.stack([one.likely for one in traces]).astype(np.float32)
    sizes = masks.sum(axis=1), likely.sum(axis=1)
    alike = _alike(traces)
    found = {}
    for number, (trace, overlap) in enumerate(zip(traces, _overlaps(masks, likely), strict=True)):
        fit = 2 * overlap / np.maximum(sizes[0] + sizes[1][number], 1e-6)
        own = float(fit[number])
        others = [
            other for other in alike.get(trace.digest, ())
            if other != number and not (trace.image and trace.image == traces[other].image)
        ]  # fmt: skip
        twin = _twin(others, masks, likely, own)
        fit[number] = 0
        best = int(fit.argmax())
        if twin is not None:
            found[trace.case] = traces[twin].case, 0.95
        elif trace.kind not in SIMPLE and own < POOR and fit[best] > FITS:
            found[trace.case] = traces[best].case, float((fit[best] - own) / (1 - own))
    return found


def _overlaps(masks: np.ndarray, likely: np.ndarray) -> Iterator[np.ndarray]:
    """Of each likely foreground (N, cells) with every mask (N, cells): (N,), computed for many at a time."""
    for start in range(0, len(likely), BLOCK):
        yield from likely[start : start + BLOCK] @ masks.T


def _alike(traces: Sequence[Trace]) -> dict[str, list[int]]:
    """The numbers of the cases that share a mask, by its digest."""
    found: dict[str, list[int]] = {}
    for number, one in enumerate(traces):
        if one.digest:
            found.setdefault(one.digest, []).append(number)
    return found


def _twin(alike: Sequence[int], masks: np.ndarray, likely: np.ndarray, own: float) -> int | None:
    """Another of the cases with this very mask, which it fits better there."""
    fits = {other: soft_dice(masks[other], likely[other]) for other in alike}
    better = [other for other, fit in fits.items() if fit > own + BETTER]
    return max(better, key=lambda other: fits[other]) if better else None


def _digest(look: Look) -> str:
    """See `Trace`."""
    if np.count_nonzero(look.label) < LEAST_VOXELS:
        return ""
    inner = bounding_box(look.label > 0)
    start = [a.start + b.start for a, b in zip(look.box, inner, strict=True)]
    return _hash(look.label[inner], (start, look.label[inner].shape))


def _hash(content: np.ndarray, where: object) -> str:
    found = hashlib.blake2b(np.ascontiguousarray(content).data, digest_size=12)
    found.update(str(where).encode())
    return found.hexdigest()
