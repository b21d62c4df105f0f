"""The plane: moves packets below trio's tasks, in C, while everything is ordinary.

To wake a trio task costs as much CPU time as the C code needs for several super-packets. So the plane waits in trio's
place: trio calls `_Hook.before_io_wait` right before it would wait for I/O, and there the plane waits on an epoll of
its own (`_pump.c`), which holds the queues of the TUN devices, the sockets of the streams, *and trio's own epoll*.
Packets are moved right there. When trio's epoll is ready, a task has become runnable, or a deadline is due, the plane
returns, and trio runs its tasks as ever. docs/performance-notes.md#the-plane has the measurements.

Who owns a descriptor: the object that has opened it, a `Connection` or a `TunDevice`, at any moment. A task *lends* one
side of it to the plane for the duration of a block, in which the task does nothing but wait:

- `PlanePort.lent`: the sending task of a session lends the sending side of its stream's socket.
- `Plane.receive`: the receiving task of a stream lends the receiving side of its socket, together with the receive
  buffer and the state of its decoder.
- `Plane.read`: the task that reads the device lends the reading side of the device's queues.

When the block is left, for whatever reason, the task has everything back: the bytes that the socket has not taken, the
state of the decoder, the counters. Whatever is out of the ordinary ends the block: an end, an error, a control frame,
malformed framing, a socket that stays full, a path that has to be paced, a change of the config, a `close`.

What C does not do is lent to `steps` instead: there Python does it, still below trio's tasks. That is also all that
there is where the native module is missing.

Some frames need Python for a moment only: those of an unknown flow, and those that the device did not take. They are
passed to a function of the lender, still within the wait, and the block continues.

What happens to a packet is the same with the plane and without it (tests/unit/test_plane_differential.py). Everything
here is to be called in trio's thread, and nothing but `Plane.read` and `Plane.receive` is a checkpoint.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from types import FrameType
from typing import Final, Literal, Protocol, TypeAlias

import trio

from ..errors import ConfigError
from ..host.net.sockets import TLS_RECORDS_WANTED, Connection
from ..log import Log
from ..text import one_line, shorten
from ..wire.frames import FrameRange, FrameReader
from .counters import Counters, DropReason
from .rules import ALL_ALIKE as ALL_ALIKE
from .rules import ALL_FRAMES as ALL_FRAMES
from .rules import BY_ADDRESSES as BY_ADDRESSES
from .rules import BY_MACS as BY_MACS
from .rules import BY_MACS_GUARDED as BY_MACS_GUARDED
from .rules import Rule
from .steps import CannotLendError, Lent, Loan, StepPlane

_REASON_CHARS: Final = 200  # of the loader, in a line for people


def _fault_of(exc: ImportError) -> str | None:
    """Why the module that is there cannot be loaded. None: there is none, which is ordinary."""
    # The loader names it without its package. Where there is no file, this is a ModuleNotFoundError, or the one of
    # `from . import`, which names the package.
    is_there = (exc.name or "").endswith("_pump") and not isinstance(exc, ModuleNotFoundError)
    return one_line(shorten(str(exc), _REASON_CHARS)) if is_there else None


try:
    from . import _pump
except ImportError as exc:
    BUILT = False
    _FAULT = _fault_of(exc)
else:
    BUILT = True
    _FAULT = None

ABI: Final = 4
VARIABLE: Final = "TAPOTUN_PLANE"
_SETTINGS: Final = ("auto", "off", "python")
_OFF: Final = f"{VARIABLE}=off is set"
_SETTING_CHARS: Final = 40  # of a wrong one, in the error
# How much the plane reads from a device at once. Measured on Zen 4, relay and tunnel on cubic, four rounds each, CPU
# per byte of the relay: 56 KB 1.38 to 1.45, 120 KB 1.07 to 1.23, 184 KB 1.08 to 1.19, 248 KB 1.06 to 1.11.
# Less where the frames are for several peers: a burst has to find room behind what already waits for a full socket.
BURST_BYTES: Final = 248 * 1024
SHARED_BURST_BYTES: Final = 120 * 1024
SLAB_BYTES: Final = 320 * 1024
# How much may wait in a port whose socket is full, while nothing has to be paced. To change hands at each full socket
# costs more than to copy this.
BACKLOG_BYTES: Final = 256 * 1024
_PROC_SELF: Final = Path("/proc/self")

# As numbered in the pump. It drops frames that it has no memory to show Python by itself.
_DROPS: Final = (
    DropReason.BAD_SOURCE,
    DropReason.LOOP,
    DropReason.NO_ROUTE,
    DropReason.LINK_LOCAL,
    DropReason.NO_MEMORY,
    DropReason.BAD_MAC,
    DropReason.RESERVED_MAC,
    DropReason.ISOLATED,
    DropReason.SAME_SIDE,
    DropReason.ARP_GUARD,
)

# Takes frames that need Python, or everything. May raise PeerError and HostError.
DeliverNow: TypeAlias = Callable[[FrameReader, list[FrameRange]], None]
PlaneKind: TypeAlias = Literal["native", "python", "off"]
# A verdict: send to this port, write to the device, or drop for this reason. None: nothing that could be kept.
Verdict: TypeAlias = "PlanePort | Literal[True] | DropReason | None"
# What was decided for the frame at this offset of the buffer.
JudgeFrame: TypeAlias = Callable[[memoryview, int], Verdict]

# The plane of a trio run, and why it is not another: not one with a pump, or none at all.
_running: Final = trio.lowlevel.RunVar["tuple[StepPlane | None, str]"]("plane", default=(None, "nobody has started it"))


def current_plane() -> Plane | None:
    """The native plane of this trio run, if it works."""
    plane = current_steps()
    return plane if isinstance(plane, Plane) else None


def current_steps() -> StepPlane | None:
    """The plane of this trio run, native or not, if it works."""
    plane, _ = _running.get()
    return plane if plane is not None and plane.works else None


def running_plane() -> tuple[PlaneKind, str | None]:
    """Which plane runs, and for people, why it is no better one."""
    plane, why = _running.get()
    if plane is None:
        return "off", why
    if not plane.works:
        return "off", "an internal error, which the log has"
    return ("native", None) if isinstance(plane, Plane) else ("python", why)


class Borrower(Lent, Protocol):
    """What the plane has borrowed a descriptor from."""

    def handle(self, what: int, detail: object) -> None:
        """React to an event of the pump. May raise only bugs."""

    def count(self, packets: int, packets_bytes: int, arrivals: int) -> None: ...

    @property
    def drops(self) -> Counter[str]: ...


class Plane(StepPlane):
    """The plane of one trio run, with a pump. `open_plane` makes it."""

    def __init__(self, trio_fd: int, wake_fd: int, log: Log) -> None:
        super().__init__(trio_fd, wake_fd, log)
        try:
            self.pump = _pump.Pump(self._epoll.fileno())
        except BaseException:
            self._epoll.close()
            raise
        self._loans: dict[int, Borrower] = {}

    def close(self) -> None:
        """As `StepPlane.close`. Ports, `Flows` and outlets may outlive it: the pump has no descriptor any more."""
        try:
            super().close()
        finally:
            self.pump.close()

    # -- the wait

    def _is_lent(self) -> bool:
        return bool(self._loans) or super()._is_lent()

    def _move(self, timeout_s: float) -> None:
        super()._move(timeout_s)
        self.settle()

    def _turn(self, deadline_ns: int) -> bool:
        # Trio's epoll is in that of the steps, and that is what the pump watches.
        events, flags = self.pump.wait(0 if self._again else deadline_ns)
        self._handle(events)
        if flags & _pump.SHORT:
            self._rest()
            return True
        return bool(flags) and self._run_steps(0)

    def _handle(self, events: list[tuple[int, int, object]]) -> None:
        """Pass events on. If that fails for one of them, the others may still have frames."""
        failure: BaseException | None = None
        for what, ident, detail in events:
            loan = self._loans.get(ident)
            try:
                if loan is not None:
                    loan.handle(what, detail)
            except BaseException as exc:  # noqa: BLE001 - raised below
                if failure is None or isinstance(failure, MemoryError):  # which is no bug, and must not hide one
                    failure = exc
        if failure is not None:
            raise failure

    def settle(self) -> None:
        """Add what was counted in C to the counters of its owners. Never raises."""
        try:
            self._settle()
        except MemoryError:
            self._short = True  # told at the next wait; the pump still has the counts
        except BaseException as exc:  # noqa: BLE001 - logged; the caller may be ending a loan
            self._fail(exc)

    def _settle(self) -> None:
        for ident, packets, packets_bytes, arrivals, drops in self.pump.counts():
            loan = self._loans.get(ident)
            if loan is None:
                continue
            loan.count(packets, packets_bytes, arrivals)
            if drops is not None:
                for reason, number in zip(_DROPS, drops, strict=False):
                    if number:
                        loan.drops[reason] += number

    def _all_lent(self) -> Iterable[Lent]:
        return [*self._loans.values(), *super()._all_lent()]

    # -- loans

    @contextmanager
    def _lent(self, ident: int, borrower: Borrower, *ends: list[Callable[[], None]]) -> Iterator[None]:
        """``ends``: lists of functions; who calls them ends the loan."""
        hand_back = borrower.hand_back  # made once: there may be no memory for another at the end
        self.add(ident, borrower)
        added = 0
        try:
            for end in ends:
                end.append(hand_back)
                added += 1
            yield
        finally:
            for end in ends[:added]:
                end.remove(hand_back)
            self.remove(ident)

    def add(self, ident: int, borrower: Borrower) -> None:
        """From now on ``borrower`` gets the events of this object of the pump, and its counts."""
        self._loans[ident] = borrower

    def remove(self, ident: int) -> None:
        """Undo `add`, after the last counts."""
        self.settle()
        self._loans.pop(ident, None)

    async def read(
        self,
        queues: tuple[int, ...],
        flows: Flows,
        slab: mmap,
        dispatch: Callable[[list[FrameRange]], bool],
        sole: PlanePort | None,
    ) -> bool:
        """Lend the reading side of a device until something needs the caller. A checkpoint, cancel-safe.

        Args:
            queues: the descriptors.
            slab: memory of SLAB_BYTES for the bursts.
            dispatch: takes the frames of ``slab`` that need Python. Returns whether the loan continues.
            sole: the port that takes everything. While its socket is full, the device is not read.

        Returns false if reading the device failed: the caller is to try it, and will get the error. Raises what
        ``dispatch`` raises, and CannotLendError.
        """
        self.check_lends()
        number, burst_bytes = (0, SHARED_BURST_BYTES) if sole is None else (sole.number, BURST_BYTES)
        with _lending():
            ident = self.pump.reader(queues, flows.table, slab, burst_bytes, number)
        try:
            loan = _ReadLoan(self.pump, ident, dispatch, flows)
            with self._lent(ident, loan, flows.borrowers):
                await loan.ended.wait()
        finally:
            self.pump.free(ident)
        loan.check()
        return not loan.failed

    async def receive(
        self, connection: Connection, reader: FrameReader, lane: Lane, arrived: Callable[[int], None]
    ) -> bool:
        """Lend the receiving side of a connection until something needs the caller. A checkpoint, cancel-safe.

        Args:
            reader: gets its state back at the end; `FrameReader.pending` says whether there is something to decode.
            lane: where the frames go.
            arrived: called with the number of receives.

        Returns whether the connection has ended. Raises PeerError if it broke, what ``lane.deliver`` raises, and
        CannotLendError.
        """
        self.check_lends()
        records = connection.lend_receiving()
        with _lending():
            ident = self.pump.inlet(
                connection.fileno(), lane.outlet, lane.flows.table, *reader.lend(), *(records or ())
            )
        try:
            loan = _ReceiveLoan(self.pump, ident, connection, reader, lane, arrived)
            with self._lent(ident, loan, lane.flows.borrowers, connection.borrowers):
                await loan.ended.wait()
        finally:
            try:  # if there is no memory for the state, the MemoryError ends the stream
                *frames, raw_start, raw_stop, other = self.pump.state(ident)
                reader.take_back(*frames)
                connection.take_back_receiving(raw_start, raw_stop, other=other)
            finally:
                self.pump.free(ident)
        loan.check()
        return loan.at_end

    def open_outlet(self, fd: int) -> int:
        """The number of a device's queue, to write to. Give it back to `close_outlet` before the queue is closed."""
        return self.pump.outlet(fd)

    def close_outlet(self, number: int) -> None:
        self.pump.free(number)

    def set_busy(self, number: int, *, busy: bool) -> None:
        """Whether frames wait in Python for this queue, so that all other frames have to wait behind them."""
        self.pump.busy(number, busy)


