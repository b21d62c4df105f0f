"""The WebSocket carrier: our two ends on loopback, and each of them against a peer that means it no good."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Final, TypeAlias

import pytest
import trio

from tapotun_trio.client import client as client_module
from tapotun_trio.client.backoff import Backoff
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.client.transport_choice import TransportState
from tapotun_trio.config.model import TransportChoice
from tapotun_trio.wire import control
from tapotun_trio.wire.frames import FrameReader
from tapotun_trio.wire.tunconf import encode_generation_1
from tapotun_trio.wire.websocket import BINARY, CLOSE, PING, PONG, TEXT, WebSocketBody, close_payload, frame, read_close

from ..fakes import MemoryDevice, MemoryHost
from ..packets import frame as packet_frame
from ..packets import ipv4
from ..tables import table
from .hostile import HUB, Raw, Siege, assert_quiet, besieged, extended, logged, memory_below, open_fds, request, until
from .support import allowed, client_config, counting_streams, free_port, running, server_config

ME: Final = "10.10.0.2"
TO_HUB: Final = ipv4(ME, HUB, b"x" * 100)
KEY: Final = b"\x12\x34\x56\x78"
NONCE: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3, with its answer
ACCEPT: Final = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

ROTATIONS: Final = 5  # at least, where a test has streams replaced; in a second there are about thirty

UPGRADE: Final = ("Upgrade: websocket", "Connection: Upgrade")
REST: Final = (f"Sec-WebSocket-Key: {NONCE}", "Sec-WebSocket-Version: 13")


def features(name: str = "mallory") -> tuple[str, str]:
    return "x-tun-features: ctl, ws", extended(name)[1]


def masked(data: bytes, opcode: int = BINARY) -> bytes:
    return frame(opcode, data, KEY)


async def websocket(siege: Siege, who: str = "mallory") -> Raw:
    """A WebSocket of mallory's that was accepted, on which the server has said its PARAMS and its first PING."""
    raw = await siege.connect(request("GET", "mallory", *UPGRADE, *REST, *features(who)))
    head = await raw.head()
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"\r\nSec-WebSocket-Accept: " + ACCEPT in head
    assert b"\r\nx-tun-features: ctl, ws\r\n" in head
    assert b"\r\nx-tun-conf: " in head
    await until(lambda: siege.mallory.uploads, "the upload half")
    return raw


async def message(raw: Raw) -> tuple[int, bytes] | None:
    """What the server sends next: opcode and payload, all in one frame; None at the end of the connection."""
    try:
        first, length = await raw.exactly(2)
    except AssertionError:
        return None
    assert first & 0x80
    size = length if length < 126 else int.from_bytes(await raw.exactly(2 if length == 126 else 8), "big")
    return first & 0x0F, await raw.exactly(size)


async def farewell_frame(raw: Raw) -> tuple[list[str], tuple[int, str]]:
    """The BYEs and the close that the server sends before it ends the connection."""
    closes: list[tuple[int, str]] = []
    reader = FrameReader(WebSocketBody(masked=False), control=True)
    while (it := await message(raw)) is not None:
        opcode, payload = it
        assert not closes, "something came after the close"
        if opcode == BINARY:
            reader.prime(frame(BINARY, payload))
        elif opcode == CLOSE:
            closes.append(read_close(payload))
    byes = [control.bye_reason(payload) for kind, payload in reader.controls if kind == control.BYE]
    assert len(closes) == 1, closes
    return byes, closes[0]


# ------------------------------------------------------------------ our two ends


@asynccontextmanager
async def tunnel(
    transport: TransportChoice, rotate_s: tuple[float, float] = (400.0, 500.0)
) -> AsyncIterator[tuple[MemoryDevice, MemoryDevice, TunnelClient]]:
    """The devices of a hub and a client, and the client. If streams are to be replaced within a second, check at the
    end that they were."""
    port, host, clients = free_port(), MemoryHost(), []

    class Client(TunnelClient):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]
            clients.append(self)

    config = replace(client_config("a", port), transport=transport, rotate_s=rotate_s)
    with pytest.MonkeyPatch.context() as patch, logged() as log, counting_streams() as begun:
        patch.setattr(client_module, "TunnelClient", Client)
        async with running(host, server_config(port, allowed("a", ME)), config):
            hub, a = await host.device("hub"), await host.device("a")
            await until(lambda: clients[0].sender.streaming, "the streams")
            yield hub, a, clients[0]
    assert_quiet(log)
    if rotate_s[1] < 1:
        assert begun.total() > 3 + ROTATIONS, f"streams were hardly replaced: {begun}"  # 3: GET, PUT, and a WebSocket


