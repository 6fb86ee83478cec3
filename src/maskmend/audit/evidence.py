"""What speaks for an error in one case: a few figures per case, comparable between cases.

Overlap alone cannot tell a wrong mask from a hard image: the model's outline wavers by about as much as a subtle error
moves it. Two things can. How surprising the mask is *compared with what the model expects to be surprised by*: a hard
image is one that the model is unsure of. And the *signed* differences (outline inside or outside, shifted,
stretched): a wavering outline cancels out in them, an error does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from maskmend.audit.look import LEAST, Look, bounding_box

SURPRISES = ("surprise", "contradiction", "contradiction by volume", "outline surprise")
"""Figures that an error can only raise."""

_FAINT = 0.02


@dataclass(frozen=True)
class Evidence:
    """Figures of one case.

    Args:
        surprises: (4,) see `SURPRISES`.
        signed: (G, M) differences of the mask from the model for each group of voxels: all foreground, then, with
            more than one foreground class, each class. The columns are named by `signed_names`; NaN where neither
            has the class.
        doubts: (2,) how unsure the model is of this image, whatever the mask: softness of its outline, and roughness.
    """

    surprises: np.ndarray
    signed: np.ndarray
    doubts: np.ndarray


def signed_names(ndim: int) -> list[str]:
    """The columns of `Evidence.signed`: what is merged into one input has one name."""
    squares = ndim * (ndim + 1) // 2
    return ["offset", *["shift"] * ndim, *["stretch"] * squares, "size", "roughness", "pieces"]


def gather(look: Look) -> Evidence:
    """The figures of a case.

    offset: mm by which the mask's outline lies outside the model's, mean over the outline.
    shift: mm between the centres, by axis. stretch: change of the second moments, relative to the size.
    size: log of the mask's volume. roughness: log of outline over what a ball of this volume has.
    pieces: log of the number of connected parts.
    """
    soft, given = _soft(look), look.given
    drawn = (look.label > 0).astype(np.float32)
    contradiction = float((soft.log_best - np.log(given)).sum())
    against = float(np.where(look.label > 0, np.maximum(-soft.odds, 0), np.maximum(soft.odds, 0)).sum())
    voxel = float(np.prod(look.spacing_mm))
    outline = 0.5 * (surface(drawn, look.spacing_mm) + soft.outlines[0]) / voxel + 1
    volume = 0.5 * float(drawn.sum() + soft.likely.sum()) + 1
    surprises = np.array([
        np.log((contradiction + 1) / (soft.expected + 1)),
        np.log(contradiction / outline + _FAINT),
        np.log(contradiction / volume + _FAINT),
        np.log(against / outline + _FAINT),
    ])  # fmt: skip
    groups = [(drawn, soft.likely)]
    if look.classes > 2:
        groups += [(look.label == k, look.probs[k]) for k in range(1, look.classes)]
    signed = np.stack([
        _differences(mask, likely, soft.boxes[k], soft.outlines[k], look.spacing_mm)
        for k, (mask, likely) in enumerate(groups)
    ])  # fmt: skip
    return Evidence(surprises, signed, soft.doubts)


@dataclass(frozen=True)
class _Soft:
    """What the probabilities of a case say by themselves.

    Args:
        likely: (*B) probability of any foreground. odds: its log odds. log_best: log of the largest probability.
        expected: how surprised the model expects to be, summed over voxels.
        boxes, outlines: of each group of voxels, see `Evidence.signed`.
        doubts: see `Evidence`.
    """

    likely: np.ndarray
    odds: np.ndarray
    log_best: np.ndarray
    expected: float
    boxes: list[tuple[slice, ...]]
    outlines: list[float]
    doubts: np.ndarray


def _soft(look: Look) -> _Soft:
    if "soft" not in look.memo:
        look.memo["soft"] = _measured(look)
    found: _Soft = look.memo["soft"]
    return found


def _measured(look: Look) -> _Soft:
    probs, ndim, spacing = look.probs, look.label.ndim, look.spacing_mm
    logs, likely = np.log(probs), 1 - probs[0]
    inside = np.clip(likely, LEAST, 1 - LEAST)
    groups = [likely, *(probs[1:] if look.classes > 2 else ())]
    boxes = [bounding_box(one > _FAINT, 1) for one in groups]
    outlines = [surface(one[box], spacing) for one, box in zip(groups, boxes, strict=True)]
    expected = -float(np.vdot(probs, logs))
    voxel, flat = float(np.prod(spacing)), (ndim - 1) / ndim
    decided = (likely > 0.5).astype(np.float32)
    rough = surface(decided, spacing) / ((float(decided.sum()) + 1) * voxel) ** flat
    doubts = np.log([expected / (outlines[0] / voxel + 1) + _FAINT, rough + 0.1])
    odds = np.log(inside / (1 - inside))
    return _Soft(likely, odds, logs.max(axis=0), expected, boxes, outlines, doubts)


def surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Length (2-D, mm) or area (3-D, mm2) of the outline of a soft mask (*S) in [0, 1]: its total variation."""
    squares = np.zeros(mask.shape, np.float32)
    for axis, step in enumerate(spacing_mm):
        rise = np.diff(mask, axis=axis)
        rise *= rise
        rise *= np.float32(1 / step**2)
        squares[_all_but_last(mask.ndim, axis)] += rise
    return float(np.sqrt(squares, out=squares).sum()) * float(np.prod(spacing_mm))


