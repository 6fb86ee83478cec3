"""PINT's equations against a float64 NumPy implementation, and each part switched alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network

from maskmend.errors import UsageError
from maskmend.methods.base import entropy
from maskmend.methods.pint import Pint


def numpy_pint(
    logits, batch, *, weight="linear", pseudo="soft", pixel=True, original=True, image=True, unit_axes=(1, 2)
):
    """The loss at the end of training, written from the table of the method, not from its code."""
    z = logits.astype(np.float64)
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    bar = batch["memory"].numpy().astype(np.float64)
    valid = batch["valid"].numpy()
    given = np.moveaxis(np.eye(3)[batch["label"].numpy()], -1, 1)
    u = -(bar * np.log(bar)).sum(1) / np.log(3)
    w = (
        {"linear": 1 - u, "exp": np.exp(-u), "threshold": (u < 0.5) * 1.0}[weight]
        if pixel
        else np.full_like(u, 0.5)
    )
    hat = bar if pseudo != "hard" else np.moveaxis(np.eye(3)[bar.argmax(1)], -1, 1)

    def ce_dice(target, weights):
        ce = (-(target * log_p).sum(1) * weights).sum() / weights.sum()
        scores = []
        for c in (1, 2):
            a, b = p[:, c] * weights, target[:, c] * weights
            scores.append((2 * (a * target[:, c]).sum() + 1e-5) / (a.sum() + b.sum() + 1e-5))
        return ce + 1 - np.mean(scores)

    if pseudo == "none":
        total = ce_dice(given, w * valid)
    else:
        target = w[:, None] * given + (1 - w[:, None]) * hat if original else hat
        total = ce_dice(target, valid * 1.0)
    if image:
        mean = (u * valid).sum(unit_axes, keepdims=True) / valid.sum(unit_axes, keepdims=True)
        q = (1 - mean)[:, None]
        total += ce_dice(q * given + (1 - q) * hat, valid * 1.0)
    return total


SETTINGS = [
    {}, {"weight": "exp"}, {"weight": "threshold"}, {"pseudo": "hard"}, {"pseudo": "none", "image_level": False},
    {"pixel_noise": False}, {"original": False}, {"image_level": False},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_is_the_published_combination(settings):
    torch.manual_seed(0)
    method, batch = Pint(toy_network, **settings), toy_batch(memory=True)
    method.student.eval()
    with torch.no_grad():
        logits = method.student(batch["image"]).numpy()
        found = method.training_step(batch, 1.0).loss.item()
    names = {"pixel_noise": "pixel", "image_level": "image"}
    expected = numpy_pint(logits, batch, **{names.get(k, k): v for k, v in settings.items()})
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("unit", "axes"), [("slice", (2, 3)), ("volume", (1, 2, 3))])
def test_a_volume_is_weighed_by_slice_or_whole(unit, axes):
    torch.manual_seed(0)
    method, batch = Pint(lambda: toy_network(3), image_unit=unit), toy_batch(3, memory=True)
    batch["valid"] = torch.ones_like(batch["valid"])
    method.student.eval()
    with torch.no_grad():
        logits = method.student(batch["image"]).numpy()
        found = method.training_step(batch, 1.0).loss.item()
    assert found == pytest.approx(numpy_pint(logits, batch, unit_axes=axes), rel=1e-5)


def test_entropy_is_0_when_sure_and_1_when_uniform():
    probs = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]).T[None]
    torch.testing.assert_close(entropy(probs), torch.tensor([[0.0, 1.0]]))


def test_the_temporal_mean_of_the_first_passes_is_their_mean():
    method = Pint(toy_network, passes=4)
    method.begin(1)
    looks = torch.rand(6, 3, 4, 4)
    memory = None
    for number, look in enumerate(looks):
        memory = method.revise(
            0, look, torch.zeros(4, 4), torch.ones(4, 4), memory, 0.5, torch.zeros(1, 4, 4)
        )
        method.after_revision(0.5)
        if number < 4:
            torch.testing.assert_close(memory, looks[: number + 1].mean(0))
    torch.testing.assert_close(memory, (looks[:4].mean(0) * 0.75 + looks[4] / 4) * 0.75 + looks[5] / 4)


def test_the_exact_estimator_makes_its_passes_with_dropout():
    torch.manual_seed(0)
    method, batch = Pint(toy_network, estimator="exact", passes=5, input_noise=0.0), toy_batch()
    calls = []
    method.teacher.register_forward_hook(lambda m, i, o: calls.append(o))
    method.training_step(batch, 0.9)
    assert len(calls) == 5
    assert not torch.equal(calls[0], calls[1])
    method.eval()
    assert torch.equal(method.predict(batch["image"]), method.predict(batch["image"]))


def test_settings_out_of_range_name_the_key_and_the_range():
    for bad in ({"ema": 1.0}, {"passes": 0}, {"warmup": 2}, {"weight": "cubic"}, {"image_weight": -1}):
        with pytest.raises(UsageError, match=f"method.{next(iter(bad))}"):
            Pint(toy_network, **bad)
