"""Surface distances against MONAI, with its search trees and with its distance transforms."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.metrics import utils as monai_utils
from scipy import ndimage

from maskmend.evaluate.surface import surface, surface_distances

TOLERANCE_MM = 1.0


@pytest.fixture(params=["installed", "distance transform"], autouse=True)
def _monai(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "distance transform":
        monkeypatch.setattr(monai_utils, "has_scipy_kdtree", False, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def monai_metrics(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    y_pred, y = (torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (pred, ref))
    options = {"include_background": True, "spacing": list(spacing)}
    return [
        float(compute_hausdorff_distance(y_pred, y, percentile=95, **options)),
        float(compute_average_surface_distance(y_pred, y, symmetric=True, **options)),
        float(compute_surface_dice(y_pred, y, class_thresholds=[TOLERANCE_MM], **options)),
    ]


def our_metrics(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    distances = surface_distances(pred, ref, spacing)
    return [distances.hausdorff(95), distances.average(), distances.surface_dice(TOLERANCE_MM)]


def blobs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base, error = (ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for sigma in (4, 2))
    level = rng.uniform(0, 1.5) * base.std()
    return base + rng.uniform(0, 1) * base.std() / error.std() * error > level, base > level


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((57, 40), (1.0, 1.0)),
        ((33, 64), (0.3, 0.7)),
        ((20, 31, 26), (3.0, 0.8, 0.8)),
        ((24, 24, 24), (1.0, 1.0, 1.0)),
        ((1, 30, 30), (5.0, 1.0, 1.0)),
    ],
)
def test_equals_monai_on_blobs(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int) -> None:
    pred, ref = blobs(shape, seed)  # they touch the image's border, where MONAI counts a surface
    assert pred.any()
    assert ref.any()
    expected = monai_metrics(pred, ref, spacing)
    assert our_metrics(pred, ref, spacing) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equals_monai_where_search_is_hard() -> None:
    radius = np.sqrt(sum(np.square(axis) for axis in np.ogrid[-20:20, -20:20, -20:20]))
    corner = np.zeros_like(radius, bool)
    corner[:3, :2, :4] = True
    spacing = (1.2, 1.0, 1.0)
    for pred, ref in [(radius < 4, radius < 18), (corner, corner[::-1, ::-1]), (radius >= 0, radius < 2)]:
        expected = monai_metrics(pred, ref, spacing)
        assert our_metrics(pred, ref, spacing) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("folder", "spacing"), [("msd_hippocampus_3d", (1.0, 1.0, 1.0)), ("msd_hippocampus_2d", (1.0, 1.0))]
)
def test_equals_monai_on_real_labels(real_data: Path, folder: str, spacing: tuple[float, ...]) -> None:
    from maskmend.data.images import read_label

    for file in sorted((real_data / folder / "labels").iterdir())[:6]:
        label = read_label(file)[0]
        for value in np.unique(label)[1:]:
            ref = label == value
            pred = np.roll(ndimage.binary_dilation(ref), 2, axis=-1)
            expected = monai_metrics(pred, ref, spacing)
            assert our_metrics(pred, ref, spacing) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_or_no_surface() -> None:
    none, some = np.zeros((5, 5), bool), np.eye(5, dtype=bool)
    assert our_metrics(some, none, (1, 1)) == [np.inf, np.inf, 0.0]
    assert our_metrics(none, some, (1, 1)) == [np.inf, np.inf, 0.0]
    assert np.isnan(our_metrics(none, none, (1, 1))).all()
    assert our_metrics(some, some, (1, 1)) == [0.0, 0.0, 1.0]


def test_distances_known_by_hand() -> None:
    pred, ref = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    pred[2, 1], ref[5, 5] = True, True
    distances = surface_distances(pred, ref, (1.0, 0.5))
    assert distances.pred_to_ref.tolist() == distances.ref_to_pred.tolist() == [pytest.approx(np.hypot(3, 2))]


def test_a_face_towards_the_unknown_is_no_surface() -> None:
    mask, valid = np.ones((4, 6), bool), np.ones((4, 6), bool)
    mask[:, 4:], valid[:, 4:] = False, False  # the object may go on to the right
    edge = surface(np.pad(mask, 1), np.pad(valid, 1, constant_values=True))[1:-1, 1:-1]
    assert not edge[1:3, 3].any()
    assert edge[:, 0].all()
    # A prediction that goes on, and one that stops, are equally right there.
    for turned in (slice(None), slice(None, None, -1)):
        goes_on = np.ones((4, 6), bool)
        distances = surface_distances(goes_on, mask[:, turned], (1, 1), valid=valid[:, turned])
        assert distances.hausdorff() == 0
        assert len(distances.both) == 2 * edge.sum()


def test_tolerance_includes_its_own_distance() -> None:
    pred, ref = np.zeros((1, 9), bool), np.zeros((1, 9), bool)
    pred[0, 0], ref[0, 3] = True, True
    assert 3 * 0.1 > 0.3  # in double precision
    assert surface_distances(pred, ref, (0.1, 0.1)).surface_dice(0.3) == 1.0
    assert surface_distances(pred, ref, (0.1, 0.1)).surface_dice(0.29) == 0.0
