"""A module that is loaded when something of it is used first, and not where it is imported.

trio imports `ssl`, for a stream that this program has no use for, and with it comes OpenSSL: 5 MB that neither a server
nor a client over http needs. `importlib.util.LazyLoader` does not help: there the import statement itself is a use.
"""

from __future__ import annotations

import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Final


def lazy_import(name: str) -> None:
    """Put a module in place that loads itself as soon as an attribute is asked for. Nothing if it is loaded already."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    assert spec is not None, name
    module = module_from_spec(spec)
    module.__class__ = _Waiting
    module.__dict__[_WAITS] = True
    sys.modules[name] = module


_WAITS: Final = "__waits__"
_loading: Final = threading.RLock()


class _Waiting(ModuleType):
    """Asked only for attributes that it does not have, and it has those that the import system looks at."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> object:
        with _loading:  # who else wants it waits, but for what it imports itself, which may want it half loaded
            if self.__dict__.pop(_WAITS, False):
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]  # what it is from now on
        return ModuleType.__getattribute__(self, name)
