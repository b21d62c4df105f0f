"""A WebSocket's opening handshake under any header fields at all, on both sides: accepted, refused, or a PeerError, and
never what h11 or wsproto make of it."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz.handshake import SEEDS, check

FEW: Final = settings(max_examples=300, deadline=None)

NAMES: Final = (
    b"Upgrade",
    b"Connection",
    b"Sec-WebSocket-Key",
    b"Sec-WebSocket-Version",
    b"Sec-WebSocket-Accept",
    b"Sec-WebSocket-Protocol",
    b"Sec-WebSocket-Extensions",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Host",
    b"X",
)
RIGHT: Final = (
    b"websocket",
    b"Upgrade",
    b"keep-alive, Upgrade",
    b"dGhlIHNhbXBsZSBub25jZQ==",
    b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    b"13",
    b"chunked",
    b"0",
    b"9" * 5000,
    b"",
    b",",
    b"\xff",
    b"\xc3\xa4",
    b"\t",
    b"permessage-deflate; x=\xff",
)
values = st.one_of(
    st.sampled_from(RIGHT), st.lists(st.sampled_from(RIGHT), max_size=3).map(b", ".join), st.binary(max_size=9)
)
fields = st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=9)
REQUEST: Final = b"GET /ip HTTP/1.1\r\nHost: h\r\n"
WHOLE: Final = (
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
)


def lines(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % pair for pair in pairs)


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_what_the_fuzzer_begins_with(seed: bytes) -> None:
    check(seed)


@FEW
@given(fields, st.permutations(WHOLE), st.integers(0, 4))
def test_any_request(more: list[tuple[bytes, bytes]], whole: list[tuple[bytes, bytes]], left_out: int) -> None:
    check(b"\0" + REQUEST + lines(whole[left_out:] + more) + b"\r\n")


@FEW
@given(
    fields,
    st.sampled_from([b"101 ", b"101 Switching Protocols", b"200 OK", b"403 \xff", b"100 ", b"204 "]),
    st.binary(max_size=9),
)
@example([], b"101 ", b"")
def test_any_answer(more: list[tuple[bytes, bytes]], status: bytes, rest: bytes) -> None:
    check(b"\1HTTP/1.1 " + status + b"\r\n" + lines(more) + b"\r\n" + rest)


@FEW
@given(fields, st.integers(0, 250), st.integers(0, 255))
def test_an_answer_with_a_byte_changed(more: list[tuple[bytes, bytes]], at: int, byte: int) -> None:
    good = bytearray(SEEDS[8][1:].replace(b"\r\n\r\n", b"\r\n" + lines(more[:2]) + b"\r\n", 1))
    good[at % len(good)] = byte
    check(b"\1" + good)


@FEW
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(data: bytes, answer: bool) -> None:
    check((b"\1" if answer else b"\0") + data)
