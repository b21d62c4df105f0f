"""wire.vnet: what a deployed peer's kernel takes, and that asking never raises."""

from __future__ import annotations

from struct import Struct
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.wire.frames import HEADER_BYTES, MIN_PACKET_BYTES
from tapotun_trio.wire.vnet import (
    DATA_VALID,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    VNET_BYTES,
    validate_vnet_header,
)

from ..packets import frame, ipv4, ipv6
from ..tables import table

_HEADER: Final = Struct("<BBHHHHH")
_TCP: Final = 6
_UDP: Final = 17


def vnet(
    flags: int = 0,
    gso_type: int = GSO_NONE,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
) -> bytes:
    return _HEADER.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, 0)


def packet(size: int, protocol: int = _TCP, ip_header: int = 20) -> bytes:
    """An IPv4 packet of so many bytes; its header is as long as it says in its first byte."""
    whole = ipv4("10.10.0.2", "10.10.0.3", bytes(size - 20), protocol)
    return bytes([0x40 | ip_header // 4]) + whole[1:]


SUPER: Final = packet(9000)
SMALL: Final = packet(100)


def accepts(header: bytes, whole: bytes) -> bool:
    return validate_vnet_header(memoryview(frame(whole, header)))


def test_the_layout_is_the_kernels() -> None:
    assert _HEADER.size == VNET_BYTES


# (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset): what a kernel gives for its own packets.
@table(
    "header whole",
    ("a plain packet", vnet(), SMALL),
    ("the smallest packet", vnet(), packet(20, 253)),
    ("a checksum that was verified", vnet(DATA_VALID), SMALL),
    ("partial TCP checksum", vnet(NEEDS_CSUM, csum_start=20, csum_offset=16), SMALL),
    ("partial UDP checksum", vnet(NEEDS_CSUM, csum_start=20, csum_offset=6), packet(28, _UDP)),
    ("hdr_len as long as the packet", vnet(hdr_len=100), SMALL),
    ("TCP super-packet", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 20, 16), SUPER),
    ("with ECN", vnet(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 40, 1448, 20, 16), SUPER),
    ("with TCP options", vnet(NEEDS_CSUM, GSO_TCPV4, 52, 1448, 20, 16), SUPER),
    ("with IP options", vnet(NEEDS_CSUM, GSO_TCPV4, 64, 1448, 24, 16), packet(9000, ip_header=24)),
    ("of 65535 bytes", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 20, 16), packet(65535)),
    ("smaller than its gso_size", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 20, 16), SMALL),
    ("no payload at all", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 20, 16), packet(40)),
)
def test_accepted(header: bytes, whole: bytes) -> None:
    assert accepts(header, whole)


@table(
    "header whole",
    ("a flag that virtio does not have", vnet(4), SMALL),
    ("hdr_len beyond the packet", vnet(hdr_len=101), SMALL),
    ("checksum field at the end", vnet(NEEDS_CSUM, csum_start=83, csum_offset=16), SMALL),
    ("checksum field far outside", vnet(NEEDS_CSUM, csum_start=65535, csum_offset=65535), SMALL),
    ("ECN alone", vnet(NEEDS_CSUM, GSO_ECN, 40, 1448, 20, 16), SUPER),
    ("gso_size 0", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 0, 20, 16), SUPER),
    ("a super-packet with a complete checksum", vnet(0, GSO_TCPV4, 40, 1448, 20, 16), SUPER),
    ("TCP over IPv6 within IPv4", vnet(NEEDS_CSUM, GSO_TCPV6, 40, 1448, 20, 16), SUPER),
    ("UFO", vnet(NEEDS_CSUM, 3, 28, 1448, 20, 6), packet(9000, _UDP)),
    ("USO, which base peers cannot", vnet(NEEDS_CSUM, GSO_UDP_L4, 28, 1448, 20, 6), packet(9000, _UDP)),
    ("an unknown type", vnet(NEEDS_CSUM, 2, 40, 1448, 20, 16), SUPER),
    ("UDP in a TCP super-packet", vnet(NEEDS_CSUM, GSO_TCPV4, 28, 1448, 20, 16), packet(9000, _UDP)),
    ("csum_start within the IP header", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 16, 16), SUPER),
    ("csum_start behind the IP header", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 24, 16), SUPER),
    ("csum_offset of UDP", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 20, 6), SUPER),
    ("an IP header of 16 bytes", vnet(NEEDS_CSUM, GSO_TCPV4, 36, 1448, 16, 16), packet(9000, ip_header=16)),
    ("shorter than a TCP header", vnet(NEEDS_CSUM, GSO_TCPV4, 39, 1448, 20, 16), packet(39)),
)
def test_refused(header: bytes, whole: bytes) -> None:
    assert not accepts(header, whole)


