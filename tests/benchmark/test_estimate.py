"""Estimated time, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskmend.benchmark import estimate

COSTS = {"supervised": 1.0, "pint": 2.0}


def done(trial, seconds: float, status: str = "done"):
    return trial, {"status": status, "total_seconds": seconds}


@pytest.fixture
def trials(trials_of):
    """On true masks supervised; on flawed ones supervised, pint, sgl."""
    return trials_of(methods=["supervised", "pint", "sgl"]).trials


def test_runs_of_the_same_kind_tell_the_time(trials) -> None:
    finished = [done(trials[1], 10), done(trials[1], 14), done(trials[1], 99), done(trials[2], 50)]
    assert estimate.seconds_left([trials[1], trials[2]], finished, {}, COSTS) == 14 + 50


def test_other_methods_are_scaled_by_their_cost(trials) -> None:
    finished = [done(trials[2], 20)]  # pint: so supervised takes 10
    unknown = estimate.UNKNOWN_COST * 10
    assert estimate.seconds_left([trials[1], trials[3]], finished, {}, COSTS) == 10 + unknown


def test_a_probe_stands_for_the_baseline(trials) -> None:
    assert estimate.seconds_left([trials[1], trials[2]], [], {"toy": 7.0}, COSTS) == 7 + 14


def test_failed_runs_say_nothing(trials) -> None:
    assert estimate.seconds_left([trials[1]], [done(trials[1], 1, "failed")], {}, COSTS) is None


def test_a_probe_of_a_few_steps(trials, monkeypatch) -> None:
    short = estimate.probe(trials[2])["seconds"]
    settings = dict(trials[2].recipe["settings"]) | {"train.steps": 6000}
    long = estimate.probe(replace(trials[2], recipe=dict(trials[2].recipe) | {"settings": settings}))[
        "seconds"
    ]
    assert 0 < short < 20
    assert long > 20 * short


def test_a_probe_that_fails_is_no_fault(trials, tmp_path) -> None:
    (tmp_path / "mine.py").write_text("raise ValueError")
    extras = dict(trials[2].extras) | {"method": str(tmp_path / "mine.py")}
    assert estimate.probe(replace(trials[2], extras=extras)) == {}
