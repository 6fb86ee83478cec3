"""Each robust loss against its formula in float64 NumPy, its limits, and scipy's multivariate t."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t

from maskmend import robust_losses as losses
from maskmend.losses import cross_entropy, dice_loss


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = torch.tensor(3 * rng.normal(size=(2, 3, 5, 6)))
    label = torch.tensor(rng.integers(0, 3, size=(2, 5, 6)))
    valid = torch.tensor(rng.random((2, 5, 6)) > 0.3)
    return logits, label, valid


def numpy_parts(logits, label):
    z = logits.numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    g = np.moveaxis(np.eye(3)[label.numpy()], -1, 1)
    return p, g


def test_maps_are_their_published_sums(case):
    logits, label, _ = case
    p, g = numpy_parts(logits, label)
    given = (p * g).sum(1)
    expected = {
        "mean_absolute_error": np.abs(p - g).sum(1),
        "generalised_cross_entropy": (1 - given**0.7) / 0.7,
        "symmetric_cross_entropy": 0.1 * -np.log(given) - (p * np.log(np.clip(g, 1e-4, 1))).sum(1),
        "taylor_cross_entropy": sum((1 - given) ** i / i for i in range(1, 7)),
    }
    for name, value in expected.items():
        found = getattr(losses, name)(logits, label).numpy()
        np.testing.assert_allclose(found, value, rtol=1e-9, err_msg=name)


def test_taylor_goes_from_half_the_absolute_error_to_cross_entropy(case):
    logits, label, _ = case
    logits = logits / 4  # the sum converges the slower the smaller p_y is
    one, many = (losses.taylor_cross_entropy(logits, label, order) for order in (1, 1000))
    torch.testing.assert_close(one, losses.mean_absolute_error(logits, label) / 2)
    torch.testing.assert_close(many, cross_entropy(logits, label), rtol=1e-5, atol=1e-5)


def test_gce_goes_from_cross_entropy_to_half_the_absolute_error(case):
    logits, label, _ = case
    small, one = (losses.generalised_cross_entropy(logits, label, q) for q in (1e-7, 1.0))
    torch.testing.assert_close(small, cross_entropy(logits, label), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one, losses.mean_absolute_error(logits, label) / 2)


def test_a_voxel_that_contradicts_its_label_beyond_doubt_gives_finite_gradients():
    for name in (
        "mean_absolute_error",
        "generalised_cross_entropy",
        "symmetric_cross_entropy",
        "taylor_cross_entropy",
    ):
        logits = torch.tensor([[[300.0], [-300.0]]], requires_grad=True)
        getattr(losses, name)(logits, torch.ones(1, 1, dtype=torch.long)).sum().backward()
        assert torch.isfinite(logits.grad).all(), name


def test_noise_robust_dice_is_the_published_quotient(case):
    logits, label, valid = case
    p, g = numpy_parts(logits, label)
    w = valid.numpy()
    scores = [
        ((np.abs(p[:, c] - g[:, c]) ** 1.5 * w).sum()) / (((p[:, c] ** 2 + g[:, c] ** 2) * w).sum() + 1e-5)
        for c in (1, 2)
    ]
    assert losses.noise_robust_dice(logits, label, valid).item() == pytest.approx(np.mean(scores), rel=1e-6)


def test_noise_robust_dice_with_gamma_2_is_monais_dice_with_squares(case):
    from monai.losses import DiceLoss

    logits, label, _ = case
    reference = DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=True, squared_pred=True,
        smooth_nr=0, smooth_dr=1e-5,
    )  # fmt: skip
    found = losses.noise_robust_dice(logits, label, torch.ones_like(label), gamma=2.0).item()
    assert found == pytest.approx(reference(logits, label[:, None]).item(), abs=1e-6)


def test_t_loss_is_scipys_multivariate_t(case):
    logits, label, valid = case
    p, g = numpy_parts(logits, label)
    freedom, values = 2.7, []
    for image in range(2):
        inside = valid.numpy()[image]
        for c in (1, 2):
            error = (p - g)[image, c][inside]
            t = multivariate_t(np.zeros(error.size), np.eye(error.size), df=freedom)
            values.append(-t.logpdf(error) / error.size)
    log_freedom = torch.tensor(np.log(freedom))
    assert losses.t_loss(logits, label, valid, log_freedom).item() == pytest.approx(np.mean(values), rel=1e-9)


def test_the_t_loss_of_one_patch_saturates():
    """Twice the squared error of a bad patch costs a constant more, where a squared loss costs twice as much."""
    size, n = 400, torch.zeros(())
    label = torch.zeros(1, size, dtype=torch.long)
    costs = []
    for wrong in (100, 200, 400):
        logits = torch.full((1, 2, size), -20.0)
        logits[:, 0] = 20
        logits[:, 1, :wrong], logits[:, 0, :wrong] = 20, -20
        costs.append(losses.t_loss(logits, label, torch.ones_like(label), n).item())
    assert costs[2] - costs[1] == pytest.approx(costs[1] - costs[0], rel=0.02)
    assert costs[1] - costs[0] == pytest.approx(np.log(2) / 2, rel=0.02)


def test_ignored_voxels_do_not_exist(case):
    logits, label, valid = case
    other = torch.where(valid, label, 250)
    n = torch.zeros((), dtype=torch.float64)
    for loss in (losses.noise_robust_dice, lambda a, b, c: losses.t_loss(a, b, c, n), dice_loss):
        assert torch.equal(loss(logits, label, valid), loss(logits, other, valid))
        assert loss(logits, label, torch.zeros_like(valid)).item() == 0