@contextmanager
def _lending() -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError) as exc:
        raise CannotLendError(str(exc)) from exc


class _Loan(Loan):
    """A loan of something that the pump works for."""

    drops: Counter[str]

    def __init__(self, pump: _pump.Pump, ident: int) -> None:
        super().__init__()
        self._pump = pump
        self._ident = ident

    def hand_back(self) -> None:
        self._pump.halt(self._ident)
        super().hand_back()


class _ReadLoan(_Loan):
    def __init__(
        self, pump: _pump.Pump, ident: int, dispatch: Callable[[list[FrameRange]], bool], flows: Flows
    ) -> None:
        super().__init__(pump, ident)
        self.drops = flows.drops
        self.failed = False
        self._dispatch = dispatch

    def handle(self, what: int, detail: object) -> None:
        if what == _pump.FRAMES:
            try:
                if self._dispatch(detail):  # type: ignore[arg-type]
                    return
            except BaseException as exc:  # noqa: BLE001 - raised by the task
                self.fail(exc)
        else:
            self.failed = True
        self.hand_back()

    def count(self, packets: int, packets_bytes: int, arrivals: int) -> None:
        """A device has no counters but its drops: the ports count."""


class _ReceiveLoan(_Loan):
    def __init__(
        self,
        pump: _pump.Pump,
        ident: int,
        connection: Connection,
        reader: FrameReader,
        lane: Lane,
        arrived: Callable[[int], None],
    ) -> None:
        super().__init__(pump, ident)
        self.drops = lane.counters.drops
        self.at_end = False
        self._connection = connection
        self._reader = reader
        self._lane = lane
        self._arrived = arrived

    def handle(self, what: int, detail: object) -> None:
        if what == _pump.FRAMES:
            self._deliver(detail)  # type: ignore[arg-type]
            return
        if what == _pump.FAILED:
            assert isinstance(detail, int)
            self.fail(self._connection.failure(OSError(detail, os.strerror(detail))))
        self.at_end = what == _pump.ENDED
        self.hand_back()

    def _deliver(self, frames: list[FrameRange]) -> None:
        lane = self._lane
        if self.error is not None:
            return  # behind a frame that ended the stream
        try:
            lane.deliver(self._reader, frames)
        except BaseException as exc:  # noqa: BLE001 - raised by the task
            self.fail(exc)
            return
        lane.flows.learn(self._reader.view, frames, lane.judge)

    def count(self, packets: int, packets_bytes: int, arrivals: int) -> None:
        counters = self._lane.counters
        counters.rx_packets += packets
        counters.plane_packets += packets
        counters.rx_bytes += packets_bytes
        if arrivals:
            self._arrived(arrivals)


