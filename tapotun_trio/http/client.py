"""The client's side: connect to the server of a URL, send a request, and read the head of the answer."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

import trio

from ..config.model import NO_PROXY, NoProxy, Proxy, Url
from ..errors import EndReason, HostError, PeerError, ShortageError
from ..host.net.dial import Preparation, SegmentLimit, connect
from ..host.net.resolver import Resolver
from ..host.net.segments import SegmentLimits, SegmentState, SegmentWatch
from ..host.net.sockets import KEEPALIVE_S, Connection
from ..host.net.tls import TlsClient, TlsConnection
from .connect import describe, open_tunnel
from .heads import READ_BYTES, ResponseHead, ResponseParser, encode_request
from .refusal import explain_400, refusal

# The limit for name resolution, TCP and TLS together. SYNs go out after 0, 1, 3 and 7 s. If a path comes back after the
# last of them, a new attempt finds it sooner than this one.
CONNECT_S: Final = 8.0
RESPONSE_S: Final = 30.0  # from the request to the head of the answer to a GET
REFUSAL_S: Final = 1.0
# If a TLS handshake receives nothing for this long, and TCP shows a gap or a retransmission, large segments are lost:
# those of the server's certificates, or of a large ClientHello. Then another handshake with the next smaller segment
# size is started in parallel, and so on, all within CONNECT_S. Without such a sign the server may only be busy, so the
# first parallel handshake starts after twice this time.
SMALLER_S: Final = 1.8
SETTLE_S: Final = 0.3  # a server that was only slow answers the other handshakes, too, within this time
LOOK_S: Final = 0.5  # how often the segments of a connection are looked at while its answer is awaited

T = TypeVar("T")


async def open_connection(
    url: Url,
    tls: TlsClient | None,
    mark: int | None = None,
    proxy: Proxy | None = None,
    preparation: Preparation | None = None,
    limits: SegmentLimits | None = None,
    resolver: Resolver | None = None,
    present: str | None = None,
) -> Connection:
    """Connect to the server of ``url``. The caller closes the connection. If this is cancelled, nothing stays open.

    Args:
        tls: None: no TLS.
        mark: the fwmark of the socket.
        proxy: the proxy to connect through; None: connect directly.
        preparation, resolver, present: as in `connect`. They apply to the proxy if there is one.
        limits: the segment sizes by address. A limit that a TLS handshake turns out to need is added.

    Raises:
        PeerError: resolving the name, connecting to every address, or the handshake failed, or took longer than
            CONNECT_S.
        HostError: the mark is not allowed.
    """
    resolver = resolver or Resolver()
    address = None
    try:
        with trio.fail_after(CONNECT_S):
            limit = None if limits is None else limits.limit
            if proxy is None:
                connection = await connect(
                    url.host, url.port, mark, preparation, resolver, segment_limit=limit, present=present
                )
            else:
                connection = await _by_proxy(
                    url, proxy, mark, preparation, resolver, segment_limit=limit, present=present
                )
            if tls is None:
                return connection
            address = connection.remote_address
            try:
                return await secure(connection, url, tls, limits, mark, proxy)
            except PeerError:
                if proxy is None:
                    resolver.doubt(url.host, url.port, address)
                raise
    except trio.TooSlowError as exc:
        if proxy is None and address is not None:
            # TCP works and TLS does not, as on some paths of one family only. Other addresses come first from now on.
            resolver.doubt(url.host, url.port, address)
        place = url.authority if proxy is None else f"{url.authority} through proxy {proxy.authority}"
        text = f"no connection to {place} within {CONNECT_S:.0f} s"
        unresolved = resolver.failure(url.host, url.port) if proxy is None else resolver.failure(proxy.host, proxy.port)
        if unresolved is not None:
            text = f"{text}: {unresolved}; and the addresses that worked last do not answer"
        raise PeerError(text, reason=EndReason.CONNECT) from exc


async def secure(
    first: Connection,
    url: Url,
    tls: TlsClient,
    limits: SegmentLimits | None,
    mark: int | None = None,
    proxy: Proxy | None = None,
) -> TlsConnection:
    """Do the TLS handshake on ``first``. Takes ownership of that connection. There is no deadline. If this is
    cancelled, nothing stays open.

    While the handshake receives nothing, further handshakes run in parallel on new connections, each with smaller
    segments. The first to finish wins. Without ``limits`` there is only the handshake on ``first``.

    Raises PeerError: the failure of the handshake on ``first``.
    """
    if limits is None or (address := first.remote_address) is None:
        return await tls.handshake(first, url.host_without_zone)
    winner: TlsConnection | None = None
    failure: PeerError | None = None
    watched: Connection | None = None
    size_of_winner: int | None = None

    def done() -> bool:
        return winner is not None

    def state() -> SegmentState | None:
        return None if watched is None else watched.segments()

    def received() -> int:
        found = state()
        return -1 if found is None else found.received_bytes

    async def again(size: int) -> Connection:
        if proxy is None:
            return await connect(address, url.port, mark, segment_limit=lambda _: size)
        return await _by_proxy(url, replace(proxy, host=address), mark, segment_limit=lambda _: size)

    async def attempt(size: int | None, silent_at: int) -> None:
        nonlocal winner, failure, size_of_winner

        def began(connection: Connection) -> None:
            nonlocal watched
            if size is None:
                watched = connection

        try:
            connection = first if size is None else await again(size)
            secured = await tls.handshake(connection, url.host_without_zone, began)
        except PeerError as exc:
            if size is None:
                failure = exc
                nursery.cancel_scope.cancel()
            return
        if winner is not None:
            secured.close()
            return
        winner = secured
        if size is not None:
            # The server has completed this handshake. If the first one has still received nothing since this one began,
            # its segments are too large. Otherwise the server was only slow, and now answers all handshakes.
            await trio.sleep(SETTLE_S)
            if received() == silent_at:
                size_of_winner = size
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, None, -1)
            began = trio.current_time()
            for size in limits.smaller(address):
                while not done():
                    before = received()
                    await trio.sleep(SMALLER_S)
                    found = state()
                    silent = found is not None and found.received_bytes == before
                    lost = found is not None and (found.gap or found.retransmits)
                    due = lost or trio.current_time() - began >= 2 * SMALLER_S
                    if silent and due and not done():
                        nursery.start_soon(attempt, size, before)
                        break
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise failure or PeerError(f"no TLS handshake with {url.authority}", reason=EndReason.TLS)
    if size_of_winner is not None:
        limits.found(address, size_of_winner)
    return winner


async def answered(connection: Connection, limits: SegmentLimits, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work``, which waits for an answer on ``connection``, and return its result.

    Raises what ``work`` raises. Also raises PeerError as soon as large segments of the connection turn out to be lost,
    after lowering the limit for its address. Whenever this raises, the connection is closed.
    """
    failure: PeerError | None = None
    address, watch = connection.remote_address, SegmentWatch()

    async def look() -> None:
        nonlocal failure
        while True:
            await trio.sleep(LOOK_S)
            state = connection.segments()
            if address is not None and state is not None and watch.look(trio.current_time(), state):
                failure = limits.reduce(address, state.mss)
                nursery.cancel_scope.cancel()
                connection.abort()  # an orderly close may not arrive
                return
            connection.keepalive_after(1 if watch.wants_proof else KEEPALIVE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        try:
            result = await work()
        except PeerError as exc:
            connection.close()
            failure = failure or exc
        except BaseException:
            # Close before the nursery lets other tasks run. If the server answered this abandoned request, it would end
            # the present download.
            connection.close()
            raise
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


async def _by_proxy(
    url: Url,
    proxy: Proxy,
    mark: int | None,
    preparation: Preparation | None = None,
    resolver: Resolver | None = None,
    *,
    segment_limit: SegmentLimit | None = None,
    present: str | None = None,
) -> Connection:
    """Connect through a proxy. The proxy's name is resolved here, the URL's by the proxy."""
    try:
        connection = await connect(
            proxy.host, proxy.port, mark, preparation, resolver, segment_limit=segment_limit, present=present
        )
    except ShortageError:
        raise
    except PeerError as exc:
        raise PeerError(f"{describe(url, proxy)}: {exc}", reason=exc.reason, key=exc.key) from exc
    try:
        await open_tunnel(connection, url, proxy)
    except BaseException:
        connection.close()
        raise
    return connection


def effective_proxy(url: Url, given: Proxy | NoProxy | None) -> Proxy | None:
    """The proxy through which to connect to ``url``: the one ``given`` in the config, or else the environment's. None:
    there is none. Raises HostError if the environment names one that cannot be used."""
    if isinstance(given, Proxy):
        return given
    if given is NO_PROXY or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from ..config.diagnostics import InvalidValue
    from ..config.urls import proxy_from_environment

    try:
        found = proxy_from_environment(url, os.environ)
    except InvalidValue as exc:
        raise HostError(f"{exc.problem}; {exc.remedy}") from exc
    return None if found is None else found[1]


async def send_request(connection: Connection, method: str, url: Url, headers: list[tuple[str, str]]) -> None:
    """Send a request head. The caller sends the body, if there is one."""
    await connection.send_all(encode_request(method, url.target, [("Host", url.host_header), *headers]))


async def read_response(
    connection: Connection, method: str, parser: ResponseParser | None = None
) -> tuple[ResponseHead, bytes]:
    """The head of the final answer, and the first bytes of its body. This has no deadline, since the answer to an
    upload comes when the upload ends. Raises PeerError: closed, or not HTTP. If this is cancelled, received bytes are
    lost, unless the caller passed a ``parser``: another call with the same parser continues."""
    parser = parser or ResponseParser(method)
    buffer = memoryview(bytearray(READ_BYTES))
    while True:
        received = await connection.receive(buffer)
        done = parser.feed(bytes(buffer[:received]))
        if done is not None:
            return done


async def rest_of_refusal(connection: Connection, head: ResponseHead, body: bytes) -> bytes:
    """Read the beginning of the body of a refusal, because it may explain the refusal. Waits at most REFUSAL_S.

    ``body``: the bytes that arrived together with the head. For a 200 or 101, which is no refusal, they are returned
    unchanged. If this is cancelled, received bytes are lost.
    """
    if head.status in (101, 200):
        return body
    length = head.headers.get("content-length", "")
    wanted = min(int(length), READ_BYTES) if length.isdecimal() and len(length) < 10 else READ_BYTES
    if "transfer-encoding" in head.headers or head.status in (204, 304):
        wanted = READ_BYTES if head.status == 400 else 0  # only the body of a 400 is searched for known texts
    buffer = memoryview(bytearray(READ_BYTES))
    with trio.move_on_after(REFUSAL_S), suppress(PeerError):  # the part that has come is enough
        while explain_400(body) is None and len(body) < wanted:
            received = await connection.receive(buffer)
            if received == 0:
                break
            body += buffer[:received]
    return body


def check_status(
    head: ResponseHead, url: Url, body: bytes = b"", *, method: str = "GET", served: bool = False, worked: bool = False
) -> None:
    """Raise RefusedError, with a remedy, unless the status is 200. The arguments are those of `refusal`."""
    if head.status != 200:
        raise refusal(head, url, body, method=method, served=served, worked=worked)
