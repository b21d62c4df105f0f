"""A pytest plugin: the tests get the module that TAPOTUN_PUMP names instead of the one that is built for use.

``make sanitize`` builds one with sanitizers, and runs the plane's tests with this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Final

NAME: Final = "tapotun_trio.datapath._pump"


class Finder:
    """Finds that module, and nothing else."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_loader(name, ExtensionFileLoader(name, os.environ["TAPOTUN_PUMP"])) if name == NAME else None


sys.meta_path.insert(0, Finder)
from tapotun_trio.datapath import plane  # noqa: E402 - found by the finder

assert plane.BUILT, "it cannot be loaded"
assert sys.modules[NAME].__spec__ is not None
assert sys.modules[NAME].__file__ == os.environ["TAPOTUN_PUMP"]
