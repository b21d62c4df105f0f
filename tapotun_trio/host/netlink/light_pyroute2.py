"""Lets submodules of pyroute2 be imported without running the package's ``__init__``.

That ``__init__`` imports everything pyroute2 has (NDB, IPDB, nl80211, asyncio, ...); this program needs its netlink
constants and four message classes, which live in submodules and use nothing from the ``__init__``. Measured on
2026-11-29 with pyroute2 0.9.7, Python 3.11 and trio already imported:

=====================================  =======================  ========
import                                 RSS added                CPU time
=====================================  =======================  ========
through the package's ``__init__``     12.3 MB (total 38.7 MB)  110-140 ms
the submodules alone, as here          1.2 MB (total 27.6 MB)   16 ms
=====================================  =======================  ========

The memory target of bench/targets.py is a client of at most 36 MB, so the difference of 11 MB decides. The upper bound
of pyroute2 in pyproject.toml guards against a version whose submodules need their package.

One of the submodules, ``pyroute2.config``, imports `multiprocessing`, only to give other names to three of its objects
for other parts of pyroute2. Without that a process has 0.6 MB less and starts 3 ms earlier (2026-12-01).
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


def install() -> None:
    """Put an empty module with pyroute2's ``__path__`` where Python looks for the imported package.

    Does nothing if the program has imported the real package already.

    Raises:
        ModuleNotFoundError: pyroute2 is not installed.
    """
    if "pyroute2" in sys.modules:
        return
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("pyroute2 is not installed", name="pyroute2")
    package = types.ModuleType("pyroute2")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["pyroute2"] = package
    with _no_multiprocessing():
        importlib.import_module("pyroute2.config")


@contextmanager
def _no_multiprocessing() -> Iterator[None]:
    """Within the block, `multiprocessing` is a stand-in, unless it is loaded already. Whatever is in it is None:
    another version of pyroute2 may take other objects from it."""
    if "multiprocessing" in sys.modules:
        yield
        return
    stand_in = types.ModuleType("multiprocessing")
    vars(stand_in)["__getattr__"] = _nothing
    sys.modules["multiprocessing"] = stand_in
    try:
        yield
    finally:
        del sys.modules["multiprocessing"]


def _nothing(name: str) -> None:
    if name.startswith("__"):  # which Python itself looks for, such as the __path__ of a package
        raise AttributeError(name)
