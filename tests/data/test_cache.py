"""The cache: found again by content alone, whole or not at all, and safe for several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmend.data import cache as module
from maskmend.data import owner
from maskmend.data.cache import Cache, content_key
from maskmend.data.case import Case, Geometry
from maskmend.data.images import read_image, read_label, write_image, write_label
from maskmend.data.plan import ChannelPlan, Plan
from maskmend.data.preprocess import prepare
from maskmend.errors import DataError, ResourceError

PLAN = Plan(
    ndim=2,
    spacing_mm=(1.0, 1.0),
    channels=(ChannelPlan(name="x", scheme="zscore"),),
    classes={"background": 0, "organ": 1, "tumour": 2},
    ignore=9,
    patch=(16, 16),
    batch=2,
    depth=2,
    flips=(False, False),
)


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(4):
        geometry = Geometry((40, 50 + number), (1.0, 1.0))
        image, label = tmp_path / f"image_{number}.png", tmp_path / f"label_{number}.png"
        write_image(image, rng.integers(0, 255, (1, *geometry.shape)).astype(np.float32), geometry)
        classes = np.zeros(geometry.shape, np.int32)
        classes[5:25, 5:45] = 1
        classes[30:33, 10:12] = 2
        classes[36:, :] = 9 if number == 1 else 0
        write_label(label, classes, geometry)
        found.append(Case(f"c{number}", (image,), label, trusted=number == 0))
    return found


def folders(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


@pytest.mark.parametrize("ram", [0, 1 << 30])
@pytest.mark.parametrize("on_disk", [True, False])
def test_a_cache_holds_what_prepare_gives(cases, tmp_path, ram, on_disk):
    folder = tmp_path / "cache" if on_disk else None
    for _ in range(2):  # made, then found
        cache = Cache.open(cases, PLAN, folder, in_ram_bytes=ram)
        assert (len(cache), cache.ids) == (4, ("c0", "c1", "c2", "c3"))
        for number, case in enumerate(cases):
            image, geometry = read_image(case.images)
            assert case.label is not None
            expected = prepare(image, read_label(case.label)[0], geometry, PLAN)
            np.testing.assert_array_equal(cache[number].image, expected.image)
            np.testing.assert_array_equal(cache[number].label, expected.label)
            assert cache[number].inverse == expected.inverse
            assert (cache[number].valid is None) == (number != 1)
        np.testing.assert_array_equal(cache[1].valid, np.arange(40)[:, None] < np.full((40, 51), 36))
        assert isinstance(cache[0].image, np.memmap) == (on_disk and ram == 0)


def test_nothing_is_prepared_twice(cases, tmp_path, monkeypatch):
    Cache.open(cases, PLAN, tmp_path / "cache")
    monkeypatch.setattr(module, "prepare", lambda *a, **k: pytest.fail("prepared again"))
    Cache.open(cases, PLAN, tmp_path / "cache")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    copies = [
        replace(c, images=(Path(shutil.copy(c.images[0], moved)),), label=Path(shutil.copy(c.label, moved)))
        for c in cases
    ]
    Cache.open(copies, PLAN, tmp_path / "cache")
    Cache.open(cases, PLAN.model_copy(update={"patch": (32, 32), "batch": 7}), tmp_path / "cache")


def test_same_size_and_time_but_other_content_is_another_entry(cases, tmp_path):
    before = Cache.open(cases, PLAN, tmp_path / "cache")
    label = cases[2].label
    assert label is not None
    stamp, size = label.stat(), label.stat().st_size
    values, geometry = read_label(label)
    values[5, 5], values[0, 0] = 0, 1
    write_label(label, values, geometry)
    data = label.read_bytes()
    label.write_bytes(data[:size].ljust(size, b"\0"))
    os.utime(label, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert content_key(cases[2], label, PLAN) != before._entries[2].key
    label.write_bytes(data)
    after = Cache.open(cases, PLAN, tmp_path / "cache")
    assert after[2].label is not None
    assert after[2].label[0, 0] == 1
    assert after.key != before.key
    assert [a.key == b.key for a, b in zip(after._entries, before._entries, strict=True)] == [
        True,
        True,
        False,
        True,
    ]


CHANGES = [
    {"spacing_mm": (2.0, 1.0)},
    {"crop": True},
    {"classes": {"background": 0, "tumour": 1, "organ": 2, "vessel": 3}},
    {"ignore": None},
    {"channels": (ChannelPlan(name="x", scheme="minmax"),)},
    {"input_spacing_mm": (3.0, 3.0)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_plan_is_part_of_the_key(cases, change):
    label = cases[0].label
    assert content_key(cases[0], label, PLAN) != content_key(cases[0], label, PLAN.model_copy(update=change))


def test_roles_of_files_are_part_of_the_key(cases):
    one, two = cases[0], cases[1]
    keys = {
        content_key(one, one.label, PLAN),
        content_key(one, two.label, PLAN),
        content_key(one, None, PLAN),
        content_key(replace(one, ignore=two.label), one.label, PLAN),
        content_key(replace(one, images=one.images + two.images), one.label, PLAN),
        content_key(replace(one, images=two.images + one.images), one.label, PLAN),
    }
    assert len(keys) == 6


def test_raters_and_cases_without_label(cases, tmp_path):
    def rater(case: Case) -> Path | None:
        return cases[3].label if case.id == "c3" else None

    cache = Cache.open(cases, PLAN, tmp_path / "cache", labels=rater)
    assert cache[0].label is None
    assert cache[3].label is not None
    assert cache.foreground(0) == []


def test_an_ignore_mask_counts(cases, tmp_path):
    geometry = Geometry((40, 50), (1.0, 1.0))
    mask = np.zeros((40, 50), np.int32)
    mask[:, :10] = 3
    write_label(tmp_path / "mask.png", mask, geometry)
    cache = Cache.open([replace(cases[0], ignore=tmp_path / "mask.png")], PLAN, tmp_path / "cache")
    np.testing.assert_array_equal(cache[0].valid, mask == 0)
    assert all((places[:, 1] >= 10).all() for places in cache.foreground(0))


def test_foreground_table_points_at_its_class(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VOXELS_PER_CLASS", 50)
    for _ in range(2):
        cache = Cache.open(cases, PLAN, tmp_path / "cache")
        organ, tumour = cache.foreground(0)
        assert (len(organ), len(tumour)) == (50, 6)
        label = cache[0].label
        assert label is not None
        assert (label[tuple(organ.T)] == 1).all()
        assert (label[tuple(tumour.T)] == 2).all()
        assert len(np.unique(organ, axis=0)) == 50


@pytest.mark.parametrize("damage", ["truncate", "no facts", "no image", "bad facts"])
def test_a_damaged_entry_is_made_again(cases, tmp_path, damage):
    folder = tmp_path / "cache"
    expected = np.array(Cache.open(cases[:1], PLAN, folder)[0].image)
    entry = next(folder.iterdir())
    if damage == "truncate":
        with (entry / "image.npy").open("r+b") as file:
            file.truncate(1000)
    elif damage == "bad facts":
        (entry / "facts.json").write_text("{}")
    else:
        (entry / {"no facts": "facts.json", "no image": "image.npy"}[damage]).unlink()
    np.testing.assert_array_equal(Cache.open(cases[:1], PLAN, folder)[0].image, expected)
    assert len(folders(folder)) == 1


def test_a_full_disk_is_explained_and_leaves_nothing(cases, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ResourceError, match="disk is full"):
        Cache.open(cases, PLAN, tmp_path / "cache")
    assert folders(tmp_path / "cache") == set()


def test_what_killed_processes_left_goes_and_what_living_ones_make_stays(cases, tmp_path):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    living = owner.temporary_name("case").replace(f"-{os.getpid()}-", f"-{child.pid}-")
    living = living.replace(f"-{owner.born(os.getpid())}-", f"-{owner.born(child.pid)}-")
    dead = living.replace(f"-{owner.born(child.pid)}-", "-1-")  # the number was given to a later process
    elsewhere = re.sub(r"\.[0-9a-f]{8}-", ".00000000-", living)
    late = elsewhere[:-8] + "ffffffff"
    folder = tmp_path / "cache"
    for name in (living, dead, elsewhere, late, ".mine"):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (0, 0) if name != elsewhere else None)
    try:
        Cache.open(cases[:1], PLAN, folder)
        assert {name for name in folders(folder) if name[0] == "."} == {living, elsewhere, ".mine"}
        child.kill()
        child.join()
        Cache.open(cases[:1], PLAN, folder)
        assert {name for name in folders(folder) if name[0] == "."} == {elsewhere, ".mine"}
    finally:
        child.kill()


def test_a_case_at_fault_is_named(cases, tmp_path):
    values, geometry = read_label(cases[1].label)
    values[0, 0] = 77
    write_label(cases[1].label, values, geometry)
    with pytest.raises(DataError, match=r"c1: .*77 \(1 voxels\)"):
        Cache.open(cases, PLAN, tmp_path / "cache")


def test_an_open_cache_travels_light(cases, tmp_path):
    cache = Cache.open(cases, PLAN, tmp_path / "cache", in_ram_bytes=0)
    closed = len(pickle.dumps(cache))
    first = np.array(cache[0].image)
    data = pickle.dumps(cache)
    assert len(data) == closed
    np.testing.assert_array_equal(pickle.loads(data)[0].image, first)


def test_windows_count_tiles(cases, tmp_path):
    cache = Cache.open(cases, PLAN, tmp_path / "cache")
    assert cache.windows((40, 53)) == 4
    assert cache.windows((16, 16)) == 3 * 4 * 4


def _open(cases: list[Case], folder: Path, barrier, results) -> None:
    barrier.wait()
    cache = Cache.open(cases, PLAN, folder)
    results.put(float(sum(cache[i].image.sum(dtype=np.float64) for i in range(len(cache)))))


def test_two_processes_at_once(cases, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    folder = tmp_path / "cache"
    workers = [context.Process(target=_open, args=(cases, folder, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(set(sums)) == 1
    assert len(folders(folder)) == 4


def test_the_loser_of_a_race_reads_the_winners(cases, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    real = module._find
    monkeypatch.setattr(module, "_find", lambda entry: None)  # both look before either has written
    Cache.open(cases, PLAN, folder)
    stamps = {e.name: (e / "image.npy").stat().st_ino for e in folder.iterdir()}
    second = Cache.open(cases, PLAN, folder)
    monkeypatch.setattr(module, "_find", real)
    assert {e.name: (e / "image.npy").stat().st_ino for e in folder.iterdir()} == stamps
    assert len(second) == 4


def test_only_so_many_files_are_mapped_at_a_time(cases, tmp_path, monkeypatch):
    """Linux allows a process 65,530 maps, and a data set may have more cases than that."""
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    held = Cache.open(cases, PLAN, None)
    mapped = Cache.open(cases, PLAN, tmp_path / "cache", in_ram_bytes=0)
    assert len(cases) > 2
    for _ in range(2):
        for number in range(len(cases)):
            assert (mapped[number].image == held[number].image).all()
            assert len(mapped._opened) <= 2
