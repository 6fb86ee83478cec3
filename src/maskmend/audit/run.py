"""The audit verb: which masks of a data set to redraw, where each is wrong, and what it should be."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from maskmend import pseudonyms
from maskmend.audit import estimate
from maskmend.audit.dataset_level import Totals, budget
from maskmend.audit.estimate import Auditor
from maskmend.audit.export import refuse_hidden, write_exports
from maskmend.audit.folds import CACHE, PROBS, judge_by_folds, predict_cases
from maskmend.audit.job import PARTS, TABLE, Job, claim, make_job, release
from maskmend.audit.judging import PART_COLUMNS, CaseWork, mixed_up, part_rows, table_rows, usual_offsets
from maskmend.audit.kept import kept
from maskmend.audit.learnt import LEARNT, Learnt, fold_numbers
from maskmend.audit.like import ANSWER, open_like, runs_for
from maskmend.audit.looks import LooksOf
from maskmend.audit.mixups import elsewhere
from maskmend.audit.outlines import ImageWitness, Outlines, look_at_outlines
from maskmend.audit.record import CaseRecord
from maskmend.audit.selfcheck import CASES as EXAMINED
from maskmend.audit.selfcheck import SelfCheck, weakness
from maskmend.audit.sources import Probs, ProbsFolder, Stored
from maskmend.audit.store import Store
from maskmend.config import Config, dump
from maskmend.data.atomic import write_text
from maskmend.data.case import Case
from maskmend.data.dataset import folds
from maskmend.data.owner import sweep
from maskmend.errors import DataError, Interrupted, UsageError
from maskmend.fanout import Mapper, most_processes, spread
from maskmend.plain import plain
from maskmend.progress import bar, message
from maskmend.train.lock import locked

COUNT_ERROR = (
    0.09  # share of the cases by which the number of flawed ones was off in 18 audits of known flaws (RMS)
)
# Of one process, by which it is decided how many there are:
CASE_S = {2: 0.04, 3: 0.2}  # seconds per case, by the number of axes
VALUE_S = 1.5e-7  # seconds per voxel and class
VALUE_BYTES = 24  # of memory, per voxel and class, while a case is judged


def audit(
    source: Path | str,
    out: Path | str,
    config: Config | None = None,
    *,
    run: Path | str | None = None,
    probs: Path | str | None = None,
    like: Path | str | None = None,
    workers: int = 0,
    processes: int | None = 1,
    overwrite: bool = False,
    trust_code: bool = False,
    export: int = 0,
) -> dict[str, Any]:
    """Find the masks that are wrong, and say where and how.

    Without `run` and `probs` a model is trained for each fold of the data, so that every mask is judged by a model
    that has not seen it. The same call goes on where it stopped.

    Args:
        source: a data set, or a run folder: its training data are then judged by its own model, which has seen them.
        out: the audit folder; made if missing.
        config: settings; `audit.*`, and those of the folds' runs.
        run: judge with this run's model instead of training any.
        probs: judge with the probabilities in this folder, made by another program.
        like: judge like the audit in this folder: by its models, or `probs` of the same one, and by what it learnt.
            Nothing is trained, and one mask is enough.
        workers: folds trained at the same time (Ray); 0: one after the other in this process.
        processes: that judge cases, each holding one in memory; None: one for each core, as far as memory goes. A
            script that asks for several needs `if __name__ == "__main__":`. The answer is the same.
        overwrite: begin anew where `out` holds another audit.
        trust_code: execute the code of its own that a run names; without it such a run is refused.
        export: of how many cases, the worst first, to write work lists for CVAT, Label Studio and MONAI.

    Returns:
        What is in `audit.json`: "facts", "records" worst first, and the paths "table" and "report".

    Raises:
        UsageError: `out` holds another audit, or options exclude one another; work lists under pseudonyms.
        DataError: faults of the data or of the probabilities. Interrupted: Ctrl-C; the same call goes on.
    """
    out, config = Path(out), config or Config()
    if export:
        refuse_hidden()
    if like is not None and out.resolve() == Path(like).resolve():
        raise UsageError("is the earlier audit itself", out, "give another folder for what comes later")
    before = None if like is None else open_like(Path(like), run, probs)
    job = replace(make_job(Path(source), out, config, run, probs, before), trust_code=trust_code)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        claim(job, overwrite)
        sweep(out, *(path for path in out.iterdir() if path.is_dir()))
        if (out / ANSWER).exists():
            message("already finished; --overwrite begins anew")
            answer: dict[str, Any] = json.loads((out / ANSWER).read_text())
        else:
            try:
                answer = _audited(job, workers, processes)
            except KeyboardInterrupt:
                raise Interrupted("stopped", out, "the same command goes on from there") from None
            except (DataError, UsageError):
                release(job)
                raise
        if warning := answer["facts"].get("warning"):
            message(f"warning: {warning}")
        if drawn := sum(len(case.raters) > 1 for case in job.cases):
            command = f"maskmend raters {shlex.quote(str(job.dataset.root))} -o RATERS"
            message(f"several raters drew {drawn} of the cases: `{command}` compares them")
        if export:
            records = [CaseRecord.from_json(one) for one in answer["records"]]
            for file in write_exports(out, replace(job.dataset, cases=job.cases), records, limit=export):
                message(f"wrote {file}")
        return answer


def _audited(job: Job, workers: int, processes: int | None) -> dict[str, Any]:
    began = time.monotonic()
    probs, over = _source(job, workers), spread(processes or _most_processes(job))
    several = 0 if job.like else min(len(job.cases), estimate.FIT_ON + EXAMINED)
    with kept(job.out, several) as place:
        looks = LooksOf({case.id: case for case in job.cases}, replace(job.dataset, cases=()), probs, place)
        return _concluded(job, looks, over, began)


def _concluded(job: Job, looks: LooksOf, over: Mapper, began: float) -> dict[str, Any]:
    auditor = job.like.learnt.auditor if job.like else _fitted(job, looks, over)
    most = job.config.data.max_voxels
    with bar("looking at outlines", len(job.cases)) as shown:
        outlines = look_at_outlines(
            job.cases, job.dataset, max_voxels=most, progress=lambda: shown.update(1), over=over
        )
    if job.like:
        witness, check = job.like.learnt.witness(outlines), job.like.learnt.check
    else:
        witness = outlines.witness().weighed(auditor.flawed_outlines())
        ids, seed = [case.id for case in job.cases], job.config.audit.seed
        check = SelfCheck.of(auditor, looks, ids, seed, backing=witness.backing, over=over)
    work = CaseWork(looks, auditor, check, witness, job.out, most, _learnt_from(job))
    records, totals, volumes = _judged(job, work, over)
    facts = _facts(job, auditor, check, records, totals) | {
        "images_bear_out": round(witness.backing, 3),
        "seconds": round(time.monotonic() - began, 1),
    }
    if not job.like:
        seen = any(record.in_sample for record in records)
        turned = looks.probs.turned if isinstance(looks.probs, ProbsFolder) else None
        _learnt(job, turned, seen, auditor, check, outlines, witness, volumes).write(job.out / LEARNT)
    return _written(job, records, facts, over)


def _fitted(job: Job, looks: LooksOf, over: Mapper) -> Auditor:
    ids = [case.id for case in job.cases]
    trusted = frozenset(case.id for case in job.cases if case.trusted)
    with bar("learning what is usual", 2 * min(len(ids), estimate.FIT_ON)) as shown:
        return estimate.fit(looks, ids, trusted, seed=job.config.audit.seed, progress=shown.update, over=over)


def _learnt(
    job: Job,
    turned: bool | None,
    in_sample: bool,
    auditor: Auditor,
    check: SelfCheck,
    outlines: Outlines,
    witness: ImageWitness,
    volumes: Mapping[str, dict[str, float]],
) -> Learnt:
    unseen: Sequence[Sequence[Case]] = []
    if job.source == "folds":
        parts = folds(job.cases, job.config.audit.folds, job.config.train.seed)
        unseen = [held_out for _, held_out in parts]
    place, model = None, ""
    if job.source == "run":
        from maskmend.train.run_folder import Run

        assert job.place is not None
        place, model = job.place.resolve(), Run.open(job.place).digest()
    hidden = pseudonyms.active() is not None
    return Learnt(
        job.source, place, model, turned, job.config.audit.axes, in_sample, hidden, dict(job.dataset.labels),
        len(job.largest),
        fold_numbers(unseen), auditor, check, outlines, witness.expected,
        witness.scale if witness.odds else None, volumes,
    )  # fmt: skip


def _most_processes(job: Job) -> int:
    values = prod(job.largest) * (1 + len(job.dataset.labels))
    seconds = CASE_S[len(job.largest)] + VALUE_S * values
    return most_processes(len(job.cases) * seconds, VALUE_BYTES * values / 2**30)


def _source(job: Job, workers: int) -> Probs:
    """The probabilities of every case, trained for or found."""
    if job.source == "folds" and not job.like:
        dataset = replace(job.dataset, cases=job.cases)
        return Stored(judge_by_folds(dataset, job.out, job.config, job.config.audit.folds, workers))
    if job.source == "files":
        assert job.place is not None
        axes, learnt = job.config.audit.axes, job.like.learnt if job.like else None
        if learnt and axes == "auto":
            axes = learnt.axes
        folder = ProbsFolder(job.place, job.dataset, axes, learnt.turned if learnt else None)
        folder.check(job.cases)
        return folder
    from maskmend.train.run_folder import Run

    store = Store(job.out / PROBS)
    for place, cases in _runs(job).items():
        model = Run.open(place, trust_code=job.trust_code)
        if not job.like and list(model.labels.values()) != list(job.dataset.labels.values()):
            fact = f"the run's classes are {model.labels}, the data set's {dict(job.dataset.labels)}"
            raise UsageError(fact, place, "audit the data set it was trained on")
        predict_cases(
            model, [case for case in cases if not store.has(case.id)], job.dataset, store, job.config
        )
    return Stored(store)


def _runs(job: Job) -> dict[Path, list[Case]]:
    """The runs that judge, each with its cases."""
    if job.like:
        return runs_for(job.like, job.cases, job.place)
    assert job.place is not None
    return {job.place: list(job.cases)}


def _learnt_from(job: Job) -> dict[str, dict[int, int]]:
    """Voxels by value of each mask that a run has learnt, by case; models by fold have seen none that they judge."""
    from maskmend.train.run_folder import Run

    if job.source != "run":
        return {}
    assert job.place is not None
    return {case.id: case.voxels for case in Run.open(job.place, trust_code=job.trust_code).fingerprint.cases}


def _judged(
    job: Job, work: CaseWork, over: Mapper
) -> tuple[list[CaseRecord], Totals, dict[str, dict[str, float]]]:
    """Every case's record, worst first, with its files written; totals; and volumes by case and class."""
    from maskmend.audit.structure import against_data_set, volume_outliers

    totals, done = Totals(list(job.dataset.labels)), []
    with bar("judging masks", len(job.cases)) as shown:
        for one in over(work, job.cases):
            totals.add(one.joint, one.offsets_mm, one.record.rater, one.record.site)
            done.append(one)
            shown.update(1)
    volumes = {one.record.case: one.volumes_mm3 for one in done}
    outliers = volume_outliers({**job.like.learnt.volumes_mm3, **volumes} if job.like else volumes)
    odd = against_data_set(
        {one.record.case: (*one.record.structure, *outliers.get(one.record.case, ())) for one in done}
    )
    others = elsewhere([one.trace for one in done])
    records = [
        _told_apart(
            replace(one.record, structure=tuple(odd[one.record.case])),
            one.flipped,
            *others.get(one.record.case, ("", 0.0)),
        )
        for one in done
    ]
    return sorted(records, key=lambda one: (-one.priority, one.case)), totals, volumes


