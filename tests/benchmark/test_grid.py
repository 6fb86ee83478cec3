"""A run's key stands for what decides its outcome, and for nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmend.benchmark import grid, settings
from maskmend.errors import UsageError


def keys(found: grid.Grid) -> set[str]:
    return {trial.key for trial in found.trials}


def on_disk(path: str, name: str = "toy", **more) -> dict:
    return {"data": {name: {"path": path, "train": 8, "test": 4, **more}}}


def test_keys_stay_what_they_are() -> None:
    """Results of days of computing are found by these. Raise grid.FORMAT where outcomes change, not this."""
    found = {}
    for trial in grid.build(settings.load("smoke"), Path()).trials:
        assert trial.recipe["format"] == grid.FORMAT
        found[trial.title] = replace(trial, recipe=dict(trial.recipe) | {"format": 1}).key
    assert found["phantom, clean, supervised, seed 0"] == "219ac3335e9b4e4e7b30"
    assert found["phantom, biased 50%, pint_posterior, seed 1"] == "1059c541a0fa140e6929"


def test_names_and_places_do_not_count(tmp_path: Path, folder: Path, trials_of) -> None:
    first = trials_of(folder.parent, **on_disk("toy"))
    shutil.copytree(folder, tmp_path / "far" / "away")
    other = trials_of(
        tmp_path / "far",
        **on_disk("away", "another"),
        noise={"drawn too wide": {"kind": "dilate", "radius_mm": [1, 2]}},
        methods={"plain": {"name": "supervised"}, "pint": None},
        baseline="plain",
    )
    assert keys(first) == keys(other)
    assert first.trials[0].source != other.trials[0].source


def test_what_changes_no_outcome_does_not_count(trials_of, tiny) -> None:
    same = tiny(title="x", curve_points=7, curve_cases=3, threads=2, runs_per_gpu=1)
    same["settings"] |= {"device": "auto", "evaluate": {"bootstrap": 500}}
    same["settings"]["train"] |= {"workers": 1, "lr": 1}
    plain = tiny()
    plain["settings"]["train"]["lr"] = 1.0
    assert keys(grid.build(settings.validate(same), Path())) == keys(
        grid.build(settings.validate(plain), Path())
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]},
        {"rates": [0.25]},
        {"noise": {"wide": {"kind": "dilate", "radius_mm": [1, 3]}}},
        {"noise": {"wide": {"kind": "erode", "radius_mm": [1, 2]}}},
        {"methods": {"supervised": None, "pint": {"name": "pint", "warmup": 0.5}}},
        {"settings": {"train": {"steps": 7}}},
        {"trusted": 0.25},
        {"data": {"toy": {"phantom": {"cases": 12, "shape": [32, 32]}, "train": 7, "test": 4}}},
        {"data": {"toy": {"phantom": {"cases": 12, "shape": [32, 32], "seed": 1}, "train": 8, "test": 4}}},
    ],
)
def test_what_decides_the_outcome_counts(trials_of, change: dict) -> None:
    """At least the noisy run of pint is another one."""
    assert trials_of().trials[-1].key != trials_of(**change).trials[-1].key


def test_contents_of_files_count(folder: Path, trials_of) -> None:
    before = keys(trials_of(folder.parent, **on_disk("toy")))
    path = sorted((folder / "labels").iterdir())[3]
    label = np.asarray(Image.open(path)).copy()
    label[0, 0] = 1
    Image.fromarray(label).save(path)
    forget_data_sets()
    assert not before & keys(trials_of(folder.parent, **on_disk("toy")))


def forget_data_sets() -> None:
    """Data sets are kept for a process: a new look needs a new process, or this."""
    from maskmend.benchmark.cases import _opened

    _opened.cache_clear()


def test_more_seeds_and_methods_only_add(trials_of) -> None:
    some = keys(trials_of())
    more = keys(trials_of(seeds=3, methods=["supervised", "pint", "co_teaching"], rates=[0.5, 0.75]))
    assert some < more
    assert len(more) == 3 * (1 + 2 * 3)  # seeds x (the baseline on true masks + rates x methods)


@pytest.mark.parametrize(("clean", "runs"), [("none", 2), ("baseline", 3), ("all", 4)])
def test_runs_on_true_masks(trials_of, clean: str, runs: int) -> None:
    assert len(trials_of(clean=clean).trials) == runs


def test_seeds_vary_slowest(trials_of) -> None:
    seeds = [trial.seed for trial in trials_of(seeds=[5, 2]).trials]
    assert seeds == [5, 5, 5, 2, 2, 2]


def test_unfit_methods_are_left_out_with_the_reason(folder: Path, trials_of) -> None:
    found = trials_of(methods=["supervised", "mtcl", "staple"])
    assert {trial.method for trial in found.trials} == {"supervised"}
    assert sorted(found.skipped) == [
        "mtcl on toy, wide: needs trusted cases; give a share of them as trusted: 0.1",
        "staple on toy, wide: needs several raters per image",
    ]
    own = {"toy": {"phantom": {"cases": 12, "shape": [32, 32]}, "trusted": 0.25}}
    fitting = trials_of(methods=["supervised", "mtcl"], data=own)
    assert {trial.method for trial in fitting.trials} == {"supervised", "mtcl"}
    assert {trial.recipe["trusted"] for trial in fitting.trials} == {0.25}


def test_masks_of_raters(folder: Path, trials_of) -> None:
    for rater in ("ann", "bob", "eve"):
        shutil.copytree(folder / "labels", folder / f"labels_{rater}")
    noise = {"people": {"raters": ["*b", "ann"]}}
    found = trials_of(folder.parent, **on_disk("toy"), noise=noise, methods=["supervised", "majority"])
    people = [trial for trial in found.trials if trial.noise == "people"]
    assert [(trial.method, trial.rate) for trial in people] == [("supervised", 1.0), ("majority", 1.0)]
    assert people[0].recipe["noise"] == {"raters": ["ann", "bob"]}
    with pytest.raises(UsageError, match="unknown rater 'anne'") as caught:
        trials_of(folder.parent, **on_disk("toy"), noise={"people": {"raters": ["anne"]}})
    assert "ann" in str(caught.value)


def test_a_data_set_has_its_own_severity(trials_of) -> None:
    own = {
        "phantom": {"cases": 12, "shape": [32, 32]},
        "noise": {"wide": {"radius_mm": [3, 4]}, "tight": None},
    }
    noise = {
        "wide": {"kind": "dilate", "radius_mm": [1, 2]},
        "tight": {"kind": "erode"},
        "other": {"kind": "swap"},
    }
    found = trials_of(data={"toy": own}, noise=noise)
    recipes = {trial.noise: trial.recipe["noise"] for trial in found.trials}
    assert recipes == {
        "clean": None,
        "wide": {"kind": "dilate", "rate": 0.5, "radius_mm": [3, 4]},
        "tight": {"kind": "erode", "rate": 0.5},
    }


def test_a_method_can_be_told_the_rate(trials_of) -> None:
    methods = {"supervised": None, "co": {"name": "co_teaching", "forget_foreground": "rate"}}
    found = trials_of(methods=methods, rates=[0.25, 0.5])
    told = [t.recipe["method"]["settings"] for t in found.trials if t.method == "co"]
    assert told == [{"forget_foreground": 0.25}, {"forget_foreground": 0.5}]


def test_a_method_of_ones_own_is_known_by_its_text(tmp_path: Path, trials_of) -> None:
    from maskmend.methods import supervised

    text = Path(supervised.__file__).read_text()
    mine, moved = tmp_path / "mine.py", tmp_path / "moved.py"
    mine.write_text(text)
    moved.write_text(text)

    def key(path: Path) -> str:
        return trials_of(methods={"supervised": None, "mine": {"name": str(path)}}).trials[-1].key

    first = key(mine)
    assert key(moved) == first
    mine.write_text(text + "\n# changed\n")
    assert key(mine) != first


def test_missing_data_sets_are_named(tmp_path: Path, trials_of) -> None:
    with pytest.raises(UsageError, match=r"lungs: the data set 'x-ray' is not there\n.*--data"):
        trials_of(tmp_path, **on_disk("lungs", "x-ray"))
    two = {name: {"path": name} for name in ("lungs", "heart")}
    with pytest.raises(UsageError, match="the data sets lungs, heart are not there"):
        trials_of(tmp_path, data=two)


def test_recipes_are_plain_json(trials_of) -> None:
    for trial in trials_of().trials:
        assert json.loads(json.dumps(trial.recipe)) == trial.recipe
