"""Plain supervised learning: every label is believed."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from maskmend.losses import ce_dice
from maskmend.methods.base import Batch, EmaMethod, StepOutput


class Supervised(EmaMethod):
    """Cross-entropy plus Dice on the given labels: the baseline that every other method must beat.

    It resists noise only as far as averaging does: labels that are wrong in different ways cancel, labels
    that are all wrong in the same way do not, and late in training single wrong labels are memorised.

    Args:
        make_network: builds the network.
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights.

    Example:
        >>> method = Supervised(toy_network)
        >>> method.training_step(toy_batch(ndim=2), progress=0.5).loss.item() > 0
        True

    Source: Milletari et al., 3DV 2016 (Dice); Isensee et al., Nature Methods 2021 (the 1:1 sum).
    """

    family = "baseline"
    source = "Isensee et al., Nature Methods 2021"

    def __init__(self, make_network: Callable[[], nn.Module], *, ema: float = 0.99) -> None:
        super().__init__(make_network, ema)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice over the valid voxels."""
        return StepOutput(ce_dice(self.student(batch["image"]), batch["label"], batch["valid"]))
