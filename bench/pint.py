"""Evidence for PINT: supervised, PINT, PINT with each part removed, and the posterior, over data, noise and seeds.

    python bench/pint.py run --workers 2        # resumes: runs that are in the table are not repeated
    python bench/pint.py report

Every run trains from scratch on the same cases, steps and network; only the method's settings differ. The
seed decides the split, the noise, the initial weights and the order of patches. Scores are the mean Dice of the
foreground classes on test cases with true labels, from the averaged weights of the last step: nothing is
selected.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "pint"
TABLE = Path(os.environ.get("PINT_TABLE", RESULTS / "runs.csv"))
FIELDS = [
    "key", "data", "noise", "rate", "method", "seed", "dice", "label_dice", "image_auroc", "seconds", "steps",
    "machine",
]  # fmt: skip


@dataclass(frozen=True)
class Data:
    """One data set and how it is trained on a laptop."""

    folder: str
    train: int
    test: int
    overrides: tuple[str, ...]
    noise: dict[str, tuple[str, tuple[float, float]]]


DATA = {
    "hippocampus-2d": Data(
        "msd_hippocampus_2d", 200, 60, ("train.steps=400", "train.batch=16", "train.lr=0.01"),
        {"dilate": ("dilate", (2, 3)), "erode": ("erode", (1, 2)), "mixed": ("mixed", (1, 3))},
    ),
    "hc18": Data(
        "hc18_fetal_head_2d", 200, 150,
        ("train.steps=500", "train.batch=8", "train.lr=0.01", "data.target_spacing_mm=[4,4]"),
        {"dilate": ("dilate", (12, 24)), "erode": ("erode", (12, 24)), "mixed": ("mixed", (12, 28))},
    ),
    "hippocampus-3d": Data(
        "msd_hippocampus_3d", 100, 60, ("train.steps=250", "train.batch=2", "train.lr=0.005"),
        {"dilate": ("dilate", (1.5, 2.5)), "erode": ("erode", (1, 1.5)), "mixed": ("mixed", (1, 2.5))},
    ),
}  # fmt: skip
METHODS: dict[str, tuple[str, ...]] = {
    "supervised": ("method.name=supervised",),
    "pint": ("method.name=pint",),
    "pint, exact 8 passes": ("method.name=pint", "method.estimator=exact"),
    "pint without pixel noise": ("method.name=pint", "method.pixel_noise=false"),
    "pint without original labels": ("method.name=pint", "method.original=false"),
    "pint without pseudo labels": ("method.name=pint", "method.pseudo=none"),
    "pint without image level": ("method.name=pint", "method.image_level=false"),
    "pint_posterior": ("method.name=pint_posterior",),
    "posterior without image level": ("method.name=pint_posterior", "method.image_level=false"),
    "posterior with pixel level": ("method.name=pint_posterior", "method.pixel_level=true"),
    "posterior without image evidence": ("method.name=pint_posterior", "method.appearance=false"),
    "posterior without calibration": ("method.name=pint_posterior", "method.calibrate=false"),
}
MAIN = ("supervised", "pint", "pint_posterior")
SEEDS = range(10, 15)  # untouched: methods are designed on other seeds


@dataclass(frozen=True)
class Spec:
    """One run."""

    data: str
    noise: str
    rate: float
    method: str
    seed: int
    extra: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """Every key=value of the run."""
        return (*DATA[self.data].overrides, *METHODS.get(self.method, ()), *self.extra)

    @property
    def key(self) -> str:
        """Stands for everything that decides the outcome."""
        data = DATA[self.data]
        noise = data.noise.get(self.noise)
        what = [self.data, data.folder, data.train, data.test, noise, self.rate, self.seed, self.settings]
        return hashlib.blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()


def grid(seeds: Sequence[int] = SEEDS) -> list[Spec]:
    """All runs, the most telling first."""
    specs: list[Spec] = []
    noises = ("dilate", "erode", "mixed")
    ablations = [m for m in METHODS if m not in MAIN]

    def main_runs(
        data: str, seeds: Sequence[int], kinds: tuple[str, ...] = noises, rate: float = 0.5
    ) -> None:
        for seed in seeds:
            specs.extend(
                Spec(data, noise, rate if noise != "clean" else 0.0, m, seed) for noise in kinds for m in MAIN
            )

    main_runs("hippocampus-2d", seeds, ("clean", *noises))
    main_runs("hc18", seeds, ("clean", *noises))
    main_runs("hippocampus-2d", seeds, noises, 0.75)
    main_runs("hippocampus-2d", seeds, noises, 0.25)
    for seed in seeds:
        specs += [Spec("hippocampus-2d", n, 0.5, m, seed) for n in ("dilate", "mixed") for m in ablations]
    main_runs("hippocampus-3d", seeds[:3], ("clean", *noises))
    main_runs("hc18", seeds, noises, 0.25)
    main_runs("hc18", seeds, noises, 0.75)
    return specs


def run(spec: Spec, data_root: Path) -> dict[str, Any]:
    """Train once and score on true labels."""
    import torch

    import maskmend.train.run as training
    from maskmend.config import load
    from maskmend.data.dataset import find_cases
    from maskmend.progress import quiet

    torch.set_num_threads(1)
    quiet()
    data = DATA[spec.data]
    dataset = find_cases(data_root / data.folder)
    order = np.random.default_rng(1000 + spec.seed).permutation(len(dataset.cases))
    train = [dataset.cases[i] for i in sorted(order[: data.train])]
    test = [dataset.cases[i] for i in sorted(order[len(order) - data.test :])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flawed, truth, given = _flaw(train, spec, folder / "labels")
        config = load(None, [f"train.seed={spec.seed}", "train.picture_every=1000000", *spec.settings])
        config.data.cache = Path(tempfile.gettempdir()) / "maskmend-bench-cache"
        began = time.perf_counter()
        source = replace(dataset, cases=tuple(replace(c, split="train") for c in flawed))
        trained = training.train(source, folder / "run", config)
        seconds = time.perf_counter() - began
        return {
            "key": spec.key, "data": spec.data, "noise": spec.noise, "rate": spec.rate, "method": spec.method,
            "seed": spec.seed, "dice": round(_score(trained, test), 5),
            "label_dice": round(_label_dice(truth, given), 4),
            "image_auroc": _auroc(trained, flawed, truth, given), "seconds": round(seconds, 1),
            "steps": config.train.steps, "machine": f"{platform.machine()}, 1 of {os.cpu_count()} cores",
        }  # fmt: skip


def _flaw(cases: list[Any], spec: Spec, folder: Path) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    from maskmend.data.images import label_suffix, read_label, write_label
    from maskmend.noise.presets import corrupt_labels

    read = {case.id: read_label(case.label) for case in cases}
    truth = {name: label for name, (label, _) in read.items()}
    if spec.noise == "clean":
        return cases, truth, truth
    kind, radius = DATA[spec.data].noise[spec.noise]
    spacing = {name: geometry.spacing_mm for name, (_, geometry) in read.items()}
    given, _ = corrupt_labels(truth, spec.rate, kind, radius, spec.seed, spacing_mm=spacing)
    flawed = []
    for case in cases:
        path = folder / f"{case.id}{label_suffix(case.label)}"
        write_label(path, given[case.id], read[case.id][1])
        flawed.append(replace(case, label=path))
    return flawed, truth, given


def _predictions(trained: Any, cases: list[Any]) -> Any:
    import torch

    from maskmend.data.images import read_image
    from maskmend.data.preprocess import prepare
    from maskmend.predict.sliding import predict_many

    method, plan = trained.method(), trained.plan
    with torch.no_grad():
        read = [read_image(case.images, channels=plan.in_channels) for case in cases]
        ready = [prepare(image, None, geometry, plan) for image, geometry in read]
        maps = predict_many(
            method.predict,
            (r.image for r in ready),
            patch=plan.patch,
            classes=plan.num_classes,
            overlap=0.5,
            batch=16,
        )
        for one, probs in zip(ready, maps, strict=True):
            yield one.inverse.restore(probs.numpy())


def _score(trained: Any, test: list[Any]) -> float:
    from maskmend.data.images import read_label

    values = trained.plan.values
    scores = []
    for case, probs in zip(test, _predictions(trained, test), strict=True):
        label, answer = read_label(case.label)[0], np.array(values)[probs.argmax(0)]
        scores.append(_mean_dice(answer, label, values[1:]))
    return float(np.mean(scores))


def _mean_dice(first: np.ndarray, second: np.ndarray, values: list[int]) -> float:
    found = []
    for value in values:
        a, b = first == value, second == value
        total = a.sum() + b.sum()
        found.append(2 * (a & b).sum() / total if total else 1.0)
    return float(np.mean(found))


def _label_dice(truth: dict[str, Any], given: dict[str, Any]) -> float:
    values = sorted({int(v) for label in truth.values() for v in np.unique(label)} - {0})
    return float(np.mean([_mean_dice(given[name], truth[name], values) for name in truth]))


def _auroc(trained: Any, cases: list[Any], truth: dict[str, Any], given: dict[str, Any]) -> float | str:
    """How well the method's own noise map, summed per foreground voxel, ranks flawed cases above sound ones."""
    import torch
    from scipy.stats import rankdata

    flawed = np.array([not np.array_equal(truth[c.id], given[c.id]) for c in cases])
    if flawed.all() or not flawed.any():
        return ""
    method = trained.method()
    values = trained.plan.values
    scores = []
    for case, probs in zip(cases, _predictions(trained, cases), strict=True):
        label = torch.from_numpy(np.searchsorted(values, given[case.id]))
        noise = method.noise(torch.from_numpy(np.ascontiguousarray(probs))[None].float(), label[None])
        scores.append(float(noise.sum()) / max(int((label > 0).sum()), 1))
    ranks, bad = rankdata(scores), int(flawed.sum())
    return round((ranks[flawed].sum() - bad * (bad + 1) / 2) / (bad * (len(flawed) - bad)), 4)


