"""The upload of a deployed client."""

import time

from . import checks
from .client_state import ClientState
from .client_streams import Outcome, Stopped, Stream
from .http1 import END_OF_CHUNKS, Head
from .link import Broken, Link
from .wire import PING


class PutStream(Stream):
    """`PUT <url>` with frames in its endless body."""

    role = "PUT"

    def __init__(self, state: ClientState, before: Stream | None = None) -> None:
        super().__init__(state, before)
        self.cut: tuple[bytes, int] | None = None
        self._may_continue = False

    def converse(self, link: Link) -> tuple[Outcome, bool]:
        """ "upload: `PUT <url>` ... `200` with a short body, only when the request body has ended"."""
        expect = ["Expect: 100-continue"] if self.state.expect_continue else []
        link.send(self.state.request("PUT", "Transfer-Encoding: chunked", *expect))
        early = self._await_continue(link)
        if early is not None:
            return self._early(link, early)
        self.state.outbox.claim(self.bell)
        self.open(link.name)
        if self.state.tail:
            # "its own PUT may likewise resume with the tail of a frame after a break"
            tail, self.state.tail = self.state.tail, b""
            self.state.journal.event("resume", f"{len(tail)} bytes")
            self._write(link, tail)
        early = self._upload(link)
        if early is not None:
            return self._early(link, early)
        self._closing = True
        self._send(link, END_OF_CHUNKS)
        return self._final(link)

    def _await_continue(self, link: Link) -> Head | None:
        """ "waits up to 1 s for the `100`"; a final answer that comes instead is returned."""
        if not self.state.expect_continue:
            return None
        self._may_continue = True
        head = self.await_head(link, self.state.timers.expect_s)
        if head is None:
            text = f"no 100 Continue within {self.state.timers.expect_s} s"
            (self.state.journal.remark if self.state.proxied else self.odd)(text)
            return None
        return head if self._is_final(head) else None

    def _is_final(self, head: Head) -> bool:
        """Whether a head is a final answer; an interim one is judged here."""
        if head.status()[1] >= 200:
            return True
        for fault in checks.continue_faults(head, expected=self._may_continue):
            (self.state.journal.remark if self.state.proxied else self.odd)(fault)  # Caddy sends its own as well
        self._may_continue = False
        return False

    def _early(self, link: Link, head: Head) -> tuple[Outcome, bool]:
        """ "must not get its final `200` before its body has ended (it would PUT again every second)"."""
        if head.status()[1] != 200:
            asked = self.state.expect_continue and not self.state.proxied
            if asked and not self._may_continue and head.status()[1] == 403:
                self.odd("403 after a 100, not in place of it")
            return self.refused(link, head)
        self.odd("final 200 before the body has ended")
        self.state.journal.event("put-early")
        return Outcome.EARLY, False

    def _upload(self, link: Link) -> Head | None:
        """Send frames until the stream is over; a final answer ahead of that is returned."""
        outbox = self.state.outbox
        ping_s = self.state.timers.ping_s
        patience_s = ping_s if self.state.generation == 1 else self.state.timers.give_up_s
        last = time.monotonic()
        while self._wanted():
            if self.cut is not None:
                self._break_off(link, *self.cut)
            frames = outbox.take(self.bell)
            if frames:
                self._write(link, b"".join(frames))
                last = time.monotonic()
            elif self.state.generation == 2:
                self._check_silence(last)
            elif time.monotonic() - last >= ping_s:
                # "Each side sends a ping on its own sending stream after 55 s without a frame."
                self._write(link, PING)
                last = time.monotonic()
                self.state.journal.event("ping-sent")
            left = 0.0 if frames else last + patience_s - time.monotonic()
            if link.wait(self.bell, left):
                head = self.await_head(link, self.state.timers.answer_s)
                if head is not None and self._is_final(head):
                    return head
        for frame in outbox.take(self.bell):
            self._write(link, frame)
        return None

    def _check_silence(self, last: float) -> None:
        """ "A generation 2 client's PUT carries nothing but echoes while it has nothing to send, and it gives the
        PUT up after 60 s without a byte". Raises Broken."""
        give_up_s = self.state.timers.give_up_s
        if time.monotonic() - last >= give_up_s:
            text = f"PUT without a byte for {give_up_s} s: no ping came to be echoed"
            self.odd(text)
            raise Broken(text)

    def _wanted(self) -> bool:
        """False where the body ends, on a frame boundary. Raises Stopped for a break."""
        self.bell.hush()
        if "break" in self._orders:
            raise Stopped
        over = "end" in self._orders or self.state.stopping.is_set()
        return not over and self.state.outbox.owned_by(self.bell)

    def _final(self, link: Link) -> tuple[Outcome, bool]:
        """The final 200, now that the body has ended."""
        head = self.answer_head(link)
        while not self._is_final(head):
            head = self.answer_head(link)
        version, status = head.status()
        if status != 200:
            return self.refused(link, head)
        for fault in checks.put_faults(head, http10=self.state.http10, proxied=self.state.proxied):
            self.odd(fault)
        self.short_body(link, head, version)
        self.state.journal.event("put-end", link.name)
        return Outcome.CLEAN, version == "1.1" and not head.has("connection", "close")

    def _write(self, link: Link, data: bytes) -> None:
        """Frames into chunks, wherever the boundaries fall."""
        for chunk in self.state.chunking.chunks(data):
            self._send(link, chunk)

    def _send(self, link: Link, data: bytes) -> None:
        for segment in self.state.chunking.segments(data):
            link.send(segment)

    def _break_off(self, link: Link, frame: bytes, at: int) -> None:
        """Send the first bytes of a frame and drop the connection; keep the tail if asked to."""
        self._write(link, frame[:at])
        if self.state.resume_tail:
            self.state.tail = frame[at:]
        raise Stopped


class WholePutStream(PutStream):
    """ "A PUT may carry a Content-Length": what is queued, as a buffering proxy passes it on."""

    def __init__(self, state: ClientState, before: Stream | None = None) -> None:
        super().__init__(state, before)
        self._data = b""

    def run(self) -> Outcome:
        """Gather first: a buffering proxy connects when it has the whole body."""
        self.state.outbox.claim(self.bell)
        # A generation 2 client pings nobody.
        deadline = time.monotonic() + (self.state.timers.ping_s if self.state.generation == 1 else 3600.0)
        try:
            while not self._data and self._wanted():
                self._data = b"".join(self.state.outbox.take(self.bell))
                left = deadline - time.monotonic()
                if not self._data and not self.bell.wait(left) and left <= 0:
                    self._data = PING
        except Stopped:
            self._data = b""
        if self._data:
            return super().run()
        self.state.outbox.release(self.bell)
        self.bell.close()
        return Outcome.CLEAN

    def converse(self, link: Link) -> tuple[Outcome, bool]:
        """One PUT whose end is known."""
        link.send(self.state.request("PUT", f"Content-Length: {len(self._data)}"))
        self.open(link.name)
        self._closing = True
        self._send(link, self._data)
        return self._final(link)
