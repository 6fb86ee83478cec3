"""Do an image and its label lie on one grid, and does a label lie where the others do?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskmend.data.case import Geometry

TOLERANCE_MM = 0.1  # rounding in float32 headers stays below; a shift by one voxel of any scanner is above
GRID = 12  # bins per axis of the position maps: coarse enough to average over anatomy
_MIN_CASES = 8
_CLEAR = 0.3  # difference of correlations that no unusual anatomy reaches


def corner_error_mm(image: Geometry, label: Geometry) -> float | None:
    """The largest distance between corresponding corners in millimetres, None where space is not known.

    Args:
        image: grid of the image, shape (*S).
        label: grid of the label, the same shape.
    """
    if image.affine is None or label.affine is None:
        return None
    return float(np.linalg.norm(image.corners_mm() - label.corners_mm(), axis=1).max())


def apart_mm(first: Geometry, second: Geometry) -> float:
    """`corner_error_mm` of two grids of one shape; 0 where they lie together but for rounding, or nobody knows."""
    error = corner_error_mm(first, second)
    return 0.0 if error is None or error <= TOLERANCE_MM else error


def same_space(image: Geometry, label: Geometry) -> bool:
    """True when two grids fill the same box in space within one voxel, in any shape or axis order."""
    if image.affine is None or label.affine is None:
        return False
    first, second = image.corners_mm(), label.corners_mm()
    slack = max(*image.spacing_mm, *label.spacing_mm)
    ends = np.stack([first.min(0) - second.min(0), first.max(0) - second.max(0)])
    return bool(np.abs(ends).max() <= slack)


def lost_header(image: Geometry, label: Geometry) -> bool:
    """True when the label's affine is a bare default while the image's is not.

    Software that saves a mask without its header leaves an identity or a diagonal with the origin at 0. The
    voxels then still match the image one to one, and resampling by the header would move the mask away.
    """
    if image.affine is None or label.affine is None or image.shape != label.shape:
        return False
    return bare(label.affine) and not bare(image.affine)


def bare(affine: np.ndarray) -> bool:
    """True of what programs write that know no space: voxels of 1 mm from the origin on, along the axes."""
    off_diagonal = affine[:3, :3] - np.diag(np.diag(affine[:3, :3]))
    return not affine[:3, 3].any() and not off_diagonal.any() and np.allclose(np.abs(np.diag(affine)[:3]), 1)


def shape_hint(image: tuple[int, ...], label: tuple[int, ...]) -> str:
    """What the two shapes tell about how it came about."""
    if len(image) == len(label) and tuple(reversed(image)) == tuple(label):
        return "the axes look transposed: the label has the image's axes in reverse order"
    if sorted(image) == sorted(label):
        return "the axes look transposed: the same sizes in another order"
    if len(image) == len(label) and len({round(a / b, 2) for a, b in zip(image, label, strict=True)}) == 1:
        return f"one was resized: the factor is {image[0] / label[0]:.3g} on every axis"
    return "export the label again on its image's grid"


def position_maps(
    label: np.ndarray, values: Mapping[int, int], affine: np.ndarray | None
) -> dict[int, np.ndarray]:
    """Where each value lies, as its share of each cell of a coarse grid whose last axis runs left to right.

    Args:
        label: file values (*S).
        values: the values to map, 0 excluded by the caller, to their voxel counts; the 4 largest are kept.
        affine: turns the array so that all cases share one left; None takes the last axis as it is.

    Returns:
        Value to float16 array (GRID,) * ndim, summing to 1.
    """
    if min(label.shape) < 2:
        return {}
    kept = sorted(values, key=lambda value: -values[value])[:4]
    array, order = _left_to_right(label, affine)
    maps = {}
    for value in kept:
        coarse = _shrink((array == value).transpose(order))
        maps[value] = (coarse / max(coarse.sum(), 1e-9)).astype(np.float16)
    return maps


def _left_to_right(label: np.ndarray, affine: np.ndarray | None) -> tuple[np.ndarray, list[int]]:
    """The array with its left-right axis running one way in space, and the axis order that puts it last."""
    axis = label.ndim - 1
    if affine is not None:
        toward_x = affine[0, :3][: label.ndim][::-1]  # array order is (z, y, x)
        axis = int(np.abs(toward_x).argmax())
        if toward_x[axis] < 0:
            label = np.flip(label, axis)
    return label, [i for i in range(label.ndim) if i != axis] + [axis]


def _shrink(mask: np.ndarray) -> np.ndarray:
    """Count the set voxels in each cell of a GRID^ndim partition of the array."""
    counts = np.zeros((GRID,) * mask.ndim)
    places = np.nonzero(mask)
    cells = tuple(place * GRID // size for place, size in zip(places, mask.shape, strict=True))
    np.add.at(counts, cells, 1.0)
    return counts


def suspected_flips(maps: Mapping[str, Mapping[int, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """Cases whose label agrees with the others' mean position only when it is mirrored left to right.

    Conservative: nothing is said of fewer than 8 cases, nor where the mean itself is nearly symmetric (then a
    mirrored label fits as well as the right one), nor of a case that is merely unusual. Left and right organs
    mixed in one data set make the mean symmetric, which is the wanted silence.

    Args:
        maps: by case id, the position maps of `position_maps`; all cases of one dimension.

    Returns:
        Case id to (agreement as it is, agreement when mirrored), correlations in [-1, 1].
    """
    ids = [case for case, found in maps.items() if found]
    if len(ids) < _MIN_CASES:
        return {}
    values = sorted(set().union(*(maps[case] for case in ids)))
    blank = np.zeros_like(next(iter(maps[ids[0]].values())), dtype=np.float32)
    stack = np.stack([np.stack([maps[case].get(value, blank) for value in values]) for case in ids])
    stack = _smooth(stack.astype(np.float32))
    mirrored = stack[..., ::-1]
    total = stack.sum(0)
    straight = np.array([_correlation(one, total - one) for one in stack])
    turned = np.array([_correlation(one, total - own) for one, own in zip(mirrored, stack, strict=True)])
    usual, mirror = float(np.median(straight)), float(np.median(turned))
    if usual - mirror < _CLEAR:  # nearly symmetric, or no common position
        return {}
    between = (usual + mirror) / 2
    suspect = (turned - straight > _CLEAR) & (straight < between) & (turned > between)
    return {ids[i]: (float(straight[i]), float(turned[i])) for i in np.flatnonzero(suspect)}


def _smooth(stack: np.ndarray) -> np.ndarray:
    """Blur by a cell (1, 2, 1) along each spatial axis: small organs one cell apart should agree."""
    for axis in range(2, stack.ndim):
        padded = np.pad(stack, [(1, 1) if i == axis else (0, 0) for i in range(stack.ndim)])
        parts = [np.take(padded, range(k, k + stack.shape[axis]), axis) for k in range(3)]
        stack = (parts[0] + 2 * parts[1] + parts[2]) / 4
    return stack


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else 0.0
