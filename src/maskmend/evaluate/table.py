"""Score a folder of predictions: one row per case and class, and a summary with intervals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend.config import Config
from maskmend.data.atomic import write_text
from maskmend.data.geometry_check import apart_mm, shape_hint
from maskmend.data.images import read_label
from maskmend.errors import DataError
from maskmend.evaluate.metrics import ABSENT, METRICS, ClassMetrics, case_metrics
from maskmend.evaluate.pairs import Pair, Pairs, find_pairs
from maskmend.evaluate.statistics import bootstrap_interval
from maskmend.fanout import spread
from maskmend.plain import plain

if TYPE_CHECKING:
    from rich.table import Table

ALL_CLASSES = "mean of classes"
"""The summary's name for each case's mean over its classes."""

_SHOWN = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95",
    "asd_mm": "ASD",
    "surface_dice": "surface Dice",
    "volume_difference_relative": "volume",
}
_AVERAGED = METRICS[:5]  # volumes of different organs have no common mean


@dataclass(frozen=True)
class Row:
    """One class of one case.

    Args:
        case: id of the case.
        label: name of the class.
        metrics: its figures.
        group: patient, when known.
        site: where the case is from, when known.
    """

    case: str
    label: str
    metrics: ClassMetrics
    group: str | None = None
    site: str | None = None

    def flat(self) -> dict[str, Any]:
        """One level of keys, in the order of the CSV file; NaN becomes None."""
        figures = plain(asdict(self.metrics))
        return {"case": self.case, "label": self.label, **figures, "group": self.group, "site": self.site}


@dataclass(frozen=True)
class Summary:
    """One metric of one class over the cases.

    Args:
        label: class name, or "mean of classes".
        metric: one of `METRICS`.
        mean: over cases where it is defined.
        low: lower end of the mean's 95 % bootstrap interval; NaN with fewer than two cases (or groups).
        high: upper end.
        median: over the same cases.
        n: number of those cases.
        n_empty: cases left out because neither mask has the class.
        missed: cases whose prediction lacks the class; they count as worst.
        spurious: cases whose reference lacks the class; they count as worst.
    """

    label: str
    metric: str
    mean: float
    low: float
    high: float
    median: float
    n: int
    n_empty: int
    missed: int
    spurious: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of predictions.

    Args:
        rows: one per case and class, sorted by case.
        summary: one per class and metric; with several classes also for the mean of classes.
        labels: class name to value.
        tolerance_mm: of the surface Dice.
        unmatched: predictions without a reference, not scored.
        volume_unit: "ml", or "cm2" for 2-D images; "1000 px" and "100 px" where `unit` is "px".
        unit: of distances and of the tolerance, whatever the keys are called: "mm"; "px" where no file knows a
            voxel size (PNG), so that one counts as 1; "mm or px" where only some do.
    """

    rows: tuple[Row, ...]
    summary: tuple[Summary, ...]
    labels: Mapping[str, int]
    tolerance_mm: float
    unmatched: tuple[str, ...] = ()
    volume_unit: str = field(default="ml")
    unit: str = field(default="mm")

    def __getitem__(self, key: tuple[str, str]) -> Summary:
        """`evaluation["tumour", "dice"].mean`."""
        for row in self.summary:
            if (row.label, row.metric) == key:
                return row
        raise KeyError(key)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready facts: summary, rows and what the figures mean; NaN becomes None."""
        summary = [plain(asdict(row)) for row in self.summary]
        return {
            "unit": self.unit,
            "tolerance_mm": self.tolerance_mm,
            "volume_unit": self.volume_unit,
            "labels": dict(self.labels),
            "summary": summary,
            "rows": [row.flat() for row in self.rows],
            "unmatched": list(self.unmatched),
        }

    def to_csv(self, path: Path | str) -> None:
        """Write one line per case and class, atomically; what is undefined stays empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0].flat()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.flat() for row in self.rows)
        write_text(Path(path), text.getvalue())

    def to_table(self) -> Table:
        """A table for a terminal: a line per class, mean and 95 % interval per metric."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=Text(self._caption()), caption_justify="left", show_lines=True)
        for heading in ("class", *map(self._shown, _SHOWN), "cases", "absent", "missed", "spurious"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for label in dict.fromkeys(row.label for row in self.summary):
            rows = {row.metric: row for row in self.summary if row.label == label}
            first = rows["dice"]
            counts = (first.n, first.n_empty, first.missed, first.spurious)
            cells = [_cell(rows.get(metric), metric) for metric in _SHOWN]
            table.add_row(Text(label), *cells, *map(str, counts))
        return table

    def to_list(self) -> Table:
        """The figures of `to_table` where that is too wide: a line per class and metric, the classes parted."""
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=None,
            pad_edge=False,
            collapse_padding=True,
            caption=Text(self._caption()),
            caption_justify="left",
        )
        table.add_column("class", overflow="fold")
        table.add_column("metric", overflow="fold")
        for heading in ("mean", "95 % interval", "cases", "absent", "missed", "spurious"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.summary:
            if row.metric in _SHOWN:
                mean, _, interval = _cell(row, row.metric).partition("\n")
                counts = (row.n, row.n_empty, row.missed, row.spurious)
                table.add_row(Text(row.label), self._shown(row.metric), mean, interval, *map(str, counts))
        return table

    def _shown(self, metric: str) -> str:
        return f"{_SHOWN[metric]} {self.unit}" if metric.endswith("_mm") else _SHOWN[metric]

    def _caption(self) -> str:
        parts = [f"mean, 95 % bootstrap interval; surface Dice at {self.tolerance_mm:g} {self.unit}"]
        parts.append("missed or spurious: Dice 0 and the image diagonal; absent in both: left out")
        if self.unit != "mm":
            parts.append("px: these files state no voxel size; data.spacing_mm= gives it")
        if self.unmatched:
            shown = ", ".join(self.unmatched[:3])
            parts.append(f"{len(self.unmatched)} predictions have no reference: {shown}")
        return "\n".join(parts)


def evaluate(
    pred: Path | str, ref: Path | str, *,
    config: Config | None = None, labels: Mapping[str, int] | None = None, ignore: int | None = None,
    spacing_mm: Sequence[float] | None = None, tolerance_mm: float | None = None,
    bootstrap: int | None = None, seed: int | None = None, processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:  # fmt: skip
    """Score predicted labels against reference labels (see `maskmend.evaluate.metrics` for empty masks).

    Args:
        pred: a label file, or a folder of them.
        ref: a label file, a folder of them, or a data set; matched to predictions by stem.
        config: settings; what follows wins over it.
        labels: class name to value of the classes to score. Else the data set's own, else every value found.
        ignore: value in the references of voxels that do not count.
        spacing_mm: voxel size where the files' own is wrong or missing (PNG), slowest axis first.
        tolerance_mm: for the surface Dice; 1 mm by default.
        bootstrap: samples for the intervals.
        seed: decides them.
        processes: cases scored at a time.
        progress: called with (cases done, cases in all).

    Raises:
        UsageError: nothing there.
        DataError: a missing prediction, shapes or positions (beyond 0.1 mm) that differ, values that do not
            match, or a damaged file.
    """
    config = config or Config()
    changes: dict[str, Any] = {"labels": None if labels is None else dict(labels), "ignore": ignore}
    changes["spacing_mm"] = None if spacing_mm is None else list(spacing_mm)
    data = config.data.model_copy(update={key: value for key, value in changes.items() if value is not None})
    pairs = find_pairs(pred, ref, data)
    tolerance = config.evaluate.tolerance_mm if tolerance_mm is None else tolerance_mm
    score = partial(
        score_pair, labels=pairs.labels, ignore=pairs.ignore, spacing_mm=pairs.spacing_mm,
        tolerance_mm=tolerance, max_voxels=data.max_voxels,
    )  # fmt: skip
    scores = list(_counted(spread(processes)(score, pairs.pairs), len(pairs.pairs), progress))
    names = dict(pairs.labels) or _names(scores)
    _check_values(scores, names, pred)
    rows = tuple(_rows(pairs, scores, names))
    samples = config.evaluate.bootstrap if bootstrap is None else bootstrap
    chosen = config.evaluate.seed if seed is None else seed
    known = [score.in_mm for score in scores]
    unit = "mm" if all(known) else "mm or px" if any(known) else "px"
    volume = {"px": ("1000 px", "100 px")}.get(unit, ("ml", "cm2"))[scores[0].ndim == 2]
    summary = summarise(rows, samples, chosen)
    return Evaluation(rows, summary, names, tolerance, pairs.unmatched, volume, unit)


@dataclass(frozen=True)
class Score:
    """What one pair of files gave.

    Args:
        metrics: class name to figures; with undeclared classes, of the values that occur.
        pred_values: values in the prediction, 0 left out.
        ref_values: values in the reference, 0 and the ignored one left out.
        ndim: 2 or 3.
        in_mm: the voxel size is known; else a voxel counts as 1.
    """

    metrics: Mapping[str, ClassMetrics]
    pred_values: frozenset[int]
    ref_values: frozenset[int]
    ndim: int
    in_mm: bool = True


def score_pair(
    pair: Pair, *, labels: Mapping[str, int], ignore: int | None, spacing_mm: Sequence[float] | None,
    tolerance_mm: float, max_voxels: int,
) -> Score:  # fmt: skip
    """Read and score one pair.

    Args:
        pair: the files.
        labels: classes to score; empty takes every value found, named class_1, class_2 and so on.
        ignore: value that does not count.
        spacing_mm: overrides the reference's.
        tolerance_mm: for the surface Dice.
        max_voxels: refuse larger files.

    Raises:
        DataError: as `evaluate`.
    """
    read = partial(read_label, max_voxels=max_voxels, spacing_mm=spacing_mm)
    (pred, pred_at), (ref, ref_at) = read(pair.pred), read(pair.ref)
    if pred.shape != ref.shape:
        hint = shape_hint(ref.shape, pred.shape)
        fact = f"the prediction's shape {pred.shape} is not the reference's {ref.shape}"
        raise DataError(fact, pair.pred, hint)
    if error := apart_mm(ref_at, pred_at):
        fact = f"the prediction lies up to {error:.3g} mm from the reference {pair.ref.name}"
        raise DataError(fact, pair.pred, "resample it to the reference's grid, or restore the header it lost")
    mask = None if pair.ignore is None else read(pair.ignore)[0]
    pred_values, ref_values = _values(pred) - {0}, _values(ref) - {0, ignore}
    classes = labels or {_name(value): value for value in sorted(pred_values | ref_values)}
    metrics = case_metrics(
        pred, ref, ref_at.spacing_mm, classes, ignore=ignore, ignore_mask=mask, tolerance_mm=tolerance_mm
    )
    in_mm = ref_at.affine is not None or spacing_mm is not None  # formats without space have no affine
    return Score(metrics, pred_values, ref_values, ref.ndim, in_mm)


def summarise(rows: Sequence[Row], bootstrap: int = 2000, seed: int = 0) -> tuple[Summary, ...]:
    """One summary per class and metric; with several classes also of each case's mean over classes.

    Args:
        rows: one per case and class.
        bootstrap: samples for the intervals. Where cases name a group (a patient), whole groups are drawn.
        seed: decides them.
    """
    labels = list(dict.fromkeys(row.label for row in rows))
    chosen = [(label, metric) for label in labels for metric in METRICS]
    out = [_summary(rows, label, metric, bootstrap, seed) for label, metric in chosen]
    if len(labels) > 1:
        out += [_summary(rows, None, metric, bootstrap, seed) for metric in _AVERAGED]
    return tuple(out)


def _summary(rows: Sequence[Row], label: str | None, metric: str, bootstrap: int, seed: int) -> Summary:
    mine = [row for row in rows if label is None or row.label == label]
    per_case: dict[str, list[float]] = {}
    group_of: dict[str, str] = {}
    for row in mine:
        value = getattr(row.metrics, metric)
        if math.isfinite(value):
            per_case.setdefault(row.case, []).append(value)
            group_of[row.case] = row.group or f"case {row.case}"
    means = {case: float(np.mean(values)) for case, values in per_case.items()}
    values = np.array(list(means.values()))
    groups = [group_of[case] for case in means]
    interval = bootstrap_interval(values, resamples=bootstrap, seed=seed, groups=groups)
    states = [row.metrics.state for row in mine]
    present = {row.case for row in mine if row.metrics.state != "absent"}
    absent = len({row.case for row in mine} - present)
    middle = float(np.median(values)) if len(values) else float("nan")
    return Summary(
        label or ALL_CLASSES, metric, interval.estimate, interval.low, interval.high, middle, len(values),
        absent, states.count("missed"), states.count("spurious"),
    )  # fmt: skip


def _counted(
    scores: Iterator[Score], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Score]:
    for done, score in enumerate(scores, 1):
        if progress:
            progress(done, total)
        yield score


def _rows(pairs: Pairs, scores: Sequence[Score], names: Mapping[str, int]) -> Iterator[Row]:
    for pair, score in zip(pairs.pairs, scores, strict=True):
        for name in names:
            yield Row(pair.case, name, score.metrics.get(name, ABSENT), pair.group, pair.site)


def _names(scores: Sequence[Score]) -> dict[str, int]:
    values = set().union(*(score.pred_values | score.ref_values for score in scores))
    return {_name(value): value for value in sorted(values)}


def _check_values(scores: Sequence[Score], names: Mapping[str, int], pred: Path | str) -> None:
    """Refuse predictions and references that speak of classes in different numbers (0/1 against 0/255)."""
    in_pred = set().union(*(score.pred_values for score in scores))
    in_ref = set().union(*(score.ref_values for score in scores))
    if not names:
        raise DataError("predictions and references hold background alone: there is no class to score", pred)
    if in_pred and in_ref and not in_pred & in_ref:
        fact = f"predictions hold {_list(in_pred)}, references {_list(in_ref)}: no value in common"
        raise DataError(fact, pred, "save both with the same class numbers")


def _values(label: np.ndarray) -> frozenset[int]:
    low, high = int(label.min(initial=0)), int(label.max(initial=0))
    if high - low < 65536:  # counting is many times faster than sorting a volume
        return frozenset((np.flatnonzero(np.bincount(label.ravel() - low)) + low).tolist())
    return frozenset(np.unique(label).tolist())


def _name(value: int) -> str:
    return f"class_{value}"


def _list(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)[:6]))


def _cell(row: Summary | None, metric: str) -> str:
    if row is None or not row.n:
        return "-"
    style = "+.1%" if metric == "volume_difference_relative" else ".2f" if metric.endswith("_mm") else ".3f"
    if not math.isfinite(row.low):
        return f"{row.mean:{style}}"
    low = f"{row.low:{style}}".removesuffix("%")  # once is enough, and 80 columns are few
    return f"{row.mean:{style}}\n{low} to {row.high:{style}}"
