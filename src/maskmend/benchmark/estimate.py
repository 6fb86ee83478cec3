"""How long a benchmark will take, from runs done before, or from a few steps of the baseline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from maskmend.benchmark.grid import Trial
from maskmend.data.owner import scratch
from maskmend.progress import quiet

PROBE_STEPS = 8
UNKNOWN_COST = 1.5  # of a method whose cost nobody has measured, relative to `supervised`


def seconds_left(
    waiting: Sequence[Trial],
    done: Iterable[tuple[Trial, Mapping[str, Any]]],
    probes: Mapping[str, float],
    costs: Mapping[str, float],
) -> float | None:
    """Computing time of the runs still to do, in seconds of one worker; None when nothing is known.

    Args:
        waiting: runs to do.
        done: finished runs with their results.
        probes: seconds of a whole baseline run by data set, from `probe`.
        costs: cost of a method relative to `supervised`.
    """
    exact: dict[tuple[str, str], list[float]] = {}
    by_data: dict[str, list[float]] = {name: [seconds] for name, seconds in probes.items()}
    for trial, result in done:
        if result["status"] == "done":
            seconds = float(result["total_seconds"])
            exact.setdefault((trial.data, trial.method), []).append(seconds)
            by_data.setdefault(trial.data, []).append(seconds / cost_of(trial, costs))
    total = 0.0
    for trial in waiting:
        if known := exact.get((trial.data, trial.method)):
            total += median(known)
        elif plain := by_data.get(trial.data):
            total += median(plain) * cost_of(trial, costs)
        else:
            return None
    return total


def cost_of(trial: Trial, costs: Mapping[str, float]) -> float:
    """What the run's method costs relative to `supervised`."""
    return costs.get(str(trial.extras["method"]), UNKNOWN_COST)


def probe(trial: Trial) -> dict[str, Any]:
    """Seconds that a whole run will take, from a very short one; {} when that fails (the run will say why)."""
    from maskmend.benchmark.cases import prepare_cases
    from maskmend.benchmark.settings import extra_needs
    from maskmend.benchmark.trial import configured
    from maskmend.train.run import train

    began, ticks = time.perf_counter(), []
    quiet()
    try:
        torch.set_num_threads(trial.extras["threads"])
        with scratch() as folder:
            config = configured(trial, PROBE_STEPS)
            several = "raters" in extra_needs(config.method.name)
            given = prepare_cases(trial, folder / "labels", raters=several)
            train(
                given.dataset, folder / "run", config, command=[],
                watch=lambda method, plan, step: ticks.append(time.perf_counter()),
            )  # fmt: skip
    except Exception:
        return {}
    finally:
        quiet(False)
    a_step = median(after - before for before, after in pairwise(ticks))
    around = time.perf_counter() - began - (ticks[-1] - ticks[0])
    return {"seconds": around + a_step * configured(trial).train.steps}
