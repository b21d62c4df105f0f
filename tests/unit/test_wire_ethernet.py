"""wire: Ethernet frames in a stream, and what a vnet header may say of one."""

from __future__ import annotations

import random
import struct
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.wire import control
from tapotun_trio.wire.body import CHUNK_END, LAST_CHUNK, ChunkedBody, CloseBody, LengthBody, chunk_head
from tapotun_trio.wire.ethernet import IP_AT, TAGGED_IP_AT, ip_header_at
from tapotun_trio.wire.frames import (
    BASE_PING,
    BUFFER_BYTES,
    HEADER_BYTES,
    MACS,
    MAX_PACKET_BYTES,
    MIN_ETHERNET_BYTES,
    MIN_PACKET_BYTES,
    FrameRange,
    FrameReader,
    each,
)
from tapotun_trio.wire.uniform import MIN_BLOCK_FRAMES, count_uniform_ethernet
from tapotun_trio.wire.vnet import (
    DATA_VALID,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    MAX_SEGMENTS,
    NEEDS_CSUM,
    validate_ethernet_vnet,
    validate_vnet_header,
)

from ..chunkings import cut, cuts, every_chunking
from ..packets import frame, ipv4, ipv6
from ..tables import table
from ..tap_frames import ARP, IPV4, IPV6, MAC_A, MAC_B, SERVICE_VLAN, VLAN, behind_ethernet, ethernet, tag
from .test_wire_frames import received as received_ip
from .test_wire_vnet import extension, packet, six, vnet

A4, B4, A6, B6 = "10.9.0.1", "10.9.0.2", "2001:db8::1", "2001:db8::2"
TCP, UDP, ICMP6 = 6, 17, 58


def received(frames: list[bytes]) -> tuple[memoryview, list[FrameRange]]:
    """As the reader of a stream has them, blocks and all."""
    data = b"".join(frames)
    reader = FrameReader(LengthBody(len(data)), ethernet=True)
    spans = reader.prime(data)
    while reader.pending:
        spans += reader.feed(0)
    return reader.view, spans


def chunked(payload: bytes, places: list[int]) -> bytes:
    return b"".join(chunk_head(len(part)) + part + CHUNK_END for part in cut(payload, places)) + LAST_CHUNK


# ------------------------------------------------------------------ frames in a stream

anything = st.builds(frame, st.binary(min_size=MIN_ETHERNET_BYTES, max_size=60), st.binary(min_size=12, max_size=12))
tags = st.sampled_from([b"", b"", tag(), tag(7, SERVICE_VLAN) + tag(), tag() * 3])
likely = st.builds(
    lambda payload, kind, tags, count: [ethernet(payload, kind, tags=tags)] * count,
    st.sampled_from([ipv4(A4, B4, bytes(9), UDP), ipv6(A6, B6, bytes(20), TCP), b"", bytes(28), b"\x45", b"\x60" * 39]),
    st.sampled_from([IPV4, IPV6, ARP, VLAN, 39]),
    tags,
    st.sampled_from([1, 1, 7, 8, 9, 20]),
)
some = st.lists(anything.map(lambda one: [one]) | likely | st.just([BASE_PING]), max_size=6).map(
    lambda lists: [one for several in lists for one in several]
)


@settings(max_examples=40, deadline=None)
@given(some, cuts, cuts)
@example([ethernet(b"")] * 3, [], [])
def test_the_same_frames_under_every_chunking_and_every_split(
    stream: list[bytes], chunk_places: list[int], places: list[int]
) -> None:
    payload = b"".join(stream)
    for pieces in every_chunking(chunked(payload, chunk_places), places):
        reader, frames = FrameReader(ChunkedBody(), ethernet=True), []
        for piece in pieces:
            reader.space()[: len(piece)] = piece
            spans = reader.feed(len(piece))
            while reader.pending:
                spans += reader.feed(0)
            frames += [bytes(reader.view[start:stop]) for start, stop in each(spans)]
        assert frames == [one for one in stream if one != BASE_PING]
        assert reader.ended


