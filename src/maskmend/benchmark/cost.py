"""What a method costs beside plain training, measured; `maskmend methods` shows it."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from maskmend.progress import message, quiet

STORED = "cost.json"  # beside the methods
BASE = "supervised"
CASES, TRUSTED, SIDE, BATCH = 16, 4, 48, 4
RATERS = {"wide": "dilate", "tight": "erode", "loose": "mixed"}
"""Who drew the masks for methods that learn from several raters, and how they flaw them."""


def stored_costs() -> dict[str, float]:
    """Cost of a step relative to `supervised` by method, as last measured by us."""
    return dict(stored()["costs"])


def stored() -> dict[str, Any]:
    """The stored measurement: "costs", and how and where they were measured."""
    found: dict[str, Any] = json.loads((files("maskmend.methods") / STORED).read_text())
    return found


def measure(names: Sequence[str], *, steps: int = 24, rounds: int = 3) -> dict[str, Any]:
    """Time whole trainings on synthetic images, methods in turns, one thread.

    A training includes sampling, steps, averaging and looks at whole cases, with each method's own warm-up: the mean
    cost of a step over a run. What a method computes once, or once per pass over the cases, counts in full, so a
    method of that kind looks dearer here than in a long run. Methods that need several raters or trusted cases get
    them; joining the raters' masks before training does not count.

    Args:
        names: methods, also files of the user's own; `supervised` is measured with them.
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
            open_cache = _data(Path(folder))
            for _ in range(rounds + 1):  # the first round warms up
                for name in list(seconds):
                    try:
                        seconds[name].append(_time(open_cache(name), name, steps))
                    except Exception as fault:  # whatever a method does, the others are measured
                        message(f"{name} cannot be measured: {fault}")
                        del seconds[name]
    finally:
        torch.set_num_threads(threads)
    plain = np.array(seconds[BASE][1:])
    costs = {name: round(float(np.median(np.array(one[1:]) / plain)), 2) for name, one in seconds.items()}
    return {"costs": costs, "source": _source(steps, rounds, torch.__version__)}


def _source(steps: int, rounds: int, torch_version: str) -> str:
    return (
        f"maskmend methods --measure: CPU time of {steps} steps, methods in turns, median of {rounds} rounds; {CASES} "
        f"phantoms of {SIDE} x {SIDE}, batch {BATCH}, unet; torch {torch_version}, {platform.machine()}, one thread"
    )


def _data(folder: Path) -> Callable[[str], Any]:
    """Synthetic images; the answer opens them with what a method needs: trusted cases, several raters."""
    from maskmend import methods
    from maskmend.config import load
    from maskmend.data.cache import Cache
    from maskmend.data.dataset import find_cases
    from maskmend.data.fingerprint import fingerprint
    from maskmend.data.phantom import make_phantom
    from maskmend.data.plan import make_plan
    from maskmend.data.raters import Raters
    from maskmend.train.run_folder import build_method

    _draw_raters(make_phantom(folder, train=CASES, test=0, shape=(SIDE, SIDE)))
    dataset = find_cases(folder)
    plan = make_plan(dataset, fingerprint(dataset), load(None, [f"train.batch={BATCH}", "device=cpu"]))

    @cache
    def opened(name: str) -> Any:
        needs = methods.load(name).needs
        trusted = TRUSTED if "trusted" in needs else 0
        cases = [replace(case, trusted=i < trusted) for i, case in enumerate(dataset.train)]
        if "raters" not in needs:
            return Cache.open(cases, plan, None)
        fuse = build_method(load(None, [f"method.name={name}"]), plan).fuse
        return Cache.open(cases, plan, None, raters=Raters(tuple(sorted(RATERS)), fuse, name))

    return opened


def _draw_raters(folder: Path) -> None:
    """The masks of `RATERS` beside the true ones."""
    from maskmend.data.images import read_label, write_label
    from maskmend.noise.presets import corrupt_labels

    read = {path.name: read_label(path) for path in sorted((folder / "labels").iterdir())}
    for rater, kind in RATERS.items():
        drawn, _ = corrupt_labels({name: label for name, (label, _) in read.items()}, 1.0, kind, (1.0, 2.0))
        for name, label in drawn.items():
            write_label(folder / f"labels_{rater}" / name, label, read[name][1])


def _time(data: Any, name: str, steps: int) -> float:
    from maskmend.config import load
    from maskmend.train import engine
    from maskmend.train.loop import Job, fit
    from maskmend.train.run_folder import build_method

    config = load(None, [f"method.name={name}", f"train.steps={steps}", f"train.checkpoint_every={steps}"])
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), config, data.plan, data, partial(build_method, config, data.plan))
        quiet()
        try:
            began = time.process_time()
            engine.launch(fit, job, device="cpu", precision="32", processes=1)
            return time.process_time() - began
        finally:
            quiet(False)
