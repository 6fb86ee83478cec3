"""MTCL: a mean teacher on trusted cases finds and softens wrong labels in the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice, one_hot
from maskmend.methods.base import Batch, EmaMethod, StepOutput, one_of, within
from maskmend.methods.confident_learning import PRUNE, fit_limits
from maskmend.methods.mean_teacher import consistency_loss, disturbed, late_ramp


class Mtcl(EmaMethod):
    """Learn trusted labels fully, the others little and only after the teacher has softened what looks wrong.

    The teacher averages a student that is led by trusted labels, so its probabilities tell wrong labels of the
    other cases. Confident learning on each batch flags them, a flagged label gives up the share `smoothing` of its
    probability, and student and teacher agree on disturbed images of all untrusted cases, whose labels may then be as
    wrong as they like.

    Args:
        make_network: builds one network.
        ema: decay of the teacher, in [0, 1).
        weight: of everything that is learnt from untrusted cases at the end of training, >= 0; it grows as
            `exp(-5 (1 - t)^2)`.
        cleaned_weight: of the loss on softened labels within that, >= 0.
        smoothing: how much of a flagged label's probability goes to the other classes, in equal parts, in [0, 1].
        prune: which labels are flagged, "class", "noise_rate" or "both"; see `confident_learning`.
        input_noise: standard deviation of the noise added to the teacher's input, clipped at twice that.

    Example:
        >>> method = Mtcl(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['cleaned', 'consistency', 'flagged', 'trusted']

    Source: Xu et al., TMI 2022, arXiv 2106.01860: `L = L_s + r (L_c + 5 L_cl)`, `r` up to 0.1, a flagged
    label y becomes 0.8 (1 - y) + 0.2 y. Ours: for K classes the 0.8 is shared by the other K - 1; the joint is
    that of `confident_learning`, over the untrusted voxels of a batch as theirs.
    """

    family = "trusted subset"
    needs = ("trusted",)
    trusted_share = 0.5
    source = "Xu et al., TMI 2022"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        weight: float = 0.1,
        cleaned_weight: float = 5.0,
        smoothing: float = 0.8,
        prune: str = "both",
        input_noise: float = 0.1,
    ) -> None:
        super().__init__(make_network, ema)
        self.weight = within("weight", weight, 0, 1000)
        self.cleaned_weight = within("cleaned_weight", cleaned_weight, 0, 1000)
        self.smoothing = within("smoothing", smoothing, 0, 1)
        self.prune = one_of("prune", prune, PRUNE)
        self.input_noise = within("input_noise", input_noise, 0, 10)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on trusted labels; consistency and CE + Dice on softened labels of the others."""
        logits, valid = self.student(batch["image"]), batch["valid"]
        trusted = batch["trusted"].view(-1, *[1] * (valid.ndim - 1)) & valid
        others = valid & ~trusted
        with torch.no_grad():
            probs = self.predict(disturbed(batch["image"], self.input_noise))
        flagged = flagged_in_batch(probs, batch["label"], others, self.prune)
        target = turned_over(one_hot(batch["label"], logits.shape[1]), flagged, self.smoothing)
        clean = ce_dice(logits, batch["label"], trusted)
        gap, cleaned = consistency_loss(logits, probs, others), ce_dice(logits, target, others)
        loss = clean + self.weight * late_ramp(progress) * (gap + self.cleaned_weight * cleaned)
        logs: dict[str, Tensor | float] = {
            "trusted": clean.detach(),
            "consistency": gap.detach(),
            "cleaned": cleaned.detach(),
            "flagged": flagged.sum() / others.sum().clamp_min(1),
        }
        return StepOutput(loss, logs)


def flagged_in_batch(probs: Tensor, label: Tensor, where: Tensor, prune: str) -> Tensor:
    """Which labels (B, *S) confident learning flags among the voxels `where`, by probabilities (B, K, *S)."""
    if not where.any():
        return torch.zeros_like(where)
    chosen, given = probs.movedim(1, -1)[where], label[where]
    return where & fit_limits(chosen, given, torch.ones_like(chosen[:, 0])).flagged(probs, label, prune)


def turned_over(target: Tensor, flagged: Tensor, smoothing: float) -> Tensor:
    """The share `smoothing` of a flagged one-hot label moved to the other classes; (B, K, *S), (B, *S)."""
    others = (1 - target) / (target.shape[1] - 1)
    moved = (1 - smoothing) * target + smoothing * others
    return torch.where(flagged.unsqueeze(1), moved, target)
