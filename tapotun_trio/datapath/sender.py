"""The sending half towards a peer: straight onto the stream while it flows, through the outbox while it does not."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import trio

from .. import AGENT
from ..errors import EndReason, PeerError
from ..host.net.sockets import GONE
from ..http.writer import BodyWriter
from ..wire import control
from ..wire.frames import HEADER_BYTES, PING, encode_echo
from .counters import Counters, DropReason
from .scheduler import WATCH_BYTES, SendScheduler
from .tx_queue import TxQueue

BASE_PING_AFTER_S: Final = 55.0  # docs/protocol.md#timing: a deployed client gives a silent stream up after 60 s
BASE_SILENCE_S: Final = 60.0  # docs/protocol.md#timing: a base server pings after 55 s
SILENT_KEEPALIVES: Final = 3  # a stream on which so many keepalives were not seen is dead
GRACE_S: Final = 0.3  # what a cancelled stream may take to reach a frame boundary
# So long a device is left alone while the socket is full (`read_device`); then the outbox takes over, which knows what
# to drop. What is queued there costs a copy, and who is late already does not catch up: with 5 ms one blast of eight
# (1,400 bytes) fell to a third of what the others delivered, and the process grew by 12 MB; with 20 none of 8 did.
SOCKET_FULL_WAIT_S: Final = 0.02
# Control frames that wait for a stream that takes nothing. A peer that sends PINGs and reads no PONG gets no more.
MAX_CONTROLS: Final = 16
AGENT_FRAME: Final = control.encode(control.AGENT, AGENT.encode())


@dataclass(frozen=True, slots=True)
class KeepalivePolicy:
    """What keeps a stream from falling silent.

    Attributes:
        after_s: how long a stream may be silent.
        frame: makes the ping, given the sender's clock in ns.
        always: also on a stream that is not idle.
        at_once: also when a stream begins.
        unanswered_s: without an answer for so long the stream is dead; None: pings are not answered.
    """

    after_s: float
    frame: Callable[[int], bytes]
    always: bool = False
    at_once: bool = False
    unanswered_s: float | None = None


BASE_KEEPALIVE: Final = KeepalivePolicy(BASE_PING_AFTER_S, lambda clock_ns: PING)
# Its echo keeps the client's upload alive, whatever the download carries: the client gives an upload up after 60 s
# without a byte, and sends no ping of its own.
GENERATION_2_KEEPALIVE: Final = KeepalivePolicy(BASE_PING_AFTER_S, encode_echo, always=True)
# To a generation 2 server our ping is a bad frame, which ends the upload. The echoes of its pings keep that alive.
NO_PINGING: Final = KeepalivePolicy(math.inf, lambda clock_ns: b"")


def extended_keepalive(keepalive_s: float) -> KeepalivePolicy:
    """PINGs at the keepalive, under load too: they measure the round trip."""
    silent_s = SILENT_KEEPALIVES * keepalive_s
    return KeepalivePolicy(keepalive_s, control.ping, always=True, at_once=True, unanswered_s=silent_s)


def keepalive_policy(keepalive_s: float | None, generation: int = 1) -> tuple[KeepalivePolicy, float]:
    """How a client keeps its streams alive, and after which silence of its download, in seconds, the server is dead to
    it. None: by the rules for a base server, whose ``x-tun-conf`` is of that ``generation``."""
    if keepalive_s is None:
        return BASE_KEEPALIVE if generation == 1 else NO_PINGING, BASE_SILENCE_S
    return extended_keepalive(keepalive_s), SILENT_KEEPALIVES * keepalive_s


class Sender:
    """Frames to one peer, over whichever stream is the newest.

    `send` never blocks and never awaits. Streams come and go through `serve`; in between, frames wait in the
    outbox for as long as it keeps them.
    """

    __slots__ = (
        "_answered_at",
        "_controls",
        "_counters",
        "_fault",
        "_has_room",
        "_pinged_at",
        "_preamble",
        "_queued",
        "_scheduler",
        "_scope",
        "_touched",
        "_unwatched_bytes",
        "_wake",
        "_writer",
        "keepalive",
        "tx_queue",
    )

    def __init__(self, counters: Counters, preamble: bytes = b"") -> None:
        """``preamble``: a control frame with which every stream begins on which control frames were agreed."""
        self._counters = counters
        self._preamble = preamble
        self.tx_queue = TxQueue(counters.drops)
        self._queued = self.tx_queue.batches  # looked at for every burst
        self.keepalive = BASE_KEEPALIVE
        self._writer: BodyWriter | None = None
        self._controls: deque[bytes] = deque()
        self._wake = trio.Event()
        self._has_room = trio.Event()  # set, and a new one, whenever a full socket has taken everything
        self._touched = False  # sent something since the last tick; cheaper than asking the time per burst
        self._unwatched_bytes = 0
        self._scheduler: SendScheduler  # the writer's, as long as there is one
        self._pinged_at = 0.0
        self._answered_at = 0.0
        self._scope = trio.CancelScope()  # of the present stream
        self._fault: Exception | None = None  # a bug in sending, for the stream's own task to raise

    @property
    def streaming(self) -> bool:
        """A stream is attached."""
        return self._writer is not None

    def send(self, frames: memoryview | bytes, packets: int) -> None:
        """Send a run of whole frames, or queue a copy of what the socket does not take now. Never raises: who sends is
        the device's reader, or another session. What goes wrong here ends the stream, in its own task."""
        try:
            writer = self._writer
            if writer is None or writer.pending or self._queued or self._scheduler.paced:
                self.tx_queue.put(frames, packets, trio.current_time())
                self._wake.set()
                return
            self._commit(writer, frames, packets)
            self._unwatched_bytes += len(frames)
            if self._unwatched_bytes > WATCH_BYTES:
                self._unwatched_bytes = 0
                self._scheduler.watch(trio.current_time())
        except MemoryError:  # these packets are lost, and all else goes on
            self._counters.drops[DropReason.NO_MEMORY] += packets
            self._wake.set()
        except Exception as exc:  # noqa: BLE001 - raised by `serve`, or by `tick` if there is no stream
            self._fault = exc
            if self._writer is not None:
                self._writer.mark_broken(EndReason.INTERNAL_ERROR)
                self.release()

    @property
    def stalled(self) -> bool:
        """The socket is full, for a moment as far as we know: nothing is queued behind it, and its path is fast."""
        writer = self._writer
        return writer is not None and bool(writer.pending) and not self._queued and not self._scheduler.paced

    async def wait_for_room(self) -> None:
        """Wait until the stream takes more, for SOCKET_FULL_WAIT_S at most. Cancel-safe; a checkpoint."""
        with trio.move_on_after(SOCKET_FULL_WAIT_S):
            await self._has_room.wait()

    def send_control(self, frame: bytes) -> bool:
        """Send a control frame, or an echo, ahead of what waits in the outbox. Without a stream, or behind too many
        others, it goes nowhere. Returns whether it goes."""
        writer = self._writer
        if writer is None or len(self._controls) >= MAX_CONTROLS:
            return False
        if writer.pending or self._controls:
            self._controls.append(frame)
            self._wake.set()
        else:
            self._commit(writer, frame, 0)
        return True

    def _commit(self, writer: BodyWriter, frames: memoryview | bytes, packets: int) -> None:
        self._touched = True
        if packets:
            self._counters.tx_packets += packets
            self._counters.tx_bytes += len(frames) - HEADER_BYTES * packets
        try:
            writer.send(frames)
        except (PeerError, MemoryError) as exc:
            # The stream is broken, also where there is no memory to keep the rest of a piece that was begun. Its own
            # task finds that out in a moment, and says so; a sender in the middle of another session's work is not the
            # one to end.
            self._writer = None
            writer.mark_broken(exc.reason if isinstance(exc, PeerError) else EndReason.NO_MEMORY)
        if writer.pending or writer.broken:
            self._wake.set()

    async def serve(self, writer: BodyWriter) -> None:
        """Make ``writer`` the stream for everything from now on, and work until a newer one takes over.

        Does not end the body. Raises PeerError when the stream breaks. Cancel-safe: what is pending stays so.
        """
        feed = self._scheduler = SendScheduler(writer.connection, trio.current_time())
        self._writer, older = writer, self._writer
        try:
            if self._controls:
                self._controls.clear()  # they were for the older stream
                self._pinged_at = -math.inf  # a ping may have been among them
            self._touched = True
            if older is not None:
                self._scope.cancel()  # it may be waiting for a peer that takes nothing
            self._answered_at = trio.current_time()
            if self.keepalive.at_once:
                if self._preamble:
                    self.send_control(self._preamble)
                self.ping()  # a first byte for whoever waits for one, and a first round trip
            with trio.CancelScope() as self._scope:
                while self._writer is writer:
                    await self._work(writer, feed)
            if writer.broken and self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            if writer.broken:
                raise PeerError(f"connection to {writer.connection.name} broke", reason=EndReason.BROKEN, key=GONE)
            if self._writer is writer:
                raise PeerError("the other end does not answer any more", reason=EndReason.SILENT)
        finally:
            if self._writer is writer:
                self._writer = None

    async def _work(self, writer: BodyWriter, feed: SendScheduler) -> None:
        """One step: what is pending first, then control frames, then the backlog, else wait."""
        if writer.pending:
            await writer.drain()
            self._has_room.set()
            self._has_room = trio.Event()
        elif self._controls:
            self._commit(writer, self._controls.popleft(), 0)
        elif self.tx_queue:
            now = trio.current_time()
            wait_s, limit_bytes = feed.allowance(now)
            if wait_s:
                await trio.sleep(wait_s)
                return
            packets, frames = self.tx_queue.take(now, limit_bytes, cut=feed.paced)
            if packets:
                self._commit(writer, frames, packets)
            await trio.lowlevel.checkpoint()
        else:
            self._wake = trio.Event()
            await self._wake.wait()

    def release(self) -> None:
        """Let go of the present stream: `serve` returns as it does when a newer one takes over."""
        self._writer = None
        self._scope.cancel()

    def set_keepalive(self, keepalive: KeepalivePolicy) -> None:
        """Another keepalive on the present stream, on which control frames were agreed: by that nobody is late yet."""
        differs, self.keepalive = keepalive.after_s != self.keepalive.after_s, keepalive
        if differs and self._writer is not None:
            self._answered_at = trio.current_time()
            self.ping()

    def answered(self) -> None:
        """A PONG came: what we send arrives."""
        self._answered_at = trio.current_time()

    def begin_pinging(self, *, due: bool) -> None:
        """A stream is about to begin where there was none. ``due``: the peer has waited for a ping long enough."""
        self._pinged_at = -math.inf if due else trio.current_time()

    def ping(self) -> None:
        """Ping now, whatever was sent when."""
        if self.send_control(self.keepalive.frame(time.monotonic_ns())):
            self._pinged_at = trio.current_time()

    def tick(self, now: float, tick_s: float) -> None:
        """Every ``tick_s``: let old frames go, and ping a stream that would be silent for too long by the next. Raises
        what went wrong in `send` and met no stream."""
        if self._fault is not None and self._writer is None:
            fault, self._fault = self._fault, None
            raise fault
        self.tx_queue.expire(now)
        if self._writer is not None:
            self._scheduler.tick(now)
        if self._touched and not self.keepalive.always:
            self._touched = False
            self._pinged_at = now
        elif self._writer is not None and now + tick_s - self._pinged_at > self.keepalive.after_s:
            self.ping()
            self._touched = False
        silent_s = self.keepalive.unanswered_s
        if silent_s is not None and self._writer is not None and now - self._answered_at > silent_s:
            self._scope.cancel()


