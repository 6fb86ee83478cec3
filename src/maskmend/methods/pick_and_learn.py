"""Pick-and-Learn: a second network scores how well masks fit their images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice
from maskmend.methods.base import (
    Batch,
    EmaMethod,
    StepOutput,
    given_class_probability,
    within,
)


class PickAndLearn(EmaMethod):
    """A quality network weighs the masks of a batch against one another.

    It gives each (image, mask) pair a score; the softmax of the scores over the batch weighs the losses of the
    samples. Both networks learn from the weighted loss, so weight moves to masks that the segmentation network can
    fit, which are first the sound ones: they follow a rule, flaws do not. Scores pass through `control * tanh`, so that
    no sample weighs more than `exp(2 control)` times another: without it one easy sample would take all the weight.

    Weights are relative within the batch on one process: with one sample per batch (large 3-D patches, or a small
    share per process) it does nothing at all, and with two little. Weights are per mask; a flaw in one place of an
    otherwise sound mask is neither found nor spared.

    Args:
        make_network: builds one network; called twice, for segmentation and for quality.
        control: bound of the scores, > 0; 0.5 lets weights differ by a factor of 2.7, 2 by 55.
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights, as published.

    Example:
        >>> method = PickAndLearn(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['heaviest', 'lightest']

    Source: Zhu, Shi and Wu, MICCAI 2019, arXiv 1907.11835. There the quality network is a VGG on image and mask
    stacked as channels, and the loss is Dice. Ours: the quality network sees the image, and the score of a
    mask is the mean over its voxels of how far the output for the given class lies above the mean output, so that any
    network serves, in 2-D and 3-D and with any number of channels and classes; CE + Dice; the value of `control`; the
    averaged weights.
    """

    family = "weighting images"
    source = "Zhu, Shi and Wu, MICCAI 2019"

    def __init__(
        self, make_network: Callable[[], nn.Module], *, control: float = 2.0, ema: float = 0.99
    ) -> None:
        super().__init__(make_network, ema)
        self.quality = make_network()
        self.control = within("control", control, 1e-3, 20)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The losses of the samples, weighed by the quality of their masks."""
        logits, label, valid = self.student(batch["image"]), batch["label"], batch["valid"]
        weights = self.weights(batch)
        losses = torch.stack(
            [ce_dice(logits[i][None], label[i][None], valid[i][None]) for i in range(len(label))]
        )
        relative = weights.detach() * valid.flatten(1).any(dim=1).sum()
        logs: dict[str, Tensor | float] = {"heaviest": relative.max(), "lightest": relative.min()}
        return StepOutput((weights * losses).sum(), logs)

    def weights(self, batch: Batch) -> Tensor:
        """The weight of each sample, (B,); they sum to 1 over those with any valid voxel, others weigh 0."""
        valid = batch["valid"].flatten(1)
        output = self.quality(batch["image"]).float()
        voxels = (given_class_probability(output, batch["label"]) - output.mean(dim=1)).flatten(1)
        fit = (voxels * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)
        share = (self.control * torch.tanh(fit)).exp() * valid.any(dim=1)
        return share / share.sum().clamp_min(1e-12)
