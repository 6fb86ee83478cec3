"""Several raters as tables for a terminal, as a page, and as pictures of what they disagree on."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend import draw
from maskmend.data.preprocess import IGNORED
from maskmend.evaluate.statistics import Interval
from maskmend.overlay import CLASS_COLOURS, displayed, ground_of, mosaic, region, sections, tile
from maskmend.overlay import Section as Plane
from maskmend.plain import plain
from maskmend.pseudonyms import title_of
from maskmend.report import Picture, Section, Table, write_report

if TYPE_CHECKING:
    from rich.console import Group

    from maskmend.audit.rater_figures import Dispute, RaterFigures
    from maskmend.audit.raters import RaterReport
    from maskmend.data.case import Case, Dataset

SHOWN_CASES = 20
SHOWN_PAIRS = 28
PICTURES = 8
_TILE = 220
_ACROSS = 5  # tiles in a row of pictures, at most
_MOST_RATERS = 11

READ = (
    "Offset: how far a rater's outline lies outside (+) or inside (−) that of the other raters' vote, on average.",
    "Scatter: how much that varies between cases. A steady offset is another rule for where the object ends; a wide "
    "scatter is care or difficulty.",
    "Kappa counts background as well: in a larger image the same outlines agree better. Compare it within one data set "
    "only.",
    "Distance: mean distance of the outline from that of the vote. Volume: drawn over voted volume, geometric mean.",
    "Missed and alone: classes that the vote has and the rater has not drawn, and the reverse.",
)


def cell(interval: Interval | None, digits: int = 2, signed: bool = False, short: bool = False) -> str:
    """A mean and its interval; `short` gives half the interval's width instead of its ends."""
    if interval is None or not np.isfinite(interval.estimate):
        return "–"
    form = f"{'+' if signed else ''}.{digits}f"
    if not np.isfinite(interval.low):
        return f"{interval.estimate:{form}}"
    if short:
        return f"{interval.estimate:{form}} ± {(interval.high - interval.low) / 2:.{digits}f}"
    return f"{interval.estimate:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def agreement_table(report: RaterReport, short: bool = False) -> Table:
    """How well each rater agrees with the others."""
    with_given = any(one.dice_given for one in report.raters)
    columns = ["rater", "cases", "Dice with others", "Dice with their vote"]
    columns += ["Dice with given labels"] if with_given else []
    rows = []
    for one in _all(report):
        figures = [cell(one.dice_others, 3, short=short), cell(one.dice_vote, 3, short=short)]
        rows.append(
            [one.name, str(one.cases), *figures]
            + ([cell(one.dice_given, 3, short=short)] if with_given else [])
        )
    note = "95 % bootstrap intervals over cases, or over groups of cases where the data set names them."
    if report.given:
        note += (
            " The given labels are no rater's: they are compared with the vote of all and have no part in it."
        )
    return Table(columns, rows, tuple(range(1, len(columns))), note)


def bias_table(report: RaterReport, short: bool = False) -> Table:
    """How each rater differs from the others."""
    unit = report.unit
    columns = [
        "rater",
        f"offset, {unit}",
        f"scatter, {unit}",
        f"distance, {unit}",
        "volume",
        "missed",
        "alone",
    ]
    rows = [
        [
            one.name,
            cell(one.offset, 2, signed=True, short=short),
            f"{one.scatter:.2f}" if np.isfinite(one.scatter) else "–",
            cell(one.distance, 2, short=short),
            f"× {one.volume_ratio:.2f}" if np.isfinite(one.volume_ratio) else "–",
            str(one.missed),
            str(one.alone),
        ]
        for one in _all(report)
    ]
    return Table(columns, rows, tuple(range(1, len(columns))))


def _all(report: RaterReport) -> list[RaterFigures]:
    return [*report.raters, *([report.given] if report.given else [])]


def pair_table(report: RaterReport, short: bool = False, shown: int = SHOWN_PAIRS) -> Table:
    """One line per pair, those who agree least first."""
    ordered = sorted(report.pairs, key=lambda pair: pair.dice.estimate)
    rows = [
        [
            pair.first,
            pair.second,
            str(pair.cases),
            cell(pair.dice, 3, short=short),
            cell(pair.kappa, 3, short=short),
            cell(pair.distance, 2, short=short),
        ]
        for pair in ordered[:shown]
    ]
    columns = ["rater", "rater", "cases", "Dice", "Cohen's kappa", f"distance, {report.unit}"]
    note = f"{len(ordered) - shown} further pairs agree better." if len(ordered) > shown else ""
    return Table(columns, rows, (2, 3, 4, 5), note)


