"""Sliding-window prediction, against MONAI's and against networks whose answer is known for every voxel."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskmend.networks import build
from maskmend.predict.sliding import count_windows, predict_array, predict_many


def threshold(x: Tensor) -> Tensor:
    """A 'network' that looks at one voxel: probability of class 1 is the sigmoid of the first channel."""
    p = torch.sigmoid(4 * (x[:, :1] - 0.5))
    return torch.cat([1 - p, p], 1)


def random_network(ndim: int, channels: int = 1, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    layers = [conv(channels, 4, 5, padding=2), nn.ReLU(), conv(4, classes, 3, padding=1)]
    return nn.Sequential(*layers, nn.Softmax(1)).eval()


def one_hot_place(x: Tensor) -> Tensor:
    """Depends on the place in the patch: left half class 0, right half class 1, so flips show."""
    p = torch.zeros(len(x), 2, *x.shape[2:])
    half = x.shape[-1] // 2
    p[:, 0, ..., :half] = 1
    p[:, 1, ..., half:] = 1
    return p


@pytest.mark.parametrize(
    "size", [(7, 9), (16, 16), (17, 31), (40, 5), (16, 15, 16), (5, 33, 20), (31, 16, 9)]
)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_pointwise_network_gives_the_same_as_without_windows(size: tuple[int, ...], overlap: float) -> None:
    image = torch.rand(1, *size)
    probs = predict_array(threshold, image, patch=(16,) * len(size), classes=2, overlap=overlap, batch=3)
    assert probs.shape == (2, *size)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, threshold(image[None])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(48, 32), (24, 16, 40), (10, 12)])
def test_equals_monai(size: tuple[int, ...]) -> None:
    patch = (16,) * len(size)
    inferers = pytest.importorskip("monai.inferers")
    net, image = random_network(len(size), channels=2), torch.randn(2, *size)
    with torch.no_grad():
        # MONAI lifts every weight to at least 1e-3, which no longer factors by axis; scaling the map up
        # keeps its Gaussian whole.
        offset = [torch.arange(p, dtype=torch.float64) - (p - 1) / 2 for p in patch]
        bells = [torch.exp(-0.5 * (o / (0.125 * p)) ** 2) for o, p in zip(offset, patch, strict=True)]
        weights = torch.ones(())
        for bell in bells:
            weights = weights[..., None] * bell
        reference = inferers.sliding_window_inference(
            image[None].double(), patch, 3, net.double(), overlap=0.5, mode="gaussian",
            roi_weight_map=1e12 * weights[None, None],
        )[0]  # fmt: skip
    got = predict_array(net.float(), image, patch=patch, classes=3, overlap=0.5)
    torch.testing.assert_close(got.double(), reference, atol=1e-5, rtol=0)


def test_seams_are_smaller_than_without_blending() -> None:
    image = torch.randn(1, 96, 96)
    net = random_network(2)
    with torch.no_grad():
        whole = net(image[None])[0]
    gap = {
        overlap: (predict_array(net, image, patch=(32, 32), classes=3, overlap=overlap) - whole).abs().mean()
        for overlap in (0.0, 0.5)
    }
    assert gap[0.5] < 0.2 * gap[0.0]


@pytest.mark.parametrize("mirror", [(0,), (1,), (0, 1)])
def test_mirror_is_the_mean_over_flips(mirror: tuple[int, ...]) -> None:
    image, net = torch.randn(1, 16, 16), random_network(2)
    flips = [axes for n in range(len(mirror) + 1) for axes in itertools.combinations(mirror, n)]
    with torch.no_grad():
        views = [
            net(image[None].flip([a + 2 for a in axes])).flip([a + 2 for a in axes])[0] for axes in flips
        ]
    got = predict_array(net, image, patch=(16, 16), classes=3, mirror=mirror)
    torch.testing.assert_close(got, torch.stack(views).mean(0), atol=1e-6, rtol=0)


def test_mirror_undoes_the_flip() -> None:
    image = torch.zeros(1, 8, 8)
    assert predict_array(one_hot_place, image, patch=(8, 8), classes=2)[1, 0, -1] == 1
    assert predict_array(one_hot_place, image, patch=(8, 8), classes=2, mirror=(1,))[1, 0, -1] == 0.5
    assert predict_array(one_hot_place, image, patch=(8, 8), classes=2, mirror=(0,))[1, 0, -1] == 1


def test_many_images_of_mixed_size_keep_their_order_and_values() -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.random((1, *size), dtype=np.float32) for size in [(8, 9), (40, 40), (16, 16), (17, 3), (5, 5)] * 3
    ]
    got = list(predict_many(threshold, images, patch=(16, 16), classes=2, batch=4))
    assert len(got) == len(images)
    for image, probs in zip(images, got, strict=True):
        torch.testing.assert_close(probs, threshold(torch.from_numpy(image)[None])[0], atol=1e-5, rtol=0)


def test_small_images_share_batches_and_come_out_as_soon_as_they_are_done() -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return threshold(x)

    stream = predict_many(counting, iter(torch.rand(200, 1, 12, 16)), patch=(16, 16), classes=2, batch=32)
    next(stream)
    assert sizes == [32]
    assert sum(1 for _ in stream) == 199
    assert sizes == [32] * 6 + [8]


def test_ticks_add_up_to_the_count() -> None:
    ticks: list[int] = []
    predict_array(threshold, torch.rand(1, 50, 33), patch=(16, 16), classes=2, tick=ticks.append)
    assert sum(ticks) == count_windows((50, 33), (16, 16), 0.5)


def test_memory_mapped_and_integer_images(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 2, (1, 20, 30), dtype=np.uint16)
    np.save(tmp_path / "image.npy", image)
    got = predict_array(threshold, np.load(tmp_path / "image.npy", mmap_mode="r"), patch=(16, 16), classes=2)
    torch.testing.assert_close(
        got, threshold(torch.from_numpy(image.astype(np.float32))[None])[0], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("bad", [{"patch": (16,)}, {"classes": 5}, {"overlap": 1.0}])
def test_wrong_shapes_are_refused(bad: dict[str, object]) -> None:
    settings = {"patch": (16, 16), "classes": 2, **bad}
    with pytest.raises(ValueError, match=r"patch|predictor|overlap"):
        predict_array(threshold, torch.rand(1, 16, 16), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("left_out", [1, 2, 5])
def test_steady_results_do_not_depend_on_the_other_images(left_out: int) -> None:
    torch.manual_seed(0)
    network = build("unet", ndim=2, in_channels=1, classes=3, patch=(32, 32), depth=3, options={"base": 4})
    network.eval()

    def predicted(images: list[np.ndarray], steady: bool) -> list[Tensor]:
        softmax = torch.nn.Softmax(1)
        found = predict_many(
            lambda x: softmax(network(x)), images, patch=(32, 32), classes=3, batch=4, steady=steady
        )
        return list(found)

    sizes = [(32, 32), (40, 32), (70, 70), (32, 32), (9, 32), (32, 32), (32, 66), (32, 32), (32, 32)]
    images = [np.random.default_rng(i).normal(size=(1, *s)).astype(np.float32) for i, s in enumerate(sizes)]
    together, rest = predicted(images, True), predicted(images[left_out:], True)
    for one, two in zip(together[left_out:], rest, strict=True):
        assert torch.equal(one, two)
    plain = predicted(images, False)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(together, plain, strict=True))