@dataclass(frozen=True, slots=True)
class Lane:
    """Where the frames of a stream go.

    Attributes:
        flows: the verdicts on them.
        outlet: the number of the device's queue that they are written to.
        deliver: takes frames that need Python. May raise PeerError and HostError.
        judge: what ``deliver`` has decided for a frame.
        counters: where to count.
    """

    flows: Flows
    outlet: int
    deliver: DeliverNow
    judge: JudgeFrame
    counters: Counters


class PlanePort:
    """Where the plane sends the frames for one peer: the sending half of its session, whatever its stream is.

    Attributes:
        number: names it in verdicts.
    """

    __slots__ = ("__weakref__", "_connection", "_counters", "_end", "_lender", "_plane", "number")

    def __init__(self, plane: Plane, counters: Counters) -> None:
        """``counters``: where to count what is sent."""
        self.number = plane.pump.port()
        self._plane = plane
        self._counters = counters
        self._connection: Connection | None = None
        # While it is lent, so that there is no reference cycle otherwise. `_end` is this port's among the borrowers of
        # the connection; it is made once, as there may be no memory for another at the end.
        self._lender: PortLender | None = None
        self._end: Callable[[], None] | None = None
        weakref.finalize(self, _free, plane.pump, self.number).atexit = False

    @property
    def is_lent(self) -> bool:
        """Whether a socket is lent."""
        return self._connection is not None

    @property
    def waiting_bytes(self) -> int:
        """What the socket has not taken; at least 1 if the plane has failed to send on it. While it is 0, others may
        also send on the socket."""
        return self._plane.pump.waiting(self.number)

    def lend(self, connection: Connection, lender: PortLender) -> None:
        """Let the plane send on this connection. It must be on a chunk boundary. Raises CannotLendError."""
        self._plane.check_lends()
        with _lending():
            self._plane.pump.attach(self.number, connection.fileno(), BACKLOG_BYTES, connection.lend_sending())
            try:
                self._end = self.hand_back
                self._plane.add(self.number, self)
                connection.borrowers.append(self._end)
            except BaseException:
                self._end = None
                self._plane.remove(self.number)
                self._plane.pump.detach(self.number)
                raise
        self._connection, self._lender = connection, lender

    def take_back(self) -> tuple[bytes, Exception | None]:
        """End the loan. Returns what has to be sent next on the connection, which may be in the middle of a chunk; and
        why nothing can be sent on it any more, or None.

        The loan has ended even if this raises: only MemoryError, and then nothing can be sent any more either."""
        connection, self._connection = self._connection, None
        if connection is None:
            return b"", None
        end, self._end = self._end, None
        if end is not None:
            connection.borrowers.remove(end)
        self._plane.remove(self.number)
        self._lender = None
        pump = self._plane.pump
        rest, failure = connection.take_back_sending(pump.detach(self.number)), pump.failure(self.number)
        return rest, connection.failure(OSError(failure, os.strerror(failure))) if failure else None

    # -- see Borrower

    @property
    def drops(self) -> Counter[str]:
        return self._counters.drops

    def handle(self, what: int, detail: object) -> None:
        assert self._lender is not None
        if what == _pump.WATCH:
            self._lender.port_watch()
        else:
            self._lender.port_handed_back()

    def count(self, packets: int, packets_bytes: int, arrivals: int) -> None:
        self._counters.tx_packets += packets
        self._counters.plane_packets += packets
        self._counters.tx_bytes += packets_bytes
        if packets and self._lender is not None:
            self._lender.port_sent()

    def hand_back(self) -> None:
        if self._lender is not None:
            self._lender.port_handed_back()