def six(size: int, next_header: int = _TCP, extensions: bytes = b"") -> bytes:
    """An IPv6 packet of so many bytes. ``extensions``: its extension headers, of which ``next_header`` is the first."""
    return ipv6("2001:db8::2", "2001:db8::3", extensions + bytes(size - 40 - len(extensions)), next_header)


def extension(next_header: int, units: int = 0) -> bytes:
    """An extension header, eight bytes and ``units`` times as many."""
    return bytes([next_header, units]) + bytes(6 + 8 * units)


SUPER6: Final = six(9000)
SMALL6: Final = six(100)
HOP, ROUTING, FRAGMENT, OPTIONS = 0, 43, 44, 60
TSO6: Final = vnet(NEEDS_CSUM, GSO_TCPV6, 60, 1428, 40, 16)


@table(
    "header whole",
    ("a plain packet", vnet(), SMALL6),
    ("the smallest packet", vnet(), six(40, 59)),
    ("a checksum that was verified", vnet(DATA_VALID), SMALL6),
    ("partial TCP checksum", vnet(NEEDS_CSUM, csum_start=40, csum_offset=16), SMALL6),
    ("partial UDP checksum", vnet(NEEDS_CSUM, csum_start=40, csum_offset=6), six(48, _UDP)),
    ("partial checksum behind extension headers", vnet(NEEDS_CSUM, csum_start=48, csum_offset=6), six(60, OPTIONS)),
    ("TCP super-packet", TSO6, SUPER6),
    ("with ECN", vnet(NEEDS_CSUM, GSO_TCPV6 | GSO_ECN, 60, 1428, 40, 16), SUPER6),
    ("of 65535 bytes", TSO6, six(65535)),
    ("no payload at all", TSO6, six(60)),
    (
        "behind hop-by-hop options",
        vnet(NEEDS_CSUM, GSO_TCPV6, 68, 1428, 48, 16),
        six(9000, HOP, extension(_TCP)),
    ),
    (
        "behind all extension headers that there may be",
        vnet(NEEDS_CSUM, GSO_TCPV6, 100, 1428, 88, 16),
        six(9000, HOP, extension(ROUTING) + extension(OPTIONS, 2) + extension(OPTIONS) + extension(_TCP)),
    ),
    ("with every bit of the traffic class set", TSO6, b"\x6f\xff" + SUPER6[2:]),
)
def test_accepted_of_ipv6(header: bytes, whole: bytes) -> None:
    assert accepts(header, whole)


