"""Results as tidy files, and tables as Markdown, HTML and LaTeX from one description."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmend.benchmark.compare import Comparison, Condition, Line, Total
from maskmend.benchmark.grid import Grid
from maskmend.data.atomic import atomic_write, write_text
from maskmend.report import Table

COLUMNS = (
    "key", "data", "noise", "rate", "method", "seed", "status", "dice", "hd95_mm", "label_dice", "image_auroc",
    "image_rank", "steps", "batch", "seconds", "cpu_seconds", "total_seconds", "device", "train_cases", "test_cases",
    "maskmend", "machine", "error", "traceback",
)  # fmt: skip


def rows(trials: Grid, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per run of the grid that has a result, in the grid's order; `COLUMNS` and the nested figures."""
    found = []
    for trial in trials.trials:
        if trial.key in results:
            result = results[trial.key]
            found.append({name: result.get(name) for name in COLUMNS} | dict(result) | trial.place)
    return found


def write_tidy(found: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """`runs`, `classes`, `cases` and `curves` as CSV, and as Parquet where pyarrow is installed."""
    place = ("key", "data", "noise", "rate", "method", "seed")
    tables: dict[str, tuple[Sequence[str], list[dict[str, Any]]]] = {
        "runs": (COLUMNS, [{name: row.get(name) for name in COLUMNS} for row in found])
    }
    for name, unit in (("classes", "class"), ("cases", "case")):
        nested = f"dice_by_{unit}"
        tall = [
            {p: row[p] for p in place} | {unit: which, "dice": value}
            for row in found
            for which, value in (row.get(nested) or {}).items()
        ]
        tables[name] = ((*place, unit, "dice"), tall)
    points = [
        {p: row[p] for p in place} | {"step": step, "test_dice": dice, "memorised": memorised}
        for row in found
        for step, dice, memorised in row.get("curve") or []
    ]
    tables["curves"] = ((*place, "step", "test_dice", "memorised"), points)
    written = []
    for name, (columns, lines) in tables.items():
        written.append(_write_csv(out / f"{name}.csv", columns, lines))
        written += _write_parquet(out / f"{name}.parquet", columns, lines)
    return written


def _write_csv(path: Path, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())
    return path


def _write_parquet(path: Path, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> list[Path]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return []
    table = pyarrow.table({name: [line[name] for line in lines] for name in columns})
    atomic_write(path, lambda temporary: pyarrow.parquet.write_table(table, temporary))
    return [path]


def overall_table(compared: Comparison) -> Table:
    """One line per method over all conditions with flawed masks."""
    columns = (
        "method", "rank", "Dice", f"gain over {compared.baseline}", "p (Holm)", "recovered", "better / worse",
        "on true masks", "image AUROC", "image rank", "time",
    )  # fmt: skip
    lines = [_overall_row(total, compared.baseline) for total in compared.totals]
    return Table(columns, *_filled(columns, lines), note=_overall_note(compared))


def _overall_row(total: Total, baseline: str) -> list[str]:
    own = total.method == baseline
    return [
        total.method + (f" ({total.failed} failed)" if total.failed else ""),
        number(total.rank, 2),
        number(total.dice, 3),
        "" if own else gain(total.test),
        "" if own else p_value(total.p),
        share(total.recovered),
        "" if own or not total.conditions else f"{total.better} / {total.worse} of {total.conditions}",
        "" if total.clean is None else f"{gain(total.clean)}, p {p_value(total.clean_p)}",
        number(total.auroc, 2),
        number(total.image_rank, 2),
        f"{total.cost:.2f}x" if math.isfinite(total.cost) else "",
    ]


def _overall_note(compared: Comparison) -> str:
    smallest = 2.0 ** (1 - compared.ranked) if compared.ranked else 1.0
    parts = [
        f"Means over {compared.ranked} conditions with flawed masks; rank 1 is best."
        f" Pairs of the test are conditions, so p cannot fall below {smallest:.2g} before the correction.",
        "Better / worse: conditions whose own p over seeds is below 0.05 after correction; impossible below six seeds.",
        "Recovered: share of the distance from the baseline on flawed masks to the baseline on true ones.",
        "Image AUROC: the method's noise map ranks flawed masks above sound ones; image rank: its correlation with a"
        " mask's true error.",
    ]
    if math.isfinite(compared.friedman_p):
        parts.append(f"Friedman test that all are alike: p = {p_value(compared.friedman_p)}.")
    return " ".join(parts)


def condition_table(compared: Comparison, condition: Condition) -> Table:
    """One line per method in one condition."""
    columns = (
        "method", "Dice [95 % interval]", "seeds", "rank", f"gain over {compared.baseline}", "p / Holm", "recovered",
        "image AUROC", "image rank", "seconds",
    )  # fmt: skip
    return Table(columns, *_filled(columns, [_condition_row(line) for line in compared.lines[condition]]))


def _condition_row(line: Line) -> list[str]:
    return [
        line.method + (f" ({line.failed} failed)" if line.failed else ""),
        interval(line),
        str(line.dice.n),
        number(line.rank, 1),
        "" if line.test is None else gain(line.test),
        "" if line.test is None else f"{p_value(line.test.p)} / {p_value(line.p)}",
        share(line.recovered),
        number(line.auroc, 2),
        number(line.image_rank, 2),
        number(line.seconds, 1),
    ]


def _filled(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[Sequence[str]], list[int]]:
    """Rows, and the columns of numbers: all but the first."""
    return list(lines), list(range(1, len(columns)))


def number(value: float, digits: int) -> str:
    """Rounded; empty when unknown."""
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def interval(line: Line) -> str:
    """Mean and interval of the Dice."""
    dice = line.dice
    if not dice.n:
        return "none"
    spread = f" [{dice.low:.3f}, {dice.high:.3f}]" if math.isfinite(dice.low) else ""
    return f"{dice.estimate:.3f}{spread}"


def gain(test: Any) -> str:
    """A paired difference with its interval."""
    if test is None or not test.n:
        return ""
    spread = f" [{test.low:+.3f}, {test.high:+.3f}]" if math.isfinite(test.low) else ""
    return f"{test.difference:+.3f}{spread}"


def p_value(p: float) -> str:
    """Two digits that mean something."""
    if not math.isfinite(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def share(value: float) -> str:
    """A signed percentage."""
    return f"{value:+.0%}" if math.isfinite(value) else ""


def markdown(table: Table) -> str:
    """A table for a README."""
    mark = ["---:" if index in table.numeric else "---" for index in range(len(table.columns))]
    lines = [table.columns, mark, *table.rows]
    text = "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
    return f"{text}\n\n{table.note}\n" if table.note else f"{text}\n"


def latex(table: Table, caption: str) -> str:
    """A table for a paper; needs the package booktabs."""
    align = "".join("r" if index in table.numeric else "l" for index in range(len(table.columns)))
    lines = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in (table.columns, *table.rows)]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    return (
        "\\begin{table}\n\\centering\n\\caption{" + _tex(caption) + "}\n"
        f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _tex(text: str) -> str:
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", str(text).replace("\\", r"\textbackslash "))
    return (
        escaped.replace("<", "$<$")
        .replace(">", "$>$")
        .replace("~", r"\textasciitilde ")
        .replace("^", r"\^{}")
    )


def plain_json(value: Any) -> Any:
    """NaN as null, for a summary that any reader takes."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