class PortLender(Protocol):
    """What a port tells its sender."""

    def port_watch(self) -> None:
        """Much was sent: look at the path."""

    def port_sent(self) -> None:
        """Something was sent."""

    def port_handed_back(self) -> None:
        """The socket is full, has failed, or is about to be closed, or the plane ends. The sender is to take the port
        back."""


class Flows:
    """The verdicts of the plane on the frames from one origin: a client, or the device.

    Attributes:
        table: names it.
        drops: where frames are counted that a verdict drops.
        borrowers: end the loans that use it.
    """

    __slots__ = ("__weakref__", "_plane", "borrowers", "drops", "table")

    def __init__(self, plane: Plane, rules: tuple[Rule, ...], drops: Counter[str], *, ethernet: bool = False) -> None:
        """``ethernet``: the frames carry Ethernet frames."""
        self.table = plane.pump.table(rules, ethernet)
        self.drops = drops
        self.borrowers: list[Callable[[], None]] = []
        self._plane = plane
        weakref.finalize(self, _free, plane.pump, self.table).atexit = False

    def learn(self, view: memoryview, frames: Sequence[FrameRange], judge: JudgeFrame) -> None:
        """Keep what ``judge`` says that was decided for these frames, if there is memory for it."""
        with suppress(MemoryError):  # then frames like these come to Python again
            self._learn(view, frames, judge)

    def _learn(self, view: memoryview, frames: Sequence[FrameRange], judge: JudgeFrame) -> None:
        learn, table = self._plane.pump.learn, self.table
        for start, stop, count in frames:
            verdict = judge(view, start)
            frame = view[start : start + (stop - start) // count]
            if verdict is None:
                continue
            if verdict is True:
                learn(table, frame, _pump.DEVICE, 0)
            elif isinstance(verdict, DropReason):
                learn(table, frame, _pump.DROP, _DROPS.index(verdict))
            else:
                learn(table, frame, _pump.TO_PORT, verdict.number)

    def forget(self) -> None:
        """Discard all verdicts: what they were made from has changed."""
        self._plane.pump.forget(self.table)

    def hand_back(self) -> None:
        """End the loans: the queue of the device, or who takes the frames, may have changed."""
        self.forget()
        for end in list(self.borrowers):
            end()


def _free(pump: _pump.Pump, ident: int) -> None:
    pump.free(ident)


class _Hook(trio.abc.Instrument):
    def __init__(self, plane: StepPlane) -> None:
        self._plane = plane

    def before_io_wait(self, timeout: float) -> None:
        self._plane.wait(timeout)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._plane.note_runnable()


@asynccontextmanager
async def open_plane(log: Log, *, wanted: bool = True) -> AsyncIterator[None]:
    """Run a plane within the block, if there can be one: see `current_plane`, `current_steps` and `running_plane`.

    Raises ConfigError if TAPOTUN_PLANE is set to what it cannot be.
    """
    setting = _setting()
    why = _why_none(setting, wanted=wanted)
    if why is not None:
        log.debug("no plane: %s", why)
        _running.set((None, why))
        yield
        return
    try:
        wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError as exc:
        _go_without(f"this machine has no eventfd for it: {exc.strerror}", log)
        yield
        return
    plane: StepPlane | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_take_wakes, wake_fd)
            why = _why_python(setting)
            try:
                plane = _make(wake_fd, log, native=why is None)
            except _NoPlaneError as exc:
                _go_without(str(exc), log)
                nursery.cancel_scope.cancel()
            else:
                hook = _Hook(plane)
                trio.lowlevel.add_instrument(hook)
                _running.set((plane, why or ""))
                TLS_RECORDS_WANTED.set(why is None)
                _tell_why_python(setting, log)
                try:
                    yield
                finally:
                    _running.set((None, "it has ended"))
                    TLS_RECORDS_WANTED.set(False)
                    plane.close()
                    with suppress(KeyError):  # trio drops a hook that has failed
                        trio.lowlevel.remove_instrument(hook)
                    nursery.cancel_scope.cancel()
        if plane is None:
            yield
    finally:
        os.close(wake_fd)