@pytest.mark.parametrize("length", range(1, MIN_ETHERNET_BYTES))
@pytest.mark.parametrize("extended", [True, False])
def test_every_runt_is_malformed(length: int, extended: bool) -> None:
    good = ethernet(bytes(50))
    for before in (b"", BASE_PING, good):
        reader = FrameReader(CloseBody(), control=extended, ethernet=True)
        data = before + length.to_bytes(2, "little") + bytes(100)
        if length == 1 and extended:
            data = before + control.ping(7)  # the one short frame that there is
            assert len(reader.prime(data)) == (before is good)
            assert len(reader.controls) == 1
            continue
        if before is good:
            assert reader.prime(data) == [(0, len(good), 1)]
            data = b""
        with pytest.raises(PeerError, match=f"an Ethernet frame of {length} bytes") as caught:
            reader.prime(data) if data else reader.feed(0)
        assert caught.value.reason == "bad-frame"


@pytest.mark.parametrize("length", [MIN_ETHERNET_BYTES, MIN_PACKET_BYTES - 1, MIN_PACKET_BYTES, MAX_PACKET_BYTES])
def test_lengths_at_the_limits(length: int) -> None:
    whole = frame(random.Random(length).randbytes(length))
    view, spans = received([whole])
    assert [bytes(view[start:stop]) for start, stop, _ in spans] == [whole]
    if length < MIN_PACKET_BYTES:
        with pytest.raises(PeerError):
            received_ip(CloseBody(), [whole])


def test_the_key_of_a_flow_is_both_addresses() -> None:
    assert MACS.unpack_from(ethernet(b"", to=MAC_A, source=MAC_B)) == (MAC_A + MAC_B,)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | some.map(b"".join), cuts, st.booleans())
def test_any_bytes_raise_peer_error_at_most(data: bytes, places: list[int], extended: bool) -> None:
    reader = FrameReader(CloseBody(), control=extended, ethernet=True)
    try:
        for piece in cut(data, places):
            reader.space()[: len(piece)] = piece
            spans = reader.feed(len(piece))
            while reader.pending:
                spans += reader.feed(0)
            for start, stop in each(spans):
                assert 0 <= start < stop <= BUFFER_BYTES
                length = int.from_bytes(reader.view[start : start + 2], "little")
                assert stop - start == HEADER_BYTES + length >= HEADER_BYTES + MIN_ETHERNET_BYTES
                ip_header_at(reader.view, start, stop - start)
                assert validate_ethernet_vnet(reader.view[start:stop]) in (True, False)
        reader.eof()
    except PeerError:
        pass


# ------------------------------------------------------------------ blocks


@table(
    "whole at",
    ("IPv4", ethernet(ipv4(A4, B4, bytes(8), UDP)), IP_AT),
    ("IPv6", ethernet(ipv6(A6, B6, bytes(20), TCP), IPV6), IP_AT),
    ("IPv4 behind a tag", ethernet(ipv4(A4, B4, bytes(20), TCP), tags=tag()), TAGGED_IP_AT),
    (
        "IPv6 behind a provider's tag",
        ethernet(ipv6(A6, B6, bytes(8), UDP), IPV6, tags=tag(1, SERVICE_VLAN)),
        TAGGED_IP_AT,
    ),
    ("two tags", ethernet(ipv4(A4, B4, bytes(20), TCP), tags=tag() * 2), 0),
    ("ICMPv6", ethernet(ipv6(A6, B6, bytes(32), ICMP6), IPV6), 0),
    ("behind extension headers", ethernet(ipv6(A6, B6, extension(UDP) + bytes(8), 0), IPV6), 0),
    ("ICMP", ethernet(ipv4(A4, B4, bytes(8), 1)), 0),
    ("ARP", ethernet(bytes(28), ARP), 0),
    ("ARP that looks like IPv4", ethernet(ipv4(A4, B4, bytes(8), UDP), ARP), 0),
    ("IPv6 called IPv4", ethernet(ipv6(A6, B6, bytes(8), UDP), IPV4), 0),
    ("IPv4 called IPv6", ethernet(ipv4(A4, B4, bytes(40), UDP), IPV6), 0),
    ("a length instead of a type", ethernet(ipv4(A4, B4, bytes(8), UDP), 28), 0),
    ("IPv4 cut short", ethernet(ipv4(A4, B4)[:19]), 0),
    ("IPv6 cut short", ethernet(ipv6(A6, B6)[:39], IPV6), 0),
    ("cut short behind a tag", ethernet(ipv4(A4, B4)[:19], tags=tag()), 0),
    ("nothing behind the header", ethernet(b""), 0),
    ("nothing behind a tag", ethernet(b"", tags=tag()), 0),
    ("half a tag", ethernet(b"\0", VLAN), 0),
)
def test_where_ip_begins(whole: bytes, at: int) -> None:
    for behind in (b"", b"\x45" * 60, b"\x60" * 60):  # what is behind a frame is no part of it
        view = memoryview(b"\xff" * 3 + whole + behind)
        assert ip_header_at(view, 3, len(whole)) == at
    made = [whole] * 20
    _, spans = received(made)
    assert [count for _, _, count in spans] == ([1, 19] if at else [1] * 20)