def dispute_table(report: RaterReport, shown: int = SHOWN_CASES) -> Table:
    """The cases to adjudicate first."""
    rows = [_dispute_row(one) for one in report.disputes[:shown] if one.disputed]
    flat = all(one.place is None or len(one.place) == 2 for one in report.disputes)
    place = "x, y" if flat else "x, y, z"
    columns = ["case", "closeness", "mean Dice", "in dispute", "what to look at", f"at {place}"]
    note = (
        "Closeness of the vote: 0 where all agree, 1 where half stand against half everywhere. Where the vote is "
        "clear, a consensus settles the matter; where it is close, only people can. In dispute: voxels on which not "
        "all agree."
    )
    return Table(columns, rows, (1, 2, 3), note, whole=(5,), told=(4,))


def _dispute_row(one: Dispute) -> list[str]:
    place = "" if one.place is None else ", ".join(str(i) for i in reversed(one.place))
    dice = f"{one.dice:.2f}" if np.isfinite(one.dice) else "–"
    return [one.case, f"{one.priority:.2f}", dice, f"{one.disputed:,}", one.reason, place]


def sentences(report: RaterReport) -> list[str]:
    """What came out, in words."""
    unit = report.unit
    found = [
        f"{len(report.raters)} raters, {len(report.agreements)} cases that at least two of them drew. Two raters agree "
        f"with a mean Dice of {cell(report.dice, 3)}; their outlines are {cell(report.distance, 2)} {unit} apart; "
        f"Fleiss' kappa is {cell(report.fleiss, 3)}."
    ]
    told = [_bias(one, unit) for one in report.raters]
    biased = [text for text in told if text]
    found.append(
        f"Against the vote of the others: {'; '.join(biased)}." if biased
        else "No rater's outlines lie reliably outside or inside those of the others."
    )  # fmt: skip
    worst = min(report.raters, key=lambda one: one.dice_vote.estimate)
    best = max(report.raters, key=lambda one: one.dice_vote.estimate)
    if best.dice_vote.low > worst.dice_vote.high:
        found.append(
            f"{best.name} agrees best with the vote of the others (Dice {best.dice_vote.estimate:.3f}), {worst.name} "
            f"least ({worst.dice_vote.estimate:.3f})."
        )
    return found


def _bias(one: RaterFigures, unit: str) -> str:
    if not np.isfinite(one.offset.low) or one.offset.low <= 0 <= one.offset.high:
        return ""
    way = "large" if one.offset.estimate > 0 else "small"
    low, high = sorted((abs(one.offset.low), abs(one.offset.high)))
    return f"{one.name} draws {abs(one.offset.estimate):.2f} {unit} too {way} ({low:.2f} to {high:.2f})"


def write_page(report: RaterReport, out: Path | str) -> tuple[Path, Path]:
    """Write `raters.html` and `raters.json` into a folder; the page stands alone and can be mailed.

    Returns:
        Both paths.
    """
    from maskmend.data.atomic import write_text

    out, root = Path(out), report.dataset.root
    first, *rest = page_sections(report)
    lead, first = [*report.warnings, *sentences(report)[:2]], replace(first, text=sentences(report)[2:])
    title = f"Raters of {title_of(root)}"
    page = write_report(out / "raters.html", title, lead, [first, *rest])
    write_text(out / "raters.json", json.dumps(plain(report.to_json()), indent=1, ensure_ascii=False) + "\n")
    return page, out / "raters.json"


def page_sections(report: RaterReport) -> list[Section]:
    """Sections of an HTML page: in words, raters, pairs, cases, pictures."""
    offsets = [one for one in report.raters if np.isfinite(one.offset.low)]
    pictures = []
    if offsets:
        rows = [(one.name, one.offset.estimate, one.offset.low, one.offset.high) for one in offsets]
        png = draw.intervals(rows, x_name=f"offset of the outline from the vote of the others, {report.unit}")
        told = "; ".join(f"{one.name} {one.offset.estimate:+.2f}" for one in offsets)
        pictures.append(
            Picture(png, "Above 0 a rater draws too large, below too small; lines are 95 % intervals.", told)
        )
    by_class = _class_table(report)
    return [
        Section("How well the raters agree", [*report.warnings, *sentences(report)], agreement_table(report)),
        Section("How they differ", table=bias_table(report), pictures=pictures),
        *([Section("Offset of each rater by class", table=by_class)] if by_class else []),
        Section("Pairs of raters", table=pair_table(report)),
        Section("Cases to adjudicate first", table=dispute_table(report), pictures=dispute_pictures(report)),
        Section("How to read the raters' figures", READ),
    ]


