"""tunnel.sender: every frame once and in order over whichever stream is the newest; streams end between frames."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.counters import Counters, DropReason
from tapotun_trio.datapath.receiver import Receiver
from tapotun_trio.datapath.scheduler import PIECE_BYTES, WATCH_S
from tapotun_trio.datapath.sender import (
    BASE_DOWNLOAD_KEEPALIVE,
    BASE_KEEPALIVE,
    GENERATION_2_KEEPALIVE,
    GRACE_S,
    MAX_CONTROLS,
    Sender,
    ending_cleanly,
    extended_keepalive,
)
from tapotun_trio.datapath.tx_queue import MAX_AGE_S, MAX_BYTES
from tapotun_trio.errors import PeerError
from tapotun_trio.host.interfaces import PathState
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.wire import control
from tapotun_trio.wire.body import ChunkedBody, chunk_head
from tapotun_trio.wire.frames import BASE_PING, FrameReader, each

from ..packets import frame, ipv4
from ..streams import MemoryConnection, memory_pair

Clock = trio.testing.MockClock
TICK_S = 1.0


def numbered(number: int, payload_bytes: int = 20) -> bytes:
    return frame(ipv4("10.0.0.1", "10.0.0.2", number.to_bytes(4, "big") * (payload_bytes // 4)))


class Peer:
    """The far end of one stream: what has come, as frames.

    Attributes:
        pings: base PINGs, each of which came as a chunk of its own.
    """

    def __init__(self, connection: MemoryConnection, ours: MemoryConnection) -> None:
        self.connection = connection
        self.ours = ours  # the sender's end
        self.reader = FrameReader(ChunkedBody(), control=True)
        self.frames: list[bytes] = []
        self._bytes = bytearray()

    def take(self, limit_bytes: int = 1 << 30) -> list[bytes]:
        """Receive what is there, up to so many bytes. All frames that ever came."""
        while limit_bytes:
            space = self.reader.space()[:limit_bytes]
            received = self.connection.try_receive(space)
            if not received:
                break
            self._bytes += space[:received]
            limit_bytes -= received
            self.frames += [bytes(self.reader.view[a:b]) for a, b in each(self.reader.feed(received))]
        return self.frames

    @property
    def controls(self) -> list[tuple[int, bytes]]:
        self.take()
        return self.reader.controls

    @property
    def pings(self) -> int:
        self.take()
        return self._bytes.count(chunk_head(len(BASE_PING)) + BASE_PING + b"\r\n")


def stream(capacity_bytes: int = 1 << 20) -> tuple[BodyWriter, Peer]:
    ours, theirs = memory_pair(capacity_bytes)
    return BodyWriter(ours), Peer(theirs, ours)


class Serving:
    """`Sender.serve` in a task of its own, ended as the tunnel's streams end theirs."""

    def __init__(self, sender: Sender, writer: BodyWriter) -> None:
        self.sender = sender
        self.writer = writer
        self.error: PeerError | None = None
        self.replaced = trio.Event()  # serve returned
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            try:
                async with ending_cleanly(self.writer):
                    await self.sender.serve(self.writer)
                    self.replaced.set()
                    await self.writer.finish()
            except PeerError as exc:
                self.error = exc
            finally:
                self.ended.set()


@asynccontextmanager
async def serving(sender: Sender) -> AsyncIterator[Callable[[BodyWriter], Serving]]:
    """Begin streams within; those that still run at the end are cancelled."""
    async with trio.open_nursery() as nursery:

        def begin(writer: BodyWriter) -> Serving:
            it = Serving(sender, writer)
            nursery.start_soon(it.run)
            return it

        yield begin
        nursery.cancel_scope.cancel()


settle = trio.testing.wait_all_tasks_blocked


# ------------------------------------------------------------------ one stream


async def test_straight_onto_the_stream() -> None:
    sender = Sender(Counters())
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        sender.send(numbered(1) + numbered(2), 2)
        assert peer.take() == [numbered(1), numbered(2)]  # in the same step
        assert sender.streaming
    assert not sender.streaming


