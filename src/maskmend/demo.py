"""The demonstration: a synthetic data set, flawed masks, plain against robust training, and one report.

The truth is known by construction, so the report can say by how much robust learning helped, or that it did
not. The settings below are round numbers chosen once; seeds are 0, 1, 2, ...
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend.callable_package import make_callable
from maskmend.config import Config, load
from maskmend.data.atomic import write_text
from maskmend.data.images import read_label
from maskmend.data.phantom import make_phantom
from maskmend.errors import Interrupted, UsageError
from maskmend.noise.dataset import corrupt_dataset
from maskmend.progress import message
from maskmend.train import lock

if TYPE_CHECKING:
    from maskmend.data.case import Dataset
    from maskmend.train.run_folder import Run

ROBUST = "pint_posterior"
NOISE: dict[str, Any] = {"rate": 0.6, "kind": "dilate", "layered": True}
RADIUS_MM = {2: (2.0, 5.0), 3: (1.5, 3.5)}
STEPS = {2: 600, 3: 300}
BATCH = {2: 8, 3: 2}
CASES = {2: (120, 40), 3: (30, 12)}  # training and test
FIGURES, REPORT = "demo.json", "report.html"
RUNNING = {"status": "running"}


@dataclass(frozen=True)
class Arm:
    """One way to train: a method and which masks it gets."""

    key: str
    method: str
    masks: str  # the folder of the data set below the seed's folder

    @property
    def title(self) -> str:
        """For tables and legends."""
        return f"{self.method}, {'flawed' if self.masks == 'flawed' else 'true'} masks"


ARMS = (
    Arm("plain", "supervised", "flawed"),
    Arm("robust", ROBUST, "flawed"),
    Arm("ceiling", "supervised", "true"),
)


@dataclass
class SeedResult:
    """What one repetition gave: Dice (cases, classes) by arm, metrics lines by arm, and judged labels."""

    dice: dict[str, np.ndarray] = field(default_factory=dict)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    judged: list[JudgedCase] = field(default_factory=list)


@dataclass(frozen=True)
class JudgedCase:
    """A training case with its given and true label and the method's opinion, all (*S) on one grid.

    Args:
        id: case.
        image: (*S) float.
        given: class indices of the given label.
        truth: class indices of the true label.
        noise: estimated probability in [0, 1] that the given label is wrong.
        spacing_mm: of the grid.
    """

    id: str
    image: np.ndarray
    given: np.ndarray
    truth: np.ndarray
    noise: np.ndarray
    spacing_mm: tuple[float, ...]

    @property
    def score(self) -> float:
        """Expected number of wrong voxels, as a share of the given foreground."""
        return float(self.noise.sum()) / max(int((self.given > 0).sum()), 1)


def demo(
    out: Path | str,
    *,
    ndim: int = 2,
    seeds: int = 1,
    steps: int | None = None,
    cases: tuple[int, int] | None = None,
    ceiling: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the demonstration and write `report.html` and `demo.json`.

    Args:
        out: the folder for data, runs and report; must be new or empty.
        ndim: 2 for images, 3 for volumes.
        seeds: repetitions with other data, noise and initial weights; 1 gives no interval over seeds.
        steps: of each training; None: 600 in 2-D, 300 in 3-D.
        cases: training and test cases; None: 120 and 40 in 2-D, 30 and 12 in 3-D.
        ceiling: also train plainly on the true masks, to show how much there is to win.
        overwrite: replace an earlier demonstration in `out`.

    Returns:
        The figures, as in `demo.json`.

    Raises:
        UsageError: `out` holds something else, is in use, or a setting is out of range.
        Interrupted: Ctrl-C or SIGTERM; the same call begins anew.
    """
    if ndim not in STEPS or seeds < 1 or (steps is not None and steps < 1):
        raise UsageError(f"ndim {ndim}, seeds {seeds}, steps {steps}: 2 or 3, and at least 1 each")
    out = Path(out)
    arms = [arm for arm in ARMS if ceiling or arm.key != "ceiling"]
    _refuse(out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    with lock.locked(out):
        _clear(out)
        try:
            return _run(out, ndim, list(range(seeds)), steps or STEPS[ndim], cases or CASES[ndim], arms)
        except (KeyboardInterrupt, Interrupted):  # a training's own tells how to go on with it alone
            remedy = f"begin the demonstration anew: {_command(out, ndim, seeds, steps)}"
            raise Interrupted("stopped", out, remedy) from None


def _command(out: Path, ndim: int, seeds: int, steps: int | None) -> str:
    options = {"--ndim": ndim, "--seeds": seeds} | ({} if steps is None else {"--steps": steps})
    return shlex.join(
        ["maskmend", "demo", "-o", str(out), *(f"{key}={value}" for key, value in options.items())]
    )


def _run(
    out: Path, ndim: int, seeds: Sequence[int], steps: int, cases: tuple[int, int], arms: Sequence[Arm]
) -> dict[str, Any]:
    from maskmend.demo_report import figures_of, write_demo_report

    began, results = time.monotonic(), []
    for seed in seeds:
        folder = out / f"seed_{seed}"
        _make_data(folder, ndim, seed, cases)
        results.append(_one_seed(folder, ndim, seed, steps, arms))
    setup = {"ndim": ndim, "seeds": list(seeds), "steps": steps}
    setup |= {"cases": list(cases), "noise": NOISE | {"radius_mm": list(RADIUS_MM[ndim])}}
    figures = figures_of(results, arms, setup) | {"seconds": round(time.monotonic() - began, 1)}
    write_demo_report(out / REPORT, results, arms, figures)
    figures["report"] = str(out / REPORT)
    write_text(out / FIGURES, json.dumps(figures, indent=1) + "\n")
    message(f"{figures['verdict']}\nreport: {out / REPORT}")
    return figures


def _refuse(out: Path, overwrite: bool) -> None:
    """Refuse to replace what is no demonstration, or a finished one; what a stopped one left may go."""
    if not out.exists() or not any(path.name != lock.NAME for path in out.iterdir()):
        return
    if not (out / FIGURES).exists():
        raise UsageError("holds something that is no demonstration", out, "give a new folder")
    if not overwrite and not _unfinished(out / FIGURES):
        raise UsageError("holds a demonstration already", out, "give another folder or --overwrite")


def _unfinished(figures: Path) -> bool:
    try:
        return bool(json.loads(figures.read_text(encoding="utf-8")) == RUNNING)
    except ValueError:
        return False


def _clear(out: Path) -> None:
    write_text(out / FIGURES, json.dumps(RUNNING) + "\n")  # first: a stop while deleting leaves it unfinished
    for path in out.iterdir():
        if path.name not in (FIGURES, lock.NAME):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _make_data(folder: Path, ndim: int, seed: int, cases: tuple[int, int]) -> None:
    make_phantom(folder / "true", ndim=ndim, train=cases[0], test=cases[1], seed=seed)
    corrupt_dataset(folder / "true", folder / "flawed", seed=seed, radius_mm=RADIUS_MM[ndim], **NOISE)


def _one_seed(folder: Path, ndim: int, seed: int, steps: int, arms: Sequence[Arm]) -> SeedResult:
    from maskmend.predict.run import predict
    from maskmend.train.metrics_file import read
    from maskmend.train.run import train

    result = SeedResult()
    for arm in arms:
        message(f"seed {seed}: {arm.title}")
        run = train(folder / arm.masks, folder / arm.key, _config(arm.method, ndim, seed, steps))
        result.lines[arm.key] = read(run.folder)
        predict(run, folder / "true", folder / f"{arm.key}_predictions")
        result.dice[arm.key] = _dice(folder / f"{arm.key}_predictions", folder / "true", run.labels)
        if arm.key == "robust":
            result.judged = list(judge_labels(run, folder / "flawed", folder / "true"))
    return result


def _config(method: str, ndim: int, seed: int, steps: int) -> Config:
    given = {"method.name": method, "train.steps": steps, "train.seed": seed, "train.batch": BATCH[ndim]}
    fixed = {"train.checkpoint_every": steps, "train.picture_every": steps, "device": "cpu"}
    return load(None, [f"{key}={value}" for key, value in (given | fixed).items()])


def _dice(predictions: Path, dataset: Path, labels: Mapping[str, int]) -> np.ndarray:
    """(test cases, foreground classes), cases in the order of their ids."""
    from maskmend.data.dataset import find_cases
    from maskmend.evaluate.metrics import case_metrics

    rows = []
    for case in find_cases(dataset).test:
        assert case.label is not None
        truth, geometry = read_label(case.label)
        guess = read_label(predictions / case.label.name)[0]
        classes = dict(list(labels.items())[1:])
        scores = case_metrics(guess, truth, geometry.spacing_mm, classes)
        rows.append([score.dice for score in scores.values()])
    return np.array(rows)


def judge_labels(run: Run, given: Path | Dataset, truth: Path | Dataset) -> Iterator[JudgedCase]:
    """What a trained run thinks of each training label, beside the truth.

    Args:
        run: a finished run.
        given: the data set it was trained on.
        truth: the same cases with true labels.
    """
    import torch

    from maskmend.data.dataset import find_cases
    from maskmend.data.images import read_case
    from maskmend.data.preprocess import prepare
    from maskmend.predict.sliding import predict_many

    method, plan = run.method(), run.plan
    flawed, true = (d if not isinstance(d, Path) else find_cases(d) for d in (given, truth))
    prepared = []
    for case in flawed.train:
        image, geometry = read_case(case, flawed)
        labels = [read_label(path)[0] for path in (case.label, true[case.id].label) if path is not None]
        first, second = (prepare(image, label, geometry, plan) for label in labels)
        prepared.append((case.id, first.image, first.label, second.label))
    with torch.inference_mode():
        images = (image for _, image, *_ in prepared)
        guesses = predict_many(method.predict, images, patch=plan.patch, classes=plan.num_classes)
        for (name, image, label, true_label), probs in zip(prepared, guesses, strict=True):
            assert label is not None
            assert true_label is not None
            noise = method.noise(probs[None], torch.from_numpy(label.astype("int64"))[None])[0].numpy()
            yield JudgedCase(name, image[0], label, true_label, noise, tuple(plan.spacing_mm))


make_callable(__name__, __name__, "demo")
