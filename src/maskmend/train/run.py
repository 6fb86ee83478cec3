"""A training run from a data set to a folder."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from maskmend import methods, networks
from maskmend.config import Config, dump, load
from maskmend.data.atomic import atomic_write, write_text
from maskmend.data.cache import Cache
from maskmend.data.case import Case, Dataset
from maskmend.data.check import check
from maskmend.data.dataset import split, with_raters
from maskmend.data.fingerprint import Fingerprint, fingerprint
from maskmend.data.owner import sweep
from maskmend.data.plan import Plan, make_plan
from maskmend.data.raters import Raters
from maskmend.errors import Interrupted, UsageError, shown
from maskmend.methods.base import Method
from maskmend.progress import message, track
from maskmend.train import checkpoint, engine, lock
from maskmend.train.loop import Job, fit
from maskmend.train.run_folder import (
    CONFIG,
    FACTS,
    FINGERPRINT,
    FORMAT,
    MODEL,
    PLAN,
    Run,
    build_method,
    method_settings,
    resume_command,
    stored,
)

CHANGEABLE = (
    "train.steps", "train.workers", "train.threads", "train.checkpoint_every", "train.picture_every",
    "train.tensorboard", "device", "predict", "evaluate", "audit", "data.cache",
)  # fmt: skip


def train(
    dataset: Path | str | Dataset,
    out: Path | str,
    config: Config | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
    watch: Callable[[Method, Plan, int], None] | None = None,
    planned: tuple[Plan, Fingerprint] | None = None,
) -> Run:
    """Train on a data set and write a run folder.

    Args:
        dataset: a folder in any known layout, a CSV manifest, or cases found before.
        out: the run folder; made if missing.
        config: None: the defaults, or on resume what the run was started with.
        resume: continue from the newest state. A finished run is done; a larger `train.steps` continues it.
        overwrite: delete what is in `out` first.
        command: recorded in run.json; the process's own command line when None.
        watch: called after every step as `watch(method, plan, step)`, for diagnostics such as learning curves;
            it must leave the method as it found it.
        planned: the plan and the statistics it was made from, where several runs must share them (folds of one
            data set, which then share prepared cases); made from the training cases when None.

    Returns:
        The run, with a model that `predict` can use.

    Raises:
        UsageError: `out` is in use or holds a run; resume with a changed configuration or data.
        DataError: the data set has faults (all of them listed), or the loss became NaN.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    out = Path(out)
    config = config or (load(out / CONFIG, []) if resume and (out / CONFIG).exists() else Config())
    method_class = methods.load(config.method.name)
    methods.check_settings(method_class, method_settings(config))
    _claim(out, resume, overwrite)
    with lock.locked(out):
        sweep(out, out / "pictures")
        try:
            return _train_locked(dataset, out, config, resume, list(command or sys.argv), watch, planned)
        except KeyboardInterrupt:  # before the loop, which saves its state
            remedy = resume_command(out) if (out / FACTS).exists() else "the same command begins anew"
            raise Interrupted("stopped", out, remedy) from None


def _train_locked(
    source: Path | str | Dataset,
    out: Path,
    config: Config,
    resume: bool,
    command: list[str],
    watch: Callable[[Method, Plan, int], None] | None,
    planned: tuple[Plan, Fingerprint] | None,
) -> Run:
    began = time.monotonic()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    engine.announce(config.device)
    wanted = _wanted_raters(config)
    if wanted and isinstance(source, Dataset):
        source = with_raters(source, wanted)
    result = check(source, data=config.data.model_copy(update={"raters": wanted}), quick=True)
    result.raise_errors()
    for finding in result.warnings[:5]:
        message(f"warning: {finding.line()}")
    dataset = result.dataset
    assert dataset is not None
    cases, held_out = _divide(dataset, config)
    plan = _planned(dataset, cases, out, config, resume, planned)
    _refuse_missing_needs(config, cases, plan)
    cache_folder = config.data.cache or out / "cache"
    raters = _raters(config, plan, dataset) if wanted else None
    shown = partial(track, description="preparing")
    cache = Cache.open(cases, plan, cache_folder, raters=raters, progress=shown)
    held = Cache.open(held_out, plan, cache_folder, raters=raters) if held_out else None
    run_facts = _facts(config, cache, command, len(cases), len(held_out)) | {"dataset": str(dataset.root)}
    if raters:
        run_facts["raters"] = list(raters.names)
    if resume and _refuse_changes(out, config, run_facts):
        _tidy(out, config)
        return Run.open(out, trust_code=True)  # the caller named that code just now
    write_text(out / CONFIG, dump(config))
    _write_json(out / FACTS, run_facts | {"status": "running"})
    job = Job(
        folder=out,
        config=config,
        plan=plan,
        cache=cache,
        make_method=partial(build_method, config, plan),
        held_out=held,
        picture=partial(_picture, out, cache),
        finish=partial(_finish, out, config, plan, run_facts, began),
        watch=watch,
    )
    engine.launch(
        fit, job, device=config.device, precision=config.train.precision, processes=config.train.processes
    )
    _tidy(out, config)
    return Run.open(out, trust_code=True)  # the caller named that code


