"""UDP and TCP behind an Ethernet header: merged as without it, and with the header kept."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.gro_udp import coalesce, coalesce_block, find_runs
from tapotun_trio.datapath.tun_io import DeviceWriter
from tapotun_trio.wire.frames import BUFFER_BYTES, each
from tapotun_trio.wire.vnet import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, validate_ethernet_vnet
from tests.fakes import MemoryDevice

from ..tap_frames import ARP, IPV4, MAC_A, MAC_B, SERVICE_VLAN, behind_ethernet, ethernet, tag, without_ethernet
from . import test_wire_merge as merge_udp
from . import test_wire_merge_tcp as merge_tcp
from .test_wire_ethernet import received
from .test_wire_merge import IPV6_ADDRESSES, laid, udp, udp6
from .test_wire_merge_tcp import SMOOTH, stream, tcp

MAC_C: Final = bytes.fromhex("02000000000c")
TAGS: Final = [b"", tag(7), tag(7, SERVICE_VLAN)]
IDS: Final = ["plain", "tagged", "provider"]


def wrapped(frames: list[bytes], tags: bytes = b"") -> list[bytes]:
    return [behind_ethernet(one, tags=tags) for one in frames]


def one_by_one(frames: list[bytes], *, ethernet: bool) -> list[list[bytes]]:
    """The frames of each write of `find_runs`, super-packets as they are."""
    view, spans = laid(frames)
    out = []
    for run in find_runs(view, spans, ethernet=ethernet):
        parts = coalesce(view, run, ethernet=ethernet) if len(run) > 1 else None
        out.append([bytes(view[a:b]) for a, b, _ in run] if parts is None else [said(b"".join(parts))])
    return out


def said(written: bytes) -> bytes:
    """What is written, as a frame of a stream."""
    return struct.pack("<H", len(written) - 12) + written


def cut(frame: bytes, tags_bytes: int, *, partial: bool = True) -> list[bytes]:
    """What the kernel makes of a written frame, each behind its header."""
    if frame[3] == 0:
        return [frame]
    header = frame[14 : 28 + tags_bytes]
    inner = without_ethernet(frame, tags_bytes)[2:]
    pieces = merge_udp.cut(inner) if frame[3] == GSO_UDP_L4 else merge_tcp.cut(inner, partial=partial)
    return [behind_ethernet(one, to=header[:6], source=header[6:12], tags=header[12:-2]) for one in pieces]


def by_blocks(frames: list[bytes], tags_bytes: int, *, partial: bool = True) -> tuple[list[bytes], int]:
    """What arrives, super-packets cut; and the number of writes."""
    view, spans = received(frames)
    out: list[bytes] = []
    writes = 0
    for span in spans:
        for run, parts in coalesce_block(view, span, ethernet=True) if span[2] > 1 else [([span], None)]:
            alone = [bytes(view[start:stop]) for start, stop in each(run)]
            out += alone if parts is None else cut(said(b"".join(parts)), tags_bytes, partial=partial)
            writes += len(alone) if parts is None else 1
    return out, writes


def kept(frame: bytes, tags_bytes: int) -> bytes:
    """All of a frame but an ID that nobody needs, and the checksum with it."""
    ip_at = 28 + tags_bytes
    if len(frame) < ip_at + 20 or frame[ip_at] >> 4 == 6 or not frame[ip_at + 6] & 0x40:
        return frame
    return frame[: ip_at + 4] + frame[ip_at + 6 : ip_at + 10] + frame[ip_at + 12 :]


# ------------------------------------------------------------------ the same as without Ethernet


@settings(deadline=None)
@given(st.lists(merge_udp.packets, max_size=90), st.sampled_from(TAGS))
def test_single_frames_are_merged_as_without(frames: list[bytes], tags: bytes) -> None:
    """The very same runs, each written as the same super-packet behind the header. Few packets: the header takes 14 of
    65,535 bytes, which only the longest run would show."""
    assert one_by_one(wrapped(frames, tags), ethernet=True) == [
        wrapped(run, tags) for run in one_by_one(frames, ethernet=False)
    ]


@settings(deadline=None)
@given(st.lists(merge_udp.crowds, min_size=1, max_size=3), merge_udp.damages, st.sampled_from(TAGS))
@example([merge_udp.Crowd(64, [1], [0], 0x4000, 140)], [], tag(7))
@example([merge_udp.Crowd(64, [1], [0], 0x4000, 140)], [(0, 8, 32), (90, 26, 0x89)], tag(7))
def test_blocks_of_udp_cut_again_are_what_they_were(
    parts: list[merge_udp.Crowd], damaged: list[tuple[int, int, int]], tags: bytes
) -> None:
    frames = [behind_ethernet(one, tags=tags) for part in parts for one in part.frames()]
    _check_blocks(frames, damaged, len(tags))


@settings(deadline=None)
@example([SMOOTH], [], b"", True)
@example([SMOOTH._replace(ipv6=True)], [], tag(), True)
@example([SMOOTH], [(60, 33, 1)], b"", True)
@given(st.lists(merge_tcp.crowds, min_size=1, max_size=3), merge_tcp.damages, st.sampled_from(TAGS), st.booleans())
def test_blocks_of_tcp_cut_again_are_what_they_were(
    parts: list[merge_tcp.Crowd], damaged: list[tuple[int, int, int]], tags: bytes, partial: bool
) -> None:
    frames = [behind_ethernet(one, tags=tags) for part in parts for one in part.frames(partial=partial)]
    _check_blocks(frames, damaged if partial else [], len(tags), partial=partial)


def _check_blocks(
    frames: list[bytes], damaged: list[tuple[int, int, int]], tags_bytes: int, *, partial: bool = True
) -> None:
    frames = frames[: BUFFER_BYTES // max(map(len, frames))]
    for number, at, flip in damaged:
        victim = bytearray(frames[number % len(frames)])
        if at < len(victim):
            victim[at] ^= flip
        frames[number % len(frames)] = bytes(victim)
    out, writes = by_blocks(frames, tags_bytes, partial=partial)
    assert writes <= len(frames)
    assert Counter(kept(one, tags_bytes) for one in out) == Counter(kept(one, tags_bytes) for one in frames)
    if not damaged:
        for port in range(1, 5):
            for version in (4, 6):
                mine, theirs = (
                    [
                        kept(one, tags_bytes)
                        for one in those
                        if one[28 + tags_bytes] >> 4 == version
                        and merge_udp.port_of(without_ethernet(one, tags_bytes)) == port
                    ]
                    for those in (frames, out)
                )
                assert mine == theirs


# ------------------------------------------------------------------ how well


@pytest.mark.parametrize("tags", TAGS, ids=IDS)
def test_what_is_merged(tags: bytes) -> None:
    """The first of a block is one by itself: no two of its size have come yet."""

    def writes(frames: list[bytes]) -> int:
        return by_blocks(wrapped(frames, tags), len(tags))[1]

    assert writes([udp(b"x" * 64, ident=n) for n in range(201)]) == 1 + 4
    assert writes([udp6(b"x" * 64)] * 201) == 1 + 4
    assert writes([udp(b"x" * 64, port=n % 8) for n in range(1 + 128)]) == 1 + 8
    assert writes([udp6(b"x" * 64, port=n % 8) for n in range(1 + 128)]) == 1 + 8
    assert writes([udp(b"x" * 63)] * 65) == 1 + 1
    assert writes([udp(b"x" * 64, ident=n, fragment=0) for n in range(65)]) == 1 + 1
    assert writes(stream(1 + 128)) == writes(stream(1 + 128, ipv6=True)) == 1 + 2
    assert writes(stream(1 + 100, psh=10)) == writes(stream(1 + 100, psh=10, ipv6=True)) == 1 + 11
    assert by_blocks(wrapped(stream(65, partial=False), tags), len(tags), partial=False)[1] == 1 + 1


@pytest.mark.parametrize("tags", TAGS, ids=IDS)
def test_a_super_packet_is_no_larger_than_a_frame_may_be(tags: bytes) -> None:
    """So that a bridge may hand it to another TAP interface: the length of a frame has 16 bits."""
    for frames, most in (  # so many are within 65,535 bytes with the headers above Ethernet, but not with its own
        ([udp(b"x" * 1310)] * 91, 50),
        ([udp6(b"x" * 1284)] * 91, 51),
        (stream(91, size=1284, options=b""), 51),
    ):
        payload_bytes = 1310 if most == 50 else 1284
        assert len(frames[0]) - 14 + (most - 1) * payload_bytes + 14 + len(tags) > 65535
        view, spans = received(wrapped(frames, tags))
        lengths = [
            len(b"".join(parts)) - 12
            for span in spans
            if span[2] > 1
            for _, parts in coalesce_block(view, span, ethernet=True)
            if parts is not None
        ]
        assert 60_000 < max(lengths) <= 65535
        one_by_one_lengths = [len(run[0]) - 14 for run in one_by_one(wrapped(frames, tags), ethernet=True)]
        assert max(one_by_one_lengths) <= 65535


def test_what_differs_in_the_ethernet_header_is_not_merged() -> None:
    frames = [behind_ethernet(udp(b"x" * 64), to=(MAC_B, MAC_C)[n % 2]) for n in range(40)]
    assert one_by_one(frames, ethernet=True) == [[one] for one in frames]
    frames = [behind_ethernet(udp6(b"x" * 64), tags=tag(n % 2)) for n in range(40)]
    assert one_by_one(frames, ethernet=True) == [[one] for one in frames]
    frames = [behind_ethernet(udp(b"x" * 64), source=(MAC_A, MAC_C)[n // 20]) for n in range(40)]
    assert [len(run) for run in one_by_one(frames, ethernet=True)] == [1, 1]


def test_tagged_and_untagged_in_turn() -> None:
    """Two flows, each of which is merged."""
    plain, tagged = wrapped([udp(b"x" * 64)] * 20), wrapped([udp6(b"y" * 64)] * 20, tag())
    runs = one_by_one([one for pair in zip(plain, tagged, strict=True) for one in pair], ethernet=True)
    assert len(runs) == 2
    assert all(len(run) == 1 and run[0][3] == GSO_UDP_L4 for run in runs)


@pytest.mark.parametrize(
    "other",
    [
        ethernet(bytes(28), ARP),
        ethernet(b""),
        ethernet(b"\x45", tags=tag()),
        behind_ethernet(udp(b"x" * 64), tags=tag() * 2),
        behind_ethernet(tcp(b"x" * 64)),
        behind_ethernet(tcp(b"x" * 64, ipv6=True)),
    ],
    ids=["ARP", "nothing", "half", "two tags", "TCP", "TCP of IPv6"],
)
def test_no_other_frame_is_overtaken(other: bytes) -> None:
    frames = [*wrapped([udp(b"x" * 64)] * 3), other, *wrapped([udp(b"x" * 64)] * 3)]
    assert [len(run) for run in one_by_one(frames, ethernet=True)] == [1, 1, 1]
    assert one_by_one(frames, ethernet=True)[1] == [other]


def test_padding_is_not_merged() -> None:
    """Ethernet fills short packets up to 60 bytes. What is behind a packet is no part of a super-packet."""
    padded = [one[:2] + one[2:] + bytes(18) for one in wrapped([udp(b"x")] * 40)]
    padded = [struct.pack("<H", len(one) - 14) + one[2:] for one in padded]
    assert one_by_one(padded, ethernet=True) == [padded]
    assert by_blocks(padded, 0) == (padded, 40)


def test_the_pseudo_header_is_the_packets_own() -> None:
    """A checksum that is wrong stays so: nothing of it is merged."""
    frames = wrapped([one[:60] + b"\0\0" + one[62:] for one in [udp6(b"x" * 64)] * 40])
    assert IPV6_ADDRESSES in frames[0]
    assert by_blocks(frames, 0) == (frames, 40)


# ------------------------------------------------------------------ into the device


def test_the_writer_writes_super_packets_of_ethernet() -> None:
    device, drops = MemoryDevice("tap0"), Counter[str]()
    writer = DeviceWriter(device, drops, ethernet=True)
    frames = [*wrapped(stream(65)), *wrapped(stream(65, ipv6=True)), *wrapped([udp(b"x" * 64)] * 65, tag())]
    frames += [ethernet(bytes(28), ARP), ethernet(b"")]
    view, spans = received(frames)
    writer.write_all(view, spans, drops)
    kinds = Counter(one[1] for one in device.outbound)
    assert min(kinds[GSO_TCPV4], kinds[GSO_TCPV6], kinds[GSO_UDP_L4]) >= 1
    assert len(device.outbound) < 20
    arrived = [piece for one in device.outbound for piece in cut(said(one), tagged(said(one)))]
    assert Counter(kept(one, tagged(one)) for one in arrived) == Counter(kept(one, tagged(one)) for one in frames)
    assert not drops


def tagged(frame: bytes) -> int:
    """How many bytes of tags it has."""
    return 4 if frame[26:28] == b"\x81\0" else 0


def test_single_frames_too() -> None:
    device, drops = MemoryDevice("tap0"), Counter[str]()
    frames = wrapped([udp6(b"x" * 64)] * 20)
    DeviceWriter(device, drops, ethernet=True).write_all(*laid(frames), drops)
    (one,) = device.outbound
    assert cut(said(one), 0) == frames


@pytest.mark.parametrize("csum_start", [0, 13, 14, 33])
def test_a_refused_frame_whose_checksum_is_in_a_header_is_a_drop(csum_start: int) -> None:
    """The frames around it are written, and the stream goes on, unlike that of a TUN interface."""
    good = ethernet(bytes(50), 0x88B5)
    bad = ethernet(bytes(50), IPV4, vnet=struct.pack("<BBHHHHH", 1, 0, 0, 0, csum_start, 6, 0))
    assert not validate_ethernet_vnet(memoryview(bad))

    class Kernel(MemoryDevice):
        def write(self, frame: memoryview | bytes, /) -> bool | None:
            return False if frame[0] & 1 else super().write(frame)

    device, drops = Kernel("tap0"), Counter[str]()
    DeviceWriter(device, drops, ethernet=True).write_all(*laid([good, bad, good]), drops)
    assert list(device.outbound) == [good[2:]] * 2
    assert drops == {"device-refused": 1}


def test_a_refused_frame_that_is_right_is_a_drop() -> None:
    """Its offsets are those of Ethernet: for a TUN interface they would be wrong."""
    device, drops = MemoryDevice("tap0"), Counter[str]()
    device.refuses = True
    frames = [*wrapped([udp(b"x"), udp6(b"x")]), ethernet(b"", 0x88B5)]
    DeviceWriter(device, drops, ethernet=True).write_all(*laid(frames), drops)
    assert drops == {"device-refused": 3}
