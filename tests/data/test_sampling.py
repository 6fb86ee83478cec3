"""Samples: the same for the same numbers whoever asks, inside the case or marked as not valid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from maskmend.data.cache import Cache
from maskmend.data.case import Case, Geometry
from maskmend.data.images import write_image, write_label
from maskmend.data.plan import ChannelPlan, Plan
from maskmend.data.sampling import Patches, collate, draw, generator, order, window

SHAPES = {2: [(30, 40), (12, 50), (40, 10), (8, 9), (20, 20)], 3: [(20, 18, 22), (6, 30, 8), (4, 5, 6)]}


def make_cache(root, ndim: int, *, unlabelled: bool = False) -> Cache:
    """Images that count their voxels, so that a sample says where it comes from; a rare second class."""
    cases = []
    for number, shape in enumerate(SHAPES[ndim]):
        geometry = Geometry(shape, (1.0,) * ndim)
        image = root / f"image_{number}.nii.gz"
        write_image(image, 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape), geometry)
        label = np.zeros(shape, np.int32)
        label[tuple(slice(1, n // 2) for n in shape)] = 1
        label[tuple(n - 1 for n in shape)] = 2
        label[(0,) * ndim] = 9
        write_label(root / f"label_{number}.nii.gz", label, geometry)
        path = None if unlabelled else root / f"label_{number}.nii.gz"
        cases.append(Case(f"c{number}", (image,), path, trusted=number == 1))
    plan = Plan(
        ndim=ndim,
        spacing_mm=(1.0,) * ndim,
        channels=(ChannelPlan(name="x", scheme="none"),),
        classes={"background": 0, "organ": 1, "spot": 2},
        ignore=9,
        patch=(16,) * ndim,
        batch=2,
        depth=2,
        flips=(False,) * ndim,
    )
    return Cache.open(cases, plan, None)


@pytest.fixture(params=[2, 3])
def cache(request, tmp_path) -> Cache:
    return make_cache(tmp_path, request.param)


def sample(cache: Cache, epoch: int, index: int, **changes):
    settings = {"seed": 0, "patch": cache.plan.patch, "foreground": 0.5} | changes
    return draw(cache, epoch=epoch, index=index, **settings)


def test_a_sample_is_where_it_says(cache):
    for epoch in range(6):
        for index in range(len(cache)):
            one = sample(cache, epoch, index)
            whole = cache[one.index]
            assert one.image.shape == (1, *cache.plan.patch)
            assert one.image.dtype == np.float32
            padded = [(20, 20)] * cache.plan.ndim
            at = tuple(slice(s + 20, s + 20 + p) for s, p in zip(one.start, cache.plan.patch, strict=True))
            assert whole.label is not None
            assert whole.valid is not None
            np.testing.assert_array_equal(one.image[0], np.pad(whole.image[0], padded)[at])
            np.testing.assert_array_equal(one.label, np.pad(whole.label, padded)[at])
            np.testing.assert_array_equal(one.valid, np.pad(whole.valid, padded)[at])


def test_padding_is_centred_and_not_valid(tmp_path):
    cache = make_cache(tmp_path, 2)
    ones = {s.index: s for s in (sample(cache, 0, i) for i in range(5))}
    small = ones[3]  # 8 x 9 in 16 x 16
    assert small.start == (-4, -3)
    assert not small.valid[:4].any()
    assert not small.valid[:, :3].any()
    assert (small.image[0, :4] == 0).all()
    assert small.valid[4:12, 3:12].sum() == 8 * 9 - 1


def test_one_epoch_visits_every_case_once(cache):
    for epoch in range(5):
        seen = [sample(cache, epoch, i).index for i in range(len(cache))]
        assert sorted(seen) == list(range(len(cache)))
    orders = {tuple(order(0, epoch, 12)) for epoch in range(10)}
    assert len(orders) == 10
    assert tuple(order(1, 0, 12)) != tuple(order(0, 0, 12))


def test_pure_in_seed_epoch_and_index(cache):
    forward = [sample(cache, e, i) for e in range(3) for i in range(len(cache))]
    backward = [sample(cache, e, i) for e in reversed(range(3)) for i in reversed(range(len(cache)))]
    for one, two in zip(forward, reversed(backward), strict=True):
        assert one.start == two.start
        assert one.case == two.case
        np.testing.assert_array_equal(one.image, two.image)
    other = [sample(cache, e, i, seed=1) for e in range(3) for i in range(len(cache))]
    assert [s.start for s in other] != [s.start for s in forward]


def test_streams_are_independent_and_never_overlap():
    numbers = {
        generator(seed, epoch, index, stream).integers(2**63)
        for seed in range(4)
        for epoch in range(6)
        for index in range(6)
        for stream in ("order", "patch", "augment")
    }
    assert len(numbers) == 4 * 6 * 6 * 3


def test_patches_cover_the_case_evenly(tmp_path):
    cache = make_cache(tmp_path, 2)
    starts = np.array(
        [
            s.start
            for e in range(400)
            for s in [sample(cache, e, i, foreground=0.0) for i in range(5)]
            if s.index == 0
        ]
    )
    assert starts.min(0).tolist() == [0, 0]
    assert starts.max(0).tolist() == [30 - 16, 40 - 16]
    counts = np.bincount(starts[:, 0], minlength=15)
    assert counts.min() > 0.4 * 400 / 15


def test_foreground_is_found_as_often_as_asked(tmp_path):
    """The single voxel of class 2 sits in a corner; by chance it is seen rarely, on demand half the time."""
    cache = make_cache(tmp_path, 2)

    def share(foreground: float) -> float:
        found = [sample(cache, e, i, foreground=foreground) for e in range(120) for i in range(5)]
        return float(np.mean([(s.label == 2).any() for s in found if s.index == 0]))

    assert share(0.0) < 0.05
    assert share(1.0) == pytest.approx(0.5, abs=0.15)
    assert share(0.4) == pytest.approx(0.2, abs=0.12)


def test_foreground_lies_in_the_middle_where_the_case_allows(tmp_path):
    cache = make_cache(tmp_path, 3)
    ones = [sample(cache, e, i, foreground=1.0, patch=(4, 4, 4)) for e in range(20) for i in range(3)]
    assert all((s.label > 0).any() for s in ones)


def test_a_patch_leaves_the_case_only_where_the_case_is_smaller(cache):
    for epoch in range(30):
        for index in range(len(cache)):
            one = sample(cache, epoch, index, foreground=1.0)
            for start, extent, size in zip(one.start, cache.plan.patch, cache.shape(one.index), strict=True):
                assert 0 <= start <= size - extent if size >= extent else size - extent <= start <= 0


def test_memory_is_cropped_like_the_label(cache):
    maps = {}
    for number in range(len(cache)):
        label = cache[number].label
        maps[number] = np.stack([label == c for c in range(3)]).astype(np.float16)
    for index in range(len(cache)):
        one = sample(cache, 1, index, memory=maps.get)
        assert one.memory is not None
        assert one.memory.dtype == np.float32
        np.testing.assert_array_equal(one.memory.argmax(0), one.label)
        np.testing.assert_array_equal(one.memory.sum(0), 1)


def test_collate_makes_a_batch(cache):
    samples = [sample(cache, 0, i) for i in range(3)]
    batch = collate(samples)
    patch = cache.plan.patch
    assert batch["image"].shape == (3, 1, *patch)
    assert batch["image"].dtype == torch.float32
    assert (batch["label"].shape, batch["label"].dtype) == ((3, *patch), torch.long)
    assert (batch["valid"].shape, batch["valid"].dtype) == ((3, *patch), torch.bool)
    assert batch["case"] == [s.case for s in samples]
    assert [cache.ids[i] for i in batch["index"].tolist()] == batch["case"]
    assert batch["trusted"].tolist() == [s.case == "c1" for s in samples]
    assert "memory" not in batch
    some = [replace(samples[0], memory=np.full((3, *patch), 1 / 3, np.float32)), *samples[1:]]
    memory = collate(some)["memory"]
    assert torch.equal(memory[1].argmax(0), batch["label"][1])
    torch.testing.assert_close(memory.sum(1), torch.ones(3, *patch))


def test_a_case_without_label_counts_nowhere(tmp_path):
    one = sample(make_cache(tmp_path, 2, unlabelled=True), 0, 0, foreground=1.0)
    assert not one.valid.any()
    assert not one.label.any()


def test_workers_change_nothing(tmp_path):
    patches = Patches(make_cache(tmp_path, 2), epochs=2, seed=3)
    assert len(patches) == 10

    def starts(workers: int) -> list[torch.Tensor]:
        loader = DataLoader(patches, batch_size=3, collate_fn=collate, num_workers=workers)
        return [batch["image"] for batch in loader]

    for one, two in zip(starts(0), starts(2), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(IndexError):
        patches[10]


@pytest.mark.parametrize("start", [(-3, 2), (5, -7), (30, 30), (0, 0)])
def test_window_is_a_slice_of_the_padded_array(start):
    array = np.random.default_rng(0).normal(size=(2, 9, 11))
    padded = np.pad(array, [(0, 0), (40, 40), (40, 40)], constant_values=5)
    expected = padded[:, start[0] + 40 : start[0] + 46, start[1] + 40 : start[1] + 48]
    np.testing.assert_array_equal(window(array, start, (6, 8), fill=5), expected)
