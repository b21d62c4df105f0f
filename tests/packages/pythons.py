"""The Pythons of this machine, and how a test uses the optional C module with one of any machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tapotun_trio import __version__


def pythons() -> Iterator[Path]:
    """Every Python from 3.11 on that this machine has, one of each version."""
    found: dict[str, Path] = {}
    places = [Path(sys.executable).resolve().parent, Path("/usr/bin"), Path("/usr/local/bin")]
    places += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    for place in places:
        for minor in range(11, 15):
            python = place / f"python3.{minor}"
            if python.exists():
                found.setdefault(python.name, python)
    yield from found.values()


# What --version says where the module can be loaded, and where there is none.
NATIVE: Final = f"tapotun {__version__}\nplane: native\n"
PURE: Final = f"tapotun {__version__}\nplane: python: the installed package has no native module for this machine\n"

# For python -c, with the directory to import from; without one the module must be installed.
# It works on descriptors that are ready, so that more of it than its initialisation runs.
EXERCISE: Final = """
import select, socket, sys

sys.path[:0] = sys.argv[1:]
from tapotun_trio.datapath import _pump

assert isinstance(_pump.ABI, int)
with select.epoll() as trio:
    pump = _pump.Pump(trio.fileno())
    assert pump.wait(0) == ([], _pump.EXPIRED)
    (near, far) = socket.socketpair()
    with near, far:
        pump.attach(port := pump.port(), near.fileno(), 1 << 16)
        assert pump.detach(port) == b""
    table = pump.table(((((14, 0xF0, 0x40),), ((26, 8),)),))
    assert pump.learn(table, bytes(14) + b"E" + bytes(40), _pump.TO_PORT, port)
    assert [row[2] for row in pump.verdicts(table)] == [_pump.TO_PORT]
print(f"ran {_pump.__spec__.origin}")
"""
EXERCISED: Final = "ran {}\n"
