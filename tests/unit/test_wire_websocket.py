"""WebSocket framing, with wsproto as the oracle: the same payload, the same end, and nothing that it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from mmap import mmap
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from fuzz.feeding import assert_printable
from tapotun_trio.errors import PeerError
from tapotun_trio.native import PUMP
from tapotun_trio.wire.frames import MAX_PACKET_BYTES, FrameReader, each
from tapotun_trio.wire.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_STATUS,
    PING,
    PONG,
    TEXT,
    WebSocketBody,
    close_payload,
    frame,
    frame_head,
    mask_in_python,
)
from tests.chunkings import cut, cuts, every_chunking

from ..packets import frame as packet_frame
from ..packets import ipv4
from ..tables import table

KEY: Final = b"\x01\x80\xfe\x37"
keys = st.binary(min_size=4, max_size=4)


def raw(first: int, payload: bytes, *, key: bytes = b"") -> bytes:
    """A frame whose first byte is this one."""
    return bytes((first,)) + frame(BINARY, payload, key)[1:]


class LoadContext:
    """What a body decoder made of bytes that came in pieces."""

    def __init__(self, pieces: list[bytes], *, masked: bool, memory: type[bytearray | mmap] = bytearray) -> None:
        self.body = WebSocketBody(masked=masked)
        self.payload = bytearray()
        self.rest = b""
        for piece in pieces:
            data = b"<<" + piece + b"\x82\xfe\0"  # stale bytes on both sides
            buffer: bytearray | mmap
            if memory is mmap:
                buffer = mmap(-1, len(data))
                buffer[:] = data
            else:
                buffer = bytearray(data)
            pos, end = 2, 2 + len(piece)
            while True:
                start, stop = self.body.span(buffer, pos, end)
                assert pos <= start <= stop <= end
                self.payload += buffer[start:stop]
                pos = stop
                if start == stop and (pos == end or self.body.ended):
                    break
            assert buffer[:2] == b"<<"
            assert buffer[end:] == b"\x82\xfe\0"
            if self.body.ended:
                self.rest += buffer[pos:end]
            else:
                assert pos == end


def wsprotos(data: bytes, *, client: bool = False) -> tuple[bytes, int | None] | None:
    """Payload and close code by wsproto, ``client``: as a client reads it; None: malformed, or text."""
    protocol = FrameProtocol(client, [])
    protocol.receive_bytes(data)
    payload = bytearray()
    try:
        for it in protocol.received_frames():
            if it.opcode is Opcode.CLOSE:
                assert isinstance(it.payload, tuple)
                return bytes(payload), int(it.payload[0])
            if it.opcode is Opcode.TEXT:
                return None
            if it.opcode is Opcode.BINARY:
                assert not isinstance(it.payload, str | tuple)
                payload += it.payload
    except ParseFailed:
        return None
    return bytes(payload), None


def ours(pieces: list[bytes], *, masked: bool = True) -> tuple[bytes, int | None] | None:
    try:
        reading = LoadContext(pieces, masked=masked)
    except PeerError as exc:
        assert_printable(exc)
        return None
    return bytes(reading.payload), reading.body.code if reading.body.ended else None


# -- masking


MASKS: Final = [mask_in_python] if PUMP is None else [mask_in_python, PUMP.mask]
in_both_ways = pytest.mark.parametrize("mask", MASKS, ids=["python", "c"][: len(MASKS)])


@in_both_ways
@given(st.binary(max_size=5000), keys)
def test_mask_is_an_xor_of_each_byte(mask: Callable[..., bytes], payload: bytes, key: bytes) -> None:
    masked = mask(payload, key)
    assert masked == bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    assert mask(memoryview(masked), key) == payload


@in_both_ways
@pytest.mark.parametrize("size", [0, 1, 3, 4, 1022, 1023, 1024, 1025, 65536, 131075])
def test_mask_at_the_sizes_where_the_way_changes(mask: Callable[..., bytes], size: int) -> None:
    payload = os.urandom(size)
    masked = mask(payload, KEY)
    assert masked == bytes(byte ^ KEY[at % 4] for at, byte in enumerate(payload))


@pytest.mark.skipif(PUMP is None, reason="the native part is not built")
@given(st.binary(max_size=300), keys, st.integers(0, 300), st.integers(0, 300))
def test_masking_in_place_touches_its_part_only(payload: bytes, key: bytes, start: int, size: int) -> None:
    assert PUMP is not None
    start = min(start, len(payload))
    stop = min(start + size, len(payload))
    buffer = bytearray(payload)
    PUMP.mask_in_place(buffer, start, stop, key)
    assert buffer == payload[:start] + mask_in_python(payload[start:stop], key) + payload[stop:]


@pytest.mark.skipif(PUMP is None, reason="the native part is not built")
@pytest.mark.parametrize(
    ("start", "stop", "key"), [(-1, 2, KEY), (2, 1, KEY), (0, 11, KEY), (0, 1, b"abc"), (0, 1, b"")]
)
def test_masking_out_of_bounds_is_refused(start: int, stop: int, key: bytes) -> None:
    assert PUMP is not None
    buffer = bytearray(10)
    with pytest.raises(ValueError, match=r"not within|4 bytes"):
        PUMP.mask_in_place(buffer, start, stop, key)
    assert buffer == bytes(10)


# -- heads


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("key", [b"", KEY])
def test_a_head_is_as_wsproto_reads_it(size: int, key: bytes) -> None:
    payload = bytes(size)
    data = frame(BINARY, payload, key)
    assert wsprotos(data, client=not key) == (payload, None)
    assert len(frame_head(BINARY, size, key)) == 2 + (0 if size < 126 else 2 if size < 65536 else 8) + len(key)


@given(st.text(max_size=200), st.sampled_from([1000, 1001, 1002, 3000, 4999]))
def test_a_close_is_as_wsproto_reads_it(reason: str, code: int) -> None:
    connection = Connection(ConnectionType.CLIENT)
    connection.receive_data(frame(CLOSE, close_payload(code, reason)))
    (event,) = connection.events()
    assert isinstance(event, CloseConnection)
    assert event.code == code
    assert reason.startswith(event.reason or "")
    assert connection.state is ConnectionState.REMOTE_CLOSING


# -- bodies that are right


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, bytes, int | None]:
    """Frames of a client, the payload in them, and the code if there is a close: messages in one frame or many, empty
    ones too, and control frames between any two."""
    data, payload = b"", b""

    def control_frames() -> bytes:
        some = draw(st.lists(st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125), keys), max_size=2))
        return b"".join(frame(opcode, content, key) for opcode, content, key in some)

    for message in draw(st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=4)):
        for at, part in enumerate(message):
            data += control_frames()
            first = (0x80 if at == len(message) - 1 else 0) | (CONTINUATION if at else BINARY)
            data += raw(first, part, key=draw(keys))
            payload += part
    data += control_frames()
    code = draw(st.sampled_from([None, NO_STATUS, 1000, 1001, 1013, 3000, 4999]))
    if code is not None:
        content = b"" if code == NO_STATUS else close_payload(code, draw(st.text(max_size=30)))
        data += frame(CLOSE, content, draw(keys)) + draw(st.binary(max_size=20))
    return data, payload, code


@settings(max_examples=150, deadline=None)
@given(conversations(), cuts)
def test_every_split_gives_what_wsproto_gives(conversation: tuple[bytes, bytes, int | None], places: list[int]) -> None:
    data, payload, code = conversation
    assert wsprotos(data) == (payload, code)
    for pieces in every_chunking(data, places):
        assert ours(pieces) == (payload, code)
        assert LoadContext(pieces, masked=True, memory=mmap).payload == payload


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 70_000), max_size=4), cuts)
def test_long_messages(sizes: list[int], places: list[int]) -> None:
    payloads = [os.urandom(size) for size in sizes]
    data = b"".join(frame(BINARY, payload, os.urandom(4)) for payload in payloads)
    assert ours(cut(data, places)) == (b"".join(payloads), None)


def test_a_close_by_a_gateway() -> None:
    """1014 is in the registry, and not in wsproto."""
    assert ours([frame(CLOSE, close_payload(1014), KEY)]) == (b"", 1014)


@given(st.binary(max_size=30))
def test_what_follows_the_close_is_left_alone(rest: bytes) -> None:
    data = frame(BINARY, b"payload", KEY) + frame(CLOSE, close_payload(1001, "bye\n"), KEY) + rest
    reading = LoadContext([data], masked=True)
    assert (reading.body.code, reading.body.reason, reading.rest) == (1001, "bye\\u000a", rest)
    reading.body.eof()


def test_only_the_newest_ping_is_to_be_answered() -> None:
    body = WebSocketBody(masked=False)
    data = bytearray(frame(PING, b"one") + frame(PONG, b"none") + frame(PING, b"") + frame(PING, b"two"))
    pos = 0
    while pos < len(data):
        start, pos = body.span(data, pos, len(data))
        assert start == pos
    assert body.ping == b"two"


# -- frames of the tunnel in messages


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 400, 9000, MAX_PACKET_BYTES - 20]), max_size=6), cuts, cuts)
def test_a_frame_may_start_and_end_in_any_message(sizes: list[int], places: list[int], arrivals: list[int]) -> None:
    frames = [packet_frame(ipv4("10.0.0.1", "10.0.0.2", os.urandom(size))) for size in sizes]
    messages = cut(b"".join(frames), places)
    data = b"".join(frame(PING, b"x", KEY) + frame(BINARY, it, os.urandom(4)) for it in messages)
    reader = FrameReader(WebSocketBody(masked=True))
    got = []
    for piece in cut(data + frame(CLOSE, b"", KEY), arrivals):
        while piece:
            space = reader.space()
            taken = min(len(space), len(piece))
            space[:taken] = piece[:taken]
            piece = piece[taken:]
            got += [bytes(reader.view[start:stop]) for start, stop in each(reader.feed(taken))]
    assert got == frames
    assert reader.ended


def test_a_close_within_a_frame_is_an_error() -> None:
    reader = FrameReader(WebSocketBody(masked=False))
    with pytest.raises(PeerError, match="ended within a frame"):
        reader.prime(frame(BINARY, packet_frame(ipv4("10.0.0.1", "10.0.0.2"))[:-1]) + frame(CLOSE, b""))


# -- what is refused


@table(
    "data words",
    ("not masked", frame(BINARY, b"x"), "not masked"),
    ("RSV1", raw(0xC2, b"x", key=KEY), "reserved bits"),
    ("RSV2", raw(0xA2, b"x", key=KEY), "reserved bits"),
    ("RSV3", raw(0x92, b"x", key=KEY), "reserved bits"),
    ("text", raw(0x80 | TEXT, b"x", key=KEY), "text"),
    ("a reserved opcode", raw(0x83, b"x", key=KEY), "opcode 3"),
    ("a reserved control opcode", raw(0x8B, b"x", key=KEY), "opcode 11"),
    ("a fragmented ping", raw(PING, b"x", key=KEY), "fragmented"),
    ("a fragmented close", raw(CLOSE, b"", key=KEY), "fragmented"),
    ("a ping of 126 bytes", raw(0x80 | PING, bytes(126), key=KEY), "more than 125"),
    ("a ping with a length in 64 bits", raw(0x80 | PING, bytes(65536), key=KEY), "more than 125"),
    ("a continuation of nothing", raw(0x80 | CONTINUATION, b"x", key=KEY), "continuation of no"),
    ("a message in a message", raw(BINARY, b"x", key=KEY) + raw(0x80 | BINARY, b"x", key=KEY), "within another"),
    ("125 in 16 bits", b"\x82\xfe\0\x7d" + KEY, "shortest"),
    ("65535 in 64 bits", b"\x82\xff\0\0\0\0\0\0\xff\xff" + KEY, "shortest"),
    ("2**63", b"\x82\xff\x80\0\0\0\0\0\0\0" + KEY, "2\\*\\*63"),
    ("a close of 1 byte", frame(CLOSE, b"x", KEY), "must not be sent"),
    ("a close with 999", frame(CLOSE, close_payload(999), KEY), "must not be sent"),
    ("a close with 1004", frame(CLOSE, close_payload(1004), KEY), "must not be sent"),
    ("a close with 1005", frame(CLOSE, close_payload(1005), KEY), "must not be sent"),
    ("a close with 1006", frame(CLOSE, close_payload(1006), KEY), "must not be sent"),
    ("a close with 1015", frame(CLOSE, close_payload(1015), KEY), "must not be sent"),
    ("a close with 2999", frame(CLOSE, close_payload(2999), KEY), "must not be sent"),
    ("a close with 5000", frame(CLOSE, close_payload(5000), KEY), "must not be sent"),
    ("a close with bad UTF-8", frame(CLOSE, b"\x03\xe8\xff", KEY), "UTF-8"),
)
def test_refused(data: bytes, words: str) -> None:
    for pieces in every_chunking(data, ()):
        with pytest.raises(PeerError, match=words) as caught:
            LoadContext(pieces, masked=True)
        assert caught.value.reason == "bad-websocket"


def test_a_server_that_masks_is_refused() -> None:
    with pytest.raises(PeerError, match="is masked"):
        LoadContext([frame(BINARY, b"x", KEY)], masked=False)


def test_a_refusal_does_not_wait_for_more() -> None:
    """Two bytes are enough to see it."""
    with pytest.raises(PeerError, match="not masked"):
        LoadContext([b"\x82\x7f"], masked=True)


@pytest.mark.parametrize("data", [b"", b"\x82", frame(BINARY, b"x", KEY), frame(BINARY, b"x", KEY)[:-1]])
def test_a_connection_must_not_end_without_a_close(data: bytes) -> None:
    with pytest.raises(PeerError, match="without the end"):
        LoadContext([data], masked=True).body.eof()


# Bytes that mostly are frames of some kind.
mutilated = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(
            raw,
            st.integers(0, 255),
            st.one_of(st.binary(max_size=130), st.just(bytes(70_000))),
            key=st.one_of(st.just(b""), keys),
        ),
    ),
    max_size=4,
).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(mutilated, cuts, st.booleans())
@example(frame(CLOSE, close_payload(1010), KEY), [], True)
def test_nothing_is_accepted_that_wsproto_refuses(data: bytes, places: list[int], masked: bool) -> None:
    whole = ours([data], masked=masked)
    assert ours(cut(data, places), masked=masked) == whole
    theirs = wsprotos(data, client=not masked)
    if whole is not None and whole[1] is None and theirs is None:
        # And we look at a length when the key behind it is there too.
        assert ours([data + bytes(4)], masked=masked) is None
    elif whole is not None:
        assert whole == theirs
    elif theirs is not None:
        # wsproto wants the whole of a head before it looks at it.
        assert wsprotos(data + bytes(14), client=not masked) is None
