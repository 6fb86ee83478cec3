"""Methods compared fairly: one grid of data x noise x rate x method x seed, one table with intervals."""

from maskmend.callable_package import make_callable

make_callable(__name__, "maskmend.benchmark.run", "benchmark")
