"""Tables: every row is whole, numbers are readable, Markdown and LaTeX survive odd names."""

from __future__ import annotations

import re

import pytest

from maskmend.benchmark import table
from maskmend.benchmark.compare import compare
from maskmend.report import Table

ODD = r"50% of a_b & {c} \ ~ ^ # $ < > |"


@pytest.fixture
def compared(trials_of, result_of):
    found = trials_of(methods=["supervised", "pint", "co_teaching"], seeds=7, clean="all", rates=[0.25, 0.5])
    gains = {"supervised": 0.0, "pint": -0.05, "co_teaching": 0.03}
    rows = [
        result_of(t, round(0.8003 + gains[t.method] + 0.001 * t.seed - 0.1 * t.rate, 4)) | t.place
        for t in found.trials
    ]
    return compare(rows, "supervised")


def cells(found: Table, method: str) -> dict[str, str]:
    return dict(zip(found.columns, next(row for row in found.rows if row[0] == method), strict=True))


def test_every_row_is_as_long_as_the_heading(compared) -> None:
    tables = [table.overall_table(compared), table.clean_table(compared)]
    tables += [table.condition_table(compared, condition) for condition in compared.lines]
    for found in tables:
        assert {len(row) for row in found.rows} == {len(found.columns)}
        assert [row[0] for row in found.rows if row[0] == "pint"] == ["pint"]


def test_overall(compared) -> None:
    found = table.overall_table(compared)
    assert [row[0] for row in found.rows] == ["co_teaching", "supervised", "pint"]
    assert cells(found, "co_teaching") == {
        "method": "co_teaching", "rank": "1.00", "Dice": "0.796", "gain over supervised": "+0.030 [+0.030, +0.030]",
        "p (Holm)": "1.00", "recovered": "+80%", "better / worse": "2 / 0", "image AUROC": "0.75", "image rank": "0.25",
        "time": "1.00x",
    }  # fmt: skip
    own = cells(found, "supervised")
    assert own["gain over supervised"] == own["p (Holm)"] == own["better / worse"] == own["recovered"] == ""
    assert "cannot fall below 0.5" in found.note


def test_condition(compared) -> None:
    condition = next(c for c in compared.lines if c.rate == 0.25)
    found = cells(table.condition_table(compared, condition), "pint")
    assert found["Dice [95 % interval]"].startswith("0.728 [0.72")
    assert found["seeds"] == "7"
    assert found["p (Holm)"] == "0.031"  # 2 x 2^-6
    assert found["recovered"] == "-200%"


def test_true_masks(compared, trials_of, result_of) -> None:
    assert cells(table.clean_table(compared), "pint") == {
        "method": "pint", "gain over supervised": "-0.050 [-0.050, -0.050]", "p (Holm)": "0.031", "pairs": "7",
    }  # fmt: skip
    only_baseline = compare([result_of(t, 0.8) | t.place for t in trials_of().trials], "supervised")
    assert table.clean_table(only_baseline) is None


def test_failures_stand_beside_the_name(trials_of, result_of) -> None:
    trials = trials_of(seeds=2).trials
    rows = [result_of(t, 0.8) | t.place for t in trials]
    rows[-1] |= {"status": "failed", "dice": None}
    compared = compare(rows, "supervised")
    assert "pint (1 failed)" in [row[0] for row in table.overall_table(compared).rows]
    assert r"pint (1 failed) &" in table.latex(table.overall_table(compared), "x", "y")


@pytest.mark.parametrize(
    ("p", "text"),
    [(float("nan"), ""), (0.0004, "<0.001"), (0.0312, "0.031"), (0.25, "0.25"), (1.0, "1.00")],
)
def test_p_values(p: float, text: str) -> None:
    assert table.p_value(p) == text


def test_markdown_has_one_line_per_row() -> None:
    text = table.markdown(Table(("a", "b"), [(ODD, "1")], (1,), "note"))
    lines = text.splitlines()
    assert lines[1] == "| --- | ---: |"
    assert len(re.split(r"(?<!\\)\|", lines[2])) == 4  # the odd | is escaped
    assert lines[-1] == "note"


def test_latex_escapes_everything() -> None:
    text = table.latex(Table(("a_b", "b"), [(ODD, "-0.100 [-0.2, +0.3]"), ("x", "1.50x")], (1,)), ODD, ODD)
    bare = text
    for safe in (
        r"\%", r"\_", r"\&", r"\{", r"\}", r"\#", r"\$", r"\textbackslash{}", r"\textasciitilde{}",
        r"\textasciicircum{}", "$<$", "$>$", "$-$", r"$\times$",
    ):  # fmt: skip
        assert safe in text
        bare = bare.replace(safe, "")
    body = bare.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert not set(body) & set("%_#$~^<>")
    assert body.count("&") == 2
    assert "$-$0.100 [$-$0.2, +0.3]" in text
    assert r"1.50$\times$" in text
    assert r"\label{tab:50-of-a-b-c}" in text


def test_latex_leaves_columns_out(compared) -> None:
    text = table.latex(table.overall_table(compared), "x", "y", ("rank", "time"))
    head = next(line for line in text.splitlines() if line.startswith("method"))
    assert head == r"method & Dice & gain & p (Holm) & recovered & better / worse & AUROC & rank \\"
    assert r"\begin{tabular}{lrrrrrrr}" in text
