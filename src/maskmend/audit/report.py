"""The audit as one HTML page: which masks to look at first, why, and how to open them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.audit.figures import worst_first
from maskmend.audit.files import CaseFiles, by_id, case_files
from maskmend.audit.page_facts import page_context
from maskmend.audit.record import CaseRecord, ComponentRecord
from maskmend.audit.structure import usual
from maskmend.audit.thumbs import TOTAL_BYTES, Thumb, draw_all
from maskmend.audit.viewers import open_commands, voxel_text
from maskmend.data.atomic import write_text
from maskmend.data.case import Dataset
from maskmend.errors import UsageError
from maskmend.fanout import Mapper, in_turn

NAME = "report.html"
PARTS = 12  # of a case that are listed
EMBEDDED_BYTES = TOTAL_BYTES
"""Pictures up to this size together are put into the page, so that it stands alone; more stay in `thumbs/`.

A page of 58 MB with 2,000 cases opens in 0.8 s, one with its pictures beside it in 0.4 s.
"""


def write_audit_report(
    out: Path | str,
    dataset: Dataset,
    records: Sequence[CaseRecord],
    facts: dict[str, Any],
    *,
    over: Mapper = in_turn,
) -> Path:
    """Write `report.html` into the audit folder, and pictures into `thumbs/`.

    The page needs no network and opens from a folder or a mail. Pictures that are there already are kept; up to
    some 4,300 cases they lie within the page too, so that it can be passed on alone.

    Args:
        out: the audit folder; relative paths in the records refer to it.
        dataset: as found, with its classes named.
        records: one per case, in any order.
        facts: what else is known, see `page_facts.page_context`; all optional.
        over: spreads the drawing of pictures.

    Returns:
        The page.

    Raises:
        UsageError: no records.
    """
    if not records:
        raise UsageError("the audit holds no cases", out)
    out = Path(out)
    ordered = worst_first(records)
    cases = by_id(dataset)
    files = [case_files(record, out, dataset, cases) for record in ordered]
    thumbs = list(draw_all(ordered, files, out, dataset.labels, over))
    page = _render(_data(ordered, files, thumbs), page_context(dataset, ordered, facts))
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
    records: Sequence[CaseRecord], files: Sequence[CaseFiles], thumbs: Sequence[Thumb]
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
        "place_from_1": voxel_text(record.worst, first=1) if record.worst else "",
        "grid": " × ".join(str(n) for n in reversed(record.shape)),
        "picture": _source(thumb, embed), "rows": thumb.rows, "problem": thumb.problem,
        "summary": _summary(record),
        "classes": [
            {"name": one.name, "given": one.given_voxels, "suggested": one.suggested_voxels,
             "dice": _number(one.estimated_dice), "low": _number(one.dice_low), "high": _number(one.dice_high),
             "share": _number(one.wrong_share), "offset": _number(one.offset_mm), "kind": one.kind}
            for one in record.classes
        ],
        "parts": [
            {"name": one.name, "present": one.present, "voxels": one.voxels, "dice": _number(one.quality),
             "low": _number(one.quality_low), "high": _number(one.quality_high), "kind": one.kind,
             "place": voxel_text(one.centre)} for one in _doubtful(record)
        ],
        "findings": [
            {"check": one.check, "name": one.name, "text": one.text, "severity": _number(one.severity),
             "usual": usual(one), "place": voxel_text(one.centre) if one.centre else ""}
            for one in sorted(record.structure, key=lambda one: -one.severity)
        ],
        "commands": [(one.tool, one.command) for one in open_commands(record, files)],
    }  # fmt: skip


def _doubtful(record: CaseRecord) -> list[ComponentRecord]:
    """The parts of which more is to be said than of their class, the worst ones."""
    several = Counter(one.name for one in record.components)
    return [
        one for one in record.components
        if one.probability > 0 or (one.kind != "sound" and several[one.name] > 1)
    ][:PARTS]  # fmt: skip


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
    remark = f" Remark: {record.remark}." if record.remark else ""
    if record.kind == "sound":
        return (
            f"No error worth a look is expected (probability of one: {100 * record.flawed:.0f} %); "
            f"estimated Dice {record.quality:.2f}.{remark}"
        )
    low, high = record.quality_low, record.quality_high
    return (
        f"Probably {record.kind} ({100 * record.kind_probability:.0f} % sure). About {record.wrong_voxels:,.0f} voxels "
        f"are expected to be wrong, {100 * record.wrong_share:.1f} % of the foreground; "
        f"estimated Dice {record.quality:.2f} ({low:.2f} to {high:.2f}).{remark}"
    )
