"""What the audit's page says of the data set as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskmend.audit import figures
from maskmend.audit.charts import Chart, budget_chart, histogram_chart
from maskmend.audit.record import CaseRecord
from maskmend.data.case import Dataset
from maskmend.draw import ESTIMATE, GIVEN
from maskmend.overlay import CLASS_COLOURS
from maskmend.pseudonyms import title_of
from maskmend.report import Section, Table, installed_version

PLAIN_ROWS = 200
LEAST_REACH_MM = 0.25

MEANING = (
    ("Quality", "The estimated Dice of the given mask against the unknown truth, mean over its classes: 1 is perfect. "
     "The pale bar is the 90 % interval. It is an estimate by models that have not seen the mask, not a measurement."),
    ("Wrong share", "Expected wrong voxels, drawn too much or left out, divided by the foreground."),
    ("Priority", "What the list is sorted by: how much a look at this case is expected to mend: the quality that is "
     "missing to 1, times how sure it is that the mask is flawed."),
    ("Main error", "The kind that explains most of a case's wrong voxels; \"sound\" means no error worth a look. Sure "
     "is the probability of that kind."),
    ("Outline offset", "How far the given outline lies outside (+) or inside (−) the estimated one, on average. A "
     "rater who is off by the same distance everywhere follows another rule rather than being careless."),
    ("Noise map", "For every voxel the probability that its label is wrong."),
    ("Doubtful parts", "Connected parts of a class, each judged by itself: those that are drawn and perhaps not "
     "there, or there and perhaps not drawn (Dice: how likely the mask is right), and where a class has several "
     "the flawed ones."),
    ("Findings in the mask", "What is odd about a mask by itself, without any model: loose parts, holes, ragged "
     "outlines, slices that do not fit. Not every finding is an error."),
)  # fmt: skip


BORNE_OUT = 0.5
"""How far images must bear out the models (`ImageWitness.backing`) for nothing to be said of it."""


FEW = 5
"""Masks, fewer than which have no distribution and no order in which to mend them."""


def page_context(dataset: Dataset, records: Sequence[CaseRecord], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs to know of the data set as a whole.

    Args:
        dataset: as found, with its classes named.
        records: worst first.
        facts: all optional. "title"; "notes": sentences for the top; "flawed": {"expected", "low", "high"} cases;
            "noise_rate": {"estimate", "low", "high"} or a number (or "wrong_share"), instead of what the records add up
            to; "confusion": {given class: {true class: expected voxels}}; "class_noise": {class: {"wrong_of_given",
            "missing_of_true"}}; "check": the audit's exam, see `selfcheck.SelfCheck.facts`; "warning": why counts are
            not to be believed, they are then left out; "like": the earlier audit that judged; "in_sample": the model
            has seen these masks; "images_bear_out": how far, in [0, 1], images bear out what the models say;
            "sections": further `maskmend.report.Section`s, e.g. `RaterReport.sections()`; "settings": text or mapping,
            shown folded. Other plain values make the table
            of how the audit was made.
    """
    found = figures.groups(records)
    ends = [
        abs(end)
        for one in found
        if one.offset_mm
        for end in (one.offset_mm.value, one.offset_mm.low, one.offset_mm.high)
    ]
    curve = figures.budget_curve(records)
    foreground = [(name, value) for name, value in dataset.labels.items() if value]
    colours = [CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(len(foreground))]
    legend = [(i + 1, name, colours[i]) for i, (name, _) in enumerate(foreground)]
    return {
        "title": str(facts.get("title") or f"Audit of {title_of(dataset.root)}"),
        "lead": [*_lead(records, curve, facts), *map(str, facts.get("notes", ()))],
        "tiles": _tiles(records, curve, facts),
        "charts": [] if len(records) < FEW else [_histogram(records), _budget(curve)],
        "legend": legend if len(legend) > 1 else [], "given": GIVEN, "suggested": ESTIMATE,
        "plain": [_plain_row(record) for record in records[:PLAIN_ROWS]],
        "kinds": figures.kinds(records),
        "groups": found, "reach": max([LEAST_REACH_MM, *(end for end in ends if np.isfinite(end))]),
        "confusion": _confusion(facts.get("confusion")),
        "sections": [*_class_noise(facts), *facts.get("sections", ()), *_exam(facts), *_made(facts)],
        "meaning": MEANING, "footer": f"maskmend {installed_version()}",
    }  # fmt: skip


