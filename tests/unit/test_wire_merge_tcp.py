"""TCP segments merged, and cut again as Linux does it (net/ipv4/tcp_offload.c), are what they were."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.gro_udp import coalesce_block
from tapotun_trio.wire.frames import BUFFER_BYTES, each

from .test_wire_merge import IPV6_ADDRESSES, fold, port_of, received

PARTIAL: Final = struct.pack("<BBHHHHH", 1, 0, 0, 0, 20, 16, 0)
IPV6_PARTIAL: Final = struct.pack("<BBHHHHH", 1, 0, 0, 0, 40, 16, 0)
VALID: Final = struct.pack("<BBHHHHH", 2, 0, 0, 0, 0, 0, 0)
ADDRESSES: Final = bytes([10, 0, 0, 1, 10, 0, 0, 2])
ACK, PSH, FIN, CWR = 0x10, 0x08, 0x01, 0x80
TIMES: Final = b"\1\1\x08\x0a" + bytes(8)


def tcp(
    payload: bytes,
    sequence: int = 0,
    *,
    port: int = 7,
    ack: int = 1,
    flags: int = ACK,
    window: int = 500,
    options: bytes = TIMES,
    ident: int = 0,
    fragment: int = 0x4000,
    partial: bool = True,
    ipv6: bool = False,
    addresses: bytes = ADDRESSES,
) -> bytes:
    """A frame. Its checksum is partial, or whole and valid. ``ident``, ``fragment``: of IPv4 only."""
    if ipv6:
        tcp_bytes = 20 + len(options) + len(payload)
        ip = struct.pack("!IHBB", 6 << 28 | 5, tcp_bytes, 6, 64) + IPV6_ADDRESSES
        pseudo = fold(IPV6_ADDRESSES + struct.pack("!HH", 6, tcp_bytes))
        vnet = IPV6_PARTIAL if partial else VALID
        segment = _segment(payload, sequence, port, ack, flags, window, options, pseudo, partial=partial)
        return struct.pack("<H", 40 + tcp_bytes) + vnet + ip + segment
    length = 40 + len(options) + len(payload)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, ident, fragment, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", fold(ip) ^ 0xFFFF) + ip[12:]
    pseudo = fold(addresses + struct.pack("!HH", 6, length - 20))
    segment = _segment(payload, sequence, port, ack, flags, window, options, pseudo, partial=partial)
    return struct.pack("<H", length) + (PARTIAL if partial else VALID) + ip + segment


def _segment(
    payload: bytes,
    sequence: int,
    port: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes,
    pseudo: int,
    *,
    partial: bool,
) -> bytes:
    offset = (20 + len(options)) << 10
    head = struct.pack("!HHIIHHHH", port, 9, sequence & 0xFFFFFFFF, ack, offset | flags, window, pseudo, 0) + options
    if not partial:
        check = fold(head + payload + b"\0" * (len(payload) & 1)) ^ 0xFFFF
        head = head[:16] + struct.pack("!H", check) + head[18:]
    return head + payload


def cut(merged: bytes, *, partial: bool) -> list[bytes]:
    """The frames that the kernel makes of a super-packet, checking what it takes for granted."""
    flags, gso_type, hdr_len, size, start, offset, _ = struct.unpack_from("<BBHHHHH", merged)
    ipv6 = merged[12] >> 4 == 6
    ip_bytes = 40 if ipv6 else 20
    assert (flags, gso_type, start, offset) == (1, 4 if ipv6 else 1, ip_bytes, 16)
    ip, head, payload = merged[12 : 12 + ip_bytes], merged[12 + ip_bytes : 12 + hdr_len], merged[12 + hdr_len :]
    length, ident, fragment = struct.unpack_from("!HHH", ip, 2)
    if ipv6:
        (tcp_bytes,) = struct.unpack_from("!H", ip, 4)
        assert ip[:4] + ip[6:] == struct.pack("!IBB", 6 << 28 | 5, 6, 64) + IPV6_ADDRESSES
        length = tcp_bytes + 40
    else:
        assert fold(ip) == 0xFFFF
    assert length == len(merged) - 12 <= 65535
    port, _, sequence, ack, bits, window, check, urgent = struct.unpack_from("!HHIIHHHH", head)
    assert check == fold(ip[8 if ipv6 else 12 :] + struct.pack("!HH", 6, length - ip_bytes))
    assert hdr_len == ip_bytes + (bits >> 12) * 4
    assert urgent == 0
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    assert 2 <= len(pieces) <= 64
    assert size >= 8
    assert bits & 0xFFF in (ACK, ACK | PSH)
    return [
        tcp(
            piece,
            sequence + number * size,
            port=port,
            ack=ack,
            flags=bits & 0xFFF & ~(PSH if number < len(pieces) - 1 else 0),
            window=window,
            options=head[20:],
            ident=(ident + number) & 0xFFFF,
            fragment=fragment,
            partial=partial,
            ipv6=ipv6,
        )
        for number, piece in enumerate(pieces)
    ]


def written(frames: list[bytes], *, partial: bool = True) -> tuple[list[bytes], int]:
    """What arrives, super-packets cut; and the number of writes."""
    view, spans = received(frames)
    out: list[bytes] = []
    writes = 0
    for span in spans:
        for run, parts in coalesce_block(view, span) if span[2] > 1 else [([span], None)]:
            alone = [bytes(view[start:stop]) for start, stop in each(run)]
            out += alone if parts is None else cut(b"".join(parts), partial=partial)
            writes += len(alone) if parts is None else 1
    return out, writes


def same(frame: bytes) -> tuple[bool, bytes]:
    """All of a frame but its ID, which nobody needs where DF is set; and whether its checksum is right."""
    if len(frame) < 34 or frame[14] >> 4 == 6 or not frame[20] & 0x40:
        return True, frame
    return fold(frame[14:34]) == 0xFFFF, frame[:18] + frame[20:24] + frame[26:]


class Crowd(NamedTuple):
    """Segments of a size, of some flows in turn."""

    size: int
    ports: list[int]
    begin: int
    psh: list[bool]
    odd: list[int]  # which of them has something else: another ACK, window or option, a gap before it, FIN
    options: bytes
    fragment: int
    segments: int
    ipv6: bool = False

    def frames(self, *, partial: bool) -> list[bytes]:
        sequences = dict.fromkeys(self.ports, self.begin)
        out = []
        for number in range(self.segments):
            port = self.ports[number % len(self.ports)]
            odd = self.odd[number % len(self.odd)]
            sequences[port] += 1 if odd == 4 else 0
            flags = ACK | (PSH if self.psh[number % len(self.psh)] else 0) | (FIN if odd == 5 else 0)
            options = self.options[:-1] + b"\1" if odd == 3 and self.options else self.options
            out.append(
                tcp(
                    bytes([number % 251]) * self.size,
                    sequences[port],
                    port=port,
                    ack=2 if odd == 1 else 1,
                    window=501 if odd == 2 else 500,
                    flags=flags | (CWR if odd == 6 else 0),
                    options=options,
                    ident=number * 7 & 0xFFFF,
                    fragment=self.fragment,
                    partial=partial,
                    ipv6=self.ipv6,
                )
            )
            sequences[port] += self.size
        return out


crowds = st.builds(
    Crowd,
    st.sampled_from([1, 2, 10, 536, 1448, 1460]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from([0, 1000, 0xFFFFFFFF - 5000, 0xFFFFFFF0]),
    st.lists(st.sampled_from([False, False, False, True]), min_size=1, max_size=9),
    st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]), min_size=1, max_size=11),
    st.sampled_from([b"", TIMES]),
    st.sampled_from([0x4000, 0x4000, 0x4000, 0]),
    st.integers(1, 120),
    st.booleans(),
)
damages = st.lists(st.tuples(st.integers(0, 10_000), st.integers(2, 86), st.integers(1, 255)), max_size=2)
SMOOTH: Final = Crowd(1448, [1], 0, [False], [0], TIMES, 0x4000, 120)


@settings(deadline=None)
@example([SMOOTH], [], True)
@example([SMOOTH], [(60, 18, 1)], True)
@example([SMOOTH], [(60, 38, 1)], False)
@example([SMOOTH._replace(ipv6=True)], [], True)
@example([SMOOTH._replace(ipv6=True)], [(60, 19, 1)], True)
@example([SMOOTH._replace(ipv6=True)], [(60, 58, 1)], False)
@given(st.lists(crowds, min_size=1, max_size=3), damages, st.booleans())
def test_cut_again_they_are_what_they_were(
    parts: list[Crowd], damaged: list[tuple[int, int, int]], partial: bool
) -> None:
    frames = [frame for part in parts for frame in part.frames(partial=partial)]
    frames = frames[: BUFFER_BYTES // max(map(len, frames))]
    for number, at, flip in damaged:
        victim = bytearray(frames[number % len(frames)])
        if at < len(victim):
            victim[at] ^= flip
        frames[number % len(frames)] = bytes(victim)
    whole = {bytes(it) for it in frames}
    out, _ = written(frames, partial=partial)
    if not damaged or partial:
        assert Counter(map(same, out)) == Counter(map(same, frames))
    else:  # a checksum that was said to be valid is calculated anew, right or not; nothing else changes
        changed = [it for it in out if it not in whole]
        assert Counter(map(without_check, out)) == Counter(map(without_check, frames))
        assert all(it[14] >> 4 == 6 or fold(it[14:34]) == 0xFFFF for it in changed)
    if not damaged:
        for port in range(1, 5):
            for version in (4, 6):
                mine, theirs = (
                    [same(it) for it in those if port_of(it) == port and it[14] >> 4 == version]
                    for those in (frames, out)
                )
                assert mine == theirs


def without_check(frame: bytes) -> tuple[bool, bytes]:
    if frame[14] >> 4 == 6:
        return True, frame[:70] + frame[72:]
    right, rest = same(frame)
    return right, rest[:46] + rest[48:]


def stream(count: int, *, psh: int = 0, size: int = 1000, **fields: Any) -> list[bytes]:
    """``psh``: every so many have one that has it."""
    return [
        tcp(b"x" * size, number * size, flags=ACK | (PSH if psh and number % psh == psh - 1 else 0), **fields)
        for number in range(count)
    ]


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("partial", [True, False])
def test_what_is_merged(partial: bool, ipv6: bool) -> None:
    """The first of a block is one by itself: no two of its size have come yet."""
    assert written(stream(1 + 128, partial=partial, ipv6=ipv6), partial=partial)[1] == 1 + 2
    assert written(stream(1 + 90, partial=partial, ipv6=ipv6, size=1440), partial=partial)[1] == 1 + 2  # 45 fit
    assert written(stream(1 + 1000, partial=partial, ipv6=ipv6, size=8), partial=partial)[1] == 1 + 16
    assert written(stream(1 + 100, psh=10, partial=partial, ipv6=ipv6), partial=partial)[1] == 1 + 11
    flows = [
        it for pair in zip(stream(41, port=1, ipv6=ipv6), stream(41, port=2, ipv6=ipv6), strict=True) for it in pair
    ]
    assert written(flows)[1] == 1 + 2


@pytest.mark.parametrize(
    "frames",
    [
        stream(40, size=0),
        stream(40, size=6),
        stream(40, fragment=0),
        stream(40, fragment=0x6000),
        stream(40, psh=2),
        [tcp(b"x" * 100, number * 101) for number in range(40)],
        [tcp(b"x" * 100, number * 100, ack=number) for number in range(40)],
        [tcp(b"x" * 100, number * 100, flags=ACK | FIN) for number in range(40)],
        [tcp(b"x" * 101, number * 101, options=b"") for number in range(40)],
        [it[:14] + b"\x46" + it[15:] for it in stream(40)],
        [it[:20] + b"\x3c" + it[21:] for it in stream(40, ipv6=True)],
        [it[:18] + b"\0\x09" + it[20:] for it in stream(40, ipv6=True)],
        [it[:70] + b"\0\0" + it[72:] for it in stream(40, ipv6=True)],
        [it[:2] + b"\0" + it[3:] for it in stream(40)],
        [it[:50] + b"\0\0" + it[52:] for it in stream(40)],
    ],
    ids=[
        "acks",
        "tiny",
        "no DF",
        "fragments",
        "psh",
        "gaps",
        "acks differ",
        "fin",
        "odd",
        "options of IP",
        "extension of IPv6",
        "length of IPv6",
        "wrong, of IPv6",
        "unknown",
        "wrong",
    ],
)
def test_what_is_not(frames: list[bytes]) -> None:
    assert written(frames) == (frames, 40)
