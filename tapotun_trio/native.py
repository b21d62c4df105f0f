"""The optional native part, for the packages above `datapath`: `PUMP`, or None where it was not built.

It is one C module, `datapath/_pump`, so that there is one file to build and to ship. What it has for packages above
`datapath`, masking and TLS records, needs nothing of that package. So it is loaded by name here.
"""

from __future__ import annotations

from importlib import import_module
from mmap import mmap
from types import ModuleType
from typing import Final, Protocol


class Tls(Protocol):
    """The keys of a TLS 1.3 connection, and what they seal and open: `_pump.Tls`."""

    def seal(self, data: bytes | memoryview, kind: int = ...) -> bytes: ...
    def open(self, raw: mmap, start: int, stop: int, into: memoryview) -> tuple[int, int, int]: ...
    def take(self, raw: mmap, start: int, stop: int) -> tuple[int, int, bytes]: ...
    def update(self, answer: bool) -> None: ...
    def numbers(self) -> tuple[int, int]: ...


def _load() -> ModuleType | None:
    try:
        return import_module(f"{__package__}.datapath._pump")
    except ImportError:  # not built for this machine
        return None


PUMP: Final = _load()
