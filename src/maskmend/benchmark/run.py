"""The benchmark verb: find what is missing, do it, keep every result at once, and report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmend.benchmark import estimate, grid, settings, store
from maskmend.benchmark.grid import Grid, Trial
from maskmend.benchmark.trial import run_trial
from maskmend.benchmark.workers import Pool, open_pool
from maskmend.data.atomic import write_text
from maskmend.data.owner import sweep
from maskmend.errors import Interrupted, UsageError
from maskmend.progress import bar, clock, message
from maskmend.train.engine import choose_device
from maskmend.train.lock import locked

PLAN, FACTS = "benchmark.yaml", "benchmark.json"


def benchmark(
    config: Path | str | settings.Benchmark,
    out: Path | str,
    *,
    data: Path | str | None = None,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    address: str | None = None,
    reuse: Sequence[Path | str] = (),
) -> dict[str, Any]:
    """Run a benchmark and write its tables and plots; the same call again does only what is missing or failed.

    Args:
        config: a YAML file, a preset ("smoke", "small", "literature"), or a benchmark loaded before.
        out: folder of results. It may hold those of other benchmarks: results are found by what decides them.
        data: folder below which the data sets lie; None: that of the YAML file, the working folder for presets.
        overrides: `key=value` on top of the file, e.g. "seeds=10".
        workers: runs at the same time (Ray); 0: in this process; None: what the machine has room for.
        address: of a running Ray cluster; every node needs maskmend and the data at the same paths.
        reuse: `results.jsonl.gz` of other benchmarks; runs they hold are not done again. Same data, settings and seed
            are the same run, whoever did it: a new method can be set beside a published table without redoing it.

    Returns:
        The summary that is also in `benchmark.json`.

    Raises:
        UsageError: a wrong benchmark, or data that is not there. Interrupted: Ctrl-C; what is finished is kept.
    """
    out = Path(out)
    plan = config if isinstance(config, settings.Benchmark) else settings.load(config, overrides)
    trials = grid.build(plan, _root(config, data))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _claim(out)
        sweep(out, out / store.FOLDER)
        write_text(out / PLAN, settings.dump(plan))
        for packed in reuse:
            message(f"{store.take_over(out, Path(packed))} results taken over from {Path(packed).name}")
        for reason in trials.skipped:
            message(f"left out: {reason}")
        spent = _do_missing(plan, trials, out, workers, address)
        return finish(plan, trials, out, spent)


def finish(plan: settings.Benchmark, trials: Grid, out: Path, spent: Mapping[str, Any]) -> dict[str, Any]:
    """Tables, plots and summary of what is stored; also of a benchmark that was stopped half-way."""
    from maskmend.benchmark.report import write_all

    results = store.load(out, {trial.key for trial in trials.trials})
    summary = write_all(plan, trials, results, out, spent)
    store.pack(out, results)
    write_text(out / FACTS, json.dumps(summary, indent=1) + "\n")
    return summary


def _root(config: Any, data: Path | str | None) -> Path:
    if data is not None:
        folder = Path(data).expanduser()
        if not folder.is_dir():
            raise UsageError("is no folder", folder, "give the folder in which the data sets lie")
        return folder
    is_file = isinstance(config, str | Path) and Path(config).is_file()
    return Path(config).parent if is_file else Path()


def _claim(out: Path) -> None:
    strange = [path.name for path in out.iterdir() if path.name not in ("LOCK", PLAN, FACTS, store.FOLDER)]
    if strange and not (out / PLAN).exists():
        raise UsageError("holds something that is no benchmark", out, "give a new folder")


def _do_missing(
    plan: settings.Benchmark, trials: Grid, out: Path, workers: int | None, address: str | None
) -> dict[str, Any]:
    unique = list({trial.key: trial for trial in trials.trials}.values())
    stored = store.load(out, {trial.key for trial in unique})
    done = {key for key, result in stored.items() if result["status"] == "done"}
    waiting = [trial for trial in unique if trial.key not in done]
    again = sum(trial.key in stored for trial in waiting)
    message(
        f"{len(unique)} runs: {len(done)} done before, {len(waiting)} to do"
        + (f", {again} of them failed before" if again else "")
    )
    if not waiting:
        return {"seconds": 0.0, "runs": 0, "workers": 0}
    if address is None:
        _require_devices(waiting)
    gpu = any(_device(trial).startswith("cuda") for trial in waiting)
    pool = open_pool(workers, address, threads=plan.threads, runs_per_gpu=plan.runs_per_gpu, gpu=gpu)
    try:
        slots = pool.slots
        _announce(pool, waiting, [(trial, stored[trial.key]) for trial in unique if trial.key in done], slots)
        began = time.monotonic()
        finished = _work(pool, waiting, out)
    finally:
        pool.close()
    return {"seconds": round(time.monotonic() - began, 1), "runs": finished, "workers": slots}


def _require_devices(trials: Sequence[Trial]) -> None:
    """Say at once that a GPU is missing; else every run would say it."""
    for device in sorted({_device(trial) for trial in trials}):
        try:
            choose_device(device)
        except UsageError as fault:
            remedy = "settings.device=auto takes what there is; a CPU may need weeks"
            raise UsageError(fault.what, "settings.device", remedy) from None


def _device(trial: Trial) -> str:
    asked = trial.extras["settings"].get("device", "auto")
    return choose_device(asked) if asked == "auto" else str(asked)


def _announce(
    pool: Pool, waiting: Sequence[Trial], done: Sequence[tuple[Trial, Mapping[str, Any]]], slots: int
) -> None:
    from maskmend.benchmark.cost import stored_costs

    known = {trial.data for trial, _ in done}
    firsts = {trial.data: trial for trial in reversed(waiting) if trial.data not in known}
    probes, costs = {}, stored_costs()
    if len(waiting) > slots:  # else the first run itself tells soon enough
        for trial, answer in pool.map(estimate.probe, list(firsts.values())):
            if "seconds" in answer:
                probes[trial.data] = answer["seconds"] / estimate.cost_of(trial, costs)
    left = estimate.seconds_left(waiting, done, probes, costs)
    where = "one run after the other" if slots == 1 else f"on {slots} workers"
    if left is not None:
        message(f"estimated time: {clock(left / slots)} {where}, {clock(left)} of computing")


def _work(pool: Pool, waiting: Sequence[Trial], out: Path) -> int:
    finished = failed = 0
    try:
        with bar("benchmark", len(waiting)) as shown:
            for trial, outcome in pool.map(run_trial, waiting):
                result = {"key": trial.key, **outcome, "recipe": dict(trial.recipe), "place": trial.place}
                store.save(out, result)
                finished += 1
                if outcome["status"] == "failed":
                    failed += 1
                    message(f"failed: {trial.title}: {outcome['error']}")
                    shown.update(1, failed=str(failed))
                else:
                    shown.update(1, dice=float(outcome["dice"] or 0), run=trial.title)
    except (KeyboardInterrupt, Interrupted):
        remedy = "the same command goes on with the rest"
        raise Interrupted(f"stopped; {finished} of {len(waiting)} runs are kept", out, remedy) from None
    return finished
