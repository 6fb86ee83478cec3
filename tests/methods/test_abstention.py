"""The abstaining loss against a softmax over K + 1 outputs in float64 NumPy, and what the network leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_selection import numpy_ce, numpy_probs, trained
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.errors import UsageError
from maskmend.methods.abstention import Abstention

RATES = {"noise_foreground": 0.2, "noise_background": 0.05}


def numpy_loss(method, batch, alpha, dice):
    """Written from the equation: `a` is the last of K + 1 probabilities, `p` are the others renormalised."""
    method.student.eval(), method.abstainer.eval()
    logits, extra = method.student(batch["image"]), method.abstainer(batch["image"]).mean(1, keepdim=True)
    joint = numpy_probs(torch.cat([logits, extra], dim=1))
    a, p = joint[:, -1], joint[:, :-1] / (1 - joint[:, -1:])
    label, valid = batch["label"].numpy(), batch["valid"].numpy()
    eta = np.where(label > 0, 0.2, 0.05)
    voxels = (1 - a) * numpy_ce(p, label) + alpha * np.abs(np.log((1 - eta) / (1 - a)))
    total = voxels[valid].mean()
    if dice:
        w, scores = (1 - a) * valid, []
        for c in (1, 2):
            g = label == c
            scores.append((2 * (w * p[:, c] * g).sum() + 1e-5) / ((w * (p[:, c] + g)).sum() + 1e-5))
        total += 1 - np.mean(scores)
    return total


@pytest.mark.parametrize(("loss", "dice"), [("ce", False), ("ce_dice", True)])
def test_the_loss_is_the_published_sum(loss, dice):
    torch.manual_seed(0)
    method, batch = Abstention(toy_network, loss=loss, warmup=0.2, **RATES), toy_batch()
    expected = numpy_loss(method, batch, alpha=4 * 0.5**1.5, dice=dice)
    assert method.training_step(batch, 0.6).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_price_grows_by_a_power_law_from_nothing_to_full():
    method = Abstention(toy_network, penalty=3.0, power=2.0, warmup=0.2)
    assert [method.alpha(t) for t in (0.0, 0.199, 0.2, 0.6, 1.0)] == pytest.approx([3, 3, 0, 0.75, 3])


def test_abstaining_is_free_at_the_expected_rate():
    method, batch = (
        Abstention(toy_network, loss="dice", noise_foreground=0.2, noise_background=0.2),
        toy_batch(),
    )
    method.student.eval(), method.abstainer.eval()
    level = method.student(batch["image"]).logsumexp(1, keepdim=True) + np.log(0.2 / 0.8)
    method.abstainer.forward = lambda image: level.expand(-1, 3, -1, -1)
    assert method.training_step(batch, 1.0).logs["abstained"].item() == pytest.approx(0.2, abs=1e-5)
    losses = [method.training_step(batch, t).loss.item() for t in (0.1, 0.5, 1.0)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_it_abstains_where_labels_contradict_the_rule():
    """Labels of one band are noise, elsewhere they follow the image: what is left out lies in that band."""
    torch.manual_seed(0)
    batch = toy_batch(batch=8)
    band = batch["label"] == 2
    flipped = torch.rand(batch["label"].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    batch["label"] = torch.where(band & flipped, 0, batch["label"])
    method = Abstention(toy_network, loss="ce", penalty=0.5, **RATES)
    trained(method, batch, steps=150, progress=0.5)
    method.eval()
    advantage = method.abstainer(batch["image"]).mean(1) - method.student(batch["image"]).logsumexp(1)
    a = torch.sigmoid(advantage)
    assert a[band & batch["valid"]].mean() > a[~band & batch["valid"]].mean() + 0.2


def test_trusted_cases_are_expected_to_be_right():
    method, batch = Abstention(toy_network, **RATES), toy_batch()
    method.student.eval(), method.abstainer.eval()
    before = method.training_step(batch, 1.0).loss.item()
    batch["trusted"][:] = True
    trusted = method.training_step(batch, 1.0).loss.item()
    same = Abstention(toy_network, noise_foreground=0.0, noise_background=0.0)
    same.load_state_dict(method.state_dict())
    same.student.eval(), same.abstainer.eval()
    batch["trusted"][:] = False
    assert trusted == pytest.approx(same.training_step(batch, 1.0).loss.item())
    assert trusted != pytest.approx(before)


def test_the_noise_rate_is_looked_for_once_it_is_needed():
    assert Abstention(toy_network).wants_revision(0.08)
    assert not Abstention(toy_network).wants_revision(0.01)
    assert not Abstention(toy_network, **RATES).wants_revision(0.08)


@pytest.mark.parametrize("loss", ["dice", "gce", "sce"])
def test_variants_keep_the_contract(loss, monkeypatch):
    keeps_the_contract(monkeypatch, "abstention", loss=loss, **RATES)


def test_settings_out_of_range_name_the_key():
    for bad in ({"loss": "mse"}, {"noise_foreground": 1.0}, {"penalty": 0}, {"power": 0}, {"warmup": 0}):
        with pytest.raises(UsageError, match=f"method.{next(iter(bad))}"):
            Abstention(toy_network, **bad)
