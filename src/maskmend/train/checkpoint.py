"""The training state on disk: written beside and renamed, with the one before it kept."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from maskmend.data.atomic import atomic_write
from maskmend.errors import DataError
from maskmend.progress import message

NEW, STATE, PREVIOUS = "state.new.pt", "state.pt", "state.prev.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Store `state` as `state.pt`; the old one becomes `state.prev.pt`.

    At every instant one complete state exists: the new one is finished under a temporary name first.

    Raises:
        ResourceError: the disk is full; the old state is intact.
    """
    new = folder / NEW
    atomic_write(new, lambda path: torch.save(state, path))
    if (folder / STATE).exists():
        os.replace(folder / STATE, folder / PREVIOUS)
    os.replace(new, folder / STATE)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest complete state, or None when training has not saved any.

    Only tensors and plain values are read (`weights_only`): a state file cannot run code.
    """
    found = [folder / name for name in (NEW, STATE, PREVIOUS) if (folder / name).exists()]
    for path in found:
        try:
            state = _read(path)
        except Exception as fault:
            message(f"{path.name} cannot be read ({type(fault).__name__}); trying the state before it")
            continue
        if path != found[0] or path.name != STATE:
            message(f"resuming from {path.name}, step {state['step']}")
        return state
    if found:
        raise DataError("no state in this run can be read", folder, "start again with --overwrite")
    return None


def _read(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Tensors and plain values of one state.

    Torch stores its parts as they are. A packed part is none of ours, and might unpack to any size.
    """
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("holds packed parts")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    return state


def memories_in_use(folder: Path) -> set[int]:
    """The memory versions that the stored states refer to."""
    states = (_peek(folder / name) for name in (NEW, STATE, PREVIOUS))
    return {state["memory"] for state in states if state and state["memory"] is not None}


def _peek(path: Path) -> dict[str, Any] | None:
    try:
        return _read(path, mapped=True)
    except Exception:
        return None
