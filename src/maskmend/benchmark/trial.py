"""One run of a benchmark: train, score on true masks, and say what it cost."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskmend import config
from maskmend.benchmark.cases import Given, prepare_all, prepare_cases, true_label
from maskmend.benchmark.code_state import code_state
from maskmend.benchmark.curve import Curve
from maskmend.benchmark.grid import Trial
from maskmend.benchmark.settings import extra_needs
from maskmend.config_text import put
from maskmend.data.images import read_label
from maskmend.data.owner import scratch
from maskmend.data.plan import Plan
from maskmend.data.preprocess import Prepared
from maskmend.errors import Interrupted, UserError, shown
from maskmend.evaluate.metrics import case_metrics
from maskmend.methods.base import Method
from maskmend.predict.sliding import predict_many
from maskmend.progress import quiet
from maskmend.train.engine import choose_device
from maskmend.train.run import train
from maskmend.train.run_folder import Run

BATCH = {2: 16, 3: 2}  # windows per forward pass when scoring


def run_trial(trial: Trial) -> dict[str, Any]:
    """Do one run; a fault becomes part of the result, so that one run cannot stop the others.

    Returns:
        The result, ready for JSON: "status" is "done" or "failed" (then with "error" and "traceback").

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    began = time.perf_counter()
    facts: dict[str, Any] = {"key": trial.key, "maskmend": version("maskmend"), "machine": machine()}
    facts["code"] = code_state(trial.extras["method"])
    if trial.extras["threads"]:
        torch.set_num_threads(trial.extras["threads"])
    quiet()
    try:
        with scratch() as folder:
            outcome = {"status": "done", **_measured(trial, folder)}
    except (KeyboardInterrupt, Interrupted):
        raise
    except BaseException as fault:  # SystemExit of a library too
        told = (_first_line(fault), traceback.format_exc())
        outcome = {
            "status": "failed",
            **dict(zip(("error", "traceback"), _placeless(trial, *told), strict=True)),
        }
    finally:
        quiet(False)
    return facts | outcome | {"total_seconds": round(time.perf_counter() - began, 2)}


def configured(trial: Trial, steps: int | None = None) -> config.Config:
    """The configuration of a run; `steps` shortens it, for estimates of time."""
    tree: dict[str, Any] = {}
    for key, value in {**trial.recipe["settings"], **trial.extras["settings"]}.items():
        put(tree, key, value)
    own = {"name": trial.extras["method"], **trial.recipe["method"]["settings"]}
    loaded = config.validate(tree | {"method": own})
    loaded.train.seed = trial.seed
    loaded.train.steps = steps or loaded.train.steps
    # Nothing is resumed inside a run, and each picture costs as much as many steps.
    loaded.train.checkpoint_every = loaded.train.picture_every = loaded.train.steps
    return loaded


def _measured(trial: Trial, folder: Path) -> dict[str, Any]:
    settings = configured(trial)
    several = "raters" in extra_needs(settings.method.name)
    given = prepare_cases(trial, folder / "labels", raters=several)
    device = choose_device(settings.device)
    curve = Curve(
        given, settings.train.steps, trial.extras["curve_points"], trial.extras["curve_cases"], device
    )
    began, cpu = time.perf_counter(), time.process_time()
    run = train(
        given.dataset, folder / "run", settings, command=[], watch=curve.watch if curve.steps else None
    )
    seconds = time.perf_counter() - began - curve.seconds
    cpu_seconds = time.process_time() - cpu - curve.cpu_seconds
    method = run.method().to(device)
    return {
        **score(run, method, given, device),
        **judge(run, method, given, device),
        "label_dice": _rounded(_label_dice(given, run.plan)),
        "steps": settings.train.steps,
        "batch": run.plan.batch,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "device": device,
        "train_cases": len(given.dataset.cases),
        "test_cases": len(given.test),
        "curve": curve.points,
    }


def predict_all(method: Method, ready: Sequence[Prepared], plan: Plan, device: str) -> Iterator[torch.Tensor]:
    """Probabilities (K, *S) of prepared cases, on the grid of training."""
    images = (one.image for one in ready)
    sizes: dict[str, Any] = {"patch": plan.patch, "classes": plan.num_classes, "batch": BATCH[plan.ndim]}
    return predict_many(method.predict, images, device=device, **sizes)


