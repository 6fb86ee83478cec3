"""What a reader is left with: failures are told, nothing is broken by odd texts, links lead somewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from maskmend.benchmark import report, settings
from maskmend.benchmark.compare import compare
from maskmend.benchmark.grid import Grid
from maskmend.benchmark.report import write_all

SPENT = {"seconds": 60.0, "runs": 1, "workers": 1}
ERROR = "RuntimeError: <b>50% of a_b & c</b>"


class Text(HTMLParser):
    """The visible text and the tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.tags = "", set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def finished(tiny, trials_of, result_of, tmp_path):
    """A benchmark of which one run failed and one is missing."""
    changes = {
        "methods": ["supervised", "pint", "co_teaching"],
        "seeds": 2,
        "rates": [0.25, 0.5],
        "title": "A & B",
    }
    found = trials_of(**changes)
    results = {t.key: result_of(t, 0.8 - 0.001 * n) for n, t in enumerate(found.trials)}
    broken, missing = found.trials[2], found.trials[5]
    results[broken.key] = {
        "key": broken.key, "status": "failed", "error": ERROR, "traceback": f"Traceback\n{ERROR}", "maskmend": "0.1.0",
        "machine": "Testix", "total_seconds": 1.0,
    }  # fmt: skip
    del results[missing.key]
    grid = Grid(found.trials, ("mtcl on toy, wide: needs trusted cases",))
    plan = settings.validate(tiny(**changes))
    summary = write_all(plan, grid, results, tmp_path, SPENT)
    return tmp_path, summary, (plan, grid, results)


def test_failures_are_told_everywhere(capsys, finished) -> None:
    out, summary, _ = finished
    assert (summary["failed"], summary["missing"], summary["done"], summary["runs"]) == (1, 1, 12, 14)
    readme = (out / "README.md").read_text()
    page = Text((out / "report.html").read_text())
    for text in (readme, page.words):
        assert "1 failed run and 1 missing of 14." in text
        assert ERROR in text
        assert "Failed runs" in text
        assert "(1 failed)" in text
        assert "mtcl on toy, wide: needs trusted cases" in text
    assert "b" not in page.tags  # the error's markup is text
    assert "(1 failed)" in (out / "tables.tex").read_text()
    assert "1 failed run and 1 missing of 14." in capsys.readouterr().err


def test_markdown_links_to_its_pictures(finished) -> None:
    out = finished[0]
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (out / "README.md").read_text())
    assert sorted(linked) == sorted(report.PICTURES)
    assert all((out / name).stat().st_size > 1000 for name in linked)


def test_pictures_of_an_earlier_state_go(finished) -> None:
    out, _, (plan, grid, results) = finished
    clean = {t.key: results[t.key] for t in grid.trials if t.noise == "clean"}
    write_all(plan, grid, clean, out, SPENT)
    assert not list(out.glob("*.png"))
    assert "![" not in (out / "README.md").read_text()


def test_the_summary_is_strict_json(finished) -> None:
    summary = finished[1]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    supervised = next(one for one in summary["methods"] if one["method"] == "supervised")
    assert supervised["gain"] is None
    assert summary["last_call"]["runs_per_hour"] == 60
    assert summary["left_out"] == ["mtcl on toy, wide: needs trusted cases"]


def test_the_page_needs_nothing_else(finished) -> None:
    page = (finished[0] / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) >= 3
    assert all(source.startswith("data:image/png") for source in sources)


def test_the_file_is_in_the_report(finished) -> None:
    assert "radius_mm" in (finished[0] / "README.md").read_text()
    assert "radius_mm" in Text((finished[0] / "report.html").read_text()).words


def lead(trials_of, result_of, gains: dict[str, float], rates: int) -> str:
    found = trials_of(
        methods=list(gains), rates=[round(0.1 * (n + 1), 1) for n in range(rates)], clean="none"
    )
    rows = [result_of(t, 0.8 + gains[t.method] * (1 + 0.1 * n)) | t.place for n, t in enumerate(found.trials)]
    summary = {"failed": 0, "missing": 0, "code_changed_for": [], "done": len(rows), "runs": len(rows)}
    return " ".join(report._lead(summary, compare(rows, "supervised")))


def test_the_lead_says_who_is_better_than_the_baseline(trials_of, result_of) -> None:
    said = lead(trials_of, result_of, {"supervised": 0, "pint": -0.02, "co_teaching": 0.01}, 8)
    assert "Best mean rank: co_teaching, 1.00 of 3 methods over 8 conditions" in said
    assert "Better than supervised: co_teaching; worse than supervised: pint (p < 0.05" in said


def test_the_lead_says_when_there_is_too_little_to_tell(trials_of, result_of) -> None:
    said = lead(trials_of, result_of, {"supervised": 0, "pint": -0.02}, 5)
    assert "No method differs from supervised at the 5 % level, nor could one with 5 conditions" in said
    assert "cannot fall below 0.062" in said
    said = lead(trials_of, result_of, {"supervised": 0, "pint": 0}, 8)
    assert "No method differs from supervised at the 5 % level." in said


def test_results_of_different_code_are_told(finished) -> None:
    out, _, (plan, grid, results) = finished
    for n, result in enumerate(results.values()):
        mine = result.get("place", {}).get("method") == "pint"
        result["code"] = ["shared", f"state {n}" if mine else "one"]
    summary = write_all(plan, grid, results, out, SPENT)
    assert summary["code_changed_for"] == ["pint"]
    assert "code changed between runs of pint" in (out / "README.md").read_text()


def test_nothing_done_yet(tiny, tmp_path) -> None:
    plan = settings.validate(tiny())
    summary = write_all(plan, Grid(()), {}, tmp_path, {"seconds": 0.0, "runs": 0, "workers": 0})
    assert summary["runs"] == 0
    assert "0 of 0 runs are done." in (tmp_path / "README.md").read_text()