def _class_table(report: RaterReport) -> Table | None:
    names = list(report.raters[0].offset_by_class)
    if len(names) < 2:
        return None
    rows = [
        [one.name, *(cell(one.offset_by_class[name], 2, signed=True) for name in names)]
        for one in report.raters
    ]
    return Table(
        ["rater", *(f"{name}, {report.unit}" for name in names)], rows, tuple(range(1, len(names) + 1))
    )


def terminal_tables(report: RaterReport) -> Group:
    """The same tables for a terminal."""
    from rich.console import Group
    from rich.text import Text

    tables = [
        ("Agreement", agreement_table(report, short=True)),
        ("Differences", bias_table(report, short=True)),
        ("Pairs", pair_table(report, short=True, shown=6)),
        ("Adjudicate first", dispute_table(report, 10)),
    ]
    return Group(
        *(Text(text) for text in sentences(report)), *(_rich(title, table) for title, table in tables)
    )


def _rich(title: str, content: Table) -> Any:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        title=Text(title), title_justify="left", caption=Text(content.note), caption_justify="left"
    )
    for number, name in enumerate(content.columns):
        table.add_column(
            Text(name), justify="right" if number in content.numeric else "left", overflow="fold"
        )
    for row in content.rows:
        table.add_row(*map(Text, row))
    return table


# ---- pictures --------------------------------------------------------------------------------------------


def dispute_pictures(report: RaterReport, count: int = PICTURES) -> list[Picture]:
    """Every rater's outline on the cases with the closest votes, and where they differ."""
    shown = [one for one in report.disputes if one.disputed][:count]
    return [_dispute_picture(report, one) for one in shown]


def _dispute_picture(report: RaterReport, dispute: Dispute) -> Picture:
    from maskmend.audit.raters import read_masks

    case = report.dataset[dispute.case]
    names = [one.name for one in report.raters if one.name in case.raters][:_MOST_RATERS]
    masks, geometry = read_masks(case, names, report.dataset)
    votes = np.stack([np.where(mask == IGNORED, 0, mask) for mask in masks.values()])
    classes = len(report.dataset.labels)
    share = np.stack([(votes == k).mean(0) for k in range(classes)]).max(0)
    image = _image_of(case, report.dataset, votes.shape[1:])
    place = dispute.place or tuple(n // 2 for n in votes.shape[1:])
    shown = {name: np.where(mask == IGNORED, 0, mask).astype(np.int32) for name, mask in masks.items()}
    plane = sections(image, shown, 2 * (1 - share), place, geometry.spacing_mm, geometry.affine)[0]
    told = ", ".join([*names, "where they differ"])
    return Picture(
        _png(_tiles(plane, names, classes)),
        f"{dispute.case}: {dispute.reason}.",
        f"outlines of {dispute.case} by {told}",
    )


def _tiles(plane: Plane, names: Sequence[str], classes: int) -> np.ndarray:
    box = region(plane)
    several = classes > 2
    colours = {k: CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)] for k in range(1, classes)}
    numbers = {k: k for k in range(1, classes)} if several else {}
    drawn = partial(tile, plane, box, _TILE, ground=ground_of(plane, box, _TILE))
    row = [drawn(mask=name, colours=colours, numbers=numbers, caption=name) for name in names]
    row.append(drawn(heat=True, caption="where they differ"))
    rows = -(-len(row) // _ACROSS)
    across = -(-len(row) // rows)  # 8 tiles make 4 + 4, not 5 + 3
    return mosaic([row[i : i + across] for i in range(0, len(row), across)])


def _image_of(case: Case, dataset: Dataset, shape: tuple[int, ...]) -> np.ndarray:
    """The image as shown, or plain grey where there is none."""
    from maskmend.data.images import read_case
    from maskmend.errors import UserError

    try:
        image = read_case(case, dataset)[0] if case.images else None
    except UserError:
        image = None
    if image is None or image.shape[1:] != shape:
        return np.full(shape, 90, np.uint8)
    return displayed(image)


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