async def test_the_callers_buffer_is_free_again() -> None:
    """Sent, pending or queued: none of it may point into the slab, which the next burst is read into."""
    sender = Sender(Counters())
    writer, peer = stream(capacity_bytes=30)
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        slab = bytearray(2 * len(numbered(1)))
        for number in (1, 2, 3):
            slab[:] = numbered(number) + numbered(number + 10)
            sender.send(memoryview(slab), 2)
        slab[:] = bytes(len(slab))
        expected = [it for n in (1, 2, 3) for it in (numbered(n), numbered(n + 10))]
        while len(peer.take()) < len(expected):
            await settle()
        assert peer.frames == expected


async def test_counted_as_packets_without_headers() -> None:
    counters = Counters()
    sender = Sender(counters)
    writer, _ = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        sender.send(numbered(1) + numbered(2), 2)
        sender.send_control(control.ping(0))
    assert (counters.tx_packets, counters.tx_bytes) == (2, 2 * 40)


async def test_without_a_stream_frames_wait_for_a_moment(autojump_clock: Clock) -> None:
    counters = Counters()
    sender = Sender(counters)
    sender.send(numbered(1), 1)
    await trio.sleep(MAX_AGE_S * 0.9)
    sender.send(numbered(2) + numbered(3), 2)
    await trio.sleep(MAX_AGE_S * 0.9)
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        assert peer.take() == [numbered(2), numbered(3)]
    assert counters.drops == {DropReason.QUEUE_AGE: 1}
    assert counters.tx_packets == 2


async def test_a_peer_that_stalls_costs_age_and_not_memory(autojump_clock: Clock) -> None:
    counters = Counters()
    sender = Sender(counters)
    writer, peer = stream(capacity_bytes=1000)
    burst = numbered(1, 60_000) * 2
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        for _ in range(200):
            sender.send(burst, 2)
            await trio.sleep(MAX_AGE_S / 100)
            assert sender.tx_queue.depth_bytes <= min(MAX_BYTES, 101 * len(burst))
        await trio.sleep(1)
        sender.tick(trio.current_time(), TICK_S)
        assert sender.tx_queue.depth_bytes == 0
        sender.send(numbered(2), 1)
        while numbered(2) not in peer.take():
            await settle()
        assert peer.frames == [numbered(1, 60_000)] * 2 + [numbered(2)]
    assert counters.tx_packets == 3
    assert counters.drops == {DropReason.QUEUE_AGE: 398}


