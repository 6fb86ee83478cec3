"""The parts of the noise posterior on shapes whose answer is known, and the target in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network

from maskmend.losses import one_hot
from maskmend.methods.pint_posterior import (
    SAMPLED,
    PintPosterior,
    _calibration_sample,
    _fit_calibration,
    mask_features,
    teacher_trust,
)

SIZE = 64


def disc(radius: float, shift: float = 0.0, ndim: int = 2) -> torch.Tensor:
    """Labels (*S) of a ball about the centre."""
    axes = torch.meshgrid(*[torch.arange(SIZE) - SIZE / 2] * ndim, indexing="ij")
    squares = sum((a - (shift if i == 0 else 0)) ** 2 for i, a in enumerate(axes))
    return (squares <= radius**2).long()


def hot(label: torch.Tensor) -> torch.Tensor:
    return one_hot(label[None], 2)[0]


def soft(label: torch.Tensor, sure: float = 0.95) -> torch.Tensor:
    return hot(label) * sure + (1 - hot(label)) * (1 - sure)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("by", [-3, -1, 1, 2, 4])
def test_offset_is_the_thickness_in_voxels(ndim: int, by: int) -> None:
    offset = mask_features(hot(disc(14, ndim=ndim)), hot(disc(14 + by, ndim=ndim)))[0, 0].item()
    # A boundary of voxel faces is longer than the smooth one, in 3-D by a quarter, so offsets come out smaller.
    assert 0.75 * abs(by) < abs(offset) < 1.1 * abs(by)
    assert np.sign(offset) == np.sign(by)


def test_equal_masks_have_neither_offset_nor_residual() -> None:
    offset, residual = mask_features(hot(disc(14)), hot(disc(14)))[:, 0].tolist()
    assert offset == pytest.approx(0, abs=1e-6)
    assert residual == pytest.approx(np.log(0.05), abs=1e-5)


def test_a_moved_mask_shows_in_the_residual_alone() -> None:
    still = mask_features(hot(disc(14)), hot(disc(14)))
    residuals = [still[1, 0].item()]
    for shift in (1, 3, 6):
        offset, residual = mask_features(hot(disc(14)), hot(disc(14, shift)))[:, 0].tolist()
        assert abs(offset) < 0.05
        residuals.append(residual)
    assert residuals == sorted(residuals)
    assert residuals[1] - residuals[0] > 1


def test_dilation_leaves_little_residual() -> None:
    """A soft prediction cut at the larger volume is the larger mask."""
    distance = (torch.stack(torch.meshgrid(*[torch.arange(SIZE) - SIZE / 2] * 2, indexing="ij")) ** 2).sum(0)
    foreground = torch.sigmoid(14 - distance.sqrt())
    probs = torch.stack([1 - foreground, foreground])
    larger, moved = mask_features(probs, hot(disc(17))), mask_features(probs, hot(disc(14, 3)))
    assert larger[1, 0] < np.log(0.1)
    assert moved[1, 0] > larger[1, 0] + 1


def test_an_empty_mask_is_all_offset() -> None:
    offset, residual = mask_features(hot(disc(10)), hot(torch.zeros(SIZE, SIZE).long()))[:, 0]
    assert offset < -3
    assert residual > 1
    nothing = hot(torch.zeros(SIZE, SIZE).long())
    assert torch.isfinite(mask_features(nothing, nothing)).all()


def test_calibration_recovers_scale_and_bias() -> None:
    torch.manual_seed(0)
    scale, bias = 1.8, 0.7
    logs = (torch.randn(60, SAMPLED, 2) * 1.5).log_softmax(-1)
    truth = (scale * logs + torch.tensor([0.0, bias])).softmax(-1)
    given = (torch.rand(60, SAMPLED) < truth[..., 1]).float()
    sample = torch.cat([logs, given[..., None], torch.ones(60, SAMPLED, 1)], -1)
    found_scale, found_bias = _fit_calibration(sample, torch.ones(60))
    assert found_scale.item() == pytest.approx(scale, abs=0.15)
    assert found_bias.tolist() == pytest.approx([0, bias], abs=0.15)


def test_calibration_listens_to_the_convention_only() -> None:
    torch.manual_seed(0)
    logs = torch.randn(40, SAMPLED, 2).log_softmax(-1)
    given = (torch.rand(40, SAMPLED) < logs[..., 1].exp()).float()
    given[20:] = 1  # half of the masks take everything
    sample = torch.cat([logs, given[..., None], torch.ones(40, SAMPLED, 1)], -1)
    core = torch.cat([torch.ones(20), torch.zeros(20)])
    assert _fit_calibration(sample, core)[1][1].abs() < 0.2
    assert _fit_calibration(sample, torch.ones(40))[1][1] > 0.5
    neutral = _fit_calibration(sample, torch.zeros(40))
    assert neutral[0].item() == 1
    assert neutral[1].tolist() == [0, 0]


def test_calibration_sample_stands_for_all_valid_voxels() -> None:
    torch.manual_seed(0)
    valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
    valid[:, :20] = False
    probs, label = soft(disc(14), 0.99), disc(17)
    sample = _calibration_sample(probs, label, valid)
    assert sample.shape == (SAMPLED, 4)
    assert sample[:, 3].sum().item() == pytest.approx(valid.sum().item(), rel=1e-4)
    assert not _calibration_sample(probs, label, torch.zeros_like(valid))[:, 3].any()


def numpy_target(method: PintPosterior, batch: dict, keep_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Target (B, K, *S) and weight (B, *S) from the words of the docstring, in float64."""
    memory = batch["memory"].double().numpy()
    logits = method.scale.item() * np.log(memory) + method.bias.double().numpy()[None, :, None, None]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mended = method.mended.double().numpy()
    p[mended > 0] = memory[mended > 0]
    label, q = batch["label"].numpy(), method.image_posterior.double().numpy()
    given = np.moveaxis(np.eye(3)[label], -1, 1)
    decided = np.moveaxis(np.eye(3)[p.argmax(1)], -1, 1)
    expected = [
        np.mean(
            [
                (2 * (p[i, c] * decided[i, c]).sum() + 1e-3) / (p[i, c].sum() + decided[i, c].sum() + 1e-3)
                for c in (1, 2)
            ]
        )
        for i in range(len(p))
    ]
    teacher = np.clip((np.array(expected) - 0.5) / 0.3, 0, 1)
    flawed = np.where(batch["trusted"].numpy(), 0, 1 - q)
    replaced = flawed * np.maximum(mended, teacher * method.replaceable.double().numpy())
    image = (1 - replaced)[:, None, None]
    u = -(p * np.log(p)).sum(1) / np.log(3)
    p_y = (p * given).sum(1)
    pixel = 1 - (1 - u) * (1 - p_y) if method.pixel_level else 1.0
    keep = 1 - keep_scale * (1 - image * pixel)
    of_image = np.where(mended > 0, 1, 1 - (1 - method.pseudo_weight) * flawed)
    weight = batch["valid"].numpy() * (1 - keep_scale * (1 - of_image[:, None, None]))
    return keep[:, None] * given + (1 - keep[:, None]) * p, weight


