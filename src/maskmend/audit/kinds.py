"""What kind of error a mask has: what one simple act would mend most of what is probably wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from maskmend.audit.estimate import Opinion
from maskmend.audit.look import Look
from maskmend.audit.objects import CORNERS
from maskmend.audit.record import Kind
from maskmend.boxes import bounding_box

SOUND = 0.5  # probability of a flaw below which a case has no kind of error
MAIN = 0.5  # share of the wrong voxels that one kind must explain
ONE_WAY = 0.55  # of the wrong voxels: (too much - too little) / both
APART = 0.15  # of a part may be shared with the other mask for it to be a part of its own
LEAST_PART = 4  # voxels
ENCLOSED = 0.5  # of the voxels around a part that another class must have for the part to lie within it
THICK = 2.0  # times the other sides of a voxel, from which it is known along which axis slices were drawn
MOVED = 0.3  # of the difference that a shift must take away


@dataclass(frozen=True)
class Masses:
    """Expected wrong voxels of one group of classes, maps (*B): drawn too much, and too little."""

    extra: np.ndarray
    missing: np.ndarray

    @property
    def total(self) -> float:
        """Both together."""
        return float(self.extra.sum() + self.missing.sum())


@dataclass(frozen=True)
class Nested:
    """Objects that lie within another class, as a lesion in an organ, and that only one of two masks has.

    Where they are the other mask has the class around them: that is no swap of classes.

    Args:
        given, target: (*B) class of such an object, 0 elsewhere.
        around: (*B) class that such an object lies in, 0 elsewhere.
    """

    given: np.ndarray
    target: np.ndarray
    around: np.ndarray

    @classmethod
    def of(cls, given: np.ndarray, target: np.ndarray, classes: int) -> Nested:
        """Of two maps (*B) of class indices."""
        found, changed = cls(*(np.zeros(given.shape, np.uint8) for _ in range(3))), given != target
        for index in np.setdiff1d(np.union1d(given[changed], target[changed]), 0):
            for own, other, out in ((given, target, found.given), (target, given, found.target)):
                for box, here in _each_apart(own == index, other == index):
                    rim = ndimage.binary_dilation(here, CORNERS[own.ndim]) & ~here
                    around = int(np.bincount(other[box][here], minlength=classes).argmax())
                    if around not in (0, index) and (own[box][rim] == around).mean() > ENCLOSED:
                        out[box][here], found.around[box][here] = index, around
        return found

    def kind(self, noise: np.ndarray, total: float, index: int | None = None) -> tuple[Kind, float] | None:
        """What most of the wrong voxels are, of one class or of all; None where most are something else."""

        def share(objects: np.ndarray) -> float:
            here = objects > 0 if index is None else objects == index
            return min(float(noise[here].sum()) / max(total, 1e-9), 1.0)

        shares: dict[Kind, float] = {
            "invented object": share(self.given),
            "missing object": share(self.target),
        }
        best = max(shares, key=lambda kind: shares[kind])
        return (best, shares[best]) if shares[best] > MAIN else None

    def about(self, index: int, noise: np.ndarray) -> float:
        """Wrong voxels of a class that are objects of others within it."""
        return float(noise[self.around == index].sum())


def case_kind(opinion: Opinion, suggested: np.ndarray) -> tuple[Kind, float]:
    """The main error of a case and how sure that is, in [0, 1]."""
    if opinion.flawed < SOUND:
        return "sound", 1 - opinion.flawed
    joint = opinion.confused
    off = joint - np.diag(np.diag(joint))
    total = max(float(off.sum()), 1e-9)
    look, target = opinion.look, _target(opinion, suggested)
    if (swapped := float(off[1:, 1:].sum()) / total) > MAIN:
        nested = Nested.of(look.label, target, look.classes)
        return nested.kind(opinion.noise, total) or ("swapped class", swapped)
    return _of_whole_classes(opinion, target, total) or _kind(
        masses(opinion), look.label > 0, target > 0, look
    )


def _of_whole_classes(opinion: Opinion, target: np.ndarray, total: float) -> tuple[Kind, float] | None:
    """What most of the wrong voxels are, if it is classes of which one of mask and target (*B) has nothing at all."""
    label, noise = opinion.look.label, opinion.noise
    names: tuple[tuple[Kind, np.ndarray, np.ndarray], ...] = (
        ("missing object", target, label),
        ("invented object", label, target),
    )
    for kind, has, lacks in names:
        alone = np.setdiff1d(has, lacks)
        if len(alone) and (wrong := float(noise[np.isin(has, alone)].sum()) / total) > MAIN:
            return kind, min(wrong, 1.0)
    return None


def class_kinds(opinion: Opinion, suggested: np.ndarray) -> list[tuple[Kind, float]]:
    """The same of each foreground class."""
    nested = _nested(opinion, suggested)
    return [_class_kind(opinion, suggested, index, nested) for index in range(1, opinion.look.classes)]


def class_kind(opinion: Opinion, suggested: np.ndarray, index: int) -> tuple[Kind, float]:
    """The same of one class."""
    return _class_kind(opinion, suggested, index, _nested(opinion, suggested))


def _nested(opinion: Opinion, suggested: np.ndarray) -> Callable[[], Nested]:
    """Asked for few cases, but for many classes."""
    look = opinion.look
    return cache(lambda: Nested.of(look.label, _target(opinion, suggested), look.classes))


def _class_kind(
    opinion: Opinion, suggested: np.ndarray, index: int, nested: Callable[[], Nested]
) -> tuple[Kind, float]:
    look, joint = opinion.look, opinion.confused
    mass, drawn = masses(opinion, index), look.label == index
    if opinion.flawed < SOUND or mass.total < 0.02 * float(drawn.sum()) + 2:
        return "sound", 1 - opinion.flawed
    other = [k for k in range(1, look.classes) if k != index]
    swapped = float(joint[index, other].sum() + joint[other, index].sum()) / max(mass.total, 1e-9)
    if swapped <= MAIN:
        return _kind(mass, drawn, _target(opinion, suggested) == index, look)
    if nested().about(index, opinion.noise) > MAIN * mass.total:
        return "sound", 1 - opinion.flawed  # what lies within it is the other class's matter
    return nested().kind(opinion.noise, mass.total, index) or ("swapped class", min(swapped, 1.0))


def masses(opinion: Opinion, index: int | None = None) -> Masses:
    """Expected wrong voxels of a class; None: of all foreground against background."""
    look, noise = opinion.look, opinion.noise
    chance = noise / np.maximum(1 - look.given, 1e-3)
    if index is None:
        drawn, to_it = look.label > 0, 1 - look.probs[0]
    else:
        drawn, to_it = look.label == index, look.probs[index]
    extra = np.where(drawn, np.minimum(chance * (1 - to_it), noise), 0)
    return Masses(extra, np.where(drawn, 0, np.minimum(chance * to_it, noise)))


def _target(opinion: Opinion, suggested: np.ndarray) -> np.ndarray:
    """What the mask is compared with: the suggestion, or the model's own where hardly anything is suggested."""
    look = opinion.look
    if (suggested != look.label).sum() >= LEAST_PART:
        return suggested
    return look.decided


