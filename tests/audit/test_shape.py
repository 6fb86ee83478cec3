"""Outlines and moments against plain sums over voxels, NumPy's covariance and discs whose measures are known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import perimeter_crofton

from maskmend.audit.shape import Moments, ball_radius, outline, soft_outline, surface

GRIDS = [
    ((7, 9), (1.0, 1.0)),
    ((7, 9), (0.5, 2.0)),
    ((5, 6, 7), (1.0, 1.0, 1.0)),
    ((5, 6, 7), (3.0, 0.7, 1.2)),
]


def by_hand(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    """Length of the gradient (forward differences; none at the far border) times the voxel's volume, summed."""
    total = 0.0
    for at in product(*map(range, mask.shape)):
        squares = 0.0
        for axis, step in enumerate(spacing_mm):
            if at[axis] + 1 < mask.shape[axis]:
                beyond = tuple(i + (a == axis) for a, i in enumerate(at))
                squares += ((float(mask[beyond]) - float(mask[at])) / step) ** 2
        total += squares**0.5
    return total * float(np.prod(spacing_mm))


@pytest.mark.parametrize(("shape", "spacing_mm"), GRIDS)
def test_outlines_are_the_total_variation(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    mask, soft = rng.random(shape) > 0.5, rng.random(shape).astype(np.float32)
    assert outline(mask, spacing_mm) == pytest.approx(by_hand(mask, spacing_mm))
    assert soft_outline(soft, spacing_mm) == pytest.approx(by_hand(soft, spacing_mm), rel=1e-5)


def test_the_outline_of_a_soft_disc_is_its_circumference() -> None:
    rows, columns = np.mgrid[:100, :100]
    far = np.hypot(rows - 50, columns - 50)
    soft = np.clip((30 - far) / 6 + 0.5, 0, 1).astype(np.float32)
    assert soft_outline(soft, (1.0, 1.0)) == pytest.approx(2 * np.pi * 30, rel=0.02)
    assert soft_outline(soft, (0.4, 0.4)) == pytest.approx(0.4 * 2 * np.pi * 30, rel=0.02)


@pytest.mark.parametrize(("shape", "spacing_mm"), GRIDS)
def test_moments_about_the_centre_are_the_covariance(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> None:
    values = np.random.default_rng(1).random(shape).astype(np.float32)
    corner = [10.0 * step for step in spacing_mm]
    other = np.ones((2,) * len(shape), np.float32)  # of another size: each mask has its own
    found = Moments.of([other, values], np.array([np.zeros(len(shape)), corner]), spacing_mm)
    assert found.mass[0] == other.size
    centre = (np.array(ndimage.center_of_mass(values)) + 10) * spacing_mm
    places = np.argwhere(np.ones(shape)) * spacing_mm
    assert found.mass[1] == pytest.approx(values.sum(), rel=1e-5)
    np.testing.assert_allclose(found.first[1] / found.mass[1], centre, rtol=1e-5)
    spread = found.about(np.array([centre, centre])).second[1] / found.mass[1]
    np.testing.assert_allclose(
        spread, np.cov(places.T, aweights=values.ravel(), bias=True), atol=1e-3 * spread.max()
    )


def test_moments_add_up() -> None:
    values = np.random.default_rng(2).random((6, 8)).astype(np.float32)
    parts = Moments.of([values[:3], values[3:]], np.array([[0.0, 0.0], [3.0, 0.0]]), (1.0, 1.0))
    upper, lower = (
        Moments(*(one[k : k + 1] for one in (parts.mass, parts.first, parts.second))) for k in (0, 1)
    )
    whole, both = Moments.of([values], np.zeros((1, 2)), (1.0, 1.0)), upper + lower
    np.testing.assert_allclose(both.second, whole.second, rtol=1e-5)
    np.testing.assert_allclose((both - lower).first, upper.first, rtol=1e-4)
    total = parts.after_total()
    np.testing.assert_allclose(total.second[0], whole.second[0], rtol=1e-5)
    np.testing.assert_allclose(total.first[1:], parts.first)


def ball(spacing_mm: tuple[float, ...], radius: float) -> np.ndarray:
    """(*S) bool, in the middle."""
    far = [int(1.2 * radius / step) + 1 for step in spacing_mm]
    grid = np.ogrid[tuple(slice(-n, n + 1) for n in far)]
    return np.asarray(
        sum((axis * step) ** 2 for axis, step in zip(grid, spacing_mm, strict=True)) < radius**2
    )


@pytest.mark.parametrize(
    ("spacing_mm", "off"),
    [
        ((1, 1), 0.01),
        ((0.3, 0.3), 0.01),
        ((2, 1), 0.02),
        ((5, 1), 0.04),
        ((1, 1, 1), 0.01),
        ((2, 1, 1), 0.02),
        ((1, 3, 1), 0.03),
        ((5, 0.5, 0.5), 0.04),
    ],
)
def test_the_surface_of_a_ball(spacing_mm: tuple[float, ...], off: float) -> None:
    radius, ndim = 40.0 if len(spacing_mm) == 2 else 20.0, len(spacing_mm)
    true = 2 * np.pi * radius if ndim == 2 else 4 * np.pi * radius**2
    assert surface(ball(spacing_mm, radius), spacing_mm) == pytest.approx(true, rel=off)
    assert ball_radius(true * radius / ndim, ndim) == pytest.approx(radius)


def test_the_surface_does_not_mind_how_a_thing_lies() -> None:
    rng = np.random.default_rng(0)
    for shape in ((40, 50), (16, 18, 20)):
        mask = ndimage.gaussian_filter(rng.standard_normal(shape), 2) > 0.05
        own = surface(mask, (1.0,) * mask.ndim)
        for axis in range(mask.ndim):
            assert surface(np.flip(mask, axis), (1.0,) * mask.ndim) == pytest.approx(own)
        if mask.ndim == 2:
            inner = np.pad(mask, 2)
            assert surface(inner, (1.0, 1.0)) == pytest.approx(perimeter_crofton(inner, 4))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_layer_has_the_thickness_by_which_it_was_drawn_too_large(ndim: int) -> None:
    """What offsets rest on: twice the difference over both outlines."""
    spacing_mm = (1.0,) * ndim
    small, large = (np.pad(ball(spacing_mm, radius), 5) for radius in (15.0, 17.0))
    small = np.pad(
        small, [((a - b) // 2, (a - b) - (a - b) // 2) for a, b in zip(large.shape, small.shape, strict=True)]
    )
    both = surface(small, spacing_mm) + surface(large, spacing_mm)
    assert 2 * (large.sum() - small.sum()) / both == pytest.approx(2.0, rel=0.05)
