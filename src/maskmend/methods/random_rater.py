"""Random rater: each time a case comes by, another of its raters is believed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice
from maskmend.methods._raters import known_votes, per_case
from maskmend.methods.base import Batch, EmaMethod, StepOutput


class RandomRater(EmaMethod):
    """Learn each time from the mask of a rater drawn at random among those who drew the case.

    The network sees every opinion and cannot memorise one mask, so that in the long run it predicts how often raters
    choose a class; where they disagree it stays unsure instead of taking a side. A rater who errs as the others do
    is not noticed.

    Args:
        make_network: builds the network.
        ema: decay of the averaged weights that predict, in [0, 1).

    Example:
        >>> method = RandomRater(toy_network)
        >>> method.training_step(toy_batch(ndim=2, raters=True), progress=0.5).loss.item() > 0
        True

    Source: Jensen et al., MICCAI 2019 (label sampling). A trusted case is learnt from its own label
    (ours), and the Dice term is this package's usual loss.
    """

    family = "several raters"
    needs = ("raters",)
    source = "Jensen et al., MICCAI 2019"

    def __init__(self, make_network: Callable[[], nn.Module], *, ema: float = 0.99) -> None:
        super().__init__(make_network, ema)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on the drawn masks."""
        label, valid = self._drawn(batch)
        return StepOutput(ce_dice(self.student(batch["image"]), label, valid))

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        votes, known = known_votes(batch)
        # The largest of R random numbers is a fair draw, and defined for a case without any rater as well.
        lots = torch.rand(batch["rated"].shape, device=votes.device).masked_fill(~batch["rated"], -1)
        cases, rater = torch.arange(len(lots), device=votes.device), lots.argmax(dim=1)
        trusted = per_case(batch["trusted"], batch["label"])
        label = torch.where(trusted, batch["label"], votes[cases, rater])
        return label, torch.where(trusted, batch["valid"], known[cases, rater])