def _all_but_last(ndim: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(0, -1) if a == axis else slice(None) for a in range(ndim))


def _differences(
    mask: np.ndarray,
    soft: np.ndarray,
    soft_box: tuple[slice, ...],
    soft_outline: float,
    spacing_mm: Sequence[float],
) -> np.ndarray:
    """Row of `Evidence.signed` for one group: mask (*B) of zeros and ones, soft mask (*B) float32."""
    ndim = mask.ndim
    box = _around(soft_box, bounding_box(mask > 0, 1))
    hard, soft = mask[box] > 0, soft[box]
    mask = hard.astype(np.float32)
    drawn, likely = float(mask.sum()), float(soft.sum())
    if drawn + likely < 0.5:
        return np.full(len(signed_names(ndim)), np.nan)
    voxel = float(np.prod(spacing_mm))
    outline, volume = surface(mask, spacing_mm), (drawn + likely) / 2
    offset = 2 * (drawn - likely) * voxel / (outline + soft_outline + voxel ** ((ndim - 1) / ndim))
    first, second = _moments(mask - soft, 0.5 * (mask + soft), spacing_mm, volume)
    ball = (volume * voxel) ** ((ndim - 1) / ndim)
    pieces = ndimage.label(hard, np.ones((3,) * ndim))[1]
    tail = [
        np.log(drawn * voxel + voxel),
        np.log((outline + 1e-6) / ball) if drawn else 0.0,
        np.log(1 + pieces),
    ]
    return np.array([offset, *first, *second, *tail])


def _around(one: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    """The smallest box that holds both."""
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _moments(
    rest: np.ndarray, weight: np.ndarray, spacing_mm: Sequence[float], volume: float
) -> tuple[list[float], list[float]]:
    """Shift in mm by axis, and change of the second moments relative to the size, of mask minus soft mask."""
    ndim = rest.ndim
    lines = [_line_sums(weight, axis) for axis in range(ndim)]
    sums = [_line_sums(rest, axis) for axis in range(ndim)]
    total, excess = max(float(lines[0].sum()), 1e-6), float(sums[0].sum())
    places = []
    for line, step in zip(lines, spacing_mm, strict=True):
        at = np.arange(len(line), dtype=np.float32) * np.float32(step)
        places.append(at - float(line @ at) / total)
    first = [float(part @ at) / (volume + 1) for part, at in zip(sums, places, strict=True)]
    size = (volume * float(np.prod(spacing_mm))) ** (1 / ndim) + 1e-6
    second = []
    for one in range(ndim):
        square = places[one] ** 2
        second.append(float(sums[one] @ square - excess / total * (lines[one] @ square)))
        for other in range(one + 1, ndim):
            axes = tuple(a for a in range(ndim) if a not in (one, other))
            plane = rest.sum(axis=axes) if axes else rest
            second.append(float(places[one] @ plane @ places[other]))
    return first, [value / (volume + 1) / size for value in second]


def _line_sums(array: np.ndarray, axis: int) -> np.ndarray:
    """Sum over all other axes; a product with ones is several times faster than `sum`."""
    ends = array.reshape(-1, *array.shape[axis:]) if axis else array[None]
    if axis:
        ends = (np.ones((1, len(ends)), array.dtype) @ ends.reshape(len(ends), -1)).reshape(
            1, *array.shape[axis:]
        )
    flat = ends.reshape(array.shape[axis], -1)
    return np.asarray(flat @ np.ones(flat.shape[1], array.dtype))
