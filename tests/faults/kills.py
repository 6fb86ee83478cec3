"""Kill a verb with SIGKILL at a random instant, call it again, and compare with what nothing disturbed.

`python tests/faults/kills.py --trials 210` spreads trials over train, audit, benchmark, predict, the building of a
cache, check --fix and corrupt. The instant is drawn in one of three ways: uniformly over the time the verb takes;
before one of the changes it makes to the file system (a file opened for writing, a rename, a deletion), so that
every gap between two changes is hit; and up to 3 ms after a file was opened for writing, so that half-written files
are. One trial in four kills the second call too. Every call is a fork of one process that has imported everything,
so that a trial takes seconds.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before NumPy and torch: a fork has none of its parent's threads and waits for them.
os.environ["OMP_NUM_THREADS"] = "1"

import yaml

SMALL = [
    "device=cpu", "train.batch=2", "train.patch=[32, 32]", "train.threads=1", "train.picture_every=6",
    "network.options={base: 4, limit: 8}",
]  # fmt: skip
TIMES = {
    "seconds", "cpu_seconds", "total_seconds", "computing_hours", "last_call", "command",
    "report", "table",  # paths of theirs
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
VERBS = ("train", "audit", "benchmark", "predict", "cache", "fix", "corrupt")
WAYS = ("instant", "change", "write")
PATIENCE_S = 600.0  # of a busy machine; nothing here takes a minute on an idle one


@dataclass(frozen=True)
class Verb:
    """Something to kill.

    Args:
        call: does it, given where the results go; its exit code.
        results: the files, relative to that place, that must be equal to the last byte.
        tables: JSON and CSV files that must be equal but for `TIMES`.
    """

    call: Callable[[Path], int]
    results: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What one trial led to."""

    verb: str
    way: str
    killed: int = 0  # calls that SIGKILL ended
    faults: list[str] = field(default_factory=list)
    at: str = ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--json", type=Path, help="write the counts here")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="maskmend-kills-"))
    try:
        verbs = {name: verb for name, verb in _verbs(place).items() if name in given.verbs.split(",")}
        outcomes = list(_trials(verbs, place, given.trials, given.seed))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return _told(outcomes, given, time.monotonic() - began)


def _told(outcomes: list[Outcome], given: argparse.Namespace, seconds: float) -> int:
    counts: dict[str, dict[str, int]] = {}
    for one in outcomes:
        row = counts.setdefault(one.verb, Counter())
        row["trials"] += 1
        row["kills"] += one.killed
        row["failed"] += bool(one.faults)
    for name, row in counts.items():
        print(f"{name:<10} {row['trials']:>4} trials {row['kills']:>4} kills {row['failed']:>4} failed")
    print(f"{len(outcomes)} trials, seed {given.seed}, {seconds:.0f} s")
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "seconds": round(seconds), "verbs": counts}))
    return int(any(one.faults for one in outcomes))


def _trials(verbs: dict[str, Verb], place: Path, count: int, seed: int) -> Iterator[Outcome]:
    references: dict[str, tuple[Path, float, int]] = {}
    before = _content(place / "data")
    for number in range(count):  # by turns, so that a part of the trials is a fair part
        name = list(verbs)[number % len(verbs)]
        if name not in references:
            references[name] = _reference(verbs[name], place / "reference" / name)
        draw = random.Random(f"{seed} {number}")
        outcome = _trial(verbs[name], name, references[name], place / "trial", draw)
        if _content(place / "data") != before:
            outcome.faults.append("the data set was changed")
        said = "; ".join(outcome.faults) or "as if nothing had been"
        print(f"{number:>3} {name:<9} {outcome.killed} kills, {outcome.way} {outcome.at}: {said}", flush=True)
        yield outcome


