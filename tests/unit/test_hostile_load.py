"""Peers that take nothing, or ask for too much: what they cost is bounded, and nobody else pays it.

Times are compressed: the server's clock ticks every TICK_S, and limits of seconds are set to fractions of one.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final

import pytest
import trio
import trio.testing

from tapotun_trio.config.model import ServerConfig
from tapotun_trio.datapath.sender import MAX_CONTROLS
from tapotun_trio.datapath.tx_queue import MAX_BYTES
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.server import handlers
from tapotun_trio.server import server as tunnel_server
from tapotun_trio.server.session import CACHE_ENTRIES, MAX_UPLOADS
from tapotun_trio.wire import control

from ..packets import frame, ip, ipv4
from ..tables import table
from ..twins import FAMILIES, twin, twin_of
from .hostile import HUB, Raw, Siege, besieged, chunk, extended, honest_ip, memory_below, open_fds, report, until

pytestmark = pytest.mark.usefixtures("each_plane")

ME: Final = "10.10.0.2"
TICK_S: Final = 0.05
LARGE: Final = ipv4(HUB, ME, bytes(60_000))
SMALL_BUFFER: Final = 4096  # so that a reader who does not read is noticed soon


@pytest.fixture
def _fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_server, "TICK_S", TICK_S)


def keepalive(seconds: float) -> Callable[[ServerConfig], ServerConfig]:
    return lambda config: replace(config, keepalive_s=seconds)


async def stall(siege: Siege, *fields: str) -> Raw:
    """A download of mallory's that takes nothing more, with as much as fits under way."""
    raw = await siege.download(*fields, receive_buffer_bytes=SMALL_BUFFER)
    sender = siege.mallory.sender
    for _ in range(200):
        siege.hub.send(LARGE)
        await until(lambda: not siege.hub.unread, "the device to be read")
        if sender.tx_queue:
            return raw
    raise AssertionError("the socket takes everything")


@pytest.mark.usefixtures("_fast_clock")
async def test_one_that_never_reads_and_nineteen_that_do() -> None:
    async with besieged(honest=19) as siege:
        with memory_below(MAX_BYTES + 16 * 2**20, "a download that nobody reads, beside 19"):
            await stall(siege)
            drops, outbox = siege.mallory.counters.drops, siege.mallory.sender.tx_queue
            rounds, deepest, came = 60, 0, dict.fromkeys(siege.honest, 0)
            packets = {name: ipv4(HUB, honest_ip(n), bytes(8000)) for n, name in enumerate(siege.honest)}
            for _ in range(rounds):
                for name in siege.honest:
                    siege.hub.send(LARGE)
                    siege.hub.send(packets[name])
                for name, device in siege.honest.items():
                    assert await device.receive_packet() == packets[name]
                    came[name] += len(packets[name])
                deepest = max(deepest, outbox.depth_bytes)
        least = min(came.values()) / (rounds * len(packets["honest0"]))
        report(
            f"others: {least:.0%} delivered; the stalled outbox {deepest / 2**20:.1f} MiB deep, dropped {dict(drops)}"
        )
        assert least == 1
        assert deepest <= MAX_BYTES
        await until(lambda: not outbox, "what waited to be too old")
        assert set(drops) <= {"queue-full", "queue-age"}


@pytest.mark.usefixtures("_fast_clock")
async def test_a_burst_fills_the_outbox_to_its_limit_and_no_further() -> None:
    async with besieged() as siege:
        await stall(siege)
        outbox, drops = siege.mallory.sender.tx_queue, siege.mallory.counters.drops
        count = 2 * MAX_BYTES // len(LARGE)
        before, deepest = drops.total(), 0
        for _ in range(count):
            siege.hub.send(LARGE)
        while siege.hub.unread:
            await trio.lowlevel.checkpoint()
            deepest = max(deepest, outbox.depth_bytes)
        assert deepest <= MAX_BYTES
        await until(lambda: not outbox, "what waited to be too old")
        assert drops.total() - before >= count
        report(f"outbox at most {deepest / 2**20:.1f} MiB deep; dropped {dict(drops)}")


