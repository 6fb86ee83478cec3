"""What must not matter to a verdict: how much empty image lies around, and the unit in which lengths are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maskmend.audit.calibration import Calibration
from maskmend.audit.estimate import fit
from maskmend.audit.evidence import gather
from maskmend.audit.injection import inject
from maskmend.audit.look import LEAST, Look, look_at

FAINT = 0.03


def placed(case: str, label: np.ndarray, probs: np.ndarray, far: bool) -> Look:
    """The case in a larger image of background, in whose corner a model glimpses something or not."""
    wide = [(10, 90)] * label.ndim
    around = np.pad(probs, [(0, 0), *wide], constant_values=0)
    around[0][np.pad(np.zeros(label.shape, bool), wide, constant_values=True)] = 1
    if far:
        around[(slice(None), *[-1] * label.ndim)] = 1 - FAINT, FAINT
    look = look_at(case, around, np.pad(label, wide), (1.0,) * label.ndim)
    assert (look.label.size > 5 * label.size) == far
    return look


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_glimpse_far_away_changes_no_figure(make_world: Callable[..., Any], scale: float) -> None:
    """It makes the box that is looked at larger, in which there is nothing: neither doubts nor anything seen."""
    world = make_world(12, rate=0.5, size=48)
    calibration = Calibration(scale, np.zeros(2, np.float32))
    for case in world.ids:
        near, far = (
            gather(calibration(placed(case, world.given[case], world.probs[case], far)))
            for far in (False, True)
        )
        assert far.doubts == pytest.approx(near.doubts, abs=0.02)
        assert far.surprises == pytest.approx(near.surprises, abs=0.02)
        assert far.signed[:, 0] == pytest.approx(near.signed[:, 0], abs=0.02)  # offset
        assert far.signed[:, 1:3] == pytest.approx(near.signed[:, 1:3], abs=0.05)  # shift
        assert (far.seen_size, far.sureness) == pytest.approx((near.seen_size, near.sureness), abs=0.02)


def test_nothing_stays_nothing_however_unsure_the_model_shall_be(make_world: Callable[..., Any]) -> None:
    world = make_world(1, classes=3)
    look = world.look(world.ids[0])
    nothing = look.probs[1:].max(axis=0) <= LEAST
    assert nothing.any()
    for scale, bias in ((0.4, 0.0), (1.0, 1.0), (2.0, -1.0)):
        found = Calibration(scale, np.array([0, bias, bias], np.float32))(look).probs
        assert (found[1:, nothing] == np.float32(LEAST)).all()
        assert (found[0, nothing] == 1).all()


def test_errors_made_on_purpose_go_by_the_size_of_what_is_drawn(make_world: Callable[..., Any]) -> None:
    """The same draws make the same errors, whatever the unit."""
    world, same = make_world(1, size=48), []
    for seed in range(60):
        masks = []
        for unit in (1.0, 64.0):
            look = replace(world, spacing_mm=(unit, unit)).look(world.ids[0])
            error = inject(look, np.random.default_rng(seed))
            masks.append(np.zeros(1) if error is None else error[0])
        same.append(np.array_equal(*masks))
    assert np.mean(same) > 0.95


def verdicts(world: Any, **how: Any) -> np.ndarray:
    auditor = fit(world.looks, world.ids, **how)
    return np.array([auditor.judge(world.look(case)).flawed for case in world.ids])


@pytest.mark.parametrize("ndim", [2, 3])
def test_verdicts_do_not_depend_on_the_unit_of_lengths(make_world: Callable[..., Any], ndim: int) -> None:
    """Millimetres, micrometres, or pixels where nobody knows how large they are."""
    world = make_world(40, ndim=ndim)
    plain = verdicts(world)
    for unit in (10.0, 100.0):
        other = verdicts(replace(world, spacing_mm=(unit,) * ndim))
        assert ((plain > 0.5) == (other > 0.5)).mean() >= 0.95
        assert np.abs(plain - other).mean() < 0.05
