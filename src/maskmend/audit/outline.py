"""How rough an outline is: its length against that of its own smoothed course.

Smoothing keeps the area, so that a small or thin object is not long just because smoothing shrinks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from maskmend.audit.record import StructureFinding
from maskmend.boxes import bounding_box

ROUGH = 1.17
"""Outline length over its smoothed length from which an outline is rough whatever the data set."""

STEPPED = 1.22
"""Roughness across the slices over that within them, from which slices do not continue one another."""

ROUGH_3D = 1.17
LEAST_PIXELS = 40  # in a section; below, the outline is all there is
LEAST_SLICES = 6
MOST_SLICES = 48  # sections per axis that are measured; evenly spread, they say the same as all
THICKEST = 2.0
"""Ratio of voxel sides up to which sections across the slices are looked at; beyond, steps are the voxels' own."""


def outline_roughness(
    label: np.ndarray, spacing_mm: Sequence[float], classes: Mapping[str, int]
) -> dict[str, float]:
    """Outline length over smoothed length by class, >= about 1; classes too small to measure are left out.

    Args:
        label: (*S) integers; values without a class are not annotated. In a volume the smoothest of the three
            directions of section counts, for that is the one it was drawn in.
        spacing_mm: voxel size in the order of the axes.
        classes: name to value; 0 is passed over.
    """
    found = {}
    unknown = (label != 0) & ~np.isin(label, list(classes.values()))
    for name, value in classes.items():
        rough = [r for r in _by_axis(label == value, spacing_mm, unknown) if r is not None] if value else []
        if rough:
            found[name] = min(rough)
    return found


def rough_outline(
    mask: np.ndarray, spacing_mm: Sequence[float], unknown: np.ndarray, name: str
) -> list[StructureFinding]:
    """A ragged outline, and in volumes slices that step.

    Args:
        mask: (*S) bool.
        spacing_mm: voxel size in the order of the axes.
        unknown: (*S) bool, not annotated: sections whose outline runs along such voxels are not measured.
        name: of the class.
    """
    by_axis = {axis: r for axis, r in enumerate(_by_axis(mask, spacing_mm, unknown)) if r is not None}
    if not by_axis:
        return []
    smooth, rough = min(by_axis.values()), max(by_axis.values())
    limit = ROUGH if mask.ndim == 2 else ROUGH_3D
    if smooth > limit:
        text = f"outline {100 * (smooth - 1):.0f} % longer than its smoothed course"
        return [StructureFinding("rough outline", name, text, _severity(smooth, limit))]
    if rough / smooth > STEPPED:
        drawn = min(by_axis, key=lambda axis: by_axis[axis])
        text = (
            f"slices along axis {drawn} do not continue one another: across them the outline is "
            f"{100 * (rough / smooth - 1):.0f} % rougher than within"
        )
        return [StructureFinding("stepped slices", name, text, _severity(rough / smooth, STEPPED))]
    return []


def _severity(value: float, limit: float) -> float:
    """0.3 at the limit, 0.9 where the excess has tripled."""
    return float(np.clip(0.3 + 0.3 * ((value - 1) / (limit - 1) - 1), 0.3, 0.9))


def _by_axis(mask: np.ndarray, spacing_mm: Sequence[float], unknown: np.ndarray) -> list[float | None]:
    """Roughness of the sections across each axis; one figure for an image."""
    if not mask.any():
        return []
    if mask.ndim == 2:
        return [None if _along(mask, unknown, None).any() else _roughness([mask], least=1)]
    cut, sides = mask[bounding_box(mask)], np.asarray(spacing_mm, float)
    found: list[float | None] = []
    for axis in range(3):
        plane = np.delete(sides, axis)
        if plane.max() > THICKEST * plane.min():
            found.append(None)
            continue
        sections = np.moveaxis(cut, axis, 0)
        step = max(1, -(-len(sections) // MOST_SLICES))
        sound = ~_along(mask, unknown, axis)[::step]
        found.append(_roughness(sections[::step][sound], least=LEAST_SLICES))
    return found


def _along(mask: np.ndarray, unknown: np.ndarray, axis: int | None) -> np.ndarray:
    """Which sections of a mask's box across an axis have unknown voxels beside the mask; None: it is one section."""
    inner, near = bounding_box(mask), bounding_box(mask, 1)
    others = tuple(other for other in range(mask.ndim) if other != axis)
    if not unknown[near].any():
        return np.zeros(1 if axis is None else mask[inner].shape[axis], bool)
    square = np.ones([1 if other == axis else 3 for other in range(mask.ndim)], bool)
    within = tuple(slice(i.start - n.start, i.stop - n.start) for i, n in zip(inner, near, strict=True))
    found: np.ndarray = (ndimage.binary_dilation(unknown[near], square)[within] & mask[inner]).any(
        axis=others
    )
    return np.atleast_1d(found)


def _roughness(sections: Sequence[np.ndarray] | np.ndarray, least: int) -> float | None:
    """Summed outline length over summed smoothed length; None with fewer than `least` large enough sections."""
    lengths = [_lengths(section) for section in sections if np.count_nonzero(section) >= LEAST_PIXELS]
    if len(lengths) < least:
        return None
    own, smooth = np.sum(lengths, axis=0)
    return float(own / smooth)


def _lengths(section: np.ndarray) -> tuple[float, float]:
    """Length of a section's outline and of its smoothed course with the same area, in pixels."""
    from skimage.measure import perimeter_crofton

    pixels = int(np.count_nonzero(section))
    sigma = float(np.clip(0.05 * np.sqrt(pixels), 1.5, 2.0))
    padded = np.pad(section[bounding_box(section)], 8)
    soft = ndimage.gaussian_filter(padded.astype(np.float32), sigma)
    level = np.partition(soft.ravel(), -pixels)[-pixels]
    own, smooth = (perimeter_crofton(region, 4) for region in (padded, soft >= level))  # type: ignore[no-untyped-call]
    return float(own), max(float(smooth), 1.0)
