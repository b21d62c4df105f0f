"""wire.proxyprotocol: version 2 of the PROXY protocol, under every split; anything else is a PeerError."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.proxyprotocol import HEADER_BYTES, MAX_REST_BYTES, SIGNATURE, ProxyHeaderParser, Source

from ..chunkings import cut, cuts

# Written by hand from the specification, not by a function of ours.
INET: Final = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c cb007107 7f000001 1267 1f90")
INET6: Final = (
    bytes.fromhex("0d0a0d0a000d0a515549540a 21 21 0024")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + bytes.fromhex("1267 1f90")
)
LOCAL: Final = bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")


def header(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    size = len(rest) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + rest


def read(pieces: list[bytes]) -> tuple[ProxyHeaderParser, bytes]:
    """What came of pieces, given as a socket would: never more than is asked for. And what was left behind it."""
    parser = ProxyHeaderParser()
    rest = b""
    for piece in pieces:
        rest += piece
        while parser.needed and rest:
            taken, rest = rest[: parser.needed], rest[parser.needed :]
            parser.feed(taken)
    return parser, rest


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (INET, Source(IPv4Address("203.0.113.7"), 4711)),
        (INET6, Source(IPv6Address("2001:db8::7"), 4711)),
        (LOCAL, None),
        (header(0x20, 0x11, INET[16:]), None),  # what stands there is no source
        (header(0x20, 0xFF, b"x" * 7), None),  # the family of LOCAL is ignored
        (header(0x21, 0x00, b""), None),
        (header(0x21, 0x00, b"\x04\0\1x"), None),
        (header(0x21, 0x31, b"/run/x".ljust(108, b"\0") * 2), None),
        (header(0x21, 0x11, INET[16:] + b"\x05\0\3abc" * 100), Source(IPv4Address("203.0.113.7"), 4711)),
        (header(0x21, 0x12, INET[16:]), Source(IPv4Address("203.0.113.7"), 4711)),
        (
            header(0x21, 0x21, bytes(10) + b"\xff\xff\xcb\0\x71\x07" + bytes(16) + b"\x12\x67\0\1"),
            Source(IPv4Address("203.0.113.7"), 4711),
        ),
        (header(0x21, 0x00, bytes(MAX_REST_BYTES)), None),
    ],
)
@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\n\r\n", INET])
def test_headers(data: bytes, source: Source | None, behind: bytes) -> None:
    whole = data + behind
    for pieces in ([whole], [whole[at : at + 1] for at in range(len(whole))]):
        parser, rest = read(pieces)
        assert parser.needed == 0
        assert parser.source == source
        assert rest == behind


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"G", "no PROXY protocol header"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\r\n", "no PROXY protocol header"),
        (b"\r\n\r\n\0\r\nQUIX", "no PROXY protocol header"),
        (b"\r\n\r\n\r\n", "no PROXY protocol header"),
        (header(0x11, 0x11, INET[16:]), "version and command 0x11"),
        (header(0x22, 0x11, INET[16:]), "version and command 0x22"),
        (header(0x21, 0x13, INET[16:]), "family and transport 0x13"),
        (header(0x21, 0x10, INET[16:]), "family and transport 0x10"),
        (header(0x21, 0x41, INET[16:]), "family and transport 0x41"),
        (header(0x21, 0x11, b"", 11), "cannot hold its addresses"),
        (header(0x21, 0x21, b"", 35), "cannot hold its addresses"),
        (header(0x21, 0x31, b"", 215), "cannot hold its addresses"),
        (header(0x21, 0x11, b"", MAX_REST_BYTES + 1), "the limit is"),
        (header(0x20, 0x00, b"", 65535), "the limit is"),
    ],
)
def test_no_headers(data: bytes, words: str) -> None:
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        with pytest.raises(PeerError, match=words) as caught:
            read(pieces)
        assert caught.value.reason == "bad-proxy-header"


NEARLY: Final = st.builds(
    header,
    st.sampled_from([0x20, 0x21, 0x22, 0x11]),
    st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x01, 0xFF]),
    st.binary(max_size=300),
    st.none() | st.integers(0, 400) | st.just(65535),
)


@given(st.binary(max_size=40) | NEARLY, cuts)
@example(INET, [3])
def test_every_split_gives_the_same_and_only_peer_errors(data: bytes, places: list[int]) -> None:
    results: list[tuple[str, Source | None, bytes]] = []
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))], cut(data, places)):
        try:
            parser, rest = read(pieces)
        except PeerError as exc:
            results.append((str(exc), None, b""))
        else:
            assert parser.needed >= 0
            results.append((str(parser.needed), parser.source, rest))
    assert all(result == results[0] for result in results)
    assert results[0][0].isprintable()
    assert len(data) >= HEADER_BYTES or results[0][1] is None


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=64), cuts)
def test_what_was_written_is_read(
    address: IPv4Address | IPv6Address, port: int, behind: bytes, places: list[int]
) -> None:
    size = len(address.packed)
    rest = address.packed + bytes(size) + port.to_bytes(2, "big") + bytes(2)
    data = header(0x21, 0x11 if size == 4 else 0x21, rest)
    parser, left = read(cut(data + behind, places))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert parser.source == Source(mapped or address, port)
    assert left == behind
