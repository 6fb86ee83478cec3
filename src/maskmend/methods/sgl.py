"""Study group learning: the given label and an out-of-fold pseudo label, side by side."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from maskmend.losses import ce_dice
from maskmend.methods._folds import Folds
from maskmend.methods.base import Batch, StepOutput, within


class Sgl(Folds):
    """Learn each case from its given label and from what networks say that have never seen that label.

    The pseudo labels carry what labels of other cases teach about this one: a structure that was left out here
    but drawn elsewhere comes back, and a flaw of this one label does not.

    Args:
        make_network: builds one network; called `folds` + 1 times.
        ema: decay of the running averages, in [0, 1).
        folds: K, >= 2; a step costs K times a plain one.
        start: share of training on given labels alone, in [0, 1).
        pseudo_weight: weight of the loss on the pseudo label, >= 0.

    Example:
        >>> method = Sgl(toy_network, folds=2)
        >>> sorted(method.training_step(toy_batch(ndim=2, memory=True), progress=0.9).logs)
        ['judges', 'pseudo']

    Source: Zhou, Yu and Shi, MICCAI 2021, arXiv 2103.03451 (sum of the losses on both labels, K folds).
    Ours: CE + Dice in place of binary CE, all networks in one run rather than one after another, and the
    defaults of K and `start`.
    """

    family = "label correction"
    source = "Zhou, Yu and Shi, MICCAI 2021"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        folds: int = 3,
        start: float = 0.3,
        pseudo_weight: float = 1.0,
    ) -> None:
        super().__init__(make_network, ema, folds, start)
        self.pseudo_weight = within("pseudo_weight", pseudo_weight, 0, 1000)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The student's losses on both labels, and the judges' own."""
        logits, valid = self.student(batch["image"]), batch["valid"]
        judges = self.judges_loss(batch)
        loss = ce_dice(logits, batch["label"], valid) + judges
        if "memory" not in batch:
            return StepOutput(loss, {"judges": judges.detach()})
        pseudo = ce_dice(logits, batch["memory"], valid)
        return StepOutput(
            loss + self.pseudo_weight * pseudo, {"judges": judges.detach(), "pseudo": pseudo.detach()}
        )
