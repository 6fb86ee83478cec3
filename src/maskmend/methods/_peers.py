"""What methods with several networks share: their running averages, and the choice of the easiest voxels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskmend.errors import UsageError
from maskmend.losses import ce_dice, cross_entropy, masked_mean
from maskmend.methods._noise_rates import NoiseRates
from maskmend.methods.base import Batch, decay_at, follow


class Peers(NoiseRates):
    """Several networks of one shape and different initial weights, each with its running average.

    Args:
        make_network: builds one network; called `count` times.
        count: networks, >= 2.
        ema: decay of the averages, in [0, 1); 0 makes them the networks themselves.
        voters: how many of the averages predict, in [1, count].
    """

    steps_seen: Tensor

    def __init__(self, make_network: Callable[[], nn.Module], count: int, ema: float, voters: int) -> None:
        if not 0 <= ema < 1:
            raise UsageError(f"is {ema}, must lie in [0, 1)", "method.ema")
        super().__init__()
        self.ema, self.voters = ema, voters
        self.networks = nn.ModuleList(make_network() for _ in range(count))
        self.averages = nn.ModuleList(copy.deepcopy(n).requires_grad_(False).eval() for n in self.networks)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> Peers:
        """The averages stay in evaluation mode."""
        super().train(mode)
        self.averages.eval()
        return self

    def after_step(self, progress: float) -> None:
        """Move every average towards its network."""
        self.steps_seen += 1
        decay = decay_at(int(self.steps_seen), self.ema)
        for average, network in zip(self.averages, self.networks, strict=True):
            follow(average, network, decay)

    def predict(self, image: Tensor) -> Tensor:
        """Mean probabilities of the averages that vote."""
        return self._mean_prediction(image, self.voters)

    @torch.no_grad()
    def observe(self, image: Tensor) -> Tensor:
        """Mean probabilities of all averages."""
        return self._mean_prediction(image, len(self.averages))

    def _mean_prediction(self, image: Tensor, count: int) -> Tensor:
        votes = [average(image).float().softmax(dim=1) for average in list(self.averages)[:count]]
        return torch.stack(votes).mean(dim=0)


def kept_loss(logits: Tensor, batch: Batch, keep: Tensor, dice: bool) -> Tensor:
    """Cross-entropy, with Dice or without, over the kept voxels (B, *S)."""
    if dice:
        return ce_dice(logits, batch["label"], keep)
    return masked_mean(cross_entropy(logits, batch["label"]), keep)


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """`KL(p|q) + KL(q|p)` at each voxel for two maps of logits (B, K, *S), as (B, *S)."""
    log_p, log_q = functional.log_softmax(first, dim=1), functional.log_softmax(second, dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1)


def joint_loss_map(first: Tensor, second: Tensor, batch: Batch, agreement: float) -> Tensor:
    """JoCoR's loss of two networks at each voxel, (B, *S): `(1 - w)` cross-entropies plus `w` divergence."""
    both = cross_entropy(first, batch["label"]) + cross_entropy(second, batch["label"])
    return (1 - agreement) * both + agreement * symmetric_divergence(first, second)


def joint_loss(
    first: Tensor, second: Tensor, batch: Batch, keep: Tensor, agreement: float, dice: bool
) -> Tensor:
    """JoCoR's loss over the kept voxels (B, *S), each network's part with Dice or without."""
    both = kept_loss(first, batch, keep, dice) + kept_loss(second, batch, keep, dice)
    apart = masked_mean(symmetric_divergence(first, second), keep)
    return (1 - agreement) * both + agreement * apart


def keep_easiest(loss: Tensor, batch: Batch, forget: Tensor, groups: Tensor | None = None) -> Tensor:
    """The valid voxels but for the share with the largest loss, ranked within each group; (B, *S) bool.

    Ranked together, the voxels that go are nearly all foreground: it is rarer and harder. Ties stay, and so do
    trusted cases. A group keeps at least one voxel.

    Args:
        loss: (B, *S), lower is easier.
        batch: its valid and trusted voxels; the groups are the given classes unless `groups` says otherwise.
        forget: (G,), the share that goes in each group, in [0, 1].
        groups: (B, *S) long, group of each voxel.
    """
    valid, groups = batch["valid"], batch["label"] if groups is None else groups
    keep = torch.zeros_like(valid)
    for number, share in enumerate(forget.tolist()):
        mine = valid & (groups == number)
        losses = loss[mine]
        if len(losses):
            count = max(1, math.ceil((1 - share) * len(losses) - 1e-6))
            keep |= mine & (loss <= losses.kthvalue(count).values)
    trusted = batch["trusted"].view(-1, *[1] * (valid.ndim - 1))
    return keep | (valid & trusted)


def kept_shares(keep: Tensor, batch: Batch) -> dict[str, Tensor | float]:
    """The share of voxels kept among those given to the background and to any foreground class, to be logged."""
    valid, foreground = batch["valid"], batch["label"] > 0
    return {
        f"kept_{name}": (keep & of).sum() / (valid & of).sum().clamp_min(1)
        for name, of in (("foreground", foreground), ("background", ~foreground))
    }
