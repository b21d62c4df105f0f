"""What a task does with a stream while the plane has it, and how the plane gets it again."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Final

import pytest
import trio

from tapotun_trio.datapath import plane as plane_module
from tapotun_trio.datapath import tun_io
from tapotun_trio.datapath.plane import current_plane
from tapotun_trio.datapath.scheduler import SendScheduler
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.datapath.tun_io import SHORTAGE_PAUSE_S
from tapotun_trio.errors import EndReason
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire.frames import encode_echo

from ..fakes import HANG_S
from ..packets import frame, ipv4
from ..planes import needs_pump
from .test_plane_differential import (
    EVERYONE_READS,
    A,
    B,
    Packets,
    Read,
    Reload,
    Scenario,
    World,
    chunked,
    decode,
    from_host,
    plain,
)
from .test_plane_hook import WARM_UP, in_world, plane_of, play_all

pytestmark = needs_pump

# More than the path is looked at after (scheduler.WATCH_BYTES).
MUCH: Final = plain("198.51.100.1", A, 1400, 100)


def is_lent(world: World, number: int = 0) -> bool:
    port = world.peers[number].sender._port
    return port is not None and port.is_lent


def test_nothing_overtakes_what_a_task_has_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python sends while the plane has the socket, finds that the path has to be paced, and queues from then on. The
    plane runs once more before the task of the stream does."""

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP, *EVERYONE_READS)
        peer = world.peers[0]
        assert is_lent(world)
        with monkeypatch.context() as patch:
            patch.setattr(SendScheduler, "watch", lambda scheduler, _: setattr(scheduler, "paced", True))
            peer.sender.send(MUCH, 100)
        first, second = (frame(ipv4(B, A, bytes(79) + bytes((number,)))) for number in (1, 2))
        peer.sender.send(first, 1)
        world.peers[1].up.send(chunked(second))
        await world.finish()
        assert [data[-1] for data in decode(bytes(peer.bodies[0]))[-2:]] == [1, 2]

    trio.run(partial(in_world, Scenario(()), work, native=True))


def test_the_plane_gets_a_stream_again_whose_pacing_has_ended() -> None:
    """However little is sent on it: nothing else would wake the task of the stream."""

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP)
        sender = world.peers[0].sender
        assert sender.stream is not None
        sender.stream.scheduler.paced = True
        sender.port_watch()
        await world.settle()
        assert not is_lent(world)
        sender.tick(trio.current_time() + 10, 1)
        await world.settle()
        assert not sender.stream.scheduler.paced
        assert is_lent(world)

    trio.run(partial(in_world, Scenario(()), work, native=True))


@pytest.mark.parametrize("native", [True, False])
def test_a_connection_that_another_task_has_closed(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next packet finds out, on both paths."""
    if not native:
        monkeypatch.setenv("TAPOTUN_PLANE", "off")

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP)
        peer = world.peers[0]
        assert is_lent(world) == native
        assert peer.sender.stream is not None
        peer.sender.stream.writer.connection.close()
        await world.settle()
        assert peer.serve_ends == ["runs"]
        await play_all(world, Packets(0, from_host(A)), Read(0, 1 << 30))
        assert peer.serve_ends == [EndReason.BROKEN]

    trio.run(partial(in_world, Scenario(()), work, native=native))


@pytest.mark.parametrize("fails", ["dispatch", "learn", "flows"])
def test_no_memory_for_a_burst_costs_that_burst(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the pure path: the reader of the device goes on after a pause."""
    failed = Event()

    def fail_once(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any) -> Any:
            if failed.is_set():
                return real(*args)
            failed.set()
            raise MemoryError

        monkeypatch.setattr(owner, name, call)

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP)
        if fails == "dispatch":
            fail_once(tun_io, "_dispatch")
        elif fails == "flows":
            fail_once(TunnelServer, "flows")
            assert world.server._verdicts.flows is not None
            world.server._verdicts.flows.hand_back()  # for the next loan
        else:
            pump = Learner(plane_of().pump)
            fail_once(pump, "learn")
            assert world.server._verdicts.flows is not None
            world.server._verdicts.flows._plane.pump = pump  # type: ignore[assignment]
        before = world.counters[0].tx_packets
        await play_all(world, Reload(3), Packets(0, from_host(A, count=3)))
        await world.finish()
        assert failed.is_set()
        await trio.sleep(2 * SHORTAGE_PAUSE_S)
        await world.play(Packets(0, from_host(A, count=3)))
        await world.finish()
        assert current_plane() is not None
        assert world.counters[0].tx_packets >= before + 3

    trio.run(partial(in_world, Scenario(()), work, native=True))


