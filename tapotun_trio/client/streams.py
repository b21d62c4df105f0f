"""The streams of a client: a GET or a WebSocket that the server has answered, or a PUT whose head was sent."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from mmap import mmap
from typing import ClassVar, Final, Protocol

import trio

from ..datapath.duplex import DuplexStream
from ..datapath.plane import DeliverNow, Lane
from ..datapath.receiver import Deliver, OnControl, Receiver
from ..datapath.sender import AGENT_FRAME, Sender, ending_cleanly, shutdown_frame
from ..errors import EndReason, InternalError, PeerError, failure_of
from ..host.net.segments import SegmentWatch
from ..host.net.sockets import Connection
from ..http.client import REFUSAL_S, read_response, rest_of_refusal
from ..http.heads import ResponseHead, ResponseParser
from ..http.refusal import RefusedError
from ..http.websocket import WebSocketWriter
from ..http.writer import FINISH_S, BodyWriter
from ..wire import control
from ..wire.frames import FrameRange, FrameReader
from ..wire.websocket import WebSocketBody
from .ages import Lifetime, SilenceMeter, StreamKind
from .rotation import SETTLED_S, Stream
from .transport_choice import UPLOAD_SEEN_S

# How long a newer download waits for the older one to end, so that packets keep their order. Frames that the server had
# begun to send on the older one arrive within a moment. After this time, keeping the order is not worth the delay.
HANDOVER_S: Final = 1.0
_SHUTDOWN: Final = "the client is shutting down"


class ClientStream(ABC):
    """A `rotation.Stream`. Closes its connection at its end, and counts its failure.

    Attributes:
        ended: set last.
        failure: why the stream has ended; None before its end, and after a clean end.
        connection: the connection of this stream alone.
        segments: judges whether the connection loses large segments.
        base: the server is a base server.
        explained: the server has said why it ends the stream.
    """

    kind: StreamKind
    _DOING: ClassVar[str]  # what failed; for the text of errors that do not say it
    _receives: ClassVar[bool]  # which direction's silence counts. True: receiving, False: sending

    def __init__(self, connection: Connection, ends: Counter[str], *, base: bool) -> None:
        """A failure is counted in ``ends``."""
        self.connection = connection
        self.ended = trio.Event()
        self.failure: PeerError | None = None
        self.segments = SegmentWatch()
        self.base = base
        self.explained = False
        self._ends = ends
        self._silence = SilenceMeter(trio.current_time())
        self._lifetime: Lifetime | None = None  # set at the end

    async def run(self, older: Stream | None) -> None:
        """As `rotation.Stream.run`."""
        try:
            await self._work(older)
        except* Exception as group:  # a HostError is raised to the task that runs the stream
            self.failure = failure_of(group, self._DOING)
            if isinstance(self.failure, InternalError):
                raise
        finally:
            if self.failure is not None:
                self._ends[self.failure.reason] += 1
            # No new sample of the silence: bytes that the other end sent to end the stream do not count as traffic.
            self._lifetime = self._silence.sample(trio.current_time(), None)
            if self.failure is not None and self.failure.reason is EndReason.PATH_MTU:
                self.connection.abort()  # a reset arrives; an orderly close would wait behind the lost segments
            else:
                self.connection.close()
            self.ended.set()

    def lifetime(self) -> Lifetime:
        """As `rotation.Stream.lifetime`. Call this once a second, because it samples the silence."""
        if self._lifetime is not None:
            return self._lifetime
        silence = self.connection.silence()
        return self._silence.sample(trio.current_time(), None if silence is None else silence[self._receives])

    @abstractmethod
    async def _work(self, older: Stream | None) -> None:
        """Work until the stream ends. Raises its failure, or sets it."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether the stream has ended, or `end` was called."""

    @abstractmethod
    def end(self, because: PeerError) -> None:
        """End it now; `failure` will be ``because``."""

    def abandon(self, because: PeerError) -> None:
        """As `end`, but does not try to send the remaining bytes."""
        self.end(because)


