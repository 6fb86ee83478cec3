"""Judges that have not seen the cases they judge: one run per fold of the data, each an ordinary run folder."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend.audit.store import Store
from maskmend.data.case import Case, Dataset
from maskmend.data.dataset import folds, infer_labels
from maskmend.data.fingerprint import Fingerprint, fingerprint
from maskmend.data.images import read_case
from maskmend.data.plan import Plan
from maskmend.data.preprocess import Inverse, prepare
from maskmend.errors import Interrupted, ResourceError
from maskmend.predict.restore import restore
from maskmend.predict.sliding import predict_many
from maskmend.progress import bar, message, quiet, track

if TYPE_CHECKING:
    from maskmend.config import Config
    from maskmend.train.run_folder import Run

PROBS, RUNS, CACHE = "probs", "folds", "cache"


@dataclass(frozen=True)
class Fold:
    """The work of one fold; crosses process borders.

    Args:
        number: from 0.
        dataset: the cases to learn from.
        held_out: the cases to judge.
        folder: of the run.
        store: where the probabilities go.
        config: of the run.
        planned: grid, intensities and statistics that all folds share, so that they share prepared cases too.
        hushed: in a worker, which shows no bars.
    """

    number: int
    dataset: Dataset
    held_out: tuple[Case, ...]
    folder: Path
    store: Path
    config: Config
    planned: tuple[Plan, Fingerprint]
    hushed: bool = False

    @property
    def missing(self) -> list[Case]:
        """The cases that are not judged yet."""
        store = Store(self.store)
        return [case for case in self.held_out if not store.has(case.id)]


def judge_by_folds(dataset: Dataset, out: Path, config: Config, count: int, workers: int = 0) -> Store:
    """Train a model for each fold and predict the cases it has not seen.

    The same call goes on where it stopped: finished folds are not trained again, an unfinished one goes on from
    its last checkpoint, judged cases stay. Cases of one patient share a fold.

    Args:
        dataset: its training cases are judged.
        out: the audit folder; runs go into `folds/`, probabilities into `probs/`.
        config: of every fold's run.
        count: number of folds, >= 2.
        workers: folds at the same time (Ray); 0: one after the other in this process.

    Returns:
        Probabilities of every training case on its own grid.

    Raises:
        UsageError: more folds than patients. DataError: faults of the data. Interrupted: the same call goes on.
        ResourceError: a fold failed in its worker.
    """
    work = make_folds(dataset, out, config, count, hushed=workers > 0)
    left = [fold for fold in work if fold.missing]
    if left:
        message(f"{len(work)} folds: {len(work) - len(left)} done before, {len(left)} to train and judge")
        _do(left, workers, config)
    return Store(out / PROBS)


def make_folds(
    dataset: Dataset, out: Path, config: Config, count: int, *, hushed: bool = False
) -> list[Fold]:
    """Divide the cases and make the plan that the folds share; a pure function of cases, config and seed."""
    dataset = infer_labels(dataset)
    parts = folds(dataset, count, config.train.seed)
    config = config.model_copy(deep=True)
    config.data.cache = config.data.cache or (out / CACHE).resolve()
    config.train.validation = "none"
    planned = _planned(dataset, out, config)
    return [
        Fold(
            number, replace(dataset, cases=training), held_out, (out / RUNS / str(number)).resolve(),
            (out / PROBS).resolve(), config, planned, hushed,
        )
        for number, (training, held_out) in enumerate(parts)
    ]  # fmt: skip


def do_fold(fold: Fold) -> dict[str, Any]:
    """Train one fold and predict its held-out cases; a fault becomes part of the answer, for workers cannot raise.

    Returns:
        "status": "done" or "failed" (then with "error", the exception, and "traceback").

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    import torch

    if fold.hushed:
        quiet()
        torch.set_num_threads(fold.config.train.threads or 1)
    began = time.monotonic()
    try:
        run = _trained(fold)
        predict_cases(run, fold.missing, fold.dataset, Store(fold.store), fold.config)
    except (KeyboardInterrupt, Interrupted):
        raise
    except Exception as fault:
        return {"status": "failed", "error": fault, "traceback": traceback.format_exc()}
    return {"status": "done", "seconds": round(time.monotonic() - began, 1)}


