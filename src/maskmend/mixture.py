"""Groups among cases: a mixture of Gaussians of one common spread, with as many groups as the data demand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

UNIFORM_SHARE = 0.05  # what the uniform starts with; it takes the cases that belong to no group
ROUNDS = 40
MARGIN = 0.2  # of log support over the next rival, below which no group is chosen
LEAST_WEIGHT = 0.1  # of a group that may be chosen


class Groups(nn.Module):
    """A fitted mixture that tells how likely a case belongs to the group that is taken to be right.

    One spread for all groups keeps a wide Gaussian from swallowing two conventions; a uniform beside them
    keeps outliers from widening it; the Bayesian information criterion keeps one group one. When there is one
    group only, nothing sets any case apart and every posterior is 1.

    Args:
        width: extent of the uniform along each feature; at least the range of the data when they are fitted.
        least_sd: lower bound of the spread, in the features' unit.
        most: largest number of groups tried.
        gain: by how much another group must better the information criterion.
        apart: groups nearer to the chosen one than this many spreads count as part of it.
        lowest: choose the group with the smallest mean, not the densest one.
    """

    mean: Tensor
    sd: Tensor
    weight: Tensor
    chosen: Tensor
    extent: Tensor

    def __init__(
        self,
        *,
        width: float,
        least_sd: float,
        most: int = 6,
        gain: float = 10.0,
        apart: float = 2.5,
        lowest: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.least_sd, self.most, self.gain = width, least_sd, most, gain
        self.apart, self.lowest = apart, lowest
        for name in ("mean", "sd", "weight", "chosen", "extent"):
            self.register_buffer(name, torch.zeros(0))

    @property
    def fitted(self) -> bool:
        """Whether `fit` has run."""
        return len(self.sd) > 0

    @property
    def several(self) -> bool:
        """Whether it tells the chosen group from others."""
        return self.fitted and not bool(self.chosen.all())

    def fit(self, features: Tensor, evidence: Callable[[Tensor], float] | None = None) -> None:
        """Find the groups and choose one.

        Args:
            features: (N, F).
            evidence: log likelihood per case, from something other than the features, if the group of these
                cases (indices, long) is the right one; adds to the log of the group's density.
        """
        features = features.double()
        self.extent = (features.amax(0) - features.amin(0)).clamp_min(self.width).float()
        best = None
        for count in range(1, min(self.most, max(1, len(features) // 10)) + 1):
            likelihood, mean, sd, weight = self._fit(features, count)
            free = count * features.shape[1] + features.shape[1] + count
            criterion = -2 * likelihood + free * math.log(len(features))
            if best is None or criterion < best[0] - self.gain:
                best = criterion, mean, sd, weight
            elif count > len(best[1]) + 1:
                break  # two more groups did not pay, nor will three
        assert best is not None
        _, mean, sd, weight = best
        share = self._logs(features, mean, sd, weight).softmax(1)[:, :-1]
        near = (((mean[:, None] - mean) / sd).norm(dim=2) < self.apart).double()
        self.mean, self.sd, self.weight = mean.float(), sd.float(), weight.float()
        self.chosen = (
            near[int(mean.sum(1).argmin())] if self.lowest else self._choose(features, share, near, evidence)
        ).float()

    def _choose(
        self, features: Tensor, share: Tensor, near: Tensor, evidence: Callable[[Tensor], float] | None
    ) -> Tensor:
        """The neighbourhood with the most support, (groups,) of 0 and 1; all 1 where none stands out.

        Choosing wrongly teaches the flaw, and the next look then confirms it; not choosing costs little, because
        the groups grow more distinct as the teacher learns.
        """
        owned = share @ near.T  # each group with its neighbours
        size = owned.sum(0)
        centre = owned.T @ features / size[:, None]
        off = (owned[:, :, None] * (features[:, None] - centre) ** 2).sum(0) / size[:, None]
        support = (size / len(features)).log() - off.sqrt().clamp_min(self.least_sd).log().sum(1)
        large = size >= LEAST_WEIGHT * len(features)
        if evidence is not None and not bool(near.all()):
            for group in torch.nonzero(large)[:, 0].tolist():
                support[group] += evidence(torch.nonzero(owned[:, group] > 0.5)[:, 0])
        support = torch.where(large, support, support - 1e6)
        main = int(support.argmax())
        rivals = support[near[main] == 0]
        stands_out = not len(rivals) or bool(support[main] - rivals.max() > MARGIN)
        return near[main] if stands_out else torch.ones_like(near[main])

    def posterior(self, features: Tensor) -> Tensor:
        """P(the case belongs to the chosen group), (N,) for (N, F); 1 for all when there is one group."""
        if not self.several:
            return torch.ones(len(features), device=features.device)
        logs = self._logs(features.double(), self.mean.double(), self.sd.double(), self.weight.double())
        return (logs.softmax(1)[:, :-1] * self.chosen).sum(1).float()

    def _fit(self, features: Tensor, count: int) -> tuple[float, Tensor, Tensor, Tensor]:
        order = features.sum(1).argsort()
        mean = torch.stack([features[part].mean(0) for part in order.chunk(count)])
        count = len(mean)
        sd = (features.std(0, unbiased=False) / count).clamp_min(self.least_sd)
        weight = features.new_full((count + 1,), (1 - UNIFORM_SHARE) / count)
        weight[-1] = UNIFORM_SHARE
        logs = self._logs(features, mean, sd, weight)
        for _ in range(ROUNDS):
            share = logs.softmax(1)
            size = share.sum(0) + 1e-6
            own = share[:, :-1]
            mean = own.T @ features / size[:-1, None]
            off = (own[:, :, None] * (features[:, None] - mean) ** 2).sum((0, 1))
            sd = (off / size[:-1].sum()).sqrt().clamp_min(self.least_sd)
            weight = size / size.sum()
            logs = self._logs(features, mean, sd, weight)
        return float(logs.logsumexp(1).sum()), mean, sd, weight

    def _logs(self, features: Tensor, mean: Tensor, sd: Tensor, weight: Tensor) -> Tensor:
        """Log of weight times density for each group and, last, the uniform: (N, groups + 1)."""
        z = (features[:, None] - mean) / sd
        gauss = (-0.5 * z**2 - sd.log() - 0.5 * math.log(2 * math.pi)).sum(2)
        uniform = gauss.new_full((len(features), 1), -float(self.extent.log().sum()))
        return torch.cat([gauss, uniform], 1) + weight.clamp_min(1e-12).log()
