"""Methods for several raters against SimpleITK, voxel-by-voxel NumPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_toys import toy_batch, toy_network
from torch import nn

from maskmend.data.preprocess import IGNORED
from maskmend.data.raters import combinations, fused, majority
from maskmend.errors import UsageError
from maskmend.methods.annotator_confusion import AnnotatorConfusion
from maskmend.methods.majority import Majority, vote_map
from maskmend.methods.random_rater import RandomRater
from maskmend.methods.simple import Simple, simple
from maskmend.methods.staple import Staple, staple


def masks(classes: int, raters: int = 5, shape: tuple[int, ...] = (30, 36), seed: int = 0) -> np.ndarray:
    """Nested boxes drawn by raters who flip more and more voxels; the third one also moves the whole."""
    rng, truth = np.random.default_rng(seed), np.zeros(shape, np.uint8)
    for k in range(1, classes):
        truth[tuple(slice(n * k // (2 * classes), n - n * k // (2 * classes)) for n in shape)] = k
    drawn = []
    for r in range(raters):
        flips = rng.random(shape) < 0.03 * (r + 1)
        mask = np.where(flips, rng.integers(0, classes, shape), truth).astype(np.uint8)
        drawn.append(np.roll(mask, 3, -1) if r == 2 else mask)
    return np.stack(drawn)


def make(kind, **settings):
    return kind(lambda: nn.Conv2d(1, 2, 1), **settings)


# --- fusion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_majority_is_simpleitks_where_there_is_no_tie(classes):
    sitk = pytest.importorskip("SimpleITK")
    votes = masks(classes)
    theirs = sitk.GetArrayFromImage(sitk.LabelVoting([sitk.GetImageFromArray(m) for m in votes], 99))
    ours = fused(votes, classes, majority)
    assert (theirs != 99).mean() > 0.9
    np.testing.assert_array_equal(ours[theirs != 99], theirs[theirs != 99])
    tied = [np.bincount(votes[:, i, j], minlength=classes) for i, j in np.argwhere(theirs == 99)]
    assert ours[theirs == 99].tolist() == [int(np.flatnonzero(t == t.max())[0]) for t in tied]


@pytest.mark.parametrize("shape", [(30, 36), (8, 12, 10)])
def test_staple_is_simpleitks(shape):
    sitk = pytest.importorskip("SimpleITK")
    votes = masks(2, shape=shape)
    theirs = sitk.STAPLEImageFilter()
    probs = sitk.GetArrayFromImage(theirs.Execute([sitk.GetImageFromArray(m) for m in votes]))
    table, counts, which = combinations(votes, 2)
    ours, confusion = staple(table, counts, 2, 500)
    np.testing.assert_allclose(ours[which][..., 1], probs, atol=1e-5)
    np.testing.assert_allclose(confusion[:, 1, 1], theirs.GetSensitivity(), atol=1e-5)
    np.testing.assert_allclose(confusion[:, 0, 0], theirs.GetSpecificity(), atol=1e-5)


def test_staple_of_several_classes_is_simpleitks():
    sitk = pytest.importorskip("SimpleITK")
    votes = masks(3)
    theirs = sitk.MultiLabelSTAPLEImageFilter()
    theirs.SetTerminationUpdateThreshold(1e-7)
    label = sitk.GetArrayFromImage(theirs.Execute([sitk.GetImageFromArray(m) for m in votes]))
    table, counts, which = combinations(votes, 3)
    probs, confusion = staple(table, counts, 3, 500)
    first = np.array(theirs.GetConfusionMatrix(0)).reshape(4, 3)[:3]
    np.testing.assert_allclose(confusion[0], first, atol=2e-3)
    differ = fused(votes, 3, make(Staple).fuse) != label
    top = np.sort(probs[which], axis=-1)
    assert differ.mean() < 0.005  # theirs is computed in single precision and from another start
    assert (top[..., -1] - top[..., -2])[differ].max(initial=0) < 0.05


def numpy_staple(votes: np.ndarray, classes: int, rounds: int = 60) -> np.ndarray:
    """EM voxel by voxel from the equations; a vote of IGNORED says nothing."""
    flat = votes.reshape(len(votes), -1)
    known = flat != IGNORED
    prior = np.array([(flat == k).sum() for k in range(classes)]) / known.sum()
    theta = [
        np.eye(classes) * (1 - 1e-5 - 1e-5 / (classes - 1)) + 1e-5 / (classes - 1) for _ in votes
    ]  # theta[r][i, j]
    for _ in range(rounds):
        weight = np.tile(prior, (flat.shape[1], 1))
        for r, mask in enumerate(flat):
            weight[known[r]] *= theta[r][mask[known[r]]]
        weight /= weight.sum(1, keepdims=True)
        for r, mask in enumerate(flat):
            for i in range(classes):
                theta[r][i] = weight[mask == i].sum(0) / weight[known[r]].sum(0)
    return weight.reshape(*votes.shape[1:], classes)


@pytest.mark.parametrize("classes", [2, 3])
def test_staple_with_voxels_left_out(classes):
    votes = masks(classes, seed=3)
    votes[np.random.default_rng(0).random(votes.shape) < 0.2] = IGNORED
    table, counts, which = combinations(votes, classes)
    ours = staple(table, counts, classes, 500)[0][which]
    said = (votes != IGNORED).any(0)
    np.testing.assert_allclose(ours[said], numpy_staple(votes, classes)[said], atol=1e-4)


def test_without_consensus_only_disputed_voxels_count():
    votes = masks(2)
    disputed = votes.min(0) != votes.max(0)
    table, counts, which = combinations(votes[:, disputed], 2)
    expected = votes[0].copy()
    expected[disputed] = staple(table, counts, 2, 500)[0].argmax(1)[which]
    np.testing.assert_array_equal(fused(votes, 2, make(Staple, consensus=False).fuse), expected)
    same = np.stack([votes[0]] * 3)
    np.testing.assert_array_equal(fused(same, 2, make(Staple, consensus=False).fuse), votes[0])


def numpy_simple(
    votes: np.ndarray, classes: int, strictness: float, keep: int
) -> tuple[np.ndarray, list[int]]:
    """SIMPLE on voxels, with sets of raters."""
    left, weight = list(range(len(votes))), dict.fromkeys(range(len(votes)), 1.0)

    def vote():
        return np.stack([sum(weight[r] * (votes[r] == k) for r in left) for k in range(classes)]).argmax(0)

    def performance(r, label):
        scores = []
        for k in range(1, classes):
            a, b = (votes[r] == k), (label == k) & (votes[r] != IGNORED)
            if a.any() or b.any():
                scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        return np.mean(scores) if scores else 1.0

    while True:
        label = vote()
        weight = {r: performance(r, label) for r in left}
        limit = np.mean(list(weight.values())) - strictness * np.std(list(weight.values()))
        safe = sorted(left, key=lambda r: (-weight[r], r))[:keep]
        poor = [r for r in left if weight[r] < limit and r not in safe]
        left = [r for r in left if r not in poor]
        if not poor:
            return vote(), left


@pytest.mark.parametrize(
    ("classes", "strictness", "keep"), [(2, 1.0, 3), (2, 0.5, 1), (3, 1.0, 3), (4, 1.5, 2)]
)
def test_simple_is_the_plain_algorithm(classes, strictness, keep):
    votes = masks(classes, raters=7, seed=classes)
    votes[np.random.default_rng(0).random(votes.shape) < 0.05] = IGNORED
    table, counts, which = combinations(votes, classes)
    label, weights = simple(table, counts, classes, strictness, keep)
    expected, left = numpy_simple(votes, classes, strictness, keep)
    assert np.flatnonzero(weights).tolist() == left
    assert len(left) < 7
    said = (votes != IGNORED).any(0)
    np.testing.assert_array_equal(label[which][said], expected[said])


def test_simple_leaves_out_gross_errors():
    votes = masks(2)
    wrong = np.stack([1 - votes[0]] * 2)  # two of seven drew the opposite
    table, counts, _ = combinations(np.concatenate([votes, wrong]), 2)
    assert (simple(table, counts, 2, 1.0, 3)[1][5:] == 0).all()


@pytest.mark.parametrize("kind", [Staple, Simple, Majority])
def test_raters_who_agree_are_believed(kind):
    for classes in (2, 3):
        mask = masks(classes)[0]
        np.testing.assert_array_equal(fused(np.stack([mask] * 3), classes, make(kind).fuse), mask)
        np.testing.assert_array_equal(
            fused(np.zeros((2, 4, 4), np.uint8), classes, make(kind).fuse), np.zeros((4, 4))
        )


# --- learning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
def test_shares_of_votes(ndim):
    batch = toy_batch(ndim, raters=True)
    batch["trusted"][3] = True
    shares = vote_map(batch, 3).numpy()
    votes, label = batch["raters"].numpy(), batch["label"].numpy()
    for b in range(4):
        seen = votes[b][batch["rated"][b].numpy()]
        for place in np.argwhere(batch["valid"][b].numpy())[::7]:
            here = tuple(place)
            given = [label[b][here]] if b == 3 else [v for v in seen[(slice(None), *here)] if v >= 0]
            expected = np.bincount(given, minlength=3) / len(given)
            np.testing.assert_allclose(shares[(b, slice(None), *here)], expected, atol=1e-6)


def test_a_random_rater_is_drawn_fairly_among_those_who_drew():
    batch, method = toy_batch(raters=True), make(RandomRater)
    batch["raters"] = torch.arange(3).view(1, 3, 1, 1).expand(4, 3, 12, 12).clone()
    batch["rated"] = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    torch.manual_seed(0)
    drawn = [method._drawn(batch) for _ in range(600)]
    shares = torch.stack([label[:, 5, 5] for label, _ in drawn]).T
    assert [sorted(set(row.tolist())) for row in shares[:3]] == [[0, 1, 2], [0, 2], [1]]
    assert all(150 < (shares[0] == r).sum() < 250 for r in range(3))
    label, valid = drawn[0]
    assert not valid[3].any()  # nobody drew it
    assert torch.equal(valid[:3], batch["valid"][:3])
    assert len(label[0].unique()) == 1  # one rater for the whole patch
    batch["trusted"] = torch.tensor([False, False, True, False])
    assert torch.equal(method._drawn(batch)[0][2], batch["label"][2])


def test_one_label_per_case_is_refused():
    for kind in (RandomRater, AnnotatorConfusion):
        method = kind(toy_network)
        method.begin_raters(3, 3)
        with pytest.raises(UsageError, match="one label per case"):
            method.training_step(toy_batch(), 0.5)


class Fixed(nn.Module):
    """A network that answers the same logits whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits


