"""The pictures are made, hold what they should, and are left out when there is nothing to show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from maskmend.benchmark import plots
from maskmend.benchmark.compare import Condition, compare

NAMES = ["supervised", "pint", "co_teaching", "sgl", "adele", "robust_loss", "tri_network", "mean_teacher"]


@pytest.fixture
def rows(trials_of, result_of):
    trials = trials_of(methods=NAMES, seeds=3, rates=[0.25, 0.75], clean="baseline").trials
    rng = np.random.default_rng(0)
    return [
        result_of(t, float(0.9 - 0.2 * t.rate - 0.01 * NAMES.index(t.method) + rng.normal(0, 0.001)))
        | t.place
        for t in trials
    ]


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    assert picture.format == "PNG"
    return picture.convert("RGB")


def colours(picture: Image.Image) -> set[str]:
    found = picture.getcolors(1 << 20) or []
    return {"#{:02X}{:02X}{:02X}".format(*rgb) for count, rgb in found if count > 20}


def test_all_three_are_drawn(rows) -> None:
    compared = compare(rows, "supervised")
    for png in (
        plots.dice_against_rate(compared),
        plots.critical_differences(compared),
        plots.learning_curves(rows, compared),
    ):
        picture = opened(png)
        assert picture.width > 300
        assert picture.height > 200
        assert plots.PALETTE[0].upper() in colours(picture)


def test_long_names_are_not_cut_off(rows) -> None:
    longer = [row | {"method": f"{row['method']} without its pseudo labels"} for row in rows]
    compared = compare(longer, f"{NAMES[0]} without its pseudo labels")
    for png in (plots.dice_against_rate(compared), plots.learning_curves(longer, compared)):
        edges = np.asarray(opened(png))[:, [0, 1, -2, -1]]
        assert (edges == 255).all()


def test_equal_results_are_equal_pictures(rows) -> None:
    compared = compare(rows, "supervised")
    assert plots.dice_against_rate(compared) == plots.dice_against_rate(compared)


def test_the_baseline_and_the_best_five_stand_out(rows) -> None:
    looks = plots.styles(compare(rows, "supervised"))
    grey = [name for name, look in looks.items() if look["color"] == plots._QUIET]
    assert sorted(grey) == ["mean_teacher", "tri_network"]
    assert looks["supervised"]["color"] == plots.PALETTE[0]
    marks = [(look["marker"], look["linestyle"]) for look in looks.values() if look["color"] != plots._QUIET]
    assert len(set(marks)) == 6  # told apart without colour


def test_nothing_to_show(rows) -> None:
    clean = compare([row for row in rows if row["noise"] == "clean"], "supervised")
    assert plots.dice_against_rate(clean) is None
    assert plots.critical_differences(clean) is None
    assert plots.learning_curves([], clean) is None
    alone = compare([row for row in rows if row["method"] == "supervised"], "supervised")
    assert plots.critical_differences(alone) is None
    uncurved = [row | {"curve": []} for row in rows]
    assert plots.learning_curves(uncurved, compare(uncurved, "supervised")) is None


def test_curves_are_means_over_seeds(rows) -> None:
    condition = Condition("toy", "wide", 0.75)
    curves = plots._curves(rows, condition)
    own = [row for row in rows if row["rate"] == 0.75 and row["method"] == "pint"]
    assert len(own) == 3
    expected = [
        [3, np.mean([r["curve"][0][1] for r in own]), 0.25],
        [6, np.mean([r["curve"][1][1] for r in own]), 0.5],
    ]
    np.testing.assert_allclose(curves["pint"], expected)


def test_curves_of_another_length_are_left_out(rows) -> None:
    """A seed run with fewer curve points cannot be averaged with the others."""
    own = next(row for row in rows if (row["rate"], row["method"], row["seed"]) == (0.75, "pint", 0))
    own["curve"] = [[6, 0.1, 0.9]]
    others = [r["curve"] for r in rows if (r["rate"], r["method"]) == (0.75, "pint") and r is not own]
    curve = plots._curves(rows, Condition("toy", "wide", 0.75))["pint"]
    np.testing.assert_allclose(curve[:, 1], np.mean([[p[1] for p in c] for c in others], 0))
