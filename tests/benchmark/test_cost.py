"""Cost of methods: measured with what each needs, and stored for those there are."""

from __future__ import annotations

import json

from maskmend import methods
from maskmend.benchmark import cost
from maskmend.cli import main

BROKEN = """
from maskmend.methods.supervised import Supervised


class Broken(Supervised):
    '''Fails.'''

    def training_step(self, batch, progress):
        raise RuntimeError("no")
"""


def test_methods_with_needs_are_measured_and_faults_left_out(tmp_path, capsys) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    broken = str(tmp_path / "broken.py")
    found = cost.measure(["annotator_confusion", "mtcl", broken], steps=2, rounds=1)
    assert set(found["costs"]) == {"supervised", "annotator_confusion", "mtcl"}
    assert found["costs"]["supervised"] == 1
    assert all(value > 0 for value in found["costs"].values())
    assert "CPU time of 2 steps" in found["source"]
    assert "broken.py cannot be measured: no" in capsys.readouterr().err


def test_data_is_what_a_method_needs(tmp_path) -> None:
    opened = cost._data(tmp_path)
    given = {
        name: (sum(case.trusted for case in opened(name).cases), opened(name).raters)
        for name in ("supervised", "mtcl", "staple")
    }
    assert given == {"supervised": (0, ()), "mtcl": (4, ()), "staple": (0, ("loose", "tight", "wide"))}


def test_stored_costs_are_of_methods_there_are() -> None:
    stored = cost.stored_costs()
    assert stored["supervised"] == 1
    assert set(stored) <= set(methods.names())
    assert stored["tri_network"] > stored["co_teaching"] > 1.5  # three networks, two networks


def test_the_list_shows_them(capsys) -> None:
    assert main(["methods", "--json"]) == 0
    listed = {one["name"]: one["cost"] for one in json.loads(capsys.readouterr().out)}
    assert {name: value for name, value in listed.items() if value is not None} == cost.stored_costs()