def numpy_confusion(logits, residual, batch, *, trace, dice, diagonal=0.95):
    """The published loss with Dice, by loops over raters, at the end of training."""
    z = logits.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    likelihood, voxels, traces, parts = 0.0, 0, 0.0, []
    for r in range(3):
        a = residual[r].astype(np.float64) + np.eye(3) * np.log(diagonal * 2 / (1 - diagonal))
        a = np.exp(a) / np.exp(a).sum(0)
        product = np.einsum("ij,bjhw->bihw", a, p)
        known = (batch["raters"][:, r] >= 0) & batch["rated"][:, r, None, None] & batch["valid"]
        known, mask = known.numpy(), batch["raters"][:, r].numpy()
        for b, y, x in np.argwhere(known):
            likelihood -= np.log(product[b, mask[b, y, x], y, x])
            parts.append((product[b, :, y, x], np.eye(3)[mask[b, y, x]]))
        voxels += known.sum()
        traces += np.trace(a) * known.sum()
    guess, truth = (np.array(side) for side in zip(*parts, strict=True))
    overlap = (2 * (guess * truth).sum(0) + 1e-5) / (guess.sum(0) + truth.sum(0) + 1e-5)
    return likelihood / voxels + dice * (1 - overlap[1:].mean()) + trace * traces / voxels


