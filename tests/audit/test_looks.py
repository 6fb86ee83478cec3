"""Looks are opened once and kept: the same as if they were opened each time, and never needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.test_fanout import discs

from maskmend.audit import kept as keeping
from maskmend.audit.evidence import gather
from maskmend.audit.kept import Kept, kept
from maskmend.audit.look import Look
from maskmend.audit.looks import LooksOf
from maskmend.audit.run import audit
from maskmend.data.case import Case, Dataset
from maskmend.errors import DataError

PLENTY = 2**30


class Program:
    """Gives the probabilities of a case, and counts."""

    def __init__(self, probs: dict[str, np.ndarray]) -> None:
        self.probs, self.asked = probs, list[str]()

    def __call__(self, case: Case, label: np.ndarray) -> np.ndarray:
        self.asked.append(case.id)
        return self.probs[case.id]


@pytest.fixture
def opened(make_world: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[LooksOf, Program]]:
    """Opens a few cases; one has voxels that nobody annotated, and one lies the other way round in memory."""

    def make(most_bytes: int | None) -> tuple[LooksOf, Program]:
        world, cases, folder = make_world(4, classes=3), {}, tmp_path / "looks"
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(world.ids):
            mask = world.given[name].copy()
            if number == 1:
                mask[20:30, 25:40] = 9
            Image.fromarray(mask).save(tmp_path / f"{name}.png")
            cases[name] = Case(name, (), tmp_path / f"{name}.png")
        probs = {**world.probs, world.ids[2]: np.asfortranarray(world.probs[world.ids[2]])}
        program = Program(probs)
        labels = {"background": 0, "lower": 1, "upper": 2}
        dataset = Dataset(tmp_path, "folders", (), labels=labels, ignore=9, spacing_mm=(0.7, 1.3))
        place = None if most_bytes is None else Kept(folder, most_bytes)
        return LooksOf(cases, dataset, program, place), program

    return make


def assert_alike(found: Sequence[Look], wanted: Sequence[Look]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for name in ("case", "spacing_mm", "box", "shape", "each", "fingerprint"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("probs", "label", "given", "decided"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
        assert (one.valid is None) == (other.valid is None)
        assert one.valid is None or (other.valid is not None and np.array_equal(one.valid, other.valid))
        figures, others = gather(one), gather(other)
        for name in ("surprises", "signed", "doubts"):
            assert np.array_equal(getattr(figures, name), getattr(others, name), equal_nan=True)


def test_a_kept_look_is_the_one_that_was_opened(opened: Callable[..., tuple[LooksOf, Program]]) -> None:
    plain, _ = opened(None)
    wanted = list(plain(list(plain.cases)))
    assert sum(look.valid is not None for look in wanted) == 1
    looks, program = opened(PLENTY)
    for _ in range(3):
        assert_alike(list(looks(list(plain.cases))), wanted)
    assert program.asked == list(plain.cases)
    for case, look in zip(plain.cases.values(), wanted, strict=True):
        found, values, valid, geometry = looks.with_mask(case)
        assert_alike([found], [look])
        assert np.array_equal(values, np.array(Image.open(str(case.label))))
        assert (valid is None) == (look.valid is None)
        assert geometry.shape == values.shape
    assert program.asked == list(plain.cases)


def test_what_is_not_asked_for_again_is_not_kept(opened: Callable[..., tuple[LooksOf, Program]]) -> None:
    looks, program = opened(PLENTY)
    for case in looks.cases.values():
        looks.with_mask(case)
    assert looks.kept is not None
    assert not list(looks.kept.folder.iterdir())
    assert len(program.asked) == 4


def test_large_looks_are_opened_again(opened: Callable[..., tuple[LooksOf, Program]]) -> None:
    looks, _ = opened(None)
    sizes = [look.probs.nbytes for look in looks(list(looks.cases))]
    few, program = opened(sorted(sizes)[1])
    for _ in range(2):
        assert_alike(list(few(list(few.cases))), list(looks(list(looks.cases))))
    kept_looks = sum(size <= sorted(sizes)[1] for size in sizes)
    assert kept_looks < 4
    assert len(program.asked) == 8 - kept_looks


@pytest.mark.parametrize("fault", ["no folder", "torn", "disk full"])
def test_nothing_depends_on_what_is_kept(
    opened: Callable[..., tuple[LooksOf, Program]], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = opened(None)
    looks, program = opened(PLENTY)
    ids = list(plain.cases)
    assert looks.kept is not None
    if fault == "disk full":

        def full(parts: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(keeping, "save_file", full)
    list(looks(ids))
    if fault == "no folder":
        shutil.rmtree(looks.kept.folder)
    if fault == "torn":
        for file in looks.kept.folder.iterdir():
            file.write_bytes(file.read_bytes()[:-100])
    assert_alike(list(looks(ids)), list(plain(ids)))
    assert len(program.asked) == 8
    if fault == "disk full":
        assert not list(looks.kept.folder.iterdir())


def test_another_grid_is_refused(opened: Callable[..., tuple[LooksOf, Program]]) -> None:
    looks, program = opened(PLENTY)
    case = next(iter(looks.cases))
    program.probs = {case: program.probs[case][:, :-1]}
    with pytest.raises(DataError, match=r"shape \(3, 63, 64\) where \(3, 64, 64\)"):
        next(looks([case]))


def test_the_room_is_shared_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(keeping, "memory_gib", lambda: {"total": 8.0, "available": 5.0})
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda place: replace_free(usage, 2**40))
    with kept(tmp_path, 100) as place:
        assert place is not None
        assert place.folder.parent == tmp_path
        assert place.folder.name.startswith(".")  # no layout lists it
        assert place.most_bytes == int(0.4 * 5 * 2**30 / 100)
        (place.folder / "x").write_bytes(b"x")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda place: replace_free(usage, 2**20))
    with kept(tmp_path, 4) as place:
        assert place is not None
        assert place.most_bytes == 2**16
    with kept(tmp_path / "gone", 4) as place:
        assert place is None


def replace_free(usage: Any, free: int) -> Any:
    return usage._replace(free=free)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_audit_is_the_same_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    source = discs(tmp_path / "data")
    first = audit(source, tmp_path / "first", probs=source / "probs", processes=processes)
    monkeypatch.setattr(keeping, "OF_MEMORY", 0.0)
    again = audit(source, tmp_path / "again", probs=source / "probs", processes=processes)
    assert again["records"] == first["records"]
    for answer in (first, again):
        answer["facts"].pop("seconds")
    assert again["facts"] == first["facts"]
    assert not [path for path in (tmp_path / "first").iterdir() if path.name.startswith(".")]
