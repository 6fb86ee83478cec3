"""Which prediction belongs to which reference, and what the reference's values mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maskmend import pseudonyms
from maskmend.config import DataConfig
from maskmend.data.case import Case
from maskmend.data.dataset import find_cases, hidden
from maskmend.data.formats import LABEL_SUFFIXES, stem_of, suffix_of
from maskmend.data.label_values import named_classes
from maskmend.data.layouts import detect
from maskmend.data.listing import image_files
from maskmend.errors import DataError, UsageError

_LISTED = 10


@dataclass(frozen=True)
class Pair:
    """One case to score.

    Args:
        case: its id.
        pred: the predicted label.
        ref: the true label.
        ignore: a mask whose non-zero voxels do not count.
        group: patient; None when the case is its own. Intervals resample whole groups.
        site: free text.
    """

    case: str
    pred: Path
    ref: Path
    ignore: Path | None = None
    group: str | None = None
    site: str | None = None


@dataclass(frozen=True)
class Pairs:
    """All cases to score.

    Args:
        pairs: sorted by case id.
        labels: class name to value, background left out; empty when nothing says so.
        ignore: the value of voxels that do not count.
        spacing_mm: overrides what the files say.
        unmatched: predictions without a reference.
    """

    pairs: tuple[Pair, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    ignore: int | None = None
    spacing_mm: tuple[float, ...] | None = None
    unmatched: tuple[str, ...] = ()


def find_pairs(pred: Path | str, ref: Path | str, data: DataConfig) -> Pairs:
    """Match predictions to references by stem.

    Args:
        pred: one label file, or a folder of them.
        ref: one label file, a folder of them, or a data set in any layout. Of a data set only the splits
            ("train", "test") that have a prediction at all are expected to be complete.
        data: labels, ignore, spacing_mm, layout and rater count here.

    Raises:
        UsageError: nothing there, or `data.labels` that cannot be.
        DataError: a reference without a prediction (up to ten are named), or no labelled case.
    """
    pred, ref = Path(pred).expanduser(), Path(ref).expanduser()
    if names := pseudonyms.active():
        names.know_place(pred)
        names.know_place(ref)
    for path, kind in ((pred, "prediction"), (ref, "reference")):
        if not path.exists():
            raise UsageError(f"the {kind} does not exist", path)
    found = {stem_of(pred): pred} if pred.is_file() else _label_files(pred, "predictions")
    if _is_dataset(ref, data):
        dataset = find_cases(
            ref, layout=data.layout, labels=data.labels, ignore=data.ignore, channels=data.channels,
            spacing_mm=data.spacing_mm, need_labels=False, need_images=False, rater=data.rater,
        )  # fmt: skip
        splits = {case.split for case in dataset.cases if case.id in found}
        cases = [case for case in dataset.cases if case.label and case.split in (splits or {case.split})]
        labels, ignore, spacing = dict(dataset.labels), dataset.ignore, dataset.spacing_mm
    else:
        files = {stem_of(ref): ref} if ref.is_file() else _label_files(ref, "references")
        cases = hidden(Case(stem, (), file) for stem, file in files.items())
        labels, unlabelled = named_classes(data.labels or {}, "data.labels")
        ignore = unlabelled if data.ignore is None else data.ignore
        spacing = None if data.spacing_mm is None else tuple(data.spacing_mm)
        if pred.is_file() and ref.is_file():  # two files are a pair whatever their names
            found = {cases[0].id: pred}
    labels = {name: value for name, value in labels.items() if value not in (0, ignore)}
    if names:
        found = {names.of("case", stem): file for stem, file in found.items()}
    pairs = _matched(found, cases, pred, ref)
    unmatched = tuple(sorted(found.keys() - {pair.case for pair in pairs}))
    return Pairs(pairs, labels, ignore, spacing, unmatched)


def _is_dataset(ref: Path, data: DataConfig) -> bool:
    if ref.is_file():
        return not suffix_of(ref)
    if data.layout or detect(ref, True):
        return True
    return not image_files(ref) and bool(list(ref.glob("*.csv")))


def _label_files(folder: Path, kind: str) -> dict[str, Path]:
    files = {s: f for s, f in image_files(folder).items() if suffix_of(f) in LABEL_SUFFIXES}
    if not files:
        raise UsageError(f"holds no {kind}", folder, f"expected label files: {', '.join(LABEL_SUFFIXES)}")
    return files


def _matched(found: Mapping[str, Path], cases: Iterable[Case], pred: Path, ref: Path) -> tuple[Pair, ...]:
    pairs, missing = [], []
    for case in sorted(cases, key=lambda case: case.id):
        if case.label is None:
            continue
        if case.id in found:
            pairs.append(Pair(case.id, found[case.id], case.label, case.ignore, case.group, case.site))
        else:
            missing.append(case.id)
    if missing:
        more = f" and {len(missing) - _LISTED} more" if missing[_LISTED:] else ""
        listed = ", ".join(missing[:_LISTED]) + more
        fact = f"{len(missing)} of {len(missing) + len(pairs)} references have no prediction: {listed}"
        raise DataError(fact, pred, f"predict them too, or give fewer references than {ref.name}")
    if not pairs:
        raise DataError("holds no labelled case", ref)
    return tuple(pairs)
