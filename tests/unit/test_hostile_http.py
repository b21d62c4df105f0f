"""HTTP that is not as it should be, before and after the token: smuggling, pipelining, slow heads, bombs, crowds."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import pytest
import trio

from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.http import pending
from tapotun_trio.http import server as http_server
from tapotun_trio.http.heads import MAX_HEAD_BYTES

from ..packets import frame, ipv4
from ..tables import table
from .hostile import CHUNKED, HUB, besieged, chunk, memory_below, open_fds, report, request, until

ME: Final = "10.10.0.2"
KEY: Final = "x-api-key: mallory"
LAST_CHUNK: Final = b"0\r\n\r\n"
PIGGYBACK: Final = request("GET", "mallory")  # what a smuggler hides: it must never be answered


def put(*fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    return request("PUT", "mallory", *fields, version=version) + body


def bare(text: str) -> bytes:
    """A request head as it stands, with a line for each of the text's."""
    return text.replace("|", "\r\n").encode("latin-1") + b"\r\n\r\n"


@table(
    "wire status",
    ("TE and CL", put(CHUNKED, "Content-Length: 5", body=LAST_CHUNK + PIGGYBACK), 400),
    ("CL and TE", put("Content-Length: 5", CHUNKED, body=LAST_CHUNK + PIGGYBACK), 400),
    ("two CL that differ", put("Content-Length: 0", "Content-Length: 4", body=b"\0\0\0\0" + PIGGYBACK), 400),
    ("two CL alike", put("Content-Length: 0", "Content-Length: 0", body=PIGGYBACK), 400),
    ("a list as CL", put("Content-Length: 0, 0", body=PIGGYBACK), 400),
    ("negative CL", put("Content-Length: -1", body=PIGGYBACK), 400),
    ("signed CL", put("Content-Length: +0", body=PIGGYBACK), 400),
    ("hexadecimal CL", put("Content-Length: 0x0", body=PIGGYBACK), 400),
    ("CL of 5,000 digits", put("Content-Length: " + "9" * 5000, body=PIGGYBACK), 400),
    ("CL in other digits", put("Content-Length: \xb2", body=PIGGYBACK), 400),
    ("two TE", put(CHUNKED, CHUNKED, body=LAST_CHUNK + PIGGYBACK), 501),
    ("TE identity", put("Transfer-Encoding: identity", body=PIGGYBACK), 501),
    ("TE gzip, chunked", put("Transfer-Encoding: gzip, chunked", body=LAST_CHUNK + PIGGYBACK), 501),
    ("TE chunked, chunked", put("Transfer-Encoding: chunked, chunked", body=LAST_CHUNK + PIGGYBACK), 501),
    ("TE xchunked", put("Transfer-Encoding: xchunked", body=LAST_CHUNK + PIGGYBACK), 501),
    ("TE behind a vertical tab", put("Transfer-Encoding: \x0bchunked", body=LAST_CHUNK + PIGGYBACK), 400),
    ("TE with a space before its colon", put("Transfer-Encoding : chunked", body=LAST_CHUNK + PIGGYBACK), 400),
    ("TE in HTTP/1.0", put(CHUNKED, body=LAST_CHUNK + PIGGYBACK, version="1.0"), 400),
    ("a folded field", put("x-a: b\r\n " + CHUNKED, body=LAST_CHUNK + PIGGYBACK), 400),
    ("a NUL", put("x-a: b\0c", body=PIGGYBACK), 400),
    ("a bare CR", put("x-a: b\r" + CHUNKED, body=LAST_CHUNK + PIGGYBACK), 400),
    ("a bare LF", put("x-a: b\n" + CHUNKED, body=LAST_CHUNK + PIGGYBACK), 400),
    ("bare LF everywhere", put(CHUNKED).replace(b"\r\n", b"\n") + LAST_CHUNK + PIGGYBACK, 400),
    ("two hosts", put("Host: other", body=PIGGYBACK), 400),
    ("two tokens", put(KEY, body=PIGGYBACK), 400),
    ("a GET with a length", request("GET", "mallory", "Content-Length: 9") + PIGGYBACK, 400),
    ("a GET with chunks", request("GET", "mallory", CHUNKED) + LAST_CHUNK + PIGGYBACK, 400),
    ("no host", bare(f"PUT /ip HTTP/1.1|{KEY}|Content-Length: 0") + PIGGYBACK, 400),
    ("no version", bare(f"GET /ip|{KEY}") + PIGGYBACK, 400),
    ("HTTP/2.0", bare(f"GET /ip HTTP/2.0|Host: h|{KEY}") + PIGGYBACK, 505),
    ("HTTP/0.9", bare(f"GET /ip HTTP/0.9|Host: h|{KEY}") + PIGGYBACK, 505),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + PIGGYBACK, 505),
    ("a space before a name", bare(f"PUT /ip HTTP/1.1| Host: h|{KEY}") + PIGGYBACK, 400),
    ("an empty name", bare(f"PUT /ip HTTP/1.1|Host: h|: x|{KEY}") + PIGGYBACK, 400),
    ("two spaces in the request line", bare(f"GET  /ip HTTP/1.1|Host: h|{KEY}") + PIGGYBACK, 400),
    ("a TLS hello", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(64), 400),
    ("a PROXY line", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + PIGGYBACK, 400),
    ("another method", request("POST", "mallory", "Content-Length: 0") + PIGGYBACK, 405),
    ("CONNECT", request("CONNECT", "mallory") + PIGGYBACK, 405),
    ("a wrong token", request("PUT", "wrong", CHUNKED) + LAST_CHUNK + PIGGYBACK, 403),
    ("no token", request("GET", None) + PIGGYBACK, 403),
    ("a token in another case", request("GET", "MALLORY") + PIGGYBACK, 403),
    ("a token with high bytes", request("GET", "mallory\xff") + PIGGYBACK, 403),
)
async def test_a_request_that_two_parsers_read_differently_is_refused(wire: bytes, status: int) -> None:
    """And what stands behind it on the connection is nobody's request."""
    async with besieged() as siege:
        raw = await siege.connect(wire)
        answer = await raw.rest()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in answer.lower()
        assert not siege.mallory.sender.streaming
        assert not siege.hub.take()


