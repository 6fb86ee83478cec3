"""Feed flawed inputs to everything that reads files, many in one forked child, and report what went wrong.

    python tests/faults/fuzz.py run --count 20000       # all kinds, evenly
    python tests/faults/fuzz.py run --count 500 --kind .png
    python tests/faults/fuzz.py show .png 1234 -o bad.png   # write one input down and read it

An input is a kind and a number. It must end in a reading or in a `UserError` that names the file, within 5 s of
the processor's time and 1 GiB above what the process held before. A child that dies or hangs is replaced and its
input reported.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before NumPy and torch: a fork has none of its parent's threads and waits for them.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import KINDS, Target, input_of, silence

SECONDS = 5.0  # of the processor, since a busy machine stretches the clock
CLOCK_SECONDS = 60.0  # for what waits without computing
MEMORY = 1 << 30
BATCH = 500
_SLOT = struct.Struct(
    "<qdd"
)  # input being read, since when on the clock and the processor; both processes see it


def run(kinds: tuple[str, ...], count: int, first: int = 0, out: Path | None = None) -> dict[str, Any]:
    """Read `count` inputs in all and sum up.

    Returns:
        "inputs", "read", "refused", "failures" (kind, seed, fact), "seconds", "peak_mib" (largest growth of a
        child's resident memory), "slowest_s".
    """
    began = time.monotonic()
    total: dict[str, Any] = {
        "inputs": 0,
        "read": 0,
        "refused": 0,
        "failures": [],
        "peak_mib": 0,
        "slowest_s": 0.0,
    }
    for number, kind in enumerate(kinds):
        share = count // len(kinds) + (number < count % len(kinds))
        seeds = list(range(first, first + share))
        _warm(kind)
        while seeds:
            seeds = _batch(kind, seeds[:BATCH], total) + seeds[BATCH:]
        if out:
            out.write_text(json.dumps(total, indent=1))
    return total | {"seconds": round(time.monotonic() - began, 1)}


def _warm(kind: str) -> None:
    """What children would otherwise import and make each for itself: one sound input is read here."""
    with tempfile.TemporaryDirectory() as folder, _silent():
        Target(kind, Path(folder)).try_one(input_of(kind, 0))


@contextmanager
def _silent() -> Iterator[None]:
    """Without what libraries print, also from C."""
    held = [os.dup(1), os.dup(2)]
    silence()
    try:
        yield
    finally:
        for number, copy in enumerate(held, 1):
            os.dup2(copy, number)
            os.close(copy)


def _batch(kind: str, seeds: list[int], total: dict[str, Any]) -> list[int]:
    """Read inputs in one child; what it left undone when it died comes back."""
    shared = mmap.mmap(-1, _SLOT.size)
    shared[:] = _SLOT.pack(-1, time.monotonic(), 0.0)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    report = folder / "report.jsonl"
    pid = os.fork()
    if pid == 0:
        try:
            _child(kind, seeds, folder, report, shared)
        except BaseException:
            report.open("a").write(json.dumps({"harness": traceback.format_exc()}) + "\n")
        finally:
            os._exit(0)
    fate = _watch(pid, shared)
    index = _SLOT.unpack(shared[:])[0]
    lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    shutil.rmtree(folder, ignore_errors=True)
    for line in lines:
        if "harness" in line:
            raise RuntimeError(line["harness"])
        total["inputs"] += 1
        total["peak_mib"] = max(total["peak_mib"], line["peak_mib"])
        total["slowest_s"] = max(total["slowest_s"], line["seconds"])
        if "fact" in line:
            total["failures"].append({"kind": kind, "seed": line["seed"], "fact": line["fact"]})
        else:
            total[line["end"]] += 1
    if fate is None:
        return []
    total["inputs"] += 1
    total["failures"].append({"kind": kind, "seed": seeds[index], "fact": fate})
    return seeds[index + 1 :]


def _watch(pid: int, shared: mmap.mmap) -> str | None:
    """Wait for a child; None when it finished, else what became of it."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        index, since, busy = _SLOT.unpack(shared[:])
        waited, computed = time.monotonic() - since, _cpu_seconds(pid) - busy
        if index >= 0 and (computed > SECONDS or waited > CLOCK_SECONDS):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"hangs: {computed:.1f} s of computing, {waited:.1f} s in all"
        time.sleep(0.01)
    if os.WIFSIGNALED(status):
        return f"the process died of {signal.Signals(os.WTERMSIG(status)).name}"
    return None


def _cpu_seconds(pid: int) -> float:
    """What a process has computed so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(kind: str, seeds: list[int], folder: Path, report: Path, shared: mmap.mmap) -> None:
    silence()
    target = Target(kind, folder / "work")
    target.folder.mkdir()
    before = _now_mib()
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    with report.open("a") as file:
        for index, seed in enumerate(seeds):
            data = input_of(kind, seed)
            began = time.process_time()
            shared[:] = _SLOT.pack(index, time.monotonic(), began)
            line: dict[str, Any] = {"seed": seed}
            try:
                line["end"] = target.try_one(data)
                if seed < len(target.seeds()) and line["end"] != "read":
                    line["fact"] = "a sound input is refused"
            except BaseException as error:
                line["fact"] = _fact(error)
            line["seconds"] = round(time.process_time() - began, 3)
            line["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
            file.write(json.dumps(line) + "\n")
            file.flush()


def _now_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _fact(error: BaseException) -> str:
    """The kind of error, its text and the last places it passed in maskmend."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "maskmend" in frame.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {str(error)[:300]} at {places}"


def main() -> int:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("--count", type=int, default=400)
    running.add_argument("--first", type=int, default=0)
    running.add_argument("--kind", choices=KINDS, action="append")
    running.add_argument("-o", "--output", type=Path)
    showing = verbs.add_parser("show")
    showing.add_argument("kind", choices=KINDS)
    showing.add_argument("seed", type=int)
    showing.add_argument("-o", "--output", type=Path)
    words = parser.parse_args()
    if words.verb == "show":
        data = input_of(words.kind, words.seed)
        if words.output:
            words.output.write_bytes(data)
        with tempfile.TemporaryDirectory() as folder:
            target = Target(words.kind, Path(folder))
            target.context["turn"] = words.seed  # the same way in as in a batch that begins at 0
            print(target.try_one(data))
        return 0
    answer = run(tuple(words.kind or KINDS), words.count, words.first, words.output)
    print(json.dumps(answer, indent=1))
    return 1 if answer["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
