"""Loose pieces, holes, contact with the border and masks outside the body."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from maskmend.audit.record import StructureFinding
from maskmend.boxes import bounding_box

SPECK_VOXELS = 2
RING_SHARE = 0.2
"""A hole above this share of the filled object is a ring: anatomy, or drawn on purpose."""

BLANK_SHARE = (0.02, 0.95)
"""Share of an image that may be blank border; less or more is no border."""

OUTSIDE_SHARE = 0.9
MOST_SAMPLED = 500_000  # voxels of an image from which its range is taken

_MARGIN = 1


def loose_pieces(
    mask: np.ndarray, foreground: np.ndarray, unknown: np.ndarray, name: str
) -> list[StructureFinding]:
    """Parts of a class that are not connected to its largest one.

    A part that touches another class may have been cut off by that class; it counts only as a speck. A part that only
    voxels of no class lie between may be no part at all.

    Args:
        mask: (*S) bool, not empty.
        foreground: (*S) bool, all classes.
        unknown: (*S) bool, not annotated.
        name: of the class.
    """
    box = bounding_box(mask, _MARGIN)
    corners = np.ones((3,) * mask.ndim)
    numbered, count = ndimage.label(mask[box], corners)
    if count == 1:
        return []
    sizes = np.bincount(numbered.ravel())[1:]
    main = int(sizes.argmax())
    joined = _joined(numbered, unknown[box], main + 1, corners)
    others = ndimage.binary_dilation(numbered == 0, corners) & (foreground[box] & ~mask[box])
    touching = _touched(numbered, others, count, corners)
    small = [i for i in range(count) if not joined[i] and sizes[i] <= SPECK_VOXELS]
    large = [i for i in range(count) if not joined[i] and sizes[i] > SPECK_VOXELS and not touching[i]]
    found = []
    if small:
        text = f"{len(small)} {'speck' if len(small) == 1 else 'specks'} of at most {SPECK_VOXELS} voxels"
        found.append(StructureFinding("specks", name, text, 0.5, _centre(numbered == small[0] + 1, box)))
    if large:
        large.sort(key=lambda i: -sizes[i])
        shown = ", ".join(str(sizes[i]) for i in large[:3]) + (", ..." if len(large) > 3 else "")
        text = f"{len(large)} further {'part' if len(large) == 1 else 'parts'} of {shown} voxels beside {sizes[main]}"
        share = sizes[large[0]] / sizes[main]
        centre = _centre(numbered == large[0] + 1, box)
        found.append(StructureFinding("extra part", name, text, 0.7 if share < 0.5 else 0.5, centre))
    return found


def _joined(numbered: np.ndarray, unknown: np.ndarray, main: int, corners: np.ndarray) -> np.ndarray:
    """(count,) bool: which parts are the main one, or are connected to it by unknown voxels."""
    joined = np.arange(1, int(numbered.max()) + 1) == main
    if unknown.any():
        bridged, _ = ndimage.label((numbered > 0) | unknown, corners)
        there = np.unique(numbered[bridged == bridged[numbered == main][0]])
        joined[there[there > 0] - 1] = True
    return joined


def _touched(numbered: np.ndarray, others: np.ndarray, count: int, corners: np.ndarray) -> np.ndarray:
    """(count,) bool: which parts have a voxel of another class beside them."""
    beside = np.where(ndimage.binary_dilation(others, corners), numbered, 0) if others.any() else others
    touched = np.zeros(count + 1, bool)
    touched[np.unique(beside).astype(int)] = True
    return touched[1:]


def holes(mask: np.ndarray, label: np.ndarray, name: str) -> list[StructureFinding]:
    """Background that a class encloses; large ones are rings, not holes.

    Args:
        mask: (*S) bool, not empty.
        label: (*S) all classes: a hole that another class fills is none.
        name: of the class.
    """
    box = bounding_box(mask, _MARGIN)
    filled = ndimage.binary_fill_holes(mask[box])
    empty = filled & (label[box] == 0)
    voxels = int(np.count_nonzero(empty))
    if not voxels or voxels > RING_SHARE * np.count_nonzero(filled):
        return []
    numbered, count = ndimage.label(empty)
    text = (
        f"{count} {'hole' if count == 1 else 'holes'}, {voxels} {'voxel' if voxels == 1 else 'voxels'} in all"
    )
    largest = int(np.bincount(numbered.ravel())[1:].argmax()) + 1
    return [StructureFinding("holes", name, text, 0.5, _centre(numbered == largest, box))]


def at_border(mask: np.ndarray, name: str) -> list[StructureFinding]:
    """A class that reaches the border of the image: cut off there, or drawn too far.

    Args:
        mask: (*S) bool, not empty.
        name: of the class.
    """
    contact = np.zeros_like(mask)
    for axis in range(mask.ndim):
        if mask.shape[axis] == 1:  # a single slice is no border
            continue
        for end in (0, -1):
            face = (slice(None),) * axis + (end,)
            contact[face] |= mask[face]
    voxels = int(np.count_nonzero(contact))
    if not voxels:
        return []
    text = f"touches the border of the image with {voxels} {'voxel' if voxels == 1 else 'voxels'}"
    whole = (slice(None),) * mask.ndim
    return [StructureFinding("at the border", name, text, 0.2, _centre(contact, whole))]


def outside_body(foreground: np.ndarray, image: np.ndarray) -> list[StructureFinding]:
    """Parts of the mask that lie in the blank surroundings of the image.

    Args:
        foreground: (*S) bool.
        image: (*S) or (C, *S).
    """
    if not foreground.any():
        return []
    blank = blank_border(image if image.ndim > foreground.ndim else image[None])
    if blank is None:
        return []
    numbered, count = ndimage.label(foreground, np.ones((3,) * foreground.ndim))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    inside = np.bincount(numbered.ravel(), weights=blank.ravel(), minlength=count + 1)[1:]
    lost = np.flatnonzero(inside >= OUTSIDE_SHARE * sizes)
    voxels = int(sizes[lost].sum())
    if not voxels or voxels > sizes.sum() / 2:
        return []  # where most of the mask lies there, it is the estimate that is wrong
    place = _centre(numbered == lost[sizes[lost].argmax()] + 1, (slice(None),) * foreground.ndim)
    text = f"{voxels} voxels lie where the image is blank"
    return [StructureFinding("outside the body", "", text, 0.8, place)]


def blank_border(image: np.ndarray) -> np.ndarray | None:
    """Where an image (C, *S) is blank: (*S) bool, or None where there is no such border.

    Blank is what is connected to the border of the image and, in every channel, as dark as most of that border and
    as even: air around a body, padding, the surroundings of an ultrasound fan.
    """
    dark = np.ones(image.shape[1:], bool)
    for channel in image:
        shell = _shell(channel)
        some = channel.ravel()[:: -(-channel.size // MOST_SAMPLED)]
        shell, some = shell[np.isfinite(shell)], some[np.isfinite(some)]
        if not shell.size or not some.size:
            return None
        level, high = np.median(shell), np.percentile(some, 99)
        spread = 1.4826 * np.median(np.abs(shell - level))
        if high - level < 8 * spread or high <= level:  # the border is not darker than the rest
            return None
        dark &= ndimage.uniform_filter(np.nan_to_num(channel, nan=level), 3) <= level + 3 * spread
    numbered, count = ndimage.label(dark)
    if not count:
        return None
    at_border = np.unique(_shell(numbered))
    blank: np.ndarray = np.isin(numbered, at_border[at_border > 0])
    low, most = BLANK_SHARE
    return blank if low <= blank.mean() <= most else None


def _shell(array: np.ndarray) -> np.ndarray:
    """The values on the border of an array, axes of length one aside."""
    axes = [axis for axis in range(array.ndim) if array.shape[axis] > 1]
    return np.concatenate([np.take(array, end, axis).ravel() for axis in axes for end in (0, -1)])


def _centre(part: np.ndarray, box: tuple[slice, ...]) -> tuple[int, ...]:
    """The voxel of a part nearest to its middle, in the index of the whole array."""
    at = np.argwhere(part)
    nearest = at[np.square(at - at.mean(0)).sum(1).argmin()]
    return tuple(int(i) + (s.start or 0) for i, s in zip(nearest, box, strict=True))
