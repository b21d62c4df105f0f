"""The listening sockets of the process, and which interface serves a request.

::

    supervisor
    ├─ ListenerManager    outlives every interface
    │   └─ Endpoint       one listening socket, while an interface uses it: accepts, and reads request heads
    └─ interface          a VirtualHost: serves its requests, from the end of the head on, in its own nursery

A connection belongs to its endpoint, since a proxy may send requests for several interfaces over one connection. A
request belongs to its interface and ends with it; other interfaces on the same port do not notice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from ..config.model import IngressOptions, ListenAddress, TcpAddress
from ..errors import HostError, PeerError, RefusalReason, ShortageError, leaves
from ..host.net.listen import AbsentError, Listener, endpoint_name, listen
from ..host.net.sockets import Connection
from ..host.process.descriptors import share_of_limit
from ..log import Log, RateLimitedLog
from .acceptor import Acceptor
from .client_address import ClientAddress, find_client_address
from .heads import BadRequest
from .pending import MAX_CONNECTIONS, PENDING_PART, PendingConnections
from .server import Exchange, serve_connection

LISTEN_RETRY_S: Final = (1.0, 30.0)  # the first pause before another try to listen, doubled up to the last
ABSENT_ADDRESS_HINT: Final = (
    "this machine does not have that address yet, so nobody can connect to it; if it will never have it, correct listen"
)
TEARDOWN_S: Final = (
    0.8  # a request that was cancelled takes twice sender.GRACE_S at most, a teardown less than a second
)


@dataclass(frozen=True, slots=True, eq=False)
class VirtualHost:
    """An interface that serves requests at endpoints.

    Attributes:
        path: the path of its requests; None: every path that no other interface has.
        ingress: the options that concern an endpoint are the same for all its interfaces.
        nursery: ``serve`` runs in it.
        serve: answers one request. A HostError that it raises ends the interface; any other exception ends the
            connection.
    """

    path: str | None
    ingress: IngressOptions
    nursery: trio.Nursery
    serve: Callable[[Exchange, Endpoint], Awaitable[None]]
    log: Log


class Endpoint:
    """One listening socket, its pending connections, and the interfaces that are reached through it."""

    def __init__(
        self, key: ListenAddress, listener: Listener, ingress: IngressOptions, pending: PendingConnections, log: Log
    ) -> None:
        """``pending``: shared by all endpoints."""
        self.key = key
        self.listener = listener
        self.ingress = ingress
        self.pending = pending
        self.refusals: Counter[str] = Counter()  # connections and requests that reached no interface, by reason
        self.virtual_hosts: dict[str | None, VirtualHost] = {}
        self.scope = trio.CancelScope()
        self._log = log
        self._peer_errors = RateLimitedLog()
        self._acceptor = Acceptor(listener, self._serve, log, failures=self.refusals)
        listener.relieve = self._relieve

    async def run(self) -> None:
        """Accept and serve until cancelled. If the listening socket fails, its interfaces end; the supervisor starts
        them again with another socket."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                try:
                    await self._acceptor.run(nursery)
                except Exception as exc:  # noqa: BLE001 - raised in the interfaces, which handle it
                    for virtual_host in self.virtual_hosts.values():
                        virtual_host.nursery.start_soon(_fail, exc)
                finally:
                    self.listener.close()  # at once, while streams still end, so that no client reconnects to it

    async def _serve(self, connection: Connection) -> None:
        """One connection. Errors of the peer are counted and logged here, all others by the acceptor."""
        was_pending = False
        try:
            try:
                self.add_pending(connection)
                address = await find_client_address(connection, self.ingress, is_unix=self.listener.is_unix)
                if address is not None:
                    await serve_connection(connection, partial(self._dispatch, address))
            finally:
                connection.close()
                # A connection that is not pending was counted already: when it was evicted or refused, or by its
                # interface.
                was_pending = self.pending.remove(connection)
        except* PeerError as group:
            for exc in leaves(group):
                if exc.reason.is_for_operator or isinstance(exc, ShortageError):
                    who = f"{connection.name}: " if isinstance(exc, BadRequest) else ""  # other errors name the peer
                    text = f"{self.listener.name}: {who}{exc}"
                    self._peer_errors.log(self._log, logging.WARNING, trio.current_time(), text)
                else:
                    self._log.debug("%s: %s", connection.name, exc)
            if was_pending:
                self.refusals[exc.reason] += 1

    async def _dispatch(self, client_address: ClientAddress, exchange: Exchange) -> None:
        """Have the interface that has this path serve the request, and wait for its end.

        The path is compared as it was sent, up to the ``?``; nothing is decoded or normalised.
        """
        exchange.client = client_address.client(exchange.head.headers)
        exchange.encrypted = client_address.encrypted(exchange.head.headers)
        virtual_host = self.virtual_hosts.get(exchange.head.target.partition("?")[0]) or self.virtual_hosts.get(None)
        if virtual_host is None:
            self.refusals[RefusalReason.UNKNOWN_PATH] += 1
            try:
                await exchange.refuse(404)
            except PeerError as exc:  # the client did not wait for the answer
                self._log.debug("%s: %s", exchange.client, exc)
            return
        failures: list[ExceptionGroup[Exception]] = []
        ended = trio.Event()

        async def serve() -> None:
            try:
                await virtual_host.serve(exchange, self)
            except* HostError:  # the device of the interface failed, not the request
                raise
            except* Exception as group:  # noqa: BLE001 - raised below, in the connection's own task
                failures.append(group)
            finally:
                ended.set()

        virtual_host.nursery.start_soon(serve)
        try:
            await ended.wait()
        except trio.Cancelled:
            # An endpoint is cancelled only together with its interfaces. Closing now would cut off the stream's end.
            with trio.move_on_after(TEARDOWN_S, shield=True):
                await ended.wait()
            raise
        if failures:
            raise failures[0]

    def add_pending(self, connection: Connection) -> None:
        evicted = self.pending.evicted
        self.pending.add(connection)
        if self.pending.evicted != evicted:
            self.refusals[RefusalReason.EVICTED] += 1

    def _relieve(self) -> bool:
        """Evict the oldest pending connection to free a descriptor for a new one. Returns whether there was one."""
        evicted = self.pending.evict()
        if evicted:
            self.refusals[RefusalReason.EVICTED] += 1
        return evicted


