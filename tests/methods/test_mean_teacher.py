"""Mean teacher: the consistency term in NumPy, the gate of UA-MT, noise on the teacher's side only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.losses import ce_dice
from maskmend.methods.mean_teacher import MeanTeacher, disturbed, late_ramp


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_the_gated_variant_keeps_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "mean_teacher", gate=True, passes=2)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_loss_is_supervised_plus_ramped_squared_distance(progress):
    torch.manual_seed(0)
    method, batch = MeanTeacher(toy_network, consistency=2.0, input_noise=0.0), toy_batch()
    for p in method.teacher.parameters():
        p.add_(0.3 * torch.randn_like(p))
    method.student.eval()
    with torch.no_grad():
        logits = method.student(batch["image"])
        teacher = method.teacher(batch["image"]).double().numpy()
        found = method.training_step(batch, progress).loss.item()
    valid = batch["valid"].numpy()
    gap = (softmax(logits.double().numpy()) - softmax(teacher)) ** 2
    expected = gap.transpose(0, 2, 3, 1)[valid].mean() * 2.0 * math.exp(-5 * (1 - progress) ** 2)
    plain = ce_dice(logits, batch["label"], batch["valid"]).item()
    assert found == pytest.approx(plain + expected, rel=1e-5)
    assert expected > 1e-4


def test_the_gate_opens_from_three_quarters_of_the_largest_entropy_to_all_of_it():
    """A teacher of known probabilities on every voxel: sure on the left, unsure on the right."""
    method = MeanTeacher(toy_network, gate=True, passes=2, input_noise=0.0)
    nearly = torch.tensor([0.65, 0.175, 0.175])  # entropy 0.810 ln 3
    sharp = torch.tensor([0.9, 0.05, 0.05])  # 0.359 ln 3

    def teacher(image):
        out = torch.zeros(len(image), 3, *image.shape[2:])
        out[..., :6], out[..., 6:] = sharp.log().view(3, 1, 1), nearly.log().view(3, 1, 1)
        return out

    method.teacher.forward = teacher
    batch = toy_batch()
    for progress in (0.0, 0.5, 0.9, 1.0):
        share = method.training_step(batch, progress).logs["sure"].item()
        bar = 0.75 + 0.25 * math.exp(-5 * (1 - progress) ** 2)
        assert share == (1.0 if bar > 0.810 else 0.5)
    assert method.training_step(batch, 1.0).logs["sure"] == 1.0


def test_the_noise_is_clipped_at_two_deviations():
    torch.manual_seed(0)
    noise = disturbed(torch.zeros(100_000), 0.1)
    assert noise.abs().max().item() == pytest.approx(0.2)
    assert noise.std().item() == pytest.approx(
        0.0957, abs=0.002
    )  # of a clipped normal, by quadrature: 0.0957


def test_the_ramp():
    assert late_ramp(1.0) == 1
    assert late_ramp(0.0) == pytest.approx(0.0067379, rel=1e-4)