@pytest.mark.usefixtures("each_plane")
@pytest.mark.parametrize("bytewise", [False, True], ids=["at once", "bytewise"])
async def test_pipelined_requests_are_answered_one_after_the_other(bytewise: bool) -> None:
    packets = [ipv4(ME, HUB, bytes([n]) * 50) for n in range(4)]
    frames = [frame(packet) for packet in packets]
    wire = b"".join(
        [
            put(CHUNKED, body=chunk(frames[0]) + LAST_CHUNK),
            put(f"Content-Length: {len(frames[1])}", body=frames[1]),
            put("Content-Length: 0"),
            put(CHUNKED, "Expect: 100-continue", body=chunk(frames[2]) + LAST_CHUNK),
            put(CHUNKED, body=chunk(frames[3]) + LAST_CHUNK),
            request("GET", "mallory"),
            request("GET", "wrong"),  # waits behind an endless download, as it should
        ]
    )
    async with besieged() as siege:
        raw = await siege.connect(*() if bytewise else (wire,))
        if bytewise:
            for at in range(len(wire)):
                await raw.send(wire[at : at + 1])
        for packet in packets:
            assert await siege.hub.receive_packet() == packet
        for _ in range(5):
            head = await raw.head()
            while b" 100 " in head:
                head = await raw.head()
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await raw.exactly(3) == b"ok\n"
        assert await raw.status() == 200
        await until(lambda: siege.mallory.sender.streaming, "the download")
        assert await raw.exactly(7) == b"2\r\n\0\0\r\n"  # its first ping
        siege.hub.send(down := ipv4(HUB, ME, b"down"))
        assert await raw.exactly(len(chunk(frame(down)))) == chunk(frame(down))
        assert siege.mallory.counters.ends == {}


async def test_thousands_of_pipelined_requests_whose_answers_nobody_reads() -> None:
    """The answers fill the connection; then the server waits, with nothing more in memory."""
    async with besieged() as siege:
        raw = await siege.connect()
        wire = put("Content-Length: 0") * 500
        with memory_below(4 * 2**20, "pipelined and unread"), trio.move_on_after(0.5):
            for _ in range(400):
                await raw.send(wire)
        await siege.assert_honest_traffic()


@table(
    "wire status",
    ("one long field", put("cookie: " + "x" * MAX_HEAD_BYTES), 431),
    ("one endless field", put("cookie: " + "x" * MAX_HEAD_BYTES)[:-4], 431),
    ("thousands of fields", put(*["a:b"] * 4000), 431),
    ("thousands of empty lines", b"\r\n" * 10_000, 400),
    ("one endless target", b"GET /" + b"x" * 2 * MAX_HEAD_BYTES, 431),
    ("one endless method", b"G" * 2 * MAX_HEAD_BYTES, 431),
    ("NULs", bytes(2 * MAX_HEAD_BYTES), 400),
    ("0xff", b"\xff" * 2 * MAX_HEAD_BYTES, 431),
)
async def test_a_bomb_as_a_head(wire: bytes, status: int) -> None:
    async with besieged() as siege:
        raw = await siege.connect(wire)
        answer = await raw.rest()
        assert answer.startswith(b"HTTP/1.1 %d " % status) or not answer  # a reset may overtake it
        assert siege.mallory.counters.rx_packets == 0


@pytest.mark.usefixtures("each_plane")
async def test_a_bomb_as_a_head_behind_a_head() -> None:
    async with besieged() as siege:
        raw = await siege.connect(put("Content-Length: 0"), put("cookie: " + "x" * 2 * MAX_HEAD_BYTES))
        assert await raw.status() == 200
        await raw.rest()


