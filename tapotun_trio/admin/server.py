"""The admin listener's connections: accepted, bounded, each for itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from typing import Final

import trio

from ..config.model import IngressOptions
from ..host.net.listen import Listener
from ..host.net.sockets import Connection
from ..http.acceptor import Acceptor
from ..http.client_address import ClientAddress, find_client_address
from ..http.pending import PendingConnections
from ..http.server import Exchange, serve_connection
from ..lifecycle.restart import RestartPause
from ..log import Log
from .api import AdminApi

MAX_UNAUTHENTICATED: Final = (
    64  # connections that have shown neither a token nor a session; one more pushes the oldest out
)
MAX_AUTHENTICATED: Final = 64  # those that have; likewise
GOODBYE_S: Final = 1.0  # for answers under way when another listener takes over

# Who is on this machine, or comes through a proxy on it: believed who it speaks for, in the log.
_INGRESS: Final = IngressOptions(trusted=(ip_network("127.0.0.0/8"), ip_network("::1/128")), trusts_unix=True)


class AdminServer:
    """Serves one listener, which its owner closes."""

    def __init__(
        self, listener: Listener, make_site: Callable[[Callable[[Exchange], None]], AdminApi], log: Log
    ) -> None:
        """``make_site`` gets what it is to call for a connection that has shown that it may be here."""
        self.listener = listener
        self._api = make_site(self._on_authenticated)
        self._log = log
        self._unauthenticated = PendingConnections(MAX_UNAUTHENTICATED)
        self._authenticated = PendingConnections(MAX_AUTHENTICATED)
        self._acceptor = Acceptor(listener, self._serve, log, label="admin: ")
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()

    async def run(self) -> None:
        """Accept and answer until cancelled or retired. A bug is logged, and it goes on after a pause."""
        pause = RestartPause()
        with self._serving:
            while not self._api.retiring:
                begun = trio.current_time()
                self._accepting = trio.CancelScope()
                try:
                    async with trio.open_nursery() as nursery:
                        with self._accepting:
                            await self._acceptor.run(nursery)
                except* Exception:  # noqa: BLE001 - neither the process nor a tunnel ends by it, nor badly beside it
                    self._log.exception("a bug ended the admin listener")
                    pause_s = pause.next_s(lived_s=trio.current_time() - begun)
                    self._log.warning("admin: starting again in %.0f s", pause_s)
                    await trio.sleep(pause_s)

    def retire(self) -> None:
        """Another one takes over: accept nothing more, and let what is under way end, for a moment."""
        self._api.retiring = True
        self._accepting.cancel()
        self._serving.deadline = trio.current_time() + GOODBYE_S

    async def _serve(self, connection: Connection) -> None:
        """One connection. The acceptor handles its failures, and closes it."""
        try:
            self._unauthenticated.enter(connection)
            origin = await find_client_address(connection, _INGRESS, is_unix=self.listener.is_unix)
            assert origin is not None, "it is None for the PROXY protocol only"
            await serve_connection(connection, partial(self._answer, origin))
        finally:
            connection.close()
            self._unauthenticated.leave(connection)
            self._authenticated.leave(connection)

    async def _answer(self, origin: ClientAddress, exchange: Exchange) -> None:
        exchange.client = origin.client(exchange.head.headers)
        await self._api.serve(exchange)

    def _on_authenticated(self, exchange: Exchange) -> None:
        if self._unauthenticated.leave(exchange.connection):
            self._authenticated.enter(exchange.connection)
