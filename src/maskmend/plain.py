"""Values as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A value that any JSON reader takes, whatever it holds.

    NaN and infinity become None, numbers and arrays of NumPy become Python's, mappings and sequences dictionaries and
    lists, and what else JSON lacks, such as paths, becomes text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # NumPy's, without importing it: every command starts here
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
