"""The native part alone, with Ethernet frames: what it takes for a frame, blocks, vnet headers, verdicts, and merging.

What it does with IP packets is in test_pump, and what it does for two whole ends in test_plane_ethernet.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from mmap import mmap
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath import plane
from tapotun_trio.datapath.counters import DropReason
from tapotun_trio.datapath.tun_io import SLAB_START
from tapotun_trio.wire.ethernet import ip_header_at
from tapotun_trio.wire.frames import BUFFER_BYTES, HEADER_BYTES, MAX_PACKET_BYTES, MIN_ETHERNET_BYTES, FrameRange, each
from tapotun_trio.wire.uniform import MIN_BLOCK_FRAMES, count_uniform_ethernet
from tapotun_trio.wire.vnet import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    MIN_GSO_BYTES,
    validate_ethernet_vnet,
)

from ..packets import frame, ipv4, ipv6
from ..planes import needs_pump
from ..tap_frames import (
    BROADCAST,
    MAC_A,
    MAC_B,
    SERVICE_VLAN,
    VLAN,
    arp,
    behind_ethernet,
    ethernet_bytes,
    in_header,
    tag,
    without_ethernet,
)
from . import test_wire_merge, test_wire_merge_tcp
from .test_pump import (
    SMALL_DEVICE_BYTES,
    SOON_NS,
    Merging,
    World,
    chunk,
    drain,
    drops_of,
    segments,
    slab,
    tcp_crowds,
    udp_crowds,
    udps,
    verified,
)
from .test_pump import unmerged as unmerged_ip

if plane.BUILT:
    from tapotun_trio.datapath import _pump

pytestmark = needs_pump

MAC_C: Final = bytes.fromhex("020000000003")
MAC_D: Final = bytes.fromhex("020000000004")
SHORTEST: Final = frame(MAC_B + MAC_A + b"\x88\xb5")
RUNT: Final = frame(SHORTEST[14:-1])
IN_TAGS: Final = (b"", tag(7), tag(7, SERVICE_VLAN))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def inlet_of(world: World, table: int) -> tuple[int, socket.socket, memoryview]:
    """An inlet that shows everything to Python, the far end of its socket, and its buffer."""
    ours, far = world.pair()
    buffer = mmap(-1, BUFFER_BYTES)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    outlet = world.pump.outlet(world.device()[0].fileno())
    return world.pump.inlet(ours.fileno(), outlet, table, buffer, 0, 0, 0, False), far, memoryview(buffer)


# ------------------------------------------------------------------ what a frame is


@pytest.mark.parametrize("size", range(1, 20))
def test_the_shortest_frame_of_a_stream(world: World, size: int) -> None:
    """Of Ethernet: its header. Of IP: that of IPv4."""
    data = struct.pack("<H", size) + bytes(12 + size)
    for is_ethernet, least in ((True, MIN_ETHERNET_BYTES), (False, 20)):
        table = world.pump.table(plane.ALL_FRAMES, is_ethernet)
        inlet, far, buffer = inlet_of(world, table)
        far.send(chunk(data))
        [(what, number, detail)] = world.wait()[0]
        assert number == inlet
        if size >= least:
            assert what == _pump.FRAMES
            ranges: list[FrameRange] = detail  # type: ignore[assignment]
            assert [(bytes(buffer[start:stop]), count) for start, stop, count in ranges] == [(data, 1)]
        else:
            assert what == _pump.UNUSUAL
        world.pump.free(inlet)
        world.pump.free(table)


@pytest.mark.parametrize(
    "size", [0, 1, 13, 14, 15, 19, 20, 39, 60, 1514, MAX_PACKET_BYTES, MAX_PACKET_BYTES + 1, 70_000]
)
@pytest.mark.parametrize("first", [0x00, 0x45, 0x60, 0xFF])
def test_the_shortest_and_the_longest_frame_of_a_device(world: World, size: int, first: int) -> None:
    """What is too long for a frame is dropped whole: a part of it would be a damaged frame. The first byte is no
    version of IP here."""
    pump, tun, memory = world.pump, world.tun(), slab()
    table = pump.table(plane.ALL_FRAMES, True)
    reader = pump.reader((tun.device.fileno(),), table, memory, plane.BURST_BYTES, 0)
    data = (bytes([first]) + bytes([3]) * size)[:size]
    vnet = b"\x02" + bytes(9) + b"\xee\xee"  # num_buffers: whatever was there
    for one in (vnet + data, bytes(12) + SHORTEST[14:]):
        assert tun.send(one)
    [(what, number, detail)] = world.wait(most_ns=SOON_NS)[0]
    assert (what, number) == (_pump.FRAMES, reader)
    got = [bytes(memory[start:stop]) for start, stop in each(detail)]  # type: ignore[arg-type]
    whole = (
        struct.pack("<H", size) + vnet[:10] + bytes(2) + data if MIN_ETHERNET_BYTES <= size <= MAX_PACKET_BYTES else b""
    )
    assert got == [whole, SHORTEST][not whole :]


def test_a_slab_ends_behind_the_longest_frame(world: World) -> None:
    """One byte more is read than a frame has. Under ASan, and a map ends here anyway."""
    pump, tun = world.pump, world.tun()
    burst = 4096 * 16 - 1
    table = pump.table(plane.ALL_FRAMES, True)
    memory = mmap(-1, burst + _pump.MAX_FRAME_BYTES)
    pump.reader((tun.device.fileno(),), table, memory, burst, 0)
    sizes = [MAX_PACKET_BYTES - 1, 70_000, MAX_PACKET_BYTES, 70_000]
    first = burst - 1 - HEADER_BYTES - SLAB_START
    for size in (first, 70_000):
        assert tun.send(bytes(12) + b"\1" * size)
    [(_, _, detail)] = world.wait(most_ns=SOON_NS)[0]
    assert [(stop - start) // count for start, stop, count in detail] == [burst - 1 - SLAB_START]  # type: ignore[attr-defined]
    assert memory[-1] == 1, "it was not read to the end of the slab"
    for size in sizes:
        assert tun.send(bytes(12) + b"\1" * size)
    got: list[int] = []
    while len(got) < 2:
        got += [stop - start for _, _, detail in world.wait(most_ns=SOON_NS)[0] for start, stop, _ in detail]  # type: ignore[attr-defined]
    assert got == [HEADER_BYTES + size for size in sizes if size <= MAX_PACKET_BYTES]


# ------------------------------------------------------------------ verdicts


def test_frames_go_by_their_mac_addresses(world: World) -> None:
    """Into the device, to a peer, or nowhere, for one of the reasons of layer 2; of every kind of payload."""
    pump = world.pump
    ours, host = world.device()
    table, outlet, port = pump.table(plane.BY_MACS, True), pump.outlet(ours.fileno()), pump.port()
    stream, peer = world.pair()
    pump.attach(port, stream.fileno(), 1000)
    source, far = world.pair()
    inlet = pump.inlet(source.fileno(), outlet, table, mmap(-1, BUFFER_BYTES), 0, 0, 0, False)

    def kinds(destination: bytes) -> list[bytes]:
        return [
            behind_ethernet(frame(ipv4("10.0.0.1", "10.0.0.2", b"x" * 9)), to=destination),
            behind_ethernet(frame(ipv6("fd00::1", "fd00::2", b"x" * 9)), to=destination, tags=tag(3)),
            arp(to=destination),
            frame(destination + MAC_A + b"\x88\xb5"),
            frame(destination + MAC_A + b"\x00\x03" + b"LLC"),
        ]

    reason = plane._DROPS.index(DropReason.SAME_SIDE)
    pump.learn(table, kinds(MAC_B)[0], _pump.DEVICE, 0)
    pump.learn(table, kinds(MAC_C)[0], _pump.TO_PORT, port)
    pump.learn(table, kinds(MAC_D)[0], _pump.DROP, reason)
    both = [it for pair in zip(kinds(MAC_B), kinds(MAC_C), kinds(MAC_D), strict=True) for it in pair]
    far.send(chunk(b"".join(both)))
    assert world.wait()[0] == []
    host.setblocking(False)
    assert [host.recv(2000) for _ in range(5)] == [it[2:] for it in kinds(MAC_B)]
    assert b"".join(body.split(b"\r\n", 1)[1][:-2] for body in [drain(peer)]).count(MAC_C + MAC_A) == 5
    rows = {number: row for number, *row in pump.counts()}
    assert rows[inlet][3] == drops_of({reason: 5})
    assert rows[inlet][0] == 15
    assert rows[inlet][1] == sum(len(it) - HEADER_BYTES for it in both)
    assert rows[port][0] == 5


def test_another_peer_gets_no_vnet_header_that_its_kernel_refuses(world: World) -> None:
    """It is Python's, which ends the stream. What goes into the device is only bounded."""
    pump = world.pump
    table, port = pump.table(plane.BY_MACS, True), pump.port()
    stream, peer = world.pair()
    pump.attach(port, stream.fileno(), 1000)
    inlet, far, buffer = inlet_of(world, table)
    good = behind_ethernet(test_wire_merge.udp(b"x" * 9), to=MAC_C)
    bad = good[:8] + struct.pack("<H", 13) + good[10:]  # csum_start within the Ethernet header
    pump.learn(table, good, _pump.TO_PORT, port)
    far.send(chunk(good + bad + good))
    [(what, number, detail)] = world.wait()[0]
    assert (what, number) == (_pump.FRAMES, inlet)
    assert [bytes(buffer[start:stop]) for start, stop in each(detail)] == [bad, good]  # type: ignore[arg-type]
    assert drain(peer) == chunk(good)