class _InboundClientStream(ClientStream):
    """A client stream that receives.

    Attributes:
        receiver: its receiving half.
    """

    _receives = True

    def __init__(self, receiver: Receiver, connection: Connection, ends: Counter[str], *, base: bool) -> None:
        super().__init__(connection, ends, base=base)
        self.receiver = receiver

    @property
    def worked(self) -> bool:
        """Always true: only an answered request becomes a stream."""
        return True

    @property
    def over(self) -> bool:
        return self.ended.is_set() or self.receiver.was_ended

    def end(self, because: PeerError) -> None:
        self.receiver.end(because)

    async def _wait_for_older(self, older: Stream | None) -> None:
        if older is not None:
            with trio.move_on_after(HANDOVER_S):
                await older.ended.wait()


class Download(_InboundClientStream):
    """A GET that was answered with 200.

    Attributes:
        has_rest: bytes of the body arrived together with the head. The reader of the head sets it.
    """

    kind = StreamKind.DOWNLOAD
    _DOING = "cannot receive"

    def __init__(
        self,
        connection: Connection,
        receiver: Receiver,
        first_frames: list[FrameRange],
        ends: Counter[str],
        *,
        base: bool,
    ) -> None:
        """``receiver``: receives from this connection. ``first_frames``: the frames that came together with the
        head."""
        super().__init__(receiver, connection, ends, base=base)
        self.has_rest = bool(first_frames)
        self._first_frames = first_frames
        self._began = trio.current_time()

    @property
    def brought_nothing(self) -> bool:
        """Whether nothing has arrived after the head. An extended server sends its parameters there at once."""
        return not self.has_rest and not self.receiver.brought_anything

    def heard_since(self, moment: float) -> bool:
        """Whether the server has sent something on this stream after ``moment`` (trio's clock), to within a second."""
        return max(self._began, self.receiver.heard_at) >= moment

    async def _work(self, older: Stream | None) -> None:
        with self.receiver.running():
            await self._wait_for_older(older)
            await self.receiver.run(self._first_frames)


class WebSocketStream(_InboundClientStream):
    """Download and upload at once: a WebSocket that was answered with 101."""

    kind = StreamKind.WEBSOCKET
    _DOING = "cannot send or receive"

    def __init__(
        self,
        connection: Connection,
        rest: bytes,
        sender: Sender,
        deliver: Deliver,
        on_control: OnControl,
        ends: Counter[str],
        memory: mmap | None = None,
        lane: Callable[[], Lane | DeliverNow | None] = lambda: None,
        *,
        ipv6: bool = False,
        ethernet: bool = False,
    ) -> None:
        """``rest``: what came after the 101. ``deliver``, ``on_control`` and ``lane``: see `Receiver`. ``memory`` and
        ``ethernet``: see `FrameReader`. ``ipv6``: see `Sender.serve`."""
        body = WebSocketBody(masked=False)
        self._reader = FrameReader(body, control=True, memory=memory, ethernet=ethernet)
        receiver = Receiver(connection, self._reader, deliver, on_control, sender.send_control, lane)
        super().__init__(receiver, connection, ends, base=False)
        self._rest = rest
        self._duplex = DuplexStream(connection, WebSocketWriter(connection, masks=True), body, sender, ipv6=ipv6)

    async def _work(self, older: Stream | None) -> None:
        with self.receiver.running():
            shutdown = _SHUTDOWN, lambda: b"" if self.over else shutdown_frame(_SHUTDOWN)
            await self._duplex.run(lambda: self._receive(older), shutdown=shutdown)

    async def _receive(self, older: Stream | None) -> None:
        await self._wait_for_older(older)
        await self._duplex.receive(self.receiver, self._reader.prime(self._rest))