class _NoPlaneError(Exception):
    """There can be no plane. The text says why, for people."""


def _make(wake_fd: int, log: Log, *, native: bool) -> StepPlane:
    """Raises _NoPlaneError."""
    trio_fd = _epoll_with(wake_fd)
    if trio_fd is None:
        raise _NoPlaneError("trio's epoll was not found in /proc")
    try:
        return Plane(trio_fd, wake_fd, log) if native else StepPlane(trio_fd, wake_fd, log)
    except OSError as exc:
        raise _NoPlaneError(f"this machine has no epoll for it: {exc.strerror}") from exc
    except MemoryError as exc:
        raise _NoPlaneError("there is no memory for it") from exc


def _go_without(why: str, log: Log) -> None:
    """Tell that there is no plane, though there should be one."""
    _running.set((None, why))
    log.warning("the fast path is off, packets go the slow way: %s", why)


def _tell_why_python(setting: str, log: Log) -> None:
    """Tell why the plane is not the native one. That there is no module for a machine is ordinary."""
    if setting == "python":
        log.debug("no native plane: %s", _why_python(setting))
    elif (why := why_not_built()) is not None:
        level = logging.WARNING if BUILT or _FAULT is not None else logging.INFO
        log.log(level, "packets are moved by Python, which takes more CPU time: %s", why)


