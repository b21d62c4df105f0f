"""One GET or one PUT as a deployed server answers it."""

import threading
import time
from typing import TYPE_CHECKING, ClassVar

from .http1 import END_OF_CHUNKS, EndlessBody, Head, LengthBody, body_of
from .link import Bell, Broken, Link
from .server_seat import Seat
from .wire import Frame, FrameReader, WireError, frame_fault

if TYPE_CHECKING:
    from .server import BaseServer


class Answer:
    """What both have in common. `run` belongs to the connection's thread."""

    method: ClassVar[str]

    def __init__(self, server: "BaseServer", seat: Seat, link: Link, head: Head) -> None:
        self.server = server
        self.seat = seat
        self.link = link
        self.head = head
        self.version = head.request()[2]
        self.bell = Bell()
        self.thread = threading.current_thread()
        self.dropped = False
        self._orders: list[str] = []

    def order(self, what: str) -> None:
        """From any thread: "end", "drop" or "drop-mid"."""
        self._orders.append(what)
        self.bell.ring()

    def run(self) -> bool:
        """Answer, and tell whether the connection may carry the next request. Raises Broken, Exited."""
        self.seat.begin(self.method, self)
        name = self.method.lower()
        try:
            keep = self.answer()
        except Broken as exc:
            self.server.journal.event(f"{name}-broken", str(exc))
            raise
        else:
            self.server.journal.event(f"{name}-end", self.seat.spec.ip)
            return keep and self.version == "1.1" and not self.head.has("connection", "close")
        finally:
            self.seat.over(self.method, self)
            self.bell.close()

    def answer(self) -> bool:
        """The whole exchange."""
        raise NotImplementedError

    def fault(self, text: str) -> None:
        """The client did something that PROTOCOL forbids."""
        self.server.journal.violation(f"{self.method} of {self.seat.spec.ip}: {text}")

    def drop(self) -> Broken:
        """Cut the connection by order of the test. Returns what the caller raises."""
        self.dropped = True
        self.link.abort()
        return Broken("dropped by the test")


class GetAnswer(Answer):
    """Frames for the client, for as long as its newest GET lives."""

    method = "GET"

    def answer(self) -> bool:
        """ "`200`, header `x-tun-conf: <base64>`, body = frames, `Transfer-Encoding: chunked`"."""
        server = self.server
        chunked = self.version == "1.1" and not server.http10
        lines = [
            f"HTTP/{'1.1' if not server.http10 else '1.0'} 200 OK",
            f"x-tun-conf: {self.seat.conf.encode(server.generation)}",
            *(["Transfer-Encoding: chunked"] if chunked else []),
        ]
        self._send("\r\n".join([*lines, "", ""]).encode())
        server.journal.event("get-open", self.seat.spec.ip)
        self._download(chunked=chunked)
        if chunked:
            self._send(END_OF_CHUNKS)
        return chunked

    def _download(self, *, chunked: bool) -> None:
        """Until a newer GET, the end of its lifetime, an order or the server's stop. Raises Broken."""
        timers = self.server.timers
        begun = last = time.monotonic()
        while not self._over(begun, chunked=chunked):
            frames = self.seat.outbox.take(self.bell)
            busy = bool(frames) and self.server.generation == 1
            if not busy and time.monotonic() - last >= timers.ping_s:
                # "Each side sends a ping on its own sending stream after 55 s without a frame"; generation 2: "a server
                # pings such a client every 55 s also while the GET is busy".
                self._check_echoes()
                frames = [self.seat.new_ping(), *frames]
                last = time.monotonic()
                self.server.journal.event("ping-sent")
            if frames:
                self._write(b"".join(frames), chunked=chunked)
                last = time.monotonic() if self.server.generation == 1 else last
            until = min(last + timers.ping_s, begun + self.server.get_lifetime_s)
            if self.link.wait(self.bell, 0 if frames else until - time.monotonic()):
                data = self.link.read()
                if data:
                    self.fault(f"{data[:80]!r} sent before the answer had ended")
                raise Broken("closed by the client")
        # "End every stream on a frame boundary": what was taken was written whole.

    def _over(self, begun: float, *, chunked: bool) -> bool:
        self.bell.hush()
        if "drop-mid" in self._orders:
            half = Frame(bytes([0x45]) + bytes(99)).encode()[:57]
            self._write(half, chunked=chunked)
            raise self.drop()
        if "drop" in self._orders:
            raise self.drop()
        return (
            "end" in self._orders
            or self.server.stopping.is_set()
            or not self.seat.outbox.owned_by(self.bell)
            # "A deployed generation 1 server ends a GET after exactly 60 minutes"
            or time.monotonic() - begun >= self.server.get_lifetime_s
        )

    def _check_echoes(self) -> None:
        for _ in range(self.seat.unanswered(self.server.timers.echo_s)):
            self.fault("generation 2 ping was not echoed")

    def _write(self, data: bytes, *, chunked: bool) -> None:
        chunking = self.server.chunking
        for chunk in chunking.chunks(data) if chunked else [data]:
            self._send(chunk)

    def _send(self, data: bytes) -> None:
        for segment in self.server.chunking.segments(data):
            self.link.send(segment)


