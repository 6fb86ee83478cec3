"""Tables for readers, as Markdown, HTML and LaTeX from one description."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from maskmend.benchmark.compare import Comparison, Condition, Line, Total
from maskmend.report import Table


def overall_table(compared: Comparison) -> Table:
    """One line per method over all conditions with flawed masks."""
    columns = (
        "method", "rank", "Dice", f"gain over {compared.baseline}", "p (Holm)", "recovered", "better / worse",
        "image AUROC", "image rank", "time",
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
        "" if own or not total.conditions else f"{total.better} / {total.worse}",
        number(total.auroc, 2),
        number(total.image_rank, 2),
        f"{total.cost:.2f}x" if math.isfinite(total.cost) else "",
    ]


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it belongs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _overall_note(compared: Comparison) -> str:
    smallest = 2.0 ** (1 - compared.ranked) if compared.ranked else 1.0
    parts = [
        f"Means over {counted(compared.ranked, 'condition')} with flawed masks; rank 1 is best."
        f" p: Wilcoxon's test with conditions as pairs, which cannot fall below {smallest:.2g}, after Holm's correction"
        " over the methods.",
        "Recovered: share of the distance from the baseline on flawed masks to the baseline on true ones.",
        "Better / worse: conditions whose own p over seeds is below 0.05 after correction; impossible below six seeds.",
        "Image AUROC: the method's noise map ranks flawed masks above sound ones; image rank: its correlation with a"
        " mask's true error. Time: of training, relative to the baseline.",
    ]
    if math.isfinite(compared.friedman_p):
        parts.append(f"Friedman test that all are alike: p {_relation(compared.friedman_p)}.")
    return " ".join(parts)


def clean_table(compared: Comparison) -> Table | None:
    """What each method loses or gains where no mask is flawed; None when only the baseline ran there."""
    found = [total for total in compared.totals if total.clean]
    if not found:
        return None
    columns = ("method", f"gain over {compared.baseline}", "p (Holm)", "pairs")
    lines = [
        [one.method, gain(one.clean), p_value(one.clean_p), str(one.clean.n)] for one in found if one.clean
    ]
    return Table(columns, *_filled(columns, lines), note="Pairs of the test are data sets and seeds.")


def condition_table(compared: Comparison, condition: Condition) -> Table:
    """One line per method in one condition."""
    columns = (
        "method", "Dice [95 % interval]", "seeds", "rank", f"gain over {compared.baseline}", "p (Holm)", "recovered",
        "image AUROC", "image rank", "seconds",
    )  # fmt: skip
    lines = [_condition_row(line, compared.baseline) for line in compared.lines[condition]]
    return Table(columns, *_filled(columns, lines))


def _condition_row(line: Line, baseline: str) -> list[str]:
    own = line.method == baseline
    return [
        line.method + (f" ({line.failed} failed)" if line.failed else ""),
        interval(line),
        str(line.dice.n),
        number(line.rank, 1),
        "" if line.test is None else gain(line.test),
        "" if line.test is None else p_value(line.p),
        "" if own else share(line.recovered),
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


def _relation(p: float) -> str:
    """After the letter p: "= 0.03" or "< 0.001"."""
    text = p_value(p)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


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


def latex(table: Table, caption: str, label: str, leave_out: Sequence[str] = ()) -> str:
    """A table for a paper, as wide as a column of one; needs the package booktabs.

    Args:
        table: what to show.
        caption, label: plain text.
        leave_out: columns that a paper has no room for.
    """
    kept = [index for index, name in enumerate(table.columns) if name not in leave_out]
    align = "".join("r" if index in table.numeric else "l" for index in kept)
    head = " & ".join(
        _tex(table.columns[index].partition(" over ")[0].removeprefix("image ")) for index in kept
    )
    lines = [" & ".join(_tex_cell(row[index]) for index in kept) + r" \\" for row in table.rows]
    body = "\n".join([rf"{head} \\", r"\midrule", *lines])
    return (
        "\\begin{table}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"\\caption{{{_tex(caption)}}}\n\\label{{tab:{_slug(label)}}}\n"
        f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _tex_cell(text: str) -> str:
    """With true minus signs and a true times sign."""
    signed = re.sub(r"(?<![\w.])-(?=\d)", "$-$", _tex(text))
    return re.sub(r"^(\d+\.\d+)x$", r"\1$\\times$", signed)


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in str(text))


_TEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
