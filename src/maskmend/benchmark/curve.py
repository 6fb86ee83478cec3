"""What a method does along training: test Dice, and how many of the wrong labels it has learnt by heart.

A diagnostic only: nothing is selected with it, and training does not notice it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from maskmend.benchmark.cases import Given, prepare_all
from maskmend.data.case import Case
from maskmend.data.plan import Plan
from maskmend.data.preprocess import Prepared
from maskmend.methods.base import Method
from maskmend.predict.sliding import predict_many


class Curve:
    """Watches a training run at evenly spaced steps.

    `points` holds [step, test Dice, memorised share]; the last is the share of wrongly labelled voxels of training
    cases where the prediction repeats the wrong label, None when no label is wrong.

    Args:
        given: what the run was given.
        steps: of the run.
        points: how often to look; 0: never.
        cases: of each kind, to bound the cost.
        device: where the method is.
    """

    def __init__(self, given: Given, steps: int, points: int, cases: int, device: str) -> None:
        self.given, self.device = given, device
        self.steps = {round(steps * (n + 1) / points) for n in range(points)} - {0}
        self.test = _spread(given.test, cases)
        self.flawed = _spread([case for case in given.dataset.cases if given.flawed[case.id]], cases)
        self.points: list[list[float | None]] = []
        self.seconds = self.cpu_seconds = 0.0
        self._ready: tuple[list[Prepared], list[tuple[Prepared, np.ndarray]]] | None = None

    def watch(self, method: Method, plan: Plan, step: int) -> None:
        """Called after every step; looks at the chosen ones and leaves the method as it found it."""
        if step not in self.steps:
            return
        began, cpu = time.perf_counter(), time.process_time()
        was_training, state = method.training, torch.get_rng_state()
        method.eval()
        self.points.append([step, *self._look(method, plan)])
        method.train(was_training)
        torch.set_rng_state(state)
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu

    def _look(self, method: Method, plan: Plan) -> tuple[float | None, float | None]:
        self._ready = self._ready or self._prepared(plan)
        test, flawed = self._ready
        dice = [_dice(answer, one.label, plan) for one, answer in self._answers(method, plan, test)]
        repeated = wrong = 0
        answers = self._answers(method, plan, [one for one, _ in flawed])
        for (one, truth), (_, answer) in zip(flawed, answers, strict=True):
            assert one.label is not None
            where = one.label != truth
            wrong += int(where.sum())
            repeated += int((answer == one.label)[where].sum())
        known = [value for value in dice if value is not None]
        return (
            round(float(np.mean(known)), 4) if known else None,
            round(repeated / wrong, 4) if wrong else None,
        )

    def _prepared(self, plan: Plan) -> tuple[list[Prepared], list[tuple[Prepared, np.ndarray]]]:
        dataset = self.given.dataset
        given = prepare_all(self.flawed, dataset, plan, self.given.given)
        truth = prepare_all(self.flawed, dataset, plan, self.given.truth)
        pairs = [(one, np.asarray(true.label)) for one, true in zip(given, truth, strict=True)]
        return prepare_all(self.test, dataset, plan), pairs

    def _answers(
        self, method: Method, plan: Plan, ready: Sequence[Prepared]
    ) -> Iterator[tuple[Prepared, np.ndarray]]:
        maps = predict_many(
            method.predict, (one.image for one in ready), patch=plan.patch, classes=plan.num_classes,
            overlap=0.25, batch=16 if plan.ndim == 2 else 2, device=self.device,
        )  # fmt: skip
        for one, probs in zip(ready, maps, strict=True):
            yield one, probs.argmax(0).numpy()


def _spread(cases: Sequence[Case], most: int) -> list[Case]:
    """At most so many cases, evenly along the list: ids are often sorted by date, site or age."""
    places = np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int)
    return [cases[place] for place in places]


def _dice(answer: np.ndarray, label: np.ndarray | None, plan: Plan) -> float | None:
    assert label is not None
    found = []
    for value in range(1, plan.num_classes):
        a, b = answer == value, label == value
        if total := int(a.sum() + b.sum()):
            found.append(2 * int((a & b).sum()) / total)
    return float(np.mean(found)) if found else None
