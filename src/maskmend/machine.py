"""How many cores and how much memory this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores this process may use, which is fewer than the machine has in a container or on a cluster."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def memory_gib() -> dict[str, float] | None:
    """Total and available memory; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.endswith("kB")}
    total, available = sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemFree"])
    if (limit := _container_limit_gib()) is not None:
        total, available = min(total, limit), min(available, limit)
    return {"total": round(total, 1), "available": round(available, 1)}


def _container_limit_gib() -> float | None:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        return int(text) / 2**30 if text.isdigit() else None
    return None
