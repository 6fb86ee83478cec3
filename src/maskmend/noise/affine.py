"""Turn, scale and shift a mask in millimetres: the annotator who drew the right shape in the wrong place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def move(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    shift_mm: Sequence[float] | None = None,
    degrees: float | Sequence[float] = 0.0,
    scale: float = 1.0,
) -> np.ndarray:
    """Move the whole label rigidly (and scale it) about the centre of its foreground.

    Args:
        label: (*S) integers; what leaves the image is lost, what enters is background.
        spacing_mm: voxel size in the order of the axes.
        shift_mm: displacement along every axis; None: none.
        degrees: 2-D: one angle, from axis 0 towards axis 1; 3-D: one about axis 0 (within the slices), or
            three, about the axes 0, 1, 2 in this order.
        scale: size factor, > 0.

    Returns:
        A new array (*S) of the same type, nearest-neighbour sampled: no class is invented.
    """
    where = np.nonzero(label)
    if not where[0].size:
        return np.array(label)
    spacing = np.asarray(spacing_mm, float)
    centre = np.array([axis.mean() for axis in where])
    shift = np.zeros(label.ndim) if shift_mm is None else np.asarray(shift_mm, float)
    # output voxel o comes from: centre + inverse(scale * turn) applied to its millimetre offset
    inverse = rotation(label.ndim, degrees).T / scale
    voxel = inverse * spacing / spacing[:, None]
    offset = centre - voxel @ (centre + shift / spacing)
    moved: np.ndarray = ndimage.affine_transform(label, voxel, offset, order=0, mode="constant", cval=0)
    return moved


def rotation(ndim: int, degrees: float | Sequence[float]) -> np.ndarray:
    """Rotation matrix (ndim, ndim) for the angles that `move` takes."""
    angles = np.radians(np.atleast_1d(np.asarray(degrees, float)))
    planes = [(0, 1)] if ndim == 2 else [(1, 2), (2, 0), (0, 1)]
    matrix = np.eye(ndim)
    for angle, (first, second) in zip(angles, planes, strict=False):
        turn = np.eye(ndim)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
