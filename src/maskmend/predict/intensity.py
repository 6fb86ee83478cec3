"""Does an image look like what the run was trained on? Other units are the commonest reason for nonsense."""

from __future__ import annotations

import numpy as np

from maskmend.data.fingerprint import Fingerprint, finite
from maskmend.data.plan import ChannelPlan, Plan
from maskmend.errors import DataError

_MOST_NOT_FINITE = 0.001  # of the voxels; more is a broken file, fewer are replaced
_SAMPLE = 50_000
_NARROW = 0.05  # a spread below this share of the training spread: values of another unit


def oddities(
    image: np.ndarray, plan: Plan, fingerprint: Fingerprint | None, *, where: object = None
) -> list[str]:
    """Warnings about the intensities of `image` (C, *S), with figures; empty when all is well.

    Args:
        image: as read from the file.
        plan: of the run.
        fingerprint: of the training data; without it only fixed windows ("ct", "rgb") can be compared.
        where: the case, for the error.

    Raises:
        DataError: more than 0.1 % of the voxels are NaN or infinite.
    """
    found = []
    for number, (channel, rule) in enumerate(zip(image, plan.channels, strict=True)):
        bad = channel.size - int(np.isfinite(channel).sum())
        if bad > _MOST_NOT_FINITE * channel.size:
            fact = f"{bad / channel.size:.1%} of the voxels of channel {rule.name} are NaN or infinite"
            raise DataError(fact, where, "export the image again")
        if bad:
            found.append(f"channel {rule.name}: {bad} NaN or infinite voxels replaced by background")
        low, high = np.percentile(_some(finite(channel) if bad else channel), [0.5, 99.5])
        facts = fingerprint.channels[number].all if fingerprint else None
        if facts is not None:
            seen = (facts.minimum, facts.maximum, facts.p99_5 - facts.p00_5)
        elif rule.low is not None and rule.high is not None:
            seen = (rule.low, rule.high, rule.high - rule.low)
        else:
            seen = None
        if low == high and channel.min() == channel.max():
            found.append(f"channel {rule.name}: every voxel is {low:g}")
        elif seen is not None and _far(low, high, *seen, window=facts is None):
            found.append(_text(low, high, seen[0], seen[1], rule))
    return found


def _some(channel: np.ndarray) -> np.ndarray:
    flat = channel.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLE)]


def _far(low: float, high: float, least: float, most: float, spread: float, *, window: bool) -> bool:
    if high - low < _NARROW * spread:
        return True
    if window:  # of the foreground alone: much may lie outside it, but not everything
        return bool(high < least or low > most)
    return bool(high > most + spread / 2 or low < least - spread / 2 or high < least or low > most)


def _text(low: float, high: float, least: float, most: float, rule: ChannelPlan) -> str:
    own = "; it is scaled per image, so a mere change of unit does no harm" if _per_image(rule) else ""
    facts = f"most values lie in {low:.4g} to {high:.4g}, in training in {least:.4g} to {most:.4g}"
    return f"channel {rule.name}: {facts} (same units and modality?{own})"


def _per_image(rule: ChannelPlan) -> bool:
    return rule.scheme in ("zscore", "minmax")
