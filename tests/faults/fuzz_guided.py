"""Fuzzing led by coverage (atheris): what reaches a new branch of maskmend's readers is kept and spoilt further.

    python tests/faults/fuzz_guided.py dataset.json --runs 5000
    python tests/faults/fuzz_guided.py dataset.json --again crash-0123abcd     # read one input again

What counts as failure is what `fuzz.py` counts, but for memory: the whole process may hold 3 GiB. The first failure
ends the run with its traceback; the input stays in the folder given by --keep.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import atheris

with atheris.instrument_imports(include=["maskmend"]):
    import maskmend.config
    import maskmend.data.check
    import maskmend.data.dataset
    import maskmend.data.dicom
    import maskmend.data.fingerprint
    import maskmend.data.itk
    import maskmend.data.nifti
    import maskmend.data.raster
    import maskmend.noise.description
    import maskmend.predict.run
    import maskmend.train.run  # noqa: F401

from fuzz_targets import KINDS, Target, input_of

SECONDS = 60  # of the clock: a busy machine stretches it
MIB = 3072
SPOILT = 40  # inputs of the blind fuzzer that are given to begin with


def main() -> None:
    """The command line described above; atheris ends the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("."), help="where an input that fails is left")
    parser.add_argument("--again", type=Path, help="read this input and no other")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        target = Target(given.kind, Path(place) / "work")
        target.folder.mkdir()
        if given.again:
            print(target.try_one(given.again.read_bytes()))
            return
        corpus = Path(place) / "corpus"
        corpus.mkdir()
        sound = len(target.seeds())
        for number in (*range(sound), *range(1000, 1000 + SPOILT)):
            (corpus / str(number)).write_bytes(input_of(given.kind, number))
        words = [
            sys.argv[0], str(corpus), f"-runs={given.runs}", f"-seed={given.seed}", f"-timeout={SECONDS}",
            f"-rss_limit_mb={MIB}", "-max_len=65536", f"-artifact_prefix={given.keep.absolute()}/", "-verbosity=0",
            "-print_final_stats=1", "-reload=0",  # else a slow machine reads some inputs twice
        ]  # fmt: skip
        atheris.Setup(words, lambda data: target.try_one(data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