@pytest.mark.parametrize(("trace", "dice"), [(0.01, 1.0), (0.3, 0.0)])
def test_global_matrices_are_the_equations(trace, dice):
    batch, rng = toy_batch(raters=True), np.random.default_rng(0)
    logits, residual = rng.normal(size=(4, 3, 12, 12)), rng.normal(size=(3, 3, 3))
    method = AnnotatorConfusion(
        lambda: Fixed(torch.tensor(logits).float()), matrices="global", trace=trace, dice=dice
    )
    method.begin_raters(3, 3)
    method.residual.data = torch.tensor(residual).float()
    expected = numpy_confusion(logits, residual, batch, trace=trace, dice=dice)
    assert method.training_step(batch, 1.0).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("matrices", ["pixel", "global"])
def test_matrices_begin_near_the_identity_and_sum_to_one(matrices, ndim):
    torch.manual_seed(0)
    method, batch = AnnotatorConfusion(lambda: toy_network(ndim), matrices=matrices), toy_batch(ndim)
    method.begin_raters(5, 3)
    confusion = method.confusion(batch["image"], method.student(batch["image"]))
    one = (4, 5, 3, 3, *batch["label"].shape[1:]) if matrices == "pixel" else (1, 5, 3, 3, *[1] * ndim)
    assert confusion.shape == one
    torch.testing.assert_close(confusion.sum(2), torch.ones_like(confusion[:, :, 0]))
    diagonal = confusion.diagonal(dim1=2, dim2=3)
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, 0.95), atol=0.02, rtol=0)


