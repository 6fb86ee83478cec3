"""Moves against cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskmend.noise.affine import move, rotation


def box(shape, *slices) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[slices] = 1
    return label


def test_shift_is_in_millimetres() -> None:
    label = box((30, 40), slice(10, 16), slice(8, 20))
    moved = move(label, (2.0, 0.5), shift_mm=(4.0, -1.5))
    np.testing.assert_array_equal(moved, np.roll(label, (2, -3), (0, 1)))


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_right_angles_equal_rot90(degrees) -> None:
    label = box((41, 41), slice(15, 26), slice(12, 29))
    label[15:17, 12:29] = 2
    label[20, 20] = 1
    want = np.rot90(label, degrees // -90)
    got = move(label, (1, 1), degrees=degrees)
    assert min((got != np.rot90(label, k)).sum() for k in (1, -1, 2)) == 0
    if degrees == 180:
        np.testing.assert_array_equal(got, want)


def test_turn_in_3d_is_within_the_slices() -> None:
    label = box((12, 31, 31), slice(4, 8), slice(13, 18), slice(5, 26))
    moved = move(label, (3.0, 1.0, 1.0), degrees=90)
    np.testing.assert_array_equal(moved, np.rot90(label, axes=(1, 2)))


def test_rotation_matrices_are_proper() -> None:
    for ndim, angles in ((2, 33.0), (3, (10.0, 20.0, 30.0)), (3, 45.0)):
        matrix = rotation(ndim, angles)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(ndim), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_turning_keeps_shape_with_anisotropic_voxels() -> None:
    """A 20 x 8 mm bar turned by 90 degrees spans 8 x 20 mm whatever the voxel size."""
    label = box((80, 60), slice(30, 50), slice(26, 34))  # 0.5 mm x 2 mm voxels: 10 mm x 16 mm
    moved = move(label, (0.5, 2.0), degrees=90)
    height, width = (np.ptp(axis) + 1 for axis in np.nonzero(moved))
    assert height * 0.5 == pytest.approx(16, abs=1.1)
    assert width * 2.0 == pytest.approx(10, abs=4.1)


def test_scale_and_empty() -> None:
    label = box((60, 60), slice(20, 40), slice(20, 40))
    assert move(label, (1, 1), scale=1.5).sum() == pytest.approx(900, rel=0.05)
    assert not move(np.zeros((5, 5), np.uint8), (1, 1), degrees=20).any()
