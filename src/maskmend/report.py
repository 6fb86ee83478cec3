"""Reports: one HTML file with its pictures inside, so that it can be mailed, archived and opened anywhere."""

from __future__ import annotations

import base64
import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskmend import draw
from maskmend.data.atomic import write_text

_DRAWN_WIDER = 110 / 96  # PNGs have 110 dots per inch, a browser 96


@dataclass(frozen=True)
class Table:
    """Rows of texts.

    Args:
        columns: headings.
        rows: cells.
        numeric: indices of columns that are aligned right and not wrapped.
        note: stands below.
        whole: indices of columns that are not wrapped.
        told: indices of columns of sentences, which keep a width at which these can be read.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()
    note: str = ""
    whole: Sequence[int] = ()
    told: Sequence[int] = ()

    def kind(self, column: int) -> str:
        """The column's CSS class; empty for most."""
        kinds = {"number": self.numeric, "whole": self.whole, "told": self.told}
        return next((kind for kind, members in kinds.items() if column in members), "")


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption; `alt` says in words what it shows."""

    png: bytes
    caption: str
    alt: str

    @property
    def uri(self) -> str:
        """The picture inside the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def width(self) -> int:
        """In CSS pixels, from the PNG's header."""
        return round(int.from_bytes(self.png[16:20], "big") / _DRAWN_WIDER)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; with `folded` the code opens on a click on that text."""

    heading: str
    text: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    code: str = ""
    folded: str = ""


def write_report(path: Path | str, title: str, lead: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write a self-contained HTML page; every text is escaped.

    Args:
        path: the HTML file.
        title: the heading and the browser's title.
        lead: sentences that say what came out.
        sections: what follows, in order.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("maskmend", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.j2")
    html = page.render(title=title, lead=lead, sections=sections, footer=f"maskmend {installed_version()}")
    write_text(Path(path), html)
    return Path(path)


def run_report(folder: Path | str, out: Path | str | None = None) -> Path:
    """The report of one run: what it was, how it learned, where labels look wrong.

    Args:
        folder: a run folder.
        out: the HTML file; None: `report.html` in the folder.

    Returns:
        The file.

    Raises:
        UsageError: not a run folder.
    """
    from maskmend.config import dump
    from maskmend.train.metrics_file import read
    from maskmend.train.run_folder import Run

    run = Run.open(folder)
    steps, method = run.config.train.steps, run.config.method.name
    classes = ", ".join(name for name in list(run.labels)[1:])
    lead = [f"{method} learned {classes} in {steps} steps (seed {run.config.train.seed})."]
    sections = [
        Section("What was trained", table=_facts_table(_without_places(run.facts))),
        *_learning_section(read(run.folder)),
        *_pictures_section(run.folder),
        Section("Settings", code=dump(run.config), folded="all settings of the run"),
        Section("How to go on", code=next_steps(run.folder)),
    ]
    return write_report(out or run.folder / "report.html", f"Run {run.folder.resolve().name}", lead, sections)


def next_steps(run: Path | str) -> str:
    """Commands that use a run."""
    return (
        f"maskmend predict {shlex.quote(str(run))} IMAGES -o predictions\n"
        "maskmend evaluate predictions TRUE_LABELS"
    )


def metric_curves(
    runs: dict[str, list[dict[str, Any]]], key: str
) -> dict[str, tuple[list[float], list[float]]]:
    """(steps, values) of one figure for every run that logged it, from lines of `metrics.jsonl`."""
    series = {}
    for name, lines in runs.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            steps, values = zip(*points, strict=True)
            series[name] = (list(steps), list(values))
    return series


def _without_places(facts: dict[str, Any]) -> dict[str, Any]:
    """A report is passed on: where data lay on whose machine stays in run.json."""
    told = {key: value for key, value in facts.items() if key != "dataset"}
    if command := facts.get("command"):
        told["command"] = [re.sub(r"[^\s=]*[/\\\\](?=[^/\\\\\s])", "", str(word)) for word in command]
    return told


def _facts_table(facts: dict[str, Any]) -> Table:
    plain = {k: v for k, v in facts.items() if isinstance(v, str | int | float) and not isinstance(v, bool)}
    for key, value in facts.items():
        if isinstance(value, list) and value and all(isinstance(v, str | int | float) for v in value):
            plain[key] = " ".join(map(str, value))
    return Table(("", ""), [(key.replace("_", " "), str(value)) for key, value in plain.items()])


def _learning_section(lines: list[dict[str, Any]]) -> list[Section]:
    keys = [key for key in dict.fromkeys(key for line in lines for key in line) if key != "step"]
    pictures = []
    for key in keys:
        series = metric_curves({key: lines}, key)
        if not series or len(series[key][0]) < 2:
            continue
        png = draw.curves(series, x_name="step", y_name=key.replace("_", " "), size=(5.2, 2.4))
        pictures.append(Picture(png, "", f"{key} over the steps of training"))
    text = [
        "The loss measures agreement with the given labels: with flawed ones, lower is not always better."
    ]
    return [Section("Learning", text, pictures=pictures)] if pictures else []


def _pictures_section(folder: Path) -> list[Section]:
    found = sorted((folder / "pictures").glob("*.png"), key=lambda path: path.stat().st_mtime)
    if not found:
        return []
    caption = "The cases whose given label disagrees most with the model, at the end of training."
    return [Section("Labels that look wrong", pictures=[Picture(found[-1].read_bytes(), caption, caption)])]


def installed_version() -> str:
    """For the foot of a page."""
    try:
        return f"{version('maskmend')} · Python {platform.python_version()}"
    except PackageNotFoundError:
        return "(not installed)"
