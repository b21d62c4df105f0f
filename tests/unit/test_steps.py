"""Steps in Python below trio's tasks: when one is called, what ends its loan, and that nobody starves or sleeps.

tests/unit/test_plane_differential.py compares what they do with what the tasks do.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.lowlevel
import trio.testing

from tapotun_trio.datapath.plane import VARIABLE, current_plane, current_steps, open_plane, running_plane
from tapotun_trio.datapath.receiver import Receiver
from tapotun_trio.datapath.steps import CannotLendError, Next, StepPlane
from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.log import interface_logger
from tapotun_trio.wire import control
from tapotun_trio.wire.body import ChunkedBody
from tapotun_trio.wire.frames import FrameRange, FrameReader

from ..fakes import HANG_S
from ..packets import frame, ipv4
from ..planes import needs_pump
from .test_plane_differential import EVERYONE_READS, HUB, A, Bytes, Packets, Scenario, chunked, from_host, plain
from .test_plane_differential import World as HubWorld
from .test_plane_hook import Thief, in_world, play_all

FRAME = frame(ipv4("10.10.0.2", "10.10.0.1", b"data"))


@pytest.fixture
async def plane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StepPlane]:
    monkeypatch.setenv(VARIABLE, "python")
    async with open_plane(interface_logger("hub")):
        plane = current_steps()
        assert plane is not None
        assert current_plane() is None
        assert running_plane() == ("python", f"{VARIABLE}=python is set")
        yield plane


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, far = socket.socketpair()
    with ours, far:
        ours.setblocking(False)
        far.setblocking(False)
        yield ours, far


async def test_a_step_is_called_at_once_and_then_for_what_comes(
    plane: StepPlane, pair: tuple[socket.socket, socket.socket]
) -> None:
    """At once: what is in a buffer by then does not make a descriptor readable."""
    ours, far = pair
    calls: list[bytes] = []
    called = trio.Event()

    def step() -> Next:
        called.set()
        try:
            calls.append(ours.recv(100))
        except BlockingIOError:
            calls.append(b"")
        return Next.TASK if calls[-1] == b"end" else Next.READABLE

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.lend, (ours.fileno(),), step)
            await called.wait()
            for piece in (b"a", b"b", b"end"):
                far.send(piece)
                while calls[-1] != piece:
                    await trio.lowlevel.checkpoint()
    assert calls == [b"", b"a", b"b", b"end"]
    assert not plane._is_lent()


async def test_a_step_that_is_never_done_starves_nobody(
    plane: StepPlane, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Neither trio's timers, nor a task that another thread wakes, nor another step."""
    ours, far = pair
    calls = 0

    def endless() -> Next:
        nonlocal calls
        calls += 1
        return Next.AGAIN

    other = trio.Event()

    def once() -> Next:
        if calls < 10:
            return Next.READABLE
        other.set()
        return Next.TASK

    far.send(b"x")
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.lend, (far.fileno(),), endless)
            nursery.start_soon(plane.lend, (ours.fileno(),), once)
            await other.wait()
            await trio.sleep(0.01)
            await trio.to_thread.run_sync(lambda: None)
            assert calls > 10
            nursery.cancel_scope.cancel()
    assert not plane._is_lent()


async def test_trio_does_not_sleep_when_what_woke_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As test_plane_hook has it for the native plane. Without the eventfd this waits for HANG_S in vain."""
    monkeypatch.setenv(VARIABLE, "python")

    async def work(world: HubWorld) -> None:
        await play_all(world, Packets(0, from_host(A, count=3)), *EVERYONE_READS)
        bell, ring = socket.socketpair()
        with bell, ring:
            bell.setblocking(False)
            thief = Thief(bell, lambda: world.tuns[0].send(from_host(A)[0]))
            world.nursery.start_soon(trio.lowlevel.wait_readable, bell)
            await world.settle()
            trio.lowlevel.add_instrument(thief)  # called after the plane's
            try:
                ring.send(b"x")
                with trio.fail_after(HANG_S):
                    await trio.lowlevel.wait_readable(world.peers[0].downs[0])
            finally:
                trio.lowlevel.remove_instrument(thief)
            assert thief.stolen == 1

    await in_world(Scenario((), server=False), work, native=False)


async def test_the_error_of_a_step_is_the_tasks(plane: StepPlane, pair: tuple[socket.socket, socket.socket]) -> None:
    def step() -> Next:
        raise KeyError("a bug")

    with trio.fail_after(HANG_S), pytest.raises(KeyError, match="a bug"):
        await plane.lend((pair[0].fileno(),), step)
    assert plane.works
    assert not plane._is_lent()


async def test_a_refusal_of_the_kernel_leaves_nothing_lent(
    plane: StepPlane, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A regular file cannot be watched (epoll_ctl(2): EPERM). The descriptor before it is given back."""
    fd = os.open(__file__, os.O_RDONLY)
    try:
        with pytest.raises(CannotLendError):
            await plane.lend((pair[0].fileno(), fd), lambda: Next.READABLE)
    finally:
        os.close(fd)
    assert not plane._is_lent()
    plane._epoll.register(pair[0].fileno())  # it is not watched any more: this would fail
    plane._epoll.unregister(pair[0].fileno())


