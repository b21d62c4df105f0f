"""Keeps one stream going for ever: each is replaced in time, the new one before the old one ends, and a failed one
after a pause. Both halves of a client run in this."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias

import trio

from ..errors import InternalError, PeerError, failure_of
from .backoff import Backoff

# A stream that the peer ended sooner than this gets a pause as if it had failed: two clients with one token at a
# base server end each other's.
SETTLED_S: Final = 5.0

# An attempt that something outside has overtaken is given up when it is so old: its first packets may have been lost
# for good, with a local address that is gone. A younger one is left that time, so that no series of changes, however
# close, keeps all attempts from ending.
ATTEMPT_S: Final = 3.0


class Stream(Protocol):
    """One download or upload that is open."""

    ended: trio.Event

    @property
    def failure(self) -> PeerError | None:
        """Once ended: why, or None for a clean end."""

    async def run(self, older: Stream | None) -> None:
        """Work until the stream ends, setting `ended` last. ``older`` is the one that this one replaces. Raises
        HostError; and what is not the peer's fault, after it was noted as the `failure`."""


class RetryGate:
    """The waits and the attempts of `keep_streaming`, to be cut short when something outside changed."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._woken: set[trio.CancelScope] = set()
        self._attempts: dict[trio.CancelScope, float] = {}  # and when each began

    def wake(self) -> None:
        """End the present waits, if there are any, and the present attempts as soon as they are ATTEMPT_S old."""
        for scope in self._scopes:
            self._woken.add(scope)
            scope.cancel()
        for scope, began in self._attempts.items():
            scope.deadline = began + ATTEMPT_S

    async def attempt(self, open_stream: Callable[[], Awaitable[Stream]]) -> Stream | None:
        """Open a stream; None if the attempt was cut short. Raises what ``open_stream`` raises."""
        with trio.CancelScope() as scope:
            self._attempts[scope] = trio.current_time()
            try:
                return await open_stream()
            finally:
                del self._attempts[scope]
        return None

    async def wait(self, seconds: float, event: trio.Event) -> bool:
        """Wait, at most until the event. Returns whether the wait was cut short."""
        with trio.move_on_after(seconds) as scope:
            self._scopes.add(scope)
            try:
                await event.wait()
            finally:
                self._scopes.discard(scope)
        was_woken = scope in self._woken
        self._woken.discard(scope)
        return was_woken


Open: TypeAlias = Callable[[], Awaitable[Stream]]
Failed: TypeAlias = Callable[[PeerError | None, float], float | None]


async def keep_streaming(
    open_stream: Open,
    *,
    rotate_s: tuple[float, float],
    gate: RetryGate,
    failed: Failed,
    fault: Callable[[Exception], None] | None = None,
) -> None:
    """Run stream after stream, for ever. What goes wrong in one of them, a bug included, ends that one; HostError is
    raised.

    Args:
        open_stream: opens the next one; raises PeerError, or what a shortage of this machine raises. Either way the
            present stream goes on.
        rotate_s: each is replaced after a random time between these two.
        waits: cut these, and a stream that runs is replaced now, a failed one tried again now, and an attempt that
            lasts too long begun anew.
        failed: told of every failure (None: a clean end) with the seconds until the next attempt; it may return
            another time to wait instead.
        fault: told of every bug, where it is handled; None: it is raised.
    """
    if fault is None:
        fault = _raise
    backoff = Backoff()
    present: Stream | None = None
    healthy_since: float | None = None  # a stream that replaces a healthy one carries its health on
    async with trio.open_nursery() as nursery:
        while True:
            began = trio.current_time()
            failure: PeerError | None
            try:
                stream = await gate.attempt(open_stream)
            except* Exception as group:  # noqa: BLE001 - a bug is told with its traceback, a HostError is raised again
                failure = failure_of(group, "cannot open a stream")
                if isinstance(failure, InternalError):
                    fault(group)
            else:
                if stream is None:
                    backoff.reset()
                    continue
                nursery.start_soon(_run, stream, present, fault)
                present = stream
                if healthy_since is None:
                    healthy_since = began
                await gate.wait(random.uniform(*rotate_s), stream.ended)
                if not stream.ended.is_set():
                    continue  # in its time: the next one opens while this one goes on
                failure = stream.failure
            now = trio.current_time()
            if failure is None and now - began >= SETTLED_S:
                backoff.reset()
                wait_s = 0.0
            else:
                lived_s = 0.0 if healthy_since is None else now - healthy_since
                wait_s = backoff.next_s(lived_s=lived_s, near=failure is None or failure.reason.is_answer)
            healthy_since = None  # paid back once, also if an older stream still runs
            told_s = failed(failure, wait_s)
            if await gate.wait(wait_s if told_s is None else told_s, trio.Event()):
                backoff.reset()


async def _run(stream: Stream, older: Stream | None, fault: Callable[[Exception], None]) -> None:
    try:
        await stream.run(older)
    except* Exception as group:  # a HostError, for which no failure was noted; or a bug, for which one was
        if stream.failure is None:
            raise
        fault(group)


def _raise(exc: Exception) -> None:
    raise exc
