"""Outline and moments of masks and of soft masks, in few passes over the voxels; balls as large as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, product
from math import prod

import numpy as np

_ONES = {ndim: np.eye(ndim, dtype=int) for ndim in (2, 3)}
"""The powers of the places, (axis, which place)."""
_FIRST = {ndim: tuple(ones) for ndim, ones in _ONES.items()}
_SECOND = {ndim: tuple(ones[:, :, None] + ones[:, None, :]) for ndim, ones in _ONES.items()}


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
    return float(np.sqrt(squares, out=squares).sum()) * prod(spacing_mm) / unit


def outline(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """The same of a mask (*S) bool: counting replaces roots, for a voxel's outline runs in few directions."""
    ndim = mask.ndim
    edges = [mask[_but_first(ndim, axis)] ^ mask[_but_last(ndim, axis)] for axis in range(ndim)]
    counts = []
    for axes in _directions(ndim):
        both = edges[axes[0]][_aligned(axes[0], axes)]
        for axis in axes[1:]:
            both = both & edges[axis][_aligned(axis, axes)]
        counts.append(np.count_nonzero(both))
    return float(_lengths(tuple(spacing_mm)) @ counts)


def surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Length (2-D, mm) or area (3-D, mm2) of the outline of a mask (*S) bool, whichever way it runs: by Cauchy and
    Crofton, from how often lines in 4 (13) directions cross it. Slower than `outline`, which is up to a third too long.
    """
    lengths, steps = _crossed(tuple(spacing_mm))
    counts = []
    for step in steps:
        here, there = (
            tuple(
                slice(max(sign * d, 0), n + min(sign * d, 0)) for d, n in zip(step, mask.shape, strict=True)
            )
            for sign in (1, -1)
        )
        counts.append(np.count_nonzero(mask[here] ^ mask[there]))
    return float(lengths @ counts)


@lru_cache(maxsize=256)
def _crossed(spacing_mm: tuple[float, ...]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """What a crossing of a line of neighbours adds to the outline, by the step along it, and these steps."""
    ndim = len(spacing_mm)
    steps = [one for one in product((-1, 0, 1), repeat=ndim) if one > (0,) * ndim]
    ways = np.array(steps) * np.array(spacing_mm)
    apart = np.linalg.norm(ways, axis=1)
    around = np.concatenate([ways, -ways]) / np.concatenate([apart, apart])[:, None]
    if ndim == 2:
        angle = np.arctan2(*around.T)
        order = np.argsort(angle)
        gaps = np.diff(angle[order], append=angle[order[0]] + 2 * np.pi)
        share = np.empty(len(angle))
        share[order] = (gaps + np.roll(gaps, 1)) / (4 * np.pi)
    else:
        from scipy.spatial import SphericalVoronoi

        share = SphericalVoronoi(around).calculate_areas() / (4 * np.pi)
    each = (share[: len(steps)] + share[len(steps) :]) * prod(spacing_mm) / apart
    return {2: np.pi / 2, 3: 2.0}[ndim] * each, steps


def ball_radius(volume: float, ndim: int) -> float:
    """Of a disc (mm2) or ball (mm3) of this volume, mm."""
    return (volume / np.pi) ** 0.5 if ndim == 2 else (volume * 0.75 / np.pi) ** (1 / 3)


@cache
def _directions(ndim: int) -> list[tuple[int, ...]]:
    """The sets of axes along which an edge may run: all of them first, single ones last."""
    return [axes for size in range(ndim, 0, -1) for axes in combinations(range(ndim), size)]


@lru_cache(maxsize=256)
def _lengths(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """What a voxel with edges along at least the axes of `_directions` adds to the outline: each counts its own
    length less what the sets within it have counted for the voxel already."""
    found: dict[tuple[int, ...], float] = {}
    for axes in reversed(_directions(len(spacing_mm))):
        length = sum(1 / spacing_mm[axis] ** 2 for axis in axes) ** 0.5
        found[axes] = length - sum(part for other, part in found.items() if set(other) < set(axes))
    voxel = prod(spacing_mm)
    return np.array([found[axes] * voxel for axes in _directions(len(spacing_mm))])


@cache
def _but_last(ndim: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(0, -1) if a == axis else slice(None) for a in range(ndim))


@cache
def _but_first(ndim: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(1, None) if a == axis else slice(None) for a in range(ndim))


@cache
def _aligned(own: int, axes: tuple[int, ...]) -> tuple[slice, ...]:
    """Cuts the edges along `own` to the voxels that have edges along all of these axes; their first axis is `own`."""
    return tuple(slice(0, -1) if a in axes and a != own else slice(None) for a in range(max(*axes, own) + 1))


@lru_cache(maxsize=1024)
def _powers(size: int) -> np.ndarray:
    """(size, 3) powers 0, 1, 2 of the indices."""
    return np.vander(np.arange(size, dtype=np.float64), 3, increasing=True)


@lru_cache(maxsize=1024)
def _powers_single(size: int) -> np.ndarray:
    return _powers(size).astype(np.float32)


@dataclass(frozen=True)
class Moments:
    """Sums over soft masks of 1, of the places (mm) and of their products.

    Args:
        mass: (G,) sum of the values of each mask.
        first: (G, N) sum of value times place.
        second: (G, N, N) sum of value times place times place.
    """

    mass: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, masks: Sequence[np.ndarray], corners: np.ndarray, spacing_mm: Sequence[float]) -> Moments:
        """Of float32 masks (*S) of any sizes whose first voxels lie at `corners` (G, N) mm."""
        ndim, step = len(spacing_mm), np.array(spacing_mm)
        sums = np.array([_sums(mask) for mask in masks])
        powers = [(slice(None), *at) for at in ([0] * ndim, _FIRST[ndim], _SECOND[ndim])]
        mass, first, second = (sums[at] for at in powers)
        return cls(mass, first * step, second * (step * step[:, None])).about(-corners)

    def after_total(self) -> Moments:
        """The same with the sum over all masks put first."""
        parts = (self.mass, self.first, self.second)
        return Moments(*(np.concatenate([one.sum(axis=0, keepdims=True), one]) for one in parts))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.mass - other.mass, self.first - other.first, self.second - other.second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.mass + other.mass, self.first + other.first, self.second + other.second)

    def about(self, centre: np.ndarray) -> Moments:
        """The same with places counted from `centre`, (G, N) mm."""
        first = self.first - self.mass[:, None] * centre
        second = self.second - self.first[:, :, None] * centre[:, None, :]
        second -= centre[:, :, None] * first[:, None, :]
        return Moments(self.mass, first, second)


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the values times powers 0, 1, 2 of the indices, (3,) for each axis: one product of matrices per axis."""
    sums = values.reshape(-1, values.shape[-1]) @ _powers_single(values.shape[-1])
    sums = sums.astype(np.float64).reshape(*values.shape[:-1], 3)
    for axis in range(values.ndim - 2, -1, -1):  # (.., n, powers so far) -> (.., 3, powers so far)
        shape = sums.shape
        sums = _powers(shape[axis]).T @ sums.reshape(*shape[: axis + 1], -1)
        sums = sums.reshape(*shape[:axis], 3, *shape[axis + 1 :])
    return sums
