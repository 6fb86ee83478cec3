"""Joint and flags against cleanlab on the same voxels; the halves really are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network

from maskmend.errors import UsageError
from maskmend.methods import confident_learning as cl
from maskmend.methods.confident_learning import ConfidentLearning

count = pytest.importorskip("cleanlab.count")
find_label_issues = pytest.importorskip("cleanlab.filter").find_label_issues


def noisy_probs(classes: int, n: int = 4000, seed: int = 0, skill: float = 2.5):
    """A fair classifier's probabilities, and labels of which a fifth moved to the next class."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, n, p=np.linspace(2, 1, classes) / np.linspace(2, 1, classes).sum())
    logits = rng.normal(size=(n, classes)) + skill * np.eye(classes)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = rng.random(n) < 0.2
    return probs, np.where(wrong, (truth + 1) % classes, truth), wrong


@pytest.mark.parametrize("skill", [2.5, 0.5], ids=["skilled", "often confident of several"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_joint_is_cleanlabs(classes, skill):
    probs, label, _ = noisy_probs(classes, skill=skill)
    expected = count.compute_confident_joint(label, probs, calibrate=False)
    expected = expected * (np.bincount(label) / expected.sum(1))[:, None]  # cleanlab rounds to whole voxels
    found = cl.confident_joint(torch.tensor(probs), torch.tensor(label), torch.ones(len(label)).double())
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.abs(found.numpy() - count.compute_confident_joint(label, probs)).max() <= 1


def test_a_weight_counts_as_that_many_voxels():
    probs, label, _ = noisy_probs(3, 300)
    times = np.random.default_rng(1).integers(1, 4, 300)
    repeated = count.compute_confident_joint(label.repeat(times), probs.repeat(times, 0))
    found = cl.confident_joint(torch.tensor(probs), torch.tensor(label), torch.tensor(times).double())
    assert np.abs(found.numpy() - repeated).max() <= 1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("class", "prune_by_class"), ("noise_rate", "prune_by_noise_rate"), ("both", "both")]
)
def test_flags_are_cleanlabs(classes, ours, theirs):
    probs, label, wrong = noisy_probs(classes)
    expected = find_label_issues(label, probs, filter_by=theirs, n_jobs=1)
    weight = torch.ones(len(label)).double()
    limits = cl.fit_limits(torch.tensor(probs), torch.tensor(label), weight)
    found = limits.flagged(torch.tensor(probs), torch.tensor(label), ours).numpy()
    found &= probs.argmax(1) != label  # cleanlab keeps labels that the network agrees with
    assert (found != expected).sum() <= 2 * classes  # it rounds counts to whole voxels
    assert found.sum() > 300
    assert wrong[found].mean() > 0.6


def test_a_class_that_nothing_is_labelled_as_is_passed_over():
    probs, label, _ = noisy_probs(3)
    limits = cl.fit_limits(torch.tensor(probs), torch.tensor(label % 2), torch.ones(len(label)).double())
    assert torch.isfinite(limits.lowest).all()
    assert limits.lowest[2] == -1


def test_softening_keeps_a_distribution():
    target = cl.one_hot(torch.tensor([[0, 1, 2]]), 3)
    soft = cl.softened(target, torch.tensor([[True, False, True]]), 0.6)
    np.testing.assert_allclose(soft[0, :, 0], [0.6, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(soft[0, :, 1], [0, 1, 0])


def test_the_sample_stands_for_the_case():
    torch.manual_seed(0)
    probs, label = torch.rand(3, 40, 50).softmax(0), torch.randint(0, 2, (40, 50))
    valid = torch.rand(40, 50) < 0.7
    rows = cl.sample_by_class(probs, label, valid)
    for number in (0, 1):
        mine = rows[:, 3] == number if number else (rows[:, 3] == 0) & (rows[:, 4] > 0)
        assert rows[mine, 4].sum().item() == pytest.approx((valid & (label == number)).sum().item())
        mean = probs[:, valid & (label == number)].mean(1)
        torch.testing.assert_close(rows[mine, :3].mean(0), mean, atol=0.03, rtol=0)
    assert (rows[rows[:, 3] == 2, 4] == 0).all()


def test_nobody_judges_a_label_he_was_taught():
    torch.manual_seed(0)
    method, batch = ConfidentLearning(toy_network), toy_batch()
    method.zero_grad()
    batch["index"] = torch.tensor([0, 2, 4, 6])  # fold 0 only: judge 0 must learn nothing from them
    method.training_step(batch, 0.0).loss.backward()
    assert all(p.grad.abs().sum() == 0 for p in method.judges[0].parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.judges[1].parameters())
    method.eval()
    index = torch.tensor([3, 0, 1, 6])
    looks = method.observe_case(batch["image"], index)
    for place, number in enumerate(index):
        judge = method.averages[number % 2]
        expected = judge(batch["image"][place : place + 1]).softmax(1)[0]
        torch.testing.assert_close(looks[place], expected)


def test_flagged_labels_of_untrusted_cases_are_softened():
    torch.manual_seed(0)
    method, batch = ConfidentLearning(toy_network), toy_batch(memory=True)
    method.begin(4)
    for i in range(4):
        method.revise(
            i, batch["memory"][i], batch["label"][i], batch["valid"][i], None, 0.5, batch["image"][i]
        )
    method.after_revision(0.5)
    assert 0.05 < method.training_step(batch, 0.5).logs["flagged"] < 0.95
    batch["trusted"][:] = True
    assert method.training_step(batch, 0.5).logs["flagged"] == 0


def test_settings_out_of_range_are_named():
    for bad in ({"folds": 1}, {"prune": "none"}, {"smoothing": 2}, {"start": 1}):
        with pytest.raises(UsageError, match=f"method.{next(iter(bad))}"):
            ConfidentLearning(toy_network, **bad)
