"""Annotator confusion: learn beside the segmentation how each rater distorts it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskmend.losses import ce_dice, cross_entropy, dice_loss, masked_mean
from maskmend.methods._raters import known_votes, per_case
from maskmend.methods.base import Batch, EmaMethod, StepOutput, one_of, ramp, within

MATRICES = ("global", "pixel")
HIDDEN = 16  # width of the layer between the annotator network and the matrices


class AnnotatorConfusion(EmaMethod):
    """Explain each rater's mask as the true class seen through that rater's confusion matrix: `p_r = A_r(x) p`.

    `A_r[i, j]` is the probability that rater r says i where the truth is j. Habits of a rater go into the matrix
    instead of into the segmentation `p`. On top the trace of the matrices is made small: of all explanations of the
    masks that takes the one with the least reliable raters, and under it `p` is the truth as long as raters are right
    more often than not. Without a start the two could trade places, so the matrices begin near the identity and are
    held there while `p` takes shape. For a matrix per voxel that does not always suffice: in runs of 300 steps on a
    crowd's masks of cells they took over part of the segmentation in four seeds of five, while one matrix per rater
    was sound in all. So that is the default, although the paper's matrices are those of voxels.

    Args:
        make_network: builds one network; called twice for `matrices="pixel"`.
        ema: decay of the averaged weights that predict, in [0, 1).
        matrices: "global" (one matrix per rater) or "pixel" (as published: a second network gives a matrix for every
            voxel and rater: about twice the cost of a step, and memory for R K^2 numbers per voxel).
        trace: weight of the trace term, >= 0.
        diagonal: probability of the right class in the first matrices, in [0.5, 0.999].
        warmup: share of training at whose end the matrices are free and the trace term has its weight, in [0, 1].
        dice: weight of the Dice term between `p_r` and the rater's mask, >= 0; 0 leaves the published loss. Dice likes
            sharp answers, so with it the matrices show less confusion than there is.

    Example:
        >>> method = AnnotatorConfusion(toy_network)
        >>> method.begin_raters(raters=3, classes=3)
        >>> sorted(method.training_step(toy_batch(ndim=2, raters=True), progress=0.5).logs)
        ['reliability']

    Source: Zhang et al., NeurIPS 2020, arXiv 2007.15963 (model, likelihood, trace); global matrices: Tanno et al.,
    CVPR 2019, arXiv 1902.03680. The likelihood is taken of the product itself: feeding `p_r` to a loss that applies a
    softmax, as public code does, flattens it. Ours: one matrix per rater is the default, the second network sees the
    segmentation's logits as well, the Dice term, how the matrices are held at first (cross-entropy of their
    diagonals), and that a trusted case also teaches `p` directly.
    """

    family = "several raters"
    needs = ("raters",)
    source = "Zhang et al., NeurIPS 2020, arXiv 2007.15963"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        matrices: str = "global",
        trace: float = 0.01,
        diagonal: float = 0.95,
        warmup: float = 0.2,
        dice: float = 1.0,
    ) -> None:
        super().__init__(make_network, ema)
        self.matrices = one_of("matrices", matrices, MATRICES)
        self.trace = within("trace", trace, 0, 1000)
        self.diagonal = within("diagonal", diagonal, 0.5, 0.999)
        self.warmup = within("warmup", warmup, 0, 1)
        self.dice = within("dice", dice, 0, 1000)
        self.annotator = make_network() if self.matrices == "pixel" else None
        self.head: nn.Sequential | None = None
        self.residual: nn.Parameter | None = None

    def begin_raters(self, raters: int, classes: int) -> None:
        """Make what depends on the number of raters R and classes K: the matrices, as differences from the identity."""
        if self.matrices == "global":
            self.residual = nn.Parameter(torch.zeros(raters, classes, classes))
            return
        last = nn.Linear(HIDDEN, raters * classes * classes)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(2 * classes, HIDDEN), nn.LeakyReLU(), last)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch does, after making the matrices of as many raters as were stored."""
        if self.residual is None and "residual" in state_dict:
            self.begin_raters(*state_dict["residual"].shape[:2])
        if self.head is None and "head.0.weight" in state_dict:
            classes = state_dict["head.0.weight"].shape[1] // 2
            self.begin_raters(len(state_dict["head.2.bias"]) // classes**2, classes)
        return super().load_state_dict(state_dict, strict, assign)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """Negative log-likelihood (and Dice) of every rater's mask, and the trace."""
        logits = self.student(batch["image"])
        votes, known = known_votes(batch)
        confusion = self.confusion(batch["image"], logits.detach())
        log_rater = torch.einsum("brij...,bj...->bri...", confusion, logits.float().softmax(dim=1))
        # `cross_entropy` normalises its input again, which leaves logarithms of probabilities as they are.
        log_rater = log_rater.clamp_min(1e-8).log().flatten(0, 1)
        masks, counted = votes.flatten(0, 1), known.flatten(0, 1)
        loss = self._loss(log_rater, masks, counted)
        diagonals = confusion.diagonal(dim1=2, dim2=3)  # (B, R, *S, K)
        free = ramp(progress, self.warmup / 2, self.warmup)
        held = masked_mean(-diagonals.clamp_min(1e-8).log().mean(dim=-1).expand_as(known), known)
        trace = masked_mean(diagonals.sum(dim=-1).expand_as(known), known)
        loss = loss + (1 - free) * held + free * self.trace * trace
        sure = batch["valid"] & per_case(batch["trusted"], batch["valid"])
        loss = loss + ce_dice(logits, batch["label"], sure)
        return StepOutput(loss, {"reliability": trace.detach() / logits.shape[1]})

    def confusion(self, image: Tensor, logits: Tensor) -> Tensor:
        """Each rater's matrix, (B, R, K, K, *S), columns sum to 1; with global matrices (1, R, K, K, 1, ...).

        Args:
            image: (B, C, *S).
            logits: of the segmentation, (B, K, *S).
        """
        spatial = image.ndim - 2
        if self.residual is not None:
            residual = self.residual[None]
        elif self.head is not None and self.annotator is not None:
            features = torch.cat([self.annotator(image), logits.to(image.dtype)], dim=1).movedim(1, -1)
            classes = logits.shape[1]
            residual = self.head(features).unflatten(-1, (-1, classes, classes))
            residual = residual.movedim((-3, -2, -1), (1, 2, 3))
        else:
            raise RuntimeError("begin_raters was not called")
        classes = logits.shape[1]
        right = math.log(self.diagonal * (classes - 1) / (1 - self.diagonal))
        start = right * torch.eye(classes, device=image.device)
        matrix = residual.float() + start.view(1, 1, classes, classes, *[1] * (residual.ndim - 4))
        matrix = matrix.softmax(dim=2)
        return matrix if matrix.ndim > 4 else matrix.view(*matrix.shape, *[1] * spatial)

    def _loss(self, log_probs: Tensor, masks: Tensor, counted: Tensor) -> Tensor:
        likelihood = masked_mean(cross_entropy(log_probs, masks), counted)
        return likelihood + self.dice * dice_loss(log_probs, masks, counted) if self.dice else likelihood