def _told_apart(record: CaseRecord, flip: float, other: str, sure: float) -> CaseRecord:
    """The record, if its mask is mirrored or of another case as such, by what is surer."""
    if flip > 0 and flip >= sure:
        return mixed_up(record, "left-right flip", flip)
    return replace(mixed_up(record, "wrong file", sure), remark=f"fits {other}") if other else record


def _facts(
    job: Job, auditor: Auditor, check: SelfCheck, records: Sequence[CaseRecord], totals: Totals
) -> dict[str, Any]:
    flawed = np.array([record.flawed for record in records])
    wide = 1.64 * float(np.sqrt((flawed * (1 - flawed)).sum() + (COUNT_ERROR * len(flawed)) ** 2))
    exam, trained = check.facts(), job.source == "folds" and not job.like
    return {
        "maskmend": version("maskmend"),
        "dataset": str(job.dataset.root),
        "source": job.source,
        "probabilities": str(job.place) if job.place else None,
        "like": str(job.like.folder) if job.like else None,
        "in_sample": any(record.in_sample for record in records),
        "folds": job.config.audit.folds if trained else None,
        "method": job.config.method.name if trained else None,
        "cases": len(records),
        "classes": dict(job.dataset.labels),
        "flawed": {
            "expected": round(float(flawed.sum()), 1),
            "low": round(max(0.0, float(flawed.sum()) - wide), 1),
            "high": round(min(float(len(records)), float(flawed.sum()) + wide), 1),
        },
        "model_bias_mm": {
            name: round(float(offset), 3)
            for name, offset in zip(
                list(job.dataset.labels)[1:], usual_offsets(auditor.population.usual.offsets), strict=True
            )
        },
        "check": exam,
        "warning": weakness(exam),
        "budget": budget(records),
        **totals.facts(),
    }


def _written(job: Job, records: Sequence[CaseRecord], facts: dict[str, Any], over: Mapper) -> dict[str, Any]:
    """Table, report, then the answer: with it the audit is finished."""
    write_text(job.out / TABLE, _csv(table_rows(records)))
    write_text(job.out / PARTS, _csv(part_rows(records), PART_COLUMNS))
    report = _report(job, records, facts, over)
    answer = {
        "facts": facts,
        "table": str(job.out / TABLE),
        "report": str(report) if report else None,
        "records": [record.to_json() for record in records],
    }
    if not job.config.audit.keep_probs:
        shutil.rmtree(job.out / PROBS, ignore_errors=True)
    shutil.rmtree(job.out / CACHE, ignore_errors=True)
    write_text(job.out / ANSWER, json.dumps(plain(answer), indent=1, ensure_ascii=False) + "\n")
    return answer


def _report(job: Job, records: Sequence[CaseRecord], facts: dict[str, Any], over: Mapper) -> Path | None:
    from maskmend.audit.report import write_audit_report

    told = facts | {"settings": dump(job.config)}
    return write_audit_report(job.out, job.dataset, records, told, over=over)


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
