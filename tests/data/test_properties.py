"""What must hold for every grid and every label: predictions come back to their place, values stay what they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskmend.data.case import Geometry
from maskmend.data.images import LABEL_SUFFIXES, read_header, read_image, read_label, write_label
from maskmend.data.plan import ChannelPlan, Plan
from maskmend.data.preprocess import prepare

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
ANGLE = st.floats(-np.pi, np.pi)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any axes a scanner or a program may write: turned, mirrored, sheared by up to a fifth, swapped, anisotropic."""
    turn = np.eye(3)
    for axis in range(3):
        angle, (i, j) = draw(ANGLE), [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = (draw(st.floats(-0.2, 0.2)) for _ in range(3))
    flip = np.diag([draw(st.sampled_from([-1, 1])) for _ in range(3)])
    swap = np.eye(3)[list(draw(st.permutations(range(3))))]
    size = np.diag([draw(st.floats(0.3, 5)) for _ in range(3)])
    affine = np.eye(4)
    affine[:3, :3] = turn @ shear @ flip @ swap @ size
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


def _plan(ndim: int, spacing_mm: tuple[float, ...], values: list[int], crop: bool = False) -> Plan:
    return Plan(
        ndim=ndim, spacing_mm=spacing_mm, channels=(ChannelPlan(name="c", scheme="zscore"),), crop=crop,
        classes={f"c{value}": value for value in values}, patch=(16,) * ndim, batch=1, depth=2, flips=(False,) * ndim,
    )  # fmt: skip


def _box(shape: tuple[int, ...]) -> np.ndarray:
    """A box of at least three voxels per side where there is room, off the middle."""
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(max(0, n // 4 - 1), max(1, n // 4 + n // 2)) for n in shape)] = 1
    return mask


def _middle_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


@QUICK
@given(
    affine=affines(), shape=st.tuples(*[st.integers(5, 19)] * 3), ratio=st.tuples(*[st.floats(0.5, 1.6)] * 3),
    crop=st.booleans(),
)  # fmt: skip
def test_prediction_returns_to_its_place(affine, shape, ratio, crop):
    """nibabel writes the image and reads the result; what it says of space must agree to half a voxel."""
    mask = _box(shape)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "image.nii.gz", Path(folder) / "label.nii.gz"
        image = nibabel.Nifti1Image((mask * 50 + crop * mask).astype(np.float32), affine)
        image.set_sform(affine, 1)
        nibabel.save(image, path)
        array, geometry = read_image(path)
        spacing = tuple(float(s * r) for s, r in zip(geometry.spacing_mm, ratio, strict=True))
        label = mask.T  # what a perfect network would say
        prepared = prepare(array, label, geometry, _plan(3, spacing, [0, 1], crop))
        restored = prepared.inverse.restore_label(prepared.label)
        soft = prepared.inverse.restore(np.stack([prepared.label == k for k in range(2)]).astype(np.float32))
        write_label(out, restored, geometry)
        result = nibabel.load(out)
        assert result.shape == shape
        assert np.abs(result.affine - affine).max() <= 1e-4 * max(1, np.abs(affine).max())
        for found in (np.asarray(result.dataobj), soft[1].T > 0.5):
            assert found.any(), "a structure of three voxels does not vanish"
            moved = np.linalg.solve(
                affine[:3, :3], _middle_mm(found, result.affine) - _middle_mm(mask, affine)
            )
            assert np.abs(moved).max() <= 0.5, f"moved by {moved} voxels"


@QUICK
@given(
    affine=affines(),
    shape=st.tuples(*[st.integers(3, 9)] * 3),
    suffix=st.sampled_from([".nii", ".nrrd", ".mha"]),
)
def test_geometry_survives_every_volume_format(affine, shape, suffix):
    """Corners stay within half a voxel; NRRD and MetaImage, which know no shear, are told apart by `read_header`."""
    upright = affine.copy()
    if suffix != ".nii":
        u, _, v = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
        upright[:3, :3] = (u @ v) * np.linalg.norm(affine[:3, :3], axis=0)
    sizes = np.linalg.norm(upright[:3, :3], axis=0)
    geometry = Geometry(shape, tuple(float(s) for s in sizes[::-1]), upright)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"label{suffix}"
        write_label(path, _box(shape), geometry)
        found = read_header(path).geometry
    assert found.shape == shape
    assert np.allclose(found.spacing_mm, geometry.spacing_mm, rtol=1e-4)
    off = np.linalg.norm(found.corners_mm() - geometry.corners_mm(), axis=1).max()
    assert off <= min(0.05 * sizes.min(), 0.5 * sizes.min())


def _values(suffix: str) -> st.SearchStrategy[list[int]]:
    most = {".bmp": 255, ".png": 65535}.get(suffix, 2**31 - 1)
    return st.lists(st.integers(1, most), min_size=1, max_size=6, unique=True).map(
        lambda found: [0, *sorted(found)]
    )


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
@settings(QUICK, max_examples=25)
@given(data=st.data())
def test_label_values_survive_every_path(suffix, data):
    """Written, read, prepared at the same spacing, brought back and written again: not one voxel changes."""
    volume = suffix not in (".png", ".bmp")
    shape = data.draw(st.tuples(*[st.integers(2, 13)] * (3 if volume else 2)))
    values = data.draw(_values(suffix))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    label = np.array(values, np.int64)[rng.integers(0, len(values), shape)]
    ndim = len(shape)
    affine = np.diag([1.0, 1.0, 1.0, 1.0]) if volume and suffix[:4] != ".tif" else None
    geometry = Geometry(shape, (1.0,) * ndim, affine)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / f"a{suffix}", Path(folder) / f"b{suffix}"
        write_label(first, label, geometry)
        read, grid = read_label(first)
        if read.shape != shape:  # formats drop an axis of one
            read = read.reshape(shape)
        assert (read == label).all()
        plan = _plan(ndim, (1.0,) * ndim, values)
        prepared = prepare(
            np.zeros((1, *shape), np.float32), read, Geometry(shape, (1.0,) * ndim, affine), plan
        )
        back = np.array(values)[prepared.inverse.restore_label(prepared.label)]
        write_label(second, back, grid)
        assert (read_label(second)[0].reshape(shape) == label).all()


@QUICK
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 2), ratio=st.tuples(*[st.floats(0.3, 3)] * 2), classes=st.integers(2, 7),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_resampling_invents_no_value(shape, ratio, classes, seed):
    """Whatever the grids, a label holds only classes that were there, and probabilities stay such."""
    rng = np.random.default_rng(seed)
    values = [0, *sorted(int(v) for v in rng.choice(np.arange(1, 250), classes - 1, replace=False))]
    label = np.array(values)[rng.integers(0, classes, shape)]
    plan = _plan(2, tuple(float(r) for r in ratio), values)
    prepared = prepare(np.ones((1, *shape), np.float32), label, Geometry(shape, (1.0, 1.0)), plan)
    there = {values.index(v) for v in np.unique(label)}
    assert set(np.unique(prepared.label)) <= there
    assert set(np.unique(prepared.inverse.restore_label(prepared.label))) <= there
    probs = rng.dirichlet(np.ones(classes), prepared.inverse.prepared).astype(np.float32)
    back = prepared.inverse.restore(np.moveaxis(probs, -1, 0))
    assert back.shape == (classes, *shape)
    assert np.abs(back.sum(axis=0) - 1).max() < 1e-4
    assert back.min() >= 0
