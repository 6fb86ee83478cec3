"""SIMPLE: leave out raters who agree too little with the others, vote again, and so on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from maskmend.data.raters import vote_shares
from maskmend.losses import ce_dice
from maskmend.methods.base import Batch, EmaMethod, StepOutput, within


class Simple(EmaMethod):
    """Learn from a vote among the raters who agree with it: in each case the poor masks are left out first.

    A vote is taken, each mask's Dice with it is measured, masks below `mean - strictness * standard deviation` are
    left out, and the rest votes again, weighted by Dice, until nobody is left out any more. It suits masks of which a
    few are grossly wrong, such as a crowd's. It is done once per case, before training.

    Args:
        make_network: builds the network.
        ema: decay of the averaged weights that predict, in [0, 1).
        strictness: standard deviations below the mean at which a mask is left out, >= 0.
        keep: masks that are never left out, the best so many, >= 1.

    Example:
        >>> method = Simple(toy_network)
        >>> votes = np.array([[0, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 1]])  # the fourth rater drew something else
        >>> method.fuse(votes, np.array([500, 80, 20]), classes=2)
        array([0, 1, 1])

    Source: Langerak et al., IEEE TMI 29 (2010). With several classes a mask's performance is its mean Dice over the
    foreground classes, `keep` bounds the selection from below, and a tie goes to the lower class index (ours).
    """

    family = "several raters"
    needs = ("raters",)
    source = "Langerak et al., IEEE TMI 2010"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        strictness: float = 1.0,
        keep: int = 3,
    ) -> None:
        super().__init__(make_network, ema)
        self.strictness = within("strictness", strictness, 0, 100)
        self.keep_raters = int(within("keep", keep, 1, 1e6))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on the fused label."""
        return StepOutput(ce_dice(self.student(batch["image"]), batch["label"], batch["valid"]))

    def fuse(self, votes: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
        """The class of each combination of votes."""
        return simple(votes, counts, classes, self.strictness, self.keep_raters)[0]


def simple(
    votes: np.ndarray, counts: np.ndarray, classes: int, strictness: float, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Select raters and vote.

    Args:
        votes: combinations of votes (Q, R), class indices or 255.
        counts: voxels of each, (Q,).
        classes: K.
        strictness: standard deviations below the mean at which a rater is left out.
        keep: the best so many stay.

    Returns:
        class indices (Q,), and the raters' weights in the last vote, (R,), 0 for those left out.
    """
    selected = np.ones(votes.shape[1], bool)
    weights = selected.astype(float)
    while True:  # ends: each round leaves somebody out or is the last
        label = vote_shares(votes, weights, classes).argmax(axis=1)
        dice = np.array([_mean_dice(votes[:, r], label, counts, classes) for r in range(votes.shape[1])])
        poor = selected & (dice < dice[selected].mean() - strictness * dice[selected].std())
        best = np.argsort(-np.where(selected, dice, -1), kind="stable")[:keep]
        poor[best] = False
        weights = np.where(selected & ~poor, np.maximum(dice, 1e-6), 0)
        if not poor.any():
            return vote_shares(votes, weights, classes).argmax(axis=1), weights
        selected &= ~poor


def _mean_dice(mask: np.ndarray, label: np.ndarray, counts: np.ndarray, classes: int) -> float:
    """Mean over the foreground classes that occur in mask or label, on what the rater did not leave out."""
    known = counts * (mask < classes)
    scores = []
    for k in range(1, classes):
        a, b = mask == k, label == k
        if total := (known * a).sum() + (known * b).sum():
            scores.append(2 * (known * (a & b)).sum() / total)
    return float(np.mean(scores)) if scores else 1.0