def test_a_matrix_finds_who_confuses_what():
    """One of three raters writes class 1 for 40 % of class 2; the segmentation is known."""
    torch.manual_seed(0)
    label = torch.randint(0, 3, (4, 24, 24))
    votes = label.unsqueeze(1).repeat(1, 3, 1, 1)
    votes[:, 2][(label == 2) & (torch.rand(label.shape) < 0.4)] = 1
    batch = toy_batch(size=24, raters=True) | {
        "label": label, "valid": torch.ones_like(label, dtype=torch.bool), "raters": votes,
        "rated": torch.ones(4, 3, dtype=torch.bool),
    }  # fmt: skip
    sure = 12.0 * nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    method = AnnotatorConfusion(lambda: Fixed(sure).requires_grad_(False), matrices="global", trace=0, dice=0)
    method.begin_raters(3, 3)
    optimizer = torch.optim.Adam([method.residual], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        method.training_step(batch, 1.0).loss.backward()
        optimizer.step()
    confusion = method.confusion(batch["image"], sure)[0, :, :, :, 0, 0].detach()
    expected = torch.eye(3).repeat(3, 1, 1)
    expected[2, :, 2] = torch.tensor([0.0, 0.4, 0.6])
    torch.testing.assert_close(confusion, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("matrices", ["pixel", "global"])
def test_a_stored_method_brings_its_raters_along(matrices):
    method = AnnotatorConfusion(toy_network, matrices=matrices)
    method.begin_raters(4, 3)
    twin = AnnotatorConfusion(toy_network, matrices=matrices)
    twin.load_state_dict(method.state_dict())
    method.eval(), twin.eval()
    image = toy_batch()["image"]
    assert torch.equal(
        twin.confusion(image, twin.predict(image)), method.confusion(image, method.predict(image))
    )


@pytest.mark.parametrize("matrices", ["pixel", "global"])
def test_trusted_cases_teach_the_segmentation_itself(matrices):
    torch.manual_seed(0)
    method, batch = AnnotatorConfusion(toy_network, matrices=matrices), toy_batch(raters=True)
    method.begin_raters(3, 3)
    batch["rated"][:] = False
    assert method.training_step(batch, 1.0).loss.item() == 0
    batch["trusted"][0] = True
    assert method.training_step(batch, 1.0).loss.item() > 0
