"""The plane moves a checked stream over TLS, while its loans end again and again, and keys change.

What is sealed and opened goes back and forth between C and Python. Each record has its number, so a single one that was
counted twice, or by both, breaks the stream: the oracle at the other end cannot open it.
"""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from mmap import mmap
from typing import Final

import pytest
import trio

from tapotun_trio.config.model import TlsConfig
from tapotun_trio.datapath import plane as planes
from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.receiver import Receiver
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net import tls_records
from tapotun_trio.host.net.tls_files import client_context
from tapotun_trio.host.net.tls_records import RecordConnection
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.log import process_logger
from tapotun_trio.wire.body import ChunkedBody
from tapotun_trio.wire.frames import LENGTH_BYTES, FrameRange, FrameReader, each

from ..packets import frame, ipv4
from .test_tls_records import ends
from .tls_oracle import HANDSHAKE, SUITES, Direction, Reader, key_update

if planes.BUILT:
    from tapotun_trio.datapath import _pump

pytestmark = pytest.mark.skipif(
    not (planes.BUILT and tls_records.can_open_records()), reason="the native part is not built, or finds no libcrypto"
)
PACKETS: Final = 4000
VNET_BYTES: Final = 12
IP_BYTES: Final = 20
suites = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)


@asynccontextmanager
async def tcp_pair() -> AsyncIterator[tuple[socket.socket, trio.SocketStream]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as far:
        yield ours, far


@asynccontextmanager
async def running_plane() -> AsyncIterator[planes.Plane]:
    async with planes.open_plane(process_logger()):
        plane = planes.current_plane()
        assert plane is not None
        yield plane


def connected(suite: int, sock: socket.socket, **options: int) -> tuple[RecordConnection, Direction, Reader]:
    """A connection behind its handshake; what the other end sends by, and reads by."""
    tls, sends, receives = ends(suite, **options)
    connection = RecordConnection(sock, "server", client_context(TlsConfig(insecure=True)), b"h", None)
    connection._records, connection._finished, connection._shown = tls, True, -1
    return connection, sends, Reader(receives)


def packet(number: int, rng: random.Random) -> bytes:
    size = rng.choice((8, 60, 500, 1380, 20_000)) if number % 50 else 60_000
    return ipv4("10.10.0.1", "10.10.0.2", struct.pack("!I", number) + rng.randbytes(size))


def numbers_of(packets: list[bytes]) -> list[int]:
    return [struct.unpack_from("!I", it, IP_BYTES)[0] for it in packets]


def written_packets(data: bytes) -> list[bytes]:
    """The packets of a file that stood in for a device."""
    packets, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at + VNET_BYTES + 2 : at + VNET_BYTES + 4], "big")
        packets.append(data[at + VNET_BYTES : at + VNET_BYTES + size])
        at += VNET_BYTES + size
    return packets


@suites
async def test_a_stream_that_is_received(suite: int) -> None:
    rng = random.Random(suite)
    packets = [packet(number, rng) for number in range(PACKETS)]
    loans = by_python = 0
    with tempfile.TemporaryFile() as device:  # takes each frame whole, at its end
        os.set_blocking(device.fileno(), True)
        async with tcp_pair() as (ours, far), running_plane() as plane:
            connection, sends, _ = connected(suite, ours)
            counters = Counters()
            flows = planes.Flows(plane, planes.ALL_ALIKE, counters.drops)

            def deliver(reader: FrameReader, frames: list[FrameRange]) -> None:
                nonlocal by_python
                for start, stop in each(frames):
                    counters.rx_packets += 1
                    by_python += 1
                    os.write(device.fileno(), reader.view[start + LENGTH_BYTES : stop])

            async def deliver_async(reader: FrameReader, frames: list[FrameRange]) -> None:
                deliver(reader, frames)

            async def no_control(kind: int, payload: bytes) -> None:
                raise AssertionError(kind)

            outlet = plane.open_outlet(device.fileno())
            lane = planes.Lane(flows, outlet, deliver, lambda view, at: True, counters)

            def lend() -> planes.Lane | None:
                nonlocal loans
                if rng.random() < 0.2:
                    return None  # this receive is Python's
                loans += 1
                return lane

            async def send() -> None:
                at = 0
                while at < PACKETS:
                    count = rng.randrange(1, 60)
                    body = b"".join(frame(it) for it in packets[at : at + count])
                    at += count
                    sealed = sends.seal_all(b"%x\r\n%s\r\n" % (len(body), body))
                    if rng.random() < 0.1:
                        sealed += sends.seal(b"", padding=rng.randrange(50))
                    if rng.random() < 0.1:
                        sealed += sends.seal(key_update(rng.randrange(2)), HANDSHAKE)
                        sends.update()
                    if rng.random() < 0.1:
                        sealed += sends.seal(bytes((4, 0, 0, 9)) + bytes(9), HANDSHAKE)
                    while sealed:
                        cut = rng.choice((1, 5, 100, 10_000, 1 << 20))
                        await far.send_all(sealed[:cut])
                        sealed = sealed[cut:]
                    if rng.random() < 0.3:
                        await trio.sleep(0.001)
                await far.send_all(sends.seal(b"0\r\n\r\n"))

            async def end_loans() -> None:
                while True:
                    await trio.sleep(rng.random() * 0.01)
                    flows.hand_back()

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    nursery.start_soon(end_loans)
                    receiver = Receiver(
                        connection, FrameReader(ChunkedBody()), deliver_async, no_control, lambda frame: None, lend
                    )
                    await receiver.run([])
                    nursery.cancel_scope.cancel()
            plane.close_outlet(outlet)
            connection.close()
        device.seek(0)
        written = written_packets(device.read())
    assert written == packets
    assert counters.rx_packets == PACKETS
    assert loans > 20
    assert 0 < by_python < PACKETS


