"""One network and a loss that wrong labels pull less."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend import robust_losses
from maskmend.losses import cross_entropy, dice_loss, masked_mean
from maskmend.methods.base import Batch, EmaMethod, StepOutput, one_of, within

LOSSES = ("gce", "ce", "dice", "mae", "sce", "taylor_ce", "noise_robust_dice", "t_loss")


class RobustLoss(EmaMethod):
    """Plain training with a loss that bounds how hard a single wrong label can pull.

    Cross-entropy pulls a voxel the harder the more it contradicts its label; late in training that is mostly wrong
    labels. The losses here flatten the pull: GCE and Taylor-CE go from cross-entropy to the absolute error by one
    number, SCE adds a bounded reverse term, noise-robust Dice does the same for Dice, and T-Loss lets a whole patch
    with much error count as an outlier, by a heaviness of tail that it learns. The price: hard voxels with right
    labels are pulled less, too.

    Args:
        make_network: builds the network.
        loss: "gce", "ce", "dice", "mae", "sce", "taylor_ce", "noise_robust_dice" or "t_loss".
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights.
        q: of GCE, in [0.01, 1]; small is cross-entropy, 1 half the absolute error.
        ce_weight: of the cross-entropy in SCE, >= 0; published values are 0.1 to 0.5.
        rce_weight: of the reverse cross-entropy in SCE, >= 0.
        order: terms of Taylor-CE, >= 1; 1 is half the absolute error, many are cross-entropy.
        gamma: exponent of noise-robust Dice, in [1, 2]; 2 is Dice with squares.
        dice_weight: weight of a plain Dice loss that is added, >= 0. As published there is none; 1 sets a voxel
            loss beside the baseline's CE + Dice (ours).

    Example:
        >>> method = RobustLoss(toy_network, loss="t_loss")
        >>> method.training_step(toy_batch(ndim=2), progress=0.5).logs["degrees_of_freedom"].item()
        1.0

    Source: Ghosh et al., AAAI 2017, arXiv 1712.09482 (MAE); Zhang and Sabuncu, NeurIPS 2018, arXiv 1805.07836 (GCE);
    Wang et al., ICCV 2019, arXiv 1908.06112 (SCE); Feng et al., IJCAI 2020 (Taylor-CE); Wang et al., IEEE TMI 2020
    (noise-robust Dice of COPLE-Net, squares below as published); Gonzalez-Jimenez et al., MICCAI 2023,
    arXiv 2306.00753 (T-Loss). Ours: the averaged weights, softmax instead of sigmoid, region losses as the mean over
    the foreground classes, T-Loss per voxel.
    """

    family = "robust loss"
    source = "Zhang and Sabuncu, NeurIPS 2018, and others by `loss`"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        loss: str = "gce",
        ema: float = 0.99,
        q: float = 0.7,
        ce_weight: float = 0.1,
        rce_weight: float = 1.0,
        order: int = 6,
        gamma: float = 1.5,
        dice_weight: float = 0.0,
    ) -> None:
        super().__init__(make_network, ema)
        self.loss = one_of("loss", loss, LOSSES)
        self.q = within("q", q, 0.01, 1)
        self.ce_weight = within("ce_weight", ce_weight, 0, 1000)
        self.rce_weight = within("rce_weight", rce_weight, 0, 1000)
        self.order = int(within("order", order, 1, 1000))
        self.gamma = within("gamma", gamma, 1, 2)
        self.dice_weight = within("dice_weight", dice_weight, 0, 1000)
        if loss == "t_loss":  # only where it is used: every trainable parameter must get a gradient
            self.log_freedom = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The chosen loss over the valid voxels."""
        logits, label, valid = self.student(batch["image"]), batch["label"], batch["valid"]
        loss = self._region_loss(logits, label, valid)
        if self.dice_weight:
            loss = loss + self.dice_weight * dice_loss(logits, label, valid)
        learned = self.loss == "t_loss"
        return StepOutput(loss, {"degrees_of_freedom": self.log_freedom.detach().exp()} if learned else {})

    def _region_loss(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        if self.loss == "dice":
            return dice_loss(logits, label, valid)
        if self.loss == "noise_robust_dice":
            return robust_losses.noise_robust_dice(logits, label, valid, self.gamma)
        if self.loss == "t_loss":
            return robust_losses.t_loss(logits, label, valid, self.log_freedom)
        return masked_mean(self._voxel_loss(logits, label), valid)

    def _voxel_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.loss == "gce":
            return robust_losses.generalised_cross_entropy(logits, label, self.q)
        if self.loss == "mae":
            return robust_losses.mean_absolute_error(logits, label)
        if self.loss == "sce":
            return robust_losses.symmetric_cross_entropy(logits, label, self.ce_weight, self.rce_weight)
        if self.loss == "taylor_ce":
            return robust_losses.taylor_cross_entropy(logits, label, self.order)
        return cross_entropy(logits, label)
