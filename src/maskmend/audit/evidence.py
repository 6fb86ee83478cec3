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
    probs, given = look.probs, look.given()
    best = probs.max(axis=0)
    likely = 1 - probs[0]
    drawn = (look.label > 0).astype(np.float32)
    voxel = float(np.prod(look.spacing_mm))
    logs = np.log(probs)
    contradiction = np.log(best) - np.log(given)
    expected = -float((probs * logs).sum())
    soft_outline = surface(likely, look.spacing_mm) / voxel
    outline = 0.5 * (surface(drawn, look.spacing_mm) / voxel + soft_outline) + 1
    volume = 0.5 * float(drawn.sum() + likely.sum()) + 1
    inside = np.clip(likely, LEAST, 1 - LEAST)
    odds = np.log(inside / (1 - inside))
    against = np.maximum(np.where(look.label > 0, -odds, odds), 0)
    total = float(contradiction.sum())
    surprises = np.array([
        np.log((total + 1) / (expected + 1)),
        np.log(total / outline + _FAINT),
        np.log(total / volume + _FAINT),
        np.log(float(against.sum()) / outline + _FAINT),
    ])  # fmt: skip
    groups = [(drawn, likely)]
    if look.classes > 2:
        groups += [((look.label == k).astype(np.float32), probs[k]) for k in range(1, look.classes)]
    signed = np.stack([_differences(mask, soft, look.spacing_mm) for mask, soft in groups])
    decided = (likely > 0.5).astype(np.float32)
    ball = (float(decided.sum()) + 1) ** ((drawn.ndim - 1) / drawn.ndim)
    rough = surface(decided, look.spacing_mm) / voxel ** ((drawn.ndim - 1) / drawn.ndim) / ball
    doubts = np.log([expected / (soft_outline + 1) + _FAINT, rough + 0.1])
    return Evidence(surprises, signed, doubts)


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


def _differences(mask: np.ndarray, soft: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Row of `Evidence.signed` for one group: mask and soft mask (*B) float32."""
    ndim = mask.ndim
    box = bounding_box((mask > 0) | (soft > _FAINT), 1)
    mask, soft = mask[box], soft[box]
    drawn, likely = float(mask.sum()), float(soft.sum())
    if drawn + likely < 0.5:
        return np.full(len(signed_names(ndim)), np.nan)
    voxel = float(np.prod(spacing_mm))
    outline, volume = surface(mask, spacing_mm), (drawn + likely) / 2
    both = outline + surface(soft, spacing_mm)
    offset = 2 * (drawn - likely) * voxel / (both + voxel ** ((ndim - 1) / ndim))
    first, second = _moments(mask - soft, 0.5 * (mask + soft), spacing_mm, volume)
    ball = (volume * voxel) ** ((ndim - 1) / ndim)
    pieces = ndimage.label(mask, np.ones((3,) * ndim))[1]
    tail = [
        np.log(drawn * voxel + voxel),
        np.log((outline + 1e-6) / ball) if drawn else 0.0,
        np.log(1 + pieces),
    ]
    return np.array([offset, *first, *second, *tail])


def _moments(
    rest: np.ndarray, weight: np.ndarray, spacing_mm: Sequence[float], volume: float
) -> tuple[list[float], list[float]]:
    """Shift in mm by axis, and change of the second moments relative to the size, of mask minus soft mask."""
    ndim, total = rest.ndim, max(float(weight.sum()), 1e-6)
    places = []
    for axis, step in enumerate(spacing_mm):
        line = weight.sum(axis=tuple(a for a in range(ndim) if a != axis))
        at = np.arange(len(line)) * step
        shape = [-1 if a == axis else 1 for a in range(ndim)]
        places.append((at - float(line @ at) / total).reshape(shape).astype(np.float32))
    sums = {axis: rest.sum(axis=tuple(a for a in range(ndim) if a != axis)) for axis in range(ndim)}
    weights = {axis: weight.sum(axis=tuple(a for a in range(ndim) if a != axis)) for axis in range(ndim)}
    first = [float(sums[axis] @ places[axis].ravel()) / (volume + 1) for axis in range(ndim)]
    size = (volume * float(np.prod(spacing_mm))) ** (1 / ndim) + 1e-6
    excess = float(rest.sum()) / total
    second = []
    for one in range(ndim):
        square = places[one].ravel() ** 2
        second.append(float(sums[one] @ square - excess * (weights[one] @ square)))
        for other in range(one + 1, ndim):
            axes = tuple(a for a in range(ndim) if a not in (one, other))
            plane = rest.sum(axis=axes) if axes else rest
            second.append(float(places[one].ravel() @ plane @ places[other].ravel()))
    return first, [value / (volume + 1) / size for value in second]
