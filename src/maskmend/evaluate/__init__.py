"""Evaluation: metrics, per-case tables, intervals, paired tests."""

from maskmend.callable_package import make_callable

make_callable(__name__, "maskmend.evaluate.table", "evaluate")