def _udp(number: int, size: int, *, ipv6_: bool, tags: bytes) -> bytes:
    """Of one flow; the ID of IPv4 and the payloads differ."""
    body = bytes([number & 0xFF]) * (8 + size)
    if ipv6_:
        return ethernet(ipv6(A6, B6, body, UDP), IPV6, tags=tags)
    packet = bytearray(ipv4(A4, B4, body, UDP))
    packet[4:6] = number.to_bytes(2, "big")
    return ethernet(bytes(packet), tags=tags)


@pytest.mark.parametrize("ipv6_", [False, True])
@pytest.mark.parametrize("tags", [b"", tag(5), tag(5, SERVICE_VLAN)], ids=["plain", "tagged", "provider"])
@pytest.mark.parametrize("size", [0, 1, 24])
@pytest.mark.parametrize("count", [8, 9, 65])
def test_what_makes_a_frame_another_blocks(ipv6_: bool, tags: bytes, size: int, count: int) -> None:
    """Every byte of the vnet and Ethernet headers; of IPv6's; of IPv4's all but lengths, ID, fragment and checksum."""
    frames = [_udp(n, size, ipv6_=ipv6_, tags=tags) for n in range(count)]
    view, each_bytes = memoryview(bytearray(b"".join(frames))), len(frames[0])
    assert count_uniform_ethernet(view, 0, each_bytes, count) == count
    ip_at = IP_AT + len(tags)
    told = set(range(ip_at)) | {ip_at + at for at in (range(40) if ipv6_ else (0, 1, 8, 9, *range(12, 20)))}
    for at in range(each_bytes):
        for number in {1, 7, count - 1}:
            view[number * each_bytes + at] ^= 1
            found = count_uniform_ethernet(view, 0, each_bytes, count)
            assert found <= number if at in told else found == count, (at, number)
            assert found in (0, *(count >> shift for shift in range(8)))
            view[number * each_bytes + at] ^= 1


def test_super_packets_are_no_block() -> None:
    tso = behind_ethernet(frame(packet(900), vnet(NEEDS_CSUM, GSO_TCPV4, 40, 100, 20, 16)))
    assert validate_ethernet_vnet(memoryview(tso))
    assert [count for _, _, count in received([tso] * 20)[1]] == [1] * 20


@settings(max_examples=60, deadline=None)
@given(some)
def test_what_a_block_has_alike(stream: list[bytes]) -> None:
    frames = [one for one in stream if one != BASE_PING]
    view, spans = received(stream)
    assert [bytes(view[start:stop]) for start, stop in each(spans)] == frames
    for start, stop, count in spans:
        size = (stop - start) // count
        if count > 1:
            assert count >= MIN_BLOCK_FRAMES
            ip_at = ip_header_at(view, start, size)
            assert ip_at
            assert len({bytes(view[at : at + ip_at + 2]) for at in range(start, stop, size)}) == 1
            assert len({validate_ethernet_vnet(view[at : at + size]) for at in range(start, stop, size)}) == 1


# ------------------------------------------------------------------ the vnet header


def accepts(header: bytes, payload: bytes, kind: int = IPV4, tags: bytes = b"") -> bool:
    """The answer must not depend on what is behind the frame: a block is asked for as a whole."""
    whole = ethernet(payload, kind, tags=tags, vnet=header)
    answers = {validate_ethernet_vnet(memoryview(whole + behind)) for behind in (b"", b"\x45" * 99, whole * 3)}
    assert len(answers) == 1
    return answers.pop()


