"""An earlier audit, opened so that other masks can be judged like its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from maskmend import pseudonyms
from maskmend.audit.folds import RUNS
from maskmend.audit.learnt import LEARNT, Learnt
from maskmend.config import DataConfig
from maskmend.data.case import Case
from maskmend.data.check import find_options
from maskmend.data.dataset import find_cases
from maskmend.data.sidefile import load_json
from maskmend.errors import UsageError

STATE, ANSWER = "state.json", "audit.json"


class Like(NamedTuple):
    """Where it lies, and what it has learnt."""

    folder: Path
    learnt: Learnt


def open_like(folder: Path, run: Path | str | None, probs: Path | str | None) -> Like:
    """Open an audit to judge other masks by it.

    Args:
        folder: of the audit.
        run: where its run lies now.
        probs: of the cases to judge; needed where the audit had probabilities of another program, and only there.

    Raises:
        UsageError: no audit, one that is not finished, or one by which nothing else can be judged.
    """
    if not (folder / LEARNT).is_file():
        raise _nothing_learnt(folder)
    learnt = Learnt.read(folder / LEARNT)
    if not _named_alike(learnt):
        fact = "goes by other names of cases, so it cannot be told which model has seen which"
        raise UsageError(fact, folder, "give the --phi-safe NAMES of then, or none where there was none")
    if learnt.in_sample:
        fact = "judged masks that its run had learnt, so it does not know how others look to it"
        raise UsageError(
            fact, folder, "audit masks that the run has not seen (--run), or by folds, and give that audit"
        )
    if learnt.source == "files" and probs is None:
        fact = "was made with probabilities of another program"
        raise UsageError(fact, folder, "give those of the new cases, by the same model: --probs DIR")
    if learnt.source != "files" and probs is not None:
        raise UsageError("judges by its own models", folder, "leave out --probs")
    if learnt.source != "run" and run is not None:
        raise UsageError("was not made with a run", folder, "leave out --run")
    return Like(folder, learnt)


def runs_for(like: Like, cases: Sequence[Case], run: Path | None) -> dict[Path, list[Case]]:
    """The run folders that judge, each with its cases: of folds one that has not seen the case.

    Raises:
        UsageError: the run, or that of a fold, is not there any more, or is another now.
    """
    if like.learnt.source == "run":
        from maskmend.train.run_folder import Run

        place = run or like.learnt.place
        assert place is not None
        if not place.is_dir():
            raise UsageError(f"its run is not at {place} any more", like.folder, "say where it is: --run DIR")
        if like.learnt.model and Run.open(place).digest() != like.learnt.model:
            fact = f"holds another model than {like.folder} was made with, which was measured with that one"
            raise UsageError(fact, place, "give the run as it was then, or audit anew with this one")
        return {place: list(cases)}
    found: dict[Path, list[Case]] = {}
    for case in cases:
        found.setdefault(like.folder / RUNS / str(like.learnt.fold_of(case)), []).append(case)
    gone = [place for place in found if not place.is_dir()]
    if gone:
        raise UsageError(
            f"the model of its fold is gone ({gone[0]})", like.folder, "audit the data set again"
        )
    return dict(sorted(found.items()))


def as_before(source: Path, data: DataConfig, labels: Mapping[str, int]) -> DataConfig:
    """Settings for masks so few that they need not show all classes.

    Where the data set does not say what its values mean, they mean what they did in the earlier audit.
    """
    more: dict[str, object] = {"allow_missing_classes": True}
    if not (data.labels or find_cases(source, need_labels=False, **find_options(data)).labels):
        more["labels"] = dict(labels)
    return data.model_copy(update=more)


def _named_alike(learnt: Learnt) -> bool:
    names = pseudonyms.active()
    if names is None or not learnt.hidden:
        return (names is not None) == learnt.hidden
    return any(names.original(case) != case for case in learnt.volumes_mm3)


def _nothing_learnt(folder: Path) -> UsageError:
    if not (folder / STATE).is_file():
        return UsageError("is no audit", folder, "give the -o of `maskmend audit`")
    if not (folder / ANSWER).is_file():
        return UsageError("is not finished", folder, "the command that began it goes on from there")
    by = load_json(folder / ANSWER).get("facts", {}).get("like")
    if by:
        return UsageError("was judged like another one itself", folder, f"--like {by}")
    return UsageError(
        "is of an earlier maskmend, which did not keep what it had learnt", folder, "audit again"
    )