def predict_cases(run: Run, cases: Sequence[Case], dataset: Dataset, store: Store, config: Config) -> None:
    """Predict cases with a run and store their probabilities on their own grids, one large volume at a time."""
    from maskmend.train.engine import choose_device

    device = choose_device(config.device)
    method, plan = run.method().to(device).eval(), run.plan
    waiting: deque[tuple[str, Inverse]] = deque()

    def images() -> Iterator[np.ndarray]:
        for case in cases:
            image, geometry = read_case(case, dataset, max_voxels=config.data.max_voxels)
            ready = prepare(image, None, geometry, plan, where=case.id)
            waiting.append((case.id, ready.inverse))
            held = [ready.image]
            del image, ready
            yield held.pop()

    stream = predict_many(
        method.predict, images(), patch=plan.patch, classes=plan.num_classes, overlap=config.predict.overlap,
        batch=config.predict.batch, device=device, steady=True,
    )  # fmt: skip
    with bar("judging", len(cases)) as shown:
        for probs in stream:
            case, inverse = waiting.popleft()
            whole = restore(probs.numpy(), inverse, keep_probs=True).probs
            del probs
            assert whole is not None
            store.write(case, whole)
            shown.update(1)


def _trained(fold: Fold) -> Run:
    from maskmend.train.run import train
    from maskmend.train.run_folder import FACTS

    started = (fold.folder / FACTS).exists()
    return train(
        fold.dataset,
        fold.folder,
        fold.config,
        resume=started,
        command=["maskmend", "audit"],
        planned=fold.planned,
    )


def _planned(dataset: Dataset, out: Path, config: Config) -> tuple[Plan, Fingerprint]:
    """One plan for all folds, made once: it takes a reading of every image."""
    from maskmend.data.atomic import write_text
    from maskmend.train.run import plan_run

    plan_file, facts_file = out / "plan.json", out / "fingerprint.json"
    if plan_file.exists() and facts_file.exists():
        plan = Plan.model_validate_json(plan_file.read_text())
        return plan, Fingerprint.model_validate_json(facts_file.read_text())
    facts = fingerprint(
        replace(dataset, cases=dataset.train), progress=lambda cases: track(cases, "reading", len(cases))
    )
    plan = plan_run(dataset, facts, config)
    write_text(plan_file, plan.model_dump_json(indent=1))
    write_text(facts_file, facts.model_dump_json(indent=1))
    return plan, facts


def _do(work: Sequence[Fold], workers: int, config: Config) -> None:
    from maskmend.benchmark.workers import open_pool
    from maskmend.train.engine import choose_device

    gpu = choose_device(config.device).startswith("cuda")
    pool = open_pool(workers, None, threads=config.train.threads or 1, runs_per_gpu=2, gpu=gpu)
    try:
        for done, (fold, answer) in enumerate(pool.map(do_fold, work), 1):
            if answer["status"] == "failed":
                _raise(fold, answer)
            message(f"fold {fold.number + 1} is judged ({done} of {len(work)}), {answer['seconds']:.0f} s")
    except (KeyboardInterrupt, Interrupted):
        # In this process it may be the fold's own, which tells how to go on with it alone.
        raise Interrupted("stopped", None, "the same command goes on from there") from None
    finally:
        pool.close()


def _raise(fold: Fold, answer: dict[str, Any]) -> None:
    error = answer["error"]
    if isinstance(error, Exception):
        raise error
    raise ResourceError(
        f"fold {fold.number + 1} failed: {error}", fold.folder, "the same command tries again"
    )
