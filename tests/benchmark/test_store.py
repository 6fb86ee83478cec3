"""Results on disk: what is torn or strange is not believed."""

from __future__ import annotations

import json

import pytest

from maskmend.benchmark import store

GOOD = {"key": "abc", "status": "done", "dice": 0.5}


def test_round_trip(tmp_path) -> None:
    store.save(tmp_path, GOOD)
    store.save(tmp_path, {"key": "def", "status": "failed", "error": "x"})
    assert store.load(tmp_path, {"abc", "def", "ghi"}) == {
        "abc": GOOD,
        "def": {"key": "def", "status": "failed", "error": "x"},
    }
    assert store.load(tmp_path, {"abc"}) == {"abc": GOOD}
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["abc.json", "def.json"]


def test_a_new_result_replaces_the_old_one(tmp_path) -> None:
    store.save(tmp_path, GOOD | {"status": "failed"})
    store.save(tmp_path, GOOD)
    assert store.load(tmp_path, {"abc"})["abc"]["status"] == "done"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD)[:-9],
        "",
        "\0\0\0",
        "null",
        "[1]",
        json.dumps(GOOD | {"key": "other"}),
        json.dumps({"key": "abc"}),
        json.dumps(GOOD | {"status": "maybe"}),
    ],
)
def test_a_torn_or_strange_file_is_not_believed(tmp_path, capsys, text: str) -> None:
    store.save(tmp_path, GOOD)
    (tmp_path / "runs" / "abc.json").write_text(text)
    assert store.load(tmp_path, {"abc"}) == {}
    assert "abc.json" in capsys.readouterr().err
