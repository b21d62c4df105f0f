"""Frames that came as a block go where each of them would have gone, and are counted as so many."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.receiver import deliver_to_device
from tapotun_trio.datapath.tun_io import BURST_BYTES, DeviceWriter, _read_burst
from tapotun_trio.log import interface_logger
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire.body import CloseBody
from tapotun_trio.wire.frames import BUFFER_BYTES, HEADER_BYTES, FrameReader, each
from tapotun_trio.wire.uniform import count_uniform
from tests.fakes import MemoryDevice

from ..packets import frame, ipv4, ipv6
from .support import allowed, free_port, server_config
from .test_wire_merge import received, udp

A, B, HUB, STRANGER = "10.10.0.2", "10.10.0.3", "10.10.0.1", "192.0.2.9"
PACKETS = 100


def datagrams(source: str, destination: str) -> list[bytes]:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return [udp(b"%04d" % number * 16, ident=number, addresses=addresses) for number in range(PACKETS)]


@pytest.mark.parametrize(
    ("source", "destination", "to_b", "to_device", "drops"),
    [
        (A, B, PACKETS, 0, {}),
        (A, HUB, 0, PACKETS, {}),
        (B, HUB, 0, 0, {"bad-source": PACKETS}),
    ],
)
async def test_the_same_way_for_all(
    source: str, destination: str, to_b: int, to_device: int, drops: dict[str, int]
) -> None:
    config = server_config(free_port(), allowed("a", A), allowed("b", B))
    tunnel = TunnelServer(config, interface_logger(config.name))
    a, b = tunnel.sessions
    device = MemoryDevice("hub")
    frames = datagrams(source, destination)
    view, spans = received(frames)
    assert len(spans) == 2
    a.forward(view, spans, DeviceWriter(device, tunnel.device_drops), tunnel.sessions)
    assert a.counters.rx_packets == PACKETS
    assert a.counters.rx_bytes == sum(map(len, frames)) - PACKETS * HEADER_BYTES
    assert dict(a.counters.drops) == drops
    assert b.sender.tx_queue.depth_packets == to_b
    if to_b:
        assert b.sender.tx_queue.take(0.0, BUFFER_BYTES) == (PACKETS, b"".join(frames))
    assert sum(len(it) - 40 for it in device.outbound) == to_device * 64


def test_a_client_takes_a_block_for_what_it_is() -> None:
    counters, device, echoes = Counters(), MemoryDevice("a"), list[bytes]()
    frames = datagrams(HUB, A)
    view, spans = received(frames)
    deliver_to_device(view, spans, DeviceWriter(device, counters.drops), counters, echoes.append)
    assert sum(len(it) - 40 for it in device.outbound) == PACKETS * 64
    assert counters.rx_packets == PACKETS
    assert counters.rx_bytes == sum(map(len, frames)) - PACKETS * HEADER_BYTES
    assert not counters.drops
    assert not echoes


def test_what_is_no_ip_is_no_block() -> None:
    echo, short = frame(bytes([0x10]) + bytes(47)), frame(bytes([0x60]) + bytes(38))
    _, spans = received([echo] * 40 + [short] * 40)
    assert [count for _, _, count in spans] == [1] * 80


@pytest.mark.parametrize("size", [0, 1, 2, 7, 24, 1400])
@pytest.mark.parametrize("count", [8, 9, 63, 64, 65, 127, 200])
def test_ipv6_blocks(size: int, count: int) -> None:
    """Payloads may differ. Each byte before the payload makes the frame that differs there another block's."""
    frames = [frame(ipv6("2001:db8::1", "2001:db8::2", bytes([n]) * size)) for n in range(count)]
    view = memoryview(bytearray(b"".join(frames)))
    each_bytes = len(frames[0])
    assert count_uniform(view, 0, each_bytes, count) == count
    for at in range(HEADER_BYTES + 40):
        if at == HEADER_BYTES:
            continue  # the first frame says which version it is
        for number in {1, 7, count - 1}:
            view[number * each_bytes + at] ^= 1
            found = count_uniform(view, 0, each_bytes, count)
            assert found <= number, (at, number)
            assert found in (0, *(count >> shift for shift in range(8)))
            view[number * each_bytes + at] ^= 1


async def test_ipv6_packets_side_by_side_go_each_their_own_way() -> None:
    """Of equal size, and the same where IPv4 has its addresses: a block of IPv4 they would be."""
    device = MemoryDevice("hub")
    same, ends = "2001:db8:0:0:1:2:3:4", [f"2001:db8:0:0:1:2:3:{n:x}" for n in range(16)]
    for end in ends:
        device.send(ipv6(same, end, bytes(20)))
    seen: list[bytes] = []

    def classify(view: memoryview, at: int) -> None:
        seen.append(bytes(view[at + HEADER_BYTES + 24 : at + HEADER_BYTES + 40]))

    assert not _read_burst(device, classify, memoryview(bytearray(BURST_BYTES + 2 * 65536)))
    assert seen == [ip_address(end).packed for end in ends]


def test_many_of_a_size_that_differ_cost_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """After looks in vain fewer are made; at the next block they begin anew."""
    looks = 0

    def counted(view: memoryview, start: int, size: int, limit: int) -> int:
        nonlocal looks
        looks += 1
        return count_uniform(view, start, size, limit)

    monkeypatch.setattr("tapotun_trio.wire.frames.count_uniform", counted)
    reader = FrameReader(CloseBody())
    mixed = b"".join(frame(ipv4(f"10.0.{n}.1", HUB, bytes(40))) for n in range(200))
    for _ in range(5):
        spans = reader.prime(mixed)
        assert len(spans) == 200
    assert 1 <= looks <= 20  # for a thousand frames
    alike = [frame(ipv4(A, HUB, bytes(40)))] * 300
    while len(spans := reader.prime(b"".join(alike))) == 300:
        pass
    assert [bytes(reader.view[a:b]) for a, b in each(spans)] == alike
    assert len(reader.prime(b"".join(alike))) == 2
