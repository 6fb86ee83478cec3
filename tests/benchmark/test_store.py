"""Results on disk: what is torn or strange is not believed."""

from __future__ import annotations

import gzip
import json

import pytest

from maskmend.benchmark import store
from maskmend.errors import DataError

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


def _result(number: int, status: str = "done") -> dict:
    return {"key": f"{number:032x}", "status": status, "dice": number / 10}


def test_packed_results_are_taken_over_once_and_only_the_finished_ones(tmp_path) -> None:
    results = {one["key"]: one for one in (_result(1), _result(2), _result(3, "failed"))}
    store.pack(tmp_path, results)
    lines = gzip.decompress((tmp_path / "results.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == [_result(1), _result(2), _result(3, "failed")]

    new = tmp_path / "new"
    store.save(new, _result(1) | {"dice": 0.9})  # what is here stays
    assert store.take_over(new, tmp_path / "results.jsonl.gz") == 1
    assert store.load(new, set(results)) == {
        _result(1)["key"]: _result(1) | {"dice": 0.9},
        _result(2)["key"]: _result(2),
    }
    assert store.take_over(new, tmp_path / "results.jsonl.gz") == 0


def test_equal_results_make_equal_packed_bytes(tmp_path) -> None:
    one, two = _result(1), _result(2)
    store.pack(tmp_path / "a", {one["key"]: one, two["key"]: two})
    store.pack(tmp_path / "b", {two["key"]: dict(reversed(two.items())), one["key"]: one})
    assert (tmp_path / "a" / store.PACKED).read_bytes() == (tmp_path / "b" / store.PACKED).read_bytes()


@pytest.mark.parametrize(
    "content",
    [b"", b"plain text\n", gzip.compress(b"[1]\n"), gzip.compress(b"not json\n"), gzip.compress(b"\xff\xfe\n"),
     gzip.compress(json.dumps({"key": "../../evil", "status": "done"}).encode()),
     gzip.compress(json.dumps(_result(1)).encode())[:-6]],
    ids=["empty", "text", "list", "not json", "not text", "evil key", "cut off"],
)  # fmt: skip
def test_a_packed_file_that_holds_something_else_is_refused(tmp_path, content) -> None:
    packed = tmp_path / "results.jsonl.gz"
    packed.write_bytes(content)
    if content == b"":  # gzip takes an empty file for an empty archive
        assert store.take_over(tmp_path / "out", packed) == 0
        return
    with pytest.raises(DataError) as fault:
        store.take_over(tmp_path / "out", packed)
    assert "results.jsonl.gz" in str(fault.value)
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path.parent / "evil.json").exists()


def test_a_packed_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(DataError, match="not there"):
        store.take_over(tmp_path, tmp_path / "no.jsonl.gz")
