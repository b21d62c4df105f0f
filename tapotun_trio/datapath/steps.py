"""The wait below trio's tasks, and steps in Python: what the plane does where C cannot work, or is not there.

`StepPlane` waits in trio's place, right before trio would: on an epoll of its own, which holds the descriptors that
were lent, *and trio's own epoll*. `plane.Plane` is one that also moves packets in C, and its page says more of both.

A task lends the reading side of a descriptor with a *step*: a function that does what the task would do when there is
something to read, and nothing that could wait. It is called right there, without a switch to the task; that is all that
is saved, and it is worth it (docs/performance-notes.md#steps-in-python). The state stays where it is, in the task's own
objects, so there is nothing to give back: when the block of `StepPlane.lend` is left, for whatever reason, the step is
not called any more, and the task goes on from the same state.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

from ..errors import shortage_of
from ..log import Log, RateLimitedLog

# How long nothing is lent after a lack of memory. Without a pause, a lack that lasts would be met again at once.
REST_S: Final = 1.0
_LONGEST_S: Final = 3600.0
_MOST_EVENTS: Final = 64  # of one poll; the kernel hands out the rest in turn


class CannotLendError(Exception):
    """The kernel does not let the plane watch the descriptor: no memory, or the limit of watches is reached."""


class Next(enum.Enum):
    """What a step wants.

    READABLE: to be called when its descriptor is readable. AGAIN: to be called again, after others had their turn.
    TASK: the loan ends, and the task goes on.
    """

    READABLE = enum.auto()
    AGAIN = enum.auto()
    TASK = enum.auto()


class Lent(Protocol):
    """A loan, of whatever kind."""

    def hand_back(self) -> None:
        """End the loan now."""


class Loan:
    """A loan of a task that waits for `ended`."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: BaseException | None = None

    def hand_back(self) -> None:
        """From now on the descriptor is not touched any more; it may be closed."""
        self.ended.set()

    def fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.hand_back()

    def check(self) -> None:
        """Raise the error that ended the loan."""
        error, self.error = self.error, None
        if error is not None:
            raise error


