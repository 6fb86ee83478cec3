"""Grow and shrink against scikit-image and SciPy with explicit structuring elements."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import ball, disk

from maskmend.noise import morphology


def blobs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    return (field > np.quantile(field, 0.8)).astype(np.uint8)


def ellipsoid(radius_mm: float, spacing_mm: tuple[float, ...]) -> np.ndarray:
    reach = [int(radius_mm // s) for s in spacing_mm]
    axes = [np.arange(-n, n + 1) * s for n, s in zip(reach, spacing_mm, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    return sum(g**2 for g in grid) <= radius_mm**2 + 1e-9


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(("shape", "element"), [((48, 64), disk), ((20, 24, 28), ball)])
def test_one_class_equals_binary_morphology(shape, element, radius) -> None:
    label = blobs(shape)
    spacing = (1.0,) * len(shape)
    grown = ndimage.binary_dilation(label, element(radius))
    shrunk = ndimage.binary_erosion(label, element(radius), border_value=1)
    for grow in (morphology.grow_all, morphology.grow_layers):
        np.testing.assert_array_equal(grow(label, spacing, radius), grown)
    for shrink in (morphology.shrink_all, morphology.shrink_layers):
        np.testing.assert_array_equal(shrink(label, spacing, radius), shrunk)
    np.testing.assert_array_equal(morphology.grow(label, spacing, radius, value=1), grown)
    np.testing.assert_array_equal(morphology.shrink(label, spacing, radius, value=1), shrunk)


@pytest.mark.parametrize("radius", [1.3, 2.5, 4.0])
def test_radius_is_millimetres_with_anisotropic_voxels(radius) -> None:
    label, spacing = blobs((16, 32, 40), 1), (2.5, 0.7, 1.0)
    element = ellipsoid(radius, spacing)
    np.testing.assert_array_equal(
        morphology.grow_all(label, spacing, radius), ndimage.binary_dilation(label, element)
    )
    np.testing.assert_array_equal(
        morphology.shrink_all(label, spacing, radius), ndimage.binary_erosion(label, element, border_value=1)
    )


def two_classes() -> np.ndarray:
    label = blobs((60, 70), 2)
    label[:, 35:] *= 2
    return label


def test_side_by_side_classes_keep_their_border() -> None:
    label, element = two_classes(), disk(3)
    grown, shrunk = (f(label, (1, 1), 3.0) for f in (morphology.grow_all, morphology.shrink_all))
    np.testing.assert_array_equal(grown > 0, ndimage.binary_dilation(label > 0, element))
    np.testing.assert_array_equal(grown[label > 0], label[label > 0])
    np.testing.assert_array_equal(shrunk, label * ndimage.binary_erosion(label > 0, element, border_value=1))


def test_layers_are_grey_scale_morphology() -> None:
    label = two_classes()
    label[20:30, 5:20] = 3
    footprint = disk(2)
    np.testing.assert_array_equal(
        morphology.grow_layers(label, (1, 1), 2.0), ndimage.grey_dilation(label, footprint=footprint)
    )
    eroded = ndimage.minimum_filter(label, footprint=footprint, mode="constant", cval=9)
    np.testing.assert_array_equal(
        np.where(eroded == 9, label, eroded), morphology.shrink_layers(label, (1, 1), 2.0)
    )


def test_single_class_leaves_the_others() -> None:
    label = two_classes()
    grown = morphology.grow(label, (1, 1), 4.0, value=2)
    np.testing.assert_array_equal(grown == 1, label == 1)
    assert (grown == 2).sum() > (label == 2).sum()
    over = morphology.grow(label, (1, 1), 4.0, value=2, over=(0, 1))
    np.testing.assert_array_equal(over == 2, ndimage.binary_dilation(label == 2, disk(4)))


def test_empty_and_full_masks() -> None:
    empty, full = np.zeros((10, 12), np.uint8), np.ones((10, 12), np.uint8)
    names = ("grow_all", "shrink_all", "grow_layers", "shrink_layers")
    for mask in (empty, full):
        for f in (getattr(morphology, name) for name in names):
            np.testing.assert_array_equal(f(mask, (1, 1), 3.0), mask)