@asynccontextmanager
async def ending_cleanly(writer: BodyWriter, farewell_frame: Callable[[], bytes] = bytes) -> AsyncIterator[None]:
    """Whatever cancels the body, the stream still ends on a frame boundary if the peer lets it, within GRACE_S:
    a deployed client carries half a frame over into its next stream, and is then deaf.

    ``farewell_frame``: a control frame to send before the end, or nothing.
    """
    try:
        yield
    except trio.Cancelled:
        with trio.move_on_after(GRACE_S, shield=True):
            await writer.try_finish(farewell_frame())
        raise
    except PeerError:
        raise
    except Exception:  # a bug: nothing is said, but a frame that has begun comes to its end
        if not writer.broken:
            with trio.move_on_after(GRACE_S, shield=True), suppress(PeerError):
                await writer.drain()
        raise


@asynccontextmanager
async def breaking_off(writer: BodyWriter) -> AsyncIterator[None]:
    """Whatever cancels the body, or a bug in it, the stream stops on a frame boundary, as far as the peer takes what is
    pending within GRACE_S, and lacks its end.

    For the download of a deployed client. If that ends cleanly, a generation 2 client takes it for a success, and comes
    back at its next rotation, 7 to 15 minutes later; after a failure, within 10 s.
    """
    try:
        yield
    except PeerError:
        raise
    except BaseException:
        await break_off(writer, GRACE_S, shield=True)
        raise


async def break_off(writer: BodyWriter, limit_s: float, *, shield: bool = False) -> None:
    """End a stream on a frame boundary and without its end; reset it if the peer does not take what is pending within
    ``limit_s``. Leaves closing the connection to the caller. Cancelled, it may be called again."""
    with trio.move_on_after(limit_s, shield=shield):
        await writer.try_break_off()
    if writer.pending and not writer.broken:
        writer.connection.abort()