# ------------------------------------------------------------------ vnet headers


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Ethernet frames whose vnet headers are nearly right, and those that are right."""
    tags = draw(
        st.lists(st.builds(tag, st.integers(0, 65535), st.sampled_from([VLAN, SERVICE_VLAN])), max_size=3).map(b"".join)
        if draw(st.booleans())
        else st.just(b"")
    )
    six = draw(st.booleans())
    kinds = draw(st.lists(st.sampled_from([0, 43, 60, 60, 44]), max_size=3)) if six else []
    units = [draw(st.sampled_from([0, 0, 1, 9, 255])) for _ in kinds]
    last = draw(st.sampled_from([6, 6, 6, 17]))
    following = zip([*kinds[1:], last], units, strict=False)
    extensions = b"".join(bytes([kind, long]) + bytes(6 + 8 * long) for kind, long in following)
    words = draw(st.sampled_from([5, 5, 5, 6, 0, 4, 15]))
    if six:
        packet = bytes([0x60]) + bytes(5) + bytes([*kinds, last][:1]) + bytes(33) + extensions
    else:
        packet = bytes([0x40 | words]) + bytes(8) + bytes([last]) + bytes(max(words, 5) * 4 - 10)
    kind = b"\x86\xdd" if six else b"\x08\0"
    ip_bytes = 40 + len(extensions) if six else words * 4
    wrong = draw(
        st.sampled_from(
            [None, None, None, "flags", "gso", "hdr_len", "gso_size", "start", "offset", "length", "type", "version"]
        )
    )
    if wrong == "type":
        kind = draw(st.sampled_from([b"\x08\x06", b"\x86\xdd", b"\x08\0", b"\x88\x64", b"\0\x2e"]))
    if wrong == "version":
        packet = bytes([draw(st.integers(0, 255))]) + packet[1:]
    header = MAC_B + MAC_A + tags + kind
    size = draw(
        st.sampled_from([1514, 1514, 65535, len(header) + len(packet), len(header) + ip_bytes + 20, 14, 18, 60])
    )
    odd = st.one_of(
        st.sampled_from([0, 8, 13, 14, 16, 18, 20, 34, 38, 40, 42, 54, 60, 0x7FFF, 0x8000, 0xFFFF, MIN_GSO_BYTES - 1]),
        st.integers(0, 80),
        st.just(size),
    )

    def field(name: str, right: int, others: st.SearchStrategy[int] = odd) -> int:
        return draw(others) if wrong == name else right

    flags = field("flags", 1, st.sampled_from([0, 2, 3, 4]))
    right = GSO_TCPV6 if six else GSO_TCPV4
    gso = field("gso", right, st.sampled_from([0, 0, right | GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4]))
    hdr_len, gso_size = field("hdr_len", 0), field("gso_size", 1400)
    start, offset = field("start", len(header) + ip_bytes), field("offset", 16)
    length = field("length", size, st.integers(0, 0xFFFF))
    head = struct.pack("<HBBHHHHH", length, flags, gso, hdr_len, gso_size, start & 0xFFFF, offset, 0)
    return head + (header + packet).ljust(size, b"\0")[: max(size, 14)]


def test_vnet_headers_are_judged_as_in_python() -> None:
    found = Counter[bool]()

    @settings(max_examples=1500, deadline=None)
    @given(headers())
    def check(data: bytes) -> None:
        valid = validate_ethernet_vnet(memoryview(data))
        assert _pump.Pump.valid(data, True) == valid
        found[valid and data[3] != 0] += 1

    check()
    assert found[True] >= 100, "it compares refusals only"


@pytest.mark.parametrize("kind", [b"\x08\0", b"\x86\xdd"], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("gso", [0, 1, 4])
@pytest.mark.parametrize("first", [0x45, 0x65, 0x60, 0x40])
def test_a_version_of_ip_that_is_not_that_of_the_type(kind: bytes, gso: int, first: int) -> None:
    """It matters for a super-packet only."""
    header = 40 if kind == b"\x86\xdd" else (first & 15) * 4
    vnet = struct.pack("<HBBHHHHH", 114, 1, gso, 0, 100 if gso else 0, 14 + header, 16, 0)
    packet = bytes([first]) + bytes(5) + bytes([6]) + bytes(2) + bytes([6]) + bytes(90)
    data = vnet + MAC_B + MAC_A + kind + packet
    valid = validate_ethernet_vnet(memoryview(data))
    assert _pump.Pump.valid(data, True) == valid
    if not gso and header >= 20:
        assert valid


@settings(max_examples=300)
@given(st.binary(min_size=HEADER_BYTES + MIN_ETHERNET_BYTES, max_size=100))
def test_any_vnet_header_is_judged_as_in_python(data: bytes) -> None:
    assert _pump.Pump.valid(data, True) == validate_ethernet_vnet(memoryview(data))


@pytest.mark.parametrize("size", range(HEADER_BYTES + MIN_ETHERNET_BYTES))
def test_no_vnet_header_of_a_short_frame_is_valid(size: int) -> None:
    assert not _pump.Pump.valid(bytes(size), True)


@pytest.mark.parametrize("tags", [*IN_TAGS, tag(1, SERVICE_VLAN) + tag(2)])
def test_where_a_frame_is_cut_off_its_vnet_header_is_not_valid(tags: bytes) -> None:
    """Nothing is read behind its end (under ASan)."""
    for whole in (
        behind_ethernet(test_wire_merge_tcp.tcp(b"x" * 50), tags=tags),
        behind_ethernet(test_wire_merge_tcp.tcp(b"x" * 50, ipv6=True), tags=tags),
    ):
        gso = GSO_TCPV6 if whole[14 + 12 + len(tags) : 14 + 14 + len(tags)] == b"\x86\xdd" else GSO_TCPV4
        super_packet = whole[:3] + bytes([gso]) + whole[4:6] + struct.pack("<H", 10) + whole[8:]
        assert _pump.Pump.valid(super_packet, True)
        for size in range(len(whole)):
            assert not _pump.Pump.valid(super_packet[:size], True)
            said = struct.pack("<H", max(0, size - HEADER_BYTES)) + super_packet[2:size]
            if size >= HEADER_BYTES + MIN_ETHERNET_BYTES:
                assert _pump.Pump.valid(said, True) == validate_ethernet_vnet(memoryview(said))


# ------------------------------------------------------------------ blocks


@st.composite
def neighbours(draw: st.DrawFn) -> list[bytes]:
    """Frames side by side, most of them alike."""
    tags = draw(st.sampled_from([*IN_TAGS, tag(1, SERVICE_VLAN) + tag(2)]))
    size, six = draw(st.sampled_from([9, 64, 65])), draw(st.booleans())
    make = draw(st.sampled_from(["udp", "tcp", "other", "arp", "short"]))
    if make == "udp":
        one = test_wire_merge.udp6(bytes(size)) if six else test_wire_merge.udp(bytes(size))
    elif make == "tcp":
        one = test_wire_merge_tcp.tcp(bytes(size), ipv6=six)
    elif make == "short":
        packet = ipv6("fd00::1", "fd00::2", b"", 17) if six else ipv4("10.0.0.1", "10.0.0.2", b"", 17)
        one = frame(packet[: draw(st.sampled_from([len(packet), len(packet) - 1, 10]))])
    else:
        one = frame(
            ipv6("fd00::1", "fd00::2", bytes(size), 58) if six else ipv4("10.0.0.1", "10.0.0.2", bytes(size), 1)
        )
    whole = behind_ethernet(one, tags=tags)
    if make == "arp":
        whole = arp()
    frames = [bytearray(whole) for _ in range(draw(st.integers(1, 40)))]
    for _ in range(draw(st.integers(0, 3))):
        victim = frames[draw(st.integers(0, len(frames) - 1))]
        victim[draw(st.integers(2, min(len(victim), 90) - 1))] ^= draw(st.integers(1, 255))
    return [bytes(it) for it in frames]


def shown(world: World, table: int, frames: list[bytes]) -> tuple[memoryview, list[FrameRange]]:
    """As an inlet shows them to Python."""
    _, far, buffer = inlet_of(world, table)
    far.send(chunk(b"".join(frames)))
    [(what, _, detail)] = world.wait(most_ns=SOON_NS)[0]
    assert what == _pump.FRAMES
    return buffer, detail  # type: ignore[return-value]


def test_blocks_are_those_of_python() -> None:
    """Each is one for Python, too. And where Python would find one, there is one."""
    blocks = Counter[bool]()

    @settings(max_examples=300, deadline=None)
    @given(st.lists(neighbours(), min_size=1, max_size=3))
    def check(parts: list[list[bytes]]) -> None:
        world = World()
        frames = [it for part in parts for it in part]
        view, ranges = shown(world, world.pump.table(plane.BY_MACS, True), frames)
        assert [bytes(view[start:stop]) for start, stop in each(ranges)] == frames
        for start, stop, count in ranges:
            size = (stop - start) // count
            if count > 1:
                assert count >= MIN_BLOCK_FRAMES
                assert count_uniform_ethernet(view, start, size, count) == count
            else:
                most = 1
                while (
                    view[start + most * size : start + most * size + 2] == view[start : start + 2]
                    and most < MIN_BLOCK_FRAMES
                ):
                    most += 1
                if start + most * size <= ranges[-1][1]:
                    assert not count_uniform_ethernet(view, start, size, most)
            blocks[count > 1] += 1
        world.close()

    check()
    assert blocks[True] >= 50
    assert blocks[False] >= 50


@pytest.mark.parametrize("tags", IN_TAGS)
def test_what_a_block_of_ethernet_is(world: World, tags: bytes) -> None:
    table = world.pump.table(plane.BY_MACS, True)
    for many in (udps(20), segments(20), udps(20, ipv6=True), segments(20, ipv6=True)):
        wrapped = [behind_ethernet(it, tags=tags) for it in many]
        assert [count for *_, count in shown(world, table, wrapped)[1]] == [20]
        for other in (
            behind_ethernet(many[9], to=MAC_C, tags=tags),
            behind_ethernet(many[9], source=MAC_C, tags=tags),
            *([behind_ethernet(many[9], tags=tags[:3] + b"\1")] if tags else []),
        ):
            assert [count for *_, count in shown(world, table, [*wrapped[:9], other, *wrapped[10:]])[1]] == [9, 1, 10]
        deeper = [behind_ethernet(it, tags=tags + tag(2)) for it in many]
        assert [count for *_, count in shown(world, table, deeper)[1]] == ([20] if not tags else [1] * 20)
    for alone in (arp(), behind_ethernet(frame(ipv6("fd00::1", "ff02::1", bytes(24), 58)), tags=tags)):
        assert [count for *_, count in shown(world, table, [alone] * 20)[1]] == [1] * 20


# ------------------------------------------------------------------ merging


def unwrap(whole: bytes) -> tuple[bytes, bytes]:
    """The Ethernet header, and the frame without it."""
    size = ethernet_bytes(whole)
    return whole[14 : 14 + size], without_ethernet(whole, size - 14)


def unmerged(written: list[bytes]) -> list[bytes]:
    """Whole frames, super-packets cut as the kernel cuts them, each behind the header of the super-packet."""
    out: list[bytes] = []
    for data in written:
        whole = struct.pack("<H", min(len(data) - 12, 0xFFFF)) + data
        assert len(data) - 12 <= MAX_PACKET_BYTES
        if data[1]:
            header, inner = unwrap(whole)
            out += [in_header(it, header) for it in unmerged_ip([inner[2:]])]
        else:
            out.append(whole)
    return out


def same(one: bytes) -> tuple[bytes, tuple[bool, bytes]]:
    """All of a frame but an ID that nobody needs."""
    at = ip_header_at(memoryview(one), 0, len(one))
    if not at:
        return b"", (True, one)
    header, inner = one[HEADER_BYTES:at], one[:HEADER_BYTES] + one[at:]
    return header, test_wire_merge_tcp.same(inner)


def flow_of(one: bytes) -> bytes:
    """Ethernet header, protocol and ports."""
    header, inner = unwrap(one)
    return header + (inner[20:21] + inner[54:58] if inner[14] >> 4 == 6 else inner[23:24] + inner[34:38])


envelopes = st.tuples(
    st.sampled_from([MAC_B, MAC_B, MAC_C, BROADCAST]), st.sampled_from([b"", b"", tag(7), tag(7, SERVICE_VLAN)])
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(udp_crowds | tcp_crowds, envelopes, st.booleans()), min_size=1, max_size=4),
    st.integers(1, 5),
    test_wire_merge_tcp.damages,
    st.sampled_from([None, None, SMALL_DEVICE_BYTES, 60_000]),
)
def test_merged_and_cut_again_they_are_what_they_were(
    parts: list[tuple[list[bytes], tuple[bytes, bytes], bool]],
    mix: int,
    damaged: list[tuple[int, int, int]],
    buffer_bytes: int | None,
) -> None:
    """All of them, each flow in order, damaged ones as they came; also where the device is full or refuses some."""
    frames = [
        behind_ethernet(it, to=destination, tags=tag(number % 2) if varied else tags)
        for part, (destination, tags), varied in parts
        for number, it in enumerate(part)
    ]
    frames = [it for first in range(mix) for it in frames[first::mix]]
    frames = frames[: 200_000 // max(map(len, frames))]
    for number, at, flip in damaged:
        victim = bytearray(frames[number % len(frames)])
        if at < len(victim) and at != 3:  # else it is a super-packet already
            victim[at] ^= flip
        frames[number % len(frames)] = bytes(victim)
    world = World()
    try:
        merging = Merging(world, world.device(buffer_bytes), ethernet=True)
        out = unmerged(merging.writes(frames)) + [struct.pack("<H", len(it) - 12) + it for it in merging.shown]
    finally:
        world.close()
    assert Counter(map(same, out)) == Counter(map(same, frames))
    if not damaged:
        for flow in set(map(flow_of, frames)):
            mine, theirs = ([same(it) for it in some if flow_of(it) == flow] for some in (out, frames))
            assert mine == theirs


def wrapped(frames: list[bytes], *headers: bytes) -> list[bytes]:
    """With these tags in turn."""
    return [behind_ethernet(it, tags=headers[n % len(headers)] if headers else b"") for n, it in enumerate(frames)]


@pytest.mark.parametrize("tags", IN_TAGS)
@pytest.mark.parametrize(
    ("frames", "writes"),
    [
        (udps(130), 3),
        (udps(64, flows=8), 8),
        (udps(100, size=1400), 3),
        (udps(46, size=1400), 1),
        (udps(64, fragment=0), 1),
        (udps(10, size=63) + udps(1, size=7) + udps(10, size=63), 2),
        (segments(128), 2),
        (segments(100, psh=10), 10),
        (verified(segments(128)), 2),
        (udps(130, ipv6=True), 3),
        (udps(64, flows=8, ipv6=True), 8),
        (segments(128, ipv6=True), 2),
        (verified(segments(128, ipv6=True)), 2),
        ([it for pair in zip(segments(40), udps(40, ipv6=True), udps(40), strict=True) for it in pair], 3),
    ],
    ids=range(14),
)
def test_how_many_writes(world: World, frames: list[bytes], writes: int, tags: bytes) -> None:
    merging = Merging(world, ethernet=True)
    assert len(merging.writes(wrapped(frames, tags))) == writes
    assert not merging.shown


@pytest.mark.parametrize("six", [False, True])
def test_a_super_packet_is_no_longer_than_a_frame(world: World, six: bool) -> None:
    """With its Ethernet header: without it, one datagram more had fitted."""
    header = 14 + (48 if six else 28)
    count, size = next(
        (count, size)
        for count in range(40, 65)
        for size in range(1000, 1700)
        if count * size + header - 14 <= MAX_PACKET_BYTES < count * size + header
    )
    got = Merging(world, ethernet=True).writes(wrapped(udps(count, size=size, ipv6=six)))
    assert [(len(it) - 12 - header) // size for it in got] == [count - 1, 1]
    assert len(Merging(world).writes(udps(count, size=size, ipv6=six))) == 1


def test_the_header_of_a_super_packet(world: World) -> None:
    """Offsets count from the Ethernet header; all else is as without it."""
    for six in (False, True):
        for make in (udps, segments):
            for tags in IN_TAGS:
                frames = make(20, ipv6=six)
                [inner] = Merging(world).writes(frames)
                [outer] = Merging(world, ethernet=True).writes(wrapped(frames, tags))
                assert outer == behind_ethernet(struct.pack("<H", len(inner) - 12) + inner, tags=tags)[2:]


@pytest.mark.parametrize(
    "frames",
    [
        [behind_ethernet(it, to=(MAC_B, MAC_C)[n % 2]) for n, it in enumerate(udps(4, flows=2))][1:3],
        [behind_ethernet(it, to=(MAC_B, MAC_C)[n % 2]) for n, it in enumerate(udps(2))],
        [behind_ethernet(it, source=(MAC_A, MAC_C)[n % 2]) for n, it in enumerate(udps(2))],
        wrapped(udps(2), tag(1), tag(2)),
        wrapped(udps(2), tag(1), tag(1, SERVICE_VLAN)),
        wrapped(udps(2), b"", tag(1)),
        wrapped(udps(3), tag(1) + tag(2)),
        [in_header(it, MAC_B + MAC_A + b"\x86\xdd") for it in udps(3)],
        [in_header(it, MAC_B + MAC_A + b"\x08\0") for it in udps(3, ipv6=True)],
        [in_header(it, MAC_B + MAC_A + b"\x88\x64" + bytes(8)) for it in udps(3)],
        [it + bytes(4) for it in ([*wrapped(udps(3, size=8))])],
        [in_header(it, MAC_B + MAC_A + b"\x08\0")[:8] + it[8:14] + behind_ethernet(it)[14:] for it in udps(3)],
        [arp()] * 3,
        [SHORTEST] * 3,
    ],
    ids=[
        "flows",
        "destination",
        "source",
        "VLAN",
        "kind of tag",
        "with a tag and without",
        "two tags",
        "IPv4 that says it is IPv6",
        "IPv6 that says it is IPv4",
        "something else",
        "padded",
        "csum_start counted from IP",
        "ARP",
        "the shortest",
    ],
)
def test_what_is_not_merged(world: World, frames: list[bytes]) -> None:
    frames = [struct.pack("<H", len(it) - HEADER_BYTES) + it[2:] for it in frames]
    assert Counter(Merging(world, ethernet=True).writes(frames)) == Counter(it[2:] for it in frames)


@pytest.mark.parametrize("other", [arp(), SHORTEST, behind_ethernet(udps(1)[0], tags=tag(1) + tag(2))])
def test_what_has_no_flow_is_not_overtaken(world: World, other: bytes) -> None:
    frames = [*wrapped(udps(5)), other, *wrapped(udps(5)), other, other]
    got = Merging(world, ethernet=True).writes(frames)
    assert [it[1] for it in got] == [GSO_UDP_L4, 0, GSO_UDP_L4, 0, 0]


@pytest.mark.parametrize("size", range(MIN_ETHERNET_BYTES, 90))
@pytest.mark.parametrize("kind", [b"\x08\0", b"\x86\xdd", tag(1) + b"\x08\0", tag(1) + b"\x86\xdd", tag(1) + tag(2)])
@pytest.mark.parametrize("protocol", [6, 17])
def test_short_frames_are_passed_on(world: World, size: int, kind: bytes, protocol: int) -> None:
    """Whatever they say that follows, and wherever they end."""
    packet = b"\x45" + b"\0" * 8 + bytes([protocol]) + b"\xff" * 80
    if kind.endswith(b"\x86\xdd"):
        packet = b"\x60" + b"\0" * 5 + bytes([protocol]) + b"\xff" * 80
    data = [frame((MAC_B + MAC_A + kind + packet)[:size])] * 3
    assert Merging(world, ethernet=True).writes(data) == [it[2:] for it in data]


def test_a_runt_is_pythons(world: World) -> None:
    """Which ends the stream."""
    inlet, far, _ = inlet_of(world, world.pump.table(plane.ALL_FRAMES, True))
    far.send(chunk(SHORTEST + RUNT))
    assert [event[:2] for event in world.wait()[0]] == [(_pump.FRAMES, inlet), (_pump.UNUSUAL, inlet)]
