"""Self-cleansing: a mixture on the losses tells clean labels from noisy ones, and the teacher relabels those."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice, one_hot
from maskmend.methods.base import Batch, EmaMethod, StepOutput, given_class_probability, one_of, ramp, within
from maskmend.methods.confident_learning import SAMPLED, sample_by_class

PSEUDO = ("soft", "hard")
ROUNDS = 100
LEAST_SD = 1e-3
LARGEST_LOSS = 8.0


class SelfCleansing(EmaMethod):
    """Keep labels whose loss falls among the small ones, learn the others from the running average.

    Right labels are learnt first, so losses part into a narrow heap near 0 and a wide one. Two Gaussians are fitted
    to the losses of each given class over the whole data set (foreground and background apart, else the few
    foreground voxels, whose losses are larger, would count as noise), and every voxel learns
    `w y + (1 - w) p`, `w` being the probability that its loss belongs to the narrow heap and `p` the teacher's
    prediction, averaged over the epochs.

    Args:
        make_network: builds one network.
        ema: decay of the teacher, in [0, 1).
        warmup: share of training on plain labels, in [0, 1).
        memory: how much of the average over the epochs is kept at each look, in [0, 1).
        pseudo: the teacher's prediction as "soft" probabilities or its "hard" decision.

    Example:
        >>> method = SelfCleansing(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.1).logs)
        []

    Source: Dong et al., 2024, arXiv 2409.05024 (a Gaussian mixture filters labels, a cleansing module relabels);
    Qian et al., 2025, arXiv 2503.12218 (a mean teacher refines labels). Written from their abstracts: the
    mixture by class over the data set, temporal averaging, the soft target and all values are ours, and the prototypes
    of the former, which need features from inside a network, are left out.
    """

    family = "label correction"
    source = "Dong et al., 2024 (after the abstract)"

    heaps: Tensor  # (K, 2, 3): weight, mean and standard deviation of the narrow and the wide heap

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        warmup: float = 0.2,
        memory: float = 0.7,
        pseudo: str = "soft",
    ) -> None:
        super().__init__(make_network, ema)
        self.warmup = within("warmup", warmup, 0, 0.99)
        self.memory = within("memory", memory, 0, 0.999)
        self.pseudo = one_of("pseudo", pseudo, PSEUDO)
        self.register_buffer("heaps", torch.zeros(0, 2, 3))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on plain labels until the first look, then on the cleansed ones."""
        logits, valid = self.student(batch["image"]), batch["valid"]
        given = one_hot(batch["label"], logits.shape[1])
        if "memory" not in batch or not len(self.heaps):
            return StepOutput(ce_dice(logits, given, valid))
        probs = batch["memory"]
        clean = clean_posterior(given_loss(probs, batch["label"]), batch["label"], self.heaps)
        clean = torch.where(batch["trusted"].view(-1, *[1] * (valid.ndim - 1)), 1.0, clean)
        keep = 1 - ramp(progress, self.warmup, self.warmup + 0.1) * (1 - clean)
        pseudo = probs if self.pseudo == "soft" else one_hot(probs.argmax(dim=1), probs.shape[1])
        target = torch.lerp(pseudo, given, keep.unsqueeze(1))
        return StepOutput(
            ce_dice(logits, target, valid), {"clean": (clean * valid).sum() / valid.sum().clamp_min(1)}
        )

    def wants_revision(self, progress: float) -> bool:
        """From half the warm-up on, so that the average is a few looks old when it is first used."""
        return progress >= self.warmup / 2

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
        """Average the looks; keep a sample of voxels for the mixture."""
        averaged = probs if memory is None else torch.lerp(probs, memory, self.memory)
        self.keep(index, sample_by_class(averaged, label, valid).flatten())
        return averaged

    @torch.no_grad()
    def after_revision(self, progress: float) -> None:
        """Fit the two heaps of each given class over all cases."""
        classes = round(math.sqrt(1 + self.case_state.shape[1] / SAMPLED) - 1)
        rows = self.case_state.view(-1, classes + 2)
        heaps = []
        for number in range(classes):
            mine = rows[(rows[:, -1] > 0) & (rows[:, classes] == number)]
            heaps.append(two_heaps(_loss(mine[:, number]), mine[:, -1]))
        self.heaps = torch.stack(heaps)

    def noise(self, probs: Tensor, label: Tensor) -> Tensor:
        """The probability that a label's loss belongs to the wide heap."""
        if not len(self.heaps):
            return 1 - given_class_probability(probs, label)
        return 1 - clean_posterior(given_loss(probs, label), label, self.heaps)


def given_loss(probs: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of the given labels (B, *S) under probabilities (B, K, *S), at most 8: (B, *S)."""
    return _loss(given_class_probability(probs, label))


def two_heaps(values: Tensor, weight: Tensor) -> Tensor:
    """Two Gaussians fitted to weighted values (N,) by expectation maximisation, (2, 3), the lower mean first.

    Each row is (weight, mean, standard deviation). With fewer than two values everything is in the first.
    """
    if len(values) < 2:
        return values.new_tensor([[1, 0, 1], [0, LARGEST_LOSS, 1]])
    x, share = values.double(), weight.double() / weight.double().sum()
    middle = (x * share).sum()
    member = (x > middle).double()
    member = torch.stack([1 - member, member], dim=1).clamp(0.01, 0.99)
    for _ in range(ROUNDS):
        heaps = _maximise(x, share, member)
        member = _members(x, heaps)
    return heaps[heaps[:, 1].argsort()].to(values.dtype)


def clean_posterior(loss: Tensor, label: Tensor, heaps: Tensor) -> Tensor:
    """The probability that each voxel's loss belongs to the first heap of its given class, as `loss` (B, *S).

    Beyond the two means it does not turn back: the wide heap reaches below the narrow one, but a label is no worse
    for fitting very well. And two Gaussians always find two heaps: where even the second one's mean loss is
    below ln 2, that is where the teacher sides with the labels, all are clean.
    """
    own = heaps.to(loss)[label.clamp(0, len(heaps) - 1)]
    low, high = own[..., 0, 1], torch.maximum(own[..., 1, 1], own[..., 0, 1])
    x = torch.minimum(torch.maximum(loss, low), high)
    return torch.where(high < math.log(2), 1.0, _members(x, own)[..., 0])


def _loss(probability: Tensor) -> Tensor:
    return -probability.clamp_min(math.exp(-LARGEST_LOSS)).log()


def _maximise(x: Tensor, share: Tensor, member: Tensor) -> Tensor:
    mass = (member * share[:, None]).clamp_min(1e-12)
    weight = mass.sum(dim=0)
    mean = (mass * x[:, None]).sum(dim=0) / weight
    variance = (mass * (x[:, None] - mean).square()).sum(dim=0) / weight
    return torch.stack([weight, mean, variance.sqrt().clamp_min(LEAST_SD)], dim=1)


def _members(x: Tensor, heaps: Tensor) -> Tensor:
    """Posterior of each heap, (..., 2); heaps (2, 3) or (..., 2, 3)."""
    weight, mean, sd = heaps.unbind(dim=-1)
    log = weight.clamp_min(1e-12).log() - sd.log() - 0.5 * ((x.unsqueeze(-1) - mean) / sd).square()
    return log.softmax(dim=-1)
