"""PINT: pixel-wise and image-level noise tolerance, reconstructed from what its abstract states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice, one_hot
from maskmend.methods.base import (
    Batch,
    EmaMethod,
    StepOutput,
    dropout_on,
    entropy,
    one_of,
    ramp,
    within,
)

ESTIMATORS = ("temporal", "exact")
WEIGHTS = ("linear", "exp", "threshold")
PSEUDO = ("soft", "hard", "none")
UNITS = ("slice", "volume")


class Pint(EmaMethod):
    """Trust each voxel's label as far as the teacher is sure there, and each image as far as it is sure overall.

    The teacher's uncertainty `u` is the noise estimate of every voxel. The pixel part learns from
    `w y + (1 - w) y_hat` with `w` falling in `u`: the given label `y` where the teacher is sure, its pseudo label
    `y_hat` where it is not. The image part is the complement: one weight per image (a slice of a volume), so
    that a whole mask that looks unreliable is learnt from the pseudo label.

    This is a reconstruction. The published abstract fixes the parts (noise estimated for every pixel, pixel-wise
    learning from original and pseudo labels, image-level learning as a complement), not their weights and
    schedules, which are ours and are settings. A known weakness: a clean boundary is unsure too, and a
    confidently wrong label is not (see `pint_posterior`).

    Args:
        make_network: builds one network, preferably with dropout.
        ema: decay of the teacher, in [0, 1).
        estimator: "temporal" averages one stochastic teacher pass per case and epoch over the last `passes`
            epochs, about a third of a plain step in cost; "exact" makes `passes` passes in every step.
        passes: K, stochastic passes that are averaged, >= 1.
        input_noise: standard deviation of the noise added to the teacher's input, clipped at twice that.
        warmup: share of training on plain labels, in [0, 1).
        pixel_noise: estimate `u` per voxel; off, every voxel has weight 1/2.
        original: use the given labels in the pixel part.
        pseudo: "soft" (the mean prediction), "hard" (its argmax) or "none" (given labels weighted by `w`).
        weight: `w` as "linear" (1 - u), "exp" (exp(-u)) or "threshold" (u < `threshold`).
        threshold: of u, for `weight="threshold"`, in [0, 1].
        image_level: add the image part.
        image_weight: its weight at the end of the ramp, >= 0.
        image_unit: "slice" of a volume or the whole "volume"; a 2-D image is one unit either way.

    Example:
        >>> method = Pint(toy_network, passes=2)
        >>> sorted(method.training_step(toy_batch(ndim=2, memory=True), progress=0.9).logs)
        ['image', 'trust', 'uncertainty']

    Source: Shi and Wu, MICCAI 2021, arXiv 2106.11099 (parts); the weights, the schedule and the temporal
    estimator are ours. The noise on the teacher's input follows Yu et al., MICCAI 2019, arXiv 1907.07034.
    """

    family = "pixel and image weighting"
    source = "Shi and Wu, MICCAI 2021 (reconstruction)"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        estimator: str = "temporal",
        passes: int = 8,
        input_noise: float = 0.1,
        warmup: float = 0.2,
        pixel_noise: bool = True,
        original: bool = True,
        pseudo: str = "soft",
        weight: str = "linear",
        threshold: float = 0.5,
        image_level: bool = True,
        image_weight: float = 1.0,
        image_unit: str = "slice",
    ) -> None:
        super().__init__(make_network, ema)
        self.estimator = one_of("estimator", estimator, ESTIMATORS)
        self.passes = int(within("passes", passes, 1, 1000))
        self.input_noise = within("input_noise", input_noise, 0, 10)
        self.warmup = within("warmup", warmup, 0, 0.99)
        self.pixel_noise, self.original, self.image_level = pixel_noise, original, image_level
        self.pseudo = one_of("pseudo", pseudo, PSEUDO)
        self.weight = one_of("weight", weight, WEIGHTS)
        self.threshold = within("threshold", threshold, 0, 1)
        self.image_weight = within("image_weight", image_weight, 0, 1000)
        self.image_unit = one_of("image_unit", image_unit, UNITS)
        self.looks: Tensor
        self.register_buffer("looks", torch.zeros((), dtype=torch.long))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on plain labels during the warm-up, then on the pixel target plus the image target."""
        logits = self.student(batch["image"])
        given, valid = one_hot(batch["label"], logits.shape[1]), batch["valid"]
        probs = self._mean_prediction(batch, progress)
        if probs is None:
            return StepOutput(ce_dice(logits, given, valid))
        unsure = entropy(probs)
        pseudo = probs if self.pseudo == "soft" else one_hot(probs.argmax(dim=1), probs.shape[1])
        loss = self._pixel_loss(logits, given, pseudo, self._trust(unsure), valid)
        logs: dict[str, Tensor | float] = {"uncertainty": _valid_mean(unsure, valid)}
        if self.image_level:
            trust = 1 - _unit_mean(unsure, valid, self.image_unit)
            image_loss = ce_dice(logits, _mix(given, pseudo, trust), valid)
            loss = loss + self.image_weight * ramp(progress, self.warmup, 0.5 + self.warmup / 2) * image_loss
            logs |= {"image": image_loss.detach(), "trust": trust.mean()}
        return StepOutput(loss, logs)

    def wants_revision(self, progress: float) -> bool:
        """The temporal estimator looks at every case between epochs once the warm-up is over."""
        return self.estimator == "temporal" and progress >= self.warmup

    @torch.no_grad()
    def observe(self, image: Tensor) -> Tensor:
        """One stochastic teacher pass: dropout on, noise on the input."""
        noise = (self.input_noise * torch.randn_like(image)).clamp(
            -2 * self.input_noise, 2 * self.input_noise
        )
        with dropout_on(self.teacher):
            return self.predict(image + noise)

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
        """The mean of the last `passes` looks (exact for the first `passes`, exponential after)."""
        if memory is None:
            return probs
        return torch.lerp(memory, probs, 1 / min(self.looks.item() + 1, self.passes))

    def after_revision(self, progress: float) -> None:
        """Count the look."""
        self.looks += 1

    def noise(self, probs: Tensor, label: Tensor) -> Tensor:
        """The uncertainty: PINT's own noise estimate does not look at the label."""
        return entropy(probs)

    def _mean_prediction(self, batch: Batch, progress: float) -> Tensor | None:
        if progress < self.warmup:
            return None
        if self.estimator == "temporal":
            return batch.get("memory")
        passes = [self.observe(batch["image"]) for _ in range(self.passes)]
        return torch.stack(passes).mean(dim=0)

    def _trust(self, unsure: Tensor) -> Tensor:
        if not self.pixel_noise:
            return torch.full_like(unsure, 0.5)
        if self.weight == "linear":
            return 1 - unsure
        return torch.exp(-unsure) if self.weight == "exp" else (unsure < self.threshold).float()

    def _pixel_loss(
        self, logits: Tensor, given: Tensor, pseudo: Tensor, trust: Tensor, valid: Tensor
    ) -> Tensor:
        if self.pseudo == "none":
            return ce_dice(logits, given, trust * valid)
        target = _mix(given, pseudo, trust) if self.original else pseudo
        return ce_dice(logits, target, valid)


def _mix(given: Tensor, pseudo: Tensor, trust: Tensor) -> Tensor:
    """`trust` of the given label and the rest of the pseudo label; `trust` (B, *S) or broadcastable to it."""
    return torch.lerp(pseudo, given, trust.unsqueeze(1))


def _valid_mean(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).sum() / valid.sum().clamp_min(1)


def _unit_mean(values: Tensor, valid: Tensor, unit: str) -> Tensor:
    """The mean over each image unit's valid voxels, kept broadcastable to (B, *S)."""
    first = 2 if unit == "slice" and values.ndim == 4 else 1
    axes = tuple(range(first, values.ndim))
    return (values * valid).sum(axes, keepdim=True) / valid.sum(axes, keepdim=True).clamp_min(1)
