"""What an audit is of, and the folder that is its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskmend.audit.export import FOLDER as EXPORTS
from maskmend.audit.folds import CACHE, PROBS, RUNS
from maskmend.audit.judging import NOISE, SUGGESTED
from maskmend.audit.learnt import LEARNT
from maskmend.audit.like import ANSWER, STATE, Like, as_before
from maskmend.audit.opening import open_masks
from maskmend.audit.sources import ProbsFolder
from maskmend.config import Config
from maskmend.data.atomic import write_text
from maskmend.data.case import Case, Dataset
from maskmend.errors import UsageError
from maskmend.pseudonyms import clean_paths

TABLE, PARTS = "audit.csv", "parts.csv"
FORMAT = "maskmend audit 2"
LEAST_CASES = 10
_OURS = (
    STATE, ANSWER, TABLE, PARTS, LEARNT, "report.html", "thumbs", "plan.json", "fingerprint.json", "LOCK", PROBS, RUNS,
    CACHE, NOISE, SUGGESTED, EXPORTS,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is audited, and with whose probabilities.

    Args:
        dataset: with its classes named.
        cases: those with a mask, sorted by id.
        largest: shape of the largest image.
        source: "folds", "run" or "files".
        out: the audit folder.
        config: settings.
        place: the run or the folder of probabilities; None for folds.
        trust_code: the run's settings may name code that is not maskmend's.
        like: the earlier audit that judges; None: this one learns by itself.
    """

    dataset: Dataset
    cases: tuple[Case, ...]
    largest: tuple[int, ...]
    source: str
    out: Path
    config: Config
    place: Path | None = None
    trust_code: bool = False
    like: Like | None = None


def make_job(
    source: Path,
    out: Path,
    config: Config,
    run: Path | str | None,
    probs: Path | str | None,
    like: Like | None,
) -> Job:
    """What the arguments of `run.audit` ask for.

    Raises:
        UsageError: options exclude one another, or the earlier audit is of other classes.
        DataError: faults of the data.
    """
    if run is not None and probs is not None:
        raise UsageError("a run and probabilities exclude one another", "--run, --probs", "leave one out")
    if (source / "plan.json").is_file() and (source / "run.json").is_file():
        if run is not None or like is not None:
            raise UsageError("is a run", source, "give a data set" + (" with --run" if run else ""))
        run, source = source, _data_of(source)
    if like is not None:
        return _job_like(like, source, out, config, run, probs)
    too_few = f"{{count}} cases with a mask; what is usual cannot be told from fewer than {LEAST_CASES}"
    masks = open_masks(source, config.data, LEAST_CASES, too_few)
    if probs is not None:
        return Job(*masks, "files", out, config, Path(probs))
    return Job(*masks, "run" if run else "folds", out, config, Path(run) if run else None)


def _job_like(
    like: Like, source: Path, out: Path, config: Config, run: Path | str | None, probs: Path | str | None
) -> Job:
    learnt = like.learnt
    data = as_before(source, config.data, learnt.labels)
    masks = open_masks(source, data, 1, "{count} cases with a mask")
    names = [list(one) for one in (masks.dataset.labels, learnt.labels)]
    if names[0] != names[1]:
        fact = f"its classes are {', '.join(names[0])}, those of {like.folder} are {', '.join(names[1])}"
        raise UsageError(fact, source, "name them in data.labels as there, in that order")
    if len(masks.largest) != learnt.ndim:
        fact = f"has {len(masks.largest)} axes, {like.folder} was of images with {learnt.ndim}"
        raise UsageError(fact, source, "audit it by itself")
    place = probs or run or learnt.place
    return Job(*masks, learnt.source, out, config, Path(place) if place else None, like=like)


def _data_of(run: Path) -> Path:
    """Where a run's data set lay when it was trained."""
    root = json.loads((run / "run.json").read_text()).get("dataset")
    if root is None or not Path(root).exists():
        fact = f"its data set is not at {root} any more" if root else "does not say where its data set is"
        raise UsageError(fact, run, f"maskmend audit DATASET --run {run} -o ...")
    return Path(root)


def claim(job: Job, overwrite: bool) -> None:
    """Refuse a folder of something else; note what this audit is of."""
    strange = [
        path.name for path in job.out.iterdir() if path.name not in _OURS and not path.name.startswith(".")
    ]
    if strange and not (job.out / STATE).exists():
        raise UsageError(f"holds something that is no audit ({strange[0]})", job.out, "give a new folder")
    state, path = _state(job), job.out / STATE
    if overwrite:
        _clear(job.out)
    elif path.exists():
        before = json.loads(path.read_text())
        changed = [key for key in state if before.get(key) != state[key]]
        if changed:
            remedy = "--overwrite begins anew, or give another folder"
            raise UsageError(f"holds an audit with another {', '.join(changed)}", job.out, remedy)
        state = before | state
    write_text(path, json.dumps(state))


def release(job: Job) -> None:
    """Forget what was claimed where nothing has been done for it: files that were refused may be mended in place."""
    if not any((job.out / name).exists() for name in _OURS if name not in (STATE, "LOCK")):
        (job.out / STATE).unlink(missing_ok=True)


def _clear(out: Path) -> None:
    for name in _OURS:
        path = out / name
        if name == "LOCK" or not path.exists():
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _state(job: Job) -> dict[str, Any]:
    """What must be equal for an audit to go on."""
    settings = job.config.model_dump(mode="json")
    for key in ("device", "evaluate"):
        settings.pop(key)
    for key in ("workers", "threads", "tensorboard", "picture_every", "checkpoint_every"):
        settings["train"].pop(key)
    settings["audit"].pop("keep_probs")
    state = {
        "format": FORMAT,
        "data set": str(job.dataset.root),
        "source": [job.source, str(job.place.resolve()) if job.place else None, *_told_of(job.like)],
        "configuration": settings,
        "set of files": {case.id: _identity(case) for case in job.cases},
        **_made_of(job),
    }
    told: dict[str, Any] = json.loads(clean_paths(json.dumps(state)))  # as it will stand in the file
    return told


def _made_of(job: Job) -> dict[str, Any]:
    """What tells the probabilities from others in the same place; nothing where they are gone or made here."""
    if job.place is None or not job.place.is_dir():
        return {}
    if job.source == "files":
        found = ProbsFolder(job.place, job.dataset)
        return {"set of probabilities": {case.id: _stamps(found.files_of(case.id)) for case in job.cases}}
    from maskmend.train.run_folder import MODEL, Run

    return {"model": Run.open(job.place).digest()} if (job.place / MODEL).is_file() else {}


def _told_of(like: Like | None) -> list[Any]:
    """By which earlier audit: the same folder may hold another later."""
    return [] if like is None else [str(like.folder.resolve()), (like.folder / LEARNT).stat().st_mtime_ns]


def _identity(case: Case) -> list[list[int]]:
    """Size and change time of each file: enough to notice a mask that was redrawn."""
    return _stamps(
        [*case.images, *([case.label] if case.label else []), *([case.ignore] if case.ignore else [])]
    )


def _stamps(files: Sequence[Path]) -> list[list[int]]:
    return [[stat.st_size, stat.st_mtime_ns] for stat in (file.stat() for file in files)]