@pytest.mark.usefixtures("_fast_clock")
@pytest.mark.parametrize("fields", [(), extended("mallory")], ids=["base", "extended"])
async def test_a_stalled_download_ends_soon_after_a_newer_one_came(
    monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...]
) -> None:
    """Whoever opens download after download and reads none must not keep them all."""
    monkeypatch.setattr(handlers, "FINISH_S", 0.2)
    async with besieged() as siege:
        older = await stall(siege, *fields)
        await siege.download(*fields)
        await siege.ends(stalled=1)
        await older.rest()


@pytest.mark.usefixtures("_fast_clock")
async def test_a_stalled_download_that_answers_no_ping_ends() -> None:
    async with besieged(honest=0, change=keepalive(0.1)) as siege:
        await stall(siege, *extended("mallory"))
        await siege.ends(silent=1)


@pytest.mark.usefixtures("_fast_clock")
async def test_a_stalled_download_ends_though_a_newer_one_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer one's PONGs do not speak for the older one."""
    monkeypatch.setattr(handlers, "FINISH_S", 0.2)
    async with besieged() as siege:
        for n in range(1, 6):
            await stall(siege, *extended("mallory"))
            await until(lambda n=n: siege.mallory.counters.ends.total() >= n - 1, "the one before to end")  # type: ignore[misc]
        assert open_fds() - siege.fds <= 5 + 3  # ours, and of the server's the present one and what lingers


@pytest.mark.usefixtures("_fast_clock")
async def test_a_trickle_keeps_its_own_upload_alive_and_nobody_waits_for_it() -> None:
    packet = ipv4(ME, HUB, b"slowly")
    async with besieged(honest=0, change=keepalive(0.1)) as siege:
        download = await siege.download(*extended("mallory"))
        upload = await siege.upload(*extended("mallory"))
        for byte in chunk(frame(packet)):
            await upload.send(bytes([byte]))
            siege.mallory.sender.answered()
            await trio.sleep(0.01)
        assert await siege.hub.receive_packet() == packet
        assert not siege.mallory.counters.ends
        await siege.ends(silent=2)  # the upload, and the download whose PINGs nobody answers
        await download.rest()
        await upload.rest()