def _setting() -> str:
    """What TAPOTUN_PLANE says: one of _SETTINGS. Raises ConfigError."""
    setting = os.environ.get(VARIABLE) or "auto"
    if setting not in _SETTINGS:
        wrong = f'the environment variable {VARIABLE} is "{one_line(shorten(setting, _SETTING_CHARS))}"'
        raise ConfigError(f"{wrong}: set it to {', '.join(_SETTINGS[:-1])} or {_SETTINGS[-1]}, or unset it")
    return setting


def _why_none(setting: str, *, wanted: bool) -> str | None:
    """Why there can be no plane; None: there can."""
    if not wanted:
        return 'the config says "plane": "off"'
    if setting == "off":
        return _OFF
    if not _in_trio_run():
        return "trio runs within another event loop"
    return None


def _why_python(setting: str) -> str | None:
    """Why there can be no native plane; None: there can."""
    return f"{VARIABLE}=python is set" if setting == "python" else why_not_built()


def why_not_built() -> str | None:
    """Why this program has no native plane on this machine; None: it has one."""
    if _FAULT is not None:
        return f"the native module cannot be loaded: {_FAULT}"
    if not BUILT:
        return "the installed package has no native module for this machine"
    return None if _pump.ABI == ABI else "the native module is of another version"


def plane_here() -> tuple[PlaneKind, str | None]:
    """As `running_plane`, of a program that would start now, as the package and TAPOTUN_PLANE have it.

    What a config says, or this machine's kernel, may still be against it. Raises ConfigError.
    """
    setting = _setting()
    if setting == "off":
        return "off", _OFF
    why = _why_python(setting)
    return ("native", None) if why is None else ("python", why)


