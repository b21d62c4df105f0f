"""The streams of a probe: opened with the same requests as a client's, and never carrying a packet."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from ..config.model import ClientConfig, Url
from ..datapath.receiver import Receiver as StreamReceiver
from ..errors import PeerError
from ..host.net.sockets import Connection
from ..http.client import send_request
from ..http.heads import READ_BYTES, ResponseHead, ResponseParser
from ..http.refusal import refusal
from ..http.writer import BodyWriter
from ..wire import control, params
from ..wire.frames import FrameRange, FrameReader
from ..wire.params import Params

_BODY_S: Final = 0.5  # for the rest of an error page
_BODY_BYTES: Final = 1024


class Progress:
    """A condition variable: waiters check their condition again after each `notify`."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for the condition. Returns whether it holds within the time."""
        with trio.move_on_after(timeout_s):
            while not condition():
                await self._event.wait()
        return condition()


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. ``names``: the header names, as they were sent; ``rest``: bytes that followed the head."""

    head: ResponseHead
    names: tuple[str, ...]
    rest: bytes


async def read_answer(connection: Connection, method: str) -> Answer:
    """As `http.client.read_response`, with the header names as they were sent. Raises PeerError."""
    parser, raw = ResponseParser(method), b""
    buffer = memoryview(bytearray(READ_BYTES))
    while True:
        received = bytes(buffer[: await connection.receive(buffer)])
        raw += received
        done = parser.feed(received)
        if done is not None:
            head, rest = done
            lines = raw[: len(raw) - len(rest)].rstrip(b"\r\n").split(b"\r\n\r\n")[-1].split(b"\r\n")[1:]
            return Answer(head, tuple(line.partition(b":")[0].decode("latin-1") for line in lines), rest)


async def read_page(connection: Connection, answer: Answer) -> bytes:
    """The beginning of the body of an error response. Never raises."""
    page = answer.rest
    buffer = memoryview(bytearray(READ_BYTES))
    length = answer.head.headers.get("content-length", "")
    wanted = min(int(length), _BODY_BYTES) if length.isdecimal() else _BODY_BYTES
    with trio.move_on_after(_BODY_S), suppress(PeerError):
        while len(page) < wanted:
            received = await connection.receive(buffer)
            if not received:
                break
            page += buffer[:received]
    return page


class Receiver:
    """Receives the download and records its control frames. Packets are dropped.

    A PONG returns the number at the beginning of its PING. It also stands for earlier PINGs, because a server answers
    only the last of several.
    """

    def __init__(self, connection: Connection, reader: FrameReader, progress: Progress) -> None:
        self._connection = connection
        self._reader = reader
        self._progress = progress
        self.began_at = self.last_at = trio.current_time()
        self.params: Params | None = None
        self.seen: set[int] = set()
        self.pong = 0  # the highest number in a PONG
        self.pong_bytes = 0
        self.pong_at = 0.0
        self.first_pong_at = 0.0  # when the first PONG after `measure_pongs` arrived
        self.first_pong_bytes = 0
        self.replaced = False
        self.clean = False  # the body has ended
        self.failure: PeerError | None = None
        self.ended_at = 0.0
        self.answer: Callable[[bytes], None] | None = None  # sends a PONG

    @property
    def ended(self) -> bool:
        return self.clean or self.failure is not None

    def measure_pongs(self) -> None:
        """Reset the counts of PONG bytes."""
        self.pong_bytes = self.first_pong_bytes = 0

    async def run(self, first: bytes) -> None:
        """Receive until the stream ends. ``first``: bytes that followed the head."""
        try:
            frames = self._reader.prime(first)
            receiver = StreamReceiver(self._connection, self._reader, self._deliver, self._on_control, self._answer)
            await receiver.run(frames)
            self.clean = True
        except PeerError as exc:
            self.failure = exc
        self.ended_at = trio.current_time()
        self._progress.notify()

    async def _deliver(self, reader: FrameReader, frames: list[FrameRange]) -> None:
        if not reader.ended:  # otherwise the end of the body was received, and no frame
            self.last_at = trio.current_time()
        self._progress.notify()

    async def _on_control(self, kind: int, payload: bytes) -> None:
        if kind == control.PONG:
            self._take_pong(payload)
        elif kind == control.UPLOAD_SEEN and (number := control.seen_number(payload)) is not None:
            self.seen.add(number)
        elif kind == control.PARAMS:
            self.params = params.decode(payload)
        elif kind == control.BYE and control.bye_reason(payload).startswith(control.REPLACED):
            self.replaced = True

    def _answer(self, frame: bytes) -> None:
        if self.answer is not None:
            self.answer(frame)

    def _take_pong(self, payload: bytes) -> None:
        self.pong = max(self.pong, int.from_bytes(payload[:8], "little"))
        self.pong_at = trio.current_time()
        self.pong_bytes += len(payload)
        if not self.first_pong_bytes:
            self.first_pong_at, self.first_pong_bytes = self.pong_at, len(payload)


class Uploader:
    """Sends the upload, and reads the response, which should not arrive before the upload's end."""

    def __init__(self, connection: Connection, writer: BodyWriter, progress: Progress) -> None:
        self.connection = connection
        self.writer = writer
        self._progress = progress
        self.began_at = self.last_at = trio.current_time()
        self.sent_bytes = 0
        self.status: int | None = None
        self.refusal: str | None = None  # what that status means, unless it is 200
        self.failure: PeerError | None = None
        self.ended_at = 0.0
        self._waiting = trio.CancelScope()
        self._pong = b""
        self._number = 0

    @property
    def ended(self) -> bool:
        """Whether there is a response or a failure, so that nothing more can be sent."""
        return self.status is not None or self.failure is not None

    async def read_answer(self, url: Url) -> None:
        """Read the response. Runs in a task of its own."""
        try:
            answer = await read_answer(self.connection, "PUT")
            self.status = answer.head.status
            if self.status != 200:
                self.refusal = str(refusal(answer.head, url, answer.rest, method="PUT", served=True))
        except PeerError as exc:
            self._fail(exc)
        self.ended_at = trio.current_time()
        self._waiting.cancel()
        self._progress.notify()

    async def send(self, frames: bytes) -> bool:
        """Send all frames. Returns False as soon as nothing more can be sent."""
        if self.ended:
            return False
        with trio.CancelScope() as self._waiting:
            try:
                await self.writer.drain()
                if self._pong:
                    frames, self._pong = self._pong + frames, b""
                self.writer.send(frames)
                self.sent_bytes += len(frames)
                self.last_at = trio.current_time()
                await self.writer.drain()
            except PeerError as exc:
                self._fail(exc)
        return not self.ended

    def ping(self, size_bytes: int = 8, fill: bytes = b"") -> tuple[int, bytes]:
        """The next number and a PING with it. ``size_bytes``: the size of the payload, at least 8."""
        self._number += 1
        return self._number, control.encode(control.PING, self._number.to_bytes(8, "little") + fill[: size_bytes - 8])

    def answer(self, pong: bytes) -> None:
        """Send a PONG now, or in front of the next frames."""
        if self.ended or self.writer.finished or self.writer.pending:
            self._pong = pong
            return
        try:
            self.writer.send(pong)
        except PeerError as exc:
            self._fail(exc)

    async def finish(self, timeout_s: float, farewell_frame: bytes = b"") -> bool:
        """End the body. Returns whether the response arrived in time."""
        with trio.move_on_after(timeout_s):
            try:
                await self.writer.finish(farewell_frame)
            except PeerError as exc:
                self._fail(exc)
            await self._progress.until(lambda: self.ended, timeout_s)
        return self.ended

    def _fail(self, exc: PeerError) -> None:
        if self.failure is None and self.status is None:
            self.failure = exc
            self.ended_at = trio.current_time()


class Opener:
    """Opens the requests of one session, each on a new connection. `close` closes all of them."""

    def __init__(self, config: ClientConfig, dial: Callable[[], Awaitable[Connection]]) -> None:
        self.config = config
        self.session_id = secrets.token_hex(16)
        self.progress = Progress()
        self._dial = dial
        self._open: list[Connection] = []

    async def connect(self) -> Connection:
        """A new connection. Raises PeerError."""
        connection = await self._dial()
        self._open.append(connection)
        return connection

    async def request(self, method: str, fields: list[tuple[str, str]]) -> Connection:
        """Connect, and send the head of a request. Raises PeerError."""
        connection = await self.connect()
        await send_request(connection, method, self.config.server, fields)
        return connection

    async def upload(self, nursery: trio.Nursery, fields: list[tuple[str, str]]) -> Uploader:
        """Begin a PUT. A task in ``nursery`` reads the response. Raises PeerError."""
        connection = await self.request("PUT", fields)
        uploader = Uploader(connection, BodyWriter(connection), self.progress)
        nursery.start_soon(uploader.read_answer, self.config.server)
        return uploader

    def close(self) -> None:
        """Close every connection."""
        while self._open:
            self._open.pop().close()