@table(
    "payload count",
    ("empty", b"", 20_000),
    ("a clock", bytes(8), 20_000),
    ("the largest", bytes(control.MAX_PAYLOAD_BYTES), 250),
)
async def test_a_flood_of_pings_whose_pongs_nobody_reads(payload: bytes, count: int) -> None:
    async with besieged() as siege:
        await siege.download(*extended("mallory"), receive_buffer_bytes=SMALL_BUFFER)
        upload = await siege.upload(*extended("mallory"))
        ping = control.encode(control.PING, payload)
        burst = max(1, 65536 // len(ping))
        most = 0
        with memory_below(6 * 2**20, f"{count} PINGs of {len(ping)} bytes"):
            for _ in range(0, count, burst):
                await upload.send(chunk(ping * burst))
                most = max(most, siege.mallory.sender.waiting_controls)
        assert most <= MAX_CONTROLS
        assert not payload or len(ping) < 100 or most == MAX_CONTROLS
        await upload.send(chunk(frame(packet := ipv4(ME, HUB, b"behind them"))))
        assert await siege.hub.receive_packet() == packet


async def test_a_flood_of_pings_leaves_the_downloads_frames_their_place() -> None:
    """Somebody who reads the PONGs gets packets between them."""
    async with besieged() as siege:
        download = await siege.download(*extended("mallory"))
        upload = await siege.upload(*extended("mallory"))
        packet, read = frame(ipv4(HUB, ME, b"between" * 9)), bytearray()

        async def flood() -> None:
            while True:
                await upload.send(chunk(control.ping(0) * 1000))

        async def drain() -> None:
            while packet not in read:
                read.extend(await download.stream.receive_some(65536))
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            nursery.start_soon(drain)
            with trio.fail_after(10):
                while True:
                    siege.hub.send(packet[14:])
                    await trio.sleep(0.01)


@pytest.mark.parametrize("version", FAMILIES)
async def test_a_scan_of_addresses_from_a_client(version: int) -> None:
    """Destinations and sources alike; the cache forgets, and packets go on."""
    me, hub = twin(ME, version), twin(HUB, version)
    async with besieged() as siege:
        upload = await siege.upload_of(version)
        most = 0
        for n in range(0, 9_600, 400):
            addresses = [str(twin_of(IPv4Address(0x20000000 + n + i), version)) for i in range(400)]
            frames = [frame(ip(a, hub) if n % 800 else ip(me, a)) for a in addresses]
            await upload.send(chunk(b"".join(frames)))
            for _ in frames:
                await siege.hub.receive()
            most = max(most, siege.mallory.cached_verdicts)
        report(f"a client's scan: at most {most} cached verdicts")
        assert CACHE_ENTRIES // 2 < most <= CACHE_ENTRIES


@pytest.mark.parametrize("version", FAMILIES)
async def test_a_scan_of_addresses_from_behind_the_server(version: int) -> None:
    nobody = twin("10.10.0.200", version)
    async with besieged() as siege:
        most = 0
        for n in range(12_000):
            siege.hub.send(ip(str(twin_of(IPv4Address(0x20000000 + n), version)), nobody))
            if n % 200 == 199:
                await until(lambda: not siege.hub.unread, "the device to be read")
                most = max(most, siege.server.cached_verdicts)
        assert CACHE_ENTRIES // 2 < most <= CACHE_ENTRIES
        assert siege.server.device_drops["no-route"] == 12_000


@pytest.mark.parametrize("version", FAMILIES)
async def test_spoofed_sources_are_dropped_and_counted(version: int) -> None:
    me, hub, other = (twin(address, version) for address in (ME, HUB, honest_ip(0)))
    async with besieged() as siege:
        upload = await siege.upload_of(version)
        spoofed = [ip(source, hub, b"?") for source in (hub, other)] * 50
        await upload.send(chunk(b"".join(map(frame, spoofed)) + frame(packet := ip(me, hub, b"mine"))))
        assert await siege.hub.receive_packet() == packet
        assert siege.mallory.counters.drops == {"bad-source": 100}


async def test_many_uploads_and_many_downloads_of_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "FINISH_S", 0.2)
    async with besieged() as siege:
        for n in range(40):
            await siege.upload() if n < MAX_UPLOADS else await siege.connect(
                b"PUT / HTTP/1.1\r\nHost: h\r\nx-api-key: mallory\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        await siege.ends(replaced=40 - MAX_UPLOADS)
        assert len(siege.mallory.uploads) == MAX_UPLOADS
        for _ in range(40):
            await siege.download()
        assert siege.mallory.sender.streaming
        held = open_fds() - siege.fds - 80
        report(f"of 40 uploads and 40 downloads of one client the server keeps {held} connections")


async def test_downloads_of_two_machines_that_fight_for_a_token() -> None:
    """Newest wins; each older one hears why; it is news, but not a line for each blow."""
    async with besieged() as siege:
        for n in range(60):
            await siege.download(*extended(f"machine {n % 2}"))
        lines = [r.getMessage() for r in siege.log if "another machine" in r.getMessage()]
        assert 1 <= len(lines) <= 10


@table(
    "number",
    *((errno.errorcode[n], n) for n in (errno.EACCES, errno.EINVAL, errno.EPROTO, errno.ENOPROTOOPT, errno.ENONET)),
)
async def test_whatever_breaks_a_connection_is_no_bug_of_ours(number: int) -> None:
    """The kernel passes on what the network told it. Over IPv6 a `prohibit` route, or a firewall that rejects, ends
    an established connection with EACCES, a `blackhole` route with EINVAL (both seen on Linux 6.18); icmp_err_convert
    in net/ipv4/icmp.c has the others. A server has other clients."""

    class Broken(socket.socket):
        def recv_into(self, *args: object) -> int:
            raise OSError(number, os.strerror(number))

        def sendmsg(self, *args: object) -> int:
            raise OSError(number, os.strerror(number))

    ours, theirs = socket.socketpair()
    with theirs:
        with closing(Connection(Broken(fileno=ours.detach()), "test")) as connection:
            with pytest.raises(PeerError):
                connection.try_receive(memoryview(bytearray(9)))
            with pytest.raises(PeerError):
                connection.try_send((b"x",))
