"""The running interfaces of one process, for whoever asks from outside: status, disconnect, reload.

What stands here is read, and told to do something; its life is the supervisor's alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

import trio

from ..client.client import TunnelClient
from ..config.model import InterfaceConfig
from ..errors import TapotunError
from ..peer.boottime import BootTime, boottime
from ..server.server import TunnelServer
from ..status.model import ReloadStatus
from ..text import one_line, shorten

LAST_ERROR_CHARS: Final = 500
DISCONNECTED: Final = "disconnected by the operator"


class Record:
    """One interface, over all its restarts.

    Attributes:
        tunnel: its transport, while it runs; `run_interface` puts it here.
        ready: a server listens; a client is on its way.
        since: of `ready`, or of its contrary.
        last_error: what ended it last, one line; None: nothing has.
        doubt: why its name may not be safe from another start, as it was logged; see `host.ports.OwnedName`.
        reconfigure: changes one that runs, see `run_interface`; None: there is nothing that runs to be changed.
        scope: all of its life, restarts and pauses between them included; `ended` is set when it is over.
    """

    def __init__(self, config: InterfaceConfig) -> None:
        self.config = config
        self.tunnel: TunnelServer | TunnelClient | None = None
        self.ready = False
        self.since: BootTime = boottime()
        self.restarts = 0
        self.last_error: str | None = None
        self.doubt: str | None = None
        self.reconfigure: Callable[[InterfaceConfig], Awaitable[None]] | None = None
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    def started(self) -> None:
        """It is usable (server) or on its way (client)."""
        self.ready, self.since = True, boottime()

    def failed(self, why: str) -> None:
        """It has ended, and will be started again."""
        self.tunnel = self.reconfigure = None
        self.ready, self.since = False, boottime()
        self.last_error = one_line(shorten(why, LAST_ERROR_CHARS))
        self.restarts += 1


class NoSuchPeerError(TapotunError):
    """An interface or a client that this process does not have. The text is for the one who asked."""


class Registry:
    """The interfaces by name, in the order of the config."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self.last_reload: ReloadStatus | None = None

    def add(self, config: InterfaceConfig) -> Record:
        """Take note of an interface that is about to start."""
        record = self._records[config.name] = Record(config)
        return record

    def remove(self, name: str) -> None:
        """It will not run any more."""
        self._records.pop(name, None)

    def get(self, name: str) -> Record | None:
        """The one of that name, if there is one."""
        return self._records.get(name)

    def sort(self, names: Iterable[str]) -> None:
        """The order of the config is another one now."""
        place = {name: number for number, name in enumerate(names)}
        self._records = dict(sorted(self._records.items(), key=lambda it: place.get(it[0], len(place))))

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._records.values()))

    def select(self, names: Iterable[str]) -> list[Record]:
        """Those of these names, or all if there are none. Raises NoSuchPeerError."""
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if name not in self._records:
                raise NoSuchPeerError(f"there is no interface {name} here; it has {_list(self._records)}")
        return [self._records[name] for name in wanted] if wanted else list(self)

    def disconnect(self, interface: str | None, client: str) -> int:
        """End the streams of every session of that client's name, with a goodbye. Returns how many were connected.

        The client may come back at once: to keep it away, take its token out of the config. ``interface``: only that
        one's. Raises NoSuchPeerError.
        """
        records = self.select([] if interface is None else [interface])
        servers = [record.tunnel for record in records if isinstance(record.tunnel, TunnelServer)]
        sessions = [session for server in servers for session in server.sessions if session.client.name == client]
        if not sessions:
            where = "here" if interface is None else f"at {interface}"
            names = [session.client.name for server in servers for session in server.sessions]
            raise NoSuchPeerError(f"there is no client {client} {where}; the servers have {_list(names)}")
        return sum([session.disconnect(DISCONNECTED) for session in sessions])


def _list(names: Iterable[str]) -> str:
    """A few of them, for one line."""
    known = list(dict.fromkeys(names))
    if not known:
        return "none"
    return ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