def _reference(verb: Verb, out: Path) -> tuple[Path, float, int]:
    """The undisturbed call: its folder, its seconds and how many changes to the file system it made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    child = Child(verb.call, out)
    began, changes = time.monotonic(), 0
    code = None
    while code is None:
        changes += child.changes(0.2)
        code = child.ended()
    if code != 0:
        raise SystemExit(f"the undisturbed call ended with {code}:\n{child.log()}")
    for name in child.imported():  # once here instead of in every fork
        with suppress(Exception):
            importlib.import_module(name)
    return out, time.monotonic() - began, changes + child.changes(0)


def _trial(
    verb: Verb, name: str, reference: tuple[Path, float, int], place: Path, draw: random.Random
) -> Outcome:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    out, outcome = place / "out", Outcome(name, draw.choice(WAYS))
    faults = outcome.faults
    _, seconds, changes = reference
    for _ in range(1 + (draw.random() < 0.25)):
        child = Child(verb.call, out)
        outcome.at += _kill(child, outcome.way, draw, seconds, changes)
        code = child.wait()
        outcome.killed += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            faults.append(f"a call ended with {code}:\n{child.log()}")
        faults += _survivors(child)
    child = Child(verb.call, out)
    code = child.wait()
    if code != 0:
        faults.append(f"the last call ended with {code}:\n{child.log()}")
        return outcome
    faults += _survivors(child)
    faults += _differences(verb, reference[0], out)
    faults += _strays(out)
    faults += [f"left in the temporary place: {path.name}" for path in child.temporary.glob("*")
               if not path.name.startswith("maskmend-phantoms")]  # fmt: skip
    faults += [f"left among the phantoms: {path.name}"
               for path in child.temporary.glob("maskmend-phantoms*/.*")]  # fmt: skip
    return outcome


def _kill(child: Child, way: str, draw: random.Random, seconds: float, changes: int) -> str:
    """Wait for the drawn instant and kill; says which it was."""
    if way == "instant":
        after = draw.uniform(0, seconds)
        child.sleep(after)
        child.kill()
        return f"after {after:.3f} s "
    after, pause = draw.randrange(changes), draw.uniform(0, 0.003) if way == "write" else 0.0
    deadline = time.monotonic() + PATIENCE_S
    seen = 0
    while seen <= after and child.ended() is None and time.monotonic() < deadline:
        seen += child.step()
    if way == "write":
        child.go_on()
        time.sleep(pause)
    child.kill()
    return f"at change {after} of {changes} + {1000 * pause:.1f} ms "


class Child:
    """A forked call of a verb that reports each change to the file system before it makes it.

    Args:
        call: what it does.
        out: where its results go; log and temporary files go beside it.
    """

    def __init__(self, call: Callable[[Path], int], out: Path) -> None:
        self.temporary, self._log = out.parent / f"{out.name}-tmp", out.parent / f"{out.name}.log"
        self.temporary.mkdir(exist_ok=True)
        self._reports, told = os.pipe()
        leave, self._leave = os.pipe()
        self._code: int | None = None
        self._waiting = False
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reports)
            os.close(self._leave)
            _be_child(call, out, self.temporary, self._log, told, leave)
        os.close(told)
        os.close(leave)

    def step(self) -> int:
        """Let it go on to its next change and wait for that; 1 when it stands before one."""
        self.go_on()
        ready, _, _ = select.select([self._reports], [], [], 0.2)
        if ready and os.read(self._reports, 1):
            self._waiting = True
            return 1
        return 0

    def go_on(self) -> None:
        """Let it make the change it reported."""
        if self._waiting:
            self._waiting = False
            with suppress(BrokenPipeError):  # it was killed
                os.write(self._leave, b".")

    def changes(self, seconds: float) -> int:
        """Let it run on for a while; how many changes it made."""
        deadline, seen = time.monotonic() + seconds, 0
        while True:
            ready, _, _ = select.select([self._reports], [], [], max(0.0, deadline - time.monotonic()))
            if not ready or not os.read(self._reports, 1):
                return seen
            seen += 1
            self._waiting = True
            self.go_on()

    def sleep(self, seconds: float) -> None:
        """Let it run for so long, or to its end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.ended() is None:
            self.changes(min(0.05, max(0.0, deadline - time.monotonic())))

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                os.close(self._leave)
        return self._code

    def wait(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while (code := self.ended()) is None:
            if time.monotonic() > deadline:
                self.kill()
            self.changes(0.05)
        os.close(self._reports)
        return code

    def kill(self) -> None:
        if self.ended() is None:
            os.kill(self.pid, signal.SIGKILL)

    def imported(self) -> list[str]:
        """The modules it had in the end."""
        names: list[str] = json.loads(self._log.with_suffix(".modules").read_text())
        return [name for name in names if name not in sys.modules and "__main__" not in name]

    def log(self) -> str:
        """The end of what it said."""
        return self._log.read_text()[-3000:]


def _be_child(
    call: Callable[[Path], int], out: Path, temporary: Path, log: Path, told: int, leave: int
) -> None:
    """Never returns."""
    code = 70
    try:
        os.setsid()
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        tempfile.tempdir = str(temporary)
        me, folder = os.getpid(), str(out.parent)

        def hook(event: str, values: tuple[Any, ...]) -> None:
            change = event in CHANGES or (
                event == "open"
                and isinstance(values[2], int)
                and values[2] & WRITES
                and not isinstance(values[0], int)
            )
            if change and str(values[0]).startswith(folder) and os.getpid() == me:
                os.write(told, b".")
                os.read(leave, 1)

        sys.addaudithook(hook)
        code = call(out)
        log.with_suffix(".modules").write_text(json.dumps(sorted(sys.modules)))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _survivors(child: Child) -> list[str]:
    """Processes that a killed call started and that do not end by themselves."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return []
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    return ["its worker processes outlived it by 15 s"]


def _strays(out: Path) -> list[str]:
    hidden = [path for path in out.rglob("*") if path.name.startswith(".") or ".tmp" in path.name]
    left = [path for path in out.rglob("*") if path.name in ("LOCK", "state.new.pt")]
    beside = list(out.parent.glob(".*"))
    return [f"left behind: {path.relative_to(out.parent)}" for path in (*hidden, *left, *beside)]


def _differences(verb: Verb, expected: Path, found: Path) -> list[str]:
    faults = []
    names = {str(p.relative_to(root)) for root in (expected, found) for p in root.rglob("*") if p.is_file()}
    for name in sorted(names):
        exact = any(Path(name).match(pattern) for pattern in verb.results)
        table = any(Path(name).match(pattern) for pattern in verb.tables)
        if not exact and not table:
            continue
        one, two = expected / name, found / name
        if not one.exists() or not two.exists():
            faults.append(f"{name} is {'missing' if one.exists() else 'too many'}")
        elif exact and one.read_bytes() != two.read_bytes():
            faults.append(f"{name} differs")
        elif table and (difference := _first_difference(_facts(one), _facts(two))):
            faults.append(f"{name} differs: {difference}")
    return faults


def _facts(path: Path) -> Any:
    """Content without clock times."""
    text = path.read_text()
    if path.suffix == ".csv":
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(io.StringIO(text))]
    return _timeless(json.loads(text))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _first_difference(one: Any, two: Any, where: str = "") -> str:
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return next((d for k in one if (d := _first_difference(one[k], two[k], f"{where}.{k}"))), "")
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return next(
            (
                d
                for i, (a, b) in enumerate(zip(one, two, strict=True))
                if (d := _first_difference(a, b, f"{where}[{i}]"))
            ),
            "",
        )
    return "" if one == two else f"{where}: {str(one)[:80]} | {str(two)[:80]}"


def _content(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _verbs(place: Path) -> dict[str, Verb]:
    """The seven, on phantoms; everything heavy is imported here, once."""
    import matplotlib

    matplotlib.use("agg")
    import torch

    torch.set_num_threads(1)
    import maskmend.audit.run
    import maskmend.benchmark.report
    import maskmend.predict.run
    import maskmend.report
    import maskmend.train.run
    from maskmend.cli import main as maskmend
    from maskmend.config import load
    from maskmend.data.phantom import make_phantom

    data = make_phantom(place / "data" / "phantoms", train=10, test=0, shape=(32, 32))
    faulty = _faulty(place / "data" / "faulty")
    (place / "bench.yaml").write_text(yaml.safe_dump(_benchmark()))
    training = [*SMALL, "train.steps=12", "train.checkpoint_every=4"]
    ready = place / "ready"
    prepared = Child(lambda out: maskmend(["train", str(data), "-o", str(out), *training]), ready)
    if prepared.wait():
        raise SystemExit(prepared.log())
    for name in prepared.imported():
        with suppress(Exception):
            importlib.import_module(name)

    def train(out: Path) -> int:
        begun = ["--resume"] if (out / "run.json").exists() else []  # as the message of a second call says
        return maskmend(["train", str(data), "-o", str(out), *begun, "train.workers=1", *training])

    def audit(out: Path) -> int:
        settings = [*SMALL, "train.steps=4", "train.checkpoint_every=2", "method.name=supervised"]
        return maskmend(["audit", str(data), "-o", str(out), "--folds", "2", *settings])

    def benchmark(out: Path) -> int:
        return maskmend(["benchmark", str(place / "bench.yaml"), "-o", str(out), "--workers", "0"])

    def predict(out: Path) -> int:
        words = ["predict", str(ready), str(data / "images"), "-o", str(out)]
        return maskmend([*words, "--save", "labels,probs,uncertainty"])

    def cache(out: Path) -> int:
        from maskmend.data.cache import Cache
        from maskmend.data.dataset import find_cases
        from maskmend.train.run_folder import Run

        Cache.open(find_cases(data).cases, Run.open(ready).plan, out, in_ram_bytes=0)
        return 0

    def fix(out: Path) -> int:
        if out.exists():  # it is there only once it is complete, and a mended copy replaces nothing
            return 0
        found = maskmend(["check", str(faulty), "--fix", str(out)])
        return 0 if found == 3 else found or 70  # 3: there are faults, mended in the copy

    def corrupt(out: Path) -> int:
        return maskmend(["corrupt", str(data), "-o", str(out), "--overwrite", "--rate", "0.5"])

    assert load(None, training)  # a misspelt key would otherwise look like a kill
    return {
        "train": Verb(train, ("model.safetensors", "metrics.jsonl", "plan.json", "fingerprint.json", "config.yaml",
                              "pictures/*"), ("run.json",)),
        "audit": Verb(audit, ("audit.csv", "parts.csv", "learnt.safetensors", "noise/*", "suggested/*",
                              "folds/*/model.safetensors", "folds/*/metrics.jsonl"), ("audit.json",)),
        "benchmark": Verb(benchmark, ("benchmark.yaml",), ("runs/*.json", "*.csv", "benchmark.json")),
        "predict": Verb(predict, ("*",)),
        "cache": Verb(cache, ("*",)),
        "fix": Verb(fix, ("*",)),
        "corrupt": Verb(corrupt, ("*",)),
    }  # fmt: skip


def _faulty(root: Path) -> Path:
    """Six volumes; the masks of two lie on another grid, two images hold NaN."""
    import nibabel
    import numpy as np

    for number in range(6):
        rng = np.random.default_rng(number)
        mask = np.zeros((12, 12, 8), np.uint8)
        mask[3:9, 3:9, 2:6] = 1
        image = (rng.normal(size=mask.shape) + 5 * mask).astype(np.float32)
        image[0, 0, 0] = np.nan if number in (2, 3) else 0
        finer = number in (0, 1)
        shown = mask.repeat(2, 0) if finer else mask
        affine = np.diag([0.5 if finer else 1, 1, 2, 1.0])
        affine[0, 3] = -0.25 if finer else 0
        for part, voxels, place in (("images", image, np.diag([1, 1, 2, 1.0])), ("labels", shown, affine)):
            (root / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, place), root / part / f"v{number}.nii.gz")
    return root


def _benchmark() -> dict[str, Any]:
    return {
        "data": {"toy": {"phantom": {"cases": 12, "shape": [32, 32]}, "train": 8, "test": 4}},
        "noise": {"wide": {"kind": "dilate", "radius_mm": [1, 2]}},
        "methods": ["supervised"],
        "seeds": [0, 1],
        "clean": "none",
        "curve_points": 1,
        "settings": {
            "train": {"steps": 6, "batch": 2, "patch": [32, 32]},
            "network": {"options": {"base": 4, "limit": 8}},
            "device": "cpu",
        },
    }


if __name__ == "__main__":
    sys.exit(main())
