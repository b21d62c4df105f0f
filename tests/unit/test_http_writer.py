"""http.writer: whatever the socket takes at a time, the wire decodes to exactly the pieces."""

from __future__ import annotations

import h11
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.http.heads import encode_response
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.wire.body import LAST_CHUNK

from ..streams import MemoryConnection, memory_pair


def decode(wire: bytes, *, closed: bool = False) -> tuple[bytes, bool]:
    """What an HTTP client makes of the body: its bytes, and whether it has ended."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    framing = ("Connection", "close") if closed else ("Transfer-Encoding", "chunked")
    connection.receive_data(encode_response(200, [framing]) + wire)
    if closed:
        connection.receive_data(b"")
    assert isinstance(connection.next_event(), h11.Response)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    return body, isinstance(event, h11.EndOfMessage)


def take(connection: MemoryConnection, limit_bytes: int) -> bytes:
    buffer = bytearray(limit_bytes)
    return bytes(buffer[: connection.try_receive(memoryview(buffer)) or 0])


pieces_of_body = st.lists(st.binary(min_size=1, max_size=80), max_size=8)


@settings(max_examples=100, deadline=None)
@given(pieces_of_body, st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_a_peer_that_reads_slowly(pieces: list[bytes], capacity: int, at_a_time: int, chunked: bool) -> None:
    """Partial sends at every place: within the size line, the piece, and its end."""
    ours, theirs = memory_pair(capacity)
    writer = BodyWriter(ours, chunked=chunked)
    wire = b""
    for piece in pieces:
        slab = bytearray(piece)
        writer.send(memoryview(slab))
        slab[:] = bytes(len(slab))  # the caller's buffer is the caller's again
        while writer.pending:
            wire += take(theirs, at_a_time)
            writer.flush()
    wire += take(theirs, capacity)
    assert decode(wire, closed=not chunked) == (b"".join(pieces), not chunked)


@settings(max_examples=40, deadline=None)
@given(pieces_of_body, st.integers(1, 60), st.booleans())
async def test_drain_and_finish(pieces: list[bytes], capacity: int, chunked: bool) -> None:
    ours, theirs = memory_pair(capacity)
    writer = BodyWriter(ours, chunked=chunked)
    wire = b""

    async def send() -> None:
        for piece in pieces:
            writer.send(piece)
            await writer.drain()
            assert not writer.pending
        await writer.finish()
        ours.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        wire = await theirs.read_all()
    assert writer.finished
    assert decode(wire, closed=not chunked) == (b"".join(pieces), True)


async def test_one_system_call_for_a_piece_that_fits() -> None:
    ours, theirs = memory_pair()
    BodyWriter(ours).send(b"hello")
    assert ours.sends == 1
    assert theirs.unread == b"5\r\nhello\r\n"


async def test_nothing_is_pending_at_first_nor_after_a_piece_that_fits() -> None:
    ours, _ = memory_pair()
    writer = BodyWriter(ours)
    assert not writer.pending
    writer.send(b"hello")
    assert not writer.pending
    await writer.drain()


async def test_finish_sends_what_is_pending_first() -> None:
    ours, theirs = memory_pair(4)
    writer = BodyWriter(ours)
    writer.send(b"hello")
    assert writer.pending
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.finish)
        assert await theirs.read_until(LAST_CHUNK) == b"5\r\nhello\r\n" + LAST_CHUNK


async def test_a_cancelled_drain_keeps_the_rest(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = memory_pair(4)
    writer = BodyWriter(ours)
    writer.send(b"hello")
    with trio.move_on_after(1):
        await writer.drain()
    assert writer.pending
    ours.limit(100)
    await writer.drain()
    assert theirs.unread == b"5\r\nhello\r\n"


async def test_try_finish_ends_a_body_once() -> None:
    ours, theirs = memory_pair()
    writer = BodyWriter(ours)
    await writer.try_finish()
    await writer.try_finish()
    assert theirs.unread == LAST_CHUNK


async def test_try_finish_says_nothing_about_a_connection_that_is_gone() -> None:
    ours, theirs = memory_pair()
    theirs.close()
    await BodyWriter(ours).try_finish()


async def test_try_finish_leaves_a_broken_stream_alone() -> None:
    ours, theirs = memory_pair()
    writer = BodyWriter(ours)
    writer.mark_broken(EndReason.BROKEN)
    await writer.try_finish()
    assert theirs.unread == b""


async def test_a_finish_that_was_cut_short_may_be_taken_up_again(autojump_clock: trio.testing.MockClock) -> None:
    """The end of a replaced download waits for its peer; then the program is stopped. The stream is within a
    frame, and the peer would read on in the next `ending_cleanly` allows it."""
    ours, theirs = memory_pair(4)
    writer = BodyWriter(ours)
    writer.send(b"hello")
    with trio.move_on_after(1):
        await writer.finish()
    ours.limit(100)
    await writer.try_finish()
    assert theirs.unread == b"5\r\nhello\r\n" + LAST_CHUNK


@pytest.mark.parametrize("pending", [False, True])
async def test_a_broken_connection(pending: bool) -> None:
    ours, theirs = memory_pair(4)
    writer = BodyWriter(ours)
    if pending:
        writer.send(b"hello")
    theirs.close()
    with pytest.raises(PeerError):
        await writer.finish()
    with pytest.raises(PeerError):
        writer.send(b"more")
