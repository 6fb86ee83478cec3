"""The memorised share, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskmend.benchmark.cases import prepare_cases
from maskmend.benchmark.curve import Curve
from maskmend.benchmark.trial import configured
from maskmend.data.fingerprint import fingerprint
from maskmend.data.plan import make_plan
from maskmend.methods.base import Method


class Constant(Method):
    """Says class `answer` everywhere, and draws a random number to see whether someone notices."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.modes: list[bool] = []

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        torch.rand(1)
        probs = torch.zeros(image.shape[0], 3, *image.shape[2:])
        probs[:, self.answer] = 1
        return probs


@pytest.fixture
def given_and_plan(folder, trials_of, tmp_path):
    trial = trials_of(data={"toy": {"path": str(folder), "train": 8, "test": 4}}).trials[-1]
    given = prepare_cases(trial, tmp_path / "labels")
    return given, make_plan(given.dataset, fingerprint(given.dataset), configured(trial))


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_share_of_wrong_voxels_that_are_repeated(given_and_plan, answer: int) -> None:
    given, plan = given_and_plan
    curve = Curve(given, steps=10, points=2, cases=32, device="cpu")
    curve.watch(Constant(answer), plan, 5)
    wrong = repeated = 0
    for name, truth in given.truth.items():
        where = given.given[name] != truth
        wrong += where.sum()
        repeated += (where & (given.given[name] == answer)).sum()
    assert wrong > 50
    (step, dice, memorised) = curve.points[0]
    assert step == 5
    assert memorised == pytest.approx(repeated / wrong, abs=1e-4)
    # A constant answer overlaps with its own class only; the other class scores 0.
    truths = [np.asarray(c) for c in (_label(case) for case in given.test)]
    own = [2 * (t == answer).sum() / ((t == answer).sum() + t.size) for t in truths] if answer else [0]
    assert dice == pytest.approx(np.mean(own) / 2, abs=1e-4)


def _label(case):
    from PIL import Image

    return Image.open(case.label)


def test_looks_at_even_steps_only(given_and_plan) -> None:
    given, plan = given_and_plan
    curve = Curve(given, steps=10, points=4, cases=2, device="cpu")
    for step in range(1, 11):
        curve.watch(Constant(0), plan, step)
    assert [point[0] for point in curve.points] == [2, 5, 8, 10]
    assert Curve(given, steps=10, points=0, cases=2, device="cpu").steps == set()
    assert Curve(given, steps=2, points=10, cases=2, device="cpu").steps == {1, 2}


def test_training_does_not_notice(given_and_plan) -> None:
    given, plan = given_and_plan
    method = Constant(1).train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    curve = Curve(given, steps=1, points=1, cases=4, device="cpu")
    curve.watch(method, plan, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert method.training
    assert set(method.modes) == {False}
    assert curve.seconds > 0


def test_nothing_is_memorised_where_nothing_is_wrong(folder, trials_of, tmp_path) -> None:
    trial = trials_of(data={"toy": {"path": str(folder), "train": 8, "test": 4}}).trials[0]
    given = prepare_cases(trial, tmp_path / "labels")
    plan = make_plan(given.dataset, fingerprint(given.dataset), configured(trial))
    curve = Curve(given, steps=1, points=1, cases=4, device="cpu")
    curve.watch(Constant(1), plan, 1)
    assert curve.points[0][2] is None
