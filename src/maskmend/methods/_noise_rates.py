"""How much of each class is labelled wrong: given as a prior, or estimated from looks at whole cases."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmend.methods.base import Method, within

MOST = 0.5  # beyond half, right and wrong cannot be told apart
EVERY = 0.05  # of training lies between two looks
UNTIL = 0.5  # of training: networks have learnt what labels share, and not yet many of their single flaws


class NoiseRates(Method):
    """A method that needs to know the share of wrong voxels among those given to each class.

    Where the user gives none, the running averages look at whole cases in the first half of training, when a network
    learns what labels share and has not yet learnt many of their single flaws; the share of voxels of a class that
    they give to another class is the estimate. It counts the network's own mistakes, too, and misses flaws it has
    already learnt: a starting point, not a measurement.
    """

    noise_rates: Tensor  # (K,), empty before the first look

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise_rates", torch.zeros(0))
        self.looked_at: Tensor
        self.register_buffer("looked_at", torch.tensor(-1.0))
        self.prior: tuple[float | None, float | None] = (None, None)
        self.look_from = 0.0

    def expect(
        self, background: float | None, foreground: float | None, *, key: str, look_from: float
    ) -> None:
        """Set the priors, each in [0, 0.9] or None for "estimate", and when to look for the first time.

        Args:
            background: share of wrong voxels among those labelled background.
            foreground: the same for every other class.
            key: prefix of the two settings' names, for the error message.
            look_from: progress of the first look.
        """
        for name, rate in (("background", background), ("foreground", foreground)):
            if rate is not None:
                within(f"{key}_{name}", rate, 0, 0.9)
        self.prior = (background, foreground)
        self.look_from = look_from

    def rates(self, like: Tensor) -> Tensor:
        """The expected share of wrong labels by class, (K,), for logits (B, K, *S); 0 where nothing is known yet."""
        known = len(self.noise_rates) == like.shape[1]
        rates = self.noise_rates.clone() if known else torch.zeros(like.shape[1], device=like.device)
        background, foreground = self.prior
        if background is not None:
            rates[0] = background
        if foreground is not None:
            rates[1:] = foreground
        return rates

    def wants_revision(self, progress: float) -> bool:
        """Now and then until half of training, and at least once."""
        if None not in self.prior or progress < self.look_from:
            return False
        due = progress <= UNTIL and progress >= self.looked_at.item() + EVERY
        return due or not len(self.noise_rates)

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
        """Count, by class, the voxels and those predicted as another class; nothing is remembered."""
        self.keep(index, contradictions(probs, label, valid).flatten())
        return None

    def after_revision(self, progress: float) -> None:
        """The counts of all cases become the estimate."""
        self.learn_rates(self.case_state, progress)

    def learn_rates(self, counts: Tensor, progress: float) -> None:
        """The estimate at `progress` from each case's `contradictions`, (N, 2 K)."""
        self.looked_at.fill_(progress)
        voxels, contradicted = counts.double().sum(dim=0).view(2, -1)
        self.noise_rates = (contradicted / voxels.clamp_min(1)).clamp_max(MOST).float()


def contradictions(probs: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Voxels of each given class, and those of them predicted as another class: (2, K) float.

    Args:
        probs: (K, *S).
        label: (*S) class indices.
        valid: (*S) bool.
    """
    classes = len(probs)
    given, predicted = label[valid], probs.argmax(dim=0)[valid]
    voxels = torch.bincount(given, minlength=classes)
    wrong = torch.bincount(given[given != predicted], minlength=classes)
    return torch.stack([voxels, wrong])[:, :classes].float()
