"""Results on disk: one small file per run, named by its key, so that a kill loses only what was running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskmend.data.atomic import write_text
from maskmend.progress import message

FOLDER = "runs"
STATES = ("done", "failed")


def save(out: Path, result: dict[str, Any]) -> None:
    """Keep one result; a failed one too, until a later run of the same key replaces it."""
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(_path(out, result["key"]), json.dumps(result, indent=1) + "\n")


def load(out: Path, keys: set[str]) -> dict[str, dict[str, Any]]:
    """The stored results of these keys; a file that holds none counts as missing, with a message."""
    found = {}
    for key in sorted(keys):
        try:
            result = json.loads(_path(out, key).read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            message(f"{_path(out, key).name} cannot be read; its run is done again")
            continue
        if not isinstance(result, dict) or result.get("key") != key or result.get("status") not in STATES:
            message(f"{_path(out, key).name} holds no result; its run is done again")
            continue
        found[key] = result
    return found


def _path(out: Path, key: str) -> Path:
    return out / FOLDER / f"{key}.json"
