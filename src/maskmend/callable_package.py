"""Lets `maskmend.train` be both the package and the verb.

`maskmend.train(...)` is what one wants to type, `maskmend.train.run` is where its code lives. As soon as
anything imports the latter, Python binds the package to the former's name; so the package itself is callable.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, home: str, function: str) -> None:
    """Calling the module `package` calls `function` of the module `home`, which is imported only then."""

    class Verb(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.__wrapped__(*args, **kwargs)

        @property
        def __wrapped__(self) -> Any:  # also shows `help` and `inspect` the real signature
            return getattr(import_module(home), function)

    sys.modules[package].__class__ = Verb
