"""Stochastic co-teaching: two networks reject voxels for one another by chance, without a noise rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from maskmend.methods._peers import Peers, keep_easiest, kept_loss, kept_shares
from maskmend.methods.base import Batch, StepOutput, given_class_probability, ramp, within


class StochasticCoTeaching(Peers):
    """Two networks; each learns a voxel only if its peer believes the label more than a random threshold.

    Co-teaching must be told how much to drop. Here a voxel is rejected where the peer's probability of the given
    label is below a threshold drawn from a Beta distribution near 1, anew for each voxel and step: labels that are
    believed nearly always pass, labels that are contradicted nearly never do, and those in between are learnt now
    and then, so that none is written off for good by one early mistake. How much is rejected in the end estimates the
    noise rate (`rejected_foreground`, `rejected_background` in the logs).

    It trusts the networks' confidence: where they are unsure (a thin boundary, a rare class) it rejects much, also of
    what is right.

    Args:
        make_network: builds one network; called twice.
        alpha: first parameter of the Beta distribution, > 0; larger rejects more.
        beta: second parameter, > 0; larger rejects less.
        delay: share of training without rejection, in [0, 0.9].
        ramp: share of training over which the thresholds then grow from 0 to their full height, in [0.01, 1].
        least_kept: share of each class that is learnt however little it is believed (that with the most belief), in
            [0.01, 1]. It keeps a class that is learnt late from being rejected altogether (ours).
        dice: add Dice over the kept voxels to cross-entropy (ours).
        ensemble: predict with the mean of both networks instead of the first.
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights, as published.

    Example:
        >>> method = StochasticCoTeaching(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['rejected_background', 'rejected_foreground']

    Source: Stochastic co-teaching for training neural networks with unknown levels of label noise, Scientific Reports
    13:16875, 2023, doi 10.1038/s41598-023-43864-7. The length of delay and ramp, `least_kept`, Dice and the averaged
    weights are ours; trusted cases are kept whole.
    """

    family = "selecting voxels"
    source = "Scientific Reports 13:16875, 2023"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        alpha: float = 32.0,
        beta: float = 2.0,
        delay: float = 0.05,
        ramp: float = 0.2,
        least_kept: float = 0.2,
        dice: bool = True,
        ensemble: bool = False,
        ema: float = 0.99,
    ) -> None:
        super().__init__(make_network, 2, ema, voters=2 if ensemble else 1)
        self.alpha = within("alpha", alpha, 1e-3, 1e6)
        self.beta = within("beta", beta, 1e-3, 1e6)
        self.delay = within("delay", delay, 0, 0.9)
        self.ramp = within("ramp", ramp, 0.01, 1)
        self.least_kept = within("least_kept", least_kept, 0.01, 1)
        self.dice = dice

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The sum of both networks' losses over the voxels that their peers let pass."""
        height = ramp(progress, self.delay, self.delay + self.ramp)
        first, second = (network(batch["image"]) for network in self.networks)
        from_first, from_second = (self._passes(logits.detach(), batch, height) for logits in (first, second))
        loss = kept_loss(first, batch, from_second, self.dice)
        loss = loss + kept_loss(second, batch, from_first, self.dice)
        kept = kept_shares(from_first, batch)
        return StepOutput(loss, {name.replace("kept", "rejected"): 1 - share for name, share in kept.items()})

    def wants_revision(self, progress: float) -> bool:
        """No noise rate is needed, so no case is looked at."""
        return False

    def _passes(self, logits: Tensor, batch: Batch, height: float) -> Tensor:
        belief = given_class_probability(logits.float().softmax(dim=1), batch["label"])
        passed = belief > height * self._draw(belief) if height else torch.ones_like(batch["valid"])
        forget = torch.full((logits.shape[1],), 1 - self.least_kept)
        return (passed & batch["valid"]) | keep_easiest(-belief, batch, forget)

    def _draw(self, like: Tensor) -> Tensor:
        if (
            self.beta == 2
        ):  # the second largest of alpha + 1 uniform numbers: six times as fast as the general case
            first, second = torch.rand_like(like), torch.rand_like(like)
            return first ** (1 / (self.alpha + 1)) * second ** (1 / self.alpha)
        ones = torch.ones_like(like)
        drawn: Tensor = Beta(self.alpha * ones, self.beta * ones).sample()
        return drawn
