from __future__ import annotations

import numpy as np
import pytest
import torch

from maskmend.losses import ce_dice, cross_entropy, dice_loss, masked_mean, one_hot


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5, 6))
    label = rng.integers(0, 3, size=(2, 5, 6))
    weight = rng.random((2, 5, 6)) * (rng.random((2, 5, 6)) > 0.3)
    return torch.tensor(logits), torch.tensor(label), torch.tensor(weight)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_cross_entropy_is_minus_log_p(case):
    logits, label, _ = case
    p = softmax(logits.numpy())
    expected = -np.log(np.take_along_axis(p, label.numpy()[:, None], 1)[:, 0])
    np.testing.assert_allclose(cross_entropy(logits, label).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(
        cross_entropy(logits, one_hot(label, 3).double()).numpy(), expected, rtol=1e-12
    )


def test_dice_pools_the_batch_over_foreground_classes(case):
    logits, label, weight = case
    p, w = softmax(logits.numpy()), weight.numpy()
    scores = []
    for c in (1, 2):
        g = (label.numpy() == c) * 1.0
        scores.append(1 - (2 * (w * p[:, c] * g).sum() + 1e-5) / ((w * (p[:, c] + g)).sum() + 1e-5))
    assert dice_loss(logits, label, weight).item() == pytest.approx(np.mean(scores), rel=1e-6)


def test_dice_equals_monai_on_one_image(case):
    from monai.losses import DiceLoss

    logits, label, _ = case
    reference = DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    ours = dice_loss(logits, label, torch.ones_like(label))
    assert ours.item() == pytest.approx(reference(logits, label[:, None]).item(), rel=1e-6)


def test_masked_mean_never_looks_at_weight_zero():
    values = torch.tensor([[1.0, float("nan"), 3.0]])
    assert masked_mean(values, torch.tensor([[1.0, 0.0, 3.0]])).item() == pytest.approx(2.5)
    assert masked_mean(values, torch.zeros(1, 3)).item() == 0


def test_a_perfect_answer_costs_almost_nothing():
    label = torch.tensor([[[0, 1], [2, 1]]])
    assert ce_dice(40 * one_hot(label, 3), label, torch.ones_like(label)).item() == pytest.approx(0, abs=1e-5)
