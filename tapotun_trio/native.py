"""The optional native part, for the packages above `datapath`: `PUMP`, or None where it was not built.

It is one C module, `datapath/_pump`, so that there is one file to build and to ship. What it has for packages above
`datapath`, masking, needs nothing of that package. So it is loaded by name here.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Final


def _load() -> ModuleType | None:
    try:
        return import_module(f"{__package__}.datapath._pump")
    except ImportError:  # not built for this machine
        return None


PUMP: Final = _load()