SMALL, SUPER, SMALL6, SUPER6 = packet(100), packet(9000), six(100), six(9000)
TSO: Final = vnet(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)
TSO6: Final = vnet(NEEDS_CSUM, GSO_TCPV6, 74, 1428, 54, 16)
TAGGED: Final = vnet(NEEDS_CSUM, GSO_TCPV4, 58, 1448, 38, 16)
TAGGED6: Final = vnet(NEEDS_CSUM, GSO_TCPV6, 78, 1428, 58, 16)
TWICE: Final = vnet(NEEDS_CSUM, GSO_TCPV4, 62, 1448, 42, 16)
QINQ: Final = tag(2, SERVICE_VLAN) + tag(3)


@table(
    "header payload kind tags",
    ("a plain frame", vnet(), SMALL, IPV4, b""),
    ("of IPv6", vnet(), SMALL6, IPV6, b""),
    ("nothing but a header", vnet(), b"", IPV4, b""),
    ("ARP", vnet(), bytes(28), ARP, b""),
    ("a spanning tree", vnet(), bytes(38), 38, b""),
    ("a checksum that was verified", vnet(DATA_VALID), SMALL, IPV4, b""),
    ("hdr_len of the Ethernet header", vnet(hdr_len=14), SMALL, IPV4, b""),
    ("hdr_len of the whole frame", vnet(hdr_len=114), SMALL, IPV4, b""),
    ("partial TCP checksum", vnet(NEEDS_CSUM, csum_start=34, csum_offset=16), SMALL, IPV4, b""),
    ("partial TCP checksum of IPv6", vnet(NEEDS_CSUM, csum_start=54, csum_offset=16), SMALL6, IPV6, b""),
    ("partial UDP checksum", vnet(NEEDS_CSUM, csum_start=34, csum_offset=6), packet(28, UDP), IPV4, b""),
    ("of an inner packet", vnet(NEEDS_CSUM, csum_start=62, csum_offset=6), SMALL, IPV4, b""),
    ("behind a tag", vnet(NEEDS_CSUM, csum_start=38, csum_offset=6), SMALL, IPV4, tag()),
    ("behind two tags", vnet(NEEDS_CSUM, csum_start=62, csum_offset=6), SMALL6, IPV6, QINQ),
    ("of what is not IP", vnet(NEEDS_CSUM, csum_start=42, csum_offset=6), bytes(60), 0x8864, b""),
    ("TCP super-packet", TSO, SUPER, IPV4, b""),
    ("TCP super-packet of IPv6", TSO6, SUPER6, IPV6, b""),
    ("with ECN", vnet(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 54, 1448, 34, 16), SUPER, IPV4, b""),
    ("with IP options", vnet(NEEDS_CSUM, GSO_TCPV4, 78, 1448, 38, 16), packet(9000, ip_header=24), IPV4, b""),
    ("behind one tag", TAGGED, SUPER, IPV4, tag()),
    ("of IPv6 behind one tag", TAGGED6, SUPER6, IPV6, tag(4095, SERVICE_VLAN)),
    ("behind two", TWICE, SUPER, IPV4, QINQ),
    ("of 65535 bytes", TSO, packet(65535 - 14), IPV4, b""),
    (
        "behind extension headers",
        vnet(NEEDS_CSUM, GSO_TCPV6, 86, 1428, 70, 16),
        six(9000, 0, extension(60) + extension(TCP)),
        IPV6,
        b"",
    ),
)
def test_accepted(header: bytes, payload: bytes, kind: int, tags: bytes) -> None:
    assert accepts(header, payload, kind, tags)


