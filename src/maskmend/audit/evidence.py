"""What speaks for an error in one case: a few figures per case, comparable between cases.

Overlap alone cannot tell a wrong mask from a hard image: the model's outline wavers by about as much as a subtle error
moves it. Two things can. How surprising the mask is *compared with what the model expects to be surprised by*: a hard
image is one that the model is unsure of. And the *signed* differences (outline inside or outside, shifted,
stretched): a wavering outline cancels out in them, an error does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from maskmend.audit.look import LEAST, Look, bounding_box
from maskmend.audit.shape import Moments, outline, soft_outline

SURPRISES = ("surprise", "contradiction", "contradiction by volume", "outline surprise")
"""Figures that an error can only raise."""

_FAINT = 0.02
_CORNERS = {ndim: np.ones((3,) * ndim, int) for ndim in (2, 3)}


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


@cache
def signed_names(ndim: int) -> tuple[str, ...]:
    """The columns of `Evidence.signed`: what is merged into one input has one name, side by side."""
    squares = ndim * (ndim + 1) // 2
    return ("offset", *["shift"] * ndim, *["stretch"] * squares, "size", "roughness", "pieces")


@cache
def name_starts(columns: int) -> tuple[int, ...]:
    """Where each name begins in this many columns of `Evidence.signed`."""
    names = next(names for names in map(signed_names, (2, 3)) if len(names) == columns)
    return tuple(names.index(name) for name in dict.fromkeys(names))


def gather(look: Look) -> Evidence:
    """The figures of a case.

    offset: mm by which the mask's outline lies outside the model's, mean over the outline.
    shift: mm between the centres, by axis. stretch: change of the second moments, relative to the size.
    size: log of the mask's volume. roughness: log of outline over what a ball of this volume has.
    pieces: log of the number of connected parts.
    """
    soft, drawn = _soft(look), look.label > 0
    masks = _drawn_parts(look, drawn)
    contradiction, against = _contradictions(look, soft, drawn)
    voxel = float(np.prod(look.spacing_mm))
    outline_voxels = 0.5 * (masks[0].outline + soft.parts[0].outline) / voxel + 1
    volume = 0.5 * (masks[0].moments.mass + soft.parts[0].moments.mass) + 1
    surprises = np.array([
        np.log((contradiction + 1) / (soft.expected + 1)),
        np.log(contradiction / outline_voxels + _FAINT),
        np.log(contradiction / volume + _FAINT),
        np.log(against / outline_voxels + _FAINT),
    ])  # fmt: skip
    signed = [_differences(mask, part, look.spacing_mm) for mask, part in zip(masks, soft.parts, strict=True)]
    return Evidence(surprises, np.stack(signed), soft.doubts)


@dataclass(frozen=True)
class _Part:
    """A group of voxels as drawn, or as the probabilities have it: outline in mm (mm2), moments, connected parts."""

    outline: float
    moments: Moments
    pieces: int = 0


@dataclass(frozen=True)
class _Soft:
    """What the probabilities of a case say by themselves.

    Args:
        likely: (*B) probability of any foreground. decided: (*B) bool, where it is above one half.
        best: (*B) largest probability.
        expected: how surprised the model expects to be, summed over voxels.
        parts: of each group of voxels, see `Evidence.signed`.
        doubts: see `Evidence`.
    """

    likely: np.ndarray
    decided: np.ndarray
    best: np.ndarray
    expected: float
    parts: list[_Part]
    doubts: np.ndarray


def _soft(look: Look) -> _Soft:
    if "soft" not in look.memo:
        look.memo["soft"] = _measured(look)
    found: _Soft = look.memo["soft"]
    return found


def _measured(look: Look) -> _Soft:
    probs, ndim, spacing = look.probs, look.label.ndim, look.spacing_mm
    likely = 1 - probs[0]
    parts = _soft_parts(look, likely)
    expected = _entropy(probs, likely)
    voxel, flat = float(np.prod(spacing)), (ndim - 1) / ndim
    decided = likely > 0.5
    rough = outline(decided, spacing) / ((np.count_nonzero(decided) + 1) * voxel) ** flat
    doubts = np.log([expected / (parts[0].outline / voxel + 1) + _FAINT, rough + 0.1])
    return _Soft(likely, decided, probs.max(axis=0), expected, parts, doubts)


def _entropy(probs: np.ndarray, likely: np.ndarray) -> float:
    """Summed over voxels; those at the least probability that is believed are all alike, and most."""
    least = LEAST * (len(probs) - 1)
    unsure = np.flatnonzero(likely > 2 * least)
    some = np.take(probs.reshape(len(probs), -1), unsure, axis=1)
    floor = -least * np.log(LEAST) - (1 - least) * np.log(1 - least)
    return (likely.size - len(unsure)) * float(floor) - float(np.vdot(some, np.log(some)))


def _soft_parts(look: Look, likely: np.ndarray) -> list[_Part]:
    spacing, parts, whole = look.spacing_mm, [], Moments.none(look.label.ndim)
    for one in look.probs[1:]:
        box = bounding_box(one > _FAINT, 1)
        moments = Moments.of(one[box], _corner(box, spacing), spacing)
        whole += moments
        parts.append(_Part(soft_outline(one[box], spacing), moments))
    if look.classes == 2:
        return parts
    return [_Part(soft_outline(likely[bounding_box(likely > _FAINT, 1)], spacing), whole), *parts]


def _drawn_parts(look: Look, drawn: np.ndarray) -> list[_Part]:
    spacing, ndim = look.spacing_mm, look.label.ndim
    around, *boxes = _label_boxes(look)
    parts, whole = [], Moments.none(ndim)
    for k, box in enumerate(boxes, 1):
        if box is None:
            parts.append(_Part(0.0, Moments.none(ndim)))
            continue
        mask = look.label[box] == k
        moments = Moments.of(mask.astype(np.float32), _corner(box, spacing), spacing)
        whole += moments
        parts.append(_Part(outline(mask, spacing), moments, _pieces(mask)))
    if look.classes == 2 or around is None:
        return parts if look.classes == 2 else [parts[0], *parts]
    return [_Part(outline(drawn[around], spacing), whole, _pieces(drawn[around])), *parts]


def _pieces(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, _CORNERS[mask.ndim])[1])


def _contradictions(look: Look, soft: _Soft, drawn: np.ndarray) -> tuple[float, float]:
    """Log of the best class's probability over the given one's, and log odds of foreground, where they contradict."""
    given = look.given
    off = given < soft.best
    contradiction = float(np.log(soft.best[off] / given[off]).sum())
    likely = np.clip(soft.likely[soft.decided ^ drawn], LEAST, 1 - LEAST)
    return contradiction, float(np.abs(np.log(likely / (1 - likely))).sum())


def _label_boxes(look: Look) -> list[tuple[slice, ...] | None]:
    """The box of all that is drawn, then of each class, one voxel wider where there is room; None where nothing is."""
    found = ndimage.find_objects(look.label, look.classes - 1)
    there = [box for box in found if box is not None]
    if not there:
        return [None] * look.classes
    around = tuple(
        slice(min(one.start for one in axis), max(one.stop for one in axis))
        for axis in zip(*there, strict=True)
    )
    shape = look.label.shape
    return [
        None if box is None
        else tuple(slice(max(a.start - 1, 0), min(a.stop + 1, n)) for a, n in zip(box, shape, strict=True))
        for box in (around, *found)
    ]  # fmt: skip


def _corner(box: Sequence[slice], spacing_mm: Sequence[float]) -> list[float]:
    return [one.start * step for one, step in zip(box, spacing_mm, strict=True)]


def _differences(mask: _Part, soft: _Part, spacing_mm: Sequence[float]) -> np.ndarray:
    """Row of `Evidence.signed` for one group."""
    ndim, drawn, likely = len(spacing_mm), mask.moments.mass, soft.moments.mass
    if drawn + likely < 0.5:
        return np.full(len(signed_names(ndim)), np.nan)
    voxel, volume, flat = float(np.prod(spacing_mm)), (drawn + likely) / 2, (ndim - 1) / ndim
    offset = 2 * (drawn - likely) * voxel / (mask.outline + soft.outline + voxel**flat)
    first, second = _changes(mask.moments, soft.moments, volume, voxel)
    ball = (volume * voxel) ** flat
    tail = [
        np.log(drawn * voxel + voxel),
        np.log((mask.outline + 1e-6) / ball) if drawn else 0.0,
        np.log(1 + mask.pieces),
    ]
    return np.array([offset, *first, *second, *tail])


def _changes(mask: Moments, soft: Moments, volume: float, voxel: float) -> tuple[np.ndarray, list[float]]:
    """Shift in mm by axis, and change of the second moments relative to the size, of mask minus soft mask."""
    both = mask + soft
    centre = both.first / max(both.mass, 1e-6)
    rest, all_of_it = (mask - soft).about(centre), both.about(centre)
    ndim = len(centre)
    size = (volume * voxel) ** (1 / ndim) + 1e-6
    second = rest.second.copy()
    second[range(ndim), range(ndim)] -= rest.mass / max(both.mass, 1e-6) * np.diag(all_of_it.second)
    upper = [float(second[one, other]) for one in range(ndim) for other in range(one, ndim)]
    return rest.first / (volume + 1), [value / (volume + 1) / size for value in upper]
