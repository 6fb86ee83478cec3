"""Tri-network: two networks agree on what the third may learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import cross_entropy
from maskmend.methods._peers import Peers, keep_easiest, kept_loss, kept_shares
from maskmend.methods.base import Batch, StepOutput, ramp, within


class TriNetwork(Peers):
    """Three networks; each learns the voxels that both others find easy.

    With two networks one mistaken judge is enough to let a wrong label pass. Here a label reaches a network only if
    neither of the two others finds it hard, and their mean predicts, so that one network that has learnt a flaw is
    outvoted.

    The price is three times the training, and more that is dropped than asked for: where the judges disagree both
    of their shares go.

    Args:
        make_network: builds one network; called three times.
        forget_foreground: share of voxels of each foreground class that each judge drops at the end of the ramp, in
            [0, 0.9]; None: estimated, as the share of them that the networks contradict in the first half of
            training. The published quantile of 0.9 is 0.1.
        forget_background: the same for voxels labelled background.
        ramp: share of training over which the dropped part grows from 0, in [0.01, 1].
        dice: add Dice over the kept voxels to cross-entropy (ours).
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights, as published.

    Example:
        >>> method = TriNetwork(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['kept_background', 'kept_foreground']

    Source: Zhang et al., "Robust medical image segmentation from non-expert annotations with Tri-network", MICCAI
    2020. Its text is not available to us; this follows the rule that both judges' losses must lie below the 0.9
    quantile. Ours: each class is ranked apart, the ramp, the estimate, Dice, and the averaged weights; trusted cases
    are kept whole.
    """

    family = "selecting voxels"
    source = "Zhang et al., MICCAI 2020"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        forget_foreground: float | None = 0.1,
        forget_background: float | None = 0.1,
        ramp: float = 0.2,
        dice: bool = True,
        ema: float = 0.99,
    ) -> None:
        super().__init__(make_network, 3, ema, voters=3)
        self.ramp = within("ramp", ramp, 0.01, 1)
        self.dice = dice
        self.expect(forget_background, forget_foreground, key="forget", look_from=self.ramp / 2)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The sum of the three losses, each over the voxels that the two other networks find easy."""
        logits = [network(batch["image"]) for network in self.networks]
        forget = self.rates(logits[0]) * ramp(progress, 0, self.ramp)
        easy = [keep_easiest(cross_entropy(x.detach(), batch["label"]), batch, forget) for x in logits]
        kept = [_or_either(easy[i - 1], easy[i - 2]) for i in range(3)]
        losses = [kept_loss(x, batch, keep, self.dice) for x, keep in zip(logits, kept, strict=True)]
        return StepOutput(torch.stack(losses).sum(), kept_shares(kept[0], batch))


def _or_either(one: Tensor, other: Tensor) -> Tensor:
    """Where both are true; where either is, should they have nothing in common."""
    both = one & other
    return torch.where(both.any(), both, one | other)