class PutAnswer(Answer):
    """Frames from the client."""

    method = "PUT"

    def answer(self) -> bool:
        """ "`200` with a short body, only when the request body has ended"."""
        if self.head.has("expect", "100-continue"):
            # "the server answers `100 Continue` before it reads"
            self.link.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = body_of(self.head, self.version, self.fault)
        if isinstance(body, EndlessBody):
            body = LengthBody(0)
        self.server.journal.event("put-open", self.seat.spec.ip)
        reader = FrameReader()
        silent_since = time.monotonic()
        while not body.done:
            if not self._readable(silent_since):
                continue
            silent_since = time.monotonic()
            try:
                data = self.link.read()
                if not data:
                    raise Broken("closed by the client")
                self._cut(reader, body.feed(data))
            except Broken:
                self._broke(reader)
                raise
        if reader.rest:
            self.fault(f"ended inside a frame, {len(reader.rest)} bytes into it")
        if body.rest:
            self.fault(f"{body.rest[:80]!r} sent before the PUT was answered")
            self.link.unread(body.rest)
        self.link.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
        return True

    def _readable(self, silent_since: float) -> bool:
        """Wait for bytes; "Each side sends a ping on its own sending stream after 55 s"."""
        limit_s = self.server.timers.give_up_s
        self.bell.hush()
        if "drop" in self._orders:
            raise self.drop()
        if self.link.wait(self.bell, silent_since + limit_s - time.monotonic()):
            return True
        if time.monotonic() - silent_since >= limit_s:
            self.fault(f"no byte for {limit_s} s, not even a ping")
            raise Broken("silent")
        return False

    def _broke(self, reader: FrameReader) -> None:
        if self.dropped or self.server.stopping.is_set():
            return
        if reader.rest:
            self.fault(f"broke off inside a frame, {len(reader.rest)} bytes into it")
        else:
            self.server.journal.remark("PUT broke off on a frame boundary, without its last chunk")

    def _cut(self, reader: FrameReader, payload: bytes) -> None:
        try:
            for frame in reader.feed(payload):
                self._arrived(frame)
        except WireError as exc:
            raise self.server.exit(f"PUT of {self.seat.spec.ip}: {exc}") from exc

    def _arrived(self, frame: Frame) -> None:
        """A whole frame: to the TUN, unless it is a ping, or one on which a deployed server exits."""
        if frame.is_ping and self.server.generation == 2:
            # "L = 0 is a bad frame to it, and ends the PUT"
            self.fault("bad frame: L = 0 at a generation 2 server")
            self.dropped = True
            raise Broken("a bad frame ends the PUT")
        if frame.is_ping:
            self.server.journal.event("ping")
            return
        fault = frame_fault(frame)
        if fault is not None:
            self.fault(fault)
            if self.server.exits:
                raise self.server.exit(fault)
        elif frame.is_echo:
            fault = self.seat.echoed(frame)
            if fault is not None:
                self.fault(fault)
            self.server.journal.event("echo")
        else:
            self.server.arrived(self.seat, frame)