SLOW_S: Final = 0.15


@table(
    "start drip",
    ("nothing at all", b"", b""),
    ("half a head", b"GET /ip HTTP/1.1\r\n", b""),
    ("a byte now and then", b"GET /ip HTTP/1.1\r\n", b"x"),
    ("a line now and then", b"GET /ip HTTP/1.1\r\n", b"a: b\r\n"),
    ("a second head that never ends", put("Content-Length: 0") + b"GET", b"x"),
    ("half an empty line", b"G", b""),
)
async def test_a_slow_head_has_a_deadline(monkeypatch: pytest.MonkeyPatch, start: bytes, drip: bytes) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", SLOW_S)
    async with besieged() as siege:
        raw = await siege.connect(start)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def go_on() -> None:
                while drip:
                    await raw.send(drip)
                    await trio.sleep(SLOW_S / 10)

            nursery.start_soon(go_on)
            answer = await raw.rest()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - begun > SLOW_S * 0.9
        assert (b" 408 " in answer) == bool(start)


@table(
    "hello count",
    ("2,000 that say nothing", b"", 2000),
    ("2,000 with a wrong token", request("PUT", "wrong", CHUNKED), 2000),
    ("half a head", b"GET /ip HTTP/1.1\r\nHost: h\r\n", 400),
    ("no token", request("GET", None), 400),
    ("no HTTP", b"\x16\x03\x01\0", 400),
)
async def test_a_crowd_without_a_token(hello: bytes, count: int) -> None:
    """So many descriptors as the lobby has places, and who has a token comes through."""
    async with besieged() as siege:
        peak = 0
        for ours in range(1, count + 1):
            await siege.connect(hello)
            if ours % 100 == 0:
                await siege.assert_honest_traffic()
                peak = max(peak, open_fds() - siege.fds - ours)
        report(f"{count} strangers ({hello[:10]!r}): {peak} descriptors at the server's side")
        assert peak <= pending.MAX_CONNECTIONS + 32  # who was accepted a moment ago, or is on the way out
        upload = await siege.connect(put(CHUNKED, body=chunk(frame(packet := ipv4(ME, HUB, b"through"))) + LAST_CHUNK))
        assert await upload.status() == 200
        assert await siege.hub.receive_packet() == packet


async def test_the_memory_of_a_crowd() -> None:
    async with besieged() as siege:
        with memory_below(16 * 2**20, "400 strangers with half a head of 8 KiB"):
            for _ in range(400):
                (await siege.connect(b"GET /ip HTTP/1.1\r\na: " + b"x" * 8192)).close()
            await siege.assert_honest_traffic()


async def test_a_crowd_that_resets() -> None:
    async with besieged() as siege:
        for n in range(600):
            raw = await siege.connect((b"", b"GET / HT", request("GET", None), request("GET", "mallory"))[n % 4])
            raw.reset()
        await until(lambda: not siege.mallory.sender.streaming, "the last download's end")
        assert set(siege.mallory.counters.ends) <= {"broken", "closed"}


async def test_whoever_uses_a_closed_connection_gets_a_peer_error_every_time() -> None:
    """The lobby closes connections under the tasks that serve them: each must learn it in the same way."""
    for wait in (Connection.wait_readable, Connection.wait_writable):
        for _ in range(3):
            await _closed(wait)


async def _closed(wait: Callable[[Connection], object]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = Connection(ours, "test")
        connection.close()
        with pytest.raises(PeerError):
            await wait(connection)  # type: ignore[misc]


async def test_strangers_that_are_evicted_in_the_middle_of_their_refusal() -> None:
    """Each speaks up just when the next one comes: pushed out between two steps of its refusal, it is over, and that
    is all. (It takes no token to do this to a server.)"""
    async with besieged() as siege:
        siege.server.endpoints[0].pending.limit = 1
        for _ in range(10):
            with ExitStack() as strangers:
                for _ in range(30):  # blocking: they all wait to be accepted with their request already there
                    sock = strangers.enter_context(socket.create_connection(("127.0.0.1", siege.port)))
                    sock.sendall(request("GET", "wrong"))
                await trio.sleep(0.02)  # `wait_all_tasks_blocked` never returns while the plane has something


@pytest.mark.usefixtures("each_plane")
async def test_idle_connections_of_a_client_are_bounded() -> None:
    """A token is no licence to hold every descriptor: after their requests the connections wait like strangers'."""
    async with besieged() as siege:
        siege.server.endpoints[0].pending.limit = 16
        ours = 100
        for _ in range(ours):
            raw = await siege.connect(put("Content-Length: 0"))
            assert await raw.status() == 200
        await until(lambda: open_fds() - siege.fds - ours <= 32, "the oldest to be closed")
        held = open_fds() - siege.fds - ours
        report(f"{held} idle connections of one client are kept open, of {ours}")
        assert held <= 32
