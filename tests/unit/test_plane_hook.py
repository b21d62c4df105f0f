"""The plane's hook into trio: that it never leaves trio asleep, and what happens where it cannot work, or fails.

Whatever fails, the process continues on the pure path, says so once, and has lost nothing but what was in flight.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import ANY

import pytest
import trio
import trio.testing

from tapotun_trio.datapath import plane as plane_module
from tapotun_trio.datapath import steps as steps_module
from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.plane import (
    BY_ADDRESSES,
    VARIABLE,
    Flows,
    Plane,
    PlanePort,
    current_plane,
    open_plane,
    running_plane,
)
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.errors import ConfigError, EndReason
from tapotun_trio.log import interface_logger
from tapotun_trio.text import one_line
from tapotun_trio.wire import control

from ..fakes import HANG_S
from ..planes import needs_pump
from .test_plane_differential import (
    EVERYONE_READS,
    HUB,
    ORDINARY,
    A,
    B,
    Bytes,
    End,
    Packets,
    Scenario,
    Step,
    World,
    chunked,
    decode,
    from_host,
    plain,
)

if plane_module.BUILT:
    from tapotun_trio.datapath import _pump

ROOT: Final = Path(__file__).resolve().parents[2]


def open_descriptors() -> Counter[str]:
    """What this process has open."""
    gc.collect()  # of what tests before this one have left
    gc.collect()  # what only a finalizer of that has kept: a class of a test is a cycle of its own
    found: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{entry}").split(":")[0]] += 1
        except FileNotFoundError:
            continue  # that of listdir
    return found


async def in_world(
    scenario: Scenario, work: Callable[[World], Awaitable[None]], *, native: bool, make: type[World] = World
) -> None:
    """Run ``work`` in a world, with a plane if there can be one, and check whether there is."""
    with ExitStack() as stack:
        async with open_plane(interface_logger("hub")):
            assert (current_plane() is not None) == native, running_plane()
            async with trio.open_nursery() as nursery:
                world = make(scenario, nursery, stack)
                await world.settle()
                await work(world)
                nursery.cancel_scope.cancel()


async def play_all(world: World, *steps: Step) -> None:
    for step in steps:
        await world.play(step)


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """The lines of errors that this program and trio log, without their tracebacks, which would keep the plane."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage() + (", with its traceback" if record.exc_info else ""))
            record.exc_info = None

    handler = Keep(logging.ERROR)
    loggers = [logging.getLogger("tapotun"), logging.getLogger("trio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


# ------------------------------------------------------------------ the hang


class Thief(trio.abc.Instrument):
    """Runs between the plane's wait and trio's: takes away what has made trio's epoll ready."""

    def __init__(self, bell: socket.socket, then: Callable[[], object]) -> None:
        self._bell = bell
        self._then = then
        self.stolen = 0

    def before_io_wait(self, timeout: float) -> None:
        try:
            self._bell.recv(1)
        except BlockingIOError:
            return
        self.stolen += 1
        self._then()


@needs_pump
@pytest.mark.parametrize("rounds", [1, 20])
async def test_trio_does_not_sleep_when_what_woke_it_is_gone(rounds: int) -> None:
    """The one hang of the prototype, forced.

    Trio decides how long to sleep, then calls the hook, and then sleeps for as long as it has decided. The hook returns
    early, because trio's epoll has become ready. But ready is a state, not a message. Before trio looks, it may be
    over: a task waits for room in the device, and the plane has filled it again; another thread has read the socket.
    Then trio's epoll has nothing, and trio sleeps: for seconds, or for ever. During that time the plane does not run,
    so no packet moves, although its own epoll is ready: nobody looks at it.

    So whenever the hook has let time pass, it writes to an eventfd that trio watches: trio's wait then returns at once,
    trio computes its timeout anew, and calls the hook again. Without that line this test waits for HANG_S in vain.
    """

    async def work(world: World) -> None:
        await play_all(world, Packets(0, from_host(A, count=3)), *EVERYONE_READS)
        bell, ring = socket.socketpair()
        frames = from_host(A, count=rounds)
        with bell, ring:
            bell.setblocking(False)
            sent = iter(frames)
            thief = Thief(bell, lambda: world.tuns[0].send(next(sent)))
            world.nursery.start_soon(trio.lowlevel.wait_readable, bell)
            await world.settle()
            trio.lowlevel.add_instrument(thief)  # called after the plane's
            try:
                for _ in range(rounds):
                    ring.send(b"x")
                    with trio.fail_after(HANG_S):
                        await trio.lowlevel.wait_readable(world.peers[0].downs[0])
                    world.peers[0].read(1 << 30)
            finally:
                trio.lowlevel.remove_instrument(thief)
            assert thief.stolen == rounds
            plane = current_plane()
            assert plane is not None
            plane.settle()
            assert world.counters[0].plane_packets >= rounds, "the plane has not moved them"
            assert [data[:12] + data[12:] for data in decode(bytes(world.peers[0].bodies[0]))][-rounds:] == list(frames)

    await in_world(Scenario((), server=False), work, native=True)


@needs_pump
async def test_trios_own_timers_and_tasks_run_beside_the_plane() -> None:
    """A task that sleeps, and one that another thread wakes, while packets move all the time."""

    async def work(world: World) -> None:
        done = []

        async def sleep() -> None:
            await trio.sleep(0.01)
            done.append("slept")

        async def thread() -> None:
            await trio.to_thread.run_sync(lambda: None)
            done.append("thread")

        world.nursery.start_soon(sleep)
        world.nursery.start_soon(thread)
        with trio.fail_after(HANG_S):
            while len(done) < 2:
                await play_all(world, Packets(0, from_host(A, count=10)), *EVERYONE_READS)

    await in_world(Scenario((), server=False), work, native=True)


class Circle(World):
    """A server whose client 0 sends back whatever it gets, as if client 1 sent it: a packet from 1 to 0 goes round for
    ever, and nothing but the plane moves it.

    Attributes:
        entry: what is sent into it goes round.
    """

    def __init__(self, scenario: Scenario, nursery: trio.Nursery, stack: ExitStack) -> None:
        self._ends = socket.socketpair()
        self._pairs = 0
        self.entry = self._ends[0]
        super().__init__(scenario, nursery, stack)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """The server's ends: of the streams from clients 0, 1 and 2, then of those to them."""
        ours, far = super().pair()
        self._pairs += 1
        end = {2: self._ends[1], 4: self._ends[0]}.get(self._pairs)
        if end is None:
            return ours, far
        ours.close()
        end.setblocking(False)
        self._stack.callback(end.close)
        return end, far


@needs_pump
async def test_a_flood_below_trio_starves_nobody() -> None:
    """Packets that never end, always in C, with something ready at each look: timers, threads and signals go on."""
    caught = list[int]()

    async def work(world: World) -> None:
        assert isinstance(world, Circle)
        world.entry.send(chunked(plain(B, A, 1400, 20)))
        counters = world.counters[1]

        async def moved(most: int) -> None:
            """Until the plane has moved so many more."""
            before = counters.plane_packets
            while counters.plane_packets < before + most:  # noqa: ASYNC110 - they tell no event
                await trio.sleep(0.001)

        with ExitStack() as stack, trio.fail_after(HANG_S):
            # If trio is starved, it does not look at its deadlines either.
            guard = threading.Timer(HANG_S, world.entry.shutdown, [socket.SHUT_RDWR])
            stack.callback(guard.cancel)
            guard.start()
            await moved(1000)
            for _ in range(3):
                await trio.sleep(0.01)
                await trio.to_thread.run_sync(lambda: None)
                with trio.open_signal_receiver(signal.SIGURG) as signals:
                    os.kill(os.getpid(), signal.SIGURG)
                    caught.append(await anext(aiter(signals)))
                await moved(100)

    await in_world(Scenario(()), work, native=True, make=Circle)
    assert caught == [signal.SIGURG] * 3


# ------------------------------------------------------------------ where there can be no plane


async def everything_still_works(world: World) -> None:
    """On the pure path: nothing is moved by a plane."""
    await play_all(world, *ORDINARY)
    await world.finish()
    outcome = world.outcome()
    assert sum(map(len, outcome.device.values())) == 5 + 10 * 8 + 2 * 20
    assert sum(map(len, outcome.streams[0].values())) == 15 + 30 + 62
    assert [counters.plane_packets for counters in world.counters] == [0, 0, 0]
    assert current_plane() is None


def run_without(match: str, level: int = logging.WARNING) -> None:
    """``level``: of the one line that says so."""
    before = open_descriptors()

    async def main() -> None:
        with logged() as lines:
            await in_world(Scenario(()), everything_still_works, native=False)
        says_so_once(lines, match, level)
        with logged():
            async with open_plane(interface_logger("hub")):
                assert match in str(running_plane())

    trio.run(main)
    assert open_descriptors() == before


@contextmanager
def logged() -> Iterator[list[tuple[int, str]]]:
    """Level and text of every line that this program logs in the block."""
    lines: list[tuple[int, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.levelno, record.getMessage()))

    handler, logger = Keep(logging.DEBUG), logging.getLogger("tapotun")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.setLevel(before)
    logger.removeHandler(handler)


def says_so_once(lines: list[tuple[int, str]], match: str, level: int) -> None:
    """Nothing else is worth a line, other than at level debug."""
    assert [it for it in lines if match in it[1] or it[0] > logging.DEBUG] == [(level, ANY)], lines
    assert any(match in text for _, text in lines), lines


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plane_module, "_PROC_SELF", tmp_path / "nothing")
    if plane_module.BUILT:
        run_without("epoll was not found")


def test_with_a_proc_that_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As of a sandbox: the descriptors are there, what they watch is not."""
    for name in ("fd", "fdinfo"):
        (tmp_path / name).mkdir()
    (tmp_path / "fd" / "7").symlink_to("anon_inode:[eventpoll]")
    (tmp_path / "fdinfo" / "7").write_text("pos:\t0\nflags:\t02\n")
    (tmp_path / "fdinfo" / "8").write_text("")
    monkeypatch.setattr(plane_module, "_PROC_SELF", tmp_path)
    if plane_module.BUILT:
        run_without("epoll was not found")


class Refused:
    """Stands in for what the kernel refuses."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __call__(self, *_: object, **__: object) -> Any:
        raise self._exc


NO_DESCRIPTORS: Final = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("setting", ["auto", "python"])
@pytest.mark.parametrize("exc", [NO_DESCRIPTORS, MemoryError()], ids=["descriptors", "memory"])
def test_without_an_epoll_of_its_own(monkeypatch: pytest.MonkeyPatch, setting: str, exc: BaseException) -> None:
    monkeypatch.setenv(VARIABLE, setting)
    monkeypatch.setattr(steps_module, "select", SimpleNamespace(epoll=Refused(exc), EPOLLIN=select.EPOLLIN))
    run_without("no memory for it" if isinstance(exc, MemoryError) else "no epoll for it: Too many open files")


@pytest.mark.parametrize("setting", ["auto", "python"])
def test_trios_epoll_cannot_be_watched(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    closed = list[bool]()

    class Full:
        """An epoll whose user has as many watches as the kernel allows (epoll_ctl(2), ENOSPC)."""

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setenv(VARIABLE, setting)
    monkeypatch.setattr(steps_module, "select", SimpleNamespace(epoll=Full, EPOLLIN=select.EPOLLIN))
    run_without("no epoll for it: No space left on device")
    assert closed == [True] * 2


@needs_pump
@pytest.mark.parametrize("exc", [NO_DESCRIPTORS, MemoryError()], ids=["descriptors", "memory"])
def test_without_a_pump(monkeypatch: pytest.MonkeyPatch, exc: BaseException) -> None:
    monkeypatch.setattr(_pump, "Pump", Refused(exc))
    run_without("no memory for it" if isinstance(exc, MemoryError) else "no epoll for it: Too many open files")


def test_without_an_eventfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "eventfd", Refused(NO_DESCRIPTORS))
    run_without("no eventfd for it: Too many open files")


def test_trio_cannot_watch_the_eventfd(monkeypatch: pytest.MonkeyPatch) -> None:
    eventfds, eventfd, wait_readable = list[int](), os.eventfd, trio.lowlevel.wait_readable

    def noted(*args: int) -> int:
        eventfds.append(eventfd(*args))
        return eventfds[-1]

    async def refused(fd: int) -> None:
        if fd == eventfds[-1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await wait_readable(fd)

    monkeypatch.setattr(os, "eventfd", noted)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", refused)
    run_without("epoll was not found")


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    run_without(f"{VARIABLE}=off", logging.DEBUG)


@needs_pump
@pytest.mark.parametrize("value", ["of", "OFF", "auto ", "0", "x" * 10_000, "a\nb"])
def test_a_setting_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A typing error must not leave the operator with a plane that was to be off."""
    monkeypatch.setenv(VARIABLE, value)

    async def main() -> None:
        async with open_plane(interface_logger("hub")):
            raise AssertionError

    wrong = re.escape(f'the environment variable TAPOTUN_PLANE is "{one_line(value[:5])}')
    with pytest.raises(ConfigError, match=f"^{wrong}.*: set it to auto, off or python, or unset it$") as caught:
        trio.run(main)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", ["", "auto"])
def test_a_setting_that_changes_nothing(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)

    async def main() -> None:
        async with open_plane(interface_logger("hub")):
            assert running_plane()[0] == ("native" if plane_module.BUILT else "python")
        async with open_plane(interface_logger("hub"), wanted=False):
            assert running_plane() == ("off", 'the config says "plane": "off"')

    trio.run(main)


def test_built_for_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pump, "ABI", plane_module.ABI + 1)
    run_without("another version")


@pytest.mark.parametrize("how", ["missing", "halted", "broken"])
def test_the_module_is_missing(how: str, tmp_path: Path) -> None:
    """In a process of its own, where importing it fails: it is not there, which is ordinary on other machines than
    those that the packages are for; or it is no shared object, which is not."""
    text, level = ("cannot be loaded: ", 30) if how == "broken" else ("no native module for this machine", 20)
    program = f"""
import sys
if {how!r} == "halted":
    sys.modules["tapotun_trio.datapath._pump"] = None
else:
    import importlib.machinery, importlib.util
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "tapotun_trio.datapath._pump":
                if {how!r} == "missing":
                    raise ModuleNotFoundError("No module named " + repr(name), name=name)
                loader = importlib.machinery.ExtensionFileLoader(name, {str(tmp_path / "_pump.abi3.so")!r})
                return importlib.util.spec_from_loader(name, loader)
    sys.meta_path.insert(0, Finder)
from tests.unit import test_plane_hook
assert not test_plane_hook.plane_module.BUILT
test_plane_hook.run_without({text!r}, {level})
"""
    (tmp_path / "_pump.abi3.so").write_bytes(b"\x7fELF, but no more than that")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=4 * HANG_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_pump
def test_a_guest_of_another_loop() -> None:
    """Trio's wait is in a thread then, and the other loop must not wait for packets."""
    before = open_descriptors()
    calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    outcomes: list[Any] = []

    async def main() -> None:
        with logged() as lines:
            async with open_plane(interface_logger("hub")):
                assert "another event loop" in str(running_plane())
        says_so_once(lines, "another event loop", logging.DEBUG)
        await in_world(Scenario(()), everything_still_works, native=False)

    trio.lowlevel.start_guest_run(main, run_sync_soon_threadsafe=calls.put, done_callback=outcomes.append)
    while not outcomes:
        calls.get(timeout=HANG_S)()
    outcomes[0].unwrap()
    assert open_descriptors() == before


# ------------------------------------------------------------------ it fails while it works


class Bug(Exception):
    """Something that nobody expects."""


class Abrupt(BaseException):
    """The same, and not even an Exception."""


FAILURES: Final = [Bug, OSError, Abrupt, KeyboardInterrupt, SystemExit]


class Wrapped:
    """A pump whose methods can be replaced."""

    def __init__(self, pump: Any) -> None:
        self._pump = pump

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pump, name)


class FailingPump:
    """A pump of which one method fails: once, or from now on."""

    def __init__(self, pump: Any, name: str, exc: BaseException, *, once: bool) -> None:
        self._pump = pump
        self._name = name
        self._exc: BaseException | None = exc
        self._once = once

    def __getattr__(self, name: str) -> Any:
        if name != self._name or self._exc is None:
            return getattr(self._pump, name)
        return self._fail

    def _fail(self, *_: object) -> object:
        exc, self._exc = self._exc, None if self._once else self._exc
        assert exc is not None
        raise type(exc)(*exc.args)  # a new one each time: its traceback has this frame, and so this object


def plane_of() -> Plane:
    plane = current_plane()
    assert plane is not None
    return plane


# The first piece may come before the plane has the socket; of the second it learns where it goes.
WARM_UP: Final = (
    Bytes(0, (chunked(plain(A, HUB, 100, 3)),) * 3),
    Bytes(1, (chunked(plain(B, A, 100, 3)),) * 3),
    Packets(0, from_host(A, count=3)),
    Packets(0, from_host(A, count=3)),
)
AFTERWARDS: Final = (
    Bytes(0, (chunked(plain(A, "198.51.100.1", 100, 5)),)),  # an unknown flow: its frames are Python's
    Bytes(0, (chunked(plain(A, HUB, 100, 5)),)),
    Bytes(1, (chunked(plain(B, A, 100, 5)),)),
    Packets(0, from_host(A, count=5)),
    Bytes(0, (chunked(control.ping(1)),)),
    End(1, reset=False),
)
IN_THE_DEVICE, ON_THE_STREAM = 9 + 5 + 5, 9 + 6 + 5 + 5


def check_that_it_went_on(world: World, errors: list[str], *, lost: int = 0) -> None:
    outcome = world.outcome()
    assert current_plane() is None
    assert "internal error" in str(running_plane())
    assert sum(map(len, outcome.device.values())) >= IN_THE_DEVICE - lost
    assert sum(map(len, outcome.streams[0].values())) >= ON_THE_STREAM - lost
    # One PING was answered, and one stream has ended without its last chunk.
    assert outcome.controls[0][-1][0] == control.PING
    assert outcome.ends == ["runs", EndReason.CLOSED, "runs"]
    assert errors == ["the fast path is off, packets go the slow way: internal error, with its traceback"]


def fail(errors: list[str], sabotage: Callable[[World], None], *, lost: int = 0) -> None:
    """Play on after ``sabotage``, which makes the plane fail at its next turns. ``lost``: frames in flight."""
    before = open_descriptors()

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP)
        assert sum(counters.plane_packets for counters in world.counters) >= 9
        sabotage(world)
        await play_all(world, *AFTERWARDS)
        await world.finish()
        check_that_it_went_on(world, errors, lost=lost)

    trio.run(partial(in_world, Scenario(()), work, native=True))
    assert open_descriptors() == before


