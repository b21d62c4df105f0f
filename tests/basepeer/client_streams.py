"""One GET or one PUT of a deployed client, from its request to its end."""

import enum
import time
from abc import ABC, abstractmethod
from typing import ClassVar

from . import checks
from .client_state import ClientState
from .http1 import Body, Head, HttpError, body_of
from .journal import Exited
from .link import Bell, Broken, Link


class Outcome(enum.Enum):
    """How a stream ended, which decides when the next one starts."""

    CLEAN = "at once"
    REOPEN = "at once: a GET that had its 200"
    EARLY = "every second: a PUT that had its final 200 too early"
    ERROR = "after 3-10 s"
    STOP = "never"


class Stale(Exception):
    """A kept-alive connection turned out dead before it carried a byte; a fresh one is tried."""


class Stopped(Exception):
    """The client stops, or the test ordered a break."""


class Stream(ABC):
    """One request and its answer. `run` belongs to one thread; `order` may come from any."""

    role: ClassVar[str]

    def __init__(self, state: ClientState, before: "Stream | None" = None) -> None:
        self.state = state
        self.bell = Bell()
        self.before = before
        self.after_open_at: float | None = None
        self.opened = False
        self.link: Link | None = None
        self._orders: list[str] = []
        self._closing = False

    def order(self, what: str) -> None:
        """Have the stream's thread do something: "end" or "break"."""
        self._orders.append(what)
        self.bell.ring()

    def run(self) -> Outcome:
        """Carry the stream to its end, on a kept-alive connection where there is one."""
        try:
            while True:
                try:
                    return self._attempt()
                except Stale:
                    continue
        finally:
            self.state.outbox.release(self.bell)
            self.bell.close()

    def _attempt(self) -> Outcome:
        state = self.state
        keep = False
        try:
            self.link = state.pool.take(self.role) or state.connect()
            outcome, keep = self.converse(self.link)
        except Stopped:
            return Outcome.STOP if state.stopping.is_set() else self.failure("broken by the test")
        except Exited:
            return Outcome.STOP
        except Broken as exc:
            if self.link is not None and self.link.used and not state.stopping.is_set():
                state.pool.complain(self.link, f"at its next request: {exc}")
                raise Stale from exc
            state.pool.settle(serving=False)
            return self.failure(str(exc))
        except HttpError as exc:
            self.odd(str(exc))
            return self.failure(str(exc))
        else:
            return outcome
        finally:
            self._dismiss(keep=keep)

    def _dismiss(self, *, keep: bool) -> None:
        link, self.link = self.link, None
        if link is None:
            return
        if keep and self.state.keepalive and not (self.state.http10 or self.state.stopping.is_set()):
            self.state.pool.give(link, self.role)
        else:
            link.close()

    @abstractmethod
    def converse(self, link: Link) -> tuple[Outcome, bool]:
        """Request, answer and bodies; tells whether the connection may be kept."""

    def failure(self, why: str) -> Outcome:
        """The stream broke."""
        self.state.journal.event(f"{self.role.lower()}-broken", why)
        return Outcome.ERROR

    def open(self, detail: str) -> None:
        """The stream carries frames now; the one that it replaces is expected to end."""
        self.opened = True
        if self.link is not None:
            self.link.used = False
        self.state.journal.event(f"{self.role.lower()}-open", detail)
        if self.before is not None:
            self.before.after_open_at = time.monotonic()
            self.before.bell.ring()
            self.before = None
        self.state.opened(self.role)

    def obey(self) -> None:
        """Look at what the bell rang for; raises Stopped."""
        self.bell.hush()
        if "break" in self._orders or (self.state.stopping.is_set() and not self._closing):
            raise Stopped

    def await_head(self, link: Link, timeout_s: float) -> Head | None:
        """The next head, or None when the time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.obey()
            left = deadline - time.monotonic()
            head = link.read_head(left, None if self._closing else self.bell)
            if head is not None:
                link.used = False
                self.state.pool.settle(serving=True)
            if head is not None or left <= 0:
                return head

    def answer_head(self, link: Link) -> Head:
        """The final answer's head; a server that owes one answers at once. Raises Broken."""
        head = self.await_head(link, self.state.timers.answer_s)
        if head is None:
            text = f"{self.role} got no answer within {self.state.timers.answer_s} s"
            self.state.journal.violation(text)
            raise Broken(text)
        return head

    def refused(self, link: Link, head: Head) -> tuple[Outcome, bool]:
        """Any final answer but 200: an error for a deployed client.

        "Refusal: `403 Forbidden`, `Connection: close`, a short body; for a PUT in place of the `100`."
        """
        journal = self.state.journal
        version, status = head.status()
        if status == 403:
            for fault in checks.refusal_faults(head, proxied=self.state.proxied):
                journal.violation(f"{self.role}: {fault}")
            self.short_body(link, head, version)
            if not self.state.proxied and self._stays_open(link):
                journal.violation(f"{self.role}: connection stays open after its 403")
            journal.event("refused", self.role)
        else:
            note = journal.remark if status >= 500 else journal.violation
            note(f"{self.role} answered with {head.start!r}")
            journal.event(f"{self.role.lower()}-status", str(status))
        return Outcome.ERROR, False

    def _stays_open(self, link: Link) -> bool:
        if not link.wait(None, self.state.timers.answer_s):
            return True
        try:
            return bool(link.read())
        except Broken:
            return False

    def short_body(self, link: Link, head: Head, version: str) -> None:
        """Read the short body of a final answer, and no byte of what follows."""
        body = body_of(head, version, self.odd)
        text = b""
        deadline = time.monotonic() + self.state.timers.answer_s
        while not body.done:
            if not link.wait(None, deadline - time.monotonic()):
                raise HttpError(f"body of {head.start!r} does not end")
            data = link.read()
            if not data:
                break
            text += body.feed(data)
            if len(text) > checks.MAX_SHORT_BODY:
                raise HttpError(f"body of {head.start!r} is not short: {len(text)} bytes")
        if body.rest:
            self.state.journal.violation(f"{self.role}: {body.rest[:80]!r} behind the answer")
        if not text:
            self.state.journal.remark(f"{self.role}: {head.start!r} without the short body")

    def odd(self, text: str) -> None:
        """A body reader's complaint."""
        self.state.journal.violation(f"{self.role}: {text}")

    def read_payload(self, link: Link, body: Body) -> bytes | None:
        """What the connection has now, decoded; None at its end."""
        data = link.read()
        return body.feed(data) if data else None
