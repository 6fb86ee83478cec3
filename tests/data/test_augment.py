"""Augmentation against torch.rot90, torch.flip, scipy and closed forms."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter

from maskmend.data.augment import Choice, _displacement, apply, choose
from maskmend.errors import UsageError


def make_batch(shape: tuple[int, ...], count: int = 2, classes: int = 3, seed: int = 0):
    source = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (count, *shape), generator=source)
    return {
        "image": torch.randn(count, 2, *shape, generator=source),
        "label": label,
        "valid": torch.rand(count, *shape, generator=source) > 0.1,
        "trusted": torch.zeros(count, dtype=torch.bool),
        "case": [f"c{i}" for i in range(count)],
        "index": torch.arange(count),
        "memory": torch.rand(count, classes, *shape, generator=source).softmax(dim=1),
    }


@pytest.mark.parametrize("shape", [(12, 16), (6, 8, 10)])
def test_identity_changes_nothing(shape):
    batch = make_batch(shape)
    result = apply(batch, [Choice(len(shape))] * 2)
    for key in ("image", "label", "valid", "memory"):
        assert torch.equal(result[key], batch[key]), key


@pytest.mark.parametrize("shape", [(12, 12), (8, 8, 8)])
def test_the_identity_map_interpolates_to_itself(shape):
    batch = make_batch(shape)
    result = apply(batch, [Choice(len(shape), scale=1.0 + 1e-9)] * 2)
    assert torch.equal(result["label"], batch["label"] * batch["valid"])
    assert torch.equal(result["valid"], batch["valid"])
    torch.testing.assert_close(result["image"], batch["image"], atol=1e-4, rtol=0)


QUARTERS = [
    ((12, 12), (90.0,), (1, 2)),
    ((8, 8, 8), (90.0, 0.0, 0.0), (2, 3)),
    ((8, 8, 8), (0.0, 90.0, 0.0), (1, 3)),
    ((8, 8, 8), (0.0, 0.0, 90.0), (1, 2)),
]


@pytest.mark.parametrize(("shape", "degrees", "axes"), QUARTERS)
def test_a_quarter_turn_is_rot90(shape, degrees, axes):
    batch = make_batch(shape)
    result = apply(batch, [Choice(len(shape), degrees=degrees)] * 2)
    expected = torch.rot90(batch["label"] * batch["valid"], 1, axes)
    assert torch.equal(result["label"], expected)
    assert torch.equal(result["valid"], torch.rot90(batch["valid"], 1, axes))
    for key in ("image", "memory"):
        turned = torch.rot90(batch[key], 1, tuple(a + 1 for a in axes))
        torch.testing.assert_close(result[key], turned, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shape", "flip"), [((10, 14), (True, False)), ((6, 8, 10), (False, True, True))])
def test_flip_is_torch_flip(shape, flip):
    batch = make_batch(shape)
    result = apply(batch, [Choice(len(shape), flip=flip)] * 2)
    axes = [1 + i for i, hit in enumerate(flip) if hit]
    assert torch.equal(result["valid"], batch["valid"].flip(axes))
    torch.testing.assert_close(result["image"], batch["image"].flip([a + 1 for a in axes]), atol=1e-4, rtol=0)


def test_affine_agrees_with_scipy_on_anisotropic_voxels():
    """A ball in millimetres, rotated with voxels of 4 x 1 x 1 mm, computed a second way."""
    shape, spacing = (12, 40, 40), np.array([4.0, 1.0, 1.0])
    image = gaussian_filter(np.random.default_rng(0).standard_normal(shape), (0.8, 2, 2)).astype(np.float32)
    angle = 30.0
    choice = Choice(3, degrees=(0.0, angle, 0.0), voxel_mm=tuple(spacing), scale=1.2, shift=(0.1, 0, 0.05))
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turn_mm = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) / 1.2
    voxels = np.diag(1 / spacing) @ turn_mm @ np.diag(spacing)
    centre = (np.array(shape) - 1) / 2
    offset = centre - voxels @ (centre + np.array([0.1, 0, 0.05]) * shape)
    expected = affine_transform(image, voxels, offset, order=1, mode="grid-constant")
    batch = make_batch(shape, count=1)
    batch["image"] = torch.from_numpy(image)[None, None]
    batch.pop("memory")
    result = apply(batch, [choice])["image"][0, 0].numpy()
    np.testing.assert_allclose(result, expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(40, 48), (20, 24, 28)])
@pytest.mark.parametrize("strength", ["light", "default", "strong"])
def test_image_label_valid_and_memory_move_together(shape, strength):
    """All four show the same ball; wherever they end up, they end up together."""
    ndim = len(shape)
    places = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij"))
    ball = torch.from_numpy(np.linalg.norm(places, axis=0) < min(shape) / 4)
    rng = np.random.default_rng(0)
    choices = [choose(rng, ndim, strength, (True,) * ndim) for _ in range(8)]
    quiet = {"brightness": 0.0, "contrast": 1.0, "gamma": 1.0, "noise": 0.0, "blur": 0.0}
    choices = [replace(choice, **quiet) for choice in choices]
    batch = make_batch(shape, count=8, classes=2)
    batch["label"] = ball.long().expand(8, *shape).clone()
    batch["valid"] = torch.ones(8, *shape, dtype=torch.bool)
    batch["image"] = ball.float().expand(8, 1, *shape).clone()
    batch["memory"] = torch.stack([1 - batch["image"][:, 0], batch["image"][:, 0]], dim=1)
    result = apply(batch, choices)
    torch.testing.assert_close(result["memory"][:, 1], result["image"][:, 0], atol=1e-5, rtol=0)
    clear = (result["image"][:, 0] - 0.5).abs() > 0.45
    assert clear.float().mean() > 0.5
    assert torch.equal(result["label"][clear].bool(), result["image"][:, 0][clear] > 0.5)
    assert not (result["label"].bool() & ~result["valid"]).any()


@pytest.mark.parametrize("shape", [(24, 32), (12, 16, 14)])
def test_memory_stays_a_probability_map(shape):
    rng = np.random.default_rng(1)
    batch = make_batch(shape, count=6)
    choices = [choose(rng, len(shape), "strong", (True,) * len(shape)) for _ in range(6)]
    assert any(choice.moves for choice in choices)
    memory = apply(batch, choices)["memory"]
    assert memory.min() >= 0
    torch.testing.assert_close(memory.sum(dim=1), torch.ones_like(memory[:, 0]), atol=1e-5, rtol=0)


def test_what_comes_from_outside_is_not_valid():
    batch = make_batch((20, 20))
    batch["valid"][:] = True
    batch["label"][:] = 2
    result = apply(batch, [Choice(2, shift=(0.25, 0.0)), Choice(2)])
    assert not result["valid"][0, :5].any()
    assert result["valid"][0, 5:].all()
    assert (result["label"][0, :5] == 0).all()
    assert (result["image"][0, :, :4] == 0).all()
    torch.testing.assert_close(result["memory"][0, 0, :4], torch.ones(4, 20))
    assert result["valid"][1].all()


def test_invalid_labels_do_not_leak():
    """Whatever is written under valid=False has no influence on the result."""
    batch = make_batch((16, 16))
    other = {**batch, "label": torch.where(batch["valid"], batch["label"], 1)}
    choices = [Choice(2, degrees=(17.0,), bend=0.03, bend_seed=4)] * 2
    assert torch.equal(apply(batch, choices)["label"], apply(other, choices)["label"])


def test_apply_leaves_its_input_alone():
    batch = make_batch((16, 16))
    before = {k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}
    rng = np.random.default_rng(0)
    apply(batch, [choose(rng, 2, "strong", (True, True)) for _ in range(2)])
    assert all(torch.equal(batch[k], v) for k, v in before.items())


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_numbers_give_the_same_result(ndim):
    shape = (16, 20, 18)[:ndim]
    batch = make_batch(shape)
    results = []
    for _ in range(2):
        rng = np.random.default_rng(7)
        results.append(apply(batch, [choose(rng, ndim, "strong", (True,) * ndim) for _ in range(2)]))
    assert all(torch.equal(results[0][k], results[1][k]) for k in ("image", "label", "valid", "memory"))


def test_a_choice_can_be_recorded_and_replayed():
    batch = make_batch((16, 20))
    choices = [choose(np.random.default_rng(i), 2, "strong", (True, True)) for i in range(2)]
    again = [Choice(**asdict(choice)) for choice in choices]
    assert torch.equal(apply(batch, choices)["image"], apply(batch, again)["image"])


def test_a_sample_does_not_depend_on_its_neighbours():
    batch = make_batch((16, 20), count=3)
    choices = [choose(np.random.default_rng(i), 2, "strong", (True, True)) for i in range(3)]
    together = apply(batch, choices)
    alone = apply({k: v[1:2] for k, v in batch.items()}, choices[1:2])
    torch.testing.assert_close(together["image"][1:2], alone["image"])
    assert torch.equal(together["label"][1:2], alone["label"])


@pytest.mark.parametrize("shape", [(30, 40), (14, 16, 18)])
def test_blur_is_a_gaussian(shape):
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    batch = {**make_batch(shape, count=1), "image": image}
    result = apply(batch, [Choice(len(shape), blur=0.8)])["image"][0, 0].numpy()
    expected = gaussian_filter(image[0, 0].numpy(), 0.8, mode="nearest", radius=3)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_intensity_changes_are_what_they_say():
    batch = make_batch((32, 32), count=4)
    choices = [
        Choice(2, brightness=0.3),
        Choice(2, contrast=2.0),
        Choice(2, gamma=2.0),
        Choice(2, noise=0.5, noise_seed=3),
    ]
    before, after = batch["image"], apply(batch, choices)["image"]
    torch.testing.assert_close(after[0], before[0] + 0.3)
    torch.testing.assert_close(after[1].mean((1, 2)), before[1].mean((1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(after[1].std((1, 2)), 2 * before[1].std((1, 2)))
    for channel in range(2):
        low, high = before[2, channel].min(), before[2, channel].max()
        unit = (before[2, channel] - low) / (high - low)
        torch.testing.assert_close(after[2, channel], unit**2 * (high - low) + low)
    assert (after[3] - before[3]).std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_constant_image_survives_everything(gamma):
    batch = {**make_batch((16, 16), count=1), "image": torch.zeros(1, 1, 16, 16)}
    result = apply(batch, [Choice(2, gamma=gamma, contrast=2, blur=1, bend=0.03, scale=1.2)])
    assert torch.equal(result["image"], batch["image"])


def test_elastic_bends_without_folding():
    """At the default strength a ramp stays monotone along its axis."""
    ramp = torch.arange(64.0).view(1, 1, 64, 1).expand(1, 1, 64, 64).clone()
    for seed in range(10):
        batch = {**make_batch((64, 64), count=1), "image": ramp}
        choice = Choice(2, bend=0.02, bend_seed=seed)
        inner = apply(batch, [choice])["image"][0, 0, 8:-8, 8:-8]
        assert (inner.diff(dim=0) > 0).all()
        assert (inner - ramp[0, 0, 8:-8, 8:-8]).abs().max() > 0.3


def test_elastic_is_as_large_as_asked():
    choices = [Choice(2, bend=0.04, bend_seed=seed) for seed in range(60)]
    field = _displacement(choices, (64, 64), torch.device("cpu")) / 2
    # A spline averages its control points: at a knot the weights are 1/6, 4/6 and 1/6 along each axis.
    least = 0.04 * (1 / 36 + 16 / 36 + 1 / 36) * 0.8
    assert least < field.std() < 0.04
    assert not torch.allclose(field[0], field[1])
    assert field.diff(dim=1).abs().max() < 0.02


def test_thick_slices_are_not_tilted():
    for seed in range(20):
        choice = choose(np.random.default_rng(seed), 3, "strong", (True,) * 3, voxel_mm=(5.0, 0.8, 0.8))
        assert not choice.degrees or choice.degrees[1:] == (0, 0)
    tilted = [choose(np.random.default_rng(s), 3, "strong", (True,) * 3).degrees for s in range(20)]
    assert any(any(degrees[1:]) for degrees in tilted)


def test_forbidden_axes_are_never_mirrored():
    choices = [choose(np.random.default_rng(s), 3, "strong", (False, True, False)) for s in range(50)]
    assert {choice.flip for choice in choices} == {(False, True, False), (False, False, False)}


def test_none_is_nothing_and_typos_are_explained():
    assert choose(np.random.default_rng(0), 2, "none", (True, True)) == Choice(2)
    with pytest.raises(UsageError, match="did you mean 'strong'"):
        choose(np.random.default_rng(0), 2, "strongg", (True, True))


def test_double_precision_images():
    batch = make_batch((16, 16))
    batch["image"] = batch["image"].double()
    batch.pop("memory")
    assert apply(batch, [Choice(2, bend=0.02), Choice(2, noise=0.1)])["image"].dtype == torch.float64