@needs_pump
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("method", ["wait", "counts"])
@pytest.mark.parametrize("kind", FAILURES)
def test_the_pump_fails(kind: type[BaseException], method: str, once: bool, errors: list[str]) -> None:
    def sabotage(world: World) -> None:
        plane = plane_of()
        plane.pump = FailingPump(plane.pump, method, kind(), once=once)  # type: ignore[assignment]

    fail(errors, sabotage)


@needs_pump
@pytest.mark.parametrize("kind", FAILURES)
def test_what_a_port_tells_its_sender_fails(
    kind: type[BaseException], errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event of one port; frames of others that came in the same turn are not lost."""

    def sabotage(world: World) -> None:
        def fail(*_: object) -> None:
            raise kind

        plane = plane_of()
        monkeypatch.setattr(PlanePort, "handle", fail)
        plane.pump = Adding(plane.pump, world)  # type: ignore[assignment]

    fail(errors, sabotage)


class Adding:
    """A pump that once tells of the port of client a, before it tells of frames."""

    def __init__(self, pump: Any, world: World) -> None:
        self._pump = pump
        self._world = world
        self._done = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pump, name)

    def wait(self, deadline_ns: int) -> tuple[list[tuple[int, int, object]], int]:
        events, flags = self._pump.wait(deadline_ns)
        port = self._world.peers[0].sender._port
        if not self._done and port is not None and any(what == _pump.FRAMES for what, *_ in events):
            self._done = True
            events.insert(0, (_pump.WATCH, port.number, None))
        return events, flags


@needs_pump
def test_all_loans_end_though_one_cannot_be_handed_back(errors: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotage(world: World) -> None:
        real, plane = Sender.port_handed_back, plane_of()

        def hand_back(sender: Sender) -> None:
            real(sender)
            raise Bug("another one")

        monkeypatch.setattr(Sender, "port_handed_back", hand_back)
        plane.pump = FailingPump(plane.pump, "wait", Bug("x"), once=True)  # type: ignore[assignment]

    fail(errors, sabotage)


# ------------------------------------------------------------------ there is no memory for it


@contextmanager
def warnings() -> Iterator[list[str]]:
    """The lines of warnings and errors that this program logs in the block."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            record.exc_info = None

    handler, logger = Keep(logging.WARNING), logging.getLogger("tapotun")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def short(sabotage: Callable[[World], Callable[[], None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Play on after ``sabotage``, which returns what ends it: first slowly, and then the plane works again."""
    before = open_descriptors()
    monkeypatch.setattr(steps_module, "REST_S", 0.2)

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP)
        plane = plane_of()
        mend = sabotage(world)
        await play_all(world, *AFTERWARDS[:-1])
        mend()
        await trio.sleep(2 * steps_module.REST_S)
        for peer in world.peers:
            peer.sender.tick(trio.current_time(), 1)
        await world.settle()
        moved = world.counters[0].plane_packets
        await play_all(world, *WARM_UP[:1], *WARM_UP[2:], *AFTERWARDS[-1:])
        await world.finish()
        outcome = world.outcome()
        assert plane_of() is plane
        assert world.counters[0].plane_packets >= moved + 9
        assert outcome.ends == ["runs", EndReason.CLOSED, "runs"]
        assert not any(world.device_drops.values())
        assert sum(map(len, outcome.device.values())) == IN_THE_DEVICE + 9
        assert sum(len(it) for flow, it in outcome.streams[0].items() if flow != b"other") == ON_THE_STREAM + 6

    with warnings() as lines:
        trio.run(partial(in_world, Scenario(()), work, native=True))
    assert len(lines) == 1
    assert lines[0].startswith("packets go the slow way for a moment: Cannot allocate memory; raise MemoryMax=")
    assert open_descriptors() == before


@needs_pump
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("method", ["wait", "counts"])
def test_the_pump_finds_no_memory(method: str, once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tunnel goes on, and so does the plane when there is some: a shortage is no bug."""

    def sabotage(world: World) -> Callable[[], None]:
        plane = plane_of()
        pump = plane.pump
        plane.pump = FailingPump(pump, method, MemoryError(), once=once)  # type: ignore[assignment]
        return lambda: setattr(plane, "pump", pump)

    short(sabotage, monkeypatch)


@needs_pump
def test_the_pump_tells_that_an_event_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotage(world: World) -> Callable[[], None]:
        plane = plane_of()
        pump = plane.pump

        class Short(Wrapped):
            def wait(self, deadline_ns: int) -> tuple[list[tuple[int, int, object]], int]:
                events, flags = pump.wait(deadline_ns)
                return events, flags | _pump.SHORT

        plane.pump = Short(pump)  # type: ignore[assignment]
        return lambda: setattr(plane, "pump", pump)

    short(sabotage, monkeypatch)


@needs_pump
def test_there_is_no_memory_to_end_a_loan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is tried again at the next wait."""

    def sabotage(world: World) -> Callable[[], None]:
        plane, failed = plane_of(), list[int]()
        real = Plane._hand_back_all

        def hand_back_all(self: Plane) -> list[BaseException]:
            failed.append(1)
            if len(failed) < 3:
                raise MemoryError
            return real(self)

        monkeypatch.setattr(Plane, "_hand_back_all", hand_back_all)
        plane.pump = FailingPump(plane.pump, "wait", MemoryError(), once=True)  # type: ignore[assignment]
        return lambda: None

    short(sabotage, monkeypatch)


@needs_pump
@pytest.mark.parametrize("where", ["reader", "inlet", "attach"])
def test_there_is_no_memory_for_a_loan(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the pure path works, and it is tried again."""
    before = open_descriptors()
    monkeypatch.setattr(steps_module, "REST_S", 0.2)

    async def work(world: World) -> None:
        plane = plane_of()
        pump = plane.pump
        plane.pump = FailingPump(pump, where, MemoryError(), once=False)  # type: ignore[assignment]
        plane._hand_back_all()
        await play_all(world, *WARM_UP)
        plane.pump = pump
        for peer in world.peers:
            peer.sender.tick(trio.current_time(), 1)
        await play_all(world, *WARM_UP)
        moved = [(counters.rx_packets, counters.tx_packets, counters.plane_packets) for counters in world.counters]
        await play_all(world, *WARM_UP)
        now = [(counters.rx_packets, counters.tx_packets, counters.plane_packets) for counters in world.counters]
        assert [it[2] - before[2] for it, before in zip(now, moved, strict=True)] == [9 + 6 + 9, 9, 0]
        await world.finish()
        assert sum(map(len, world.outcome().device.values())) == 3 * 9

    with warnings() as lines:
        trio.run(partial(in_world, Scenario(()), work, native=True))
    assert lines == []
    assert open_descriptors() == before


@needs_pump
def test_a_bug_at_the_frames_of_one_task_is_raised_by_that_task(errors: list[str]) -> None:
    """As on the pure path. The plane works on."""

    async def work(world: World) -> None:
        await play_all(world, *WARM_UP)
        world.server.sessions[0].forward = None  # type: ignore[assignment, method-assign]
        await world.play(Bytes(0, (chunked(plain(A, "198.51.100.1", 100, 2)),)))

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(partial(in_world, Scenario(()), work, native=True))
    assert caught.group_contains(TypeError)
    assert errors == []


# ------------------------------------------------------------------ its end


@needs_pump
def test_what_outlives_it_keeps_no_descriptor_open() -> None:
    """A session's port and its verdicts, and a device's outlet, are freed when their owners are."""
    before = open_descriptors()

    async def main() -> tuple[Plane, PlanePort, Flows, int]:
        async with open_plane(interface_logger("hub")):
            plane = plane_of()
            return plane, PlanePort(plane, Counters()), Flows(plane, BY_ADDRESSES, Counter()), plane.open_outlet(0)

    plane, port, flows, outlet = trio.run(main)
    assert open_descriptors() == before
    assert port.take_back() == (b"", None)
    assert port.waiting_bytes == 0
    flows.hand_back()
    plane.set_busy(outlet, busy=True)
    plane.close_outlet(outlet)
    plane.settle()


@needs_pump
def test_nothing_is_left_of_it() -> None:
    """No descriptor, no instrument; also if the block fails."""
    before = open_descriptors()

    async def main() -> None:
        async with open_plane(interface_logger("hub")):
            plane = plane_of()
        assert current_plane() is None
        assert not plane.works
        assert not plane._loans
        with pytest.raises(ExceptionGroup):
            async with open_plane(interface_logger("hub")):
                raise Bug("x")
        with trio.move_on_after(0.01):
            async with open_plane(interface_logger("hub")):
                await trio.sleep_forever()
        calls = []

        class Count(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                calls.append(timeout)

        async with open_plane(interface_logger("hub")):
            plane_of().wait = lambda timeout_s: calls.append(-1.0)  # type: ignore[method-assign]
            await trio.sleep(0.001)
        assert -1.0 in calls
        calls.clear()
        await trio.sleep(0.001)
        assert calls == [], "the hook is still called"

    trio.run(main)
    assert open_descriptors() == before
