"""Results on disk: one small file per run, named by its key, so that a kill loses only what was running."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskmend.data.atomic import atomic_write, write_text
from maskmend.errors import DataError
from maskmend.progress import message

FOLDER = "runs"
PACKED = "results.jsonl.gz"
STATES = ("done", "failed")
_KEY = re.compile("[0-9a-f]{8,64}")  # also keeps a foreign file's key from being a path


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


def pack(out: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write results into one file, `results.jsonl.gz`, that others can build on; equal results give equal bytes."""
    lines = [json.dumps(results[key], sort_keys=True) + "\n" for key in sorted(results)]
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    atomic_write(out / PACKED, lambda path: path.write_bytes(packed))


def take_over(out: Path, packed: Path) -> int:
    """Keep the finished results of a packed file that are not here yet; returns how many were new.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    try:
        with gzip.open(packed, "rt", encoding="utf-8") as lines:
            results = [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise DataError("is not there", packed, f"give the {PACKED} of a benchmark") from None
    except (OSError, EOFError, ValueError):
        raise DataError("is no packed results", packed, f"give the {PACKED} of a benchmark") from None
    new = 0
    for result in results:
        key = result.get("key") if isinstance(result, dict) else None
        if not isinstance(key, str) or not _KEY.fullmatch(key) or result.get("status") not in STATES:
            raise DataError("holds a line that is no result", packed, f"give the {PACKED} of a benchmark")
        if result["status"] == "done" and key not in load(out, {key}):
            save(out, result)
            new += 1
    return new


def _path(out: Path, key: str) -> Path:
    return out / FOLDER / f"{key}.json"
