"""The audit beside cleanlab's segmentation module on the same probabilities: CPU time and extra memory.

    python bench/audit_speed.py [--images 200] [--size 256] [--classes 2 5] [--volumes 100] [--rounds 3] [--files]

Each measurement runs in a process of its own, after its libraries are loaded and the images are made: what is counted
is the work. maskmend: fitting (what is usual here, with the figures of up to 400 cases), judging (opinion and noise map
of cases that it was fitted to) and judging further cases (figures too, as `audit --like` does) apart. cleanlab: label
quality scores and label issues, n_jobs=1. Volumes are made one at a time. With --files also what a user waits for, from
files to answers: the whole verb `audit --probs`, with one process and with all cores, the same like an earlier audit
(all cores), and a script that reads the same files for cleanlab.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import ndimage

TABLE = Path(__file__).parents[1] / "docs" / "results" / "audit" / "speed.json"
PROGRAMS = ("maskmend", "cleanlab")


def made(number: int, shape: Sequence[int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (K, *S) float32 of blobs, and a mask (*S) that wavers about them; every fifth is moved."""
    rng = np.random.default_rng(number)
    grid = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    wobble = ndimage.zoom(rng.standard_normal([8] * len(shape)), [n / 8 for n in shape], order=1)
    logits, label = np.zeros((classes, *shape), np.float32), np.zeros(shape, np.int64)
    for k in range(1, classes):
        centre, radius = rng.uniform(-0.5, 0.5, len(shape)), rng.uniform(0.1, 0.3)
        off = 0.1 * (number % 5 == 0)
        near, drawn = (
            radius - np.sqrt(sum((axis - c - d) ** 2 for axis, c in zip(grid, centre, strict=True)))
            for d in (0, off)
        )
        logits[k] = 40 * near
        label[drawn + 0.015 * wobble > 0] = k
    soft = np.exp(logits - logits.max(axis=0))
    return soft / soft.sum(axis=0), label


def maskmend(images: Callable[[Sequence[str]], Iterator[Any]], ids: Sequence[str]) -> dict[str, float]:
    """CPU seconds of fitting, of judging the same cases, and of judging them as if they were others."""
    from maskmend.audit.estimate import fit

    began = time.process_time()
    auditor = fit(images, ids)
    fitted = time.process_time()
    odds = [auditor.judge(look).odds for look in images(ids)]
    judged = time.process_time()
    assert np.isfinite(odds).all()
    stranger = replace(auditor, seen={})
    assert [stranger.judge(look).odds for look in images(ids)] == odds
    return {"fit": fitted - began, "judge": judged - fitted, "further": time.process_time() - judged}


def measure_images(program: str, count: int, size: int, classes: int) -> dict[str, float]:
    """One program on images that are all in memory, as cleanlab needs them."""
    pairs = [made(i, (size, size), classes) for i in range(count)]
    probs, labels = np.stack([p for p, _ in pairs]), np.stack([y for _, y in pairs])
    del pairs
    if program == "maskmend":
        import torch  # noqa: F401
        from scipy import optimize  # noqa: F401

        from maskmend.audit import estimate, injection  # noqa: F401
        from maskmend.audit.look import look_at

        before = peak_mb()
        times = maskmend(
            lambda names: (look_at(n, probs[int(n)], labels[int(n)], (1.0, 1.0)) for n in names),
            [str(i) for i in range(count)],
        )
    else:
        from cleanlab.segmentation.filter import find_label_issues
        from cleanlab.segmentation.rank import get_label_quality_scores

        before, began = peak_mb(), time.process_time()
        get_label_quality_scores(labels, probs, verbose=False)
        middle = time.process_time()
        find_label_issues(labels, probs, n_jobs=1, verbose=False)
        times = {"quality": middle - began, "issues": time.process_time() - middle}
    return times | {"extra_mb": peak_mb() - before}


