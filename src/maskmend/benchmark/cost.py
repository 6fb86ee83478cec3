"""What a method costs beside plain training, measured; `maskmend methods` shows it."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from maskmend.errors import UserError
from maskmend.progress import message, quiet

STORED = "cost.json"  # beside the methods
BASE = "supervised"
CASES, SIDE, BATCH = 16, 48, 4


def stored_costs() -> dict[str, float]:
    """Cost of a step relative to `supervised` by method, as last measured by us."""
    return dict(stored()["costs"])


def stored() -> dict[str, Any]:
    """The stored measurement: "costs", and how and where they were measured."""
    found: dict[str, Any] = json.loads((files("maskmend.methods") / STORED).read_text())
    return found


def measure(names: Sequence[str], *, steps: int = 24, rounds: int = 2) -> dict[str, Any]:
    """Time whole trainings on synthetic images, methods in turns, one thread.

    A training includes sampling, steps, averaging and looks at whole cases, with each method's own warm-up: the mean
    cost of a step over a run. What a method computes once before training counts in full, so a method of that kind
    looks dearer here than in a long run.

    Args:
        names: methods; `supervised` is measured with them.
        steps: of each training.
        rounds: repetitions; the median counts.

    Returns:
        As `stored`; a method that fails is left out, with a message.
    """
    import numpy as np
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in dict.fromkeys([BASE, *names])}
    try:
        with tempfile.TemporaryDirectory() as folder:
            cache = _cache(Path(folder))
            for _ in range(rounds + 1):  # the first round warms up
                for name in list(seconds):
                    try:
                        seconds[name].append(_time(cache, name, steps))
                    except UserError as fault:
                        message(f"{name} cannot be measured: {fault}")
                        del seconds[name]
    finally:
        torch.set_num_threads(threads)
    plain = np.array(seconds[BASE][1:])
    costs = {name: round(float(np.median(np.array(one[1:]) / plain)), 2) for name, one in seconds.items()}
    return {"costs": costs, "source": _source(steps, rounds, torch.__version__)}


def _source(steps: int, rounds: int, torch_version: str) -> str:
    return (
        f"maskmend methods --measure: CPU time of {steps} steps, median of {rounds}; {CASES} phantoms of "
        f"{SIDE} x {SIDE}, batch {BATCH}, unet; torch {torch_version}, {platform.machine()}, one thread"
    )


def _cache(folder: Path) -> Any:
    from maskmend.config import load
    from maskmend.data.cache import Cache
    from maskmend.data.dataset import find_cases
    from maskmend.data.fingerprint import fingerprint
    from maskmend.data.phantom import make_phantom
    from maskmend.data.plan import make_plan

    dataset = find_cases(make_phantom(folder, train=CASES, test=0, shape=(SIDE, SIDE)))
    plan = make_plan(dataset, fingerprint(dataset), load(None, [f"train.batch={BATCH}", "device=cpu"]))
    return Cache.open(dataset.train, plan, None)


def _time(cache: Any, name: str, steps: int) -> float:
    from maskmend.config import load
    from maskmend.train import engine
    from maskmend.train.loop import Job, fit
    from maskmend.train.run import build_method

    config = load(None, [f"method.name={name}", f"train.steps={steps}", f"train.checkpoint_every={steps}"])
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), config, cache.plan, cache, partial(build_method, config, cache.plan))
        quiet()
        try:
            began = time.process_time()
            engine.launch(fit, job, device="cpu", precision="32", processes=1)
            return time.process_time() - began
        finally:
            quiet(False)
