"""Tidy files: every figure as it was stored, and the same columns whatever is known."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from maskmend.benchmark import tidy
from maskmend.benchmark.compare import compare


@pytest.fixture
def written(trials_of, result_of, tmp_path):
    """Files of a grid in which one run failed and one is missing."""
    found = trials_of(seeds=2)
    results = {t.key: result_of(t, 0.8 + 0.01 * n) for n, t in enumerate(found.trials)}
    failed, missing = found.trials[1], found.trials[2]
    kept = {
        "key": failed.key,
        "status": "failed",
        "error": "E: x",
        "traceback": 'line 1\n"line", 2',
        "maskmend": "0",
    }
    results[failed.key] = kept | {"machine": "Testix", "total_seconds": 1.0}
    del results[missing.key]
    rows = tidy.rows(found, results)
    tidy.write_tidy(rows, compare(rows, "supervised"), tmp_path)
    return tmp_path, rows, found


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv(written) -> None:
    out, rows, found = written
    runs = read(out / "runs.csv")
    assert [run["key"] for run in runs] == [t.key for t in found.trials if t is not found.trials[2]]
    assert list(runs[0]) == list(tidy.RUNS)
    assert [float(run["dice"]) for run in runs if run["dice"]] == [r["dice"] for r in rows if r["dice"]]
    assert [(run["status"], run["traceback"]) for run in runs][1] == ("failed", 'line 1\n"line", 2')
    assert {row["class"] for row in read(out / "classes.csv")} == {"organ"}
    assert len(read(out / "cases.csv")) == 4
    curves = read(out / "curves.csv")
    assert [(row["step"], row["memorised"]) for row in curves[:2]] == [("3", ""), ("6", "")]
    assert {row["memorised"] for row in curves if row["noise"] == "wide"} == {"0.25", "0.5"}


def test_comparison_is_unrounded(written) -> None:
    out, rows, _ = written
    lines = read(out / "comparison.csv")
    assert list(lines[0]) == list(tidy.COMPARISON)
    compared = compare(rows, "supervised")
    for line, (condition, mine) in zip(
        lines, [(c, one) for c, found in compared.lines.items() for one in found], strict=True
    ):
        assert (line["noise"], float(line["rate"])) == (condition.noise, condition.rate)
        assert float(line["dice"]) == mine.dice.estimate
        assert line["gain"] == ("" if mine.test is None else repr(mine.test.difference))
        assert int(line["failed"]) == mine.failed


def test_parquet_says_the_same_and_keeps_its_types(written) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = written[0]
    for name in ("runs", "classes", "cases", "curves", "comparison"):
        table = parquet.read_table(out / f"{name}.parquet")
        text = read(out / f"{name}.csv")
        assert table.column_names == list(text[0])
        for row, line in zip(table.to_pylist(), text, strict=True):
            assert {k: "" if v is None else str(v) for k, v in row.items()} == line
        assert "null" not in {str(kind) for kind in table.schema.types}
    kinds = parquet.read_table(out / "runs.parquet").schema
    assert [str(kinds.field(name).type) for name in ("seed", "rate", "error")] == [
        "int64",
        "double",
        "string",
    ]


def test_without_pyarrow(written, monkeypatch) -> None:
    out, rows, _ = written
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    files = tidy.write_tidy(rows, compare(rows, "supervised"), out)
    assert {path.suffix for path in files} == {".csv"}
    assert not list(out.glob("*.parquet"))  # the old ones would be out of date


def test_equal_recipes_share_a_result(trials_of, result_of) -> None:
    """Two names for one thing are two rows."""
    found = trials_of(methods={"supervised": None, "same": {"name": "supervised"}}, clean="none")
    assert len({t.key for t in found.trials}) == 1
    rows = tidy.rows(found, {found.trials[0].key: result_of(found.trials[0], 0.8)})
    assert [row["method"] for row in rows] == ["supervised", "same"]
    assert json.dumps(rows[0]["dice"]) == json.dumps(rows[1]["dice"])