def _in_trio_run() -> bool:
    """Whether trio itself waits for I/O, in this thread. In guest mode another loop calls trio, and must not wait for
    the plane."""
    code = inspect.unwrap(trio.run).__code__
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


async def _take_wakes(wake_fd: int, *, task_status: trio.TaskStatus[None]) -> None:
    """Wait for the eventfd, so that trio watches it, for ever. Ends at once if trio cannot: then `_epoll_with` does not
    find it."""
    task_status.started()
    try:
        await trio.lowlevel.wait_readable(wake_fd)
    except OSError:  # epoll_ctl(2): no memory, or the limit of watches is reached. From now on it is watched.
        return
    while True:
        with suppress(BlockingIOError):
            os.eventfd_read(wake_fd)
        await trio.lowlevel.wait_readable(wake_fd)


def _epoll_with(fd: int) -> int | None:
    """The epoll of this process that watches ``fd``, as the kernel says (proc(5), /proc/pid/fdinfo). None: there is no
    such epoll, or no /proc."""
    try:
        for entry in os.listdir(_PROC_SELF / "fdinfo"):
            with suppress(OSError):
                if os.readlink(_PROC_SELF / "fd" / entry) != "anon_inode:[eventpoll]":
                    continue
                lines = (_PROC_SELF / "fdinfo" / entry).read_text().splitlines()
                if any(line.split()[:2] == ["tfd:", str(fd)] for line in lines):
                    return int(entry)
    except OSError:
        return None
    return None
