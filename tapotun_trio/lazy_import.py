"""Modules that are loaded when an attribute of theirs is first used, rather than by the import statement.

trio imports `ssl` for a stream class that this program does not use. That loads OpenSSL: 5 MB that neither a server nor
a client over http needs. `importlib.util.LazyLoader` does not help, because with it the import statement counts as a
use.
"""

from __future__ import annotations

import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Final


def lazy_import(name: str) -> None:
    """Register a module that loads itself when one of its attributes is used.

    Does nothing if the module is already loaded, or if this Python does not have it. In the latter case the import
    statement will fail.
    """
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _LazyModule
    module.__dict__[_NOT_LOADED] = True
    sys.modules[name] = module


_NOT_LOADED: Final = "__not_loaded__"
_loading: Final = threading.RLock()


class _LazyModule(ModuleType):
    """Loads the module when an attribute is missing. The attributes that the import system reads are there already."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> object:
        # Other threads wait until the module is loaded. This thread may use it half loaded, in the modules that it
        # imports.
        with _loading:
            if self.__dict__.pop(_NOT_LOADED, False):
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]  # an ordinary module from now on
        return ModuleType.__getattribute__(self, name)
