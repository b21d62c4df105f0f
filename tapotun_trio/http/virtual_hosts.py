"""The process's listening sockets, each open while an interface uses it, and which interface a request is for.

::

    supervisor
    ├─ front door                 outlives every interface
    │   └─ entrance, one an endpoint: accept, and connections from accept or the end of a request to the next head
    └─ interface                  each request of it, from its head to its end, runs in this one's nursery

A connection belongs to its entrance, for a proxy sends requests of several interfaces over one. What a request
starts belongs to the interface: that one's end is theirs, and the others on the port do not notice.
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

from ..config.model import IngressOptions, ListenAddress, TcpAddress, listen_key
from ..errors import HostError, PeerError, RefusalReason, ShortageError, leaves
from ..host.net.listen import AbsentError, Listener, endpoint_name, listen
from ..host.net.sockets import Connection
from ..log import Log, RateLimitedLog
from .acceptor import Acceptor
from .client_address import ClientAddress, find_client_address
from .pending import PendingConnections
from .server import Exchange, serve_connection

LISTEN_RETRY_S: Final = (1.0, 30.0)  # the first pause before an endpoint is tried again, doubled up to the last
WAITS: Final = (
    "this machine does not have that address yet, and nobody can connect before it has; "
    "if it is not to get it, correct listen"
)
GOODBYE_S: Final = 0.8  # a request that was cancelled takes twice sender.GRACE_S at most, a teardown less than a second


@dataclass(frozen=True, slots=True, eq=False)
class VirtualHost:
    """An interface behind entrances. ``path``: the one it answers at, None for all that nobody else has. What of its
    ``ingress`` matters at an entrance is the same for all there.

    ``serve`` answers one request; it runs in ``nursery``. A HostError that it raises ends the interface; anything else
    ends the connection.
    """

    path: str | None
    ingress: IngressOptions
    nursery: trio.Nursery
    serve: Callable[[Exchange, Endpoint], Awaitable[None]]
    log: Log


class Endpoint:
    """One listening socket, its lobby, and the tenants behind it."""

    def __init__(self, key: ListenAddress, listener: Listener, ingress: IngressOptions, log: Log) -> None:
        self.key = key
        self.listener = listener
        self.ingress = ingress
        self.pending = PendingConnections()
        self.refusals: Counter[str] = Counter()  # connections and requests that reached no interface, by reason
        self.virtual_hosts: dict[str | None, VirtualHost] = {}
        self.scope = trio.CancelScope()
        self._log = log
        self._strangers = RateLimitedLog()
        self._acceptor = Acceptor(listener, self._serve, log, failures=self.refusals)

    async def run(self) -> None:
        """Accept and serve until cancelled. If the listening socket is of no use any more, the tenants end, and start
        again with another one."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                try:
                    await self._acceptor.run(nursery)
                except Exception as exc:  # noqa: BLE001 - it is raised where it is handled, in the tenants
                    for virtual_host in self.virtual_hosts.values():
                        virtual_host.nursery.start_soon(_fail, exc)
                finally:
                    self.listener.close()  # at once, while streams still end: nobody shall come back to who goes

    async def _serve(self, connection: Connection) -> None:
        """One connection. Errors of the peer are counted and logged here, all others by the acceptor."""
        stranger = False
        try:
            try:
                self.add_pending(connection)
                address = await find_client_address(connection, self.ingress, is_unix=self.listener.is_unix)
                if address is not None:
                    await serve_connection(connection, partial(self._hand_over, address))
            finally:
                connection.close()
                # One that was evicted was counted then; one that had a stream or was refused, too.
                stranger = self.pending.leave(connection)
        except* PeerError as group:
            for exc in leaves(group):
                if exc.reason.is_for_operator or isinstance(exc, ShortageError):
                    text = f"{self.listener.name}: {exc}"
                    self._strangers.log(self._log, logging.WARNING, trio.current_time(), text)
                else:
                    self._log.debug("%s: %s", connection.name, exc)
            if stranger:
                self.refusals[exc.reason] += 1

    async def _hand_over(self, origin: ClientAddress, exchange: Exchange) -> None:
        """Have the request served by the interface that its path belongs to, and wait for its end.

        The path is compared as it was sent, up to the ``?``; nothing is decoded or normalised.
        """
        exchange.client = origin.client(exchange.head.headers)
        virtual_host = self.virtual_hosts.get(exchange.head.target.partition("?")[0]) or self.virtual_hosts.get(None)
        if virtual_host is None:
            self.refusals[RefusalReason.UNKNOWN_PATH] += 1
            try:
                await exchange.refuse(404)
            except PeerError as exc:  # it did not wait for the answer
                self._log.debug("%s: %s", exchange.client, exc)
            return
        failures: list[ExceptionGroup[Exception]] = []
        ended = trio.Event()

        async def serve() -> None:
            try:
                await virtual_host.serve(exchange, self)
            except* HostError:  # the interface's device, not the request
                raise
            except* Exception as group:  # noqa: BLE001 - raised below, in the connection's own task
                failures.append(group)
            finally:
                ended.set()

        virtual_host.nursery.start_soon(serve)
        try:
            await ended.wait()
        except trio.Cancelled:
            # A door is cancelled only with its interfaces. To close now would cut off the request's goodbye.
            with trio.move_on_after(GOODBYE_S, shield=True):
                await ended.wait()
            raise
        if failures:
            raise failures[0]

    def add_pending(self, connection: Connection) -> None:
        evicted = self.pending.evicted
        self.pending.enter(connection)
        if self.pending.evicted != evicted:
            self.refusals[RefusalReason.EVICTED] += 1


