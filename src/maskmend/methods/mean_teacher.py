"""Mean teacher, with the uncertainty gate of UA-MT as an option."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice, masked_mean
from maskmend.methods.base import Batch, EmaMethod, StepOutput, dropout_on, entropy, within


class MeanTeacher(EmaMethod):
    """Learn the given labels, but stay consistent with a slow average of yourself on a disturbed input.

    The teacher averages the student over many steps, so that single wrong labels leave little trace in it;
    agreeing with it holds the student back from memorising them. With `gate` the student follows the teacher only
    where that is sure: repeated passes with dropout and input noise give the entropy `u` of their mean, and voxels
    above `(0.75 + 0.25 r) ln K` are left out.

    Args:
        make_network: builds one network; with `gate` preferably one with dropout.
        ema: decay of the teacher, in [0, 1).
        consistency: weight of the consistency term at the end of training, >= 0; it grows as
            `r(t) = exp(-5 (1 - t)^2)`.
        input_noise: standard deviation of the noise added to the teacher's input, clipped at twice that.
        gate: only where the teacher is sure (UA-MT).
        passes: stochastic passes of the teacher, for `gate`, >= 2.

    Example:
        >>> method = MeanTeacher(toy_network, gate=True, passes=2)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['consistency', 'sure']

    Source: Tarvainen and Valpola, NeurIPS 2017, arXiv 1703.01780; the gate: Yu et al., MICCAI 2019, arXiv
    1907.07034. Both leave the supervised loss to cases with labels; here every case has one (ours). Ours, too: the
    target under `gate` is the mean of the passes rather than one more pass, and the largest entropy is `ln K` for
    K classes (public code keeps `ln 2` whatever K is).
    """

    family = "label correction"
    source = "Tarvainen and Valpola, NeurIPS 2017; Yu et al., MICCAI 2019"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        consistency: float = 0.1,
        input_noise: float = 0.1,
        gate: bool = False,
        passes: int = 8,
    ) -> None:
        super().__init__(make_network, ema)
        self.consistency = within("consistency", consistency, 0, 1000)
        self.input_noise = within("input_noise", input_noise, 0, 10)
        self.gate = gate
        self.passes = int(within("passes", passes, 2, 1000))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on the given labels, and the squared distance to the teacher's probabilities."""
        logits = self.student(batch["image"])
        target, sure = self._teach(batch["image"], progress)
        gap = consistency_loss(logits, target, batch["valid"] & sure)
        loss = ce_dice(logits, batch["label"], batch["valid"]) + self.consistency * late_ramp(progress) * gap
        return StepOutput(loss, {"consistency": gap.detach(), "sure": sure.float().mean()})

    @torch.no_grad()
    def _teach(self, image: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities on a disturbed image, and where they count."""
        if not self.gate:
            probs = self.predict(disturbed(image, self.input_noise))
            return probs, torch.ones_like(probs[:, 0], dtype=torch.bool)
        with dropout_on(self.teacher):
            looks = [self.predict(disturbed(image, self.input_noise)) for _ in range(self.passes)]
        probs = torch.stack(looks).mean(dim=0)
        return probs, entropy(probs) < 0.75 + 0.25 * late_ramp(progress)


def consistency_loss(logits: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Mean squared difference between softmax(logits) and probabilities, over classes and chosen voxels.

    Args:
        logits: (B, K, *S).
        target: probabilities (B, K, *S).
        where: (B, *S) bool.
    """
    return masked_mean((logits.softmax(dim=1) - target).square().mean(dim=1), where)


def disturbed(image: Tensor, sd: float) -> Tensor:
    """The image plus Gaussian noise that is clipped at two standard deviations."""
    return image + (sd * torch.randn_like(image)).clamp(-2 * sd, 2 * sd)


def late_ramp(progress: float) -> float:
    """exp(-5 (1 - t)^2): 0.007 at the start, 1 at the end, most of the rise late."""
    return math.exp(-5 * (1 - progress) ** 2)
