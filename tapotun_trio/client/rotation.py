"""Runs stream after stream, for ever: the next one is opened before the present one ends, and after a failure there is
a pause first. Both directions of a client use this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias

import trio

from ..errors import InternalError, PeerError, failure_of
from .ages import AgeLimits, Lifetime, Plan, StreamKind, is_cut
from .backoff import Backoff

# A stream that the peer ended sooner than this counts as failed, so there is a pause: at a base server, two clients
# with one token end each other's streams.
SETTLED_S: Final = 5.0

# If the path changes during an attempt, the attempt is given up at this age, because its first packets may be lost. A
# younger attempt continues until it has this age, so that attempts can finish even during a fast series of changes. (An
# attempt whose local address is gone cannot succeed, and is given up at once.)
ATTEMPT_S: Final = 3.0

DUE_S: Final = 0.001  # below the resolution of the clocks that measure a stream's age and silence


class Stream(Protocol):
    """One download, upload or WebSocket that is open.

    Attributes:
        kind: download, upload or WebSocket.
        base: the server is a base server.
        explained: the server has said why it ends the stream.
    """

    ended: trio.Event
    kind: StreamKind
    base: bool
    explained: bool

    @property
    def worked(self) -> bool:
        """Whether the server has answered or received something on it, as far as this end can know."""

    def lifetime(self) -> Lifetime:
        """How long the stream has existed and been silent; after its end, the values at its end."""

    @property
    def failure(self) -> PeerError | None:
        """Once ended: why; None for a clean end."""

    async def run(self, older: Stream | None) -> None:
        """Work until the stream ends, setting `ended` last. ``older`` is the stream that this one replaces.

        A failure of the peer becomes the `failure`. A bug does too, and is raised afterwards. Raises HostError.
        """


class RetryGate:
    """The waits and the attempts of one `keep_streaming`, which `wake` cuts short when the path has changed."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._woken: set[trio.CancelScope] = set()
        self._attempts: dict[trio.CancelScope, float] = {}  # each attempt, and when it began
        self._was_woken = False

    def rotate(self) -> None:
        """End the present waits, if there are any: replace the present stream now, as at its scheduled time."""
        for scope in self._scopes:
            self._woken.add(scope)
            scope.cancel()

    def wake(self, *, attempts_too: bool = False) -> None:
        """As `rotate`, where the present stream may be lost already. Also end the present attempts, as soon as they are
        ATTEMPT_S old.

        ``attempts_too``: end the attempts at once.
        """
        self._was_woken = True
        self.rotate()
        for scope, began in self._attempts.items():
            if attempts_too:
                scope.cancel()
            scope.deadline = began + ATTEMPT_S

    def take_woken(self) -> bool:
        """Whether `wake` was called since the last call of this method."""
        was_woken, self._was_woken = self._was_woken, False
        return was_woken

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


OpenStream: TypeAlias = Callable[[], Awaitable[Stream]]
OnFailure: TypeAlias = Callable[[PeerError | None, float], float | None]


async def keep_streaming(
    open_stream: OpenStream,
    *,
    ages: AgeLimits,
    gate: RetryGate,
    on_failure: OnFailure,
    on_bug: Callable[[Exception], None] | None = None,
) -> None:
    """Run stream after stream, for ever. A failure of one stream, even a bug, ends only that stream.

    Raises HostError, except for a shortage.

    Args:
        open_stream: opens the next one. Raises PeerError, or the error of a shortage of this machine; then the present
            stream goes on.
        ages: decides when to replace each stream, and learns from each stream that a proxy ends.
        gate: its `wake` replaces a running stream now, retries a failed one now, and restarts an attempt that has taken
            too long.
        on_failure: called with each failure (None: a clean end) and the seconds until the next attempt. It may return
            another time to wait.
        on_bug: called with each bug; None: bugs are raised.
    """
    if on_bug is None:
        on_bug = _raise
    backoff = Backoff()
    present: Stream | None = None
    # The previous stream and its lifetime, if a proxy may have ended it. What is learned from it waits for the next
    # attempt, because the server's reason for the end may arrive a moment later on another stream.
    cut: tuple[Stream, Lifetime] | None = None
    working_since: float | None = None  # the beginning of the current series without a failure
    async with trio.open_nursery() as nursery:
        while True:
            began = trio.current_time()
            failure: PeerError | None
            try:
                stream = await gate.attempt(open_stream)
            except* Exception as group:  # noqa: BLE001 - a bug is logged with its traceback, a HostError is raised again
                failure = failure_of(group, "cannot open a stream")
                if isinstance(failure, InternalError):
                    on_bug(group)
                worked = True  # refers to the streams before this attempt
                _learn_from_cut(cut, ages)
                cut = None
            else:
                _learn_from_cut(cut, ages)
                cut = None
                if stream is None:
                    backoff.reset()
                    continue
                opened = trio.current_time()
                if present is not None:
                    _learn_from_replaced(present, ages, opened)
                nursery.start_soon(_run, stream, present, on_bug)
                present = stream
                if working_since is None:
                    working_since = opened
                await _wait_for_end(stream, ages.plan(stream.kind, opened, opened - began), gate)
                if not stream.ended.is_set():
                    continue  # a rotation: the next one opens while this one goes on
                present = None
                failure, worked = stream.failure, stream.worked
                if worked and is_cut(failure):
                    cut = stream, stream.lifetime()
            now = trio.current_time()
            if failure is None and now - began >= SETTLED_S:
                backoff.reset()
                wait_s = 0.0
            else:
                lived_s = now - working_since if worked and failure is not None and working_since is not None else 0.0
                wait_s = backoff.next_s(lived_s=lived_s, near=failure is None or failure.reason.is_answer)
            working_since = None  # one working period resets the failures once, even if an older stream still runs
            other_s = on_failure(failure, wait_s)
            if await gate.wait(wait_s if other_s is None else other_s, trio.Event()):
                backoff.reset()


async def _wait_for_end(stream: Stream, plan: Plan, gate: RetryGate) -> None:
    """Wait until the stream has ended or is to be replaced."""
    while not stream.ended.is_set() and (left_s := plan.left_s(stream.lifetime())) > DUE_S:
        if await gate.wait(left_s, stream.ended):
            return


def _learn_from_replaced(stream: Stream, ages: AgeLimits, now: float) -> None:
    """Learn from a stream whose successor has opened. Either the stream is still alive, or it was ended while the
    successor was being opened. A clean end teaches nothing: the server ends a replaced stream that way."""
    if not stream.ended.is_set():
        ages.observe(stream.kind, stream.lifetime())
    elif stream.failure is not None and stream.worked and not stream.explained and is_cut(stream.failure):
        ages.cut(stream.kind, stream.lifetime(), stream.failure, now, base=stream.base)


def _learn_from_cut(cut: tuple[Stream, Lifetime] | None, ages: AgeLimits) -> None:
    if cut is not None and not cut[0].explained:
        stream, lifetime = cut
        ages.cut(stream.kind, lifetime, stream.failure, trio.current_time(), base=stream.base)


async def _run(stream: Stream, older: Stream | None, on_bug: Callable[[Exception], None]) -> None:
    try:
        await stream.run(older)
    except* Exception as group:  # a HostError, which does not become the `failure`, or a bug, which does
        if stream.failure is None:
            raise
        on_bug(group)


def _raise(exc: Exception) -> None:
    raise exc
