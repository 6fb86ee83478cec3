"""DAST: a branch for trusted labels and one for the others; where the two part, the label is doubted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from maskmend.errors import UsageError
from maskmend.losses import ce_dice, masked_mean, one_hot
from maskmend.methods.adele import jensen_shannon
from maskmend.methods.base import Batch, EmaMethod, StepOutput, ramp, within

EMPTY = -1.0  # a place of the queue that is still free; divergences are >= 0


class Dast(EmaMethod):
    """Two decoders on one encoder: one learns trusted labels, the other the rest, and their gap grades each image.

    The encoder profits from all images, while flawed labels spoil only the decoder that is not used in the end. Where
    the two decoders part on an untrusted image, it resembles those whose labels disagree with the trusted ones. By
    that divergence, compared with the last `queue` images, the worst `ratio` lose their labels and only have to look
    alike to both decoders; the best `ratio` are refined and also teach the trusted decoder, which else would
    over-fit the few trusted cases.

    Args:
        make_network: builds one network; called twice. What is registered after its last convolution of most channels
            counts as decoder.
        ema: decay of the running average of encoder and trusted decoder that predicts, in [0, 1).
        queue: images with whose divergence a new one is compared, >= 2; nothing is selected until it is full.
        ratio: share of images that count as worst, and as best, in [0, 0.5].
        start: share of training before selection begins, in [0, 1); it is phased in over another fifth.
        consistency: weight of the agreement of both decoders on the worst images, >= 0.
        refined_weight: weight of the loss on the refined best images, >= 0.

    Example:
        >>> method = Dast(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['best', 'divergence', 'worst']

    Source: Yang et al., JBHI 2022, doi 10.1109/JBHI.2022.3172978 (two branches, the score, what happens to worst
    and best images; queue 20, ratio 0.2), after the abstract. Ours: the divergence is Jensen-Shannon's, mean over the
    valid voxels; a refined label is the mean of the given one and both decoders' probabilities; the schedule. With
    several processes the first one's queue serves all.
    """

    family = "trusted subset"
    needs = ("trusted",)
    trusted_share = 0.5
    source = "Yang et al., JBHI 2022 (after the abstract)"

    recent: Tensor

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        queue: int = 20,
        ratio: float = 0.2,
        start: float = 0.2,
        consistency: float = 1.0,
        refined_weight: float = 1.0,
    ) -> None:
        super().__init__(make_network, ema)
        self.ratio = within("ratio", ratio, 0, 0.5)
        self.start = within("start", start, 0, 0.99)
        self.consistency = within("consistency", consistency, 0, 1000)
        self.refined_weight = within("refined_weight", refined_weight, 0, 1000)
        self.decoder = decoder_names(self.student)
        other = dict(make_network().named_parameters())
        self.noisy_decoder = nn.ParameterList(other[name] for name in self.decoder)
        # Of one size from the start, so that data-parallel training can keep the processes' queues equal.
        self.register_buffer("recent", torch.full((int(within("queue", queue, 2, 10_000)),), EMPTY))
        self.fresh: Tensor | None = None

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice of each branch on its own cases, agreement on the worst, refined labels on the best."""
        image, label, valid = batch["image"], batch["label"], batch["valid"]
        trusted = _as_map(batch["trusted"], valid) & valid
        logits, noisy = self.student(image), self.noisy_branch(image)
        scores = divergence(logits.detach(), noisy.detach(), valid)
        self.fresh = scores[~batch["trusted"] & valid.flatten(1).any(dim=1)]
        worst, best = self._select(scores, batch["trusted"], progress)
        worst_map, best_map = _as_map(worst, valid) & valid, _as_map(best, valid) & valid
        phase = ramp(progress, self.start, self.start + 0.2)
        loss = ce_dice(logits, label, trusted) + ce_dice(noisy, label, (valid & ~trusted) * ~worst_map)
        gap = (logits.softmax(dim=1) - noisy.softmax(dim=1)).square().mean(dim=1)
        loss = loss + phase * self.consistency * masked_mean(gap, worst_map)
        loss = loss + phase * self.refined_weight * ce_dice(logits, refined(label, logits, noisy), best_map)
        logs = {"divergence": scores.mean(), "worst": worst.float().mean(), "best": best.float().mean()}
        return StepOutput(loss, logs)  # type: ignore[arg-type]

    def after_step(self, progress: float) -> None:
        """Let the average follow, and queue the divergences of this step's images."""
        super().after_step(progress)
        if self.fresh is not None:
            self.recent.copy_(torch.cat([self.recent, self.fresh.to(self.recent)])[-len(self.recent) :])
            self.fresh = None

    def noisy_branch(self, image: Tensor) -> Tensor:
        """Logits of the shared encoder and the decoder of the untrusted cases."""
        replaced = dict(zip(self.decoder, self.noisy_decoder, strict=True))
        logits: Tensor = functional_call(self.student, replaced, (image,))
        return logits

    def _select(self, scores: Tensor, trusted: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The worst and the best untrusted images of a batch, (B,) bool each; none while the queue fills."""
        if progress < self.start or (self.recent == EMPTY).any():
            return torch.zeros_like(trusted), torch.zeros_like(trusted)
        low, high = self.recent.quantile(self.ratio), self.recent.quantile(1 - self.ratio)
        return (scores > high) & ~trusted, (scores < low) & ~trusted


def divergence(one: Tensor, two: Tensor, valid: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence in nats between two sets of logits (B, K, *S) by image, (B,)."""
    apart = jensen_shannon([one.float().softmax(dim=1), two.float().softmax(dim=1)]) * valid
    return apart.flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp_min(1)


def refined(label: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """The mean of the given label and the mean probability of both branches, (B, K, *S)."""
    probs = (one.detach().softmax(dim=1) + two.detach().softmax(dim=1)) / 2
    return (one_hot(label, one.shape[1]) + probs) / 2


def decoder_names(network: nn.Module) -> list[str]:
    """The parameters registered after the last convolution of most output channels: encoders come first.

    Raises:
        UsageError: nothing comes after it.
    """
    names: list[str] = []
    most = cut = 0
    for prefix, module in network.named_modules():
        names += [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
        if isinstance(module, _ConvNd) and not module.transposed and module.out_channels >= most:
            most, cut = module.out_channels, len(names)
    if cut == len(names):
        fact = "its last convolution is the widest one, so there is no decoder to give to the untrusted cases"
        raise UsageError(fact, "network.name", "use unet, or another method")
    return names[cut:]


def _as_map(chosen: Tensor, valid: Tensor) -> Tensor:
    return chosen.view(-1, *[1] * (valid.ndim - 1)).expand_as(valid)