async def cross(hub: MemoryDevice, a: MemoryDevice, count: int, size: int = 100) -> None:
    """So many packets each way, a millisecond apart: all of them come, once and in order."""
    up, down = (ME, HUB), (HUB, ME)

    async def send(device: MemoryDevice, way: tuple[str, str]) -> None:
        for n in range(count):
            device.send(ipv4(*way, n.to_bytes(4, "big") * size))
            await trio.sleep(0.001)

    async def check(device: MemoryDevice, way: tuple[str, str]) -> None:
        for n in range(count):
            assert await device.receive_packet() == ipv4(*way, n.to_bytes(4, "big") * size)

    async with trio.open_nursery() as traffic:
        traffic.start_soon(send, a, up)
        traffic.start_soon(check, hub, up)
        traffic.start_soon(send, hub, down)
        traffic.start_soon(check, a, down)


async def test_packets_cross_both_ways() -> None:
    async with tunnel("websocket") as (hub, a, client):
        await cross(hub, a, 50)
        await cross(hub, a, 50, size=10_000)
        assert client.transport == "websocket"


@pytest.mark.usefixtures("nothing_dropped_on_purpose")
async def test_a_burst_larger_than_the_socket_takes() -> None:
    async with tunnel("websocket") as (hub, a, _):
        for source, sink, way in ((a, hub, (ME, HUB)), (hub, a, (HUB, ME))):
            packets = [ipv4(*way, os.urandom(32_000)) for _ in range(60)]
            for packet in packets:
                source.send(packet)
            for packet in packets:
                assert await sink.receive_packet() == packet


@pytest.mark.usefixtures("nothing_dropped_on_purpose")
async def test_rotation_loses_duplicates_and_reorders_nothing() -> None:
    async with tunnel("websocket", (0.02, 0.05)) as (hub, a, client):
        await cross(hub, a, 1000)
        assert client.transport == "websocket"


@pytest.mark.usefixtures("nothing_dropped_on_purpose")
async def test_changing_to_a_websocket_and_back_loses_nothing() -> None:
    """Back to HTTP at each rotation, since uploads do arrive here; to a WebSocket when somebody says so."""
    seen: list[str | None] = []

    async def change(client: TunnelClient, done: trio.Event) -> None:
        while not done.is_set():
            await until(lambda: client.transport == "http" and client.upload is not None, "HTTP")
            await trio.sleep(0.05)
            seen.append(client.transport)
            client.selector.state = TransportState.TRYING_WEBSOCKET
            await until(lambda: client.transport == "websocket", "a WebSocket")
            seen.append(client.transport)

    async with tunnel("auto", (0.1, 0.2)) as (hub, a, client), trio.open_nursery() as nursery:
        done = trio.Event()
        nursery.start_soon(change, client, done)
        await cross(hub, a, 1500)
        done.set()
    assert seen.count("websocket") >= 3
    assert seen.count("http") >= 3


# ------------------------------------------------------------------ the server's handshake


async def test_accepted_and_both_ways() -> None:
    async with besieged() as siege:
        raw = await websocket(siege)
        assert siege.mallory.transport == "websocket"
        await raw.send(masked(packet_frame(TO_HUB)[:7]), masked(b"", PING), masked(packet_frame(TO_HUB)[7:]))
        assert await siege.hub.receive_packet() == TO_HUB
        siege.hub.send(down := ipv4(HUB, ME, b"down"))
        got = []
        while (BINARY, packet_frame(down)) not in got:
            got.append(await message(raw))
        assert (PONG, b"") in got
        await raw.send(masked(close_payload(1000), CLOSE))
        assert await farewell_frame(raw) == ([], (1000, ""))
        assert not siege.mallory.counters.ends