@table(
    "header payload kind tags",
    ("a flag that virtio does not have", vnet(4), SMALL, IPV4, b""),
    ("hdr_len beyond the frame", vnet(hdr_len=115), SMALL, IPV4, b""),
    ("hdr_len within the Ethernet header", vnet(hdr_len=13), SMALL, IPV4, b""),
    ("hdr_len 1", vnet(hdr_len=1), SMALL, IPV4, b""),
    ("csum_start 0", vnet(NEEDS_CSUM), SMALL, IPV4, b""),
    ("csum_start in the destination", vnet(NEEDS_CSUM, csum_start=3, csum_offset=3), SMALL, IPV4, b""),
    ("csum_start in the type", vnet(NEEDS_CSUM, csum_start=13, csum_offset=16), SMALL, IPV4, b""),
    ("csum_start at the IP header", vnet(NEEDS_CSUM, csum_start=14, csum_offset=16), SMALL, IPV4, b""),
    ("where it is for TUN", vnet(NEEDS_CSUM, csum_start=20, csum_offset=16), SMALL, IPV4, b""),
    ("csum_start within the IP header", vnet(NEEDS_CSUM, csum_start=33, csum_offset=16), SMALL, IPV4, b""),
    ("within IP options", vnet(NEEDS_CSUM, csum_start=34, csum_offset=16), packet(100, ip_header=24), IPV4, b""),
    ("within the IPv6 header", vnet(NEEDS_CSUM, csum_start=53, csum_offset=6), SMALL6, IPV6, b""),
    ("within the IP header behind a tag", vnet(NEEDS_CSUM, csum_start=37, csum_offset=6), SMALL, IPV4, tag()),
    ("within the second tag", vnet(NEEDS_CSUM, csum_start=20, csum_offset=6), SMALL, IPV4, QINQ),
    ("within IPv6 behind two tags", vnet(NEEDS_CSUM, csum_start=61, csum_offset=6), SMALL6, IPV6, QINQ),
    ("near the header of what is not IP", vnet(NEEDS_CSUM, csum_start=33, csum_offset=6), bytes(60), 0x8864, b""),
    ("an IP header of 16 bytes", vnet(NEEDS_CSUM, csum_start=34, csum_offset=6), packet(100, ip_header=16), IPV4, b""),
    ("checksum field at the end", vnet(NEEDS_CSUM, csum_start=97, csum_offset=16), SMALL, IPV4, b""),
    ("checksum field far outside", vnet(NEEDS_CSUM, csum_start=65535, csum_offset=65535), SMALL, IPV4, b""),
    ("csum_start near 0xffff", vnet(NEEDS_CSUM, csum_start=65500), packet(65520), IPV4, b""),
    ("a partial checksum without a packet", vnet(NEEDS_CSUM, csum_start=34, csum_offset=0), b"", IPV4, b""),
    ("a super-packet of ARP", TSO, SUPER, ARP, b""),
    ("of a length instead of a type", TSO, SUPER, 1500, b""),
    ("TCP over IPv6 within IPv4", vnet(NEEDS_CSUM, GSO_TCPV6, 54, 1448, 34, 16), SUPER, IPV4, b""),
    ("TCP over IPv4 within IPv6", vnet(NEEDS_CSUM, GSO_TCPV4, 74, 1428, 54, 16), SUPER6, IPV6, b""),
    ("IPv6 called IPv4", TSO, b"\x65" + SUPER6[1:6] + bytes([6]) + bytes(2) + bytes([6]) + SUPER6[10:], IPV4, b""),
    ("IPv4 called IPv6", TSO6, b"\x45" + SUPER6[1:], IPV6, b""),
    ("TSO where the tags are not counted", TSO, SUPER, IPV4, tag()),
    ("a tag that is not there", TAGGED, SUPER, IPV4, b""),
    ("behind three tags", vnet(NEEDS_CSUM, GSO_TCPV4, 66, 1448, 46, 16), SUPER, IPV4, QINQ + tag()),
    ("ECN alone", vnet(NEEDS_CSUM, GSO_ECN, 54, 1448, 34, 16), SUPER, IPV4, b""),
    ("USO", vnet(NEEDS_CSUM, GSO_UDP_L4, 42, 1448, 34, 6), packet(9000, UDP), IPV4, b""),
    ("UFO", vnet(NEEDS_CSUM, 3, 42, 1448, 34, 6), packet(9000, UDP), IPV4, b""),
    ("UDP in a TCP super-packet", TSO, packet(9000, UDP), IPV4, b""),
    ("UDP in a TCP super-packet of IPv6", TSO6, six(9000, UDP), IPV6, b""),
    ("a complete checksum", vnet(0, GSO_TCPV4, 54, 1448, 34, 16), SUPER, IPV4, b""),
    ("a verified checksum", vnet(DATA_VALID, GSO_TCPV4, 54, 1448, 34, 16), SUPER, IPV4, b""),
    ("csum_offset of UDP", vnet(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 6), SUPER, IPV4, b""),
    ("csum_start behind the IP header", vnet(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 38, 16), SUPER, IPV4, b""),
    ("gso_size 0", vnet(NEEDS_CSUM, GSO_TCPV4, 54, 0, 34, 16), SUPER, IPV4, b""),
    ("gso_size 0xffff", vnet(NEEDS_CSUM, GSO_TCPV4, 54, 0xFFFF, 34, 16), SUPER, IPV4, b""),
    ("more segments than any kernel makes", vnet(NEEDS_CSUM, GSO_TCPV4, 54, 8, 34, 16), packet(65500), IPV4, b""),
    ("shorter than a TCP header", TSO, packet(39), IPV4, b""),
    ("csum_start before TCP", TSO6, six(9000, 0, extension(TCP)), IPV6, b""),
    ("extension headers without an end", vnet(NEEDS_CSUM, GSO_TCPV6, 0, 1428, 8900, 16), six(9000, 0), IPV6, b""),
)
def test_refused(header: bytes, payload: bytes, kind: int, tags: bytes) -> None:
    assert not accepts(header, payload, kind, tags)


