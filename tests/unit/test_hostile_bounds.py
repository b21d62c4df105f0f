"""What one step of the event loop does for a peer is bounded, in things done and not in time; and what was good before
something bad is not lost with it."""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Final

import pytest
import trio

from tapotun_trio.config.model import TlsConfig
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.tls import TlsConnection
from tapotun_trio.host.net.tls_files import client_context
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.log import FLAPPING_BURST
from tapotun_trio.server import handlers
from tapotun_trio.server.session import MAX_DOWNLOADS
from tapotun_trio.wire import control
from tapotun_trio.wire.body import LAST_CHUNK, Body, ChunkedBody, CloseBody
from tapotun_trio.wire.frames import (
    BASE_PING,
    BUFFER_BYTES,
    HEADER_BYTES,
    STEP_CONTROLS,
    STEP_ITEMS,
    FrameRange,
    FrameReader,
    each,
    encode_echo,
)

from ..packets import frame, ip, ipv4
from ..tables import table
from ..twins import FAMILIES, twin
from .hostile import CHUNKED, HUB, besieged, chunk, extended, honest_ip, open_fds, report, request, until
from .test_hostile_frames import vnet
from .test_hostile_server import EXTENDED, facing, ok, says

ME: Final = "10.10.0.2"


def number_of(spans: list[FrameRange]) -> int:
    return sum(count for _, _, count in spans)


TO_HUB: Final = ipv4(ME, HUB, b"x" * 100)
TO_CLIENT: Final = ipv4(ME, honest_ip(0), bytes(100))
BAD: Final = b"\x05\0" + bytes(40)


