"""The download of a deployed client."""

import math
import time

from . import checks
from .client_state import ClientState
from .client_streams import Outcome, Stopped, Stream
from .http1 import Body, EndlessBody, body_of
from .link import Broken, Link
from .wire import FrameReader, WireError


class GetStream(Stream):
    """`GET <url>` and the frames of its endless body."""

    role = "GET"

    def __init__(self, state: ClientState, before: Stream | None = None) -> None:
        super().__init__(state, before)
        self.rotate_at = math.inf  # generation 1 leaves that to the test
        self._rotated = False

    def converse(self, link: Link) -> tuple[Outcome, bool]:
        """ "download: `GET <url>` ... `200`, header `x-tun-conf`, body = frames"."""
        state = self.state
        link.send(state.request("GET"))
        head = self.answer_head(link)
        version, status = head.status()
        if status != 200:
            return self.refused(link, head)
        for fault in checks.get_faults(head, http10=state.http10, proxied=state.proxied):
            self.odd(fault)
        conf = state.configured(head.every("x-tun-conf"))
        body = body_of(head, version, self.odd)
        self.open(f"{link.name}, {','.join(conf.ips)}")
        if state.generation == 2:
            self.rotate_at = time.monotonic() + state.rotation_s()
        # "A deployed client carries a half-read frame over into its next GET and is then deaf."
        reader = FrameReader(state.carry)
        state.carry = b""
        try:
            self._download(link, body, reader)
        except Stopped:
            raise
        except Broken as exc:
            self._leave(reader)
            return self.failure(str(exc)), False
        self._leave(reader)
        if body.rest:
            self.odd(f"{body.rest[:80]!r} behind the end of the body")
        state.journal.event("get-end", link.name)
        return Outcome.CLEAN, body.done and not body.rest and not head.has("connection", "close")

    def failure(self, why: str) -> Outcome:
        """Generation 1: "a GET that had its 200 is retried at once"; generation 2: "it is back in 5-10 s"."""
        super().failure(why)
        return Outcome.REOPEN if self.opened and self.state.generation == 1 else Outcome.ERROR

    def _download(self, link: Link, body: Body, reader: FrameReader) -> None:
        """Read until the body's clean end. Raises Broken."""
        give_up_s = self.state.timers.give_up_s
        last = time.monotonic()
        while not body.done:
            self.obey()
            self._check_handover()
            if time.monotonic() >= self.rotate_at and not self._rotated:
                self._rotated = True
                self.state.rotation_due()
            if link.wait(self.bell, self._patience_s(last)):
                payload = self.read_payload(link, body)
                if payload is None:
                    return self._ended(body, reader)
                last = time.monotonic()
                self._cut(reader, payload)
            elif time.monotonic() - last >= give_up_s:
                # "A base client gives a stream up after 60 s without a byte."
                text = f"GET without a byte for {give_up_s} s"
                self.state.journal.violation(text)
                raise Broken(text)
        return None

    def _patience_s(self, last: float) -> float:
        until = last + self.state.timers.give_up_s
        if self.after_open_at is not None:
            until = min(until, self.after_open_at + self.state.timers.handover_s)
        if not self._rotated:
            until = min(until, self.rotate_at)
        return until - time.monotonic()

    def _check_handover(self) -> None:
        """ "the newest GET of a token gets all frames from then on; the older GET is finished cleanly"."""
        since = self.after_open_at
        if since is not None and time.monotonic() - since >= self.state.timers.handover_s:
            text = "older GET was not ended after the newer one's 200"
            self.state.journal.violation(text)
            raise Broken(text)

    def _ended(self, body: Body, reader: FrameReader) -> None:
        """End of the connection: clean for the HTTP/1.0 form, a break for a chunked body."""
        if isinstance(body, EndlessBody):
            return
        if self.after_open_at is not None:
            self.odd("older GET broke off instead of being finished cleanly")
        elif not reader.rest:
            self.state.journal.remark("GET broke off on a frame boundary, without its last chunk")
        raise Broken("GET: connection closed within the body")

    def _cut(self, reader: FrameReader, payload: bytes) -> None:
        if self.state.deaf:
            return
        try:
            for frame in reader.feed(payload):
                self.state.arrived(frame)
        except WireError as exc:
            self.state.lose_framing(str(exc))

    def _leave(self, reader: FrameReader) -> None:
        """ "End every stream on a frame boundary." """
        if reader.rest and not self.state.deaf:
            self.odd(f"ended inside a frame, {len(reader.rest)} bytes into it")
            self.state.carry = reader.rest
