"""The audit as one HTML page: which masks to look at first, why, and how to open them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.audit import figures
from maskmend.audit.charts import Chart, budget_chart, histogram_chart
from maskmend.audit.files import CaseFiles, by_id, case_files
from maskmend.audit.record import CaseRecord
from maskmend.audit.thumbs import Thumb, draw_all
from maskmend.audit.viewers import open_commands, voxel_text
from maskmend.data.atomic import write_text
from maskmend.data.case import Dataset
from maskmend.draw import ESTIMATE, GIVEN
from maskmend.errors import UsageError
from maskmend.overlay import CLASS_COLOURS
from maskmend.report import Section, Table, installed_version

NAME = "report.html"
EMBEDDED_BYTES = 12_000_000
"""Pictures up to this size together are put into the page, so that it can be mailed; more stay in `thumbs/`."""

PLAIN_ROWS = 200
LEAST_REACH_MM = 0.25

MEANING = (
    ("Quality", "The estimated Dice of the given mask against the unknown truth, mean over its classes: 1 is perfect. "
     "The pale bar is the 90 % interval. It is an estimate by models that have not seen the mask, not a measurement."),
    ("Wrong share", "Expected wrong voxels, drawn too much or left out, divided by the foreground."),
    ("Priority", "What the list is sorted by: how much a look at this case is expected to mend. It weighs how much is "
     "wrong with how sure that is."),
    ("Main error", "The kind that explains most of a case's wrong voxels; \"sound\" means no error worth a look. Sure "
     "is the probability of that kind."),
    ("Outline offset", "How far the given outline lies outside (+) or inside (−) the estimated one, on average. A "
     "rater who is off by the same distance everywhere follows another rule rather than being careless."),
    ("Noise map", "For every voxel the probability that its label is wrong."),
    ("Doubtful parts", "Whole connected parts that are drawn and perhaps not there, or there and perhaps not drawn."),
    ("Findings in the mask", "What is odd about a mask by itself, without any model: loose parts, holes, ragged "
     "outlines, slices that do not fit. Not every finding is an error."),
)  # fmt: skip


def write_audit_report(
    out: Path | str, dataset: Dataset, records: Sequence[CaseRecord], facts: dict[str, Any]
) -> Path:
    """Write `report.html` into the audit folder, and pictures into `thumbs/`.

    The page needs no network and opens from a folder or a mail. Pictures that are there already are kept; with few
    cases they lie within the page, so that it can be mailed alone.

    Args:
        out: the audit folder; relative paths in the records refer to it.
        dataset: as found, with its classes named.
        records: one per case, in any order.
        facts: what else is known; all optional. "title"; "noise_rate": {"estimate", "low", "high"} or a number, instead
            of what the records add up to; "confusion": {given class: {true class: expected voxels}}; "notes": sentences
            for the top; "sections": further `maskmend.report.Section`s, e.g. `RaterReport.sections()`; "settings": text
            or mapping, shown folded. Other plain values make the table of how the audit was made.

    Returns:
        The page.

    Raises:
        UsageError: no records.
    """
    if not records:
        raise UsageError("the audit holds no cases", out)
    out = Path(out)
    ordered = figures.worst_first(records)
    cases = by_id(dataset)
    files = [case_files(record, out, cases) for record in ordered]
    thumbs = list(draw_all(ordered, files, out, dataset.labels))
    page = _render(_data(out, ordered, files, thumbs), _context(dataset, ordered, facts))
    write_text(out / NAME, page)
    return out / NAME


def _render(data: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("maskmend", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    script = environment.get_template("audit.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("audit.html.j2").render(
        **context, digest=digest, script=Markup(script), records=Markup(_json(data)),
    )  # fmt: skip


def _json(value: Any) -> str:
    """JSON that no text in it can break out of: the characters that HTML knows are written as escapes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ---- the cases --------------------------------------------------------------------------------------


def _data(
    out: Path, records: Sequence[CaseRecord], files: Sequence[CaseFiles], thumbs: Sequence[Thumb]
) -> dict[str, Any]:
    paths = [thumb.path for thumb in thumbs if thumb.path]
    embed = sum(path.stat().st_size for path in paths) <= EMBEDDED_BYTES
    rows = [_row(rank, *each, embed) for rank, each in enumerate(zip(records, files, thumbs, strict=True))]
    return {
        "records": rows,
        "kinds": sorted(
            {row["kind"] for row in rows} | {one["kind"] for row in rows for one in row["classes"]}
        ),
        "raters": sorted({record.rater for record in records} - {""}),
        "sites": sorted({record.site for record in records} - {""}),
        "classes": list(dict.fromkeys(one.name for record in records for one in record.classes)),
    }


