"""The mixture against scikit-learn's, the target in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.losses import ce_dice
from maskmend.methods.self_cleansing import SelfCleansing, clean_posterior, two_heaps

GaussianMixture = pytest.importorskip("sklearn.mixture").GaussianMixture


def losses(n: int = 3000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0.3, 0.1, n), rng.normal(2.5, 0.8, n // 3)]).clip(0)


def test_the_hard_variant_keeps_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "self_cleansing", pseudo="hard")


def test_mixture_is_scikit_learns():
    x = losses()
    reference = GaussianMixture(2, tol=1e-9, max_iter=500, random_state=0).fit(x[:, None])
    order = reference.means_[:, 0].argsort()
    heaps = two_heaps(torch.tensor(x), torch.ones(len(x)).double()).numpy()
    np.testing.assert_allclose(heaps[:, 0], reference.weights_[order], atol=1e-3)
    np.testing.assert_allclose(heaps[:, 1], reference.means_[order, 0], atol=1e-3)
    np.testing.assert_allclose(heaps[:, 2], np.sqrt(reference.covariances_[order, 0, 0]), atol=1e-3)
    between = np.linspace(heaps[0, 1], heaps[1, 1], 50)
    expected = reference.predict_proba(between[:, None])[:, order[0]]
    found = clean_posterior(
        torch.tensor(between), torch.zeros(50, dtype=torch.long), torch.tensor(heaps[None])
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_weights_count_as_repetitions():
    x = losses(300)
    times = np.random.default_rng(1).integers(1, 4, len(x))
    one = two_heaps(torch.tensor(x), torch.tensor(times).double())
    two = two_heaps(torch.tensor(x.repeat(times)), torch.ones(times.sum()).double())
    torch.testing.assert_close(one, two)


def test_the_posterior_never_rises_with_the_loss():
    heaps = torch.tensor([[[0.7, 0.5, 0.05], [0.3, 2.0, 1.5]]])
    x = torch.linspace(0, 8, 200)
    clean = clean_posterior(x, torch.zeros(200, dtype=torch.long), heaps)
    assert (clean.diff() <= 1e-6).all()
    assert clean[0] > 0.9
    assert clean[-1] < 0.01


def test_a_class_without_voxels_is_believed():
    heaps = two_heaps(torch.zeros(0), torch.zeros(0))
    assert clean_posterior(torch.tensor([0.5]), torch.tensor([0]), heaps[None]).item() == pytest.approx(
        1, abs=1e-6
    )


@pytest.mark.parametrize("pseudo", ["soft", "hard"])
def test_the_target_mixes_label_and_teacher_by_the_posterior(pseudo):
    torch.manual_seed(0)
    method, batch = SelfCleansing(toy_network, pseudo=pseudo), toy_batch(memory=True)
    method.heaps = torch.tensor([[[0.7, 0.1, 0.1], [0.3, 2.0, 0.5]]] * 3) + torch.rand(3, 2, 1) * 0.01
    batch["trusted"][0] = True
    method.eval()
    with torch.no_grad():
        logits = method.student(batch["image"])
        found = method.training_step(batch, 1.0).loss.item()
    bar = batch["memory"].double().numpy()
    given = np.moveaxis(np.eye(3)[batch["label"].numpy()], -1, 1)
    loss = -np.log((bar * given).sum(1))
    h = method.heaps.double().numpy()[batch["label"].numpy()]
    x = loss.clip(h[..., 0, 1], h[..., 1, 1])[..., None]
    density = h[..., 0] / h[..., 2] * np.exp(-0.5 * ((x - h[..., 1]) / h[..., 2]) ** 2)
    w = (density[..., 0] / density.sum(-1))[:, None]
    w[0] = 1
    hat = bar if pseudo == "soft" else np.moveaxis(np.eye(3)[bar.argmax(1)], -1, 1)
    target = torch.tensor(w * given + (1 - w) * hat).float()
    assert found == pytest.approx(ce_dice(logits, target, batch["valid"]).item(), rel=1e-5)


def test_wrong_labels_of_a_sure_teacher_are_found():
    torch.manual_seed(0)
    method = SelfCleansing(toy_network)
    method.begin(6)
    truth = torch.zeros(20, 20, dtype=torch.long)
    truth[5:15, 5:15] = 1
    probs = torch.stack([1 - truth * 0.94 - 0.03, truth * 0.94 + 0.03]) + 0.02 * torch.rand(1, 20, 20)
    probs = probs / probs.sum(0)
    label = truth.clone()
    label[5:15, 12:15] = 0
    for i in range(6):
        method.revise(i, probs, label, torch.ones(20, 20, dtype=torch.bool), None, 0.5, probs[:1])
    method.after_revision(0.5)
    noise = method.noise(probs[None], label[None])[0]
    assert noise[label != truth].min() > 0.9
    assert noise[label == truth].max() < 0.1
