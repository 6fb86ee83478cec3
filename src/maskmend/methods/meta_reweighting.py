"""Meta-reweighting: a voxel's label counts as far as learning it would help on trusted cases."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from maskmend.losses import ce_dice, cross_entropy, masked_mean
from maskmend.methods.base import Batch, EmaMethod, StepOutput, one_of

LEVELS = ("voxel", "image")


class MetaReweighting(EmaMethod):
    """Weigh every untrusted label by whether a step on it would lower the loss on the trusted cases.

    With weights `w` (0 at first) on the losses of the untrusted voxels, a virtual step
    `theta' = theta - grad_theta sum w L` is taken, and `-d L_trusted(theta') / d w` tells for each voxel whether its
    label pulls the network where trusted labels do. Negative values become 0; wrong labels pull elsewhere and
    are left out.

    Args:
        make_network: builds one network; its layers must be twice differentiable.
        ema: decay of the running average that predicts, in [0, 1).
        level: one weight per "voxel" or per "image".

    Example:
        >>> method = MetaReweighting(toy_network)
        >>> batch = toy_batch(ndim=2)
        >>> batch["trusted"][:2] = True
        >>> sorted(method.training_step(batch, progress=0.5).logs)
        ['helpful', 'trusted']

    Source: Ren et al., ICML 2018, arXiv 1803.09050; for the voxels of a segmentation Mirikharaji et al., MICCAI
    2019, arXiv 1906.03815. The size of the virtual step cancels in the normalised weights, so it is no
    setting. Ours: the trusted cases are also learnt themselves, weights are normalised to a mean of 1 over
    the valid untrusted voxels of a batch, and the weighted loss is cross-entropy (Dice has no loss per voxel).
    A step costs about four plain ones.
    """

    family = "trusted subset"
    needs = ("trusted",)
    trusted_share = 0.5
    source = "Ren et al., ICML 2018; Mirikharaji et al., MICCAI 2019"

    def __init__(
        self, make_network: Callable[[], nn.Module], *, ema: float = 0.99, level: str = "voxel"
    ) -> None:
        super().__init__(make_network, ema)
        self.level = one_of("level", level, LEVELS)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on trusted cases, and weighted cross-entropy on the others."""
        valid, image, label = batch["valid"], batch["image"], batch["label"]
        trusted = batch["trusted"].view(-1, *[1] * (valid.ndim - 1)) & valid
        others = valid & ~trusted
        weight = self._weights(batch, others)
        logits = self.student(image)
        clean = ce_dice(logits, label, trusted)
        # Divided by the number of voxels, not by the sum of weights: a batch in which little helps teaches little.
        loss = masked_mean(cross_entropy(logits, label) * weight, others)
        helpful = (weight > 0).sum() / others.sum().clamp_min(1)
        return StepOutput(clean + loss, {"trusted": clean.detach(), "helpful": helpful})

    def _weights(self, batch: Batch, others: Tensor) -> Tensor:
        """Weight of every voxel (B, *S), mean 1 over the untrusted ones unless none helps."""
        rows = batch["trusted"]
        if rows.all() or not rows.any() or not batch["valid"][rows].any():
            return others.float()  # nothing to weigh, or nothing to weigh it by
        # In half precision the small second derivatives would vanish.
        with torch.enable_grad(), torch.autocast(others.device.type, enabled=False):
            gain = -self._virtual_gradient(batch, others)
        helps = gain.clamp_min(0) * others[~rows]
        weight = torch.zeros_like(others, dtype=helps.dtype)
        weight[~rows] = helps * others.sum() / helps.sum().clamp_min(torch.finfo(helps.dtype).tiny)
        return weight

    def _virtual_gradient(self, batch: Batch, others: Tensor) -> Tensor:
        """d L_trusted(theta - grad sum w L) / d w at w = 0, for (B', *S) voxels or (B', 1, ...) images."""
        rows = batch["trusted"]
        # Copies: the virtual step must leave gradients, and hooks of data-parallel training, alone.
        theta = {name: p.detach().requires_grad_() for name, p in self.student.named_parameters()}
        logits = functional_call(self.student, theta, (batch["image"][~rows],))
        losses = cross_entropy(logits, batch["label"][~rows]) * others[~rows]
        shape = losses.shape if self.level == "voxel" else (len(losses), *[1] * (losses.ndim - 1))
        weight = losses.new_zeros(shape, requires_grad=True)
        step = torch.autograd.grad((weight * losses).sum(), list(theta.values()), create_graph=True)
        moved = {name: p - g for (name, p), g in zip(theta.items(), step, strict=True)}
        seen = functional_call(self.student, moved, (batch["image"][rows],))
        outcome = ce_dice(seen, batch["label"][rows], batch["valid"][rows])
        return torch.autograd.grad(outcome, weight)[0]