def _tidy(out: Path, config: Config) -> None:
    """Delete what only an unfinished run needs; a cache that was named may serve other runs."""
    if config.data.cache is None:
        shutil.rmtree(out / "cache", ignore_errors=True)


def _claim(out: Path, resume: bool, overwrite: bool) -> None:
    if overwrite and out.exists():
        if any(out.iterdir()) and not (out / CONFIG).exists():
            raise UsageError("holds files that are not a run; not deleting them", out, "use another folder")
        with lock.locked(out):
            for path in out.iterdir():
                if path.name != lock.NAME:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    taken = (out / FACTS).exists()
    if taken and not resume:
        raise UsageError(
            "holds a run already", out, "add --resume to continue it or --overwrite to start again"
        )
    if resume and not taken:
        raise UsageError("holds no run to resume", out, "leave out --resume to start one")
    out.mkdir(parents=True, exist_ok=True)


def _divide(dataset: Dataset, config: Config) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Training and held-out cases. "trusted" holds out the trusted cases only."""
    cases = dataset.train
    if config.data.rater:
        cases = tuple(_with_rater(case, config.data.rater) for case in cases)
    if config.train.validation == "none":
        return cases, ()
    if config.train.validation == "trusted":
        held = tuple(case for case in cases if case.trusted)
        if not held or len(held) == len(cases):
            fact = f"{len(held)} of {len(cases)} cases are trusted"
            raise UsageError(fact, "train.validation", 'list some of them under "trusted" in maskmend.json')
        return tuple(case for case in cases if not case.trusted), held
    training, held = split(cases, config.train.validation_fraction, config.train.seed)
    return tuple(training), tuple(held)


def _refuse_missing_needs(config: Config, cases: tuple[Case, ...], plan: Plan) -> None:
    """Say before anything is computed that the method cannot learn from these cases."""
    method, name = methods.load(config.method.name), config.method.name
    if "trusted" in method.needs and not any(case.trusted for case in cases):
        held = " left to train on: train.validation=trusted holds them out"
        fact = f"{name} needs trusted cases and there are none"
        remedy = (
            'list some under "trusted" in maskmend.json (or in the column of a CSV), or take another method'
        )
        raise UsageError(fact + (held if config.train.validation == "trusted" else ""), "method.name", remedy)
    each = plan.batch // config.train.processes
    if method.trusted_share and each < 2:
        fact = (
            f"{name} mixes trusted and other cases in every batch, but a process gets {each} of {plan.batch}"
        )
        raise UsageError(fact, "train.batch", f"train.batch={2 * config.train.processes} or more")


def _wanted_raters(config: Config) -> list[str] | None:
    """Whose masks to learn from, when the method learns from several raters."""
    if "raters" not in methods.load(config.method.name).needs:
        return None
    if config.data.rater:
        fact = f"{config.method.name} learns from several raters, data.rater chooses one"
        raise UsageError(fact, "data.rater", "leave it out, or choose several with data.raters=[...]")
    return config.data.raters or ["*"]


def _raters(config: Config, plan: Plan, dataset: Dataset) -> Raters:
    """The raters of the run and the method's way of making one label of them."""
    names = tuple(sorted({name for case in dataset.train for name in case.raters}))
    method = build_method(config, plan)
    kind = type(method)
    if kind.fuse is Method.fuse:
        return Raters(names)
    # The label depends on the rule's settings, and a rule of the user's own changes while it is developed.
    code = hashlib.blake2b(Path(inspect.getfile(kind)).read_bytes(), digest_size=8).hexdigest()
    key = f"{config.method.name} {json.dumps(method_settings(config), sort_keys=True)} {code}"
    return Raters(names, method.fuse, key)


