"""Small benchmarks and made-up results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskmend.benchmark import grid, settings
from maskmend.benchmark.grid import Grid, Trial
from maskmend.data.phantom import make_phantom


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """A benchmark file as a mapping, whose runs take half a second."""

    def build(**changes: Any) -> dict[str, Any]:
        plan = {
            "data": {"toy": {"phantom": {"cases": 12, "shape": [32, 32]}, "train": 8, "test": 4}},
            "noise": {"wide": {"kind": "dilate", "radius_mm": [1, 2]}},
            "methods": ["supervised", "pint"],
            "seeds": [0],
            "curve_points": 2,
            "settings": {
                "train": {"steps": 6, "batch": 2},
                "network": {"options": {"base": 4}},
                "device": "cpu",
            },
        }
        return json.loads(json.dumps(plan | changes))

    return build


@pytest.fixture(scope="session")
def trials_of(tiny: Callable[..., dict[str, Any]]) -> Callable[..., Grid]:
    """The grid of a tiny benchmark."""
    return lambda root=Path(), **changes: grid.build(settings.validate(tiny(**changes)), root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve phantoms of six patients, a and b of each, in the two-folder layout."""
    place = make_phantom(tmp_path / "toy", train=12, test=0, shape=(32, 32))
    side = json.loads((place / "maskmend.json").read_text())
    names = sorted(path.stem for path in (place / "labels").iterdir())
    side["groups"] = {name: f"patient{i // 2}" for i, name in enumerate(names)}
    (place / "maskmend.json").write_text(json.dumps(side))
    return place


@pytest.fixture(scope="session")
def result_of() -> Callable[..., dict[str, Any]]:
    """A made-up result of a trial."""

    def build(trial: Trial, dice: float, **more: Any) -> dict[str, Any]:
        clean = trial.noise == grid.CLEAN
        curve = [
            [3, round(dice - 0.1, 4), None if clean else 0.25],
            [6, round(dice, 4), None if clean else 0.5],
        ]
        facts = {
            "key": trial.key, "status": "done", "dice": dice, "hd95_mm": 2.0, "label_dice": 1.0 if clean else 0.9,
            "image_auroc": None if clean else 0.75, "image_rank": None if clean else 0.25, "steps": 6, "batch": 2,
            "seconds": 20.0, "cpu_seconds": 10.0, "total_seconds": 30.0, "device": "cpu", "train_cases": 8,
            "test_cases": 4, "curve": curve, "dice_by_class": {"organ": dice}, "dice_by_case": {"c1": dice},
            "maskmend": "0.1.0", "machine": "Testix", "recipe": dict(trial.recipe), "place": trial.place,
        }  # fmt: skip
        return facts | more

    return build