@suites
async def test_a_stream_that_is_sent(suite: int) -> None:
    """Over a socket that is often full, with keys that change every nine records."""
    rng = random.Random(suite)
    arrived: list[bytes] = []
    async with tcp_pair() as (ours, far), running_plane() as plane:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        connection, sends, reader = connected(suite, ours, most=9)
        counters = Counters()
        flows = planes.Flows(plane, planes.ALL_ALIKE, counters.drops)
        sender = Sender(counters)
        port = sender.port(plane)
        slab = mmap(-1, planes.SLAB_BYTES)
        device, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        device.setblocking(False)
        lent = by_python = 0

        def dispatch(frames: list[FrameRange]) -> bool:
            nonlocal by_python
            view = memoryview(slab)
            for start, stop in each(frames):
                by_python += 1
                sender.send(view[start:stop], 1)
            flows.learn(view, frames, lambda view, at: port)
            return True

        async def read_device() -> None:
            nonlocal lent
            while True:
                lent += 1
                await plane.read((device.fileno(),), flows, slab, dispatch, port)

        async def feed() -> None:
            queue = trio.socket.from_stdlib_socket(tun)
            for number in range(PACKETS):
                await queue.send(bytes(VNET_BYTES) + packet(number, rng))
                if rng.random() < 0.02:
                    await trio.sleep(0.002)

        async def far_end() -> None:
            frames, body, view = FrameReader(ChunkedBody()), b"", None
            # Not until the last packet arrives: that one may be dropped, too.
            while len(arrived) + sum(counters.drops.values()) < PACKETS:
                if rng.random() < 0.02:
                    await trio.sleep(0.04)  # longer than the plane waits for a full socket
                if rng.random() < 0.05:
                    await far.send_all(sends.seal(key_update(1), HANDSHAKE))
                    sends.update()
                with trio.move_on_after(0.1):  # then count again: nothing more comes if the last packets were dropped
                    body += reader.feed(await far.receive_some(rng.choice((100, 20_000, 500_000))))
                while body:
                    space = frames.space()
                    size = min(len(space), len(body))
                    space[:size], body = body[:size], body[size:]
                    found = frames.feed(size)
                    while True:
                        view = frames.view
                        arrived.extend(bytes(view[a + LENGTH_BYTES + VNET_BYTES : b]) for a, b in each(found))
                        if not frames.pending:
                            break
                        found = frames.feed(0)

        async def follow_key_updates() -> None:
            into = memoryview(bytearray(1000))
            while True:
                await connection.receive(into)
                raise AssertionError("data came")

        async def end_loans() -> None:
            while True:
                await trio.sleep(rng.random() * 0.01)
                for end in list(connection.borrowers):
                    end()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.serve, BodyWriter(connection))
                for task in (read_device, follow_key_updates, end_loans, feed):
                    nursery.start_soon(task)
                await far_end()
                nursery.cancel_scope.cancel()
        connection.close()
        device.close()
        tun.close()
    numbers = numbers_of(arrived)
    assert numbers == sorted(set(numbers)), "a packet arrived twice, or late"
    assert len(numbers) + sum(counters.drops.values()) == PACKETS
    assert len(numbers) > PACKETS // 2
    assert counters.tx_packets == len(numbers)
    assert 0 < by_python < PACKETS
    assert reader.updates > 50