def _lead(records: Sequence[CaseRecord], curve: np.ndarray, facts: Mapping[str, Any]) -> list[str]:
    lead = [str(facts.get("warning") or _expected(records, curve, facts))]
    if facts.get("like"):
        lead.append(f"Judged like the audit in {facts['like']}, by its models and measures.")
    if facts.get("in_sample"):
        seen = sum(record.in_sample for record in records)
        which = f"{seen} of these masks" if 0 < seen < len(records) else "these masks"
        lead.append(f"The model that judges has learnt from {which}: it excuses errors that it has seen.")
    if float(facts.get("images_bear_out", 1.0)) < BORNE_OUT:
        lead.append(
            "The images hardly bear out what the models say of these masks: either few borders can be seen in them, or "
            "no mask is exact. So cases are ordered by their estimated Dice."
        )
    return lead


def _expected(records: Sequence[CaseRecord], curve: np.ndarray, facts: Mapping[str, Any]) -> str:
    if len(records) == 1:
        return f"The mask has an error worth mending with a probability of {100 * records[0].flawed:.0f} %."
    text = f"About {_flawed(records, facts)[0]} of {len(records)} masks are expected to have an error worth mending."
    steps = figures.budget_steps(curve) if len(records) >= FEW else []
    if curve[-1] > 0 and steps:
        count, share = steps[1] if len(steps) > 1 else steps[0]
        what = "the worst one" if count == 1 else f"the worst {count}"
        text += (
            f" Re-drawing {what} ({100 * count / len(records):.0f} % of the cases) is expected to remove "
            f"{100 * share:.0f} % of the wrong voxels."
        )
    return text


def _flawed(records: Sequence[CaseRecord], facts: Mapping[str, Any]) -> tuple[str, str]:
    """How many masks are expected to be flawed, and the interval in words."""
    told = facts.get("flawed")
    if not isinstance(told, Mapping):
        return f"{figures.flawed_cases(records):.0f}", ""
    return f"{told['expected']:.0f}", f" (90 % interval {told['low']:.0f} to {told['high']:.0f})"