class StepPlane:
    """A plane whose steps are all Python.

    Attributes:
        works: whether it may be given anything. Once false, it stays so, and the tasks do everything.
    """

    def __init__(self, trio_fd: int, wake_fd: int, log: Log) -> None:
        """``trio_fd``: trio's epoll. ``wake_fd``: an eventfd that a task waits for. Raises OSError."""
        self.works = True
        self._log = log
        self._trio_fd = trio_fd
        self._wake_fd = wake_fd
        self._epoll = select.epoll()
        try:
            self._epoll.register(trio_fd, select.EPOLLIN)
        except BaseException:
            self._epoll.close()
            raise
        self._steps: dict[int, _StepLoan] = {}
        self._again: list[_StepLoan] = []
        self._runnable = False  # a task became runnable within the wait
        self._short = False  # there was no memory, and some loans may not have ended yet
        self._lends_from = -math.inf  # by trio's clock
        self._shortages = RateLimitedLog()

    # -- the wait

    def wait(self, timeout_s: float) -> None:
        """Move packets for up to so long, or until trio has something to do. Never raises."""
        if not self._is_lent():
            self._short = False
            return  # nothing that trio's own wait could miss
        try:
            if self._short:
                self._rest()
            elif self.works:
                self._move(timeout_s)
        except MemoryError:
            self._rest()
        except BaseException as exc:  # noqa: BLE001 - logged; trio would drop the hook, and all loans would hang
            self._fail(exc)
        if timeout_s > 0:
            # Trio computed its timeout before, and now waits again, for all of it, unless its epoll is ready *then*.
            # That it was ready a moment ago proves nothing: its event may be gone. So make sure.
            os.eventfd_write(self._wake_fd, 1)

    def _is_lent(self) -> bool:
        return bool(self._steps)

    def _move(self, timeout_s: float) -> None:
        deadline_ns = time.monotonic_ns() + int(min(timeout_s, _LONGEST_S) * 1e9)
        self._runnable = False
        while not self._turn(deadline_ns):
            if self._runnable or not self.works or time.monotonic_ns() >= deadline_ns:
                break

    def _turn(self, deadline_ns: int) -> bool:
        """Wait until something is due, and do it. Returns whether trio's epoll is ready."""
        return self._run_steps(max(0, deadline_ns - time.monotonic_ns()) / 1e9)

    def _run_steps(self, timeout_s: float) -> bool:
        """Wait for up to so long, and call each step that is due once. Returns whether trio's epoll is ready."""
        again, self._again = self._again, []
        events = self._epoll.poll(0 if again else timeout_s, _MOST_EVENTS)
        for loan in again:
            self._call(loan)
        ready = False
        for fd, _ in events:
            if fd == self._trio_fd:
                ready = True
            elif (lent := self._steps.get(fd)) is not None:  # otherwise a step has just ended that loan
                self._call(lent)
        return ready

    def _call(self, loan: _StepLoan) -> None:
        if loan.ended.is_set():
            return
        try:
            then = loan.step()
        except BaseException as exc:  # noqa: BLE001 - raised by the task
            loan.fail(exc)
            return
        if then is Next.AGAIN:
            self._again.append(loan)
        elif then is Next.TASK:
            loan.hand_back()

    def note_runnable(self) -> None:
        self._runnable = True

    # -- its end

    def _rest(self) -> None:
        """There was no memory: give everything back, log it, and lend nothing for REST_S. If there is no
        memory for that either, the next wait tries again. Never raises."""
        self._short = True
        try:
            now = trio.current_time()
            self._lends_from = now + REST_S
            bugs = [exc for exc in self._hand_back_all() if not isinstance(exc, MemoryError)]
            if bugs:
                self._fail(BaseExceptionGroup("errors of the plane", bugs))
            self._short = False
            text = str(shortage_of(MemoryError(), "packets go the slow way for a moment"))
            self._shortages.log(self._log, logging.WARNING, now, text)
        except MemoryError:
            return
        except BaseException as exc:  # noqa: BLE001 - logged
            self._fail(exc)

    def check_lends(self) -> None:
        """Raise CannotLendError during the pause after a lack of memory."""
        if trio.current_time() < self._lends_from:
            raise CannotLendError("there was no memory a moment ago")

    def _fail(self, exc: BaseException) -> None:
        """Give everything back, and log why; only the first time, since one failure may well cause others."""
        if not self.works:
            return
        self.works = False
        self._short = True
        with suppress(MemoryError):  # then the next wait ends the other loans
            errors = [exc, *self._hand_back_all()]
            self._short = False
            cause = exc if len(errors) == 1 else BaseExceptionGroup("errors of the plane", errors)
            self._log.error("the fast path is off, packets go the slow way: internal error", exc_info=cause)

    def _hand_back_all(self) -> list[BaseException]:
        """End all loans, whatever goes wrong with some. Returns what did."""
        errors: list[BaseException] = []
        for loan in list(self._all_lent()):
            try:
                loan.hand_back()
            except BaseException as exc:  # noqa: BLE001 - the caller's to log
                errors.append(exc)
        return errors

    def _all_lent(self) -> Iterable[Lent]:
        return self._steps.values()

    def close(self) -> None:
        """End all loans, and take nothing any more."""
        self.works = False
        for exc in self._hand_back_all():
            self._log.error("internal error at the end of the fast path", exc_info=exc)
        self._epoll.close()

    # -- loans

    async def lend(
        self, descriptors: Sequence[int], step: Callable[[], Next], ends: list[Callable[[], None]] | None = None
    ) -> None:
        """Have ``step`` called, at once and then as it says, until it wants the task. A checkpoint, cancel-safe.

        Args:
            descriptors: one is enough to be readable.
            step: does not block. `Next.READABLE` is for what its descriptors show, not for what is in a buffer.
            ends: a list of functions; who calls them ends the loan, which is to happen before a descriptor is closed.

        Raises what ``step`` raises, and CannotLendError.
        """
        self.check_lends()
        loan = _StepLoan(self._epoll, self._steps, step)
        hand_back = loan.hand_back  # made once: there may be no memory for another at the end
        ends = [] if ends is None else ends
        ends.append(hand_back)
        try:
            loan.watch(descriptors)
            self._again.append(loan)
            await loan.ended.wait()
        finally:
            ends.remove(hand_back)
            hand_back()
        loan.check()


class _StepLoan(Loan):
    def __init__(self, epoll: select.epoll, loans: dict[int, _StepLoan], step: Callable[[], Next]) -> None:
        super().__init__()
        self.step = step
        self._epoll = epoll
        self._loans = loans
        self._watched: list[int] = []

    def watch(self, descriptors: Sequence[int]) -> None:
        """Raises CannotLendError."""
        for fd in descriptors:
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except OSError as exc:
                raise CannotLendError(str(exc)) from exc
            self._watched.append(fd)
            self._loans[fd] = self

    def hand_back(self) -> None:
        super().hand_back()
        while self._watched:
            fd = self._watched.pop()
            del self._loans[fd]
            self._epoll.unregister(fd)