class CountingBody:
    """A body that counts the spans it was asked for."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.spans = 0

    @property
    def ended(self) -> bool:
        return self.body.ended

    def span(self, buffer: bytearray, pos: int, end: int) -> tuple[int, int]:
        self.spans += 1
        return self.body.span(buffer, pos, end)

    def eof(self) -> None:
        self.body.eof()


@table(
    "data items body",
    (
        "1-byte chunks of pings",
        b"1\r\n\0\r\n" * (BUFFER_BYTES // 6),
        BUFFER_BYTES // 6 + BUFFER_BYTES // 12,
        ChunkedBody(),
    ),
    (
        "1-byte chunks of a frame",
        b"".join(chunk(b"%c" % byte) for byte in frame(bytes([0x45]) * 30_000)),
        30_000 + HEADER_BYTES + 1,
        ChunkedBody(),
    ),
    ("empty control frames", control.encode(control.PING) * (BUFFER_BYTES // 7), BUFFER_BYTES // 7, CloseBody()),
    ("base pings", BASE_PING * (BUFFER_BYTES // 2), BUFFER_BYTES // 2, CloseBody()),
    ("the smallest frames", frame(bytes([0x45]) * 20) * (BUFFER_BYTES // 34), BUFFER_BYTES // 34, CloseBody()),
)
def test_a_full_receive_is_taken_in_bounded_steps(data: bytes, items: int, body: Body) -> None:
    """``items``: frames of any kind and chunks in ``data``, of which a step takes STEP_ITEMS at most."""
    counting = CountingBody(body)
    reader = FrameReader(counting, control=True)  # type: ignore[arg-type]
    reader.space()[: len(data)] = data
    received, steps, frames, controls = len(data), 0, 0, 0
    while True:
        spans = counting.spans
        found = number_of(reader.feed(received))
        assert found + counting.spans - spans <= STEP_ITEMS
        assert len(reader.controls) <= STEP_CONTROLS
        frames += found
        controls += len(reader.controls)
        reader.controls.clear()
        steps, received = steps + 1, 0
        if not reader.pending:
            break
        with pytest.raises(AssertionError):
            reader.space()
    report(f"{len(data)} bytes in {steps} steps: {frames} frames, {controls} controls")
    assert steps > 5
    assert items <= steps * STEP_ITEMS
    if data.startswith(control.encode(control.PING)):
        assert controls == BUFFER_BYTES // 7


@table("chunks", ("packets of 60 bytes in chunks of their own", 60), ("of 1400 bytes", 1400))
def test_an_honest_receive_takes_few_steps(chunks: int) -> None:
    """What nginx or HAProxy make of a stream: at worst a chunk per packet."""
    one = chunk(frame(bytes([0x45]) * chunks))
    count = BUFFER_BYTES // len(one)
    reader, steps = FrameReader(ChunkedBody()), 1
    reader.space()[: len(one) * count] = one * count
    frames = number_of(reader.feed(len(one) * count))
    while reader.pending:
        frames += number_of(reader.feed(0))
        steps += 1
    assert frames == count
    assert steps <= 10


@pytest.mark.parametrize("behind", [BAD, b"\x13\0"])
def test_what_was_good_before_a_bad_frame_is_returned_first(behind: bytes) -> None:
    good = [frame(TO_HUB), frame(TO_CLIENT)]
    data = b"".join(good) + control.ping(1) + behind
    reader = FrameReader(CloseBody(), control=True)
    spans = reader.prime(data)
    assert [bytes(reader.view[start:stop]) for start, stop in each(spans)] == good
    assert len(reader.controls) == 1
    assert reader.pending
    assert not reader.ended
    for _ in range(2):  # and it stays so
        with pytest.raises(PeerError):
            reader.feed(0)


@pytest.mark.usefixtures("each_plane")
@table(
    "bad reason",
    ("a bad length", BAD, "bad-frame"),
    ("no IP packet", frame(bytes(20)), "bad-frame"),
    ("an impossible header", frame(TO_CLIENT, vnet(flags=0x80)), "bad-vnet"),
)
@pytest.mark.parametrize("version", FAMILIES)
async def test_good_frames_before_a_bad_one_arrive(bad: bytes, reason: str, version: int) -> None:
    """Those for the device and those for another client, all in one receive."""
    to_hub, to_client = (ip(twin(ME, version), twin(to, version), bytes(100)) for to in (HUB, honest_ip(0)))
    async with besieged() as siege:
        upload = await siege.upload_of(version)
        await upload.send(chunk(frame(to_hub) + frame(to_client) * 3 + bad))
        assert await siege.hub.receive_packet() == to_hub
        for _ in range(3):
            assert await siege.honest["honest0"].receive_packet() == to_client
        await siege.ends(**{reason.replace("-", "_"): 1})


@pytest.mark.usefixtures("each_plane")
async def test_good_frames_of_a_download_arrive_before_its_end() -> None:
    down = ipv4(HUB, ME, b"before the bad one")
    seen: list[bytes] = []
    answer = says(ok(), chunk(frame(down) + BAD))
    async with facing(answer, seen=seen):
        assert seen == [down]


@pytest.mark.usefixtures("each_plane")
async def test_a_bad_chunk_behind_good_ones() -> None:
    async with besieged() as siege:
        upload = await siege.upload()
        await upload.send(chunk(frame(TO_HUB)) + b"x\r\n")
        assert await siege.hub.receive_packet() == TO_HUB
        await siege.ends(bad_chunk=1)


@pytest.mark.usefixtures("each_plane")
async def test_a_flood_of_pings_gets_a_pong_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pongs: list[bytes] = []
    real = Sender.send_control

    def send_control(self: Sender, data: bytes) -> None:
        if data[2] == control.PONG:
            pongs.append(data)
        real(self, data)

    monkeypatch.setattr(Sender, "send_control", send_control)
    count = 20_000
    async with besieged() as siege:
        await siege.download(*extended("mallory"))
        upload = await siege.upload(*extended("mallory"))
        pongs.clear()
        last = control.ping(2**63)
        await upload.send(chunk(control.ping(7) * count + last + frame(TO_HUB)))
        assert await siege.hub.receive_packet() == TO_HUB
        await until(lambda: control.encode(control.PONG, last[-8:]) in pongs, "the answer to the last")
        report(f"{count} PINGs: {len(pongs)} PONGs")
        assert len(pongs) <= count // 8


@pytest.mark.usefixtures("each_plane")
async def test_a_flood_of_generation_2_pings_gets_an_echo_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    echoes: list[bytes] = []
    real = Sender.send_control

    def send_control(self: Sender, data: bytes) -> None:
        if len(data) == len(encode_echo(1)):
            echoes.append(data)
        real(self, data)

    monkeypatch.setattr(Sender, "send_control", send_control)
    async with facing(says(ok(), chunk(encode_echo(7) * 2000) + LAST_CHUNK)):
        assert 0 < len(echoes) <= 200


@pytest.mark.usefixtures("each_plane")
@pytest.mark.parametrize("count", [200, 6000])
async def test_pipelined_uploads_cost_a_bounded_sum(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """What is left behind a request is looked at anew for each; so little may be left."""
    left: list[int] = []
    real = handlers.serve_upload

    async def serve_upload(session, exchange):  # type: ignore[no-untyped-def]
        if session.client.name == "mallory":
            left.append(len(exchange.leftover))
        await real(session, exchange)

    monkeypatch.setattr("tapotun_trio.server.server.serve_upload", serve_upload)
    async with besieged() as siege:
        put = request("PUT", "mallory", "Content-Length: 0")
        upload = await siege.upload()
        await upload.send(LAST_CHUNK + put * count + put[:-2] + b"Connection: close\r\n\r\n")
        answer = await upload.rest()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert max(left) <= handlers.MAX_PIPELINED_BYTES
        if count * len(put) <= handlers.MAX_PIPELINED_BYTES:
            assert len(left) == count + 2
            assert not siege.mallory.counters.ends
        report(f"{len(left)} of {count + 2} requests served, {sum(left)} bytes looked at")


@pytest.mark.usefixtures("each_plane")
async def test_what_is_left_behind_an_upload_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "MAX_PIPELINED_BYTES", 1000)
    async with besieged() as siege:
        upload = await siege.upload()
        await upload.send(LAST_CHUNK + request("PUT", "mallory", "Content-Length: 0", f"a: {'x' * 1000}"))
        answer = await upload.rest()
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in answer
        await siege.ends(pipelining=1)


@pytest.mark.usefixtures("each_plane")
async def test_a_token_holder_s_log_lines_are_few() -> None:
    count = 40
    async with besieged() as siege:
        for _ in range(count):
            assert await (await siege.connect(request("DELETE", "mallory"))).status() == 405
            upload = await siege.upload()
            await upload.send(chunk(BAD))
            await upload.rest()
            download = await siege.download()
            download.reset()
        await until(lambda: siege.mallory.counters.ends["bad-frame"] == count, "the ends")
        lines = [r.getMessage() for r in siege.log if r.levelno >= logging.INFO]
        burst = FLAPPING_BURST
        for words, limit in ((" refused: method", 1), ("upload from", burst), ("connected from", burst + 1)):
            assert 0 < sum(words in line for line in lines) <= limit, words
        assert len(lines) <= 3 * burst + 10


@table(
    "wire reason",
    ("no token", request("GET", None), "bad-token"),
    ("a wrong one", request("PUT", "wrong", CHUNKED), "bad-token"),
    ("another method", request("DELETE", "mallory"), "bad-method"),
    ("an upload of no session", request("PUT", "mallory", CHUNKED, *extended("x")), "other-session"),
    ("no HTTP", b"\x16\x03\x01\0\r\n\r\n", "bad-request"),
    ("two lengths", request("PUT", "mallory", "Content-Length: 1", "Content-Length: 2"), "bad-request"),
)
async def test_a_refusal_is_counted_by_its_reason(wire: bytes, reason: str) -> None:
    async with besieged() as siege:
        for _ in range(3):
            await (await siege.connect(wire)).rest()
        await until(lambda: siege.refusals.total() >= 3, "the counter")
        assert siege.refusals == {reason: 3}


async def test_who_goes_within_a_head_and_who_is_pushed_out_are_counted() -> None:
    async with besieged() as siege:
        (await siege.connect(b"GET /ip HTTP/1.1\r\n")).shut()
        await until(lambda: siege.refusals == {"closed": 1}, "the counter")
        siege.server.endpoints[0].pending.limit = 2
        for _ in range(5):
            await siege.connect(b"GET /ip HTTP/1.1\r\n")
        await until(lambda: siege.refusals["evicted"] == 3, "the evictions")
        await trio.sleep(0.05)
        assert siege.refusals == {"closed": 1, "evicted": 3}
        siege.server.endpoints[0].pending.limit = 256


@table(
    "wire status",
    ("no token", request("GET", None), 403),
    ("another method", request("DELETE", "mallory"), 405),
    ("of no session", request("PUT", "mallory", CHUNKED, *extended("x")), 409),
)
async def test_refused_ones_that_linger_are_bounded(wire: bytes, status: int) -> None:
    """Each may linger for a second; but with or without a token it stays in the lobby meanwhile."""
    async with besieged() as siege:
        siege.server.endpoints[0].pending.limit = 16
        ours = 100
        for _ in range(ours):
            raw = await siege.connect(wire)
            assert await raw.status() == status
        held = open_fds() - siege.fds - ours
        assert held <= 20


@pytest.mark.usefixtures("each_plane")
async def test_downloads_that_do_not_take_their_end_are_bounded() -> None:
    """A token is no licence to hold descriptors: each older download has seconds to end, but they are few."""
    async with besieged() as siege:
        ours = 30
        for _ in range(ours):
            raw = await siege.download(receive_buffer_bytes=4096)
            for _ in range(60):
                siege.hub.send(ipv4(HUB, ME, bytes(60_000)))
            await until(lambda: not siege.hub.unread, "the device to be read")
            del raw
        held = open_fds() - siege.fds - ours
        report(f"{held} of {ours} stalled downloads are held")
        assert held <= MAX_DOWNLOADS + 1


@pytest.mark.usefixtures("each_plane")
@table(
    "payload_bytes gso_size accepted",
    ("gso_size 1", 100, 1, False),
    ("gso_size 7", 100, 7, False),
    ("gso_size 8", 100, 8, True),
    ("MSS 36, 64 KiB: the smallest path", 65_490, 36, True),
    ("gso_size 31, 64 KiB", 65_490, 31, False),
)
@pytest.mark.parametrize("to", ["client", "device"])
@pytest.mark.parametrize("version", FAMILIES)
async def test_a_super_packet_may_not_burst_into_thousands(
    payload_bytes: int, gso_size: int, accepted: bool, to: str, version: int
) -> None:
    destination = HUB if to == "device" else honest_ip(0)
    whole = ip(twin(ME, version), twin(destination, version), bytes(payload_bytes), 6)
    gso, start = {4: (1, 20), 6: (4, 40)}[version]
    async with besieged() as siege:
        upload = await siege.upload_of(version)
        await upload.send(chunk(frame(whole, vnet(flags=1, gso=gso, gso_size=gso_size, start=start, offset=16))))
        if accepted:
            device = siege.hub if to == "device" else siege.honest["honest0"]
            assert await device.receive_packet() == whole
        else:
            await siege.ends(bad_vnet=1)
            assert not siege.hub.take()
            assert not siege.honest["honest0"].take()


@pytest.mark.usefixtures("each_plane")
async def test_a_super_packet_that_bursts_ends_a_download_too() -> None:
    whole = ipv4(HUB, ME, bytes(3000), protocol=6)
    bad = frame(whole, vnet(flags=1, gso=1, gso_size=1, start=20, offset=16))
    seen: list[bytes] = []
    ends: dict[str, int] = {}
    async with facing(says(ok(), chunk(bad)), seen=seen, ends=ends):
        assert seen == []
        assert ends == {"bad-vnet": 1}


@pytest.mark.usefixtures("each_plane")
@table(
    "answer reason",
    ("403", says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), "http-403"),
    ("no conf", says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "bad-conf"),
    ("a bad frame", says(ok(), chunk(BAD)), "bad-frame"),
    ("a bad PONG", says(EXTENDED, chunk(control.encode(control.PONG))), "bad-frame"),
    ("a break", says(ok(), then="closes"), "closed"),
)
async def test_a_client_counts_the_ends_of_its_streams(answer, reason: str) -> None:  # type: ignore[no-untyped-def]
    ends: dict[str, int] = {}
    async with facing(answer, ends=ends):
        assert ends == {reason: 1}


async def test_sending_within_a_tls_handshake_fails_and_does_not_spin() -> None:
    """OpenSSL answers "want read" to a send only then; the socket is writable, so waiting for that would not wait."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        context = client_context(TlsConfig(insecure=True))
        assert context.options & ssl.OP_NO_RENEGOTIATION
        wrapped = context.wrap_socket(ours, server_hostname="h", do_handshake_on_connect=False)
        connection = TlsConnection(wrapped, "test")
        writer = BodyWriter(connection)
        with pytest.raises(PeerError) as caught:
            writer.send(b"x")
        assert caught.value.reason == "tls"
        connection.close()
