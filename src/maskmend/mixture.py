"""Groups among cases: a mixture of Gaussians of one common spread, with as many groups as the data demand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

UNIFORM_SHARE = 0.05  # what the uniform starts with; it takes the cases that belong to no group
ROUNDS = 40
SETTLED = 1e-9  # change of any mean, spread or weight in a round, below which the fit has ended
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
        share = self._share(features, mean, sd, weight)
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
        return (self._share(features, self.mean, self.sd, self.weight) * self.chosen).sum(1).float()

    def _fit(self, features: Tensor, count: int) -> tuple[float, Tensor, Tensor, Tensor]:
        """Log likelihood, then mean, spread and weight of the groups."""
        table = features.cpu().numpy().T
        order = table.sum(axis=0).argsort(kind="stable")
        step = -(-len(order) // count)
        parts = [table[:, order[start : start + step]] for start in range(0, len(order), step)]
        mean = np.stack([part.mean(axis=1) for part in parts])
        sd = np.maximum(table.std(axis=1) / len(mean), self.least_sd)
        weight = np.full(len(mean) + 1, (1 - UNIFORM_SHARE) / len(mean))
        weight[-1] = UNIFORM_SHARE
        uniform = self._uniform()
        for _ in range(ROUNDS):
            share = _softmax(_logs(table, mean, sd, weight, uniform))
            size = share.sum(axis=1) + 1e-6
            own = share[:-1]
            before = mean, sd, weight
            mean = own @ table.T / size[:-1, None]
            spread = [np.vdot(own, (row - at[:, None]) ** 2) for row, at in zip(table, mean.T, strict=True)]
            sd = np.maximum(np.sqrt(np.array(spread) / size[:-1].sum()), self.least_sd)
            weight = size / size.sum()
            if all(np.abs(a - b).max() < SETTLED for a, b in zip(before, (mean, sd, weight), strict=True)):
                break
        likelihood = float(np.logaddexp.reduce(_logs(table, mean, sd, weight, uniform)).sum())
        found = [torch.from_numpy(one).to(features) for one in (mean, sd, weight)]
        return likelihood, found[0], found[1], found[2]

    def _share(self, features: Tensor, mean: Tensor, sd: Tensor, weight: Tensor) -> Tensor:
        """P(each group) of (N, F), (N, groups), double."""
        table, at, wide, part = (one.detach().cpu().double().numpy() for one in (features, mean, sd, weight))
        share = _softmax(_logs(table.T, at, wide, part, self._uniform()))
        return torch.from_numpy(share[:-1].T.copy()).to(features.device)

    def _uniform(self) -> float:
        """Log density of the uniform."""
        return -float(self.extent.log().sum())


def _logs(
    table: np.ndarray, mean: np.ndarray, sd: np.ndarray, weight: np.ndarray, uniform: float
) -> np.ndarray:
    """Log of weight times density for each group and, last, the uniform: (groups + 1, N), from (F, N) features.

    In NumPy, as all of the fit: on so few numbers torch takes several times as long.
    """
    logs = np.full((len(weight), table.shape[1]), uniform)
    logs[:-1] = -np.log(sd).sum() - 0.5 * math.log(2 * math.pi) * len(sd)
    for row, at, wide in zip(table, mean.T, sd, strict=True):
        logs[:-1] -= 0.5 * ((row - at[:, None]) / wide) ** 2
    logs += np.log(np.maximum(weight, 1e-12))[:, None]
    return logs


def _softmax(logs: np.ndarray) -> np.ndarray:
    """(K, N) shares of one from their logs."""
    share = np.exp(logs - logs.max(axis=0))
    share /= share.sum(axis=0)
    return np.asarray(share)