def test_a_frame_that_says_another_length_than_it_has_is_refused() -> None:
    whole = ethernet(SMALL)
    assert not validate_ethernet_vnet(memoryview(whole[:-1]))
    assert not validate_ethernet_vnet(memoryview(b"\x0d\0" + whole[2:]))


numbers = st.sampled_from([0, 1, 13, 14, 16, 20, 33, 34, 38, 40, 42, 54, 58, 62, 0xFFFE, 0xFFFF]) | st.integers(
    0, 0xFFFF
)
headers = (
    st.builds(
        vnet,
        st.sampled_from([0, 1, 1, 1, 2, 3, 4, 255]),
        st.sampled_from([0, 0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0xFF]),
        *[numbers for _ in range(4)],
    )
    | st.binary(min_size=12, max_size=12)
    | st.sampled_from([TSO, TSO6, TAGGED, TAGGED6, TWICE])
)
payloads = (
    st.binary(max_size=120)
    | st.sampled_from([SMALL, SMALL6, SUPER, SUPER6, packet(100, UDP), packet(60, ip_header=24)])
    | st.builds(lambda rest, nh: six(200, nh, rest), st.binary(max_size=100), st.sampled_from([0, 6, 17, 43, 44, 60]))
)
kinds = st.sampled_from([IPV4, IPV4, IPV6, IPV6, ARP, VLAN, SERVICE_VLAN, 60, 0xFFFF])


@settings(max_examples=400, deadline=None)
@given(headers, payloads, kinds, tags)
def test_what_is_accepted_keeps_to_its_frame(header: bytes, payload: bytes, kind: int, tags: bytes) -> None:
    if not accepts(header, payload, kind, tags):
        return
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, _ = struct.unpack("<BBHHHHH", header)
    length = 14 + len(tags) + len(payload)
    assert hdr_len == 0 or 14 <= hdr_len <= length
    if flags & NEEDS_CSUM:
        assert 34 <= csum_start <= csum_start + csum_offset + 2 <= length
    if gso_type:
        assert flags & NEEDS_CSUM
        assert kind == (IPV6 if gso_type & ~GSO_ECN == GSO_TCPV6 else IPV4)
        assert payload[0] >> 4 == (6 if kind == IPV6 else 4)
        assert gso_size * MAX_SEGMENTS >= length
        assert len(tags) <= 8


@settings(max_examples=200, deadline=None)
@given(headers, payloads.filter(lambda it: len(it) >= MIN_PACKET_BYTES and it[0] >> 4 in (4, 6)), tags)
def test_the_same_as_without_ethernet(header: bytes, payload: bytes, tags: bytes) -> None:
    """Behind the Ethernet header, a frame is judged as without one."""
    if len(tags) > 8:
        return
    plain = frame(payload, header)
    hdr_len, flags, csum_start = int.from_bytes(header[2:4], "little"), header[0], int.from_bytes(header[6:8], "little")
    if max(hdr_len, csum_start) + 14 + len(tags) > 0x7FFF or (header[1] and not flags & NEEDS_CSUM):
        return  # not the same question
    assert validate_ethernet_vnet(memoryview(behind_ethernet(plain, tags=tags))) == validate_vnet_header(
        memoryview(plain)
    )


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=HEADER_BYTES + MIN_ETHERNET_BYTES, max_size=100))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    assert validate_ethernet_vnet(memoryview(data)) in (True, False)
