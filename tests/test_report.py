"""Reports are one file, escape what they show, and state what the figures say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from maskmend import draw
from maskmend.report import Picture, Section, Table, metric_curves, write_report

PNG = draw.curves({"a": ([0, 1], [0, 1])}, x_name="x", y_name="y")


def test_page_is_self_contained(tmp_path) -> None:
    section = Section(
        "Part", ["text"], Table(("a", "b"), [("x", "1")], numeric=(1,)), [Picture(PNG, "cap", "alt")]
    )
    page = write_report(tmp_path / "r.html", "Title", ["lead"], [section]).read_text()
    assert "data:image/png;base64," in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert not re.search(r"https?://", page)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page


def test_everything_is_escaped(tmp_path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'"
    section = Section(evil, [evil], Table([evil], [[evil]], note=evil), [Picture(PNG, evil, evil)], code=evil)
    folded = Section("b", code=evil, folded=evil)
    page = write_report(tmp_path / "r.html", evil, [evil], [section, folded]).read_text()
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") == 13


def test_picture_width_follows_the_file() -> None:
    assert Picture(PNG, "", "").width == round(704 * 96 / 110)


def test_metric_curves_skip_lines_without_the_figure() -> None:
    lines = [{"step": 10, "loss": 2.0}, {"step": 15, "validation_dice": 0.5}, {"step": 20, "loss": 1.0}]
    assert metric_curves({"run": lines, "none": []}, "loss") == {"run": ([10, 20], [2.0, 1.0])}


class TestVerdict:
    """The sentence at the top of the demonstration's report."""

    def figures(self, plain, robust, ceiling=None, seeds=1) -> dict:
        from maskmend.demo import ARMS, SeedResult
        from maskmend.demo_report import figures_of

        arms = ARMS if ceiling is not None else ARMS[:2]
        rng = np.random.default_rng(0)
        results = []
        for _ in range(seeds):
            wobble = 0.01 * rng.standard_normal((12, 2))
            means = dict(zip(("plain", "robust", "ceiling"), (plain, robust, ceiling), strict=True))
            dice = {arm.key: means[arm.key] + wobble * (1 + 0.1 * rng.random()) for arm in arms}
            results.append(SeedResult(dice=dice, judged=[judged()]))
        return figures_of(results, arms, {"seeds": list(range(seeds))})

    def test_win(self) -> None:
        figures = self.figures(0.80, 0.85, 0.90)
        assert "beat" in figures["verdict"]
        assert figures["recovered"] == pytest.approx(0.5, abs=0.05)
        assert "50 %" in figures["verdict"] or "49 %" in figures["verdict"] or "51 %" in figures["verdict"]
        assert "one seed" in figures["verdict"]

    def test_loss(self) -> None:
        figures = self.figures(0.85, 0.80, 0.90)
        assert "lost to" in figures["verdict"]
        assert figures["recovered"] < 0

    def test_nothing(self) -> None:
        figures = self.figures(0.85, 0.85, 0.90, seeds=6)
        assert figures["verdict"].startswith("No clear winner")
        assert "-0.000" not in figures["verdict"]
        assert "over 6 seeds" in figures["verdict"]

    def test_no_gap_and_no_ceiling(self) -> None:
        assert "nothing to win" in self.figures(0.85, 0.85, 0.85)["verdict"]
        figures = self.figures(0.80, 0.85)
        assert figures["recovered"] is None
        assert "gap" not in figures["verdict"]


def judged():
    from maskmend.demo import JudgedCase

    truth = np.zeros((20, 20), np.uint8)
    truth[5:12, 5:12] = 1
    given = np.zeros_like(truth)
    given[5:14, 5:12] = 1
    return JudgedCase("c", truth * 1.0, given, truth, (given != truth) * 0.9, (1.0, 1.0))


def test_auroc_equals_pair_counting() -> None:
    from maskmend.demo_report import auroc

    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert auroc(score, positive) == pytest.approx(np.mean(pairs))
    assert auroc(score, np.ones(60, bool)) is None