def _tiles(
    records: Sequence[CaseRecord], curve: np.ndarray, facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    rate, interval = _rate(records, facts.get("noise_rate", facts.get("wrong_share")))
    wrong = (rate, f"of the foreground is expected to be wrong{interval}")
    if len(records) == 1:
        dice = (f"{records[0].quality:.2f}", "estimated Dice")
        return [("1", "mask looked at"), *([] if facts.get("warning") else [wrong]), dice]
    flawed, between = _flawed(records, facts)
    counted = [(flawed, f"expected to have an error worth mending{between}"), wrong]
    low, middle, high = figures.spread_of(records, lambda record: record.quality)
    worst = min(record.quality for record in records)
    tiles = [
        (f"{len(records):,}", "masks looked at"),
        *([("not known", "how many have an error")] if facts.get("warning") else counted),
        (f"{worst:.2f}", "lowest estimated Dice")
        if len(records) < FEW
        else (
            f"{middle:.2f}",
            f"median estimated Dice; eight in ten masks lie between {low:.2f} and {high:.2f}",
        ),
    ]
    half = int(np.searchsorted(curve, 0.5)) if curve[-1] > 0 and len(records) >= FEW else 0
    hold = "case holds" if half == 1 else "cases hold"
    return tiles + ([(f"{half:,}", f"{hold} half of all wrong voxels")] if half else [])


def _rate(records: Sequence[CaseRecord], told: Any) -> tuple[str, str]:
    """The noise rate, and its interval in words."""
    if isinstance(told, Mapping):
        value, low, high = (float(told.get(key, np.nan)) for key in ("estimate", "low", "high"))
    elif told is not None:
        value, low, high = float(told), np.nan, np.nan
    else:
        found = figures.noise_rate(records)
        value, low, high = found.value, found.low, found.high
    known = np.isfinite(low) and np.isfinite(high)
    return f"{100 * value:.1f} %", f" (90 % interval {100 * low:.1f} to {100 * high:.1f} %)" if known else ""


def _histogram(records: Sequence[CaseRecord]) -> Chart:
    bins = figures.histogram([record.quality for record in records])
    low, middle, high = figures.spread_of(records, lambda record: record.quality)
    alt = f"Histogram of quality: median {middle:.2f}, eight in ten between {low:.2f} and {high:.2f}"
    return histogram_chart(bins, "estimated Dice of the given mask", alt, "How good the given masks are.")


def _budget(curve: np.ndarray) -> Chart:
    steps = figures.budget_steps(curve)
    told = "; ".join(f"{n} case{'s' if n > 1 else ''}: {100 * share:.0f} %" for n, share in steps)
    alt = f"Share of the wrong voxels in the worst cases: {told}"
    return budget_chart(list(curve), alt, f"What a given effort mends, expected. {told}.")


def _plain_row(record: CaseRecord) -> list[str]:
    share = f"{100 * record.wrong_share:.1f} %"
    return [record.case, f"{record.priority:.2f}", f"{record.quality:.2f}", share, record.kind]


def _confusion(
    told: Mapping[str, Mapping[str, float]] | None,
) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    if not told:
        return None
    columns = list(dict.fromkeys([*told, *(name for row in told.values() for name in row)]))
    rows = []
    for name, row in told.items():
        total = sum(row.values())
        shares = [100 * row.get(column, 0.0) / total if total else 0.0 for column in columns]
        rows.append((name, [f"{share:.1f} %" if share < 99.95 else "100 %" for share in shares]))
    return columns, rows


def _class_noise(facts: Mapping[str, Any]) -> list[Section]:
    told = facts.get("class_noise")
    if not told:
        return []
    rows = [
        [name, f"{100 * one['wrong_of_given']:.1f} %", f"{100 * one['missing_of_true']:.1f} %"]
        for name, one in told.items()
    ]
    table = Table(["class", "of the given voxels, wrong", "of the true voxels, left out"], rows, (1, 2))
    return [Section("How wrong each class is", table=table)]


def _exam(facts: Mapping[str, Any]) -> list[Section]:
    """How well the audit found errors that were made on purpose."""
    told = facts.get("check")
    if not told:
        return []
    whose = "the earlier audit" if facts.get("like") else "this data set"
    text = [
        f"Errors were made on purpose in masks of {whose} that look sound, and judged like any other: "
        f"{told['masks']} masks in all. Errors of people may be harder or easier to see."
    ]
    rows = [
        ("A flawed mask ranks above a sound one", _share(told.get("auroc")), "50 % would be chance"),
        (
            "Estimated and true Dice go together",
            _number(told.get("dice_correlation")),
            "correlation; 1 is perfect",
        ),
        ("The kind of error is named rightly", _share(told.get("kind_accuracy")), "of those found flawed"),
        ("True Dice of the flawed masks", _number(told.get("flawed_dice")), "before"),
        (
            "True Dice of the suggested masks",
            _number(told.get("mended_dice")),
            "after taking every suggestion",
        ),
        (
            "True Dice of suggestions for sound masks",
            _number(told.get("sound_mended_dice")),
            "1 would be: left alone",
        ),
        (
            "Wrong voxels, expected and true",
            f"{told.get('expected_wrong', 0):,} / {told.get('true_wrong', 0):,}",
            "",
        ),
    ]
    return [Section("How far to trust these figures", text, Table(("", "", ""), rows, (1,)))]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


_SHOWN_ELSEWHERE = (
    "title", "noise_rate", "wrong_share", "confusion", "notes", "sections", "settings", "flawed", "check", "warning",
    "class_noise", "in_sample", "images_bear_out", "maskmend", "like",
)  # fmt: skip


def _made(facts: Mapping[str, Any]) -> list[Section]:
    """How the audit was made, and its settings."""
    plain = {
        key.replace("_", " "): str(value) for key, value in facts.items()
        if key not in _SHOWN_ELSEWHERE and isinstance(value, str | int | float) and not isinstance(value, bool)
    }  # fmt: skip
    settings = facts.get("settings", "")
    text = (
        settings
        if isinstance(settings, str)
        else json.dumps(settings, indent=1, ensure_ascii=False, default=str)
    )
    if not plain and not text:
        return []
    table = Table(("", ""), list(plain.items())) if plain else None
    return [Section("How this audit was made", table=table, code=text, folded="all settings" if text else "")]
