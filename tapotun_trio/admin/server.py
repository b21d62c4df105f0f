"""Accepts the admin listener's connections, limits their number, and isolates each from the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from typing import Final

import trio

from ..config.model import IngressOptions
from ..errors import HostError, PeerError, leaves
from ..host.net.listen import Listener
from ..host.net.sockets import Connection
from ..http.client_address import ClientAddress, find_client_address
from ..http.pending import PendingConnections
from ..http.server import Exchange, serve_connection
from ..log import Faults, Log, RateLimitedLog
from .api import AdminApi

MAX_UNAUTHENTICATED: Final = 64  # connections that have not authenticated yet; another one evicts the oldest
MAX_AUTHENTICATED: Final = 64  # connections that have authenticated; another one evicts the oldest
ACCEPT_RETRY_S: Final = 0.1
GOODBYE_S: Final = 1.0  # for responses in progress when another listener takes over
RESTART_S: Final = (1.0, 30.0)  # the first pause after an internal error, doubled up to the last
HEALTHY_S: Final = 60.0

# Forwarding headers of proxies on this machine are believed, for the client's address in the log.
_INGRESS: Final = IngressOptions(trusted=(ip_network("127.0.0.0/8"), ip_network("::1/128")), trusts_unix=True)


class AdminServer:
    """Serves one listener, which its owner closes."""

    def __init__(
        self, listener: Listener, make_api: Callable[[Callable[[Exchange], None]], AdminApi], log: Log
    ) -> None:
        """``make_api`` gets the callback for the connection of an authenticated request."""
        self.listener = listener
        self._api = make_api(self._on_authenticated)
        self._log = log
        self._unauthenticated = PendingConnections(MAX_UNAUTHENTICATED)
        self._authenticated = PendingConnections(MAX_AUTHENTICATED)
        self._shortages = RateLimitedLog()
        self._faults = Faults()
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()

    async def run(self) -> None:
        """Accept and answer until cancelled or retired. An internal error is logged; after a pause it starts again."""
        pause_s = RESTART_S[0]
        with self._serving:
            while not self._api.retiring:
                begun = trio.current_time()
                self._accepting = trio.CancelScope()
                try:
                    async with trio.open_nursery() as nursery:
                        with self._accepting:
                            await self._accept(nursery)
                except* Exception:  # noqa: BLE001 - it must end neither the process nor a tunnel
                    self._log.exception("internal error, admin listener stopped")
                    if trio.current_time() - begun >= HEALTHY_S:
                        pause_s = RESTART_S[0]
                    self._log.warning("admin: restarting in %.0f s", pause_s)
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RESTART_S[1])

    def retire(self) -> None:
        """Another server takes over: stop accepting, and give responses in progress `GOODBYE_S` to end."""
        self._api.retiring = True
        self._accepting.cancel()
        self._serving.deadline = trio.current_time() + GOODBYE_S

    async def _accept(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                connection = await self.listener.accept()
            except HostError as exc:
                self._shortages.log(self._log, logging.WARNING, trio.current_time(), f"admin: {exc}")
                await trio.sleep(ACCEPT_RETRY_S)
                continue
            nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        """One connection, from accept to close. Any failure of it, an internal error included, ends here."""
        try:
            self._unauthenticated.enter(connection)
            origin = await find_client_address(connection, _INGRESS, is_unix=self.listener.is_unix)
            assert origin is not None, "it is None for the PROXY protocol only"
            await serve_connection(connection, partial(self._answer, origin))
        except* PeerError as group:
            for exc in leaves(group):
                self._log.debug("admin: %s: %s", connection.name, exc)
        except* Exception as group:  # noqa: BLE001 - logged with its traceback, and the others go on
            self._faults.log(self._log, trio.current_time(), "admin: connection closed", group)
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
