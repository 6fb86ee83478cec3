"""What a benchmark file may say; mistakes are told with the nearest name and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskmend import methods
from maskmend.benchmark import settings
from maskmend.errors import UsageError


def complaint(tree: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        settings.validate(tree)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "where", "meant"),
    [
        ({"sedes": 3}, "sedes", "did you mean 'seeds'?"),
        ({"data": {"toy": {"phantom": {}, "trian": 3}}}, "data.toy.trian", "did you mean 'train'?"),
        ({"data": {"toy": {"phantom": {"case": 3}}}}, "phantom.case", "did you mean 'cases'?"),
        ({"settings": {"train": {"stepps": 3}}}, "train.stepps", "steps"),
        ({"data": {"toy": {"phantom": {}, "settings": {"train": {"bach": 3}}}}}, "train.bach", "batch"),
        ({"noise": {"wide": {"kind": "dilat"}}}, "noise.wide", "did you mean 'dilate'?"),
        ({"noise": {"wide": {"kind": "dilate", "radius": 1}}}, "noise.wide", "did you mean 'radius_mm'?"),
        ({"noise": {"wide": {"kind": "swap", "radius_mm": [1, 2]}}}, "noise.wide", "no setting of the noise"),
        ({"methods": ["supervised", "pnit"]}, "methods.pnit", "did you mean 'pint'?"),
        (
            {"methods": {"supervised": None, "p": {"name": "pint", "warmpu": 1}}},
            "methods.p",
            "did you mean method.warmup?",
        ),
        ({"baseline": "supervisd"}, "baseline", "did you mean 'supervised'?"),
        ({"data": {"toy": {"phantom": {}, "noise": {"wied": None}}}}, "data.toy.noise", "mean 'wide'?"),
        (
            {"data": {"toy": {"phantom": {}, "noise": {"wide": {"radus_mm": [1]}}}}},
            "data.toy.noise.wide",
            "mean 'radius_mm'?",
        ),
        ({"settings": {"train": {"seed": 3}}}, "settings.train.seed", "decided by the grid"),
        ({"settings": {"method": {"name": "pint"}}}, "settings.method.name", "decided by the grid"),
        (
            {"data": {"toy": {"phantom": {}, "path": "x"}}},
            "data.toy",
            "give either path or phantom",
        ),
        ({"noise": {"wide": {"raters": ["a"], "rates": [0.5]}}}, "noise.wide", "neither rates nor"),
        ({"rates": [1.5]}, "rates.0", "less than or equal to 1"),
        ({"seeds": []}, "seeds", "at least 1"),
        ({"data": {}}, "data", "at least 1"),
        ({"clean": "some"}, "clean", "'none', 'baseline' or 'all'"),
    ],
)
def test_mistakes_name_the_place_and_what_was_meant(tiny, changes, where: str, meant: str) -> None:
    said = complaint(tiny(**changes))
    assert where in said
    assert meant in said


def test_all_mistakes_at_once(tiny) -> None:
    said = complaint(tiny(sedes=3, rates=[2], clean="x"))
    assert "3 settings are wrong" in said
    assert all(word in said for word in ("sedes", "rates.0", "clean"))


def test_the_line_of_the_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  toy: {phantom: {}}\nmethods: [supervised]\nseeds: 1\ncurve_pionts: 3\n")
    with pytest.raises(UsageError, match=r"mine\.yaml:5: curve_pionts") as caught:
        settings.load(file)
    assert "curve_points" in str(caught.value)


def test_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  toy: {phantom: {}}\nmethods: [supervised]\nseeds: 1\n")
    with pytest.raises(UsageError) as caught:
        settings.load(file, ["seeds=-1"])
    assert "mine.yaml" not in str(caught.value)


def test_short_forms(tiny) -> None:
    plan = settings.validate(
        tiny(methods={"supervised": None, "hard": {"name": "pint", "warmup": 0.3}}, seeds=3)
    )
    assert plan.seeds == [0, 1, 2]
    assert plan.methods["supervised"].name == "supervised"
    assert plan.methods["hard"].settings == {"warmup": 0.3}
    assert (
        settings.validate(tiny(methods={"pint": {"warmup": 0.3}}, baseline="pint")).methods["pint"].name
        == "pint"
    )


def test_all_methods_are_those_that_any_data_set_can_feed(tiny) -> None:
    found = list(settings.validate(tiny(methods="all")).methods)
    needy = {name for name in methods.names() if {"trusted", "raters"} & set(methods.load(name).needs)}
    assert found[0] == "supervised"
    assert set(found) == set(methods.names()) - needy
    assert {"mtcl", "staple"} <= needy


def test_null_leaves_a_data_set_or_noise_out(tiny) -> None:
    tree = tiny()
    tree["data"]["other"] = tree["noise"]["other"] = None
    plan = settings.validate(tree)
    assert list(plan.data) == ["toy"]
    assert list(plan.noise) == ["wide"]


def test_what_is_written_is_read_back_equal(tmp_path: Path, tiny) -> None:
    plan = settings.validate(
        tiny(data={"toy": {"phantom": {}, "noise": {"wide": None}}}, rates=[0.5], seeds=2, trusted=0.25)
    )
    text = settings.dump(plan)
    (tmp_path / "again.yaml").write_text(text)
    assert settings.load(tmp_path / "again.yaml") == plan
    assert "rates" in text  # said, though it is the default
    assert "curve_cases" not in text


@pytest.mark.parametrize("name", settings.presets())
def test_every_preset_is_valid(name: str) -> None:
    plan = settings.load(name)
    assert plan.title
    assert plan.baseline in plan.methods


def test_unknown_presets_and_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'smoke'"):
        settings.load("smok")
    with pytest.raises(UsageError, match="cannot read"):
        settings.load(tmp_path / "none.yaml")
