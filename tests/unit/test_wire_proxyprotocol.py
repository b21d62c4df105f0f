"""wire.proxyprotocol: both versions of the PROXY protocol, under every split; anything else is a PeerError."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.proxyprotocol import MAX_REST_BYTES, MIN_LINE_BYTES, SIGNATURE, ProxyHeaderParser, Source

from ..chunkings import cut, cuts

# Written by hand from the specification, not by a function of ours.
INET: Final = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c cb007107 7f000001 1267 1f90")
INET6: Final = (
    bytes.fromhex("0d0a0d0a000d0a515549540a 21 21 0024")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + bytes.fromhex("1267 1f90")
)
TCP4: Final = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\r\n"
TCP6: Final = b"PROXY TCP6 2001:DB8::7 ::1 4711 8080\r\n"
# The longest of each kind, as the specification has them.
LONGEST: Final = [
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
    b"PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(b"f...f", b":".join([b"ffff"] * 6)),
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(b"f...f", b":".join([b"ffff"] * 6)),
]
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
        (TCP4, Source(IPv4Address("203.0.113.7"), 4711)),
        (TCP6, Source(IPv6Address("2001:db8::7"), 4711)),
        (b"PROXY TCP6 ::ffff:203.0.113.7 :: 0 0\r\n", Source(IPv4Address("203.0.113.7"), 0)),
        (b"PROXY TCP6 :: :: 1 1\r\n", Source(IPv6Address("::"), 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN \r\n", None),
        (b"PROXY UNKNOWN TCP4 \xff 1.2.3.4\r\n", None),
        (LONGEST[0], Source(IPv4Address("255.255.255.255"), 65535)),
        (LONGEST[1], Source(IPv6Address(2**128 - 1), 65535)),
        (LONGEST[2], None),
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
        (b"PUT / HTTP/1.1\r\n", "no PROXY protocol header"),
        (b"PROXYTCP4 1.2.3.4", "no PROXY protocol header"),
        (b"proxy TCP4 1.2.3.4 ", "no PROXY protocol header"),
        (b"\x16\x03\x01\x02\0", "TLS came first"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\n", "the line's end"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\rx", "the line's end"),
        (b"PROXY UNKNOWN\r\r\n", "the line's end"),
        (b"PROXY \r\nGET / HTTP/1.1\r\n", "the line's end"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711\r\n", "not two addresses and two ports"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080 1\r\n", "not two addresses and two ports"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080 \r\n", "not two addresses and two ports"),
        (b"PROXY TCP4  203.0.113.7 127.0.0.1 4711 8080\r\n", "not two addresses and two ports"),
        (b"PROXY TCP4 203.0.113.07 127.0.0.1 4711 8080\r\n", "an address that is none of TCP4"),
        (b"PROXY TCP4 203.0.113 127.0.0.1 4711 8080\r\n", "an address that is none of TCP4"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.256 4711 8080\r\n", "an address that is none of TCP4"),
        (b"PROXY TCP4 ::1 ::1 4711 8080\r\n", "an address that is none of TCP4"),
        (b"PROXY TCP6 203.0.113.7 ::1 4711 8080\r\n", "an address that is none of TCP6"),
        (b"PROXY TCP6 fe80::1%lo ::1 4711 8080\r\n", "an address that is none of TCP6"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 04711 8080\r\n", "a port that is none"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 65536 8080\r\n", "a port that is none"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 -1\r\n", "a port that is none"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 \xb2\r\n", "a port that is none"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 \r\n", "a port that is none"),
        (b"PROXY TCP5 203.0.113.7 127.0.0.1 4711 8080\r\n", "neither TCP4 nor TCP6"),
        (b"PROXY tcp4 203.0.113.7 127.0.0.1 4711 8080\r\n", "neither TCP4 nor TCP6"),
        (b"PROXY UDP4 203.0.113.7 127.0.0.1 4711 8080\r\n", "neither TCP4 nor TCP6"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "longer than 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r", "longer than 107 bytes"),
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


_V4: Final = rb"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!\s)|(?=\s))){4}"
_V6: Final = rb"[0-9A-Fa-f:.]{2,39}"  # its grammar is ipaddress's
_PORT: Final = rb"(?:6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[1-5]\d{4}|[1-9]\d{0,3}|0)"
LINE: Final = re.compile(
    rb"(?=.{0,105}\r\n)PROXY (?:TCP4 %b %b (%b) %b|TCP6 %b %b (%b) %b|UNKNOWN(?: [^\r\n]*)?)\r\n"
    % (_V4, _V4, _PORT, _PORT, _V6, _V6, _PORT, _PORT),
    re.DOTALL,
)

NEARLY: Final = st.builds(
    header,
    st.sampled_from([0x20, 0x21, 0x22, 0x11]),
    st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x01, 0xFF]),
    st.binary(max_size=300),
    st.none() | st.integers(0, 400) | st.just(65535),
)


WORDS: Final = st.sampled_from(
    [*b"PROXY TCP4 TCP6 UNKNOWN 203.0.113.7 ::1 1 65535 65536".split(), b"", b" ", b"\r", b"\n", b"\r\n", b"\xff"]
)
LINES: Final = st.builds(
    lambda words, end: b"PROXY " + b" ".join(words) + end, st.lists(WORDS, max_size=8), st.sampled_from([b"\r\n", b""])
)


@given(st.binary(max_size=40) | NEARLY | LINES, cuts)
@example(INET, [3])
@example(TCP4, [14])
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
    assert len(data) >= MIN_LINE_BYTES or results[0][1] is None


@given(st.binary(max_size=120) | LINES)
def test_a_line_is_read_as_the_specification_s_words_say(data: bytes) -> None:
    """A slow reading of the same: one regular expression for the whole line."""
    wanted = LINE.match(data)
    try:
        parser, _ = read([data])
    except PeerError:
        assert wanted is None
        return
    if data.startswith(b"PROXY ") and not parser.needed:
        assert wanted is not None
        assert parser.source is None or str(parser.source.port).encode() == (wanted[1] or wanted[2])


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=64), cuts)
def test_a_line_that_was_written_is_read(
    address: IPv4Address | IPv6Address, port: int, behind: bytes, places: list[int]
) -> None:
    data = f"PROXY TCP{address.version} {address} {address} {port} 443\r\n".encode()
    parser, left = read(cut(data + behind, places))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert parser.source == Source(mapped or address, port)
    assert left == behind


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
