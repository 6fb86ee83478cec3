"""What this machine offers and what is missing: the first thing to attach to a report."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskmend.machine import memory_gib, usable_cores

CORE = (
    "maskmend", "torch", "monai", "numpy", "scipy", "scikit-image", "nibabel", "pillow", "pydantic", "typer",
    "rich", "matplotlib", "lightning-fabric", "safetensors",
)  # fmt: skip
EXTRAS = {"formats": ("SimpleITK", "pydicom"), "tensorboard": ("tensorboard",)}


def examine() -> dict[str, Any]:
    """Versions, devices, threads, memory, disk and missing extras, ready for JSON. Imports torch."""
    missing = {
        extra: absent
        for extra, packages in EXTRAS.items()
        if (absent := [name for name in packages if importlib.util.find_spec(name) is None])
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in CORE},
        "missing_extras": missing,
        "cores": usable_cores(),
        **_torch_facts(),
        "memory_gib": memory_gib(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "problems": _problems(),
    }


def describe(facts: dict[str, Any]) -> str:
    """The facts of `examine` as lines for people."""
    lines = [f"{'python':<18}{facts['python']} on {facts['platform']}"]
    lines += [f"{name:<18}{found or 'MISSING'}" for name, found in facts["versions"].items()]
    lines.append(f"{'devices':<18}{', '.join(facts['devices'])}")
    lines.append(f"{'CPU':<18}{facts['cores']} cores usable, torch uses {facts['threads']} threads")
    memory = facts["memory_gib"]
    lines.append(f"{'memory':<18}{memory['available']} of {memory['total']} GiB available" if memory else "")
    lines.append(f"{'disk':<18}{facts['disk_free_gib']} GiB free here")
    for extra, absent in facts["missing_extras"].items():
        lines.append(f"{'optional':<18}{', '.join(absent)} not installed: pip install 'maskmend[{extra}]'")
    lines += [f"{'problem':<18}{problem}" for problem in facts["problems"]]
    return "\n".join(line for line in lines if line)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch_facts() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"devices": [f"torch does not load: {error}"], "threads": 0}
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({facts.name}, {facts.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {"devices": devices, "threads": torch.get_num_threads()}


def _problems() -> list[str]:
    problems = [f"{name} is not installed" for name in CORE if _version(name) is None]
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < 2**28:
        problems.append(f"/dev/shm has {free / 2**20:.0f} MiB free: use train.workers=0, or enlarge it")
    return problems
