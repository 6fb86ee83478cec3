"""Abstention: the network may leave a voxel out, at a price."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskmend import robust_losses
from maskmend.losses import cross_entropy, dice_loss, masked_mean
from maskmend.methods._noise_rates import NoiseRates
from maskmend.methods.base import Batch, EmaMethod, StepOutput, one_of, within

LOSSES = ("ce_dice", "dice", "ce", "gce", "sce")


class Abstention(EmaMethod, NoiseRates):
    """Let the network abstain where labels contradict one another, and make that dearer as training goes on.

    An abstention `a` competes with the classes in one softmax. A voxel is learnt with weight `1 - a` and costs
    `(1 - a) L + alpha(t) |ln((1 - eta) / (1 - a))|`: little as long as `a` is near the expected share of wrong labels
    `eta`, and the more the further it goes beyond or stays below. After the warm-up `alpha` starts from 0, so that only
    what is easy is learnt, and grows to its full value, so that only what is hopeless stays out. `a` is made from the
    image alone: it finds where labels are wrong by a rule (a kind of boundary, a kind of image), not single slips.

    The abstention comes from a second network of the same shape, the mean of whose outputs is the extra logit.
    Networks come from a factory that fixes their outputs to the classes, and a layer on top of the logits would see no
    more than they hold; a further channel of one network (as published) shares its features and costs less. A step
    costs about twice a plain one, a prediction the same: the abstention is not needed then.

    Args:
        make_network: builds one network; called twice.
        loss: `L`: "ce_dice", "dice" (as ADS), "ce" (as the first abstaining classifier), "gce" or "sce". In the
            Dice loss voxels count by `1 - a`.
        noise_foreground: `eta` for voxels labelled with a foreground class, in [0, 0.9]; None: estimated, as the
            share of them that the network contradicts in the first half of training.
        noise_background: the same for voxels labelled background.
        penalty: `alpha` at the end, > 0.
        power: of its growth, `alpha = penalty * t^power` from the end of the warm-up, > 0.
        warmup: share of training with the full penalty, before anything can be left out, in [0.01, 0.9].
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights, as published.

    Example:
        >>> method = Abstention(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['abstained']

    Source: Moustafa et al., MIDL 2026, arXiv 2601.14039 (ADS: penalty, power law, `eta`); Thulasidasan et al., ICML
    2019, arXiv 1905.10964 (abstaining classifier). Ours: the second network, `eta` by class and its estimate, the
    warm-up, CE + Dice as default, and the averaged weights; trusted cases have `eta` 0.
    """

    family = "robust loss"
    source = "Moustafa et al., MIDL 2026"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        loss: str = "ce_dice",
        noise_foreground: float | None = None,
        noise_background: float | None = None,
        penalty: float = 4.0,
        power: float = 1.5,
        warmup: float = 0.1,
        ema: float = 0.99,
    ) -> None:
        super().__init__(make_network, ema)
        self.abstainer = make_network()
        self.loss = one_of("loss", loss, LOSSES)
        self.penalty = within("penalty", penalty, 1e-3, 1000)
        self.power = within("power", power, 1e-3, 100)
        self.warmup = within("warmup", warmup, 0.01, 0.9)
        self.expect(noise_background, noise_foreground, key="noise", look_from=self.warmup / 2)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The loss of what is not left out, plus the price of leaving out."""
        image, label, valid = batch["image"], batch["label"], batch["valid"]
        logits = self.student(image)
        advantage = self.abstainer(image).float().mean(dim=1) - logits.float().logsumexp(dim=1)
        learnt = torch.sigmoid(-advantage)  # 1 - a, after the softmax over the classes and the abstention
        expected = self.rates(logits)[label.clamp(0, logits.shape[1] - 1)]
        expected = expected * ~batch["trusted"].view(-1, *[1] * (valid.ndim - 1))
        price = (torch.log1p(-expected) + functional.softplus(advantage)).abs()
        loss = masked_mean(learnt * self._voxel_loss(logits, label) + self.alpha(progress) * price, valid)
        if self.loss in ("ce_dice", "dice"):
            loss = loss + dice_loss(logits, label, learnt * valid)
        return StepOutput(loss, {"abstained": masked_mean(1 - learnt.detach(), valid)})

    def alpha(self, progress: float) -> float:
        """The price of abstention: full during the warm-up, then from 0 up to full by a power law."""
        if progress < self.warmup:
            return self.penalty
        since: float = (progress - self.warmup) / (1 - self.warmup)
        return self.penalty * since**self.power

    def _voxel_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.loss == "dice":
            return torch.zeros_like(logits[:, 0])
        if self.loss == "gce":
            return robust_losses.generalised_cross_entropy(logits, label)
        if self.loss == "sce":
            return robust_losses.symmetric_cross_entropy(logits, label)
        return cross_entropy(logits, label)