async def test_a_wait_that_fails_ends_all_loans_and_is_logged_once(
    plane: StepPlane,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(errno.EIO, "no epoll")

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            for sock in pair:
                nursery.start_soon(plane.lend, (sock.fileno(),), lambda: Next.READABLE)
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(plane, "_run_steps", fail)
            await trio.sleep(0.001)
    assert running_plane() == ("off", "an internal error, which the log has")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the fast path is off, packets go the slow way: internal error"
    ]


# ------------------------------------------------------------------ a receiver


class World:
    """A receiver whose frames are noted."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.reader = FrameReader(ChunkedBody(), control=True)
        self.by_step, self.by_task = list[bytes](), list[bytes]()
        self.controls: list[int] = []
        self.receiver = Receiver(
            connection, self.reader, self._deliver, self._on_control, lambda frame: None, lambda: self._deliver_now
        )

    def _note(self, frames: list[FrameRange], to: list[bytes]) -> None:
        for start, stop, count in frames:
            to += [bytes(self.reader.view[start : start + (stop - start) // count])] * count

    async def _deliver(self, reader: FrameReader, frames: list[FrameRange]) -> None:
        self._note(frames, self.by_task)

    def _deliver_now(self, reader: FrameReader, frames: list[FrameRange]) -> None:
        self._note(frames, self.by_step)

    async def _on_control(self, kind: int, payload: bytes) -> None:
        self.controls.append(kind)

    async def run(self) -> None:
        with trio.fail_after(HANG_S):
            await self.receiver.run(self.reader.prime(b""))


async def test_frames_are_the_steps_and_control_frames_the_tasks(
    plane: StepPlane, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, far = pair
    world = World(Connection(ours, "peer"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        for _ in range(3):
            far.send(chunked(FRAME * 2 + control.ping(1)))
            await trio.testing.wait_all_tasks_blocked()
        far.send(chunked(FRAME) + b"0\r\n\r\n")
    assert world.by_step == [FRAME] * 7
    assert world.by_task == []
    assert world.controls == [control.PING] * 3


async def test_thousands_of_frames_are_more_than_one_turn(
    plane: StepPlane, pair: tuple[socket.socket, socket.socket]
) -> None:
    """`FrameReader` stops after so many, and the step asks to be called again."""
    ours, far = pair
    different = b"".join(frame(ipv4("10.10.0.2", "10.10.0.1", bytes(n % 7))) for n in range(3000))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    far.send(chunked(different, 1 << 17) + b"0\r\n\r\n")
    world = World(Connection(ours, "peer"))
    await world.run()
    assert b"".join(world.by_step) == different


async def test_a_close_by_another_task_ends_the_loan(
    plane: StepPlane, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Before the number of the descriptor is free: the next one that has it is not watched."""
    world = World(Connection(pair[0].dup(), "peer"))
    caught: list[PeerError] = []

    async def run() -> None:
        try:
            await world.run()
        except PeerError as exc:
            caught.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        assert plane._is_lent()
        world.connection.close()
        assert not plane._is_lent()
    assert [exc.reason for exc in caught] == [EndReason.CLOSED]


@needs_pump
async def test_the_native_plane_gets_a_stream_as_soon_as_it_can_have_it() -> None:
    """A step is for what the native plane cannot have now. It must not keep the stream for good."""

    async def work(world: HubWorld) -> None:
        plane, writer = current_steps(), world.writers[0]
        assert plane is not None
        outlet, writer.outlet = writer.outlet, None
        await play_all(world, Bytes(0, (chunked(control.ping(1)), chunked(plain(A, HUB)))))
        assert plane._steps
        assert world.counters[0].plane_packets == 0
        writer.outlet = outlet
        await play_all(world, Bytes(0, (chunked(plain(A, HUB)),) * 3))
        assert not plane._steps
        assert world.counters[0].plane_packets > 0

    await in_world(Scenario((), server=False), work, native=True)


class Buffering(Connection):
    """Receives everything at once, and gives it out in pieces, as OpenSSL does."""

    buffered = b""

    @property
    def holds_received(self) -> bool:
        return True

    def try_receive(self, into: memoryview) -> int | None:
        if not self.buffered:
            buffer = bytearray(1 << 16)
            received = super().try_receive(memoryview(buffer))
            if not received:
                return received
            self.buffered = bytes(buffer[:received])
        piece, self.buffered = self.buffered[:100], self.buffered[100:]
        into[: len(piece)] = piece
        return len(piece)


async def test_what_waits_in_a_buffer_needs_nothing_more_to_come(
    plane: StepPlane, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Nor, when the loan begins, what was received before it."""
    ours, far = pair
    connection = Buffering(ours, "peer")
    connection.buffered = chunked(FRAME * 40)
    world = World(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        with trio.fail_after(HANG_S):
            while len(world.by_step) < 40:
                await trio.lowlevel.checkpoint()
            far.send(chunked(FRAME * 40))
            while len(world.by_step) < 80:
                await trio.lowlevel.checkpoint()
        far.send(b"0\r\n\r\n")
    assert world.by_step == [FRAME] * 80


@pytest.mark.parametrize("end", ["reset", "cut"])
async def test_ends_are_told_as_what_they_are(plane: StepPlane, end: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    world = World(Connection(ours, "peer"))
    with far:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises(PeerError) as caught:
                    await world.run()
                assert caught.value.reason == (EndReason.BROKEN if end == "reset" else EndReason.CLOSED)

            nursery.start_soon(run)
            far.send(chunked(FRAME)[:-9])
            await trio.testing.wait_all_tasks_blocked()
            if end == "reset":
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
    world.connection.close()
