"""Many small cases: checked, prepared and sampled with bounded memory, and a warm start that does not wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if sys.platform != "linux":
    pytest.skip("memory is read from /proc", allow_module_level=True)

SIDE = 64
PROGRAM = """
import json, resource, sys, time
from pathlib import Path

def now():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

from maskmend.config import load
from maskmend.data.cache import Cache
from maskmend.data.check import check
from maskmend.data.fingerprint import fingerprint
from maskmend.train.run import plan_run
import maskmend.train.loop

root, cache_folder = Path(sys.argv[1]), Path(sys.argv[2])
config = load(None, ["device=cpu", "train.patch=[32, 32]", "train.batch=4"])
base, facts = now(), {}

def step(name, action):
    began = time.monotonic(), time.process_time()
    found = action()
    facts[name] = {"seconds": round(time.monotonic() - began[0], 1), "cpu": round(time.process_time() - began[1], 1)}
    facts[name]["grown_mib"] = round(now() - base)
    return found

result = step("check", lambda: check(root, quick=True))
result.raise_errors()
dataset = result.dataset
del result
seen = step("fingerprint", lambda: fingerprint(dataset))
plan = plan_run(dataset, seen, config)
cache = step("prepare", lambda: Cache.open(dataset.train, plan, cache_folder, in_ram_bytes=0))
del cache
cache = step("warm", lambda: Cache.open(dataset.train, plan, cache_folder, in_ram_bytes=0))
numbers = range(0, len(cache), max(1, len(cache) // 1000))
step("sample", lambda: [cache[i].image.sum() for i in numbers])
facts["cases"] = len(cache)
facts["data_mib"] = round(cache.nbytes / 2**20)
# Not ru_maxrss: a program inherits that from the one that started it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
facts["peak_mib"] = round(int(status["VmHWM"].split()[0]) / 1024 - base)
print(json.dumps(facts))
"""


def _make(root: Path, cases: int) -> Path:
    """Grey images with a disc each, written as fast as PNG goes."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    y, x = np.mgrid[:SIDE, :SIDE]
    for number in range(cases):
        rng = np.random.default_rng(number)
        middle = rng.uniform(20, 44, 2)
        mask = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < 150).astype(np.uint8)
        image = (90 * mask + rng.integers(0, 100, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"c{number:05d}.png", compress_level=1)
        Image.fromarray(mask).save(root / "labels" / f"c{number:05d}.png", compress_level=1)
    return root


def _measure(root: Path, cache: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), str(cache)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    print(facts)
    return facts


def test_a_thousand_cases(tmp_path):
    facts = _measure(_make(tmp_path / "set", 1000), tmp_path / "cache")
    assert facts["cases"] == 1000
    assert facts["warm"]["cpu"] < 3
    assert facts["peak_mib"] < 400


@pytest.mark.faults
def test_twenty_thousand_cases(tmp_path):
    root, cache = _make(tmp_path / "set", 20_000), tmp_path / "cache"
    facts = _measure(root, cache)
    assert facts["cases"] == 20_000
    assert facts["warm"]["cpu"] < 60, "start of training with a warm cache"
    assert facts["peak_mib"] < 1024, "per-case facts and sampled voxels, never the arrays"