def _kind(mass: Masses, drawn: np.ndarray, target: np.ndarray, look: Look) -> tuple[Kind, float]:
    total = max(mass.total, 1e-9)
    shares: dict[Kind, float] = {
        "missing object": float(mass.missing[parts_apart(target, drawn)].sum()) / total,
        "invented object": float(mass.extra[parts_apart(drawn, target)].sum()) / total,
    }
    best = max(shares, key=lambda kind: shares[kind])
    if shares[best] > MAIN:  # first: an object by itself has its slices for itself
        return best, shares[best]
    if (ends := in_slices_apart(drawn, target, mass.extra + mass.missing, look.spacing_mm) / total) > MAIN:
        return "wrong slice range", ends
    one_way = float(mass.extra.sum() - mass.missing.sum()) / total
    moved = _explained_by_shift(drawn, target)
    if abs(one_way) > ONE_WAY and abs(one_way) >= moved:
        return ("over-drawn" if one_way > 0 else "under-drawn"), abs(one_way)
    return ("shifted", moved) if moved > MOVED else ("mixed", 1 - max(abs(one_way), moved))


def parts_apart(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The connected parts of a mask (*B) bool that hardly touch the other mask, (*B) bool."""
    numbered, count = ndimage.label(mask, CORNERS[mask.ndim])
    if not count:
        return np.zeros(mask.shape, bool)
    sizes = np.bincount(numbered.ravel())
    alone = are_apart(sizes, np.bincount(numbered[other], minlength=count + 1))
    if not alone.any():
        return np.zeros(mask.shape, bool)
    found: np.ndarray = alone[numbered]
    return found


def are_apart(sizes: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Which parts hardly touch the other mask, (N,) bool, from their voxels and those in common, the ground's first."""
    alone: np.ndarray = (shared <= APART * sizes) & (sizes >= LEAST_PART)
    alone[0] = False
    return alone


def _each_apart(mask: np.ndarray, other: np.ndarray) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Of each of `parts_apart` a box, one voxel wider where there is room, and its voxels in the box, bool."""
    around = bounding_box(mask, 1)
    numbered, _ = ndimage.label(parts_apart(mask[around], other[around]), CORNERS[mask.ndim])
    for part, inner in enumerate(ndimage.find_objects(numbered), 1):
        near = tuple(
            slice(max(one.start - 1, 0), min(one.stop + 1, size))
            for one, size in zip(inner, numbered.shape, strict=True)
        )
        box = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(around, near, strict=True))
        yield box, numbered[near] == part


def worst_place(opinion: Opinion) -> tuple[int, ...] | None:
    """Array index (*S) in the middle of where most wrong voxels lie together; None for a sound mask."""
    if opinion.flawed < SOUND or not opinion.noise.any():
        return None
    size = max(3, round(0.1 * float(np.mean(opinion.noise.shape))))
    crowd = ndimage.uniform_filter(opinion.noise, size, mode="constant")
    at = np.unravel_index(int((crowd * (opinion.noise > 0.5 * opinion.noise.max())).argmax()), crowd.shape)
    return tuple(int(a + one.start) for a, one in zip(at, opinion.look.box, strict=True))


def holes_apart(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The holes of a mask (*B) bool, in volumes those of its slices, over which the other (*B) bool is drawn."""
    filled = mask.copy()
    for axis in range(mask.ndim if mask.ndim == 3 else 1):
        cross = ndimage.generate_binary_structure(mask.ndim, 1)
        if mask.ndim == 3:
            cross[tuple(np.arange(3) != 1 if one == axis else slice(None) for one in range(3))] = False
        filled |= ndimage.binary_fill_holes(mask, cross)
    return parts_apart(filled & ~mask, ~other)


def in_slices_apart(
    drawn: np.ndarray, target: np.ndarray, wrong: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> float:
    """How much of `wrong` (*B) lies in slices where only one of two masks (*B) has anything, two or more; 3-D only.

    Along any axis; with the spacing only along that of thick slices, where there is one.
    """
    if drawn.ndim < 3 or not drawn.any() or not target.any():
        return 0.0
    most, thick = 0.0, None
    if spacing_mm is not None and max(spacing_mm) > THICK * sorted(spacing_mm)[-2]:
        thick = int(np.argmax(spacing_mm))
    for axis in range(drawn.ndim):
        if thick not in (None, axis):
            continue
        axes = tuple(a for a in range(drawn.ndim) if a != axis)
        alone = drawn.any(axis=axes) != target.any(axis=axes)
        if alone.sum() >= 2:
            most = max(most, float(wrong.sum(axis=axes)[alone].sum()))
    return most


def _explained_by_shift(drawn: np.ndarray, target: np.ndarray) -> float:
    """Share of the difference that goes away when the mask is moved by the distance of the centres."""
    if not drawn.any() or not target.any() or (before := int((drawn != target).sum())) == 0:
        return 0.0
    step = np.array([np.mean(b) - np.mean(a) for a, b in zip(drawn.nonzero(), target.nonzero(), strict=True)])
    moved = ndimage.shift(drawn.astype(np.float32), step, order=1) > 0.5
    return max(0.0, 1 - int((moved != target).sum()) / before)