class Upload(ClientStream):
    """A PUT whose head was sent.

    Attributes:
        began: when it began, by trio's clock.
        number: the number by which the server names this upload; None: a base server names none.
        seen: set when the server says that the first bytes have arrived.
        may_be_unseen: `seen` may stay unset although bytes have arrived. A base server never confirms an upload, and a
            confirmation may be lost together with the download.
    """

    kind = StreamKind.UPLOAD
    _DOING = "cannot send"
    _receives = False

    def __init__(
        self,
        connection: Connection,
        sender: Sender,
        check: Callable[[ResponseHead, bytes, bool], None],
        unseen: Callable[[], None] | None,
        ends: Counter[str],
        number: int | None,
        ipv6: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            check: called with the head of the answer, the beginning of its body, and whether the server has seen the
                upload; raises PeerError unless the status is 200.
            unseen: called if the server did not see the upload in time; None: a base server never says.
            ipv6: whether the server has agreed to get IPv6; asked when the upload begins to carry packets.
        """
        super().__init__(connection, ends, base=number is None)
        self.began = trio.current_time()
        self.number = number
        self.seen = trio.Event()
        self.may_be_unseen = number is None
        self._sender = sender
        self._check = check
        self._unseen = unseen
        self._ipv6 = ipv6
        self._writer = BodyWriter(connection)
        self._answer = ResponseParser("PUT")
        self._answered: tuple[ResponseHead, bytes] | None = None  # the answer's head, and the beginning of its body
        self._scope = trio.CancelScope()
        self._because: PeerError | None = None

    async def _work(self, older: Stream | None) -> None:
        failure: PeerError | None = None
        with self._scope:
            try:
                await self._send()
            except* PeerError as group:
                failure = failure_of(group, self._DOING).without_traceback()
            if failure is not None and failure.reason.is_one_way:
                failure = await self._answer_before_reset() or failure
        self.failure = self._because or failure

    async def _answer_before_reset(self) -> PeerError | None:
        """What the answer says that arrived before the connection broke; None: none did.

        A proxy that answers before it has read the body, and then closes the connection, causes a reset. What is sent
        next meets the reset, perhaps before the answer was read. The kernel keeps what arrived before the reset.
        """
        try:
            with trio.move_on_after(REFUSAL_S):  # not needed, since nothing is waited for on a broken connection
                if self._answered is None:
                    self._answered = await read_response(self.connection, "PUT", self._answer)
                self._check(*self._answered, self.seen.is_set())
                return _ended()
        except RefusedError as exc:
            return exc.without_traceback()
        except PeerError:
            pass  # nothing arrived, or only the beginning of an answer
        return None

    async def _send(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_answer, nursery.cancel_scope)
            if self._unseen is not None:
                nursery.start_soon(self._watch_seen, self._unseen)
            async with ending_cleanly(self._writer, self._farewell_frame):
                await self._sender.serve(self._writer, ipv6=self._ipv6())
                with trio.move_on_after(FINISH_S):
                    await self._writer.finish()
                    await trio.sleep_forever()  # until the answer arrives
            nursery.cancel_scope.cancel()

    @property
    def over(self) -> bool:
        return self.ended.is_set() or self._because is not None

    @property
    def worked(self) -> bool:
        """Whether the server has seen the upload, or ended it with a 200.

        If the server cannot confirm uploads, this upload has worked if the connection broke, or if it lasted SETTLED_S:
        a refusal would have come earlier.
        """
        if self.seen.is_set() or (self.failure is not None and self.failure.reason == EndReason.ENDED):
            return True
        cut_off = self.failure is not None and self.failure.reason in (EndReason.BROKEN, EndReason.CLOSED)
        return self.may_be_unseen and (cut_off or self.lifetime().age_s >= SETTLED_S)

    def end(self, because: PeerError) -> None:
        self._because = because
        self._scope.cancel()

    def abandon(self, because: PeerError) -> None:
        """As `end`, but without ending the body, so that a proxy discards what it still holds back."""
        self._writer.mark_broken(because.reason)
        self.end(because)

    async def prove(self) -> bool:
        """Test the upload with a PING. Call this before `run`.

        Returns whether the server confirms within UPLOAD_SEEN_S that the upload arrives. Raises PeerError, also if the
        upload is answered already. Cancel-safe.
        """
        self._writer.send(AGENT_FRAME + control.ping(time.monotonic_ns()))
        failure: PeerError | None = None

        async def watch_answer() -> None:
            nonlocal failure
            try:
                await self._read_answer(nursery.cancel_scope)
            except PeerError as exc:
                failure = exc.without_traceback()
                nursery.cancel_scope.cancel()

        with trio.move_on_after(UPLOAD_SEEN_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_answer)
                await self.seen.wait()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return self.seen.is_set()

    async def _watch_seen(self, unseen: Callable[[], None]) -> None:
        with trio.move_on_after(UPLOAD_SEEN_S):
            await self.seen.wait()
            return
        unseen()

    def _farewell_frame(self) -> bytes:
        return shutdown_frame(_SHUTDOWN) if self._unseen is not None and not self.over else b""

    async def _read_answer(self, scope: trio.CancelScope) -> None:
        """Read the answer to the upload. It should come after the upload's end; an earlier answer ends the upload."""
        head, rest = self._answered = await read_response(self.connection, "PUT", self._answer)
        self._check(head, await rest_of_refusal(self.connection, head, rest), self.seen.is_set())
        if not self._writer.finished or self._writer.pending:
            raise _ended()
        scope.cancel()


def _ended() -> PeerError:
    return PeerError("the server ended the upload", reason=EndReason.ENDED)


class _Ending(Protocol):
    @property
    def over(self) -> bool: ...


def is_over(stream: _Ending | None) -> bool:
    """Whether there is no stream, or it has ended, or its `end` was called."""
    return stream is None or stream.over


def count_attempt(ends: Counter[str], stream: Stream | None, failure: PeerError | None) -> None:
    """Count a failure in ``ends``, unless it is the failure of ``stream``, which has counted it already."""
    if failure is not None and (stream is None or stream.failure is not failure):
        ends[failure.reason] += 1


def level_of(present: _Ending | None) -> int:
    """The log level for the beginning of a stream: INFO, but DEBUG where it replaces one that still runs."""
    return logging.INFO if is_over(present) else logging.DEBUG


def replaced_by_websocket() -> PeerError:
    """The failure of an upload that is replaced by a WebSocket."""
    return PeerError("a WebSocket takes the upload's place", reason=EndReason.MOVED)


def was_replaced(older: Download | WebSocketStream | None) -> bool:
    """Whether a download has ended only because the server serves a newer one. So nothing is lost that the server said
    on it. That end may arrive before the newer download begins here."""
    return older is not None and older.ended.is_set() and older.failure is None


def is_held_back(upload: Upload | None, download: object) -> bool:
    """Whether something between the ends must be holding back this upload, which the server has not confirmed.

    The other cause would be a path that is down. It is ruled out if the download began with or after the upload, or
    brought something since, and if the other end of the upload's connection has acknowledged everything. While this is
    not known yet, the server's next PING decides (`TransportSelector.warn_no_fallback`).
    """
    if upload is None or not isinstance(download, Download):
        return False
    path = upload.connection.path()
    acknowledged = path is None or not (path.flying_bytes or path.unsent_bytes)
    return acknowledged and download.heard_since(upload.began - UPLOAD_SEEN_S)


def why_nothing_is_sent(stream: ClientStream | None, failure: str | None) -> str:
    """Why nothing is sent on the stream that carries packets to the server, as far as this machine can tell.

    ``failure``: the latest one of a stream.
    """
    if stream is None or stream.over:
        return f"there is no upload ({failure or 'it is being opened'})"
    path = stream.connection.path()
    if path is None:
        return "the other end accepts no data"
    return (
        f"{path.flying_bytes} bytes are not acknowledged, {path.unsent_bytes} wait in the socket, "
        f"round trip {path.rtt_s * 1e3:.0f} ms"
    )
