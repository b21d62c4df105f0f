"""The accept loop of the tunnel's endpoints, of the admin listener and of the control socket.

It is also the last boundary of a connection: an error on one connection ends that connection only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeAlias

import trio

from ..errors import HostError, PeerError, ShortageError, leaves
from ..host.net.listen import Listener
from ..host.net.sockets import Connection
from ..log import Faults, Log, RateLimitedLog

# The pause after an accept that failed. A shortage of descriptors may last, and the next connection is ready at once.
ACCEPT_RETRY_S: Final = 0.1

Serve: TypeAlias = Callable[[Connection], Awaitable[None]]


class Acceptor:
    """Accepts the connections of one listening socket, and serves each in a task of its own."""

    def __init__(
        self, listener: Listener, serve: Serve, log: Log, *, label: str = "", failures: Counter[str] | None = None
    ) -> None:
        """The caller closes ``listener``.

        Args:
            serve: serves one connection, which is closed when it returns. Any exception that it raises ends that
                connection: PeerError is logged at level debug, a bug with its traceback.
            label: the beginning of every log line.
            failures: counts shortages and bugs, by reason.
        """
        self.listener = listener
        self._serve_connection = serve
        self._log = log
        self._label = label
        self._failures: Counter[str] = Counter() if failures is None else failures
        self._shortages = RateLimitedLog()
        self._faults = Faults()

    async def run(self, nursery: trio.Nursery) -> NoReturn:
        """Accept until cancelled; the connections are served in ``nursery``.

        A shortage of this machine is logged, counted, and tried again after ACCEPT_RETRY_S; so is a bug in accepting
        one connection. Raises OSError or trio.ClosedResourceError if the listening socket itself cannot be used any
        longer.
        """
        while True:
            try:
                connection = await self.listener.accept()
            except HostError as exc:
                if isinstance(exc, ShortageError):
                    self._failures[exc.reason] += 1
                self._shortages.log(self._log, logging.WARNING, trio.current_time(), f"{self._label}{exc}")
                await trio.sleep(ACCEPT_RETRY_S)
                continue
            except (OSError, trio.ClosedResourceError):
                raise
            except Exception as exc:  # noqa: BLE001 - one connection's: logged with its traceback
                self._count_fault(f"connection on {self.listener.name} not accepted", exc)
                await trio.sleep(ACCEPT_RETRY_S)
                continue
            nursery.start_soon(self.serve, connection)

    async def serve(self, connection: Connection) -> None:
        """Serve one connection until it is closed. Raises nothing but trio.Cancelled."""
        try:
            try:
                await self._serve_connection(connection)
            finally:
                connection.close()
        except* PeerError as group:
            for exc in leaves(group):
                self._log.debug("%s%s: %s", self._label, connection.name, exc)
        except* Exception as group:  # noqa: BLE001 - logged with its traceback, and the others go on
            self._count_fault(f"connection of {connection.name} closed", group)

    def _count_fault(self, text: str, exc: Exception) -> None:
        self._failures[self._faults.log(self._log, trio.current_time(), f"{self._label}{text}", exc)] += 1