async def test_a_backlog_goes_out_in_pieces(autojump_clock: Clock) -> None:
    """What is committed can no longer be dropped: so little of it at a time."""
    sender = Sender(Counters())
    writer, peer = stream(capacity_bytes=10)
    frames = [numbered(number, 1000) for number in range(200)]
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        for it in frames:
            sender.send(it, 1)
        committed = len(frames[0])
        peer.connection.limit(0)
        peer.ours.limit(PIECE_BYTES // 2)
        await settle()
        assert sender.tx_queue.depth_bytes >= sum(map(len, frames)) - committed - PIECE_BYTES
        while len(peer.take()) < len(frames):
            await settle()
        assert peer.frames == frames


# ------------------------------------------------------------------ a narrow path

CROWDED = PathState(0.09, 0.04, 2.5e6, 200_000, 0, 0, 0)  # 20 Mbit/s, and a queue of 50 ms
EMPTY = PathState(0.041, 0.04, 2.5e6, 10_000, 0, 0, 0)


async def begin_narrow(sender: Sender, begin: Callable[[BodyWriter], Serving]) -> Peer:
    """A stream that was found to be crowded, as `send` finds it every so many bytes."""
    writer, peer = stream()
    begin(writer)
    await settle()
    peer.ours.path_state = CROWDED
    await trio.sleep(2 * WATCH_S)
    assert sender.stream is not None
    sender.stream.scheduler.watch(trio.current_time())
    return peer


async def test_on_a_narrow_path_frames_wait_in_the_outbox(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    async with serving(sender) as begin:
        peer = await begin_narrow(sender, begin)
        sender.send(numbered(1), 1)
        assert peer.take() == []  # not in the same step
        assert sender.tx_queue
        await settle()
        assert peer.take() == []  # nor while the path is full

        began = trio.current_time()
        peer.ours.path_state = EMPTY
        while not peer.take():
            await peer.connection.wait_readable()
        assert peer.frames == [numbered(1)]
        assert trio.current_time() - began < 0.02


async def test_a_narrow_path_is_fed_in_order_and_in_small_pieces(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    frames = [numbered(number, 1000) for number in range(60)]
    async with serving(sender) as begin:
        peer = await begin_narrow(sender, begin)
        peer.ours.path_state = EMPTY
        before = peer.ours.sends
        for it in frames:
            sender.send(it, 1)
        while len(peer.take()) < len(frames):
            await peer.connection.wait_readable()
        assert peer.frames == frames
        assert peer.ours.sends - before >= 5


# ------------------------------------------------------------------ streams that follow each other


async def test_the_newest_stream_gets_all_frames_and_the_older_one_ends_cleanly() -> None:
    sender = Sender(Counters())
    (first, first_peer), (second, second_peer) = stream(), stream()
    async with serving(sender) as begin:
        older = begin(first)
        await settle()
        sender.send(numbered(1), 1)
        newer = begin(second)
        await settle()
        sender.send(numbered(2), 1)
        await older.ended.wait()
        assert older.error is None
        assert first_peer.take() == [numbered(1)]
        assert first_peer.reader.ended
        assert second_peer.take() == [numbered(2)]
        assert not newer.replaced.is_set()


async def test_the_older_stream_sends_what_it_began_and_no_more() -> None:
    sender = Sender(Counters())
    (first, first_peer), (second, second_peer) = stream(capacity_bytes=10), stream()
    async with serving(sender) as begin:
        older = begin(first)
        await settle()
        sender.send(numbered(1, 200), 1)  # pending within the frame
        sender.send(numbered(2), 1)  # in the outbox
        begin(second)
        await settle()
        assert second_peer.take() == [numbered(2)]
        while not older.ended.is_set():
            first_peer.take()
            await settle()
        assert first_peer.take() == [numbered(1, 200)]
        assert first_peer.reader.ended


async def test_a_stalled_stream_that_is_replaced_is_given_back(autojump_clock: Clock) -> None:
    """What it may take to end is for its own task to bound (FINISH_S): `serve` works until a newer one takes over."""
    sender = Sender(Counters())
    (first, _), (second, second_peer) = stream(capacity_bytes=10), stream()
    async with serving(sender) as begin:
        older = begin(first)
        await settle()
        sender.send(numbered(1), 1)
        assert first.pending
        begin(second)
        await settle()
        sender.send(numbered(2), 1)
        assert second_peer.take() == [numbered(2)]
        with trio.move_on_after(10):
            await older.replaced.wait()
        assert older.replaced.is_set()


async def test_three_at_a_time() -> None:
    sender = Sender(Counters())
    streams = [stream() for _ in range(3)]
    async with serving(sender) as begin:
        runs = [begin(writer) for writer, _ in streams]
        await settle()
        sender.send(numbered(1), 1)
        assert [peer.take() for _, peer in streams].count([numbered(1)]) == 1
        newest = next(peer for _, peer in streams if peer.frames)
        assert [run.ended.is_set() for run in runs].count(True) == 2
        assert not newest.reader.ended


async def test_a_stream_that_ends_by_itself_leaves_the_newer_one_alone() -> None:
    sender = Sender(Counters())
    (first, _), (second, peer) = stream(), stream()
    async with serving(sender) as begin:
        older = begin(first)
        await settle()
        begin(second)
        await settle()
        older.scope.cancel()
        await settle()
        sender.send(numbered(1), 1)
        assert peer.take() == [numbered(1)]


async def test_a_broken_stream_is_its_own_tasks_to_notice() -> None:
    sender = Sender(Counters())
    (first, first_peer), (second, second_peer) = stream(), stream()
    async with serving(sender) as begin:
        broken = begin(first)
        await settle()
        first_peer.connection.close()
        sender.send(numbered(1), 1)  # in the middle of another session's work: raises nothing
        sender.send(numbered(2), 1)
        assert not sender.streaming
        await broken.ended.wait()
        assert broken.error is not None
        assert broken.error.reason == "broken"
        begin(second)
        await settle()
        assert second_peer.take() == [numbered(2)]


async def test_a_stream_that_breaks_while_it_is_pending() -> None:
    sender = Sender(Counters())
    writer, peer = stream(capacity_bytes=10)
    async with serving(sender) as begin:
        broken = begin(writer)
        await settle()
        sender.send(numbered(1), 1)
        peer.connection.close()
        await broken.ended.wait()
        assert broken.error is not None
        assert not sender.streaming
        sender.send(numbered(2), 1)
        assert sender.tx_queue


async def test_a_stream_that_was_closed_under_it() -> None:
    sender = Sender(Counters())
    writer, _ = stream()
    async with serving(sender) as begin:
        broken = begin(writer)
        await settle()
        writer.connection.close()
        sender.send(numbered(1), 1)
        await broken.ended.wait()
        assert broken.error is not None


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize("words", [b"", control.bye("stopping")])
async def test_cancelled_it_ends_between_frames(words: bytes) -> None:
    sender = Sender(Counters())
    writer, peer = stream(capacity_bytes=100)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def run() -> None:
            async with ending_cleanly(writer, lambda: words):
                await sender.serve(writer)

        await settle()
        sender.send(numbered(1, 2000), 1)
        sender.send(numbered(2), 1)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            while not peer.reader.ended:
                peer.take()
                await settle()
    assert peer.take() == [numbered(1, 2000)]
    assert [control.encode(*it) for it in peer.controls] == ([words] if words else [])


async def test_cancelled_it_waits_for_a_stalled_peer_only_for_a_moment(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    writer, _ = stream(capacity_bytes=100)
    async with serving(sender) as begin:
        it = begin(writer)
        await settle()
        sender.send(numbered(1, 2000), 1)
        began = trio.current_time()
        it.scope.cancel()
        await it.ended.wait()
        assert trio.current_time() - began == pytest.approx(GRACE_S)


async def test_cancelled_on_a_broken_stream() -> None:
    sender = Sender(Counters())
    writer, peer = stream()
    async with serving(sender) as begin:
        it = begin(writer)
        await settle()
        peer.connection.close()
        it.scope.cancel()
        await it.ended.wait()
        assert it.error is None


# ------------------------------------------------------------------ keepalive


async def ticking(sender: Sender, seconds: float) -> None:
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        await trio.sleep(TICK_S)
        sender.tick(trio.current_time(), TICK_S)


async def test_a_base_ping_after_55_s_without_a_frame(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        sender.send(numbered(1), 1)
        await ticking(sender, 53)
        assert peer.pings == 0
        await ticking(sender, 4)  # a deployed client gives up after 60 s
        assert peer.pings == 1
        await ticking(sender, 53)
        assert peer.pings == 1
        await ticking(sender, 4)
        assert peer.pings == 2


async def test_never_60_s_without_a_byte_whatever_is_sent_when(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        last_s = trio.current_time()
        seen = 0
        for step in range(2000):
            await trio.sleep(TICK_S)
            if step in (0, 54, 55, 56, 300, 330, 331) or 700 < step < 800:
                sender.send(numbered(step), 1)
            sender.tick(trio.current_time(), TICK_S)
            if (came := len(peer.take()) + peer.pings) > seen:
                seen, last_s = came, trio.current_time()
            assert trio.current_time() - last_s < 58


async def test_no_ping_on_a_stream_that_is_busy(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        for number in range(10):
            await ticking(sender, 50)
            sender.send(numbered(number), 1)
        assert peer.pings == 0


async def test_a_ping_is_no_packet(autojump_clock: Clock) -> None:
    counters = Counters()
    sender = Sender(counters)
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await ticking(sender, 60)
        assert peer.pings == 1
    assert (counters.tx_packets, counters.tx_bytes) == (0, 0)


async def test_without_a_stream_no_ping_waits_for_one(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    await ticking(sender, 300)
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        assert peer.pings == 0


async def test_a_generation_2_ping(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    sender.keepalive = GENERATION_2_KEEPALIVE
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        assert len(peer.take()) == 1  # at once
        await ticking(sender, 60)
        pings = peer.take()
        assert len(pings) == 2
        for ping in pings:
            assert len(ping) == 2 + 12 + 48
            assert ping[:2] == b"\x30\0"
            assert ping[14] == 0x10


def received(peer: Peer) -> bytes:
    """The raw bytes that came since the last time."""
    buffer = memoryview(bytearray(1024))
    return bytes(buffer[: peer.connection.try_receive(buffer) or 0])


async def test_a_base_client_s_download_begins_with_a_ping(autojump_clock: Clock) -> None:
    """Some proxies hold the head of an answer until the first bytes of its body come."""
    sender = Sender(Counters())
    sender.keepalive = BASE_DOWNLOAD_KEEPALIVE
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        assert received(peer) == b"2\r\n\0\0\r\n"
        await ticking(sender, 60)
        assert received(peer) == b"2\r\n\0\0\r\n"


@pytest.mark.parametrize("busy", [False, True])
async def test_extended_pings_come_at_once_and_at_the_keepalive(busy: bool, autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    sender.keepalive = extended_keepalive(10.0)
    writer, peer = stream()
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        assert len(peer.controls) == 1
        for number in range(100):
            await ticking(sender, TICK_S)
            sender.answered()
            if busy:
                sender.send(numbered(number), 1)
        assert 10 <= len(peer.controls) - 1 <= 12
        assert {kind for kind, _ in peer.controls} == {control.PING}


async def test_a_peer_that_does_not_answer_is_dead(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    sender.keepalive = extended_keepalive(10.0)
    writer, _ = stream()
    async with serving(sender) as begin:
        it = begin(writer)
        await ticking(sender, 29)
        assert not it.ended.is_set()
        await ticking(sender, 3)
        assert it.ended.is_set()
        assert it.error is not None
        assert it.error.reason == "silent"
        assert not sender.streaming


async def test_a_shorter_keepalive_finds_nobody_late(autojump_clock: Clock) -> None:
    """A reload sets it while a stream runs whose last ping is older than three of the new ones."""
    sender = Sender(Counters())
    sender.keepalive = extended_keepalive(50.0)
    writer, peer = stream()
    async with serving(sender) as begin:
        it = begin(writer)
        await ticking(sender, 40)
        pings = len(peer.controls)
        sender.set_keepalive(extended_keepalive(2.0))
        await settle()
        assert len(peer.controls) == pings + 1
        await ticking(sender, 5)
        assert not it.ended.is_set()
        await ticking(sender, 3)
        assert it.error is not None
        assert it.error.reason == "silent"


async def test_a_shorter_silence_counts_from_now(autojump_clock: Clock) -> None:

    async def ignored(*_: object) -> None: ...

    connection, _ = memory_pair()
    incoming = Receiver(connection, FrameReader(ChunkedBody()), ignored, ignored, lambda frame: None)
    for allowed_s, until_s in ((150.0, 100), (6.0, 5)):
        for _ in range(until_s):
            await trio.sleep(1)
            incoming.tick(trio.current_time(), allowed_s)
        assert not incoming.was_ended
    await trio.sleep(2)
    incoming.tick(trio.current_time(), 6.0)
    assert incoming.was_ended


async def test_a_newer_stream_has_its_own_time_to_be_answered(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    sender.keepalive = extended_keepalive(10.0)
    (first, _), (second, _) = stream(), stream()
    async with serving(sender) as begin:
        begin(first)
        await ticking(sender, 29)
        newer = begin(second)
        await ticking(sender, 28)
        assert not newer.ended.is_set()
        await ticking(sender, 4)
        assert newer.error is not None


# ------------------------------------------------------------------ control frames


async def test_a_control_frame_overtakes_the_backlog_and_no_more() -> None:
    sender = Sender(Counters())
    writer, peer = stream(capacity_bytes=10)
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        for number in (1, 2, 3):
            sender.send(numbered(number), 1)
        sender.send_control(control.ping(7))
        while not peer.controls:
            await settle()
        assert peer.take() == [numbered(1)]
        while len(peer.take()) < 3:
            await settle()
        assert peer.frames == [numbered(1), numbered(2), numbered(3)]


async def test_control_frames_for_a_stream_that_takes_nothing_are_few() -> None:
    """A peer that sends PINGs and reads no PONG."""
    sender = Sender(Counters())
    writer, peer = stream(capacity_bytes=10)
    async with serving(sender) as begin:
        begin(writer)
        await settle()
        sender.send(numbered(1), 1)
        for clock_ns in range(1000):
            sender.send_control(control.ping(clock_ns))
        peer.ours.limit(1 << 20)
        await settle()
        assert len(peer.controls) == MAX_CONTROLS


async def test_control_frames_are_for_one_stream(autojump_clock: Clock) -> None:
    sender = Sender(Counters())
    sender.send_control(control.ping(1))  # no stream at all
    (first, _), (second, peer) = stream(capacity_bytes=10), stream()
    async with serving(sender) as begin:
        begin(first)
        await settle()
        sender.send(numbered(1), 1)
        sender.send_control(control.ping(2))
        begin(second)
        await settle()
        assert peer.controls == []


# ------------------------------------------------------------------ any order of events

# What may happen: a run of so many frames is sent; the peers read so many bytes; a newer stream comes; the present
# one breaks.
events = st.lists(
    st.tuples(st.just("send"), st.integers(1, 4))
    | st.tuples(st.just("read"), st.integers(1, 300))
    | st.tuples(st.sampled_from(["newer", "settle"]), st.just(0)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(events, st.integers(40, 400))
def test_every_frame_once_and_in_order(happening: Sequence[tuple[str, int]], capacity: int) -> None:
    """Nothing is lost, doubled or reordered within a stream; no frame goes to a stream older than one that was there
    when it was sent; every stream ends between frames."""

    async def main() -> None:
        sender = Sender(Counters())
        peers: list[Peer] = []
        sent: list[tuple[int, bytes]] = []  # the newest stream at that time, the frame
        async with serving(sender) as begin:
            for what, amount in [*happening, ("newer", 0)]:
                if what == "send":
                    frames = [numbered(len(sent) + n) for n in range(amount)]
                    sent += [(len(peers) - 1, it) for it in frames]
                    sender.send(memoryview(bytearray(b"".join(frames))), amount)
                elif what == "read":
                    for peer in peers:
                        peer.take(amount)
                elif what == "newer":
                    writer, peer = stream(capacity)
                    peers.append(peer)
                    begin(writer)
                    await settle()
                else:
                    await settle()
            while sum(len(peer.take()) for peer in peers) < len(sent):
                await settle()
            await settle()
            for peer in peers:
                peer.take()
            await settle()
            for peer in peers[:-1]:
                peer.take()
                assert peer.reader.ended
        assert [it for peer in peers for it in peer.frames] == [it for _, it in sent]
        for number, peer in enumerate(peers):
            assert all(newest <= number for newest, it in sent if it in peer.frames)

    trio.run(main, clock=trio.testing.MockClock())


def test_what_pings_are() -> None:
    assert BASE_KEEPALIVE.frame(5) == BASE_PING
    assert extended_keepalive(10.0).frame(5) == control.ping(5)
