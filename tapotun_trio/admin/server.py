"""The connections of the admin listener: accepted, bounded in number, and served."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_network
from typing import Final

import trio

from ..config.model import IngressOptions
from ..host.net.listen import Listener
from ..host.net.sockets import Connection
from ..host.process.descriptors import ReserveDescriptor, share_of_limit
from ..http.acceptor import Acceptor
from ..http.client_address import ClientAddress, find_client_address
from ..http.pending import PendingConnections
from ..http.server import Exchange, serve_connection
from ..lifecycle.restart import RestartPause
from ..log import Log
from .api import AdminApi

MAX_UNAUTHENTICATED: Final = 64  # connections without a token or a session; one more evicts the oldest
MAX_AUTHENTICATED: Final = 64  # connections with a token or a session; one more evicts the oldest
PART: Final = 8  # each kind uses at most 1/PART of the limit on open files
RETIRE_S: Final = 1.0  # how long answers may still take when another listener takes over

# Proxies on this machine are trusted to name the client, for the log.
_INGRESS: Final = IngressOptions(trusted=(ip_network("127.0.0.0/8"), ip_network("::1/128")), trusts_unix=True)


class AdminServer:
    """Serves one listener, which its owner closes."""

    def __init__(
        self, listener: Listener, make_api: Callable[[Callable[[Exchange], None]], AdminApi], log: Log
    ) -> None:
        """``make_api`` makes the API. It gets the function to call for a connection that has authenticated."""
        self.listener = listener
        self._api = make_api(self._on_authenticated)
        self._log = log
        self._unauthenticated = PendingConnections(share_of_limit(MAX_UNAUTHENTICATED, PART))
        self._authenticated = PendingConnections(share_of_limit(MAX_AUTHENTICATED, PART))
        self._reserve: ReserveDescriptor | None = None  # held while the server runs
        self._acceptor = Acceptor(listener, self._serve, log, label="admin: ")
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._unauthenticated) + len(self._authenticated)

    async def run(self) -> None:
        """Accept and answer until cancelled or retired. After a bug, or if the listening socket fails, it starts again
        after a growing pause."""
        pause = RestartPause()
        reserve = self._reserve = ReserveDescriptor()
        self.listener.relieve = lambda: self._unauthenticated.evict() or reserve.release()
        with ExitStack() as undo:
            undo.callback(reserve.release)
            undo.enter_context(self._serving)
            while not self._api.retiring:
                begun = trio.current_time()
                self._accepting = trio.CancelScope()
                try:
                    async with trio.open_nursery() as nursery:
                        with self._accepting:
                            await self._acceptor.run(nursery)
                except* Exception:  # noqa: BLE001 - it must end neither the process nor a tunnel
                    self._log.exception("admin: internal error, listener stopped")
                    pause_s = pause.next_s(lived_s=trio.current_time() - begun)
                    self._log.warning("admin: starting again in %.0f s", pause_s)
                    await trio.sleep(pause_s)

    def retire(self) -> None:
        """Another listener takes over: accept nothing more, and give requests that are being served RETIRE_S to end."""
        self._api.retiring = True
        self._accepting.cancel()
        self._serving.deadline = trio.current_time() + RETIRE_S

    async def _serve(self, connection: Connection) -> None:
        """Serve one connection. The acceptor handles its failures, and closes it."""
        try:
            self._unauthenticated.add(connection)
            client_address = await find_client_address(connection, _INGRESS, is_unix=self.listener.is_unix)
            assert client_address is not None, "it is None for the PROXY protocol only"
            await serve_connection(connection, partial(self._answer, client_address))
        finally:
            connection.close()
            if self._reserve is not None:
                self._reserve.refill()
            self._unauthenticated.remove(connection)
            self._authenticated.remove(connection)

    async def _answer(self, client_address: ClientAddress, exchange: Exchange) -> None:
        exchange.client = client_address.client(exchange.head.headers)
        await self._api.serve(exchange)

    def _on_authenticated(self, exchange: Exchange) -> None:
        if self._unauthenticated.remove(exchange.connection):
            self._authenticated.add(exchange.connection)
