"""Voxel losses as maps, region losses over weighted voxels, and the one masked reduction.

Every map has the shape (B, *S) so that a method can weigh, rank or drop voxels before it reduces.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-5


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Class indices (B, *S) to (B, K, *S) float; values outside 0..K-1 (ignored voxels) are clamped."""
    hot = functional.one_hot(label.clamp(0, classes - 1), classes)
    return hot.movedim(-1, 1).float()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """`-sum_c target_c log p_c` at each voxel, (B, *S).

    Args:
        logits: (B, K, *S).
        target: class indices (B, *S), or a distribution over classes (B, K, *S).
    """
    if target.ndim == logits.ndim:
        return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)
    return functional.cross_entropy(logits, target.clamp(0, logits.shape[1] - 1), reduction="none")


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean over all voxels; 0 (not NaN) when every weight is 0.

    Args:
        values: a loss map (B, *S).
        weight: (B, *S), bool or float >= 0; voxels of weight 0 have no influence whatever they hold.
    """
    weight = weight.to(values.dtype)
    kept = torch.where(weight > 0, values, torch.zeros_like(values))
    return (kept * weight).sum() / weight.sum().clamp_min(EPSILON)


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Soft Dice over the foreground classes, pooled over the batch; 0 when every weight is 0.

    Pooling over the batch keeps a patch without a structure from dominating the gradient.

    Args:
        logits: (B, K, *S).
        target: distribution over classes (B, K, *S), or class indices (B, *S).
        weight: (B, *S), bool or float >= 0.

    Source: Milletari et al., 3DV 2016, arXiv 1606.04797; sums in the denominator (not squares).
    """
    probs = logits.softmax(dim=1)
    target = target if target.ndim == logits.ndim else one_hot(target, logits.shape[1])
    w = weight.to(probs.dtype).unsqueeze(1)
    axes = (0, *range(2, logits.ndim))
    overlap = (probs * target * w).sum(axes)[1:]
    total = ((probs + target) * w).sum(axes)[1:]
    # An all-ignored batch has total 0, thus a ratio of 1 and a loss of 0.
    return (1 - (2 * overlap + EPSILON) / (total + EPSILON)).mean()


def ce_dice(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy plus Dice, 1:1, over voxels weighted by `weight` (B, *S); the base loss of every method."""
    return masked_mean(cross_entropy(logits, target), weight) + dice_loss(logits, target, weight)
