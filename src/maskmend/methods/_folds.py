"""Networks that judge only cases they were not trained on, beside the one that predicts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice
from maskmend.methods.base import Batch, EmaMethod, decay_at, follow, within


class Folds(EmaMethod):
    """A student trained on all cases, and K judges, each of which leaves every K-th case out.

    A network repeats wrong labels that it has memorised, so it cannot tell them; one that never saw a case's label
    can. Published methods train the judges first, then predict, then train again. Here all networks train side
    by side in one run and the judges look at the cases left out between epochs, which costs the same and needs
    no second run (ours). A case's fold is its number modulo K: cases of one patient may fall on both sides.

    Args:
        make_network: builds one network; called K + 1 times.
        ema: decay of the running averages of all networks, in [0, 1).
        folds: K, >= 2.
        start: share of training before the first look, in [0, 1).
    """

    def __init__(self, make_network: Callable[[], nn.Module], ema: float, folds: int, start: float) -> None:
        super().__init__(make_network, ema)
        self.start = within("start", start, 0, 0.99)
        count = int(within("folds", folds, 2, 20))
        self.judges = nn.ModuleList(make_network() for _ in range(count))
        self.averages = copy.deepcopy(self.judges).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Folds:
        """The averages stay in evaluation mode."""
        super().train(mode)
        self.averages.eval()
        return self

    def after_step(self, progress: float) -> None:
        """Move every average towards its network."""
        super().after_step(progress)
        decay = decay_at(int(self.steps_seen), self.ema)
        for average, judge in zip(self.averages, self.judges, strict=True):
            follow(average, judge, decay)

    def fold(self, index: Tensor) -> Tensor:
        """The fold of each case, which is the number of the judge that never trains on it."""
        return index % len(self.judges)

    def judges_loss(self, batch: Batch) -> Tensor:
        """The mean over the judges of CE + Dice on the given labels of their own cases."""
        fold, losses = self.fold(batch["index"]), []
        for number, judge in enumerate(self.judges):
            mine = torch.nonzero(fold != number)[:, 0]
            if len(mine):
                logits = judge(batch["image"][mine])
                losses.append(ce_dice(logits, batch["label"][mine], batch["valid"][mine]))
            else:  # data-parallel training wants a gradient on every parameter in every step
                losses.append(sum((p.sum() for p in judge.parameters()), torch.zeros(())) * 0)
        return torch.stack(losses).mean()

    def wants_revision(self, progress: float) -> bool:
        """The judges look once per epoch from `start` on."""
        return progress >= self.start

    @torch.no_grad()
    def observe_case(self, image: Tensor, index: Tensor) -> Tensor:
        """Probabilities from the one judge that has not seen the labels of the case."""
        fold = self.fold(index)
        order = torch.cat([torch.nonzero(fold == k)[:, 0] for k in range(len(self.averages))])
        looks = [
            average(image[fold == number]).float().softmax(dim=1)
            for number, average in enumerate(self.averages)
            if (fold == number).any()
        ]
        return torch.cat(looks)[order.argsort()]

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
        """Remember what the judge said last."""
        return probs
