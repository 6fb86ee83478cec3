"""What a training step costs: PINT's estimators and the posterior beside plain training, in one run.

    python bench/step_cost.py --steps 60 --rounds 3

Methods take turns; the figure is CPU time of the whole loop (sampling, step, averaging, looks at whole cases) per
step on one thread, over that of `supervised` in the same round. Warm-up is off, so that every step pays in full.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from maskmend.config import load
from maskmend.data.cache import Cache
from maskmend.data.dataset import find_cases, infer_labels
from maskmend.data.fingerprint import fingerprint
from maskmend.data.plan import make_plan
from maskmend.progress import quiet
from maskmend.train import engine
from maskmend.train.loop import Job, fit
from maskmend.train.run_folder import build_method

METHODS = {
    "supervised": ["method.name=supervised"],
    "pint, temporal": ["method.name=pint", "method.warmup=0"],
    "pint, exact 8 passes": ["method.name=pint", "method.warmup=0", "method.estimator=exact"],
    "pint_posterior": ["method.name=pint_posterior", "method.warmup=0"],
}


def main() -> None:
    """Print one line per method: CPU seconds per step, and the ratio to supervised by round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="msd_hippocampus_2d")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    root = Path(__file__).parents[1] / os.environ.get("MASKMEND_TEST_DATA", "../shared/data")
    dataset = infer_labels(find_cases(root / given.data))
    cases = dataset.train[: given.cases]
    config = load(None, [f"train.steps={given.steps}"])
    plan = make_plan(dataset, fingerprint(dataset), config)
    cache = Cache.open(cases, plan, None)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(given.rounds + 1):
        for name, settings in METHODS.items():
            seconds[name].append(_time(cache, [f"train.steps={given.steps}", *settings]))
    print(
        f"{given.data}, patch {plan.patch}, batch {plan.batch}, {len(cases)} cases, {given.steps} steps, one thread"
    )
    plain = np.array(seconds["supervised"][1:])
    for name, found in seconds.items():
        ratio = np.array(found[1:]) / plain  # the first round warms up
        per_step = np.median(found[1:]) / given.steps * 1000
        print(
            f"{name:22s} {per_step:8.1f} ms a step   x{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        )


def _time(cache: Cache, settings: list[str]) -> float:
    config = load(None, settings)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), config, cache.plan, cache, partial(build_method, config, cache.plan))
        began = time.process_time()
        engine.launch(fit, job, device="cpu", precision="32", processes=1)
        return time.process_time() - began


if __name__ == "__main__":
    main()
