"""Confident learning: find wrong labels by out-of-fold probabilities, and soften them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice, one_hot
from maskmend.methods._folds import Folds
from maskmend.methods.base import Batch, StepOutput, given_class_probability, one_of, within

PRUNE = ("class", "noise_rate", "both")
SAMPLED = 200  # voxels per case and given class from which the joint is estimated
NEVER = 2.0  # a lead that no probability has over another
SLACK = 1e-6  # a probability this little below its class's threshold still counts as confident


class ConfidentLearning(Folds):
    """Estimate how often each class was labelled as which other, and soften that many of the least likely labels.

    Two networks, each trained on one half of the cases, judge the other half, so that nobody judges a label he was
    taught. A class's own mean probability is the bar for "confidently of this class"; counting confident voxels
    by given class gives the joint `Q` of given and true class, bars and counts being immune to a class that is
    always predicted timidly. The `n Q` voxels that speak most against their label are flagged, and the student
    learns `(1 - smoothing) y + smoothing / K` there.

    Args:
        make_network: builds one network; called `folds` + 1 times.
        ema: decay of the running averages, in [0, 1).
        folds: out-of-fold groups, >= 2; a step costs as many plain ones.
        start: share of training on given labels alone, in [0, 1).
        prune: which voxels of given class i are flagged: "class", the `sum_j n Q_ij` with the lowest probability of i;
            "noise_rate", for each j the `n Q_ij` with the largest margin of j over i; "both", where the two agree.
        smoothing: how far a flagged label is softened, in [0, 1].

    Example:
        >>> method = ConfidentLearning(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.1).logs)
        ['judges']

    Source: Zhang et al., MICCAI 2020 (segmentation, spatial label smoothing; 0.8 is the paper's value, its code has
    0.25); Northcutt et al., JAIR 2021, arXiv 1911.00068 (joint). The joint equals cleanlab's on the same
    voxels, which the tests show; it is computed here because cleanlab wants every voxel of the data set in
    memory. Ours: it is estimated from a random sample of voxels of each case and given class, weighted by what they
    stand for; all networks train in one run; "softened" is read as ordinary label smoothing; trusted cases are
    never flagged.
    """

    family = "label correction"
    source = "Zhang et al., MICCAI 2020; Northcutt et al., JAIR 2021"

    lowest: Tensor
    margin: Tensor

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        folds: int = 2,
        start: float = 0.3,
        prune: str = "class",
        smoothing: float = 0.8,
    ) -> None:
        super().__init__(make_network, ema, folds, start)
        self.prune = one_of("prune", prune, PRUNE)
        self.smoothing = within("smoothing", smoothing, 0, 1)
        self.register_buffer("lowest", torch.zeros(0))
        self.register_buffer("margin", torch.zeros(0, 0))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice of the student on softened labels, and the judges' own losses."""
        logits, valid = self.student(batch["image"]), batch["valid"]
        judges = self.judges_loss(batch)
        target = one_hot(batch["label"], logits.shape[1])
        logs: dict[str, Tensor | float] = {"judges": judges.detach()}
        if "memory" in batch and len(self.lowest):
            flagged = Limits(self.lowest, self.margin).flagged(batch["memory"], batch["label"], self.prune)
            flagged &= valid & ~batch["trusted"].view(-1, *[1] * (valid.ndim - 1))
            target = softened(target, flagged, self.smoothing)
            logs["flagged"] = flagged.sum() / valid.sum().clamp_min(1)
        return StepOutput(ce_dice(logits, target, valid) + judges, logs)

    def revise(
        self,
        index: int,
        probs: Tensor,
        label: Tensor,
        valid: Tensor,
        memory: Tensor | None,
        progress: float,
        image: Tensor,
    ) -> Tensor | None:
        """Remember the out-of-fold probabilities; keep a sample of them for the joint."""
        self.keep(index, sample_by_class(probs, label, valid).flatten())
        return probs

    @torch.no_grad()
    def after_revision(self, progress: float) -> None:
        """Fit the limits over all cases."""
        # A row holds SAMPLED voxels for each of K classes, K + 2 figures each.
        classes = round(math.sqrt(1 + self.case_state.shape[1] / SAMPLED) - 1)
        rows = self.case_state.view(-1, classes + 2)
        rows = rows[rows[:, -1] > 0]
        limits = fit_limits(rows[:, :classes], rows[:, classes].long(), rows[:, -1])
        self.lowest, self.margin = limits.lowest, limits.margin