def _with_rater(case: Case, rater: str) -> Case:
    from dataclasses import replace

    if rater not in case.raters:
        raise UsageError(
            f"case {case.id} has no rater {rater!r}", "data.rater", f"it has: {', '.join(case.raters)}"
        )
    return replace(case, label=case.raters[rater])


def plan_run(dataset: Dataset, facts: Fingerprint, config: Config) -> Plan:
    """The plan of a run, with a patch that its network can halve as often as it does."""
    plan = make_plan(dataset, facts, config)
    step = networks.divisor(config.network.name, plan.depth)
    return plan.model_copy(update={"patch": tuple(-(-n // step) * step for n in plan.patch)})


def _planned(
    dataset: Dataset,
    cases: tuple[Case, ...],
    out: Path,
    config: Config,
    resume: bool,
    given: tuple[Plan, Fingerprint] | None,
) -> Plan:
    from dataclasses import replace

    if resume and (out / PLAN).exists():
        return stored(Plan, out / PLAN)
    if given:
        plan, facts = given
    else:
        facts = fingerprint(replace(dataset, cases=cases))
        plan = plan_run(dataset, facts, config)
    write_text(out / FINGERPRINT, facts.model_dump_json(indent=1))
    write_text(out / PLAN, plan.model_dump_json(indent=1))
    return plan


def _facts(config: Config, cache: Cache, command: list[str], cases: int, held_out: int) -> dict[str, Any]:
    words = [Path(command[0]).name, *command[1:]] if command else []
    return {
        "format": FORMAT,
        "maskmend": version("maskmend"),
        "command": [shown(word) for word in words],
        "data": cache.key,
        "cases": cases,
        "held_out": held_out,
        "seed": config.train.seed,
        "device": engine.choose_device(config.device),
        "processes": config.train.processes,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "monai": version("monai"),
    }


def _refuse_changes(out: Path, config: Config, facts: dict[str, Any]) -> bool:
    """Refuse a resume that would not be the same run; True when there is nothing left to do."""
    before = Run.open(out)
    old, new = _flat(before.config.model_dump()), _flat(config.model_dump())
    changed = [k for k in sorted(old | new) if old.get(k) != new.get(k) and not k.startswith(CHANGEABLE)]
    if changed:
        shown = "; ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in changed[:5])
        raise UsageError(
            f"the configuration changed: {shown}", out, f"these may change: {', '.join(CHANGEABLE)}"
        )
    for key in ("data", "maskmend", "processes"):
        if before.facts[key] != facts[key]:
            fact = f"{key} changed since this run was started: {before.facts[key]} -> {facts[key]}"
            raise UsageError(fact, out, "start a new run in another folder")
    done = before.facts["status"] == "finished" and before.config.train.steps >= config.train.steps
    if done:
        message(f"already finished at step {before.config.train.steps}; a larger train.steps= continues it")
    return done


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
        flat |= inner
    return flat


def _finish(out: Path, config: Config, plan: Plan, facts: dict[str, Any], began: float) -> None:
    _export(out, config, plan)
    _write_json(out / FACTS, facts | {"status": "finished", "seconds": round(time.monotonic() - began, 1)})


def _export(out: Path, config: Config, plan: Plan) -> None:
    """The model that predicts: the selected weights if there was a selection, else those of the last step."""
    state = checkpoint.load(out)
    assert state is not None
    weights = (state["validation"] or {}).get("weights") or state["method"]
    facts = {
        "format": FORMAT,
        "method": config.method.name,
        "network": config.network.name,
        "step": state["step"],
    }
    meta = {"maskmend": json.dumps(facts)}  # one key: the file format keeps several in no fixed order
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    # Not `save_file`: it makes a temporary file with a name of its own, which nobody knows for ours after a kill.
    atomic_write(out / MODEL, lambda path: path.write_bytes(save(tensors, metadata=meta)))


def _picture(out: Path, cache: Cache, method: Method, memory: Any, step: int) -> None:
    """The training cases whose labels look most wrong now: image, given label, pseudo label, noise map."""
    from maskmend.train.picture import training_picture

    path = out / "pictures" / f"step-{step:06d}.png"
    atomic_write(
        path, lambda temporary: temporary.write_bytes(training_picture(method, cache, memory)) and None
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
