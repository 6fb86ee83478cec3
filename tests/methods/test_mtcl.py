"""MTCL: the total in NumPy with cleanlab's flags; untrusted labels teach only through the ramped part."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network

from maskmend.losses import ce_dice, one_hot
from maskmend.methods.mtcl import Mtcl, flagged_in_batch, turned_over

find_label_issues = pytest.importorskip("cleanlab.filter").find_label_issues


def half_trusted(classes: int = 3) -> dict:
    """The toy batch, its first half trusted, a third of the other half's foreground moved to another class."""
    batch = toy_batch()
    batch["trusted"][:2] = True
    wrong = torch.rand(batch["label"].shape, generator=torch.Generator().manual_seed(5)) < 0.3
    wrong[:2] = False
    batch["label"] = torch.where(wrong, (batch["label"] + 1) % classes, batch["label"])
    return batch


@pytest.fixture(scope="module")
def setting():
    """A method whose teacher has learnt the clean batch a little."""
    torch.manual_seed(0)
    method, clean = Mtcl(toy_network, input_noise=0.0), toy_batch()
    clean["trusted"][:] = True
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        method.training_step(clean, 0.0).loss.backward()
        optimizer.step()
        method.after_step(0.0)
    method.eval()
    return method, half_trusted()


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_total_is_trusted_plus_ramped_untrusted(setting, progress):
    method, batch = setting
    with torch.no_grad():
        found = method.training_step(batch, progress).loss.item()
        logits, teacher = method.student(batch["image"]), method.predict(batch["image"])
    others = (~batch["trusted"]).view(-1, 1, 1) & batch["valid"]
    probs = teacher.permute(0, 2, 3, 1)[others].double().numpy()
    label = batch["label"][others].numpy()
    issues = find_label_issues(label, probs / probs.sum(1, keepdims=True), filter_by="both", n_jobs=1)
    assert issues.sum() > 20
    flagged = torch.zeros_like(others)
    flagged[others] = torch.tensor(issues)
    soft = one_hot(batch["label"], 3)
    soft = torch.where(flagged.unsqueeze(1), 0.2 * soft + 0.4 * (1 - soft), soft)
    p = logits.double().softmax(1).numpy()
    gap = ((p - teacher.double().numpy()) ** 2).transpose(0, 2, 3, 1)[others.numpy()].mean()
    trusted = ce_dice(logits, batch["label"], batch["valid"] & ~others).item()
    cleaned = ce_dice(logits, soft, others).item()
    expected = trusted + 0.1 * math.exp(-5 * (1 - progress) ** 2) * (gap + 5 * cleaned)
    assert found == pytest.approx(expected, rel=2e-3 if progress else 1e-4)


def test_flags_find_the_wrong_labels(setting):
    method, batch = setting
    truth, others = toy_batch()["label"], (~batch["trusted"]).view(-1, 1, 1) & batch["valid"]
    with torch.no_grad():
        flagged = flagged_in_batch(method.predict(batch["image"]), batch["label"], others, "both")
    wrong = (truth != batch["label"]) & others
    assert (flagged & wrong).sum() / wrong.sum() > 0.8
    assert (flagged & wrong).sum() / flagged.sum() > 0.8
    assert not flagged[:2].any()


def test_a_binary_label_is_turned_over_as_published():
    target = one_hot(torch.tensor([[0, 1, 1]]), 2)
    soft = turned_over(target, torch.tensor([[True, True, False]]), 0.8)
    np.testing.assert_allclose(soft[0, 1], [0.8, 0.2, 1.0], rtol=1e-6)
    three = turned_over(one_hot(torch.tensor([[2]]), 3), torch.tensor([[True]]), 0.8)
    np.testing.assert_allclose(three[0, :, 0], [0.4, 0.4, 0.2], rtol=1e-6)


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 4)], ids=["none trusted", "all trusted"])
def test_a_batch_of_one_kind_trains(rows):
    method, batch = Mtcl(toy_network), toy_batch()
    batch["trusted"][rows] = True
    method.training_step(batch, 0.5).loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in method.student.parameters())
