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

The memory target of bench/targets.py is a client of at most 36 MB, and it uses 35 MB (docs/performance.md), so the
difference of 11 MB decides. The upper bound of pyroute2 in pyproject.toml guards against a version whose submodules
need their package.
"""

from __future__ import annotations

import importlib.util
import sys
import types


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
