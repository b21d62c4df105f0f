"""Names of running interfaces, clients and processes, for completions. A process that does not answer is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ..control.client import ask_all
from ..control.protocol import StatusArguments
from ..control.socket_path import control_directories, find, name_of
from ..errors import HostError, PeerError
from ..status.model import ProcessStatus
from ..text import one_line

KINDS: Final = ("interfaces", "clients", "processes")
_ANSWER_S: Final = 1.0  # the user waits at a prompt


def names(kind: str) -> list[str]:
    """The names of one of `KINDS`, sorted, without duplicates."""
    return sorted({one_line(name) for name in _names(kind) if name})


def _names(kind: str) -> Iterator[str]:
    paths = find(control_directories(os.environ))
    for path, process in ask_all(paths, "status", StatusArguments(), ProcessStatus, timeout_s=_ANSWER_S):
        if isinstance(process, HostError | PeerError):
            continue  # completion at a prompt cannot show errors
        if kind == "processes":
            yield name_of(path)
            continue
        for interface in process.interfaces:
            if kind == "interfaces":
                yield interface.name
            elif interface.kind == "server":
                yield from (peer.name for peer in interface.peers)
