"""Outlines and moments against plain sums over voxels, NumPy's covariance and discs whose measures are known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from maskmend.audit.shape import Moments, outline, soft_outline

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