def score(run: Run, method: Method, given: Given, device: str) -> dict[str, Any]:
    """Dice and HD95 against the true masks of the test cases, on their own grid; means over classes and cases."""
    values = np.array(run.plan.values)
    classes = dict(list(run.labels.items())[1:])
    rows = []
    ready = prepare_all(given.test, given.dataset, run.plan)
    maps = predict_all(method, ready, run.plan, device)
    for case, one, probs in zip(given.test, ready, maps, strict=True):
        truth, geometry = read_label(true_label(case), spacing_mm=given.dataset.spacing_mm)
        answer = values[one.inverse.restore(probs.numpy()).argmax(0)]
        spacing = given.dataset.spacing_mm or geometry.spacing_mm
        mask = None if case.ignore is None else read_label(case.ignore)[0]
        metrics = case_metrics(answer, truth, spacing, classes, ignore=run.plan.ignore, ignore_mask=mask)
        rows.append([(one.dice, one.hd95_mm) for one in metrics.values()])
    table = np.array(rows)  # (cases, classes, 2)
    by_class = {name: _rounded(_mean(table[:, i, 0])) for i, name in enumerate(classes)}
    by_case = [_rounded(_mean(one)) for one in table[:, :, 0]]
    return {
        "dice": _rounded(_mean(np.array([_mean(one) for one in table[:, :, 0]]))),
        "hd95_mm": _rounded(_mean(np.array([_mean(one) for one in table[:, :, 1]])), 3),
        "dice_by_class": by_class,
        "dice_by_case": dict(zip((case.id for case in given.test), by_case, strict=True)),
    }


def judge(run: Run, method: Method, given: Given, device: str) -> dict[str, Any]:
    """How well the method's own noise map finds the wrong masks among the training cases.

    The score of an image is the expected number of wrong voxels per voxel of given foreground. "image_auroc" asks
    whether flawed masks score above sound ones (None where all are of one kind); "image_rank" is Spearman's
    correlation of the score with the mask's true error, 1 - Dice.
    """
    from scipy.stats import spearmanr

    flawed = np.array([given.flawed[case.id] for case in given.dataset.cases])
    if not flawed.any():
        return {"image_auroc": None, "image_rank": None}
    scores, errors = [], []
    ready = prepare_all(given.dataset.cases, given.dataset, run.plan, given.given)
    maps = predict_all(method, ready, run.plan, device)
    for case, one, probs in zip(given.dataset.cases, ready, maps, strict=True):
        label = torch.from_numpy(np.asarray(one.label, np.int64))
        with torch.no_grad():
            noise = method.noise(probs[None], label[None])
        scores.append(float(noise.sum()) / max(int((label > 0).sum()), 1))
        errors.append(1 - mask_dice(given.given[case.id], given.truth[case.id], run.plan.values[1:]))
    return {
        "image_auroc": None if flawed.all() else _rounded(auroc(np.array(scores), flawed)),
        "image_rank": _rounded(float(spearmanr(scores, errors).statistic)) if np.ptp(errors) else None,
    }


def auroc(scores: np.ndarray, flawed: np.ndarray) -> float:
    """The chance that a flawed case (N,) bool scores above a sound one; ties count half."""
    from scipy.stats import rankdata

    bad = int(flawed.sum())
    wins = rankdata(scores)[flawed].sum() - bad * (bad + 1) / 2
    return float(wins / (bad * (len(flawed) - bad)))


def mask_dice(first: np.ndarray, second: np.ndarray, values: Sequence[int]) -> float:
    """Mean Dice of two masks (*S) over the classes that occur in either; 1 when there are none."""
    found = []
    for value in values:
        a, b = first == value, second == value
        if total := int(a.sum() + b.sum()):
            found.append(2 * int((a & b).sum()) / total)
    return float(np.mean(found)) if found else 1.0


def machine() -> str:
    """What kind of computer this is; no name of it."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"


def _label_dice(given: Given, plan: Plan) -> float:
    return float(np.mean([mask_dice(given.given[n], given.truth[n], plan.values[1:]) for n in given.truth]))


def _placeless(trial: Trial, *texts: str) -> list[str]:
    """Texts of a fault without where the data lie, for results are passed on."""
    return [shown(text.replace(trial.source, trial.data) if trial.source else text) for text in texts]


def _mean(values: np.ndarray) -> float:
    """The mean of what is known; NaN when nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _rounded(value: float, digits: int = 5) -> float | None:
    return round(value, digits) if np.isfinite(value) else None


def _first_line(fault: BaseException) -> str:
    text = str(fault).splitlines()
    name = "" if isinstance(fault, UserError) else f"{type(fault).__name__}: "
    return f"{name}{text[0] if text else ''}"
