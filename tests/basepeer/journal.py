"""What a base peer saw: violations of the wire protocol, remarks, and events to wait for.

A *violation* is something that the base part of docs/protocol.md forbids; a test asserts that there are none.
A *remark* is odd but allowed. An *event* is a step of a stream's life that a test may wait for.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Exited(Exception):
    """A deployed peer's process would be gone now; unwinds the stream that met the reason."""


@dataclass(frozen=True, kw_only=True)
class Timers:
    """Seconds a deployed peer waits; tests shorten them. Defaults are those of docs/protocol.md#deployed-peers.

    `answer_s`, `handover_s` and `echo_s` are ours: docs/protocol.md says "at once" and "cleanly" there, and a
    strict peer needs a number beyond which it complains.
    """

    ping_s: float = 55.0  # "after 55 s without a frame"
    give_up_s: float = 60.0  # "gives a stream up after 60 s without a byte"
    expect_s: float = 1.0  # "waits up to 1 s for the `100`"
    reput_s: float = 1.0  # "it would PUT again every second"
    retry_s: tuple[float, float] = (3.0, 10.0)  # "After an error a base client waits 3-10 s (random)"
    retry_2_s: tuple[float, float] = (5.0, 10.0)  # generation 2: "it is back in 5-10 s"
    rotate_2_s: tuple[float, float] = (420.0, 900.0)  # "its next rotation, 7-15 minutes later"
    answer_s: float = 10.0  # head of a GET's 200, a PUT's final 200, a refusal's close
    handover_s: float = 5.0  # the older GET's clean end after the newer one's 200
    echo_s: float = 5.0  # a generation 2 ping's echo


@dataclass
class Journal:
    """Thread-safe record of one peer. `tell` sees every violation as it is recorded."""

    who: str
    tell: Callable[[str], None] | None = None
    _violations: list[str] = field(default_factory=list)
    _remarks: list[str] = field(default_factory=list)
    _events: list[tuple[float, str, str]] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def violation(self, text: str) -> None:
        """Record a deviation of the other side from the base protocol."""
        with self._changed:
            self._violations.append(f"{self.who}: {text}")
            self._event("violation", text)
        if self.tell is not None:
            self.tell(f"{self.who}: {text}")

    def remark(self, text: str) -> None:
        """Record something odd that the base protocol does not forbid."""
        with self._changed:
            self._remarks.append(f"{self.who}: {text}")

    def event(self, kind: str, detail: str = "") -> None:
        """Record a step and wake those that wait for it."""
        with self._changed:
            self._event(kind, detail)

    def _event(self, kind: str, detail: str) -> None:
        self._events.append((time.monotonic(), kind, detail))
        self._changed.notify_all()

    @property
    def violations(self) -> list[str]:
        """A copy of all violations so far, oldest first."""
        with self._changed:
            return list(self._violations)

    @property
    def remarks(self) -> list[str]:
        """A copy of all remarks so far, oldest first."""
        with self._changed:
            return list(self._remarks)

    @property
    def events(self) -> list[tuple[float, str, str]]:
        """A copy of all events: monotonic seconds, kind, detail."""
        with self._changed:
            return list(self._events)

    def count(self, kind: str) -> int:
        """How many events of `kind` there were."""
        with self._changed:
            return self._count(kind)

    def _count(self, kind: str) -> int:
        return sum(1 for _, seen, _ in self._events if seen == kind)

    def wait(self, kind: str, count: int = 1, timeout_s: float = 10.0) -> None:
        """Block until `count` events of `kind` were recorded; raises TimeoutError with the whole story."""
        with self._changed:
            if self._changed.wait_for(lambda: self._count(kind) >= count, timeout_s):
                return
            story = [f"{seen} {detail}".strip() for _, seen, detail in self._events]
            faults = list(self._violations)
        raise TimeoutError(f"{self.who}: no {count} x {kind!r}; events {story}, violations {faults}")
