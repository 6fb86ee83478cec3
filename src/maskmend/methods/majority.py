"""Majority vote of the raters, or their shares of the votes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice, one_hot
from maskmend.methods._raters import known_votes, per_case
from maskmend.methods.base import Batch, EmaMethod, StepOutput


class Majority(EmaMethod):
    """Learn at each voxel what most raters say.

    Errors that raters make independently are outvoted. A voxel with as many votes for two classes goes to the one of
    the lower index, so between two raters to background; with `soft` it is learnt as undecided instead.

    Args:
        make_network: builds the network.
        ema: decay of the averaged weights that predict, in [0, 1).
        soft: learn the shares of the votes instead of the winner.

    Example:
        >>> method = Majority(toy_network, soft=True)
        >>> method.training_step(toy_batch(ndim=2, raters=True), progress=0.5).loss.item() > 0
        True

    Source: majority voting, e.g. Aljabar et al., NeuroImage 46 (2009); the tie rule is ours. The vote is taken once per
    case; `soft` follows every patch and needs no fused label.
    """

    family = "several raters"
    needs = ("raters",)
    source = "Aljabar et al., NeuroImage 2009 (voting)"

    def __init__(
        self, make_network: Callable[[], nn.Module], *, ema: float = 0.99, soft: bool = False
    ) -> None:
        super().__init__(make_network, ema)
        self.soft = soft

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on the vote."""
        logits = self.student(batch["image"])
        target = vote_map(batch, logits.shape[1]) if self.soft else batch["label"]
        return StepOutput(ce_dice(logits, target, batch["valid"]))


def vote_map(batch: Batch, classes: int) -> Tensor:
    """Shares of the raters' votes (B, K, *S); a trusted case's own label, and where nobody votes, one-hot."""
    votes, known = known_votes(batch)
    counts = torch.stack([((votes == k) & known).sum(dim=1) for k in range(classes)], dim=1).float()
    total = counts.sum(dim=1, keepdim=True)
    own = per_case(batch["trusted"], counts) | (total == 0)
    return torch.where(own, one_hot(batch["label"], classes), counts / total.clamp_min(1))