@dataclass(frozen=True)
class Limits:
    """What a voxel must fall below or exceed to be flagged.

    Args:
        lowest: by given class, the probability of that class at or below which a label is flagged, (K,).
        margin: by given class i and other class j, the lead of j over i from which on it is, (K, K).
    """

    lowest: Tensor
    margin: Tensor

    def flagged(self, probs: Tensor, label: Tensor, prune: str) -> Tensor:
        """Which of the labels (B, *S) look wrong by probabilities (B, K, *S): (B, *S) bool."""
        given = label.clamp(0, probs.shape[1] - 1)
        own = given_class_probability(probs, label)
        by_class = own <= self.lowest.to(probs)[given]
        if prune == "class":
            return by_class
        bars = self.margin.to(probs)[given].movedim(-1, 1)
        by_rate = (probs - own.unsqueeze(1) >= bars).any(dim=1)
        return by_rate if prune == "noise_rate" else by_class & by_rate


def softened(target: Tensor, flagged: Tensor, smoothing: float) -> Tensor:
    """`(1 - smoothing) target + smoothing / K` where flagged; target (B, K, *S), flagged (B, *S)."""
    even = (1 - smoothing) * target + smoothing / target.shape[1]
    return torch.where(flagged.unsqueeze(1), even, target)


def confident_joint(probs: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """How much of each given class (row) confidently belongs to each class (column), (K, K).

    Rows are scaled to the weight of each given class. A class that nothing is labelled as has no bar to pass.

    Args:
        probs: (N, K).
        label: given classes (N,) long.
        weight: how many voxels each one stands for, (N,) > 0.
    """
    classes = probs.shape[1]
    given = nn.functional.one_hot(label, classes).to(probs) * weight[:, None]
    count = given.sum(dim=0)
    bars = torch.where(count > 0, (given * probs).sum(dim=0) / count, torch.inf)
    confident = probs >= bars - SLACK
    several = confident.sum(dim=1) > 1
    guess = torch.where(several, probs.argmax(dim=1), confident.int().argmax(dim=1))
    belongs = nn.functional.one_hot(guess, classes).to(probs) * confident.any(dim=1, keepdim=True)
    joint = given.T @ belongs
    # At least one voxel of each class is right, else its row could not be scaled.
    joint.diagonal().clamp_min_(1)
    return joint * (count / joint.sum(dim=1))[:, None]


def fit_limits(probs: Tensor, label: Tensor, weight: Tensor) -> Limits:
    """Where to cut so that as many voxels are flagged as the confident joint finds wrong; arguments as there."""
    joint, classes = confident_joint(probs, label, weight), probs.shape[1]
    lowest, margin = probs.new_full((classes,), -1.0), probs.new_full((classes, classes), NEVER)
    for i in range(classes):
        mine = label == i
        if not mine.any():
            continue
        own, w = probs[mine, i], weight[mine]
        lowest[i] = _cut(own, w, joint[i].sum() - joint[i, i], none=-1.0)
        for j in range(classes):
            if j != i:
                margin[i, j] = -_cut(own - probs[mine, j], w, joint[i, j], none=-NEVER)
    return Limits(lowest, margin)


def sample_by_class(probs: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """SAMPLED voxels of each given class, (K SAMPLED, K + 2): probabilities, class, voxels that one stands for.

    Classes are drawn apart because a small one would hardly occur otherwise. Rows of weight 0 fill up what is missing.
    """
    classes, flat, given = len(probs), probs.flatten(1), label.flatten()
    rows = torch.zeros(classes, SAMPLED, classes + 2)
    for number in range(classes):
        places = torch.nonzero(valid.flatten() & (given == number))[:, 0]
        if len(places):
            chosen = places[torch.randint(len(places), (SAMPLED,))]
            rows[number, :, :classes] = flat[:, chosen].T
            rows[number, :, classes] = number
            rows[number, :, classes + 1] = len(places) / SAMPLED
    return rows.flatten(0, 1)


def _cut(values: Tensor, weight: Tensor, amount: Tensor, none: float) -> Tensor:
    """The value up to which the lowest values weigh `amount` together; `none` when even the lowest weighs more."""
    ordered, order = values.sort()
    # Half a voxel of tolerance: amounts are sums of many small weights.
    within_amount = weight[order].cumsum(0) <= amount + 0.5 * weight.min()
    count = int(within_amount.sum())
    return ordered[count - 1] if count else values.new_tensor(none)
