"""wire.frames: the same frames, byte for byte and in order, however the body was chunked and received."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.wire import control
from tapotun_trio.wire.body import CHUNK_END, LAST_CHUNK, Body, ChunkedBody, CloseBody, LengthBody, chunk_head
from tapotun_trio.wire.frames import (
    BASE_PING,
    BUFFER_BYTES,
    HEADER_BYTES,
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    MAX_PACKET_BYTES,
    MIN_PACKET_BYTES,
    FrameRange,
    FrameReader,
    each,
    echoed_clock,
    encode_echo,
)

from ..chunkings import cut, cuts, every_chunking
from ..packets import frame


class Received:
    """Drives a reader as a stream's task does, and takes a copy of each frame as late as it may."""

    def __init__(self, reader: FrameReader) -> None:
        self.reader = reader
        self.frames: list[bytes] = []

    def push(self, piece: bytes) -> None:
        """Receive a piece: into as many spaces as it needs."""
        while piece:
            space = self.reader.space()
            assert len(space) >= MAX_FRAME_BYTES
            part, piece = piece[: len(space)], piece[len(space) :]
            space[: len(part)] = part
            # Everything beyond what was received is stale; nobody may look at it.
            space[len(part) : len(part) + 64] = b"\xee" * len(space[len(part) : len(part) + 64])
            self.take(self.reader.feed(len(part)))
            while self.reader.pending:
                self.take(self.reader.feed(0))

    def take(self, spans: Sequence[FrameRange]) -> None:
        """A frame is good until the next `space`: so look at none before `feed` has returned all."""
        self.frames += [bytes(self.reader.view[start:stop]) for start, stop in each(spans)]


def received(body: Body, pieces: Iterable[bytes], *, control: bool = False) -> Received:
    result = Received(FrameReader(body, control=control))
    for piece in pieces:
        result.push(piece)
    return result


def chunked(payload: bytes, places: Sequence[int]) -> bytes:
    """The payload as chunks, cut at these places, and its end."""
    chunks = (chunk_head(len(piece)) + piece + CHUNK_END for piece in cut(payload, places))
    return b"".join(chunks) + LAST_CHUNK


vnet_headers = st.binary(min_size=12, max_size=12)
small_frames = st.builds(frame, st.binary(min_size=MIN_PACKET_BYTES, max_size=60), vnet_headers)
streams = st.lists(st.just(BASE_PING) | small_frames, max_size=12)


def without_pings(stream: Iterable[bytes]) -> list[bytes]:
    return [it for it in stream if it != BASE_PING]


@settings(max_examples=40, deadline=None)
@given(streams, cuts, cuts, st.binary(max_size=10))
def test_the_same_frames_under_every_chunking_and_every_split(
    stream: list[bytes], chunk_places: list[int], places: list[int], behind: bytes
) -> None:
    payload = b"".join(stream)
    for pieces in every_chunking(chunked(payload, chunk_places) + behind, places):
        # What is behind the end comes with the end, or is never asked for.
        result = Received(FrameReader(ChunkedBody()))
        remaining = iter(pieces)
        for piece in remaining:
            result.push(piece)
            if result.reader.ended:
                break
        assert result.frames == without_pings(stream)
        assert result.reader.ended
        assert result.reader.leftover + b"".join(remaining) == behind


@settings(max_examples=40, deadline=None)
@given(streams, cuts)
def test_the_same_frames_without_chunks(stream: list[bytes], places: list[int]) -> None:
    payload = b"".join(stream)
    for pieces in every_chunking(payload, places):
        by_length = received(LengthBody(len(payload)), pieces)
        by_close = received(CloseBody(), pieces)
        assert by_length.frames == by_close.frames == without_pings(stream)
        by_close.reader.eof()
        by_close.take(by_close.reader.feed(0))
        assert by_close.reader.ended