def run_all(specs: list[Spec], data_root: Path, workers: int, minutes: float) -> None:
    """Run what is not in the table yet; each result is appended at once, so a kill loses one run."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in rows()}
    waiting = [spec for spec in specs if spec.key not in done]
    print(f"{len(specs) - len(waiting)} of {len(specs)} runs are in the table", flush=True)
    end, began = time.monotonic() + 60 * minutes, time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        queue, running, finished = list(waiting), {}, 0
        while queue or running:
            while queue and len(running) < workers and time.monotonic() < end:
                spec = queue.pop(0)
                running[pool.submit(run, spec, data_root)] = spec
            if not running:
                break
            future = next(as_completed(running))
            spec = running.pop(future)
            try:
                row = future.result()
            except Exception as fault:
                print(f"failed: {spec}: {type(fault).__name__}: {fault}", flush=True)
                continue
            _append(row)
            finished += 1
            rate = (time.monotonic() - began) / finished
            print(f"{finished}/{len(waiting)} {spec.data} {spec.noise} {spec.rate} {spec.method} {spec.seed} "
                  f"{row['dice']:.4f} ({rate:.1f} s a run)", flush=True)  # fmt: skip


def rows() -> list[dict[str, str]]:
    """The table so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(row: dict[str, Any]) -> None:
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this many minutes")
    default = os.environ.get("MASKMEND_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=(ROOT / default).resolve())
    parser.add_argument("--only", default="", help="only runs whose description contains this text")
    parser.add_argument("--methods", default="", help="only these methods, separated by ';'")
    parser.add_argument(
        "--seeds", default="", help="other seeds than those of the grid, as 0,1,2 (for design)"
    )
    given = parser.parse_args()
    if given.action == "run":
        seeds = [int(seed) for seed in given.seeds.split(",") if seed] or SEEDS
        methods = given.methods.split(";") if given.methods else list(METHODS)
        specs = [
            s for s in grid(seeds) if s.method in methods and given.only in f"{s.data} {s.noise} {s.rate}"
        ]
        run_all(specs, given.data, given.workers, given.minutes)
    else:
        from pint_report import write_report

        write_report(rows(), RESULTS)


if __name__ == "__main__":
    main()
