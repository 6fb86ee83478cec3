"""The losses themselves are tested in test_robust_losses.py; here: that the settings reach them."""

from __future__ import annotations

import pytest
import torch
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.errors import UsageError
from maskmend.methods.robust_loss import LOSSES, RobustLoss


@pytest.mark.parametrize("loss", ["dice", "taylor_ce", "noise_robust_dice", "t_loss"])
def test_losses_of_each_kind_keep_the_contract(loss, monkeypatch):
    keeps_the_contract(monkeypatch, "robust_loss", loss=loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_bands_from_clean_labels(loss):
    torch.manual_seed(0)
    method, batch = RobustLoss(toy_network, loss=loss, ema=0.5), toy_batch()
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        method.training_step(batch, 0.5).loss.backward()
        optimizer.step()
        method.after_step(0.5)
    found = method.eval().predict(batch["image"]).argmax(1)
    for given in range(3):
        assert (found == given)[batch["valid"] & (batch["label"] == given)].float().mean() > 0.9


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [("gce", "q", 0.2), ("sce", "ce_weight", 0.5), ("sce", "rce_weight", 0.5), ("taylor_ce", "order", 2),
     ("noise_robust_dice", "gamma", 1.1), ("gce", "dice_weight", 1.0)],
)  # fmt: skip
def test_each_setting_changes_its_loss(loss, setting, value):
    method, other = RobustLoss(toy_network, loss=loss), RobustLoss(toy_network, loss=loss, **{setting: value})
    other.load_state_dict(method.state_dict())
    losses = [m.eval().training_step(toy_batch(), 0.5).loss.item() for m in (method, other)]
    assert losses[0] != losses[1]


def test_the_t_loss_learns_how_heavy_its_tail_is():
    method, batch = RobustLoss(toy_network, loss="t_loss"), toy_batch()
    method.training_step(batch, 0.5).loss.backward()
    assert method.log_freedom.grad.item() != 0
    assert "log_freedom" not in dict(RobustLoss(toy_network).named_parameters())


def test_settings_out_of_range_name_the_key():
    for bad in ({"loss": "hinge"}, {"q": 0}, {"gamma": 3}, {"order": 0}, {"dice_weight": -1}):
        with pytest.raises(UsageError, match=f"method.{next(iter(bad))}"):
            RobustLoss(toy_network, **bad)
