"""wire.body: the same bytes under every split, the same verdicts as h11, and nothing but PeerError."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from mmap import mmap
from typing import Final

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.body import (
    CHUNK_END,
    LAST_CHUNK,
    MAX_LINE_BYTES,
    MAX_TRAILER_BYTES,
    Body,
    ChunkedBody,
    CloseBody,
    LengthBody,
    chunk_head,
)

from ..chunkings import cuts, every_chunking
from ..tables import table


@dataclass(frozen=True)
class Outcome:
    """What a decoder made of a stream. ``leftover``: what came behind the end of an `ended` body."""

    payload: bytes
    ended: bool = False
    refused: bool = False
    leftover: bytes = b""


REFUSED: Final = Outcome(b"", refused=True)  # whatever went before: nobody uses what came of it

Buffer = bytearray | mmap
# What stands around the piece in the buffer: whoever looks beyond it would find a chunk, or an end.
_BEFORE: Final = b"7\r\n"
_BEHIND: Final = b"\r\n0\r\n\r\n"


def as_bytearray(data: bytes) -> Buffer:
    return bytearray(data)


def as_mmap(data: bytes) -> Buffer:
    memory = mmap(-1, len(data))
    memory[:] = data
    return memory


BUFFERS: Final = [as_bytearray, as_mmap]


def take(body: Body, buffer: Buffer, pos: int, end: int) -> tuple[bytes, int]:
    """The body bytes of ``buffer[pos:end]``, and where they stop."""
    payload = b""
    while True:
        start, stop = body.span(buffer, pos, end)
        assert pos <= start <= stop <= end
        if start == stop:
            return payload, stop
        payload += buffer[start:stop]
        pos = stop


def decode(
    body: Body,
    pieces: Iterable[bytes],
    buffer_of: Callable[[bytes], Buffer] = as_bytearray,
    before: bytes = _BEFORE,
) -> Outcome:
    """Run a decoder over pieces as a receive loop would."""
    payload = b""
    remaining = iter(pieces)
    for piece in remaining:
        pos, end = len(before), len(before) + len(piece)
        buffer = buffer_of(before + piece + _BEHIND)
        try:
            more, stop = take(body, buffer, pos, end)
        except PeerError:
            return REFUSED
        payload += more
        if body.ended:
            return Outcome(payload, ended=True, leftover=bytes(buffer[stop:end]) + b"".join(remaining))
        assert stop == end
    return Outcome(payload, ended=body.ended)


def decode_with_h11(stream: bytes) -> Outcome:
    """The oracle: what h11 makes of the same body behind a request head."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + stream)
    payload = b""
    assert isinstance(connection.next_event(), h11.Request)
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return REFUSED
        if isinstance(event, h11.Data):
            payload += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Outcome(payload, ended=True, leftover=connection.trailing_data[0])
        else:
            assert event is h11.NEED_DATA
            return Outcome(payload)


def size_lines(size: int) -> st.SearchStrategy[bytes]:
    """The ways in which a size may be written: letter case, leading zeros, extensions, white space behind."""
    return st.builds(
        lambda digits, zeros, extension, space: zeros + digits + extension + space + b"\r\n",
        st.sampled_from([b"%x" % size, b"%X" % size]),
        st.sampled_from([b"", b"0", b"000000"]),
        st.sampled_from([b"", b";", b";a", b";name=value", b';q="a;b"', b";a=1;b=2"]),
        st.sampled_from([b"", b" ", b"\t \t"]),
    )


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    payload = draw(st.binary(min_size=1, max_size=40))
    return draw(size_lines(len(payload))) + payload + CHUNK_END


last_chunks: st.SearchStrategy[bytes] = st.builds(
    lambda line, trailers: line + b"".join(trailers) + b"\r\n",
    size_lines(0),
    st.lists(st.sampled_from([b"a: b\r\n", b"Digest: sha-1=x\r\n", b"empty:\r\n", b"x:y\r\n"]), max_size=3),
)
bodies: st.SearchStrategy[bytes] = st.builds(
    lambda several, last: b"".join(several) + last,
    st.lists(chunks(), max_size=6),
    last_chunks,
)


@settings(max_examples=80, deadline=None)
@given(bodies, st.binary(max_size=20), cuts)
def test_a_valid_body_reads_as_in_h11_under_every_split(body: bytes, behind: bytes, places: list[int]) -> None:
    expected = decode_with_h11(body + behind)
    assert expected.ended
    assert expected.leftover == behind
    for pieces in every_chunking(body + behind, places):
        for buffer_of in BUFFERS:
            assert decode(ChunkedBody(), pieces, buffer_of) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), cuts)