async def _fail(exc: Exception) -> None:
    raise exc


class Registration:
    """The endpoints of one interface. An endpoint that was refused at first joins them when it opens.

    Attributes:
        endpoints: the open ones.
        refused: names of the endpoints that could not be opened, each with the reason.
        ended: the interface has ended and wants no more endpoints.
    """

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self.refused: dict[str, str] = {}
        self.ended = False


class ListenerManager:
    """The open endpoints of this process."""

    def __init__(self, nursery: trio.Nursery, log: Log) -> None:
        self._nursery = nursery
        self._log = log
        self._endpoints: dict[ListenAddress, Endpoint] = {}
        self._pending = PendingConnections(share_of_limit(MAX_CONNECTIONS, PENDING_PART))

    @contextmanager
    def register(self, addresses: tuple[ListenAddress, ...], virtual_host: VirtualHost) -> Iterator[Registration]:
        """Within the block, requests for these addresses and this path go to ``virtual_host``. An endpoint without
        interfaces is closed at once.

        If only some addresses are refused, that is logged, and they are tried again in the interface's nursery. The
        same happens if all are refused because this machine does not have the address or its family yet.

        Raises HostError if all are refused, at least one of them for another reason; if the default address is refused
        (all sockets of the default count as one address); or if another interface has this path there, or other options
        for the endpoint.
        """
        registration = Registration()
        refusals: list[tuple[ListenAddress, HostError]] = []
        try:
            for address in addresses:
                try:
                    endpoint = self._endpoint(address, virtual_host.ingress)
                except HostError as exc:
                    if isinstance(address, TcpAddress) and address.optional:
                        raise
                    refusals.append((address, exc))
                    continue
                if endpoint is not None:
                    self._attach(address, endpoint, virtual_host, registration)
            if not registration.endpoints and not all(isinstance(exc, AbsentError) for _, exc in refusals):
                shortage = next((exc for _, exc in refusals if isinstance(exc, ShortageError)), None)
                raise shortage or HostError("; ".join(str(exc) for _, exc in refusals))
            if not registration.endpoints and not refusals:
                raise HostError("no address to listen on; set listen to an address that this machine has")
            for address, refusal in refusals:
                virtual_host.log.warning("%s; continuing without it, and trying again", refusal)
                virtual_host.nursery.start_soon(self._keep_trying, address, virtual_host, registration, refusal)
            yield registration
        finally:
            registration.ended = True
            for endpoint in registration.endpoints:
                del endpoint.virtual_hosts[virtual_host.path]
                if not endpoint.virtual_hosts:
                    del self._endpoints[endpoint.key]
                    endpoint.listener.close()
                    endpoint.scope.cancel()

    def _attach(
        self, address: ListenAddress, endpoint: Endpoint, virtual_host: VirtualHost, registration: Registration
    ) -> None:
        name = endpoint.listener.name
        if virtual_host.path in endpoint.virtual_hosts:
            raise HostError(f"another interface has the same path on {name}; give each a path of its own")
        if virtual_host.ingress.at(address) != endpoint.ingress:
            fields = "trusted_proxies, proxy_protocol or listen_mode"
            raise HostError(f"another interface on {name} has a different {fields}; write the same in both")
        endpoint.virtual_hosts[virtual_host.path] = virtual_host
        registration.endpoints.append(endpoint)
        virtual_host.log.info(
            "listening on %s%s", name, "" if virtual_host.path is None else f", path {virtual_host.path}"
        )
        if endpoint.listener.waits:
            virtual_host.log.warning("%s: %s", name, ABSENT_ADDRESS_HINT)

    async def _keep_trying(
        self, address: ListenAddress, virtual_host: VirtualHost, registration: Registration, refusal: HostError
    ) -> None:
        """Try to listen again and again, until it succeeds."""
        name, pause_s = endpoint_name(address), LISTEN_RETRY_S[0]
        while True:
            registration.refused[name] = str(refusal)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LISTEN_RETRY_S[1])
            if registration.ended:
                return
            try:
                endpoint = self._endpoint(address, virtual_host.ingress)
                if endpoint is not None:
                    self._attach(address, endpoint, virtual_host, registration)
            except HostError as exc:
                refusal = exc
                continue
            del registration.refused[name]
            return

    def _endpoint(self, address: ListenAddress, ingress: IngressOptions) -> Endpoint | None:
        endpoint = self._endpoints.get(address.key)
        if endpoint is None:
            listener = listen(address, ingress.socket_mode)
            if listener is None:
                return None
            key = address.key
            endpoint = self._endpoints[key] = Endpoint(key, listener, ingress.at(address), self._pending, self._log)
            self._nursery.start_soon(endpoint.run)
        return endpoint


@asynccontextmanager
async def open_listeners() -> AsyncIterator[ListenerManager]:
    """The listening sockets of the interfaces that run within the block."""
    async with trio.open_nursery() as nursery:
        yield ListenerManager(nursery, logging.LoggerAdapter(logging.getLogger("tapotun"), {}))
        nursery.cancel_scope.cancel()
