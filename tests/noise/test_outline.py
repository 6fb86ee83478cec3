"""Polygons: how far they stray, in millimetres, how few vertices they have, holes and thin things."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull, cKDTree

from maskmend.errors import UsageError
from maskmend.noise import Annotation, Polygon, flaw


def drawn(noise, truth, seed=0):
    return noise.choose(np.random.default_rng(seed), truth)


def outline_mm(mask: np.ndarray, spacing_mm) -> np.ndarray:
    """Places of voxel faces between mask and background, in mm."""
    padded, faces = np.pad(mask, 1), []
    for axis in range(mask.ndim):
        places = np.argwhere(np.diff(padded.astype(int), axis=axis)).astype(float)
        places[:, axis] += 0.5
        faces.append(places)
    return np.concatenate(faces) * spacing_mm


def strays_mm(first, second, spacing_mm) -> float:
    a, b = outline_mm(first > 0, spacing_mm), outline_mm(second > 0, spacing_mm)
    return max(cKDTree(a).query(b)[0].max(), cKDTree(b).query(a)[0].max())


@pytest.mark.parametrize("ndim", [2, 3])
def test_nothing_happens_without_tolerance_and_jitter(organ, ndim) -> None:
    truth = organ(ndim)
    np.testing.assert_array_equal(flaw(truth, drawn(Polygon((0, 0), 0.0), truth)), truth.label)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.5)])
@pytest.mark.parametrize("tolerance", [2.0, 6.0])
def test_polygon_strays_by_the_tolerance_in_millimetres(ball, spacing, tolerance) -> None:
    truth = Annotation(ball(25.0, 70.0, spacing), spacing)
    found = strays_mm(truth.label, flaw(truth, drawn(Polygon((tolerance, tolerance), 0.0), truth)), spacing)
    voxel = float(np.hypot(*spacing))
    assert 1.0 < found <= tolerance + voxel


def long_sides(mask: np.ndarray) -> float:
    """Share of the convex hull's outline that are sides of more than 10 voxels."""
    points = np.argwhere(mask)
    corners = points[ConvexHull(points).vertices]
    lengths = np.linalg.norm(np.diff(corners, axis=0, append=corners[:1]), axis=1)
    return float(lengths[lengths > 10].sum() / lengths.sum())


def test_straight_sides_are_left_of_a_disc(ball) -> None:
    truth = Annotation(ball(40.0, 100.0, (1.0, 1.0)), (1.0, 1.0))
    assert long_sides(truth.label) < 0.2
    assert long_sides(flaw(truth, drawn(Polygon((4.0, 4.0), 0.0), truth))) > 0.6


def test_jitter_moves_vertices_by_its_deviation(ball) -> None:
    """A square keeps its corners; the deviation of where its side lies is that of the corners' mean, j / sqrt 2."""
    label = np.zeros((80, 80), np.uint8)
    label[20:60, 20:60] = 1
    truth = Annotation(label, (0.5, 1.0))
    sides = []
    for seed in range(150):
        flawed = flaw(truth, drawn(Polygon((2.0, 2.0), 1.5), truth, seed))
        sides.append((np.flatnonzero(flawed[:, 40])[0] - 20) * 0.5)
    assert np.std(sides) == pytest.approx(1.5 / np.sqrt(2), rel=0.25)


def test_holes_stay_holes(ball) -> None:
    label = ball(25.0, 60.0, (1.0, 1.0)) & ~ball(10.0, 60.0, (1.0, 1.0))
    truth = Annotation(label, (1.0, 1.0))
    flawed = flaw(truth, drawn(Polygon((1.0, 1.0), 0.3), truth))
    filled = ndimage.binary_fill_holes(flawed)
    assert 200 < (filled & ~flawed.astype(bool)).sum() < 450  # pi 100 = 314


def test_single_voxels_and_lines_do_not_fail() -> None:
    label = np.zeros((30, 30), np.uint8)
    label[3, 3], label[10, 5:25], label[20:22, 8:10] = 1, 1, 1
    truth = Annotation(label, (1.0, 1.0))
    for seed in range(5):
        flawed = flaw(truth, drawn(Polygon((3.0, 5.0), 1.0), truth, seed))
        assert flawed.shape == label.shape


def test_slices_of_a_volume_are_drawn_one_by_one(ball) -> None:
    truth = Annotation(np.repeat(ball(15.0, 40.0, (1.0, 1.0))[None], 4, 0), (3.0, 1.0, 1.0))
    flawed = flaw(truth, drawn(Polygon((2.0, 2.0), 1.0), truth))
    assert all((flawed[0] != flawed[k]).any() for k in (1, 2, 3))
    assert not np.array_equal(flawed[1], truth.label[1])


def test_polygon_stays_within_its_reach(organ) -> None:
    truth = organ(2)
    choice = drawn(Polygon((2.0, 2.0), 1.0), truth)
    changed = flaw(truth, choice) != truth.label
    tree = cKDTree(np.argwhere(truth.label > 0) * truth.spacing_mm)
    assert tree.query(np.argwhere(changed) * truth.spacing_mm)[0].max() <= Polygon.reach_mm(
        choice, 1.0, (1, 1)
    )


def test_bad_settings(organ) -> None:
    for bad in ({"jitter_mm": -1.0}, {"jitter_mm": float("nan")}, {"tolerance_mm": (2, 1)}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            drawn(Polygon(**bad), organ())
