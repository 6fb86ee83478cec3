"""Dilation, erosion and circles against distances measured by a search tree and kernels of voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from maskmend.errors import UsageError
from maskmend.noise import Annotation, Dilate, EdgeCircles, Erode, flaw


def drawn(noise, truth, seed=0):
    return noise.choose(np.random.default_rng(seed), truth)


def distances_mm(points: np.ndarray, targets: np.ndarray, spacing_mm) -> np.ndarray:
    """From every True voxel of one mask to the nearest of the other, by a k-d tree."""
    tree = cKDTree(np.argwhere(targets) * spacing_mm)
    return tree.query(np.argwhere(points) * spacing_mm)[0]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("radius", [1.3, 3.1])
def test_radius_is_millimetres_on_anisotropic_voxels(organ, ndim, radius) -> None:
    truth = organ(ndim)
    inside, spacing = truth.label > 0, np.array(truth.spacing_mm)
    wide = flaw(truth, drawn(Dilate((radius, radius)), truth)) > 0
    np.testing.assert_array_equal(wide[inside], True)
    np.testing.assert_array_equal(wide[~inside], distances_mm(~inside, inside, spacing) <= radius + 1e-6)
    tight = flaw(truth, drawn(Erode((radius, radius)), truth)) > 0
    np.testing.assert_array_equal(tight[~inside], False)
    np.testing.assert_array_equal(tight[inside], distances_mm(inside, ~inside, spacing) > radius + 1e-6)


def test_strength_scales_the_radius(organ) -> None:
    truth = organ()
    choice = drawn(Dilate((4, 4)), truth)
    np.testing.assert_array_equal(flaw(truth, choice, 0.5), flaw(truth, drawn(Dilate((2, 2)), truth)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_box_is_a_kernel_of_odd_side(organ, ndim) -> None:
    truth = replace(organ(ndim), spacing_mm=(1.0,) * ndim)
    kernel = np.ones((5,) * ndim, bool)
    wide = flaw(truth, drawn(Dilate((2, 2), box=True), truth))
    np.testing.assert_array_equal(wide > 0, ndimage.binary_dilation(truth.label > 0, kernel))
    np.testing.assert_array_equal(wide[truth.label > 0], truth.label[truth.label > 0])
    tight = flaw(truth, drawn(Erode((2, 2), box=True), truth))
    expected = ndimage.binary_erosion(truth.label > 0, kernel, border_value=1)
    np.testing.assert_array_equal(tight, np.where(expected, truth.label, 0))


def test_layered_boxes_are_grey_scale_morphology(organ) -> None:
    truth = replace(organ(), spacing_mm=(1.0, 1.0), layered=True)
    wide = flaw(truth, drawn(Dilate((1, 1), box=True), truth))
    np.testing.assert_array_equal(wide, ndimage.grey_dilation(truth.label, (3, 3)))
    tight = flaw(truth, drawn(Erode((1, 1), box=True), truth))
    np.testing.assert_array_equal(tight, ndimage.grey_erosion(truth.label, (3, 3)))


def test_whole_radii_are_drawn_evenly(organ) -> None:
    truth, rng = organ(), np.random.default_rng(0)
    radii = [Dilate((1, 8), whole=True).choose(rng, truth)["radius_mm"] for _ in range(1600)]
    values, counts = np.unique(radii, return_counts=True)
    assert values.tolist() == list(range(1, 9))
    assert counts.min() > 140  # 200 each; four standard deviations are 53


@pytest.mark.parametrize("ndim", [2, 3])
def test_circles_stay_on_the_outline(organ, ndim) -> None:
    truth = organ(ndim)
    choice = drawn(EdgeCircles((2.0, 3.0), every_mm=8.0), truth)
    changed = flaw(truth, choice) != truth.label
    inside = truth.label > 0
    edge = inside & ~ndimage.binary_erosion(inside, border_value=1)
    assert 0 < distances_mm(changed, edge, np.array(truth.spacing_mm)).max() <= 3.0 + 1e-6
    assert (changed & inside).any()
    assert (changed & ~inside).any()


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (1.0, 1.0), (0.5, 1.0)])
def test_number_of_circles_goes_by_the_length_of_the_outline(ball, spacing) -> None:
    """Of circles of one voxel, those that cut show: half of 2 pi 30 mm / 15 mm, whatever the voxels."""
    truth = Annotation(ball(30.0, 80.0, spacing), spacing)
    noise = EdgeCircles((0.01, 0.01), every_mm=15.0)
    cuts = [(flaw(truth, drawn(noise, truth, seed)) != truth.label).sum() for seed in range(100)]
    assert np.mean(cuts) == pytest.approx(np.pi * 30 / 15, rel=0.2)


def test_bad_settings() -> None:
    truth = Annotation(np.ones((5, 5), np.uint8), (1.0, 1.0))
    for noise in (Dilate((3, 2)), Erode((-1, 2)), Dilate(3), Dilate((1, np.inf)), EdgeCircles(every_mm=0)):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"radius_mm|every_mm"):
            drawn(noise, truth)
