"""Study group learning: the sum of both losses in NumPy, each case judged by the network that left it out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network

from maskmend.methods.sgl import Sgl


def numpy_ce_dice(logits, target, valid):
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    ce = (-(target * np.log(p)).sum(1) * valid).sum() / valid.sum()
    dice = [
        (2 * (p[:, c] * target[:, c] * valid).sum() + 1e-5) / (((p + target)[:, c] * valid).sum() + 1e-5)
        for c in (1, 2)
    ]
    return ce + 1 - np.mean(dice)


def test_loss_is_the_sum_on_both_labels():
    torch.manual_seed(0)
    method, batch = Sgl(toy_network, folds=3, pseudo_weight=0.5), toy_batch(memory=True)
    method.eval()
    with torch.no_grad():
        found = method.training_step(batch, 0.9).loss.item()
        networks = [method.student, *method.judges]
        logits = [net(batch["image"]).numpy() for net in networks]
    given = np.moveaxis(np.eye(3)[batch["label"].numpy()], -1, 1)
    valid = batch["valid"].numpy()
    expected = numpy_ce_dice(logits[0], given, valid)
    expected += 0.5 * numpy_ce_dice(logits[0], batch["memory"].numpy(), valid)
    for k in range(3):
        rows = [i for i in range(4) if i % 3 != k]
        expected += numpy_ce_dice(logits[k + 1][rows], given[rows], valid[rows]) / 3
    assert found == pytest.approx(expected, rel=1e-5)


def test_pseudo_labels_start_with_the_first_look():
    method = Sgl(toy_network, start=0.4)
    assert not method.wants_revision(0.39)
    assert method.wants_revision(0.4)
    assert "pseudo" not in method.training_step(toy_batch(), 0.9).logs


def test_all_averages_follow_their_networks():
    torch.manual_seed(0)
    method, batch = Sgl(toy_network, folds=2, ema=0.0), toy_batch()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method.training_step(batch, 0.0).loss.backward()
    optimizer.step()
    method.after_step(0.0)
    for judge, average in zip(method.judges, method.averages, strict=True):
        for one, two in zip(judge.parameters(), average.parameters(), strict=True):
            assert torch.equal(one, two)
            assert not two.requires_grad
