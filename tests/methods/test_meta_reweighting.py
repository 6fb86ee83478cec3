"""Meta-reweighting against the closed form of its gradient: the product of two ordinary gradients."""

from __future__ import annotations

import pytest
import torch
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.losses import ce_dice, cross_entropy
from maskmend.methods.meta_reweighting import MetaReweighting


def test_the_image_level_keeps_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "meta_reweighting", level="image")


def half_trusted() -> dict:
    batch = toy_batch()
    batch["trusted"][:2] = True
    flip = torch.rand(batch["label"].shape, generator=torch.Generator().manual_seed(2)) < 0.3
    flip[:2] = False
    batch["label"] = torch.where(flip, (batch["label"] + 1) % 3, batch["label"])
    batch["flip"] = flip
    return batch


def gradient(loss, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])


@pytest.mark.parametrize("level", ["voxel", "image"])
def test_weights_are_products_of_gradients(level):
    """At w = 0, -d L_trusted(theta - grad sum w L) / d w_v = grad L_trusted . grad L_v, whatever the network."""
    torch.manual_seed(0)
    method, batch = MetaReweighting(toy_network, level=level).double(), half_trusted()
    batch["image"] = batch["image"].double()
    method.eval()
    parameters = list(method.student.parameters())
    rows = batch["trusted"]
    others = batch["valid"] & ~rows.view(-1, 1, 1)
    found = method._weights(batch, others)
    clean = gradient(
        ce_dice(method.student(batch["image"][rows]), batch["label"][rows], batch["valid"][rows]), parameters
    )
    losses = cross_entropy(method.student(batch["image"]), batch["label"]) * others
    gain = torch.zeros_like(losses)
    if level == "image":
        for i in (2, 3):
            gain[i] = (gradient(losses[i].sum(), parameters) @ clean).clamp_min(0)
        gain = gain * others
    else:
        for place in torch.nonzero(others):
            gain[tuple(place)] = (gradient(losses[tuple(place)], parameters) @ clean).clamp_min(0)
    assert 0 < (gain > 0).sum() <= others.sum()
    torch.testing.assert_close(found, gain * others.sum() / gain.sum(), rtol=1e-6, atol=1e-9)
    assert found[others].mean().item() == pytest.approx(1)


def test_wrong_labels_get_less_weight():
    torch.manual_seed(0)
    method, batch = MetaReweighting(toy_network), half_trusted()
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.03)
    for _ in range(30):
        optimizer.zero_grad()
        method.training_step(batch, 0.5).loss.backward()
        optimizer.step()
    others = batch["valid"] & ~batch["trusted"].view(-1, 1, 1)
    weight = method._weights(batch, others)
    assert weight[others & batch["flip"]].mean() < 0.3 * weight[others & ~batch["flip"]].mean()


def test_the_virtual_step_leaves_no_trace():
    torch.manual_seed(0)
    method, batch = MetaReweighting(toy_network), half_trusted()
    before = [p.clone() for p in method.parameters()]
    method._weights(batch, batch["valid"] & ~batch["trusted"].view(-1, 1, 1))
    assert all(p.grad is None for p in method.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 4)], ids=["none trusted", "all trusted"])
def test_a_batch_of_one_kind_is_learnt_plainly(rows):
    method, batch = MetaReweighting(toy_network), toy_batch()
    batch["trusted"][rows] = True
    method.eval()
    loss = method.training_step(batch, 0.5).loss
    logits = method.student(batch["image"])
    if batch["trusted"].any():
        expected = ce_dice(logits, batch["label"], batch["valid"])
    else:
        expected = cross_entropy(logits, batch["label"])[batch["valid"]].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