def write_files(folder: Path, count: int, size: int, classes: int) -> None:
    """A data set of images, masks and probabilities."""
    from PIL import Image

    for name in ("images", "labels", "probs"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        probs, label = made(number, (size, size), classes)
        noise = np.random.default_rng(number).normal(0, 12, label.shape)
        grey = 100 + 40 * np.tensordot(np.arange(classes), probs, 1) + noise
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(folder / f"images/{number:05d}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / f"labels/{number:05d}.png")
        np.savez(folder / f"probs/{number:05d}.npz", probabilities=probs)


def cleanlab_from_files(folder: Path) -> None:
    """What a user of cleanlab would write."""
    from cleanlab.segmentation.filter import find_label_issues
    from cleanlab.segmentation.rank import get_label_quality_scores
    from PIL import Image

    labels = np.stack([np.array(Image.open(one)) for one in sorted((folder / "labels").iterdir())])
    probs = np.stack([np.load(one)["probabilities"] for one in sorted((folder / "probs").iterdir())])
    get_label_quality_scores(labels.astype(int), probs, verbose=False)
    find_label_issues(labels.astype(int), probs, n_jobs=1, verbose=False)


def measure_files(count: int, size: int, classes: int, rounds: int) -> list[dict[str, float]]:
    """Seconds by the clock, in turns."""
    from maskmend.machine import usable_cores

    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        write_files(folder, count, size, classes)
        audit = [
            sys.executable,
            "-m",
            "maskmend",
            "audit",
            str(folder),
            "--probs",
            str(folder / "probs"),
            "-o",
        ]
        found = []
        for number in range(rounds):
            times = {}
            for name, command in {
                "one": [*audit, str(Path(place) / f"one{number}"), "--processes", "1"],
                "all": [*audit, str(Path(place) / f"all{number}")],
                "like": [*audit, str(Path(place) / f"like{number}"), "--like", str(Path(place) / "all0")],
                "cleanlab": [sys.executable, __file__, "--one", f"files {folder}"],
            }.items():
                began = time.monotonic()
                subprocess.run(command, check=True, capture_output=True, env=environment)
                times[name] = time.monotonic() - began
            found.append(times | {"cores": float(usable_cores())})
        return found


def measure_volumes(count: int, size: int) -> dict[str, float]:
    """The audit on volumes made as they are asked for, and its memory after a tenth of them and at the end."""
    from maskmend.audit.estimate import fit
    from maskmend.audit.look import look_at

    shape, ids = (size,) * 3, [str(i) for i in range(count)]
    making = 0.0

    def images(names: Sequence[str]) -> Iterator[Any]:
        nonlocal making
        for name in names:
            began = time.process_time()
            probs, label = made(int(name), shape, 2)
            making += time.process_time() - began
            yield look_at(name, probs, label, (1.0, 1.0, 1.0))

    began = time.process_time()
    auditor = fit(images, ids)
    fitted, tenth = time.process_time() - began - making, 0.0
    for number, look in enumerate(images(ids), 1):
        auditor.judge(look)
        tenth = peak_mb() if number == max(1, count // 10) else tenth
    judged = time.process_time() - began - making - fitted
    return {"fit": fitted, "judge": judged, "peak_mb_at_a_tenth": tenth, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--volumes", type=int, default=100)
    parser.add_argument("--volume-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="further rounds; the table keeps earlier ones")
    parser.add_argument("--files", action="store_true", help="time the whole verb as well")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, *numbers = given.one.split()
        if what == "files":
            cleanlab_from_files(Path(numbers[0]))
            return
        figures = (
            measure_volumes(*map(int, numbers))
            if what == "volumes"
            else measure_images(what, *map(int, numbers))
        )
        print(json.dumps(figures))
        return
    known = json.loads(given.table.read_text()) if given.table.exists() else {}
    for classes in given.classes:
        what = f"{given.images} {given.size} {classes}"
        for name in PROGRAMS * given.rounds:  # in turns, so that both meet the same load
            known.setdefault(f"{name} {what}", []).append(_apart(f"{name} {what}"))
            _keep(given.table, known)
        if given.files:
            what = f"files {given.images} {given.size} {classes}"
            known.setdefault(what, []).extend(measure_files(given.images, given.size, classes, given.rounds))
            _keep(given.table, known)
    for _ in range(given.rounds if given.volumes else 0):
        what = f"volumes {given.volumes} {given.volume_size}"
        known.setdefault(what, []).append(_apart(what))
        _keep(given.table, known)
    print(report(known))


def report(known: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: the median of the rounds, and how many times faster maskmend is."""
    lines = [
        "| images | cleanlab: scores + issues | maskmend: judging | further cases | fitting | judging is faster by "
        "| further cases | with fitting | more memory: cleanlab | maskmend |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in (key for key in known if key.startswith("maskmend ")):
        _, images, size, classes = key.split()
        other = f"cleanlab {images} {size} {classes}"
        if other not in known:
            continue
        ours, theirs = _medians(known[key]), _medians(known[other])
        total = theirs["quality"] + theirs["issues"]
        lines.append(
            f"| {images} of {size}^2, {classes} classes | {theirs['quality']:.2f} + {theirs['issues']:.2f} s "
            f"| {ours['judge']:.2f} s | {ours['further']:.2f} s | {ours['fit']:.2f} s | {total / ours['judge']:.1f} "
            f"| {total / ours['further']:.1f} "
            f"| {total / (ours['judge'] + ours['fit']):.1f} | {theirs['extra_mb']:.0f} MB | {ours['extra_mb']:.0f} MB |"
        )
    files = [key for key in known if key.startswith("files ")]
    if files:
        heading = "| from files, by the clock | cleanlab | `audit --probs`, one process | all cores "
        lines += ["", heading + "| `--like`, all cores |", "|---|---|---|---|---|"]
    for key in files:
        _, images, size, classes = key.split()
        each = _medians(known[key])
        lines.append(
            f"| {images} of {size}^2, {classes} classes | {each['cleanlab']:.0f} s | {each['one']:.0f} s "
            f"| {each['all']:.0f} s ({each['cores']:.0f} cores) | {each['like']:.0f} s |"
        )
    for key in (key for key in known if key.startswith("volumes ")):
        _, count, size = key.split()
        each = _medians(known[key])
        lines += [
            "",
            f"{count} volumes of {size}^3, 2 classes, one at a time: fitting {each['fit']:.0f} s, judging "
            f"{each['judge']:.0f} s; it held {each['peak_mb_at_a_tenth']:.0f} MB at most when a tenth was judged, "
            f"{each['peak_mb']:.0f} MB at the end.",
        ]
    return "\n".join(lines) + "\n"


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.median([one[name] for one in rounds])) for name in rounds[0]}


def _keep(table: Path, known: Mapping[str, Any]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(known, indent=1) + "\n")
    table.with_suffix(".md").write_text(report(known))


def _apart(what: str) -> dict[str, float]:
    answer = subprocess.run(
        [sys.executable, __file__, "--one", what], capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
