"""UDP packets merged, and cut again as Linux does it (net/ipv4/udp_offload.c), are what they were."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.gro_udp import MAX_SEGMENTS, coalesce, coalesce_block, find_runs
from tapotun_trio.datapath.tun_io import DeviceWriter
from tapotun_trio.wire.body import LengthBody
from tapotun_trio.wire.frames import BUFFER_BYTES, FrameRange, FrameReader, each
from tapotun_trio.wire.uniform import MIN_BLOCK_FRAMES
from tests.fakes import MemoryDevice

PARTIAL: Final = struct.pack("<BBHHHHH", 1, 0, 0, 0, 20, 6, 0)
IPV6_PARTIAL: Final = struct.pack("<BBHHHHH", 1, 0, 0, 0, 40, 6, 0)
IPV6_ADDRESSES: Final = bytes.fromhex("fd00" + "00" * 13 + "01" + "fd01" + "00" * 13 + "02")


def fold(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp(
    payload: bytes,
    *,
    port: int = 7,
    ident: int = 0,
    fragment: int = 0x4000,
    tos: int = 0,
    addresses: bytes = bytes([10, 0, 0, 1, 10, 0, 0, 2]),
) -> bytes:
    """A frame, its checksum partial."""
    length = 28 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, tos, length, ident, fragment, 64, 17, 0) + addresses
    head = head[:10] + struct.pack("!H", fold(head) ^ 0xFFFF) + head[12:]
    pseudo = fold(addresses + struct.pack("!HH", 17, length - 20))
    return struct.pack("<H", length) + PARTIAL + head + struct.pack("!HHHH", port, 9, length - 20, pseudo) + payload


def udp6(
    payload: bytes, *, port: int = 7, traffic_class: int = 0, label: int = 5, hops: int = 64, extension: bool = False
) -> bytes:
    """The same of IPv6. ``extension``: with a destination option before UDP."""
    option = bytes((17, 0, 1, 4, 0, 0, 0, 0)) if extension else b""
    length = len(option) + 8 + len(payload)
    head = struct.pack("!IHBB", 6 << 28 | traffic_class << 20 | label, length, 60 if extension else 17, hops)
    pseudo = fold(IPV6_ADDRESSES + struct.pack("!HH", 17, 8 + len(payload)))
    ports = struct.pack("!HHHH", port, 9, 8 + len(payload), pseudo)
    return struct.pack("<H", 40 + length) + IPV6_PARTIAL + head + IPV6_ADDRESSES + option + ports + payload


def port_of(frame: bytes) -> int:
    """The last byte of the source port."""
    return frame[55 if frame[14] >> 4 == 6 else 35]


def laid(frames: list[bytes]) -> tuple[memoryview, list[FrameRange]]:
    """Each as a single one."""
    at, spans = 0, []
    for frame in frames:
        spans.append((at, at + len(frame), 1))
        at += len(frame)
    return memoryview(b"".join(frames)), spans


def received(frames: list[bytes]) -> tuple[memoryview, list[FrameRange]]:
    """As the reader of a stream has them, blocks and all."""
    data = b"".join(frames)
    reader = FrameReader(LengthBody(len(data)))
    spans = reader.prime(data)
    while reader.pending:
        spans += reader.feed(0)
    return reader.view, spans


def cut(merged: bytes) -> list[bytes]:
    """The frames that the kernel makes of a super-packet, checking what it takes for granted."""
    flags, gso_type, hdr_len, size, start, offset, _ = struct.unpack_from("<BBHHHHH", merged)
    if merged[12] >> 4 == 6:
        return cut6(merged)
    assert (flags, gso_type, hdr_len, start, offset) == (1, 5, 28, 20, 6)
    ip, ports, payload = merged[12:32], merged[32:36], merged[40:]
    length, ident, fragment = struct.unpack_from("!HHH", ip, 2)
    assert fold(ip) == 0xFFFF
    assert length == len(merged) - 12
    assert merged[36:40] == struct.pack("!HH", length - 20, fold(ip[12:20] + struct.pack("!HH", 17, length - 20)))
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    assert 2 <= len(pieces) <= MAX_SEGMENTS
    return [
        udp(piece, port=int.from_bytes(ports[:2], "big"), ident=(ident + n) & 0xFFFF, fragment=fragment, tos=ip[1])
        for n, piece in enumerate(pieces)
    ]


def cut6(merged: bytes) -> list[bytes]:
    """The same of IPv6 (net/ipv6/udp_offload.c)."""
    flags, gso_type, hdr_len, size, start, offset, _ = struct.unpack_from("<BBHHHHH", merged)
    assert (flags, gso_type, hdr_len, start, offset) == (1, 5, 48, 40, 6)
    first, length, protocol, hops = struct.unpack_from("!IHBB", merged, 12)
    assert merged[20:52] == IPV6_ADDRESSES
    assert length == len(merged) - 52 <= 65535 - 40
    assert protocol == 17
    assert merged[56:60] == struct.pack("!HH", length, fold(IPV6_ADDRESSES + struct.pack("!HH", 17, length)))
    payload = merged[60:]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    assert 2 <= len(pieces) <= MAX_SEGMENTS
    port = int.from_bytes(merged[52:54], "big")
    fields = {"port": port, "traffic_class": first >> 20 & 0xFF, "label": first & 0xFFFFF, "hops": hops}
    return [udp6(piece, **fields) for piece in pieces]


def written(frames: list[bytes]) -> tuple[list[bytes], int]:
    """What arrives, super-packets cut; and the number of writes."""
    view, spans = laid(frames)
    out: list[bytes] = []
    runs = find_runs(view, spans)
    for run in runs:
        parts = coalesce(view, run) if len(run) > 1 else None
        out += [bytes(view[a:b]) for a, b, _ in run] if parts is None else cut(b"".join(parts))
    return out, len(runs)


def written_by_blocks(frames: list[bytes]) -> tuple[list[bytes], int]:
    """The same, what is side by side and alike as a block."""
    view, spans = received(frames)
    out: list[bytes] = []
    writes = 0
    for start, stop, count in spans:
        runs = [([(start, stop, 1)], None)] if count == 1 else coalesce_block(view, (start, stop, count))
        for run, parts in runs:
            out += [bytes(view[a:b]) for a, b in each(run)] if parts is None else cut(b"".join(parts))
            writes += len(list(each(run))) if parts is None else 1
    return out, writes


packets = st.builds(
    udp6,
    st.integers(1, 1452).map(bytes) | st.sampled_from([b"a" * 64, b"b" * 64, b"c" * 9]),
    port=st.integers(1, 3),
    traffic_class=st.sampled_from([0, 0, 0, 4]),
    label=st.sampled_from([5, 5, 5, 6]),
    hops=st.sampled_from([64, 64, 64, 63]),
    extension=st.sampled_from([False] * 7 + [True]),
) | st.builds(
    udp,
    st.integers(1, 1472).map(bytes) | st.sampled_from([b"a" * 64, b"b" * 64, b"c" * 9]),
    port=st.integers(1, 3),
    tos=st.sampled_from([0, 0, 0, 4]),
    ident=st.sampled_from([0, 1, 2, 65535]),
    fragment=st.sampled_from([0x4000, 0x4000, 0, 0x2000, 0x0001]),
)


def without_id(frame: bytes) -> bytes:
    return frame if frame[14] >> 4 == 6 or not frame[20] & 0x40 else frame[:18] + frame[20:24] + frame[26:]


@given(st.lists(packets, max_size=90))
def test_cut_again_they_are_what_they_were_and_every_flow_keeps_its_order(frames: list[bytes]) -> None:
    out, _ = written(frames)
    for port in (1, 2, 3):
        for version in (4, 6):
            mine, theirs = (
                [without_id(it) for it in those if port_of(it) == port and it[14] >> 4 == version]
                for those in (frames, out)
            )
            assert mine == theirs


@given(st.lists(packets | st.binary(min_size=34, max_size=90), max_size=20), st.data())
def test_a_damaged_frame_stays_as_it_is(frames: list[bytes], data: st.DataObject) -> None:
    frames = frames + [udp(b"x" * 8)] * 4 + [udp6(b"x" * 8)] * 4
    victim = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, min(len(frames[victim]), 62) - 1))
    broken = bytearray(frames[victim])
    broken[at] ^= data.draw(st.integers(1, 255))
    frames[victim] = bytes(broken)
    out, _ = written(frames)
    assert Counter(map(without_id, out)) == Counter(map(without_id, frames))


class Crowd(NamedTuple):
    """Many packets of a size."""

    size: int
    ports: list[int]
    idents: list[int]
    fragment: int
    packets: int
    ipv6: bool = False

    def frames(self) -> list[bytes]:
        if self.ipv6:
            return [
                udp6(bytes([n % 251]) * self.size, port=self.ports[n % len(self.ports)]) for n in range(self.packets)
            ]
        return [
            udp(
                bytes([n % 251]) * self.size,
                port=self.ports[n % len(self.ports)],
                ident=self.idents[n % len(self.idents)],
                fragment=self.fragment,
            )
            for n in range(self.packets)
        ]


crowds = st.builds(
    Crowd,
    st.sampled_from([1, 2, 9, 64, 255, 256, 258, 1472]),
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.lists(st.integers(0, 65535), min_size=1, max_size=7),
    st.sampled_from([0x4000, 0x4000, 0, 0x2000]),
    st.integers(1, 140),
    st.booleans(),
)
# Which frame, where in its headers, and what is flipped there.
damages = st.lists(st.tuples(st.integers(0, 10_000), st.integers(2, 61), st.integers(1, 255)), max_size=2)


def crowded(parts: list[Crowd], damaged: list[tuple[int, int, int]]) -> list[bytes]:
    frames = [frame for part in parts for frame in part.frames()]
    frames = frames[: BUFFER_BYTES // max(map(len, frames))]  # what one receive may bring
    for number, at, flip in damaged:
        victim = bytearray(frames[number % len(frames)])
        if at < len(victim):
            victim[at] ^= flip
        frames[number % len(frames)] = bytes(victim)
    return frames


@settings(deadline=None)
@given(st.lists(crowds, min_size=1, max_size=3), damages)
def test_a_block_cut_again_is_what_it_was(parts: list[Crowd], damaged: list[tuple[int, int, int]]) -> None:
    frames = crowded(parts, damaged)
    out, _ = written_by_blocks(frames)
    assert Counter(map(without_id, out)) == Counter(map(without_id, frames))
    if not damaged:
        for port in (1, 2, 3):
            for version in (4, 6):
                mine, theirs = (
                    [without_id(it) for it in those if port_of(it) == port and it[14] >> 4 == version]
                    for those in (frames, out)
                )
                assert mine == theirs


@settings(deadline=None)
@given(st.lists(crowds, min_size=1, max_size=3), damages)
def test_what_a_block_has_alike(parts: list[Crowd], damaged: list[tuple[int, int, int]]) -> None:
    frames = crowded(parts, damaged)
    view, spans = received(frames)
    assert [bytes(view[start:stop]) for start, stop in each(spans)] == frames
    for start, stop, count in spans:
        inside = [bytes(view[a:b]) for a, b in each([(start, stop, count)])]
        if inside[0][14] >> 4 == 6:
            assert len({it[:54] for it in inside}) == 1
        else:
            assert len({(it[:16], it[22:24], it[26:34]) for it in inside}) == 1
        assert count == 1 or (count >= MIN_BLOCK_FRAMES and inside[0][3] == 0 and inside[0][14] >> 4 in (4, 6))


def test_what_is_merged_of_ipv6() -> None:
    assert written([udp6(b"x" * 64)] * 130)[1] == 3
    assert written([udp6(b"x" * 64, port=n % 8) for n in range(64)])[1] == 8
    assert written([udp6(b"x" * 64), udp6(b"x" * 64), udp6(b"y"), udp6(b"x" * 64)])[1] == 2
    assert written([udp6(b"x" * 1452)] * 50)[1] == 2
    # One flow of each family, in turn: neither ends a run of the other.
    assert written([it for _ in range(20) for it in (udp(b"x" * 64), udp6(b"x" * 64))])[1] == 2


@pytest.mark.parametrize(
    "frames",
    [
        [udp6(b"")] * 3,
        [udp6(b"x" * 9, label=n) for n in range(3)],
        [udp6(b"x" * 9, traffic_class=n) for n in range(3)],
        [udp6(b"x" * 9, hops=n) for n in range(3)],
        [udp6(b"x" * 9, extension=True)] * 3,
        [udp6(b"x" * 9)[:58] + b"\0\x09" + udp6(b"x" * 9)[60:]] * 3,
        [udp6(b"x" * 9)[:18] + b"\0\x09" + udp6(b"x" * 9)[20:]] * 3,
    ],
    ids=["empty", "labels", "classes", "hops", "extension", "length of UDP", "length of IPv6"],
)
def test_what_is_not_of_ipv6(frames: list[bytes]) -> None:
    out, _ = written(frames)
    assert out == frames


def test_blocks() -> None:
    """Which frames become one, and how few writes that takes."""
    assert [span[2] for span in received([udp(b"x" * 64, ident=n) for n in range(200)])[1]] == [1, 199]
    assert written_by_blocks([udp(b"x" * 64, ident=n) for n in range(201)])[1] == 1 + 4
    assert written_by_blocks([udp(b"x" * 1400)] * 93)[1] == 1 + 2
    assert written_by_blocks([udp(b"x" * 64, port=n % 8) for n in range(1 + 128)])[1] == 1 + 8
    assert written_by_blocks([udp(b"x" * 64, port=n) for n in range(1 + 64)])[1] == 1 + 64
    assert written_by_blocks([udp(b"x" * 63)] * 65)[1] == 1 + 1
    assert written_by_blocks([udp(b"x" * 64, ident=n, fragment=0) for n in range(65)])[1] == 1 + 1


def test_a_damaged_checksum_keeps_a_whole_block_from_being_merged_as_one() -> None:
    frames = [udp(b"x" * 64, ident=n) for n in range(60)]
    frames[30] = frames[30][:24] + bytes([frames[30][24] ^ 1]) + frames[30][25:]
    out, writes = written_by_blocks(frames)
    assert Counter(map(without_id, out)) == Counter(map(without_id, frames))
    assert writes == 1 + 1 + 1 + 1


def test_what_is_merged() -> None:
    assert written([udp(b"x" * 64)] * 130)[1] == 3
    assert written([udp(b"x" * 64, port=n % 8) for n in range(64)])[1] == 8
    assert written([udp(b"x" * 64), udp(b"x" * 64), udp(b"y"), udp(b"x" * 64)])[1] == 2
    assert written([udp(b"x" * 1472)] * 50)[1] == 2
    assert written([udp(b"x", ident=n & 0xFFFF, fragment=0) for n in range(65530, 65545)])[1] == 1


@pytest.mark.parametrize(
    "frames",
    [
        [udp(b"")] * 3,
        [udp(b"x", ident=n * 2, fragment=0) for n in range(3)],
        [udp(b"x", fragment=0x2000)] * 3,
    ],
    ids=["empty", "ids", "fragments"],
)
def test_what_is_not(frames: list[bytes]) -> None:
    assert written(frames) == (frames, 3)


def test_no_other_packet_is_overtaken() -> None:
    other = struct.pack("<H", 20) + bytes(12) + b"\x45" + bytes(19)
    frames = [udp(b"x"), other, udp(b"x")]
    assert written(frames) == (frames, 3)


class OldKernel(MemoryDevice):
    def write(self, frame: memoryview | bytes, /) -> bool | None:
        return False if frame[1] == 5 else super().write(frame)


@pytest.mark.parametrize("alone", [True, False])
async def test_a_kernel_that_does_not_know_it_gets_each_alone(*, alone: bool) -> None:
    device, drops = OldKernel("tun0"), Counter[str]()
    writer = DeviceWriter(device, drops)
    frames = [udp(b"x" * 64, port=n % 2) for n in range(40)]
    view, spans = laid(frames) if alone else received(frames)
    for _ in range(2):
        writer.write_all(view, spans, drops)
    assert sorted(device.outbound) == sorted(f[2:] for f in frames * 2)
    assert not drops


async def test_traffic_without_runs_is_not_looked_at_for_long() -> None:
    """After one, three, seven receives it is looked at again; and once there are runs, always."""
    device, drops = MemoryDevice("tun0"), Counter[str]()
    writer = DeviceWriter(device, drops)
    many, one = ([udp(b"x" * 64, port=n if flows else 0) for n in range(40)] for flows in (True, False))

    def writes(frames: list[bytes]) -> int:
        device.outbound.clear()
        writer.write_all(*laid(frames), drops)
        return len(device.outbound)

    assert writes(one) == 1
    assert writes(many) == 40
    assert writes(one) == 40  # passed over
    assert writes(one) == 1
    assert writes(one) == 1
    for receives in (1, 3, 7):
        assert writes(many) == 40
        assert [writes(many) for _ in range(receives)] == [40] * receives
    assert writes(one) == 1
    assert writes(one) == 1
    assert not drops


async def test_a_full_device_gets_a_run_later() -> None:
    device, drops = MemoryDevice("tun0"), Counter[str]()
    writer = DeviceWriter(device, drops)
    device.set_writable(False)
    view, spans = received([udp(b"x" * 64)] * 15)
    writer.write_all(view, spans, drops)
    assert not device.outbound
    device.set_writable(True)
    writer.write_all(view, spans, drops)  # must not overtake what waits
    assert not device.outbound
