"""What speaks for an error in one case: a few figures per case, comparable between cases.

Overlap alone cannot tell a wrong mask from a hard image: the model's outline wavers by about as much as a subtle error
moves it. Two things can. How surprising the mask is *compared with what the model expects to be surprised by*: a hard
image is one that the model is unsure of. And the *signed* differences (outline inside or outside, shifted,
stretched): a wavering outline cancels out in them, an error does not.

Objects that only the mask or only the model has are judged by themselves (`maskmend.audit.objects`): in the figures of
the outlines they are as the model has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod

import numpy as np
from scipy import ndimage

from maskmend.audit.look import LEAST, Look
from maskmend.audit.objects import CORNERS, Lone, Objects
from maskmend.audit.shape import Moments, outline, soft_outline
from maskmend.boxes import bounding_box, bounding_boxes

SURPRISES = ("surprise", "contradiction", "contradiction by volume", "outline surprise")
"""Figures that an error can only raise."""

_FAINT = 0.02
_NEAR = 4  # voxels around what is drawn or seen
_UPPER = {ndim: np.triu_indices(ndim) for ndim in (2, 3)}


@dataclass(frozen=True)
class Evidence:
    """Figures of one case.

    Args:
        surprises: (4,) see `SURPRISES`; NaN of a blank case.
        signed: (G, M) differences of the mask from the model for each group of voxels: all foreground, then, with
            more than one foreground class, each class. The columns are named by `signed_names`; NaN where the class
            is neither drawn nor likely anywhere.
        doubts: (2,) how unsure the model is of this image, whatever the mask: softness of its outline, and roughness.
            NaN where it sees nothing.
        seen_size: log of the volume of what the model sees, as the size of what is drawn.
        sureness: of the model, mean log odds of the likeliest class against background over what it sees, 0 where that
            is nothing.
        disagreement: the first of the surprises, of the mask as it is given.
        objects: (K - 1,) how many are drawn of each class.
        lone: those that only the mask or only the model has.
    """

    surprises: np.ndarray
    signed: np.ndarray
    doubts: np.ndarray
    seen_size: float
    sureness: float
    disagreement: float
    objects: np.ndarray
    lone: tuple[Lone, ...]

    @property
    def blank(self) -> bool:
        """Nothing is drawn and the model sees nothing: there is nothing to judge, nor does it say what is usual."""
        return bool(np.isnan(self.signed[0, 0]))

    @property
    def drawn(self) -> bool:
        """Something is drawn."""
        return bool(self.signed[0, -1] > 0)

    @property
    def seen(self) -> bool:
        """The model sees something."""
        return bool(np.isfinite(self.doubts[0]))

    @property
    def one_sided(self) -> bool:
        """Something is drawn where the model sees nothing, or the other way round."""
        return self.drawn != self.seen

    @property
    def confidence(self) -> float:
        """Of a case in which the model sees nothing: its mean log odds against what is drawn."""
        return float(np.exp(self.surprises[SURPRISES.index("contradiction by volume")]) - _FAINT) / 2


@cache
def signed_names(ndim: int) -> tuple[str, ...]:
    """The columns of `Evidence.signed`: what is merged into one input has one name, side by side."""
    squares = ndim * (ndim + 1) // 2
    return ("offset", *["shift"] * ndim, *["stretch"] * squares, "size", "roughness", "pieces")


@cache
def axes_of(columns: int) -> int:
    """Axes of the images whose `Evidence.signed` has this many columns."""
    return next(ndim for ndim in (2, 3) if len(signed_names(ndim)) == columns)


@cache
def name_starts(columns: int) -> tuple[int, ...]:
    """Where each name begins in this many columns of `Evidence.signed`."""
    names = signed_names(axes_of(columns))
    return tuple(names.index(name) for name in dict.fromkeys(names))


def gather(look: Look, objects: Objects | None = None) -> Evidence:
    """The figures of a case, and its `objects` where they are known already.

    offset: mm by which the mask's outline lies outside the model's, mean over the outline.
    shift: mm between the centres, by axis. stretch: change of the second moments, relative to the size.
    size: log of the mask's volume. roughness: log of outline over what a ball of this volume has.
    pieces: log of the number of connected parts.
    """
    objects = objects or Objects.of(look)
    settled, soft = objects.settled(look), _soft(look)
    masks = _drawn_parts(settled, objects.drawn if settled is look else None)
    contradiction = _contradiction(settled, soft)
    disagreement = contradiction if settled is look else _contradiction(look, soft)
    voxel, one = prod(look.spacing_mm), 1 / look.each
    outline_voxels = _in_voxels(0.5 * (masks.outline[0] + soft.parts.outline[0]), look) + one
    volume = 0.5 * (masks.moments.mass[0] + soft.parts.moments.mass[0]) + one
    surprises = np.array([
        np.log((contradiction + one) / (soft.expected + one)),
        np.log(contradiction / outline_voxels + _FAINT),
        np.log(contradiction / volume + _FAINT),
        np.log(_against_foreground(settled, soft) / outline_voxels + _FAINT),
    ])  # fmt: skip
    found = Evidence(
        surprises,
        _differences(masks, soft.parts, look.spacing_mm),
        soft.doubts,
        seen_size=float(np.log((soft.parts.moments.mass[0] + 1) * voxel)),
        sureness=soft.sureness,
        disagreement=float(np.log((disagreement + one) / (soft.expected + one))),
        objects=objects.drawn,
        lone=tuple(lone for lone, _ in objects.lone),
    )
    return replace(found, surprises=np.full_like(surprises, np.nan)) if found.blank else found


@dataclass(frozen=True)
class _Parts:
    """Groups of voxels as drawn, or as the probabilities have them; the groups are those of `Evidence.signed`.

    Args:
        outline: (G,) mm or mm2. moments: of G masks. pieces: (G,) connected parts; of soft masks 1 where any voxel is
            likely.
    """

    outline: np.ndarray
    moments: Moments
    pieces: np.ndarray


@dataclass(frozen=True)
class _Soft:
    """What the probabilities of a case say by themselves.

    Args:
        likely: (*B) probability of any foreground. decided: (*B) bool, where it is above one half.
        best: (*B) largest probability.
        expected: how surprised the model expects to be, summed over voxels.
        parts: of the probabilities.
        doubts, sureness: see `Evidence`.
    """

    likely: np.ndarray
    decided: np.ndarray
    best: np.ndarray
    expected: float
    parts: _Parts
    doubts: np.ndarray
    sureness: float


def _soft(look: Look) -> _Soft:
    if "soft" not in look.memo:
        look.memo["soft"] = _measured(look)
    found: _Soft = look.memo["soft"]
    return found


def _measured(look: Look) -> _Soft:
    probs, ndim, spacing = look.probs, look.label.ndim, look.spacing_mm
    likely = 1 - probs[0]
    parts = _soft_parts(look, likely)
    expected = _entropy(look, likely)
    voxel, one, flat = prod(spacing), 1 / look.each, (ndim - 1) / ndim
    decided = likely > 0.5
    rough = outline(decided, spacing) / ((np.count_nonzero(decided) + one) * voxel) ** flat
    doubts = np.log([expected / (_in_voxels(parts.outline[0], look) + one) + _FAINT, rough + 0.1])
    if not parts.pieces[0]:
        doubts[:] = np.nan
    best = probs.max(axis=0)
    sureness = float(np.log(best[decided] / probs[0][decided]).sum()) / (parts.moments.mass[0] + 2 * one)
    return _Soft(likely, decided, best, expected, parts, doubts, sureness)


def _in_voxels(outline_mm: float, look: Look) -> float:
    """About how many voxels lie along an outline; of a look that was thinned as many fewer as it has fewer in all."""
    flat = (look.label.ndim - 1) / look.label.ndim
    return outline_mm / (prod(look.spacing_mm) / look.each) ** flat / look.each


def _entropy(look: Look, likely: np.ndarray) -> float:
    """Summed over voxels. Those at the least probability that is believed are all alike, and only those near what is
    drawn or seen count: how far a glimpse of something makes the box reach says nothing.
    """
    probs, least = look.probs, LEAST * (look.classes - 1)
    unsure = likely > 2 * least
    margin = round(_NEAR / look.each ** (1 / likely.ndim))
    near = unsure[bounding_box((likely > 0.5) | (look.label > 0), margin)]
    some = np.take(probs.reshape(len(probs), -1), np.flatnonzero(unsure), axis=1)
    floor = -least * np.log(LEAST) - (1 - least) * np.log(1 - least)
    return (near.size - np.count_nonzero(near)) * float(floor) - float(np.vdot(some, np.log(some)))


def _soft_parts(look: Look, likely: np.ndarray) -> _Parts:
    spacing, boxes = look.spacing_mm, bounding_boxes(look.probs[1:] > _FAINT, 1)
    parts = [one[box] for one, box in zip(look.probs[1:], boxes, strict=True)]
    masks = [np.where(one > 2 * LEAST, one, 0) for one in parts]  # however much nothing lies around
    moments = Moments.of(masks, _corners(boxes, spacing), spacing)
    if look.classes > 2:
        masks = [likely[bounding_box(likely > _FAINT, 1)], *masks]
        moments = moments.after_total()
    likely_somewhere = np.array([int(mask.max(initial=0) > 0.5) for mask in masks])
    return _Parts(np.array([soft_outline(mask, spacing) for mask in masks]), moments, likely_somewhere)


def _drawn_parts(look: Look, counts: np.ndarray | None) -> _Parts:
    """What is drawn, with `counts` (K - 1,) of connected parts where they are known."""
    spacing, nothing = look.spacing_mm, (slice(0, 1),) * look.label.ndim
    around, *boxes = [box or nothing for box in look.boxes]
    masks = [look.label[box] == k for k, box in enumerate(boxes, 1)]
    moments = Moments.of([mask.astype(np.float32) for mask in masks], _corners(boxes, spacing), spacing)
    if look.classes > 2:
        masks = [look.label[around] > 0, *masks]
        moments = moments.after_total()
    outlines = np.array([outline(mask, spacing) for mask in masks])
    counted = np.array(
        [_pieces(mask) for mask in masks[: None if counts is None else len(masks) - len(counts)]], int
    )
    return _Parts(outlines, moments, counted if counts is None else np.concatenate([counted, counts]))


def _pieces(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, CORNERS[mask.ndim])[1])


def _contradiction(look: Look, soft: _Soft) -> float:
    """Log of the best class's probability over the given one's, summed over voxels."""
    given = look.given
    off = given < soft.best
    return float(np.log(soft.best[off] / given[off]).sum())


def _against_foreground(look: Look, soft: _Soft) -> float:
    """Log odds of foreground, summed over the voxels where they contradict the mask."""
    likely = np.clip(soft.likely[soft.decided ^ (look.label > 0)], LEAST, 1 - LEAST)
    return float(np.abs(np.log(likely / (1 - likely))).sum())


def _corners(boxes: Sequence[Sequence[slice]], spacing_mm: Sequence[float]) -> np.ndarray:
    return np.array([[one.start for one in box] for box in boxes]) * np.array(spacing_mm)


def _differences(masks: _Parts, parts: _Parts, spacing_mm: Sequence[float]) -> np.ndarray:
    """`Evidence.signed`."""
    ndim, voxel = len(spacing_mm), prod(spacing_mm)
    drawn, soft = masks.moments, parts.moments
    volume, flat = (drawn.mass + soft.mass) / 2, (ndim - 1) / ndim
    out = np.empty((len(volume), len(signed_names(ndim))))
    out[:, 0] = 2 * (drawn.mass - soft.mass) * voxel / (masks.outline + parts.outline + voxel**flat)
    out[:, 1:-3] = _changes(drawn, soft, volume, voxel)
    out[:, -3] = np.log(drawn.mass * voxel + voxel)
    ball = (np.maximum(volume, 0.25) * voxel) ** flat
    out[:, -2] = np.where(drawn.mass > 0, np.log((masks.outline + 1e-6) / ball), 0)
    out[:, -1] = np.log1p(masks.pieces)
    out[masks.pieces + parts.pieces == 0] = np.nan
    return out


def _changes(mask: Moments, soft: Moments, volume: np.ndarray, voxel: float) -> np.ndarray:
    """Shift in mm by axis, then change of the second moments relative to the size, of mask minus soft mask, (G, M)."""
    both = mask + soft
    mass = np.maximum(both.mass, 1e-6)[:, None]
    centre = both.first / mass
    rest, all_of_it = (mask - soft).about(centre), both.about(centre)
    axes = np.arange(centre.shape[1])
    size = (volume * voxel) ** (1 / len(axes)) + 1e-6
    second = rest.second
    second[:, axes, axes] -= rest.mass[:, None] / mass * all_of_it.second[:, axes, axes]
    row, column = _UPPER[len(axes)]
    return np.hstack([rest.first, second[:, row, column] / size[:, None]]) / (volume + 1)[:, None]
