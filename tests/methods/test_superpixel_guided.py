"""Superpixels and their means against loops, the choice against float64 NumPy, and the mending of masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from tests_selection import numpy_ce, numpy_ce_dice, numpy_probs, trained
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.errors import UsageError
from maskmend.methods.superpixel_guided import (
    BINS,
    SuperpixelGuided,
    _quantiles,
    majority,
    mean_within,
    superpixels,
)

FORGET = {"forget_foreground": 0.3, "forget_background": 0.2}


@pytest.mark.parametrize("ndim", [2, 3])
def test_superpixels_are_near_the_size_asked_for_and_follow_the_image(ndim):
    image = torch.zeros(2, 2, *[24] * ndim)
    image[..., 12:] = 3
    segments = superpixels(image, 4**ndim, 0.1)
    assert segments.shape == (2, *[24] * ndim)
    assert 0.3 < len(segments.unique()) / (2 * 6**ndim) < 2
    assert not set(segments[0].unique().tolist()) & set(segments[1].unique().tolist())
    assert not set(segments[..., :12].unique().tolist()) & set(segments[..., 12:].unique().tolist())


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_an_empty_image_has_superpixels_too(value):
    assert superpixels(torch.full((1, 1, 12, 12), value), 36, 0.1).min() == 0


def test_means_and_majorities_are_those_of_a_loop():
    torch.manual_seed(0)
    values, segments = torch.rand(2, 3, 8, 8), torch.randint(0, 9, (3, 8, 8))
    label, valid = torch.randint(0, 3, (3, 8, 8)), torch.rand(3, 8, 8) > 0.3
    means, mostly = mean_within(values, segments, valid), majority(label, 3, segments, valid)
    for number in range(9):
        inside = (segments == number) & valid
        for map_, mean in zip(values, means, strict=True):
            torch.testing.assert_close(mean[segments == number].unique(), map_[inside].mean()[None])
        assert mostly[segments == number].unique().item() == np.bincount(label[inside].numpy()).argmax()


def test_the_superpixels_with_the_largest_joint_loss_are_dropped_whole():
    torch.manual_seed(0)
    method, batch = SuperpixelGuided(toy_network, voxels=9, agreement=0.5, **FORGET), toy_batch()
    method.networks.eval()
    label, valid = batch["label"].numpy(), batch["valid"].numpy()
    p, q = (numpy_probs(network(batch["image"])) for network in method.networks)
    apart = (rel_entr(p, q) + rel_entr(q, p)).sum(1)
    joint = 0.5 * (numpy_ce(p, label) + numpy_ce(q, label)) + 0.5 * apart
    segments = superpixels(batch["image"], 9, 0.1).numpy()
    pieces = []
    for number in np.unique(segments):
        inside = (segments == number) & valid
        if inside.any():
            pieces.append((joint[inside].mean(), np.bincount(label[inside]).argmax(), inside))
    keep = np.zeros_like(valid)
    for given, share in enumerate((0.2, 0.3, 0.3)):
        mine = sorted((x for x in pieces if x[1] == given), key=lambda x: x[0])
        wanted = np.ceil((1 - share) * sum(x[2].sum() for x in mine) - 1e-9)
        for _, _, inside in mine:
            if keep[np.logical_or.reduce([x[2] for x in mine])].sum() < wanted:
                keep |= inside
    expected = (
        0.5 * (numpy_ce_dice(p, label, keep) + numpy_ce_dice(q, label, keep)) + 0.5 * apart[keep].mean()
    )
    assert method.training_step(batch, 1.0).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_limit_leaves_the_share_below():
    histogram = torch.zeros(2, BINS)
    histogram[0, :] = 1  # uniform
    histogram[1, 30], histogram[1, 80] = 10, 90
    limits = _quantiles(histogram, torch.tensor([0.25, 0.2]))
    assert limits.tolist() == pytest.approx([0.25, 0.8])


def look(method, batch, progress, memory):
    """One look at every case, as the loop makes it."""
    assert method.wants_revision(progress)
    method.eval()
    looks = method.observe(batch["image"])
    memory = [
        method.revise(
            i, looks[i], batch["label"][i], batch["valid"][i], memory[i], progress, batch["image"][i]
        )
        for i in range(len(looks))
    ]
    method.after_revision(progress)
    return memory


def test_patches_of_wrong_labels_are_mended_but_trusted_cases_are_not():
    torch.manual_seed(0)
    truth, batch = toy_batch(), toy_batch()
    batch["label"][0, 5:9, 3:6] = 0  # a part of the structure left out
    batch["label"][1, 5:9, 3:6] = 0
    method = trained(SuperpixelGuided(toy_network, voxels=9, relabels=1, relabel_from=0.5), truth, steps=100)
    method.begin(4, trusted=[1])
    memory = look(method, batch, 0.5, [None] * 4)
    assert memory == [None] * 4  # only measured
    assert method.noise_rates[0] > 0.05
    memory = look(method, batch, 0.6, memory)
    assert not method.wants_revision(1.0)
    valid, wrong = batch["valid"][0], batch["label"][0] != truth["label"][0]
    mended = memory[0].argmax(0)
    assert (mended == truth["label"][0])[wrong & valid].float().mean() > 0.7
    assert (mended == truth["label"][0])[~wrong & valid].float().mean() > 0.95
    assert memory[1] is None


def test_believed_superpixels_keep_their_labels():
    """With no flaws expected nothing changes, although the network of this test knows nothing."""
    torch.manual_seed(0)
    none = {"forget_foreground": 0.0, "forget_background": 0.0}
    method, batch = SuperpixelGuided(toy_network, voxels=9, relabel_from=0.5, **none), toy_batch()
    method.begin(4)
    memory = look(method, batch, 0.6, look(method, batch, 0.5, [None] * 4))
    assert torch.equal(torch.stack(memory).argmax(1)[batch["valid"]], batch["label"][batch["valid"]])


def test_the_mended_mask_is_what_is_learnt():
    torch.manual_seed(0)
    method, batch = SuperpixelGuided(toy_network, voxels=9, **FORGET), toy_batch(memory=True)
    method.networks.eval()
    with_memory = method.training_step(batch, 0.9).loss.item()
    batch["label"] = batch.pop("memory").argmax(1)
    assert method.training_step(batch, 0.9).loss.item() == with_memory


def test_looks_come_in_pairs_spread_over_the_rest_of_training():
    method = SuperpixelGuided(toy_network, relabels=2, relabel_from=0.4, **FORGET)
    wanted = []
    for done in range(5):
        method.looks.fill_(done)
        wanted.append([method.wants_revision(t) for t in (0.1, 0.4, 0.69, 0.71)])
    early, later = [False, True, True, True], [False, False, False, True]
    assert wanted == [early, early, later, later, [False] * 4]
    assert not SuperpixelGuided(toy_network, relabels=0, **FORGET).wants_revision(0.9)


def test_variants_keep_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "superpixel_guided", voxels=9, ensemble=True, dice=False, **FORGET)


def test_settings_out_of_range_name_the_key():
    for bad in ({"voxels": 1}, {"compactness": 0}, {"agreement": 1}, {"relabels": -1}, {"relabel_from": 2}):
        with pytest.raises(UsageError, match=f"method.{next(iter(bad))}"):
            SuperpixelGuided(toy_network, **bad)
