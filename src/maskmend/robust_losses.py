"""Losses that wrong labels pull less: voxel maps (B, *S) and region losses, all over softmax outputs.

Cross-entropy pulls a voxel the harder the more it contradicts its label, so a wrong label pulls hardest of all.
Every loss here bounds or slows that pull. Voxel maps take class indices (B, *S); labels of ignored voxels may hold
anything, their values are dropped by `masked_mean`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from maskmend.losses import EPSILON, one_hot

RCE_CLIP = 1e-4  # zeros of the one-hot label in the reverse cross-entropy


def _log_given(logits: Tensor, label: Tensor) -> Tensor:
    """`log p_y`, (B, *S)."""
    return -functional.cross_entropy(logits, label.clamp(0, logits.shape[1] - 1), reduction="none")


def mean_absolute_error(logits: Tensor, label: Tensor) -> Tensor:
    """`sum_c |p_c - y_c| = 2 - 2 p_y`: a wrong label pulls no harder than a right one.

    Source: Ghosh et al., AAAI 2017, arXiv 1712.09482.
    """
    return -2 * torch.expm1(_log_given(logits, label))


def generalised_cross_entropy(logits: Tensor, label: Tensor, q: float = 0.7) -> Tensor:
    """`(1 - p_y^q) / q`: cross-entropy as q goes to 0, half the absolute error at q = 1.

    Args:
        logits: (B, K, *S).
        label: (B, *S).
        q: in (0, 1].

    Source: Zhang and Sabuncu, NeurIPS 2018, arXiv 1805.07836.
    """
    return -torch.expm1(q * _log_given(logits, label)) / q


def symmetric_cross_entropy(
    logits: Tensor, label: Tensor, ce_weight: float = 0.1, rce_weight: float = 1.0
) -> Tensor:
    """`a CE + b RCE`, the reverse part `-sum_c p_c log y_c` with the zeros of `y` set to 1e-4.

    Source: Wang et al., ICCV 2019, arXiv 1908.06112.
    """
    log_given = _log_given(logits, label)
    reverse = math.log(RCE_CLIP) * torch.expm1(log_given)  # only the classes other than y count: log 1 is 0
    return -ce_weight * log_given + rce_weight * reverse


def taylor_cross_entropy(logits: Tensor, label: Tensor, order: int = 6) -> Tensor:
    """`sum_{i=1..n} (1 - p_y)^i / i`: half the absolute error at n = 1, cross-entropy as n grows.

    Source: Feng et al., IJCAI 2020.
    """
    miss = -torch.expm1(_log_given(logits, label))
    total = torch.zeros_like(miss)
    for power in range(order, 0, -1):  # Horner's scheme
        total = miss * (total + 1 / power)
    return total


def noise_robust_dice(logits: Tensor, label: Tensor, weight: Tensor, gamma: float = 1.5) -> Tensor:
    """`sum |p - g|^gamma / (sum p^2 + sum g^2 + e)`, mean over the foreground classes, pooled over the batch.

    gamma = 2 is Dice with squares in the denominator; gamma = 1 counts errors as the absolute error does.

    Args:
        logits: (B, K, *S).
        label: (B, *S).
        weight: (B, *S), bool or float >= 0; the loss is 0 when every weight is 0.
        gamma: in [1, 2].

    Source: Wang et al. (COPLE-Net), IEEE TMI 2020.
    """
    probs = logits.softmax(dim=1)[:, 1:]
    given = one_hot(label, logits.shape[1])[:, 1:]
    w = weight.to(probs.dtype).unsqueeze(1)
    axes = (0, *range(2, logits.ndim))
    error = ((probs - given).abs().pow(gamma) * w).sum(axes)
    size = ((probs.square() + given.square()) * w).sum(axes)
    return (error / (size + EPSILON)).mean()


def t_loss(logits: Tensor, label: Tensor, weight: Tensor, log_freedom: Tensor) -> Tensor:
    """Negative log-likelihood of a patch's errors under a multivariate Student t with unit scale, per voxel.

    All voxels of a patch share one heavy tail: beyond `|p - y|^2 = n` a further error adds little, so a patch whose
    mask is badly wrong stops pulling. Each foreground class of each patch is one draw of D dimensions (D = its valid
    voxels); for two classes this is the published form. Divided by D (ours), so that the figure does not depend on
    the patch; for one patch size this is a constant factor.

    Args:
        logits: (B, K, *S).
        label: (B, *S).
        weight: (B, *S), bool or float >= 0; a patch of weight 0 counts 0.
        log_freedom: scalar, log of the degrees of freedom n; learned.

    Source: Gonzalez-Jimenez et al., MICCAI 2023, arXiv 2306.00753.
    """
    error = logits.softmax(dim=1)[:, 1:] - one_hot(label, logits.shape[1])[:, 1:]
    w = weight.to(error.dtype)
    # In float64 from here on: the terms grow with D and nearly cancel.
    squares = (error.square() * w.unsqueeze(1)).flatten(2).double().sum(dim=2)
    size = w.flatten(1).double().sum(dim=1, keepdim=True)
    n = log_freedom.double().exp()
    likelihood = (
        torch.lgamma((n + size) / 2)
        - torch.lgamma(n / 2)
        - size / 2 * torch.log(math.pi * n)
        - (n + size) / 2 * torch.log1p(squares / n)
    )
    return (-likelihood / size.clamp_min(1)).mean().to(error.dtype)
