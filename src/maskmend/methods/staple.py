"""STAPLE: the label behind several raters and how reliable each of them is, estimated together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from maskmend.data.raters import majority
from maskmend.losses import ce_dice
from maskmend.methods.base import Batch, EmaMethod, StepOutput, within

NO_VOTE = 255
TOLERANCE = 1e-7  # largest change of a confusion entry at which EM has converged


class Staple(EmaMethod):
    """Learn from one label per case in which each rater's vote weighs as much as that rater proves reliable.

    Expectation-maximisation alternates between the probability of each class at every voxel, given how often each rater
    confuses which classes, and those confusions, given the probabilities. A rater who is often outvoted loses weight.
    The estimate is made once per case, before training, and is exact on the few combinations of votes that occur.

    With much background every rater looks perfect there, a single vote for a structure then counts for much, and the
    label grows towards the union of the masks. `consensus=False` estimates the raters only where they disagree.

    Args:
        make_network: builds the network.
        ema: decay of the averaged weights that predict, in [0, 1).
        consensus: count voxels on which all raters agree, as published; off, only disputed voxels are counted.
        iterations: of EM at most, >= 1.

    Example:
        >>> method = Staple(toy_network)
        >>> votes = np.array([[0, 0, 0], [1, 1, 1], [1, 1, 0], [0, 0, 1]])  # four combinations of three raters ...
        >>> method.fuse(votes, np.array([900, 80, 10, 10]), classes=2)  # ... on so many voxels
        array([0, 1, 1, 0])

    Source: Warfield et al., IEEE TMI 2004 (one confusion matrix per rater over all classes, a spatially constant prior
    from the votes). `consensus=False` is known as ignoring consensus voxels. A rater who left a voxel out counts as
    silent there, and of equally likely classes the one of the lower index is taken (ours).
    """

    family = "several raters"
    needs = ("raters",)
    source = "Warfield et al., IEEE TMI 2004"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        consensus: bool = True,
        iterations: int = 500,
    ) -> None:
        super().__init__(make_network, ema)
        self.consensus = consensus
        self.iterations = int(within("iterations", iterations, 1, 1e6))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on the fused label."""
        return StepOutput(ce_dice(self.student(batch["image"]), batch["label"], batch["valid"]))

    def fuse(self, votes: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
        """The most probable class of each combination of votes."""
        if self.consensus:
            return staple(votes, counts, classes, self.iterations)[0].argmax(axis=1)
        agreed, disputed = majority(votes, counts, classes), _disputed(votes)
        if not disputed.any():
            return agreed
        probs = staple(votes, counts * disputed, classes, self.iterations)[0]
        return np.where(disputed, probs.argmax(axis=1), agreed)


def staple(
    votes: np.ndarray, counts: np.ndarray, classes: int, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """EM over combinations of votes.

    Args:
        votes: (Q, R) class indices, 255 for no vote.
        counts: voxels of each combination, (Q,).
        classes: K.
        iterations: at most.

    Returns:
        probabilities (Q, K), and confusion[r, i, j] = P(rater r says i | the class is j), (R, K, K).
    """
    said = (votes[:, :, None] == np.arange(classes)).astype(np.float64)  # (Q, R, K), all 0 for no vote
    weighted = said * counts[:, None, None]
    prior = weighted.sum(axis=(0, 1)) / max(weighted.sum(), 1)
    confusion = np.tile(_nearly_perfect(classes), (votes.shape[1], 1, 1))
    for _ in range(iterations):
        probs = _expect(said, confusion, prior)
        joint = np.einsum("qri,qj->rij", weighted, probs)
        total = joint.sum(axis=1, keepdims=True)  # of a class that a rater never met nothing is learnt
        new = np.where(total > 0, joint / np.where(total > 0, total, 1), confusion)
        change, confusion = np.abs(new - confusion).max(), new
        if change < TOLERANCE:
            break
    return _expect(said, confusion, prior), confusion


def _expect(said: np.ndarray, confusion: np.ndarray, prior: np.ndarray) -> np.ndarray:
    log_likelihood = np.einsum("qri,rij->qj", said, np.log(np.maximum(confusion, 1e-300)))
    score = log_likelihood + np.log(np.maximum(prior, 1e-300))
    probs: np.ndarray = np.exp(score - score.max(axis=1, keepdims=True))
    return probs / probs.sum(axis=1, keepdims=True)


def _nearly_perfect(classes: int) -> np.ndarray:
    wrong = 1e-5
    return np.full((classes, classes), wrong / max(classes - 1, 1)) + np.eye(classes) * (1 - wrong)


def _disputed(votes: np.ndarray) -> np.ndarray:
    """Combinations in which two raters differ."""
    masked = np.ma.masked_equal(votes.astype(int), NO_VOTE)
    return np.asarray((masked.max(axis=1) != masked.min(axis=1)).filled(False))
