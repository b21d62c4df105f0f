"""The running interfaces of one process by name, for status, disconnect and reload.

Everything here reads an interface or sends it a command. Only the supervisor starts and ends one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from ..config.model import InterfaceConfig
from ..cooperative import Steps
from ..errors import TapotunError
from ..host.net.resolver import Resolver
from ..log import interface_logger
from ..netconf.repairer import Health
from ..peer.boottime import BootTime, boottime
from ..status.model import ReloadStatus, UpdateStatus
from ..text import one_line, shorten
from .tunnel import Tunnel

if TYPE_CHECKING:
    from ..server.segment import MacTable

LAST_ERROR_CHARS: Final = 500
DISCONNECTED: Final = "disconnected by the operator"
_MAX_LISTED: Final = 8  # names in one error


class Record:
    """One interface, across all its restarts.

    Attributes:
        tunnel: the transport while the interface runs; `run_interface` sets it.
        ready: whether a server can be reached, or a client tries to connect.
        since: when ``ready`` last changed.
        last_error: the error that last ended the interface, on one line; None: there was none.
        doubt: why another start of this program might not notice this interface (the logged text); see
            `host.interfaces.OwnedName`.
        last_seen: when each peer, by its name, was last heard before the most recent end of the tunnel.
        reconfigure: changes the running interface; set by `run_interface`. None: the interface does not run.
        repair: puts back what other programs have removed from the running interface (`Reconciler.repair`); set by
            `run_interface`. None: there is no device.
        mac_table: makes the table of MAC addresses of a server's TAP interface (`Segment.table_in_steps`); set by
            `run_interface`. None: there is none.
        mac: the MAC address of the TAP interface; set by `run_interface`. None: there is none.
        health: what is missing of the interface on this machine.
        ipv6_refused: whether a client's interface could not start only because IPv6 was switched off on it.
        scope: the whole life of the interface, with its restarts and the pauses between them. ``ended`` is set when it
            is over.
        resolver: remembers the addresses at which servers were found, across restarts of the interface. The name server
            may be behind the tunnel.
    """

    def __init__(self, config: InterfaceConfig, resolver: Resolver | None = None) -> None:
        self.config = config
        self.resolver = resolver or Resolver()
        self.tunnel: Tunnel | None = None
        self.ready = False
        self.since: BootTime = boottime()
        self.restarts = 0
        self.last_error: str | None = None
        self.doubt: str | None = None
        self.last_seen: dict[str, BootTime] = {}
        self.reconfigure: Callable[[InterfaceConfig], Awaitable[None]] | None = None
        self.repair: Callable[[], Awaitable[list[str]]] | None = None
        self.mac_table: Callable[[int], Steps[MacTable]] | None = None
        self.mac: bytes | None = None
        self.health = Health(self._note_health)
        self.ipv6_refused = False
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    def started(self) -> None:
        """The interface is a server that can be reached now, or a client that tries to connect."""
        self.ready, self.since = True, boottime()

    def failed(self, error: str) -> None:
        """The interface has ended with ``error``, and will be restarted."""
        self.tunnel = self.reconfigure = self.repair = self.mac_table = self.mac = None
        self.health.set_degraded(None)
        self.ready, self.since = False, boottime()
        self.last_error = one_line(shorten(error, LAST_ERROR_CHARS))
        self.restarts += 1

    def _note_health(self) -> None:
        if self.ready:
            self.since = boottime()

    def note_doubt(self, doubt: str | None) -> None:
        """Log a new doubt once, although the interface may restart many times. None: there is no doubt (any more)."""
        if doubt is not None and doubt != self.doubt:
            text = "%s; the interface runs nevertheless, but a second start is noticed only once the tunnel is up"
            interface_logger(self.config.name).warning(text, doubt)
        self.doubt = doubt


class NoSuchPeerError(TapotunError):
    """This process has no interface or no client of that name. The text is for the person who asked."""


class Registry:
    """The interfaces by name, in the order of the config."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._resolver = Resolver()
        self._last_seen: dict[str, dict[str, BootTime]] = {}  # for interfaces that have ended and may start again
        self.last_reload: ReloadStatus | None = None
        self.update_status: Callable[[], UpdateStatus | None] = lambda: None

    def add(self, config: InterfaceConfig) -> Record:
        """Add an interface that is about to start."""
        record = self._records[config.name] = Record(config, self._resolver)
        record.last_seen = self._last_seen.pop(config.name, {})
        return record

    def remove(self, name: str) -> None:
        """Remove an interface that has ended. An unknown name is ignored."""
        record = self._records.pop(name, None)
        if record is not None and record.last_seen:
            self._last_seen[name] = record.last_seen

    def get(self, name: str) -> Record | None:
        """The interface of that name, or None."""
        return self._records.get(name)

    def sort(self, names: Iterable[str]) -> None:
        """Put the interfaces into the order of ``names``; the others are last. Data kept for interfaces that the config
        does not have is deleted."""
        self._last_seen.clear()
        positions = {name: position for position, name in enumerate(names)}
        by_position = sorted(self._records.items(), key=lambda item: positions.get(item[0], len(positions)))
        self._records = dict(by_position)

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._records.values()))

    def select(self, names: Iterable[str]) -> list[Record]:
        """The interfaces of these names; all interfaces if there are no names. Raises NoSuchPeerError."""
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if name not in self._records:
                raise NoSuchPeerError(f"there is no interface {name} here; running: {_listed(self._records)}")
        return [self._records[name] for name in wanted] if wanted else list(self)

    def disconnect(self, interface: str | None, client: str) -> int:
        """End the streams of every session of the client, with a BYE frame. Returns how many sessions were connected.

        The client may reconnect at once. To keep it out, remove its token from the config.

        Args:
            interface: only at this interface; None: at every interface.

        Raises:
            NoSuchPeerError: there is no such interface or no such client.
        """
        records = self.select([] if interface is None else [interface])
        sessions = [session for record in records if record.tunnel for session in record.tunnel.sessions or ()]
        found = [session for session in sessions if session.client.name == client]
        if not found:
            where = "here" if interface is None else f"at {interface}"
            names = _listed(session.client.name for session in sessions)
            raise NoSuchPeerError(f"there is no client {client} {where}; the servers have {names}")
        return sum([session.disconnect(DISCONNECTED) for session in found])


def _listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are, for an error."""
    distinct = list(dict.fromkeys(names))
    if not distinct:
        return "none"
    more = len(distinct) - _MAX_LISTED
    return ", ".join(distinct[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def keeping_last_seen(record: Record) -> Iterator[None]:
    """At the end of the block, record when each peer was last heard, for the next run of the interface."""
    try:
        yield
    finally:
        if record.tunnel is not None:
            record.last_seen = record.tunnel.last_seen()
