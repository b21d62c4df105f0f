"""A module that is loaded when something of it is used first, and not where it is imported.

trio imports `ssl`, for a stream that this program has no use for, and with it comes OpenSSL: 5 MB that neither a server
nor a client over http needs. `importlib.util.LazyLoader` does not help: there the import statement itself is a use.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType


def load_at_first_use(name: str) -> None:
    """Put a module in place that loads itself as soon as an attribute is asked for, the first time by one thread. If it
    is loaded already, so be it."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    assert spec is not None, name
    module = module_from_spec(spec)
    module.__class__ = _Waiting
    sys.modules[name] = module


class _Waiting(ModuleType):
    """Asked only for attributes that it does not have, and it has those that the import system looks at."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> object:
        self.__class__ = ModuleType  # type: ignore[assignment]  # what it is from now on
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)