@pytest.mark.parametrize("pixel_level", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_target_and_weight_follow_the_formula(
    monkeypatch: pytest.MonkeyPatch, pixel_level: bool, strength: float
) -> None:
    torch.manual_seed(0)
    method = PintPosterior(toy_network, pixel_level=pixel_level, strength=strength)
    batch = toy_batch(memory=True)
    batch["memory"] = (2.5 * one_hot(batch["label"], 3) + batch["memory"]).log_softmax(1).exp()
    batch["trusted"][1] = True
    method.image_posterior = torch.tensor([0.9, 0.2, 0.0, 0.5])
    method.replaceable = torch.tensor([1.0, 0.9, 0.8, 0.0])
    method.mended = torch.tensor([0.0, 0.0, 0.0, 1.0])
    method.scale, method.bias = torch.tensor([1.7]), torch.tensor([0.0, 0.3, -0.2])
    seen: list[torch.Tensor] = []

    def record(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.extend([target, weight])
        return logits.sum() * 0

    monkeypatch.setattr("maskmend.methods.pint_posterior.ce_dice", record)
    method.training_step(batch, progress=1.0)
    target, weight = numpy_target(method, batch, keep_scale=strength)
    np.testing.assert_allclose(seen[0].numpy(), target, atol=1e-5)
    np.testing.assert_allclose(seen[1].numpy(), weight, atol=1e-5)


def test_teacher_trust_needs_a_decided_teacher() -> None:
    sure, unsure = soft(disc(14), 0.99), soft(disc(14), 0.55)
    trust = teacher_trust(torch.stack([sure, unsure]))
    assert trust[0] > 0.9
    assert trust[1] < 0.1


@pytest.fixture(scope="module")
def experienced() -> PintPosterior:
    """Looked at 40 cases: 28 drawn on the boundary give or take, 12 drawn 4 voxels too large."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    method = PintPosterior(toy_network, appearance=False)
    method.begin(40)
    valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
    for index in range(40):
        radius = rng.uniform(11, 16)
        given = disc(radius + (4 if index >= 28 else rng.normal(0, 0.15)))
        image = disc(radius).float()[None]
        method.revise(index, soft(disc(radius), 0.97), given, valid, None, 0.5, image)
    method.after_revision(0.5)
    return method


@pytest.mark.parametrize("appearance", [True, False])
def test_the_image_decides_between_conventions_that_are_equally_dense(appearance: bool) -> None:
    """40 outlines on the boundary, 40 drawn 3 voxels too large, just as repeatable."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    method = PintPosterior(toy_network, appearance=appearance)
    method.begin(80)
    valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
    for index in range(80):
        radius = rng.uniform(11, 16)
        given = disc(radius + rng.normal(0, 0.2) + 3 * (index % 2))
        image = 2 * disc(radius).float()[None] + torch.randn(1, SIZE, SIZE)
        # A teacher between the two: by overlap, neither is nearer.
        method.revise(index, soft(disc(radius + 1.5), 0.97), given, valid, None, 0.5, image)
        method.revise(
            index, soft(disc(radius + 1.5), 0.97), given, valid, hot(disc(radius + 1.5)), 0.5, image
        )
    method.after_revision(0.5)
    sound, flawed = method.image_posterior[::2].mean(), method.image_posterior[1::2].mean()
    if appearance:
        assert sound > 0.9
        assert flawed < 0.1
    else:
        assert not (sound > 0.9 and flawed < 0.1)


def test_the_common_convention_is_found(experienced: PintPosterior) -> None:
    q = experienced.image_posterior
    assert q.shape == (40,)
    assert q[:28].mean() > 0.85
    assert q[28:].max() < 0.1


def test_noise_marks_the_rim_of_a_case_outside_the_convention(experienced: PintPosterior) -> None:
    probs = soft(disc(14), 0.97)[None]
    flawed, sound = disc(18), disc(14)
    rim = (flawed > 0) & (sound == 0)
    noise = experienced.noise(probs, flawed[None])[0]
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert noise[rim].mean() > 0.8
    assert noise[rim].mean() > noise[~rim].mean() + 0.5
    assert experienced.noise(probs, sound[None]).mean() < 0.1


def test_before_any_look_noise_is_the_teachers_doubt() -> None:
    probs, label = soft(disc(14), 0.9)[None], disc(14)[None]
    torch.testing.assert_close(
        PintPosterior(toy_network).noise(probs, label), torch.full((1, SIZE, SIZE), 0.1)
    )


def test_memory_is_the_average_over_looks() -> None:
    method = PintPosterior(toy_network, memory=0.7)
    method.begin(1)
    first, second, label = soft(disc(14), 0.9), soft(disc(14), 0.6), disc(14)
    valid, image = torch.ones(SIZE, SIZE, dtype=torch.bool), torch.zeros(1, SIZE, SIZE)
    assert torch.equal(method.revise(0, first, label, valid, None, 0.3, image), first)
    after = method.revise(0, second, label, valid, first, 0.4, image)
    torch.testing.assert_close(after, 0.7 * first + 0.3 * second)


def test_a_flawed_mask_is_mended_once_and_kept() -> None:
    """40 outlines on the boundary, 20 drawn 3 voxels too large: these are drawn anew after the first look."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    method = PintPosterior(toy_network)
    method.begin(60)
    valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
    teacher = soft(disc(20), 0.97)  # far off: it must not matter
    cases = []
    for index in range(60):
        radius = rng.uniform(11, 16)
        image = 2 * disc(radius).float()[None] + torch.randn(1, SIZE, SIZE)
        cases.append((radius, disc(radius + (3 if index >= 40 else 0)), image))
    memories = [method.revise(i, teacher, g, valid, None, 0.3, x) for i, (_, g, x) in enumerate(cases)]
    method.after_revision(0.3)
    assert not method.mended.any()
    for _ in range(2):
        memories = [
            method.revise(i, teacher, g, valid, memories[i], 0.4, x) for i, (_, g, x) in enumerate(cases)
        ]
        method.after_revision(0.4)
    assert not method.mended[:40].any()
    done = [i for i in range(40, 60) if method.mended[i]]
    assert len(done) >= 10
    for i in done:
        radius = cases[i][0]
        assert set(memories[i].unique().tolist()) == {0.0, 1.0}
        true, mended, given = (m[1].sum().item() for m in (hot(disc(radius)), memories[i], hot(cases[i][1])))
        assert abs(mended - true) < 0.4 * abs(given - true)
    off = PintPosterior(toy_network, mend=False)
    off.begin(60)
    for i, (_, g, x) in enumerate(cases):
        off.revise(i, teacher, g, valid, None, 0.3, x)
    off.after_revision(0.3)
    again = off.revise(45, teacher, cases[45][1], valid, teacher, 0.4, cases[45][2])
    torch.testing.assert_close(again, teacher)
