"""What the records of an audit say of the data set as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.audit.record import CaseRecord, ClassRecord

RESAMPLES = 1000
LEAST_CASES = 3  # below, a mean offset says nothing of a rater or site


@dataclass(frozen=True)
class Range:
    """A figure with its 90 % interval over cases; `low` and `high` are NaN with fewer than two."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Group:
    """Cases that share a class, rater or site.

    Args:
        what: "class", "rater" or "site".
        name: which.
        offset_mm: mean signed distance by which the given outlines lie outside the estimated ones.
        wrong_share: of the foreground.
    """

    what: str
    name: str
    offset_mm: Range | None
    wrong_share: Range


@dataclass(frozen=True)
class KindCount:
    """How often one kind of error is the main one, and its share of all expected wrong voxels."""

    kind: str
    cases: int
    wrong_share: float


def noise_rate(records: Sequence[CaseRecord]) -> Range:
    """Expected wrong voxels over foreground voxels, all cases together."""
    wrong = np.array([record.wrong_voxels for record in records], float)
    return _ratio(wrong, np.array([_foreground(record) for record in records], float))


def _foreground(record: CaseRecord) -> float:
    """Given or suggested foreground, in voxels."""
    if record.wrong_share > 0:
        return record.wrong_voxels / record.wrong_share
    return float(sum(max(one.given_voxels, one.suggested_voxels) for one in record.classes))


def _ratio(above: np.ndarray, below: np.ndarray) -> Range:
    """sum(above) / sum(below) with a bootstrap interval over cases."""
    total = below.sum()
    value = float(above.sum() / total) if total else 0.0
    if len(above) < 2 or not total:
        return Range(value, float("nan"), float("nan"), len(above))
    rng, ratios = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        picks = rng.integers(len(above), size=len(above))
        ratios.append(above[picks].sum() / max(below[picks].sum(), 1e-9))
    low, high = np.quantile(ratios, (0.05, 0.95))
    return Range(value, float(low), float(high), len(above))


def flawed_cases(records: Sequence[CaseRecord]) -> float:
    """How many masks are expected to have an error worth mending."""
    return float(sum(record.flawed for record in records))


def groups(records: Sequence[CaseRecord]) -> list[Group]:
    """Offset and wrong share by class, rater and site; raters and sites only where there are several."""
    found = []
    names = dict.fromkeys(one.name for record in records for one in record.classes)
    for name in names:
        members = [one for record in records for one in record.classes if one.name == name]
        found.append(Group("class", name, _offset(members), _class_share(members)))
    for what in ("rater", "site"):
        named = dict.fromkeys(str(getattr(record, what)) for record in records)
        if len(named) < 2:
            continue
        for name in sorted(named):
            part = [record for record in records if getattr(record, what) == name]
            members = [one for record in part for one in record.classes]
            found.append(Group(what, name or "not named", _offset(members), noise_rate(part)))
    return found


def _offset(members: Sequence[ClassRecord]) -> Range | None:
    from maskmend.evaluate.statistics import bootstrap_interval

    offsets = [one.offset_mm for one in members if one.offset_mm is not None and np.isfinite(one.offset_mm)]
    if len(offsets) < LEAST_CASES:
        return None
    # One mask of another case lies centimetres off, and must not make a rater's bias.
    middle = np.clip(offsets, *np.quantile(offsets, (0.1, 0.9)))
    found = bootstrap_interval(middle, level=0.9, resamples=RESAMPLES)
    return Range(found.estimate, found.low, found.high, found.n)


def _class_share(members: Sequence[ClassRecord]) -> Range:
    size = np.array([max(one.given_voxels, one.suggested_voxels) for one in members], float)
    return _ratio(size * np.array([one.wrong_share for one in members]), size)


def kinds(records: Sequence[CaseRecord]) -> list[KindCount]:
    """Main kinds of error, by how much of all that is wrong they hold; sound masks last."""
    total = sum(record.wrong_voxels for record in records) or 1.0
    counts = Counter(record.kind for record in records)
    held = {kind: sum(r.wrong_voxels for r in records if r.kind == kind) / total for kind in counts}
    ordered = sorted(counts, key=lambda kind: (kind == "sound", -held[kind]))
    return [KindCount(kind, counts[kind], held[kind]) for kind in ordered]


def budget_curve(records: Sequence[CaseRecord]) -> np.ndarray:
    """(N + 1,) share of all expected wrong voxels in the worst 0, 1, ... N cases, worst first by priority."""
    ordered = worst_first(records)
    held = np.cumsum([0.0, *(record.wrong_voxels for record in ordered)])
    curve: np.ndarray = held / held[-1] if held[-1] > 0 else np.zeros(len(held))
    return curve


def worst_first(records: Iterable[CaseRecord]) -> list[CaseRecord]:
    """Records by priority; ties by quality, then by id."""
    return sorted(records, key=lambda record: (-record.priority, record.quality, record.case))


def budget_steps(
    curve: np.ndarray, steps: Sequence[float] = (0.05, 0.1, 0.2, 0.5)
) -> list[tuple[int, float]]:
    """(cases, share of the wrong voxels) at these shares of all cases; at least one case, none twice."""
    n = len(curve) - 1
    cases = sorted({max(1, round(step * n)) for step in steps} & set(range(1, n + 1)))
    return [(count, float(curve[count])) for count in cases]


def histogram(values: Sequence[float], bins: int = 20) -> list[tuple[float, float, int]]:
    """(from, to, cases) over [0, 1]; empty bins below the lowest value are left out."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))
    used = np.flatnonzero(counts)
    first = int(used[0]) if len(used) else 0
    return [(float(edges[i]), float(edges[i + 1]), int(counts[i])) for i in range(first, bins)]


def spread_of(
    records: Sequence[CaseRecord], get: Callable[[CaseRecord], float]
) -> tuple[float, float, float]:
    """Tenth percentile, median and ninetieth percentile of a figure."""
    low, middle, high = np.quantile([get(record) for record in records], (0.1, 0.5, 0.9))
    return float(low), float(middle), float(high)