@pytest.mark.parametrize("how", ["told", "raised"])
def test_no_memory_for_what_a_full_socket_has_left(how: str) -> None:
    """The rest of a chunk is lost, so the stream ends: nothing may follow half a chunk. The next one is lent again."""

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP, *EVERYONE_READS)
        plane, peer = plane_of(), world.peers[0]
        assert is_lent(world)
        pump, failing, lost = plane.pump, Learner(plane.pump), list[bytes]()

        def detach(number: int) -> bytes:
            rest = pump.detach(number)
            if not rest:
                return rest
            lost.append(rest)
            if how == "raised":
                raise MemoryError
            return b""

        failing.__dict__["detach"] = detach
        failing.__dict__["failure"] = lambda number: errno.ENOMEM if lost else pump.failure(number)
        plane.pump = failing  # type: ignore[assignment]
        with trio.fail_after(HANG_S):  # a burst is in the socket in part; it is taken back as that stays full
            while not lost:
                await play_all(world, Packets(0, from_host(A, 1400, 80)))
                peer.sender.send(plain("198.51.100.1", A, 24), 1)
        plane.pump = pump
        await world.finish()
        assert peer.serve_ends == [EndReason.BROKEN]
        with pytest.raises(AssertionError, match="the stream stops within"):
            decode(bytes(peer.bodies[0]))
        peer.attach()
        await world.finish()
        await play_all(world, Packets(0, from_host(A, count=3)))
        await world.finish()
        assert is_lent(world)
        assert len(decode(bytes(peer.bodies[1]))) >= 3
        assert current_plane() is plane

    trio.run(partial(in_world, Scenario((), small_sockets=True), work, native=True))


@contextmanager
def little_memory(more_bytes: int) -> Iterator[None]:
    """Within the block this process gets that much more memory at the most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("what", ["packets", "control"])
def test_nothing_follows_half_a_chunk_for_whose_rest_there_was_no_memory(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer reads before Python hears of it. In the same turn Python gets a packet of another flow to send there."""
    monkeypatch.setattr(plane_module, "BACKLOG_BYTES", 1 << 30)  # the pump asks for all of it at once
    real = Sender.send

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP, *EVERYONE_READS)
        peer = world.peers[0]
        assert is_lent(world)
        before = len(peer.bodies[0])

        def send(sender: Sender, frames: memoryview, packets: int) -> None:
            if sender is peer.sender:
                peer.read(1 << 30)
                if what == "control":
                    sender.send_control(encode_echo(7))
                    return
            real(sender, frames, packets)

        monkeypatch.setattr(Sender, "send", send)
        with little_memory(1 << 28):
            burst = from_host(A, 1400, 60) + from_host(A, 60, source="203.0.113.9")
            await play_all(world, Packets(0, burst))
        await world.finish()
        assert peer.serve_ends == [EndReason.BROKEN]
        begun = bytes(peer.bodies[0][before:])
        whole = b"".join(frame(data[12:]) for data in burst[:-1])
        assert 0 < len(begun) < len(whole)
        assert (b"%x\r\n" % len(whole) + whole).startswith(begun)

    trio.run(partial(in_world, Scenario((), small_sockets=True), work, native=True))


class Learner:
    """A pump whose methods can be replaced."""

    def __init__(self, pump: Any) -> None:
        self._pump = pump

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pump, name)