def test_what_we_write_reads_back_here_and_in_h11(payloads: list[bytes], places: list[int]) -> None:
    stream = b"".join(chunk_head(len(p)) + p + CHUNK_END for p in payloads) + LAST_CHUNK
    expected = Outcome(b"".join(payloads), ended=True)
    assert decode_with_h11(stream) == expected
    for pieces in every_chunking(stream, places):
        assert decode(ChunkedBody(), pieces) == expected


# Bytes that mean something to a chunk parser, and few that do not. No digit above 5: sizes stay reachable.
_MEANINGFUL: Final = [b"\r", b"\n", b"\r\n", b";", b" ", b"\t", b"0", b"1", b"5", b"a", b"F", b"x", b"-", b"+", b":"]
fragments = st.lists(st.sampled_from(_MEANINGFUL), max_size=12).map(b"".join)


@st.composite
def damaged_bodies(draw: st.DrawFn) -> bytes:
    """A valid body with something put in, taken out or put in the place of something else."""
    body = draw(bodies)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(fragments) + body[at + draw(st.integers(0, 4)) :]
    return body


# What h11 takes and we do not. Nothing else: `test_stricter_than_h11` has an example of each.
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_FOLDED_TRAILER: Final = re.compile(rb"\r\n[ \t]")
# What we take and h11 does not: RFC 9112 section 7.1.1 has a recipient accept "bad white space" before a ";".
_SPACE_BEFORE_EXTENSION: Final = re.compile(rb"[0-9A-Fa-f][ \t]+;")


@settings(max_examples=200, deadline=None)
@given(damaged_bodies() | fragments, cuts)
@example(b"0\r\nGET / HTTP/1.1\r\n\r\n", [])
@example(b"5\r\naaaaa5\r\naaaaa\r\n0\r\n\r\n", [])
def test_we_accept_nothing_that_h11_refuses(stream: bytes, places: list[int]) -> None:
    theirs = decode_with_h11(stream)
    for pieces in every_chunking(stream, places):
        ours = decode(ChunkedBody(), pieces)
        if theirs.refused:
            # Ours may still wait for the end of the wrong line; in any case it never comes to an end.
            assert not ours.ended or _SPACE_BEFORE_EXTENSION.search(stream)
        elif ours.refused:
            # We refuse a wrong trailer at its own end, h11 at the end of all.
            assert not theirs.ended or _BARE_LF.search(stream) or _FOLDED_TRAILER.search(stream)
        else:
            assert ours == theirs


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | fragments, cuts)
def test_any_bytes_raise_peer_error_at_most_and_alike_under_every_split(stream: bytes, places: list[int]) -> None:
    outcomes = [
        decode(ChunkedBody(), pieces, buffer_of, before)
        for pieces in every_chunking(stream, places)
        for buffer_of in BUFFERS
        for before in (b"", _BEFORE)
    ]
    assert all(outcome == outcomes[0] for outcome in outcomes)


@table(
    "stream",
    ("bare LF behind a trailer", b"0\r\na: b\n\r\n"),
    ("bare LF at the end", b"0\r\n\n"),
    ("more than 16 digits", b"0" * 16 + b"1\r\na\r\n0\r\n\r\n"),
    ("a size line beyond the limit", b"1;" + b"e" * MAX_LINE_BYTES + b"\r\na\r\n0\r\n\r\n"),
    ("a trailer beyond the limit of a line", b"0\r\na:" + b"b" * MAX_LINE_BYTES + b"\r\n\r\n"),
    ("trailers beyond their limit", b"0\r\n" + (b"a:" + b"b" * 98 + b"\r\n") * 82 + b"\r\n"),
)
def test_stricter_than_h11(stream: bytes) -> None:
    assert not decode_with_h11(stream).refused
    for pieces in every_chunking(stream, [3, 5, 8]):
        assert decode(ChunkedBody(), pieces).refused


def test_looser_than_h11_where_the_rfc_asks_for_it() -> None:
    stream = b"1 ;e\r\na\r\n0\t;e\r\n\r\n"
    assert decode_with_h11(stream).refused
    assert decode(ChunkedBody(), [stream]) == Outcome(b"a", ended=True)