def _row(rank: int, record: CaseRecord, files: CaseFiles, thumb: Thumb, embed: bool) -> dict[str, Any]:
    return {
        "rank": rank, "case": record.case, "priority": _number(record.priority), "quality": _number(record.quality),
        "low": _number(record.quality_low), "high": _number(record.quality_high), "share": _number(record.wrong_share),
        "wrong": _number(record.wrong_voxels, 1), "kind": record.kind, "certainty": _number(record.kind_probability),
        "rater": record.rater, "site": record.site, "group": record.group, "insample": record.in_sample,
        "place": voxel_text(record.worst) if record.worst else "",
        "grid": " × ".join(str(n) for n in reversed(record.shape)),
        "picture": _source(thumb, embed), "rows": thumb.rows, "problem": thumb.problem,
        "summary": _summary(record),
        "classes": [
            {"name": one.name, "given": one.given_voxels, "suggested": one.suggested_voxels,
             "dice": _number(one.estimated_dice), "share": _number(one.wrong_share), "offset": _number(one.offset_mm),
             "kind": one.kind} for one in record.classes
        ],
        "parts": [
            {"name": one.name, "present": one.present, "voxels": one.voxels, "probability": _number(one.probability),
             "place": voxel_text(one.centre)} for one in record.components
        ],
        "findings": [
            {"check": one.check, "name": one.name, "text": one.text, "severity": _number(one.severity),
             "place": voxel_text(one.centre) if one.centre else ""}
            for one in sorted(record.structure, key=lambda one: -one.severity)
        ],
        "commands": [(one.tool, one.command) for one in open_commands(record, files)],
    }  # fmt: skip


def _number(value: float | None, digits: int = 4) -> float | None:
    """A rounded number that JSON knows."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)


def _source(thumb: Thumb, embed: bool) -> str:
    if thumb.path is None:
        return ""
    if embed:
        return "data:image/jpeg;base64," + base64.b64encode(thumb.path.read_bytes()).decode()
    return f"{thumb.path.parent.name}/{thumb.path.name}"  # a slug and a digest: nothing to quote


def _summary(record: CaseRecord) -> str:
    """One or two sentences on a case."""
    if record.kind == "sound":
        return (
            f"No error worth a look is expected (probability of one: {100 * record.flawed:.0f} %); "
            f"estimated Dice {record.quality:.2f}."
        )
    low, high = record.quality_low, record.quality_high
    return (
        f"Probably {record.kind} ({100 * record.kind_probability:.0f} % sure). About {record.wrong_voxels:,.0f} voxels "
        f"are expected to be wrong, {100 * record.wrong_share:.1f} % of the foreground; "
        f"estimated Dice {record.quality:.2f} ({low:.2f} to {high:.2f})."
    )


# ---- the data set -----------------------------------------------------------------------------------


def _context(dataset: Dataset, records: Sequence[CaseRecord], facts: Mapping[str, Any]) -> dict[str, Any]:
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
        "title": str(facts.get("title") or f"Audit of {_name(dataset.root)}"),
        "lead": [*_lead(records, curve), *map(str, facts.get("notes", ()))],
        "tiles": _tiles(records, curve, facts),
        "charts": [_histogram(records), _budget(curve)],
        "legend": legend if len(legend) > 1 else [], "given": GIVEN, "suggested": ESTIMATE,
        "plain": [_plain_row(record) for record in records[:PLAIN_ROWS]],
        "kinds": figures.kinds(records),
        "groups": found, "reach": max([LEAST_REACH_MM, *(end for end in ends if np.isfinite(end))]),
        "confusion": _confusion(facts.get("confusion")),
        "sections": [*facts.get("sections", ()), *_made(facts)],
        "meaning": MEANING, "footer": f"maskmend {installed_version()}",
    }  # fmt: skip


def _name(root: Path) -> str:
    return root.stem if root.is_file() else root.name


def _lead(records: Sequence[CaseRecord], curve: np.ndarray) -> list[str]:
    flawed = figures.flawed_cases(records)
    lead = f"About {flawed:.0f} of {len(records)} masks are expected to have an error worth mending."
    steps = figures.budget_steps(curve)
    if curve[-1] > 0 and steps:
        count, share = steps[1] if len(steps) > 1 else steps[0]
        what = "the worst one" if count == 1 else f"the worst {count}"
        lead += (
            f" Re-drawing {what} ({100 * count / len(records):.0f} % of the cases) is expected to remove "
            f"{100 * share:.0f} % of the wrong voxels."
        )
    return [lead]


def _tiles(
    records: Sequence[CaseRecord], curve: np.ndarray, facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    low, middle, high = figures.spread_of(records, lambda record: record.quality)
    rate, interval = _rate(records, facts.get("noise_rate"))
    tiles = [
        (f"{len(records):,}", "masks looked at"),
        (f"{figures.flawed_cases(records):.0f}", "expected to have an error worth mending"),
        (rate, f"of the foreground is expected to be wrong{interval}"),
        (f"{middle:.2f}", f"median estimated Dice; eight in ten masks lie between {low:.2f} and {high:.2f}"),
    ]
    half = int(np.searchsorted(curve, 0.5)) if curve[-1] > 0 else 0
    return tiles + ([(f"{half:,}", "cases hold half of all wrong voxels")] if half else [])


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


_SHOWN_ELSEWHERE = ("title", "noise_rate", "confusion", "notes", "sections", "settings")


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
