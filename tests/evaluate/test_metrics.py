"""Overlap and volume against MONAI; empty masks and ignored voxels as the policy says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou

from maskmend.errors import UsageError
from maskmend.evaluate.metrics import METRICS, case_metrics, mask_metrics


@pytest.mark.parametrize("shape", [(20, 30), (9, 11, 13)])
def test_overlap_equals_monai(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    pred, ref = rng.integers(0, 4, shape), rng.integers(0, 4, shape)
    one_hot = [torch.stack([torch.from_numpy(x == k) for k in range(4)])[None].float() for x in (pred, ref)]
    dice, iou = compute_dice(*one_hot)[0], compute_iou(*one_hot)[0]
    scores = case_metrics(pred, ref, (1.0,) * len(shape), {f"c{k}": k for k in range(4)})
    for k in range(4):
        assert scores[f"c{k}"].dice == pytest.approx(float(dice[k]), abs=1e-6)
        assert scores[f"c{k}"].iou == pytest.approx(float(iou[k]), abs=1e-6)


def test_volume_difference_in_ml_and_cm2() -> None:
    ref, pred = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    ref[:5], pred[:6] = True, True
    score = mask_metrics(pred, ref, (2.0, 1.0, 0.5))
    assert score.volume_difference == pytest.approx(0.1)  # 100 voxels of 1 mm3
    assert score.volume_difference_relative == pytest.approx(0.2)
    flat = mask_metrics(pred[:, 0], ref[:, 0], (2.0, 0.5))
    assert flat.volume_difference == pytest.approx(0.1)  # 10 pixels of 1 mm2


def test_absent_is_undefined() -> None:
    none = np.zeros((4, 4), bool)
    score = mask_metrics(none, none, (1, 1))
    assert score.state == "absent"
    assert all(math.isnan(getattr(score, metric)) for metric in METRICS)


@pytest.mark.parametrize(("state", "sign"), [("missed", -1), ("spurious", 1)])
def test_one_empty_mask_is_the_worst_there_is(state: str, sign: int) -> None:
    none, some = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    some[2, 3] = True
    score = mask_metrics(*((none, some) if state == "missed" else (some, none)), (0.5, 0.5))
    assert (score.dice, score.iou, score.surface_dice, score.state) == (0, 0, 0, state)
    assert score.hd95_mm == score.asd_mm == pytest.approx(5.0)  # diagonal of 3 mm x 4 mm
    assert score.volume_difference == pytest.approx(sign * 0.0025)
    if state == "missed":
        assert score.volume_difference_relative == -1
    else:
        assert math.isnan(score.volume_difference_relative)


def test_ignored_voxels_cannot_change_a_figure() -> None:
    rng = np.random.default_rng(1)
    ref = np.zeros((30, 30), int)
    ref[5:20, 5:20] = 1
    pred = np.roll(ref, 2, axis=0)
    ref[15:, :] = 9
    mask = np.zeros_like(ref)
    mask[:, 17:] = 1
    classes = {"organ": 1}
    expected = case_metrics(pred, ref, (1, 1), classes, ignore=9, ignore_mask=mask)
    for _ in range(5):
        other_pred, other_ref = pred.copy(), ref.copy()
        hidden = (ref == 9) | (mask > 0)
        other_pred[hidden] = rng.integers(0, 2, hidden.sum())
        other_ref[mask > 0] = rng.integers(0, 2, (mask > 0).sum())
        other = case_metrics(other_pred, other_ref, (1, 1), classes, ignore=9, ignore_mask=mask)
        assert other == expected
    assert 0 < expected["organ"].dice < 1


def test_refuses_what_does_not_belong_together() -> None:
    a = np.zeros((4, 4), int)
    with pytest.raises(UsageError, match="belong together"):
        case_metrics(a, a[:3], (1, 1), {"x": 1})
    with pytest.raises(UsageError, match="belong together"):
        case_metrics(a, a, (1, 1, 1), {"x": 1})
    with pytest.raises(UsageError, match="positive"):
        case_metrics(a, a, (1, 0), {"x": 1})