def test_a_reset_is_told_as_a_reset() -> None:
    """The socket says it once: whatever is sent after that fails with EPIPE. The device and the reset are seen in one
    turn, which looks at the socket twice."""
    pump, tls = _pump.Pump(-1), ends(0x1301)[0]
    table, port = pump.table(planes.ALL_ALIKE), pump.port()
    packet = ipv4("10.10.0.1", "10.10.0.2", b"x")
    pump.learn(table, frame(packet), _pump.TO_PORT, port)
    with ExitStack() as stack:
        device, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        for end in (device, host, ours, far):
            stack.enter_context(end)
        for end in (device, ours):
            end.setblocking(False)
        pump.attach(port, ours.fileno(), 1000, tls)
        pump.reader((device.fileno(),), table, mmap(-1, planes.SLAB_BYTES), planes.BURST_BYTES, 0)
        host.send(bytes(VNET_BYTES) + packet)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        arrived = select.poll()
        arrived.register(ours, 0)  # POLLERR is always told
        assert arrived.poll(10_000)
        assert pump.wait(0)[0] == [(_pump.FAILED, port, errno.ECONNRESET)]
        pump.close()


@pytest.mark.parametrize("at", ["plane", "python"])
async def test_a_changed_record_ends_the_stream_and_nothing_of_it_is_written(at: str) -> None:
    with tempfile.TemporaryFile() as device:
        async with tcp_pair() as (ours, far), running_plane() as plane:
            connection, sends, _ = connected(0x1301, ours)
            counters = Counters()
            flows = planes.Flows(plane, planes.ALL_ALIKE, counters.drops)
            outlet = plane.open_outlet(device.fileno())

            async def deliver(reader: FrameReader, frames: list[FrameRange]) -> None:
                for start, stop in each(frames):
                    os.write(device.fileno(), reader.view[start + LENGTH_BYTES : stop])

            async def no_control(kind: int, payload: bytes) -> None:
                raise AssertionError(kind)

            lane = planes.Lane(flows, outlet, lambda reader, frames: None, lambda view, at: True, counters)
            flows.learn(memoryview(frame(ipv4("10.10.0.1", "10.10.0.2", b"x"))), [(0, 35, 1)], lambda view, at: True)
            reader = FrameReader(ChunkedBody())
            receiver = Receiver(
                connection, reader, deliver, no_control, lambda frame: None, lambda: lane if at == "plane" else None
            )
            good, bad = (frame(ipv4("10.10.0.1", "10.10.0.2", text)) for text in (b"good", b"evil"))
            records = [sends.seal(b"%x\r\n%s\r\n" % (len(it), it)) for it in (good, bad, good)]
            changed = bytearray(records[1])
            changed[len(changed) // 2] ^= 1
            await far.send_all(records[0] + bytes(changed) + records[2])
            with trio.fail_after(10), pytest.raises(PeerError, match="DECRYPTION_FAILED_OR_BAD_RECORD_MAC"):
                await receiver.run([])
            plane.close_outlet(outlet)
            connection.close()
            assert b"evil" not in bytes(reader.view)
        device.seek(0)
        assert written_packets(device.read()) == [good[LENGTH_BYTES + VNET_BYTES :]]
        assert counters.rx_packets == (at == "plane")


async def test_a_connection_that_is_closed_while_it_is_lent() -> None:
    """Each direction's loan ends before the descriptor is closed, and the keys go with the connection."""
    async with tcp_pair() as (first, _), tcp_pair() as (second, _), running_plane() as plane:
        counters = Counters()
        flows = planes.Flows(plane, planes.ALL_ALIKE, counters.drops)
        receiving, _, _ = connected(0x1303, first)
        sending, _, _ = connected(0x1303, second)
        sender = Sender(counters)
        with tempfile.TemporaryFile() as device:
            outlet = plane.open_outlet(device.fileno())
            lane = planes.Lane(flows, outlet, lambda *_: None, lambda view, at: True, counters)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plane.receive, receiving, FrameReader(ChunkedBody()), lane, lambda arrivals: None)
                nursery.start_soon(sender.serve, BodyWriter(sending))
                with trio.fail_after(10):
                    while not (receiving.borrowers and sending.borrowers):  # noqa: ASYNC110 - nothing tells of it
                        await trio.sleep(0.01)
                    assert sender.port(plane).is_lent
                    receiving.close()
                    sending.close()
                assert not sending.borrowers
                assert not sender.port(plane).is_lent
                nursery.cancel_scope.cancel()
            plane.close_outlet(outlet)
