"""A server, or whatever answers in its place, that means our client no good: the stream ends with a reason that a
person can read, the interface stays, and the next answer that is right is taken."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface
from typing import Final, TypeAlias
from unittest.mock import patch

import pytest
import trio

from tapotun_trio.client import client as client_module
from tapotun_trio.client.backoff import Backoff
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.wire import control
from tapotun_trio.wire.tunconf import encode_generation_1
from tests.basepeer.wire import Conf

from ..fakes import MemoryDevice
from ..packets import frame, ipv4
from ..tables import table
from .hostile import Raw, assert_quiet, chunk, hostile_host, logged, memory_below, open_fds, until
from .support import client_config, running

pytestmark = pytest.mark.usefixtures("each_plane")

ME: Final = "10.10.0.2"
DOWN: Final = ipv4("10.10.0.1", ME, b"down")
CONF: Final = Conf(1500, 24, (ME,)).encode(1)

Answer: TypeAlias = Callable[[Raw], Awaitable[None]]


def ok(conf: str = CONF, *fields: str) -> bytes:
    """A download's 200, chunked."""
    lines = ["HTTP/1.1 200 OK", f"x-tun-conf: {conf}", "Transfer-Encoding: chunked", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


EXTENDED: Final = ok(CONF, "x-tun-features: ctl")


def params(**fields: object) -> bytes:
    """A PARAMS frame, right but for these fields."""
    right = {"mtu": 1500, "addresses": [f"{ME}/24"], "routes": [], "keepalive": 10.0}
    return control.encode(control.PARAMS, json.dumps({**right, **fields}).encode())


class Server:
    """Gives one answer after the other to GETs, the last of them again and again; PUTs it only swallows."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        self.gets = self.puts = 0
        self.put_answer: Answer = _swallow

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            raw = Raw(stream)
            if (await raw.head()).startswith(b"GET"):
                answer = self.answers[min(self.gets, len(self.answers) - 1)]
                self.gets += 1
                await answer(raw)
            else:
                self.puts += 1
                await self.put_answer(raw)


async def _swallow(raw: Raw) -> None:
    while await raw.receive():
        pass


def says(*parts: bytes, then: str = "waits") -> Answer:
    """An answer of these bytes, and what comes after them: ``closes``, ``resets``, or ``waits`` for the client."""

    async def answer(raw: Raw) -> None:
        for part in parts:
            await raw.send(part)
        if then == "resets":
            raw.reset()
        elif then == "waits":
            await _swallow(raw)

    return answer


def repeats(part: bytes, count: int = 100_000, *, first: bytes = b"") -> Answer:
    """An answer without end."""

    async def answer(raw: Raw) -> None:
        await raw.send(first)
        for _ in range(count):
            await raw.send(part)

    return answer


GOOD: Final = says(ok(), chunk(frame(DOWN)))


@asynccontextmanager
async def facing(
    *answers: Answer, put: Answer = _swallow, seen: list[bytes] | None = None, ends: dict[str, int] | None = None
) -> AsyncIterator[tuple[Server, MemoryDevice]]:
    """A client of ours that gets these answers and at last a good one. Yields when a packet of that has arrived.

    ``seen`` and ``ends`` are filled with the packets before that one and with the client's `Counters.ends`.
    """
    server, host, before = Server([*answers, GOOD]), hostile_host(), open_fds()
    server.put_answer = put
    clients: list[TunnelClient] = []

    def client(*args: object, **options: object) -> TunnelClient:
        clients.append(TunnelClient(*args, **options))  # type: ignore[arg-type]
        return clients[-1]

    with logged() as log, patch.object(client_module, "TunnelClient", client):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, server.serve, listeners)
            async with running(host, client_config("a", port)):
                device = await host.device("a")
                # What came before the good one is not our subject here, but may have been right.
                while (packet := await device.receive_packet()) != DOWN:
                    if seen is not None:
                        seen.append(packet)
                if ends is not None:
                    ends.update(clients[-1].counters.ends)
                yield server, device
            nursery.cancel_scope.cancel()
    assert_quiet(log)
    await until(lambda: open_fds() <= before, "the descriptors to be closed")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda *args, **kwargs: 0.0)


def conf_1(mtu: int, prefix: int, ip: bytes) -> str:
    return base64.b64encode(struct.pack("<HB4s", mtu, prefix, ip)).decode()


@table(
    "answer words",
    ("not HTTP", says(b"\x16\x03\x01\0\0\r\n\r\n"), "not HTTP"),
    ("SSH", says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "not HTTP"),
    ("nothing", says(then="closes"), "without an answer"),
    ("a reset", says(then="resets"), "broke|without an answer"),
    ("half a head", says(ok()[:40], then="closes"), "without an answer|not HTTP"),
    ("TE and CL", says(ok(CONF, "Content-Length: 5")), "Content-Length|not HTTP"),
    ("a folded conf", says(b"HTTP/1.1 200 OK\r\nx-tun-conf:\r\n AAAA\r\n\r\n", then="closes"), "x-tun-conf"),
    ("two confs", says(ok(CONF, f"x-tun-conf: {CONF}"), then="closes"), "base64"),
    ("no conf", says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "without x-tun-conf"),
    ("a conf of nothing", says(ok("")), "x-tun-conf"),
    ("a conf that is no base64", says(ok("%%%%")), "base64"),
    ("a conf with MTU 67", says(ok(conf_1(67, 24, b"\n\n\0\2"))), "MTU"),
    ("a conf with /33", says(ok(conf_1(1500, 33, b"\n\n\0\2"))), "33"),
    ("a conf with a multicast address", says(ok(conf_1(1500, 24, b"\xe0\0\0\1"))), "address"),
    ("a conf with 0.0.0.0", says(ok(conf_1(1500, 0, bytes(4)))), "address"),
    ("a conf with 127.0.0.1", says(ok(conf_1(1500, 8, b"\x7f\0\0\1"))), "address"),
    ("a conf of 10,000 bytes", says(ok("A" * 10_000)), "x-tun-conf"),
    ("an endless head", repeats(b"x-a: b\r\n", first=b"HTTP/1.1 200 OK\r\n"), "not HTTP"),
    ("an endless line", repeats(b"x" * 100, first=b"HTTP/1.1 200 "), "not HTTP"),
    ("switching protocols", says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "not HTTP|101"),
    (
        "a redirect",
        says(b"HTTP/1.1 302 Found\r\nLocation: http://x/\x9b31m\r\nContent-Length: 0\r\n\r\n"),
        "redirected to",
    ),
    ("a status of terminal controls", says(b"HTTP/1.1 500 \x9b31m\r\nContent-Length: 0\r\n\r\n"), "500"),
    ("a status as long as a book", says(b"HTTP/1.1 500 " + b"x" * 9000 + b"\r\nContent-Length: 0\r\n\r\n"), "500"),
    ("L=5", says(ok(), chunk(b"\5\0" + bytes(40))), "5 bytes"),
    ("control where none was agreed", says(ok(), chunk(params())), "1 bytes"),
    ("no IP", says(ok(), chunk(frame(bytes(20)))), "without an IP packet"),
    ("a flag that virtio has not", says(ok(), chunk(frame(DOWN, b"\xff" + bytes(11)))), "vnet"),
    ("a bad chunk size", says(ok(), b"x\r\n"), "hexadecimal"),
    ("a bare LF", says(ok(), b"2\n\0\0\n"), "bare LF"),
    ("an end within a frame", says(ok(), chunk(frame(DOWN)[:20]) + b"0\r\n\r\n"), "within a frame"),
    ("a break within a frame", says(ok(), chunk(frame(DOWN)[:20]), then="closes"), "closed"),
    ("a break within a chunk", says(ok(), b"ff\r\n\0", then="closes"), "closed"),
    ("PARAMS that are no JSON", says(EXTENDED, chunk(control.encode(control.PARAMS, b"{"))), "parameters"),
    ("PARAMS of nothing", says(EXTENDED, chunk(control.encode(control.PARAMS))), "parameters"),
    ("PARAMS that nest", says(EXTENDED, chunk(control.encode(1, b'{"x":' + b"[" * 40_000))), "parameters"),
    ("PARAMS without an address", says(EXTENDED, chunk(params(addresses=[]))), "parameters"),
    ("PARAMS with IPv6", says(EXTENDED, chunk(params(addresses=["fd00::1/64"]))), "parameters"),
    ("PARAMS for Ethernet frames", says(EXTENDED, chunk(params(device="tap"))), "tun only"),
    ("PARAMS with a multicast address", says(EXTENDED, chunk(params(addresses=["224.0.0.1/4"]))), "parameters"),
    ("PARAMS with an address twice", says(EXTENDED, chunk(params(addresses=[f"{ME}/24"] * 2))), "parameters"),
    ("PARAMS with a route's host bits", says(EXTENDED, chunk(params(routes=["10.0.0.1/8"]))), "parameters"),
    ("PARAMS with MTU 0", says(EXTENDED, chunk(params(mtu=0))), "parameters"),
    ("PARAMS with MTU 2**70", says(EXTENDED, chunk(params(mtu=2**70))), "parameters"),
    ("PARAMS with no keepalive", says(EXTENDED, chunk(params(keepalive=0))), "parameters"),
    ("PARAMS with a keepalive of -1", says(EXTENDED, chunk(params(keepalive=-1))), "parameters"),
    ("PONG of 7 bytes", says(EXTENDED, chunk(control.encode(control.PONG, bytes(7)))), "PONG"),
    ("a control frame of 4 GiB", says(EXTENDED, chunk(b"\1\0\x63\xff\xff\xff\xff")), "control frame of"),
)
async def test_a_bad_answer_is_told_and_the_next_one_taken(
    caplog: pytest.LogCaptureFixture, answer: Answer, words: str
) -> None:
    async with facing(answer):
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "download" in r.getMessage()]
        assert len(warnings) == 1
        assert re.search(words, warnings[0]), warnings
        assert len(warnings[0]) < 1000
        assert warnings[0].isprintable()


async def test_what_a_peer_may_send_and_is_no_error() -> None:
    kinds = b"".join(control.encode(kind, bytes(kind)) for kind in range(6, 256))
    byes = b"".join(control.bye(text) for text in ("", "\x1b[31m", "x" * 4000, "\ud7ff\u202e"))
    answer = says(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50, EXTENDED, chunk(kinds + byes + params() + frame(DOWN)))
    async with facing(answer) as (server, _):
        assert server.gets == 1


@table(
    "answer",
    ("interim answers", repeats(b"HTTP/1.1 100 Continue\r\n\r\n", 1000)),
    ("control frames", repeats(chunk(control.encode(99) * 5000), 6, first=EXTENDED)),
    ("PINGs", repeats(chunk(control.ping(0) * 5000), 4, first=EXTENDED)),
    ("PINGs of 48 KiB", repeats(chunk(control.encode(control.PING, bytes(48 * 1024))), 40, first=EXTENDED)),
    ("parameters", repeats(chunk(params(mtu=1400) + params(mtu=1300)), 100, first=EXTENDED)),
    ("base pings", repeats(chunk(bytes(60_000)), 3, first=ok())),
    ("1-byte chunks", repeats(b"1\r\n\0\r\n" * 1000, 20, first=ok())),
    ("chunk extensions", repeats(b"1;" + b"x" * 900 + b"\r\n\0\r\n", 1000, first=ok())),
)
async def test_a_flood_costs_no_memory(answer: Answer) -> None:
    with memory_below(8 * 2**20, "a server that floods its client"):
        async with facing(answer):
            pass


async def test_goodbyes_without_end_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with facing(says(EXTENDED, chunk(control.bye("again") * 2000), then="closes")):
        assert sum("goodbye" in r.getMessage() for r in caplog.records) <= 5


@pytest.mark.parametrize("then", ["closes", "resets"])
async def test_an_answer_that_dies_at_every_position(then: str) -> None:
    wire = EXTENDED + chunk(params()) + chunk(control.ping(0)) + chunk(frame(bytes([0x45]) + bytes(19)))
    async with facing(*(says(wire[:n], then=then) for n in range(len(wire)))) as (server, _):
        assert server.gets == len(wire) + 1


@table(
    "answer",
    ("403", says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")),
    ("409", says(b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n")),
    ("413", says(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")),
    ("200 too early", says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
    ("garbage", says(b"\0" * 100)),
    ("the end", says(then="closes")),
    ("a reset", says(then="resets")),
    ("interim answers", repeats(b"HTTP/1.1 100 Continue\r\n\r\n", 1000)),
)
async def test_an_upload_that_is_answered_with_anything(answer: Answer) -> None:
    """The download does not notice; the upload is tried again."""
    async with facing(put=answer) as (server, _):
        await until(lambda: server.puts > 2, "more uploads")
        assert server.gets == 1


def test_our_conf_is_the_base_peers() -> None:
    assert encode_generation_1(1500, IPv4Interface(f"{ME}/24")) == CONF