async def _fail(exc: Exception) -> None:
    raise exc


class Admission:
    """Where a tenant is reached. It grows while endpoints that were refused at first are tried again.

    Attributes:
        entrances: those that are open.
        refused: endpoints that could not be had so far, by name, and why.
    """

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self.refused: dict[str, str] = {}
        self.over = False


class ListenerManager:
    """The entrances of this process, by endpoint."""

    def __init__(self, nursery: trio.Nursery, log: Log) -> None:
        self._nursery = nursery
        self._log = log
        self._endpoints: dict[ListenAddress, Endpoint] = {}

    @contextmanager
    def register(self, addresses: tuple[ListenAddress, ...], virtual_host: VirtualHost) -> Iterator[Admission]:
        """Requests go to the tenant until the block ends; an entrance without tenants is closed at once.

        Of several endpoints one that is refused is told, and tried again in the tenant's nursery. So are all of them if
        this machine only does not have what they name. Raises HostError if none can be had for another reason, if one
        of the default's is refused (whose sockets stand for one address), or if another tenant has this path there, or
        another reception.
        """
        admission = Admission()
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
                    self._admit(address, endpoint, virtual_host, admission)
            if not admission.endpoints and not all(isinstance(it, AbsentError) for _, it in refusals):
                passing = next((it for _, it in refusals if isinstance(it, ShortageError)), None)
                raise passing or HostError("; ".join(str(it) for _, it in refusals))
            if not admission.endpoints and not refusals:
                raise HostError("no address to listen on; set listen to an address that this machine has")
            for address, refusal in refusals:
                virtual_host.log.warning("%s; goes on without it, and tries again", refusal)
                virtual_host.nursery.start_soon(self._keep_trying, address, virtual_host, admission, refusal)
            yield admission
        finally:
            admission.over = True
            for endpoint in admission.endpoints:
                del endpoint.virtual_hosts[virtual_host.path]
                if not endpoint.virtual_hosts:
                    del self._endpoints[endpoint.key]
                    endpoint.listener.close()
                    endpoint.scope.cancel()

    def _admit(
        self, address: ListenAddress, endpoint: Endpoint, virtual_host: VirtualHost, admission: Admission
    ) -> None:
        name = endpoint.listener.name
        if virtual_host.path in endpoint.virtual_hosts:
            raise HostError(f"another interface has the same path on {name}; give each a path of its own")
        if virtual_host.ingress.at(address) != endpoint.ingress:
            fields = "trusted_proxies, proxy_protocol or listen_mode"
            raise HostError(f"another interface on {name} has other {fields}; write the same in both")
        endpoint.virtual_hosts[virtual_host.path] = virtual_host
        admission.endpoints.append(endpoint)
        virtual_host.log.info(
            "listening on %s%s", name, "" if virtual_host.path is None else f", path {virtual_host.path}"
        )
        if endpoint.listener.waits:
            virtual_host.log.warning("%s: %s", name, WAITS)

    async def _keep_trying(
        self, address: ListenAddress, virtual_host: VirtualHost, admission: Admission, refusal: HostError
    ) -> None:
        """Until the endpoint can be had."""
        name, pause_s = endpoint_name(address), LISTEN_RETRY_S[0]
        while True:
            admission.refused[name] = str(refusal)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LISTEN_RETRY_S[1])
            if admission.over:
                return
            try:
                endpoint = self._endpoint(address, virtual_host.ingress)
                if endpoint is not None:
                    self._admit(address, endpoint, virtual_host, admission)
            except HostError as exc:
                refusal = exc
                continue
            del admission.refused[name]
            return

    def _endpoint(self, address: ListenAddress, ingress: IngressOptions) -> Endpoint | None:
        endpoint = self._endpoints.get(listen_key(address))
        if endpoint is None:
            listener = listen(address, ingress.socket_mode)
            if listener is None:
                return None
            key = listen_key(address)
            endpoint = self._endpoints[key] = Endpoint(key, listener, ingress.at(address), self._log)
            self._nursery.start_soon(endpoint.run)
        return endpoint


@asynccontextmanager
async def open_listeners() -> AsyncIterator[ListenerManager]:
    """The front door of the interfaces that run within the block."""
    async with trio.open_nursery() as nursery:
        yield ListenerManager(nursery, logging.LoggerAdapter(logging.getLogger("tapotun"), {}))
        nursery.cancel_scope.cancel()