@table(
    "stream",
    ("bare LF behind a size", b"1\na\r\n0\r\n\r\n"),
    ("bare LF behind an extension", b"1;e\na\r\n0\r\n\r\n"),
    ("bare LF behind a chunk", b"1\r\na\n0\r\n\r\n"),
    ("bare LF behind the last chunk", b"0\n\r\n"),
    ("no size", b"\r\n"),
    ("only an extension", b";e\r\n"),
    ("white space before the size", b" 1\r\na\r\n"),
    ("white space within the size", b"1 1\r\na\r\n"),
    ("a sign", b"+1\r\na\r\n"),
    ("a negative size", b"-1\r\na\r\n"),
    ("0x", b"0x1\r\na\r\n"),
    ("an underscore, which int() takes", b"1_0\r\n"),
    ("a digit that only Unicode knows", "\u0661\r\n".encode()),
    ("a size with a comma", b"1,1\r\na\r\n"),
    ("CR CR LF", b"1\r\r\na\r\n"),
    ("a chunk shorter than its size", b"3\r\na\r\n0\r\n\r\n"),
    ("a chunk longer than its size", b"1\r\nab\r\n"),
    ("two empty lines between chunks", b"1\r\na\r\n\r\n1\r\nb\r\n"),
    ("a NUL in the size", b"1\0\r\na\r\n"),
    ("more than 20 digits", b"0" * 21 + b"\r\n\r\n"),
    ("a TLS record", b"\x16\x03\x01\x02\x00\n"),
)
def test_refused_as_in_h11(stream: bytes) -> None:
    # h11 reports some of these only when it sees more; that it does not go on is what counts.
    assert not decode_with_h11(stream).ended
    for pieces in every_chunking(stream, [1, 2]):
        assert decode(ChunkedBody(), pieces).refused


@table(
    "trailer",
    ("a request, smuggled behind a last chunk without its end", b"GET / HTTP/1.1"),
    ("no colon", b"garbage"),
    ("no name", b": value"),
    ("white space before the colon", b"a : b"),
    ("CR within the line", b"a: b\rc: d"),
    ("CR CR LF in the place of the end", b"\r"),
    ("NUL", b"a: \0"),
)
def test_a_trailer_that_is_no_header_field_is_refused(trailer: bytes) -> None:
    stream = b"0\r\n" + trailer + b"\r\n\r\n"
    assert decode_with_h11(stream).refused
    assert decode(ChunkedBody(), [stream]).refused


def test_limits_are_inclusive() -> None:
    line = b"1;".ljust(MAX_LINE_BYTES - 2, b"e") + b"\r\n"
    trailers = (b"a:".ljust(128, b"b") + b"\r\n") * (MAX_TRAILER_BYTES // 128)
    assert decode(ChunkedBody(), [line, b"x\r\n0\r\n", trailers, b"\r\n"]) == Outcome(b"x", ended=True)


def test_the_largest_size_does_not_end() -> None:
    body = ChunkedBody()
    assert decode(body, [b"F" * 16 + b"\r\n", b"payload"]) == Outcome(b"payload")
    with pytest.raises(PeerError):
        body.eof()


def test_an_endless_line_is_refused_without_being_kept() -> None:
    body = ChunkedBody()
    assert decode(body, [b"1"] * MAX_LINE_BYTES) == Outcome(b"")
    assert decode(body, [b"1"]).refused


def test_after_the_end_nothing_is_taken() -> None:
    body = ChunkedBody()
    buffer = bytearray(b"0\r\n\r\n5\r\nhello")
    assert body.span(buffer, 0, len(buffer)) == (5, 5)
    assert body.ended
    assert body.span(buffer, 5, len(buffer)) == (5, 5)


@pytest.mark.parametrize(
    "stream", [b"", b"5", b"5\r\n", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"0\r\n", b"0\r\na: b\r\n"]
)
def test_a_chunked_body_may_not_end_with_the_connection(stream: bytes) -> None:
    body = ChunkedBody()
    assert not decode(body, [stream]).refused
    with pytest.raises(PeerError) as caught:
        body.eof()
    assert caught.value.reason == "closed"


def test_a_chunked_body_that_is_complete_may_be_followed_by_the_connection_s_end() -> None:
    body = ChunkedBody()
    decode(body, [LAST_CHUNK])
    body.eof()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=20), cuts)
def test_a_body_with_a_length(payload: bytes, behind: bytes, places: list[int]) -> None:
    for pieces in every_chunking(payload + behind, places):
        body = LengthBody(len(payload))
        assert decode(body, pieces) == Outcome(payload, ended=True, leftover=behind)
        body.eof()


def test_a_body_shorter_than_its_length() -> None:
    body = LengthBody(2**64)
    assert decode(body, [b"half"]) == Outcome(b"half")
    with pytest.raises(PeerError, match="before the body's end") as caught:
        body.eof()
    assert caught.value.reason == "closed"


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60), cuts)
def test_a_body_that_ends_with_its_connection(payload: bytes, places: list[int]) -> None:
    for pieces in every_chunking(payload, places):
        body = CloseBody()
        assert decode(body, pieces) == Outcome(payload)
        body.eof()
        assert body.ended