@table(
    "fields",
    ("no Upgrade: a proxy took it", REST),
    ("no Connection", (UPGRADE[0], *REST)),
    ("another protocol", ("Upgrade: h2c", "Connection: Upgrade", *REST)),
    ("no version", (*UPGRADE, REST[0])),
    ("version 8", (*UPGRADE, REST[0], "Sec-WebSocket-Version: 8")),
    ("an empty key", (*UPGRADE, "Sec-WebSocket-Key: ", REST[1])),
    ("a key of 15 bytes", (*UPGRADE, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA", REST[1])),
    ("two keys", (*UPGRADE, REST[0], *REST)),
)
async def test_half_a_handshake_is_refused_and_disturbs_nobody(fields: tuple[str, ...]) -> None:
    async with besieged() as siege:
        download = await siege.download(*features())
        raw = await siege.connect(request("GET", "mallory", *fields, *features()))
        head = await raw.head()
        assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
        assert b"\r\nUpgrade: websocket\r\n" in head
        siege.hub.send(ipv4(HUB, ME, b"still there"))
        await until(lambda: not siege.hub.inbound, "the device to be read")
        got = b""
        while b"still there" not in got:
            got += await download.exactly(1)


async def test_http_1_0_upgrades_to_nothing() -> None:
    async with besieged() as siege:
        raw = await siege.connect(request("GET", "mallory", *UPGRADE, *REST, *features(), version="1.0"))
        assert await raw.status() == 426


async def test_who_does_not_know_the_feature_gets_a_download() -> None:
    """Some proxies' recipes ask for an upgrade with every request."""
    async with besieged() as siege:
        await siege.download(*UPGRADE, *REST)
        await siege.download(*UPGRADE, *features())
        await siege.download(*UPGRADE, *REST, *extended("mallory"))


async def test_no_token_no_websocket() -> None:
    async with besieged() as siege:
        for token in (None, "not-a-token"):
            raw = await siege.connect(request("GET", token, *UPGRADE, *REST, *features()))
            assert await raw.status() == 403


# ------------------------------------------------------------------ what a client may do to a server


@table(
    "data reason words",
    ("not masked", frame(BINARY, packet_frame(TO_HUB)), "bad-websocket", "not masked"),
    ("text", masked(b"hello", TEXT), "bad-websocket", "text"),
    ("a reserved bit", b"\xc2\x80" + KEY, "bad-websocket", "reserved"),
    ("2**63 bytes", b"\x82\xff" + b"\xff" * 8 + KEY, "bad-websocket", "2**63"),
    ("a close without sense", masked(b"x", CLOSE), "bad-websocket", "close"),
    ("a bad frame", masked(b"\x05\0" + bytes(30)), "bad-frame", "packet of 5 bytes"),
    ("a close within a frame", masked(packet_frame(TO_HUB)[:-1]) + masked(b"", CLOSE), "bad-frame", "within a frame"),
)
async def test_garbage_ends_it_with_a_reason(data: bytes, reason: str, words: str) -> None:
    async with besieged() as siege:
        raw = await websocket(siege)
        await raw.send(masked(packet_frame(TO_HUB)))
        assert await siege.hub.receive_packet() == TO_HUB
        await raw.send(data)
        byes, (code, why) = await farewell_frame(raw)
        assert (byes, code) == ([], 1002)
        assert words in why
        await siege.ends(**{reason.replace("-", "_"): 1})


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_connection_that_dies_at_every_position(then: str) -> None:
    wire = masked(packet_frame(TO_HUB)) + masked(b"?", PING) + masked(control.ping(0))
    async with besieged() as siege:
        for n in range(len(wire)):
            raw = await websocket(siege)
            await raw.send(wire[:n])
            getattr(raw, then)()
            await until(lambda: not siege.mallory.uploads, "its end")
        siege.hub.outbound.clear()
        assert siege.mallory.counters.ends.total() == len(wire)
        assert set(siege.mallory.counters.ends) <= {"closed", "broken"}


@table(
    "data count",
    ("pings of 125 bytes", masked(bytes(125), PING) * 100, 300),
    ("empty pings", masked(b"", PING) * 1000, 100),
    ("pongs nobody asked for", masked(b"", PONG) * 1000, 100),
    ("empty messages", masked(b"") * 1000, 100),
    ("fragments without end", b"\x02\x80" + KEY + b"\0\x82" + KEY + KEY[:2] + (b"\0\x80" + KEY) * 1000, 1),
    ("1-byte messages", masked(b"\0") * 1000, 50),
)
async def test_a_flood_costs_no_memory_and_nobody_else(data: bytes, count: int) -> None:
    """Even of a client that reads no answer."""
    async with besieged() as siege:
        raw = await websocket(siege)
        with memory_below(4 * 2**20, "a flood"), trio.move_on_after(5):
            for _ in range(count):
                await raw.send(data)
        await siege.assert_honest_traffic()


async def test_another_machine_takes_over() -> None:
    async with besieged() as siege:
        first = await websocket(siege, "one")
        second = await websocket(siege, "two")
        byes, close = await farewell_frame(first)
        assert byes == ["replaced: another machine uses this token"]
        assert close[0] == 1000
        await second.send(masked(packet_frame(TO_HUB)))
        assert await siege.hub.receive_packet() == TO_HUB
        waiting = await siege.connect(request("GET", "mallory", *UPGRADE, *REST, *features("one"), "x-tun-yield: 1"))
        assert await waiting.status() == 409


async def test_a_newer_one_of_the_same_machine_replaces_it_in_order() -> None:
    """What is still under way on the older one comes first."""
    async with besieged() as siege:
        first = await websocket(siege)
        second = await siege.connect(request("GET", "mallory", *UPGRADE, *REST, *features()))
        await second.head()
        late, early = (ipv4(ME, HUB, text) for text in (b"late", b"early"))
        await second.send(masked(packet_frame(late)))
        await trio.sleep(0.05)
        await first.send(masked(packet_frame(early)), masked(b"", CLOSE))
        assert [await siege.hub.receive_packet() for _ in range(2)] == [early, late]
        assert await farewell_frame(first) == ([], (1000, ""))


async def test_a_server_that_stops_says_so() -> None:
    port, host = free_port(), MemoryHost()
    async with running(host, server_config(port, allowed("mallory", ME))) as nursery:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            raw = Raw(stream)
            await raw.send(request("GET", "mallory", *UPGRADE, *REST, *features()))
            assert (await raw.head()).startswith(b"HTTP/1.1 101")
            await message(raw)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                byes, close = await farewell_frame(raw)
    assert byes == ["the server is shutting down"]
    assert close == (1001, "the server is shutting down")


async def test_a_client_that_reads_nothing_stops_nobody() -> None:
    async with besieged() as siege:
        raw = await siege.connect(request("GET", "mallory", *UPGRADE, *REST, *features()), receive_buffer_bytes=4096)
        await raw.head()
        for _ in range(300):
            siege.hub.send(ipv4(HUB, ME, bytes(60_000)))
        await siege.assert_honest_traffic()
        assert siege.mallory.sender.tx_queue.depth_bytes <= 12 * 2**20


# ------------------------------------------------------------------ what a server may do to a client

CONF: Final = encode_generation_1(1500, IPv4Interface(f"{ME}/24"))
Answer: TypeAlias = Callable[[Raw, bytes], Awaitable[None]]


def accepts(head: bytes, *fields: str) -> bytes:
    """The 101 that fits a client's handshake."""
    found = re.search(rb"(?i)\r\nsec-websocket-key: *([^\r]*)\r\n", head)
    assert found
    digest = hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    accept = base64.b64encode(digest).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", *UPGRADE, f"Sec-WebSocket-Accept: {accept}", *fields, "", ""]
    return "\r\n".join(lines).encode()


GOOD_FIELDS: Final = (f"x-tun-conf: {CONF}", "x-tun-features: ctl, ws")
DOWN: Final = ipv4(HUB, ME, b"down")


def says(*parts: bytes, fields: tuple[str, ...] = GOOD_FIELDS, then: str = "waits") -> Answer:
    """A right handshake, and then this."""

    async def answer(raw: Raw, head: bytes) -> None:
        await raw.send(accepts(head, *fields), *parts)
        if then == "waits":
            while await raw.receive():
                pass

    return answer


def answers(data: bytes) -> Answer:
    """No right handshake."""

    async def answer(raw: Raw, head: bytes) -> None:
        await raw.send(data)

    return answer


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda *args, **kwargs: 0.0)


@asynccontextmanager
async def facing(*wrong: Answer) -> AsyncIterator[list[bytes]]:
    """A client that gets these answers and at last a good one. Yields the heads of its requests."""
    heads: list[bytes] = []
    good, host, before = says(frame(BINARY, packet_frame(DOWN))), MemoryHost(), open_fds()
    todo = [*wrong, good]

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            raw = Raw(stream)
            heads.append(await raw.head())
            await todo[min(len(heads), len(todo)) - 1](raw, heads[-1])

    with logged() as log:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with running(host, replace(client_config("a", port), transport="websocket")):
                device = await host.device("a")
                while await device.receive_packet() != DOWN:
                    pass
                yield heads
            nursery.cancel_scope.cancel()
    assert_quiet(log)
    await until(lambda: open_fds() <= before, "the descriptors to be closed")


async def test_what_a_client_sends() -> None:
    async with facing() as (head,):
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
        assert head.startswith(b"GET /ip HTTP/1.1\r\n")
        lower = {name.lower(): value for name, value in fields.items()}
        assert lower["upgrade"] == "websocket"
        assert lower["connection"] == "Upgrade"
        assert lower["sec-websocket-version"] == "13"
        assert lower["x-api-key"] == "a"
        assert lower["x-tun-features"] == "ctl, inet6, tap, ws"
        assert "sec-websocket-extensions" not in lower
        assert "sec-websocket-protocol" not in lower


@pytest.mark.usefixtures("_no_pauses")
@table(
    "answer words",
    ("200", answers(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "answered 200 to a WebSocket"),
    ("426", answers(b"HTTP/1.1 426 Upgrade Required\r\n\r\n"), "answered 426 to a WebSocket"),
    ("403", answers(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "does not know this token"),
    ("nothing", answers(b""), "without an answer"),
    ("not HTTP", answers(b"\x16\x03\x01\0\0\r\n\r\n"), "handshake is wrong"),
    ("an endless head", answers(b"HTTP/1.1 101 x\r\n" + b"a: b\r\n" * 9000), "longer than"),
    (
        "another handshake's 101",
        answers(
            f"HTTP/1.1 101 x\r\n{UPGRADE[0]}\r\n{UPGRADE[1]}\r\nSec-WebSocket-Accept: ".encode() + ACCEPT + b"\r\n\r\n"
        ),
        "handshake is wrong",
    ),
    ("an extension", says(fields=(*GOOD_FIELDS, "Sec-WebSocket-Extensions: permessage-deflate")), "handshake is wrong"),
    ("no conf", says(fields=GOOD_FIELDS[1:]), "without x-tun-conf"),
    ("not agreed", says(fields=(GOOD_FIELDS[0], "x-tun-features: ctl")), "without agreeing"),
    ("masked", says(masked(b"")), "server's frame is masked"),
    ("text", says(frame(TEXT, b"hello")), "text message"),
    ("a bad frame", says(frame(BINARY, b"\x05\0")), "packet of 5 bytes"),
    ("the end", says(then="closes"), "without the end of its WebSocket|broke"),
    ("a close within a frame", says(frame(BINARY, b"\x05") + frame(CLOSE, b"")), "within a frame"),
    ("1002", says(frame(CLOSE, close_payload(1002, "you did \x1b[31m wrong"))), "1002 you did .u001b"),
)
async def test_a_bad_answer_is_told_and_the_next_one_taken(
    caplog: pytest.LogCaptureFixture, answer: Answer, words: str
) -> None:
    async with facing(answer):
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warnings) == 1, warnings
        assert re.search(words, warnings[0]), warnings
        assert len(warnings[0]) < 1000
        assert warnings[0].isprintable()


async def test_what_a_server_may_send_and_is_no_error() -> None:
    fragments = packet_frame(ipv4(HUB, ME, b"in pieces"))
    parts = (
        frame(PING, b"\0" * 125) * 100,
        b"\x02\x05"
        + fragments[:5]
        + frame(PONG, b"")
        + b"\0\0"
        + b"\x80"
        + bytes((len(fragments) - 5,))
        + fragments[5:],
        frame(BINARY, b""),
        frame(BINARY, control.encode(99, b"unknown")),
        frame(BINARY, packet_frame(DOWN)),
    )
    async with facing(says(*parts)) as heads:
        assert len(heads) == 1


async def test_interim_answers_come_before_a_101() -> None:
    async def answer(raw: Raw, head: bytes) -> None:
        await raw.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3)
        await says(frame(BINARY, packet_frame(DOWN)))(raw, head)

    async with facing(answer) as heads:
        assert len(heads) == 1


@pytest.mark.usefixtures("_no_pauses")
async def test_a_server_that_goes_is_answered_and_asked_again() -> None:
    """Its close is echoed, masked, on a frame boundary; then there is nothing more on that connection."""
    rest: list[bytes] = []

    async def answer(raw: Raw, head: bytes) -> None:
        await raw.send(accepts(head, *GOOD_FIELDS), frame(CLOSE, close_payload(1001, "restart")))
        rest.append(await raw.rest())

    async with facing(answer):
        pass
    body = WebSocketBody(masked=True)
    reader = FrameReader(body, control=True)
    reader.prime(rest[0])
    assert reader.ended
    assert body.code == 1000
    assert [kind for kind, _ in reader.controls] == [control.AGENT, control.PING]
    assert reader.leftover == b""
