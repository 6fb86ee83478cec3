"""Grow or shrink a mask by a distance in millimetres, in 2-D and 3-D, one class among several.

The structuring element is the exact Euclidean ball: a voxel is reached when its centre lies within the
radius of a mask voxel's centre. A distance transform gives that at one cost for every radius, and honours
anisotropic voxels, which repeated 3x3x3 steps do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_TOLERANCE = 1e-6  # a voxel exactly on the ball's surface belongs to it despite rounding


def distance_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance (*S) in millimetres from every voxel centre to the nearest centre inside `mask` (*S) bool.

    Zero inside; infinite everywhere when the mask is empty.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf)
    distance: np.ndarray = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return distance


def grow(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    radius_mm: float,
    *,
    value: int,
    over: Sequence[int] = (0,),
) -> np.ndarray:
    """Dilate one class over the classes in `over`; the others stay as they are.

    Args:
        label: (*S) integers.
        spacing_mm: voxel size in the order of the axes.
        radius_mm: radius of the ball, >= 0.
        value: the class that grows.
        over: the classes it may cover; (0,): background only.

    Returns:
        A new array (*S) of the same type.
    """
    reached = distance_mm(label == value, spacing_mm) <= radius_mm + _TOLERANCE
    return np.where(reached & np.isin(label, list(over)), np.asarray(value, label.dtype), label)


def shrink(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    radius_mm: float,
    *,
    value: int,
    beside: Sequence[int] = (0,),
    fill: int = 0,
) -> np.ndarray:
    """Erode one class where it borders on the classes in `beside`; what it loses becomes `fill`.

    A border with another structure stays, for an annotator who draws too small does not draw the neighbour
    smaller there. The image's edge is no border either.

    Args:
        label: (*S) integers.
        spacing_mm: voxel size in the order of the axes.
        radius_mm: radius of the ball, >= 0.
        value: the class that shrinks; may vanish.
        beside: the classes that eat into it; (0,): background only.
        fill: the class of the voxels it loses.

    Returns:
        A new array (*S) of the same type.
    """
    eaten = distance_mm(np.isin(label, list(beside)), spacing_mm) <= radius_mm + _TOLERANCE
    return np.where(eaten & (label == value), np.asarray(fill, label.dtype), label)


def grow_all(label: np.ndarray, spacing_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """Dilate every class into the background at once; a voxel reached by several goes to the nearest one.

    The union of the foreground grows exactly as one mask would; borders between classes stay.
    """
    inside = label > 0
    if not inside.any():
        return np.array(label)
    distance, nearest = ndimage.distance_transform_edt(~inside, sampling=spacing_mm, return_indices=True)
    return np.where(distance <= radius_mm + _TOLERANCE, label[tuple(nearest)], label)


def shrink_all(label: np.ndarray, spacing_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """Erode the union of all classes towards the background; borders between classes stay."""
    if radius_mm <= 0:
        return np.array(label)
    eaten = distance_mm(label == 0, spacing_mm) <= radius_mm + _TOLERANCE
    return np.where(eaten, np.zeros((), label.dtype), label)


def grow_layers(label: np.ndarray, spacing_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """Dilate ordered classes: each grows over the background and every lower class."""
    grown = np.array(label)
    for value in _classes(label):
        grown[distance_mm(label >= value, spacing_mm) <= radius_mm + _TOLERANCE] = value
    return grown


def shrink_layers(label: np.ndarray, spacing_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """Erode ordered classes: each shrinks where it borders on anything lower, which gets what it loses."""
    shrunk = np.zeros_like(label)
    for value in _classes(label):
        depth = distance_mm(label < value, spacing_mm)
        shrunk[(label >= value) & (depth > radius_mm + _TOLERANCE)] = value
    return shrunk


def _classes(label: np.ndarray) -> list[int]:
    return [int(value) for value in np.unique(label) if value > 0]


def signed_distance_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance (*S) to the outline in millimetres: above 0 inside, below 0 outside, never 0.

    Voxel centres beside the outline lie half a voxel from it, whichever side they are on.
    """
    half = min(spacing_mm) / 2
    inside, outside = distance_mm(~mask, spacing_mm) - half, distance_mm(mask, spacing_mm) - half
    return np.where(mask, inside, -outside)
