"""Outline and moments of masks and of soft masks, in few passes over the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

_ONES = {ndim: np.eye(ndim, dtype=int) for ndim in (2, 3)}
"""The powers of the places, (axis, which place)."""


def soft_outline(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Length (2-D, mm) or area (3-D, mm2) of the outline of a soft mask (*S) in [0, 1]: its total variation."""
    ndim, unit = mask.ndim, spacing_mm[-1]
    squares = np.zeros(mask.shape, np.float32)
    for axis, step in enumerate(spacing_mm):
        near = _but_last(ndim, axis)
        rise = mask[_but_first(ndim, axis)] - mask[near]
        rise *= rise
        if step != unit:
            rise *= np.float32((unit / step) ** 2)
        squares[near] += rise
    return float(np.sqrt(squares, out=squares).sum()) * float(np.prod(spacing_mm)) / unit


def outline(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """The same of a mask (*S) bool: counting replaces roots, for a voxel's outline runs in few directions."""
    ndim = mask.ndim
    edges = [mask[_but_first(ndim, axis)] ^ mask[_but_last(ndim, axis)] for axis in range(ndim)]
    found: dict[tuple[int, ...], int] = {}
    for size in range(
        ndim, 0, -1
    ):  # from voxels with an edge along all axes to those with one along one axis only
        for axes in combinations(range(ndim), size):
            both = edges[axes[0]][_aligned(axes[0], axes)]
            for axis in axes[1:]:
                both = both & edges[axis][_aligned(axis, axes)]
            wider = (count for other, count in found.items() if set(other) > set(axes))
            found[axes] = int(np.count_nonzero(both)) - sum(wider)
    steps = [sum(1 / spacing_mm[axis] ** 2 for axis in axes) ** 0.5 for axes in found]
    return float(np.dot(steps, list(found.values()))) * float(np.prod(spacing_mm))


def _but_last(ndim: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(0, -1) if a == axis else slice(None) for a in range(ndim))


def _but_first(ndim: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(1, None) if a == axis else slice(None) for a in range(ndim))


def _aligned(own: int, axes: Sequence[int]) -> tuple[slice, ...]:
    """Cuts the edges along `own` to the voxels that have edges along all of these axes; their first axis is `own`."""
    return tuple(slice(0, -1) if a in axes and a != own else slice(None) for a in range(max(*axes, own) + 1))


@dataclass(frozen=True)
class Moments:
    """Sums over a soft mask of 1, of the places (mm) and of their products.

    Args:
        mass: sum of the values.
        first: (N,) sum of value times place.
        second: (N, N) sum of value times place times place.
    """

    mass: float
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, corner: Sequence[float], spacing_mm: Sequence[float]) -> Moments:
        """Of (*S) float32 values whose first voxel lies at `corner` (mm): one product of matrices per axis."""
        ndim = values.ndim
        powers = [
            np.vander(start + step * np.arange(size, dtype=np.float64), 3, increasing=True)
            for start, step, size in zip(corner, spacing_mm, values.shape, strict=True)
        ]
        sums = values.reshape(-1, values.shape[-1]) @ powers[-1].astype(np.float32)
        sums = sums.astype(np.float64).reshape(*values.shape[:-1], 3)
        for axis in range(ndim - 2, -1, -1):  # (.., n, powers so far) -> (.., 3, powers so far)
            shape = sums.shape
            sums = powers[axis].T @ sums.reshape(*shape[: axis + 1], -1)
            sums = sums.reshape(*shape[:axis], 3, *shape[axis + 1 :])
        ones = _ONES[ndim]
        first = sums[tuple(ones)]
        second = sums[tuple(ones[:, :, None] + ones[:, None, :])]
        return cls(float(sums[(0,) * ndim]), first, second)

    @classmethod
    def none(cls, ndim: int) -> Moments:
        """Of nothing."""
        return cls(0.0, np.zeros(ndim), np.zeros((ndim, ndim)))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.mass - other.mass, self.first - other.first, self.second - other.second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.mass + other.mass, self.first + other.first, self.second + other.second)

    def about(self, centre: np.ndarray) -> Moments:
        """The same with places counted from `centre` (N,) mm."""
        cross = np.outer(self.first, centre)
        second = self.second - cross - cross.T + self.mass * np.outer(centre, centre)
        return Moments(self.mass, self.first - self.mass * centre, second)
