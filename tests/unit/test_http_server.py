"""http.server over connections in memory: request after request, refusals that arrive, and deadlines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import h11
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.http.heads import MAX_HEAD_BYTES, BadRequest
from tapotun_trio.http.server import HEAD_S, IDLE_S, LINGER_S, Exchange, serve_connection
from tapotun_trio.wire.body import CHUNK_END, LAST_CHUNK, chunk_head
from tapotun_trio.wire.frames import FrameReader, each

from ..chunkings import cut, cuts
from ..packets import frame
from ..streams import MemoryConnection, memory_pair
from ..tables import table

Clock = trio.testing.MockClock

GET: Final = b"GET /ip HTTP/1.1\r\nHost: h\r\nx-api-key:test\r\n\r\n"
GET_1_0: Final = b"GET /ip HTTP/1.0\r\nx-api-key: test\r\n\r\n"
PUT: Final = b"PUT /ip HTTP/1.1\r\nHost: h\r\nx-api-key:test\r\nTransfer-Encoding: chunked\r\n\r\n"
PUT_EXPECTING: Final = PUT[:-2] + b"Expect: 100-continue\r\n\r\n"
UNKNOWN: Final = PUT.replace(b"test", b"wrong")
DOWNLOAD: Final = frame(b"down" * 5)
UPLOAD: Final = frame(b"up" * 10)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(chunk_head(len(piece)) + piece + CHUNK_END for piece in pieces) + LAST_CHUNK


def put_with_length(body: bytes) -> bytes:
    return b"PUT /ip HTTP/1.1\r\nHost: h\r\nx-api-key: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Tunnel:
    """A handler as the tunnel's is: 403 for an unknown token, frames down until told to end, frames up."""

    def __init__(self) -> None:
        self.seen: list[str] = []  # method and what came up
        self.downloading = trio.Event()
        self.end_download = trio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.head.headers["x-api-key"] != "test":
            self.seen.append("403")
            await exchange.refuse(403)
        elif exchange.head.method == "GET":
            await self._download(exchange)
        else:
            await self._upload(exchange)

    async def _download(self, exchange: Exchange) -> None:
        self.seen.append("GET")
        writer = await exchange.start_download([("x-tun-conf", "conf")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.watch, writer)
            writer.send(DOWNLOAD)
            self.downloading.set()
            await self.end_download.wait()
            await writer.finish()
            nursery.cancel_scope.cancel()
        exchange.reusable = exchange.head.keeps_alive

    async def _upload(self, exchange: Exchange) -> None:
        reader = FrameReader(await exchange.accept_upload())
        body = b""
        spans = reader.prime(exchange.leftover)
        while True:
            body += b"".join(bytes(reader.view[start:stop]) for start, stop in each(spans))
            if reader.ended:
                break
            received = await exchange.connection.receive(reader.space())
            if received == 0:
                reader.eof()
            spans = reader.feed(received)
        self.seen.append(f"PUT {body!r}")
        exchange.leftover = reader.leftover
        await exchange.finish_upload()


class Served:
    """A client's end of a connection that is served, and what became of the server's."""

    def __init__(self, client: MemoryConnection, server: MemoryConnection) -> None:
        self.client = client
        self.server = server
        self.error: BaseException | None = None
        self.ended = trio.Event()

    async def run(self, handler: Callable[[Exchange], Awaitable[None]]) -> None:
        try:
            await serve_connection(self.server, handler)
        except* PeerError as group:
            self.error = group.exceptions[0]
        finally:
            assert self.server.closed
            self.ended.set()

    async def response(self, method: str) -> tuple[int, bytes]:
        """Read one response, not a byte more, as h11 understands it: its status and body."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        status, body = 0, b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self.client.read(1))
            elif isinstance(event, h11.InformationalResponse):
                assert event.status_code == 100
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.EndOfMessage)
                return status, body


@asynccontextmanager
async def served(
    handler: Callable[[Exchange], Awaitable[None]], capacity_bytes: int = 1 << 20
) -> AsyncIterator[Served]:
    it = Served(*memory_pair(capacity_bytes))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run, handler)
        yield it
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ request after request


async def test_several_requests_one_after_another() -> None:
    tunnel = Tunnel()
    tunnel.end_download.set()
    async with served(tunnel) as it:
        for request, method, answer in (
            (PUT + chunked(UPLOAD), "PUT", (200, b"ok\n")),
            (GET, "GET", (200, DOWNLOAD)),
            (put_with_length(UPLOAD * 2), "PUT", (200, b"ok\n")),
            (put_with_length(b""), "PUT", (200, b"ok\n")),
            (GET, "GET", (200, DOWNLOAD)),
            (PUT + chunked(UPLOAD, UPLOAD), "PUT", (200, b"ok\n")),
        ):
            await it.client.send_all(request)
            assert await it.response(method) == answer
        it.client.close()
        await it.ended.wait()
        assert it.error is None
    assert tunnel.seen == [
        f"PUT {UPLOAD!r}",
        "GET",
        f"PUT {UPLOAD * 2!r}",
        "PUT b''",
        "GET",
        f"PUT {UPLOAD * 2!r}",
    ]


requests = st.sampled_from(
    [GET, PUT + chunked(), PUT + chunked(UPLOAD), PUT + chunked(UPLOAD[:9], UPLOAD[9:]), put_with_length(UPLOAD)]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(requests, max_size=6), cuts)
async def test_pipelined_requests_are_served_in_order_under_every_split(wanted: list[bytes], places: list[int]) -> None:
    """Nobody should send them so, but a proxy may join what a client sent: no byte is lost or used twice."""
    tunnel = Tunnel()
    tunnel.end_download.set()
    async with served(tunnel) as it:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for piece in cut(b"".join(wanted), places):
                    await it.client.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()

            for request in wanted:
                method = request[:3].decode()
                assert await it.response(method) == (200, DOWNLOAD if method == "GET" else b"ok\n")
    assert len(tunnel.seen) == len(wanted)


async def test_a_get_that_comes_while_a_download_runs_waits_for_its_end() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(GET)
        await tunnel.downloading.wait()
        await it.client.send_all(GET[:10])
        await trio.testing.wait_all_tasks_blocked()
        await it.client.send_all(GET[10:] + PUT + LAST_CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        assert tunnel.seen == ["GET"]
        tunnel.end_download.set()
        for method, answer in (("GET", DOWNLOAD), ("GET", DOWNLOAD), ("PUT", b"ok\n")):
            assert await it.response(method) == (200, answer)


async def test_what_comes_while_a_download_runs_is_kept_only_up_to_a_limit() -> None:
    tunnel = Tunnel()
    async with served(tunnel, capacity_bytes=1000) as it:
        async with trio.open_nursery() as nursery:
            await it.client.send_all(GET)
            await tunnel.downloading.wait()
            nursery.start_soon(it.client.send_all, bytes(1_000_000))
            await trio.testing.wait_all_tasks_blocked()
            assert len(it.server.unread) == 1000  # nobody reads on
            nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ how a stream begins and ends


async def test_a_download_over_http_1_1_is_chunked_and_ends_with_its_last_chunk() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(GET)
        head = await it.client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nx-tun-conf: conf\r\n" in head
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert await it.client.read_until(DOWNLOAD + b"\r\n") == chunk_head(len(DOWNLOAD)) + DOWNLOAD + CHUNK_END
        tunnel.end_download.set()
        assert await it.client.read_until(LAST_CHUNK) == LAST_CHUNK


async def test_a_download_over_http_1_0_is_plain_and_ends_with_its_connection() -> None:
    tunnel = Tunnel()
    tunnel.end_download.set()
    async with served(tunnel) as it:
        await it.client.send_all(GET_1_0)
        head, _, body = (await it.client.read_all()).partition(b"\r\n\r\n")
        assert b"Transfer-Encoding" not in head
        assert b"\r\nConnection: close" in head
        assert body == DOWNLOAD
        await it.ended.wait()
        assert it.error is None


async def test_the_client_asks_for_the_connection_s_end() -> None:
    tunnel = Tunnel()
    tunnel.end_download.set()
    async with served(tunnel) as it:
        await it.client.send_all(GET[:-2] + b"Connection: close\r\n\r\n" + GET)
        response = await it.client.read_all()
        assert b"\r\nConnection: close\r\n" in response
        assert response.endswith(DOWNLOAD + CHUNK_END + LAST_CHUNK)
    assert tunnel.seen == ["GET"]


async def test_the_client_goes_while_it_downloads() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(GET)
        await tunnel.downloading.wait()
        it.client.close()
        await it.ended.wait()
        assert isinstance(it.error, PeerError)
        assert it.error.reason in ("closed", "broken")


async def test_expect_100_continue() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(PUT_EXPECTING)
        assert await it.client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await it.client.send_all(chunked(UPLOAD))
        assert await it.response("PUT") == (200, b"ok\n")


async def test_no_100_for_a_body_that_is_already_here() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(PUT_EXPECTING + chunked(UPLOAD))
        assert (await it.client.read_until(b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_no_100_for_who_does_not_expect_it() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(PUT)
        await trio.testing.wait_all_tasks_blocked()
        assert it.client.unread == b""


async def test_an_upload_is_answered_only_at_its_end() -> None:
    """A deployed client that has its answer before would PUT again every second."""
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(PUT + chunked(UPLOAD)[: -len(LAST_CHUNK)])
        await trio.testing.wait_all_tasks_blocked()
        assert it.client.unread == b""
        await it.client.send_all(LAST_CHUNK)
        assert await it.response("PUT") == (200, b"ok\n")


# ------------------------------------------------------------------ refusals


@table(
    "raw status",
    ("no request line", b"garbage\r\n\r\n", 400),
    ("a bare LF", GET.replace(b"\r\n", b"\n"), 400),
    ("both framings", PUT[:-2] + b"Content-Length: 3\r\n\r\nabc", 400),
    ("an unknown coding", PUT.replace(b"chunked", b"gzip"), 501),
    ("a head that is too long", GET[:-2] + b"X: " + b"x" * (MAX_HEAD_BYTES + 5000), 431),
)
async def test_a_malformed_request_is_answered_and_ends_the_connection(raw: bytes, status: int) -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(raw + GET)
        assert (await it.response("PUT"))[0] == status
        assert await it.client.read() == b""
        it.client.close()
        await it.ended.wait()
        assert isinstance(it.error, BadRequest)
    assert tunnel.seen == []


async def test_403_comes_in_the_place_of_the_100() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(UNKNOWN[:-2] + b"Expect: 100-continue\r\n\r\n")
        response = await it.client.read_all()
        assert response.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"\r\nConnection: close\r\n" in response
    assert tunnel.seen == ["403"]


@pytest.mark.parametrize("body_bytes", [0, 10_000, 250_000])
async def test_403_reaches_a_client_that_is_still_sending_its_body(body_bytes: int, autojump_clock: Clock) -> None:
    """Who closes with unread bytes resets the connection, and the answer may be lost with it."""
    async with served(Tunnel(), capacity_bytes=5000) as it:
        await it.client.send_all(UNKNOWN + bytes(body_bytes))
        await trio.sleep(LINGER_S / 2)
        await it.client.send_all(b"more")
        assert await it.response("PUT") == (403, b"403\n")
        it.client.close()
        await it.ended.wait()


async def test_who_was_refused_and_goes_on_sending_is_not_waited_for(autojump_clock: Clock) -> None:
    async with served(Tunnel()) as it:
        began = trio.current_time()
        await it.client.send_all(UNKNOWN)
        await it.ended.wait()
        assert trio.current_time() - began == pytest.approx(LINGER_S)


async def test_who_was_refused_and_reads_nothing_is_not_waited_for(autojump_clock: Clock) -> None:
    async with served(Tunnel(), capacity_bytes=10_000) as it:
        it.server.limit(10)
        await it.client.send_all(UNKNOWN)
        with trio.fail_after(2 * LINGER_S):
            await it.ended.wait()


async def test_a_refused_client_cannot_keep_us_busy_with_its_body() -> None:
    async with served(Tunnel(), capacity_bytes=5000) as it:
        with pytest.raises(PeerError):
            await it.client.send_all(UNKNOWN + bytes(1_000_000))
        await it.ended.wait()


# ------------------------------------------------------------------ deadlines


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("every_s", [0.5, 3.0, 9.9])
async def test_a_head_that_trickles_in_gets_408_after_10_s(every_s: float, first: bool, autojump_clock: Clock) -> None:
    async with served(Tunnel()) as it:
        if not first:
            await it.client.send_all(PUT + LAST_CHUNK)
            assert await it.response("PUT") == (200, b"ok\n")
            await trio.sleep(IDLE_S / 2)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def trickle() -> None:
                for byte in GET:
                    await it.client.send_all(bytes([byte]))
                    await trio.sleep(every_s)

            assert (await it.response("GET"))[0] == 408
            assert trio.current_time() - began == pytest.approx(HEAD_S)
            nursery.cancel_scope.cancel()
        it.client.close()
        await it.ended.wait()
        assert isinstance(it.error, BadRequest)


async def test_the_10_s_of_a_new_connection_begin_when_it_is_accepted(autojump_clock: Clock) -> None:
    """Else a silent stranger doubles its time with one byte."""
    async with served(Tunnel()) as it:
        began = trio.current_time()
        await trio.sleep(HEAD_S - 1)
        await it.client.send_all(b"G")
        assert (await it.response("GET"))[0] == 408
        assert trio.current_time() - began == pytest.approx(HEAD_S)


async def test_a_connection_on_which_nothing_comes_is_closed_after_10_s(autojump_clock: Clock) -> None:
    async with served(Tunnel()) as it:
        began = trio.current_time()
        assert await it.client.read() == b""
        assert trio.current_time() - began == pytest.approx(HEAD_S)
        await it.ended.wait()
        assert it.error is None


async def test_a_connection_may_be_idle_longer_between_two_requests(autojump_clock: Clock) -> None:
    async with served(Tunnel()) as it:
        for _ in range(2):
            await it.client.send_all(PUT + LAST_CHUNK)
            assert await it.response("PUT") == (200, b"ok\n")
            await trio.sleep(IDLE_S - 0.1)
        await trio.sleep(0.2)
        assert await it.client.read() == b""
        await it.ended.wait()
        assert it.error is None


async def test_a_head_has_its_10_s_from_its_first_byte_also_at_the_end_of_the_idle_time(autojump_clock: Clock) -> None:
    async with served(Tunnel()) as it:
        await it.client.send_all(PUT + LAST_CHUNK)
        assert await it.response("PUT") == (200, b"ok\n")
        await trio.sleep(IDLE_S - 1)
        await it.client.send_all(PUT[:10])
        await trio.sleep(2)
        await it.client.send_all(PUT[10:] + LAST_CHUNK)
        assert await it.response("PUT") == (200, b"ok\n")


async def test_a_next_head_that_trickles_in_gets_408_too(autojump_clock: Clock) -> None:
    async with served(Tunnel()) as it:
        await it.client.send_all(PUT + LAST_CHUNK + b"G")
        assert await it.response("PUT") == (200, b"ok\n")
        began = trio.current_time()
        assert (await it.response("GET"))[0] == 408
        assert trio.current_time() - began == pytest.approx(HEAD_S)


# ------------------------------------------------------------------ ends


async def test_closed_between_requests_is_no_error() -> None:
    async with served(Tunnel()) as it:
        it.client.close()
        await it.ended.wait()
        assert it.error is None


async def test_closed_within_a_head() -> None:
    async with served(Tunnel()) as it:
        await it.client.send_all(GET[:20])
        it.client.close()
        await it.ended.wait()
        assert isinstance(it.error, PeerError)
        assert it.error.reason == "closed"


async def test_aborted_by_the_lobby_while_it_waits() -> None:
    async with served(Tunnel()) as it:
        await trio.testing.wait_all_tasks_blocked()
        it.server.abort()
        await it.ended.wait()
        assert isinstance(it.error, PeerError)


async def test_a_bug_in_the_handler_closes_the_connection_and_is_not_hidden() -> None:
    async def handler(exchange: Exchange) -> None:
        raise ZeroDivisionError

    client, server = memory_pair()
    await client.send_all(GET)
    with pytest.raises(ZeroDivisionError):
        await serve_connection(server, handler)
    assert server.closed


async def test_cancelled_it_closes_the_connection() -> None:
    tunnel = Tunnel()
    async with served(tunnel) as it:
        await it.client.send_all(GET)
        await tunnel.downloading.wait()
    assert it.server.closed