@table(
    "header whole",
    ("a flag that virtio does not have", vnet(4), SMALL6),
    ("hdr_len beyond the packet", vnet(hdr_len=101), SMALL6),
    ("csum_start within the IPv6 header", vnet(NEEDS_CSUM, csum_start=20, csum_offset=16), SMALL6),
    ("the same, where IPv4 would begin there", vnet(NEEDS_CSUM, csum_start=20, csum_offset=16), b"\x65" + SMALL6[1:]),
    ("checksum field at the end", vnet(NEEDS_CSUM, csum_start=83, csum_offset=16), SMALL6),
    ("TCP over IPv4 within IPv6", vnet(NEEDS_CSUM, GSO_TCPV4, 60, 1428, 40, 16), SUPER6),
    ("USO, which base peers cannot", vnet(NEEDS_CSUM, GSO_UDP_L4, 48, 1428, 40, 6), six(9000, _UDP)),
    ("UDP in a TCP super-packet", TSO6, six(9000, _UDP)),
    ("a fragment in a TCP super-packet", TSO6, six(9000, FRAGMENT, extension(_TCP))),
    (
        "TCP of a fragment in a super-packet",
        vnet(NEEDS_CSUM, GSO_TCPV6, 68, 1428, 48, 16),
        six(9000, FRAGMENT, extension(_TCP)),
    ),
    ("csum_start before TCP", TSO6, six(9000, HOP, extension(_TCP))),
    (
        "csum_start within an extension header",
        vnet(NEEDS_CSUM, GSO_TCPV6, 68, 1428, 48, 16),
        six(9000, HOP, extension(_TCP, 1)),
    ),
    ("csum_start behind TCP's beginning", vnet(NEEDS_CSUM, GSO_TCPV6, 64, 1428, 44, 16), SUPER6),
    ("extension headers without an end", vnet(NEEDS_CSUM, GSO_TCPV6, 0, 1428, 8900, 16), six(9000, HOP)),
    (
        "an extension header beyond the packet",
        vnet(NEEDS_CSUM, GSO_TCPV6, 0, 8, 60, 16),
        six(80, HOP, extension(_TCP, 255)[:30]),
    ),
    ("csum_offset of UDP", vnet(NEEDS_CSUM, GSO_TCPV6, 60, 1428, 40, 6), SUPER6),
    ("a complete checksum", vnet(0, GSO_TCPV6, 60, 1428, 40, 16), SUPER6),
    ("gso_size 0", vnet(NEEDS_CSUM, GSO_TCPV6, 60, 0, 40, 16), SUPER6),
    ("gso_size 0xffff", vnet(NEEDS_CSUM, GSO_TCPV6, 60, 0xFFFF, 40, 16), SUPER6),
    ("more segments than any kernel makes", vnet(NEEDS_CSUM, GSO_TCPV6, 60, 8, 40, 16), six(65535)),
    ("shorter than a TCP header", TSO6, six(59)),
)
def test_refused_of_ipv6(header: bytes, whole: bytes) -> None:
    assert not accepts(header, whole)


# Found by writing random headers to a TUN of Linux 6.18: it says EINVAL to each, and a deployed peer exits.
@table(
    "header whole",
    # GSO_BY_FRAGS, which virtio_net_hdr_to_skb keeps for the kernel's own use.
    ("gso_size 0xffff", vnet(NEEDS_CSUM, GSO_TCPV4, 40, 0xFFFF, 20, 16), SUPER),
    # nh_min_len: the transport header cannot begin within the network header.
    ("csum_start 0", vnet(NEEDS_CSUM, csum_start=0, csum_offset=0), SMALL),
    ("csum_start 19", vnet(NEEDS_CSUM, csum_start=19, csum_offset=16), SMALL),
    # skb_partial_csum_set: with the headroom before it, it must fit into 16 bits.
    ("csum_start near 0xffff", vnet(NEEDS_CSUM, csum_start=65500), packet(65535, 253)),
)
def test_refused_by_the_kernel_for_reasons_of_its_own(header: bytes, whole: bytes) -> None:
    assert not accepts(header, whole)


headers = st.builds(
    vnet,
    st.sampled_from([0, 1, 2, 3, 4, 255]),
    st.sampled_from([0, 1, 3, 4, 5, 0x80, 0x81, 0xFF]),
    *[st.sampled_from([0, 1, 16, 20, 24, 40, 60, 0xFFFE, 0xFFFF]) for _ in range(4)],
)


@settings(max_examples=150, deadline=None)
@given(
    headers | st.binary(min_size=12, max_size=12),
    st.binary(min_size=MIN_PACKET_BYTES, max_size=200)
    | st.builds(lambda rest, nh: six(200, nh, rest), st.binary(max_size=100), st.sampled_from([0, 6, 17, 43, 44, 60])),
)
def test_any_frame_has_an_answer_and_an_accepted_one_keeps_to_its_packet(header: bytes, whole: bytes) -> None:
    if not accepts(header, whole):
        return
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, _ = _HEADER.unpack(header)
    assert hdr_len <= len(whole)
    if flags & NEEDS_CSUM:
        assert csum_start + csum_offset + 2 <= len(whole)
    if gso_type:
        assert gso_type & ~GSO_ECN == (GSO_TCPV6 if whole[0] >> 4 == 6 else GSO_TCPV4)
        assert gso_size
        assert whole[0] >> 4 == 6 or whole[9] == _TCP


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=HEADER_BYTES + MIN_PACKET_BYTES, max_size=100))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    assert validate_vnet_header(memoryview(data)) in (True, False)