def numbered_packet(number: int, size: int) -> bytes:
    """Bytes that differ from place to place, so that a frame moved wrongly shows."""
    pattern = bytes((number * 31 + at) % 251 for at in range(251))
    return (pattern * (size // len(pattern) + 1))[:size]


# Small, middling, and the largest: three of those fill the buffer, so most runs wrap and straddle.
packet_sizes = st.lists(
    st.sampled_from([MIN_PACKET_BYTES, 1500, 30_000, 65_000, MAX_PACKET_BYTES]), min_size=4, max_size=10
)
large_cuts = st.lists(st.integers(0, 1 << 20), max_size=40)


@settings(max_examples=40, deadline=None)
@given(packet_sizes, large_cuts, large_cuts)
@example([MAX_PACKET_BYTES] * 10, [], [])
@example([MAX_PACKET_BYTES] * 10, list(range(0, 1 << 20, 999)), [])
@example([MAX_PACKET_BYTES] * 10, [], list(range(0, 1 << 20, 1448)))
@example([MAX_PACKET_BYTES] * 10, list(range(0, 1 << 20, 16_384)), list(range(0, 1 << 20, 1448)))
def test_large_frames_wrap_and_straddle(sizes: list[int], chunk_places: list[int], places: list[int]) -> None:
    stream = [frame(numbered_packet(number, size), bytes([number] * 12)) for number, size in enumerate(sizes)]
    result = received(ChunkedBody(), cut(chunked(b"".join(stream), chunk_places), places))
    assert result.frames == stream
    assert result.reader.ended


@pytest.mark.parametrize("filler_bytes", range(BUFFER_BYTES - MAX_FRAME_BYTES - 3, BUFFER_BYTES - MAX_FRAME_BYTES + 4))
def test_every_place_around_the_wrap(filler_bytes: int) -> None:
    """The first bytes of a frame end just before, at, and behind the place from which it is moved."""
    pings = BASE_PING * ((filler_bytes - 2) // 2)  # an odd rest makes the frame's first part one byte longer
    whole = frame(numbered_packet(1, MAX_PACKET_BYTES))
    first = 2 + filler_bytes % 2
    pieces = [pings + whole[:first], whole[first:]]
    result = received(LengthBody(len(pings) + len(whole)), pieces)
    assert result.frames == [whole]


@pytest.mark.parametrize("at", range(HEADER_BYTES + 1))
def test_a_chunk_boundary_at_every_place_of_a_header(at: int) -> None:
    stream = [frame(b"A" * 20, b"123456789012"), frame(b"B" * 700, b"abcdefghijkl"), frame(b"C" * 20)]
    payload = b"".join(stream)
    boundaries = [len(stream[0]) + at, len(stream[0]) + len(stream[1]) + at]
    for pieces in every_chunking(chunked(payload, boundaries), [5, 40, 200]):
        assert received(ChunkedBody(), pieces).frames == stream


def test_one_byte_chunks() -> None:
    stream = [frame(numbered_packet(number, size)) for number, size in enumerate([20, 300, 21, 2000])]
    payload = b"".join(stream)
    assert received(ChunkedBody(), [chunked(payload, range(len(payload)))]).frames == stream


def test_frames_stay_where_they_are_until_the_next_space() -> None:
    """Frames of one `feed` are read after all of them were found, and chunk framing was closed up between them."""
    stream = [frame(bytes([number]) * (20 + number)) for number in range(100)]
    payload = b"".join(stream)
    reader = FrameReader(ChunkedBody())
    data = chunked(payload, range(7, len(payload), 13))
    reader.space()[: len(data)] = data
    views = [reader.view[start:stop] for start, stop in each(reader.feed(len(data)))]
    assert [bytes(view) for view in views] == stream


def test_space_starts_over_when_nothing_is_left() -> None:
    reader = FrameReader(CloseBody())
    ping = frame(b"p" * 20)
    for _ in range(3):
        space = reader.space()
        assert len(space) == BUFFER_BYTES
        space[: len(ping)] = ping
        assert reader.feed(len(ping)) == [(0, len(ping), 1)]


def test_prime_takes_what_came_with_the_head() -> None:
    first, second = frame(b"1" * 20), frame(b"2" * 20)
    data = chunked(first + second, [])
    result = Received(FrameReader(ChunkedBody()))
    result.take(result.reader.prime(data[:50]))
    result.push(data[50:])
    assert result.frames == [first, second]
    assert result.reader.ended


@pytest.mark.parametrize("data", [b"", LAST_CHUNK, LAST_CHUNK + b"GET / HTTP/1.1\r\n"])
def test_prime_with_no_frame_at_all(data: bytes) -> None:
    reader = FrameReader(ChunkedBody())
    assert reader.prime(data) == []
    assert reader.ended == bool(data)
    assert reader.leftover == data[len(LAST_CHUNK) :]


def test_a_body_of_no_length_has_ended_at_once() -> None:
    reader = FrameReader(LengthBody(0))
    assert reader.prime(b"GET /") == []
    assert reader.ended
    assert reader.leftover == b"GET /"


def test_prime_takes_as_much_as_a_reader_can_leave_over() -> None:
    behind = b"x" * (BUFFER_BYTES - len(LAST_CHUNK))
    reader = FrameReader(ChunkedBody())
    reader.prime(LAST_CHUNK + behind)
    assert reader.leftover == behind
    FrameReader(LengthBody(0)).prime(reader.leftover)


@pytest.mark.parametrize("length", [1, 2, MIN_PACKET_BYTES - 1])
@pytest.mark.parametrize("before", [b"", BASE_PING, frame(b"g" * 20)])
def test_a_length_that_no_packet_has(length: int, before: bytes) -> None:
    payload = before + length.to_bytes(2, "little") + bytes(60)
    for pieces in every_chunking(chunked(payload, [len(before) + 1]), [4, 6]):
        with pytest.raises(PeerError) as caught:
            received(ChunkedBody(), pieces)
        assert caught.value.reason == "bad-frame"


@pytest.mark.parametrize("length", [MIN_PACKET_BYTES, MAX_PACKET_BYTES])
def test_lengths_at_the_limits(length: int) -> None:
    whole = frame(numbered_packet(3, length))
    assert received(ChunkedBody(), [chunked(whole, [])]).frames == [whole]


@pytest.mark.parametrize("cut_at", [1, 2, LENGTH_BYTES + 1, HEADER_BYTES, HEADER_BYTES + 19])
def test_the_end_within_a_frame(cut_at: int) -> None:
    part = frame(b"x" * 20)[:cut_at]
    for body, data, reason in (
        (ChunkedBody(), chunked(part, []), "bad-frame"),
        (LengthBody(len(part)), part, "bad-frame"),
    ):
        with pytest.raises(PeerError, match="within a frame") as caught:
            received(body, [data])
        assert caught.value.reason == reason
    by_close = received(CloseBody(), [part])
    with pytest.raises(PeerError, match="within a frame"):
        by_close.reader.eof()


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (ChunkedBody(), b""),
        (ChunkedBody(), b"100\r\n" + frame(b"x" * 20)),
        (LengthBody(100), frame(b"x" * 20)),
    ],
)
def test_the_connection_closed_before_the_body_s_end(body: Body, data: bytes) -> None:
    result = received(body, [data])
    with pytest.raises(PeerError) as caught:
        result.reader.eof()
    assert caught.value.reason == "closed"


# ------------------------------------------------------------------ generation 2 pings


@given(st.integers(0, 2**64 - 1))
def test_a_generation_2_ping(clock_ns: int) -> None:
    """docs/protocol.md#base-pings: L = 48, a packet that starts with byte 0x10 and then a u64 timestamp."""
    ping = encode_echo(clock_ns)
    assert ping[:14] == b"\x30" + bytes(13)
    assert ping[14:23] == b"\x10" + clock_ns.to_bytes(8, "little")
    assert len(ping) == HEADER_BYTES + 48
    assert received(ChunkedBody(), [chunked(ping, [])]).frames == [ping]
    assert echoed_clock(memoryview(ping)) == clock_ns


# ------------------------------------------------------------------ control frames

controls = st.builds(control.encode, st.integers(0, 255), st.binary(max_size=40))
mixed_streams = st.lists(st.just(BASE_PING) | small_frames | controls, max_size=12)


@settings(max_examples=40, deadline=None)
@given(mixed_streams, cuts, cuts)
def test_control_frames_between_frames(stream: list[bytes], chunk_places: list[int], places: list[int]) -> None:
    packets = [it for it in stream if it[0] != 1 and it != BASE_PING]
    expected = [(it[2], it[control.CONTROL.size :]) for it in stream if it[0] == 1]
    for pieces in every_chunking(chunked(b"".join(stream), chunk_places), places):
        result = received(ChunkedBody(), pieces, control=True)
        assert result.frames == packets
        assert result.reader.controls == expected
        assert result.reader.ended


def test_a_control_frame_wraps_and_straddles_as_others_do() -> None:
    longest = control.encode(9, numbered_packet(1, control.MAX_PAYLOAD_BYTES))
    large = frame(numbered_packet(2, MAX_PACKET_BYTES))
    result = received(CloseBody(), cut(longest * 3 + large * 3 + longest * 9, range(0, 1 << 20, 50_000)), control=True)
    assert result.frames == [large] * 3
    assert [control.encode(*it) for it in result.reader.controls] == [longest] * 12


def test_without_the_feature_a_control_frame_is_malformed() -> None:
    with pytest.raises(PeerError) as caught:
        received(CloseBody(), [control.ping(0)])
    assert caught.value.reason == "bad-frame"


@pytest.mark.parametrize("size", [control.MAX_PAYLOAD_BYTES + 1, 0xFFFFFFFF])
def test_a_control_frame_that_claims_too_much(size: int) -> None:
    """Refused at its head: nobody waits for a payload that no buffer holds."""
    with pytest.raises(PeerError) as caught:
        received(CloseBody(), [control.CONTROL.pack(1, control.PARAMS, size)], control=True)
    assert caught.value.reason == "bad-frame"


@pytest.mark.parametrize("length", [2, MIN_PACKET_BYTES - 1])
def test_other_lengths_stay_malformed(length: int) -> None:
    with pytest.raises(PeerError):
        received(CloseBody(), [length.to_bytes(2, "little") + bytes(60)], control=True)


@pytest.mark.parametrize("cut_at", range(1, control.CONTROL.size + 3))
def test_the_end_within_a_control_frame(cut_at: int) -> None:
    with pytest.raises(PeerError, match="within a frame"):
        received(ChunkedBody(), [chunked(control.encode(9, b"abc")[:cut_at], [])], control=True)


# ------------------------------------------------------------------ hostile bytes

# What a hostile peer might try: framing that is right, so that the lengths are reached, and any bytes.
_FRAGMENTS: Final = [
    BASE_PING,
    control.ping(7),
    b"\1\0",
    LAST_CHUNK,
    CHUNK_END,
    b"1\r\n",
    b"ff\r\n",
    b"\x14\0",
    b"\x13\0",
    b"\xff\xff",
    frame(b"x" * 20),
]
hostile = st.binary(max_size=300) | st.lists(st.sampled_from(_FRAGMENTS), max_size=20).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(hostile, cuts, cuts)
def test_any_bytes_raise_peer_error_at_most(data: bytes, chunk_places: list[int], places: list[int]) -> None:
    for body, stream, extended in (
        (ChunkedBody(), data, True),
        (ChunkedBody(), chunked(data, chunk_places), False),
        (LengthBody(100), data, False),
        (CloseBody(), data, True),
    ):
        reader = FrameReader(body, control=extended)
        try:
            for piece in cut(stream, places):
                reader.space()[: len(piece)] = piece
                spans = reader.feed(len(piece))
                while reader.pending:  # none of them moves what was returned
                    spans += reader.feed(0)
                for start, stop in each(spans):
                    assert 0 <= start < stop <= BUFFER_BYTES
                    assert stop - start == HEADER_BYTES + int.from_bytes(reader.view[start : start + 2], "little")
                    assert stop - start >= HEADER_BYTES + MIN_PACKET_BYTES
                if reader.ended:
                    break
            else:
                reader.eof()
        except PeerError:
            pass
