"""Phantoms: deterministic, both classes there, image and label about one thing, readable as a data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from maskmend.data.dataset import find_cases
from maskmend.data.images import read_case, read_label
from maskmend.data.phantom import make_phantom, phantom_case
from maskmend.errors import UsageError


@pytest.mark.parametrize(("ndim", "seeds", "least"), [(2, 60, 40), (3, 6, 60)])
def test_every_case_holds_organ_and_core(ndim, seeds, least) -> None:
    for seed in range(seeds):
        image, label = phantom_case(np.random.default_rng(seed), ndim)
        assert image.shape == (1, *label.shape)
        assert image.dtype == np.float32
        assert label.dtype == np.uint8
        assert 0 <= image.min() <= image.max() <= 1
        assert [int((label == k).sum()) > least for k in (0, 1, 2)] == [True] * 3
        assert label.max() == 2


@pytest.mark.parametrize("ndim", [2, 3])
def test_equal_seeds_give_equal_cases(ndim) -> None:
    first, again, other = (phantom_case(np.random.default_rng(seed), ndim) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


def test_organ_and_core_stand_out_from_their_rim() -> None:
    """Else no one could draw them; partial volume is why the rim starts one voxel outside."""
    for seed in range(20):
        image, label = phantom_case(np.random.default_rng(seed))
        near, far = (ndimage.binary_dilation(label > 0, iterations=n) for n in (1, 4))
        rim = image[0][far & ~near].mean()
        organ, core = (image[0][label == value].mean() for value in (1, 2))
        assert rim + 0.07 < organ
        assert organ + 0.04 < core


def test_organs_are_brighter_than_their_surroundings_but_brightness_alone_does_not_tell() -> None:
    """Look-alikes make a threshold poor even when it is chosen with the truth at hand."""
    gains, best = [], []
    for seed in range(20):
        image, label = phantom_case(np.random.default_rng(seed))
        pixels, truth = image[0], label > 0
        gains.append(pixels[truth].mean() - pixels[~truth].mean())
        dice = []
        for cut in np.quantile(pixels, np.linspace(0.5, 0.99, 30)):
            guess = pixels > cut
            dice.append(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
        best.append(max(dice))
    assert min(gains) > 0.05
    assert np.mean(best) < 0.85


def test_shape_is_free_and_checked() -> None:
    assert phantom_case(np.random.default_rng(0), 2, (40, 70))[1].shape == (40, 70)
    for bad in ((10, 40), (40, 40, 40)):
        with pytest.raises(UsageError, match="shape"):
            phantom_case(np.random.default_rng(0), 2, bad)
    with pytest.raises(UsageError, match="2 or 3"):
        phantom_case(np.random.default_rng(0), 4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_written_set_reads_back(tmp_path, ndim) -> None:
    make_phantom(tmp_path, ndim=ndim, train=3, test=2, seed=4)
    dataset = find_cases(tmp_path)
    assert dict(dataset.labels) == {"background": 0, "organ": 1, "core": 2}
    assert [len(dataset.train), len(dataset.test)] == [3, 2]
    case = dataset.train[1]
    image, label = phantom_case(np.random.default_rng([4, ndim, 0, 1]), ndim)
    stored, geometry = read_case(case, dataset)
    np.testing.assert_allclose(stored / 255, image, atol=0.51 / 255)
    np.testing.assert_array_equal(read_label(case.label)[0], label)
    assert geometry.spacing_mm == pytest.approx((1.2, 1.0, 1.0) if ndim == 3 else (1.0, 1.0))


def test_a_larger_set_begins_with_the_smaller(tmp_path) -> None:
    small, large = (
        make_phantom(tmp_path / "s", train=2, test=1),
        make_phantom(tmp_path / "l", train=3, test=2),
    )
    for file in sorted(small.glob("*/*.png")):
        assert file.read_bytes() == (large / file.relative_to(small)).read_bytes()
    assert json.loads((large / "maskmend.json").read_text())["test"] == ["test_000", "test_001"]
