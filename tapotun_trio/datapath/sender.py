"""The sending half of a session. Frames go straight to the socket while it takes them, otherwise through the queue.

Read `Sender.send` first: every packet to a peer goes through it. `Sender.serve` is the task of the stream that is
attached at the moment; `OutboundStream` has the state of that one stream.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from .. import AGENT
from ..errors import EndReason, PeerError
from ..host.net.sockets import GONE
from ..http.writer import BodyWriter
from ..wire import control
from ..wire.frames import BASE_PING, HEADER_BYTES, encode_echo
from .counters import Counters, DropReason
from .plane import Plane, PlanePort, current_plane
from .scheduler import WATCH_BYTES, SendScheduler
from .steps import CannotLendError
from .tx_queue import TxQueue

BASE_PING_AFTER_S: Final = 55.0  # docs/protocol.md#timing: a deployed client gives a silent stream up after 60 s
BASE_SILENCE_S: Final = 60.0  # docs/protocol.md#timing: a base server pings after 55 s
SILENT_KEEPALIVES: Final = 3  # a stream is dead once this many keepalives in a row were not seen
GRACE_S: Final = 0.3  # time for a cancelled stream to reach a frame boundary
# How long `read_device` stops reading the TUN while the socket is full. After that the queue takes over, which knows
# what to drop. Queueing costs a copy, and a sender that is late already does not catch up. With 5 ms, one of eight
# concurrent UDP floods (1,400-byte packets) fell to a third of what the others delivered, and the process grew by
# 12 MB; with 20 ms none of eight did.
SOCKET_FULL_WAIT_S: Final = 0.02
# Limit of control frames that wait for a full socket. A peer that sends PINGs and reads no PONGs gets no further PONGs.
MAX_CONTROLS: Final = 16
AGENT_FRAME: Final = control.encode(control.AGENT, AGENT.encode())
_shutdown_reason: Final = trio.lowlevel.RunVar[str | None]("shutdown reason", None)


@dataclass(frozen=True, slots=True)
class KeepalivePolicy:
    """How a stream is kept from falling silent.

    Attributes:
        after_s: how long a stream may be silent.
        frame: makes the ping, given the sender's clock in ns.
        always: ping every ``after_s``, even if the stream carries packets.
        at_once: ping also when a stream begins.
        unanswered_s: the stream is dead after this long without an answer; None: pings are not answered.
    """

    after_s: float
    frame: Callable[[int], bytes]
    always: bool = False
    at_once: bool = False
    unanswered_s: float | None = None


BASE_KEEPALIVE: Final = KeepalivePolicy(BASE_PING_AFTER_S, lambda clock_ns: BASE_PING)
# A download begins with a ping. Some proxies forward the head of an answer only together with the first bytes of its
# body. Without the ping, a base client behind such a proxy would get the head only with the first packet.
BASE_DOWNLOAD_KEEPALIVE: Final = replace(BASE_KEEPALIVE, at_once=True)
# The client echoes this ping, which keeps its upload alive even while the download carries packets: it gives an upload
# up after 60 s without a byte, and sends no ping of its own.
GENERATION_2_KEEPALIVE: Final = KeepalivePolicy(BASE_PING_AFTER_S, encode_echo, always=True, at_once=True)
# To a generation 2 server our ping is a malformed frame, which ends the upload. The echoes of its own pings keep the
# upload alive.
NO_PINGING: Final = KeepalivePolicy(math.inf, lambda clock_ns: b"")


def extended_keepalive(keepalive_s: float) -> KeepalivePolicy:
    """PING every ``keepalive_s``, under load too, because PINGs also measure the round trip."""
    silent_s = SILENT_KEEPALIVES * keepalive_s
    return KeepalivePolicy(keepalive_s, control.ping, always=True, at_once=True, unanswered_s=silent_s)


def keepalive_policy(keepalive_s: float | None, generation: int = 1) -> tuple[KeepalivePolicy, float]:
    """How a client keeps its streams alive, and when it considers the server dead.

    Args:
        keepalive_s: as agreed with an extended server; None: the rules for a base server apply.
        generation: the generation of a base server's ``x-tun-conf``.

    Returns:
        The policy, and the silence of the download, in seconds, after which the server is dead to the client.
    """
    if keepalive_s is None:
        return BASE_KEEPALIVE if generation == 1 else NO_PINGING, BASE_SILENCE_S
    return extended_keepalive(keepalive_s), SILENT_KEEPALIVES * keepalive_s


class OutboundStream:
    """The state of one stream on which we send, from the beginning of `Sender.serve` to its end.

    Attributes:
        writer: writes the stream's body.
        scheduler: decides what to send next, and when.
        scope: cancelling it ends the stream's `Sender.serve`.
        answered_at: when the peer last answered a ping, or when the stream began.
        unwatched_bytes: sent since the scheduler was last asked to look at the path.
    """

    __slots__ = ("answered_at", "scheduler", "scope", "unwatched_bytes", "writer")

    def __init__(self, writer: BodyWriter, now: float) -> None:
        self.writer = writer
        self.scheduler = SendScheduler(writer.connection, now)
        self.scope = trio.CancelScope()
        self.answered_at = now
        self.unwatched_bytes = 0


class Sender:
    """Sends frames to one peer, over the newest of its streams.

    `send` never blocks and never awaits. Each stream runs `serve` for as long as it is the newest. Between two streams
    frames wait in the queue, until they are too old.

    Attributes:
        stream: the stream that is attached at the moment; None: there is none.
        tx_queue: what waits to be sent.
        keepalive: used from the next stream on; `set_keepalive` changes it on the present one.
        ipv6: whether packets of IPv6 may be sent: the peer of the present stream, or of the last one, has agreed to get
            them. Whoever calls `send` checks it.
    """

    __slots__ = (
        "_controls",
        "_counters",
        "_fault",
        "_lent",
        "_pinged_at",
        "_port",
        "_preamble",
        "_queued",
        "_refused",
        "_room",
        "_sent_since_tick",
        "_wake",
        "ipv6",
        "keepalive",
        "stream",
        "tx_queue",
    )

    def __init__(self, counters: Counters, preamble: bytes = b"") -> None:
        """``preamble``: a control frame that begins every stream on which control frames were agreed."""
        self._counters = counters
        self._preamble = preamble
        self.tx_queue = TxQueue(counters.drops)
        self._queued = self.tx_queue.batches  # looked at for every burst; cheaper than a call of `TxQueue.__bool__`
        self.keepalive = BASE_KEEPALIVE
        self.stream: OutboundStream | None = None
        self.ipv6 = False
        self._controls: deque[bytes] = deque()
        self._wake = trio.Event()
        self._room = trio.Event()  # set, and replaced by a new one, whenever a full socket has taken everything
        self._sent_since_tick = False  # cheaper than reading the clock for every burst
        self._pinged_at = 0.0
        self._fault: Exception | None = None  # a bug in `send`, to be raised by the stream's own task
        self._port: PlanePort | None = None  # made at first use
        self._lent: OutboundStream | None = None  # the stream whose socket is lent to the plane
        self._refused = False  # the plane could not take it; to be tried again

    @property
    def streaming(self) -> bool:
        """Whether a stream is attached."""
        return self.stream is not None

    @property
    def waiting_controls(self) -> int:
        """How many control frames wait for the socket to take more, at most MAX_CONTROLS."""
        return len(self._controls)

    def send(self, frames: memoryview | bytes, packets: int) -> None:
        """Send a batch of whole frames, or queue a copy of what the socket does not take now.

        Never raises: the caller is the task that reads the device, or another session. A failure ends this peer's
        stream, in that stream's own task.
        """
        try:
            if self._lent is not None:
                self._yield_if_full()
            stream = self.stream
            if stream is None or stream.writer.pending or self._queued or stream.scheduler.paced:
                self.tx_queue.put(frames, packets, trio.current_time())
                self._wake.set()
                return
            size = len(frames)
            self._commit(stream.writer, frames, packets, size)
            stream.unwatched_bytes += size
            if stream.unwatched_bytes > WATCH_BYTES:
                stream.unwatched_bytes = 0
                stream.scheduler.watch(trio.current_time())
                if self._lent is not None:
                    self._yield_if_paced(stream)
        except MemoryError:  # only these packets are lost
            self._counters.drops[DropReason.NO_MEMORY] += packets
            self._wake.set()
        except Exception as exc:  # noqa: BLE001 - raised by `serve`, or by `tick` if there is no stream
            self._fault = exc
            if self.stream is not None:
                self.stream.writer.mark_broken(EndReason.INTERNAL_ERROR)
                self.release()

    @property
    def stalled(self) -> bool:
        """Whether the socket is full, probably only for a moment: nothing is queued behind it, and its path is fast."""
        stream = self.stream
        return stream is not None and bool(stream.writer.pending) and not self._queued and not stream.scheduler.paced

    async def wait_for_room(self) -> None:
        """Wait until the stream takes more, for at most SOCKET_FULL_WAIT_S. Cancel-safe; a checkpoint."""
        with trio.move_on_after(SOCKET_FULL_WAIT_S):
            await self._room.wait()

    def send_control(self, frame: bytes) -> bool:
        """Send a control frame, or an echo, ahead of the queue.

        The frame is dropped if there is no stream, or if MAX_CONTROLS others wait already. Returns whether it is sent.
        """
        if self._lent is not None:
            self._yield_if_full()
        stream = self.stream
        if stream is None or len(self._controls) >= MAX_CONTROLS:
            return False
        if stream.writer.pending or self._controls:
            self._controls.append(frame)
            self._wake.set()
        else:
            self._commit(stream.writer, frame, 0, len(frame))
        return True

    def _commit(self, writer: BodyWriter, frames: memoryview | bytes, packets: int, size_bytes: int) -> None:
        """Hand frames to the present stream's writer. They can no longer be dropped."""
        self._sent_since_tick = True
        if packets:
            self._counters.tx_packets += packets
            self._counters.tx_bytes += size_bytes - HEADER_BYTES * packets
        try:
            writer.send(frames)
        except (PeerError, MemoryError) as exc:
            # The stream is broken. So it is if there is no memory for the rest of a piece whose beginning was sent. The
            # stream's own task finds that out in a moment, and raises. It is not raised here, because the caller may be
            # in the middle of another session's work.
            self.stream = None
            writer.mark_broken(exc.reason if isinstance(exc, PeerError) else EndReason.NO_MEMORY)
        if writer.pending or writer.broken:
            if self._lent is not None:
                self._take_back()
            self._wake.set()

    def set_ipv6(self, allowed: bool) -> None:
        """Change `ipv6`. If it is no longer allowed, waiting packets of IPv6 are dropped, and the plane sends none."""
        if self.ipv6 and not allowed:
            self.tx_queue.drop_ipv6(DropReason.NOT_IPV4)
            self.port_handed_back()
            self._port = None  # a verdict of the plane that names it sends nothing any more
        self.ipv6 = allowed

    async def serve(self, writer: BodyWriter, *, ipv6: bool = False) -> None:
        """Send everything through ``writer`` from now on, until a newer stream takes over. ``ipv6``: the peer of this
        stream has agreed to get IPv6.

        Does not end the body. Raises PeerError when the stream breaks. Cancel-safe: pending bytes stay pending.
        """
        self._take_back()
        self.set_ipv6(ipv6)
        older, stream = self.stream, OutboundStream(writer, trio.current_time())
        self.stream = stream
        try:
            if self._controls:
                self._controls.clear()  # these frames were for the older stream
                self._pinged_at = -math.inf  # a ping may have been among them
            self._sent_since_tick = True
            if older is not None:
                older.scope.cancel()  # the older stream may be waiting for a peer that takes nothing
            if self.keepalive.at_once:
                if self._preamble:
                    self.send_control(self._preamble)
                self.ping()  # a peer or proxy may wait for a first byte; it also gives the first round trip sample
            with stream.scope:
                while self.stream is stream:
                    await self._work(stream)
            if writer.broken and self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            if writer.broken:
                raise PeerError(f"connection to {writer.connection.name} broke", reason=EndReason.BROKEN, key=GONE)
            if self.stream is stream:
                raise PeerError("the other end does not answer any more", reason=EndReason.SILENT)
        finally:
            if self.stream is stream:
                self.stream = None

    async def _work(self, stream: OutboundStream) -> None:
        """Send pending bytes first, then control frames, then a part of the queue. If there is nothing to send,
        wait."""
        if stream.writer.pending:
            await stream.writer.drain()
            self._room.set()
            self._room = trio.Event()
        elif self._controls:
            control_frame = self._controls.popleft()
            self._commit(stream.writer, control_frame, 0, len(control_frame))
        elif self.tx_queue:
            now = trio.current_time()
            wait_s, limit_bytes = stream.scheduler.allowance(now)
            if wait_s:
                await trio.sleep(wait_s)
                return
            packets, frames = self.tx_queue.take(now, limit_bytes, cut=stream.scheduler.paced)
            if packets:
                self._commit(stream.writer, frames, packets, len(frames))
            await trio.lowlevel.checkpoint()
        else:
            self._wake = trio.Event()
            try:
                self._lend(stream)
                await self._wake.wait()
            finally:
                if self._lent is stream:  # otherwise a newer stream is lent by now, and its task waits for it
                    self._take_back()

    # -- the plane, which sends while this has nothing to do; see `plane`

    def port(self, plane: Plane) -> PlanePort:
        """The port for verdicts of the plane on frames for this peer."""
        if self._port is None:
            self._port = PlanePort(plane, self._counters)
        return self._port

    def _lend(self, stream: OutboundStream) -> None:
        """Lend the socket of the present stream, if that is possible."""
        if self.stream is not stream or stream.scheduler.paced or stream.writer.broken or not stream.writer.can_lend:
            return
        plane = current_plane()
        if plane is not None:
            try:
                self.port(plane).lend(stream.writer.connection, self)
            except (CannotLendError, MemoryError):  # then Python sends
                self._refused = True
            else:
                self._lent = stream

    def _take_back(self) -> None:
        """Take the socket back, if it is lent: everything goes through `send` again. If the plane could not send on it,
        the stream is broken."""
        stream, self._lent = self._lent, None
        if stream is not None and self._port is not None:
            try:
                rest, failure = self._port.take_back()
                if rest:
                    stream.writer.pending = memoryview(rest)
            except MemoryError as exc:  # what the socket has not taken is lost, maybe the rest of a chunk
                failure = exc
            if failure is not None:  # the stream's own task raises it
                if self.stream is stream:
                    self.stream = None
                reason = EndReason.NO_MEMORY if isinstance(failure, MemoryError) else EndReason.INTERNAL_ERROR
                stream.writer.mark_broken(failure.reason if isinstance(failure, PeerError) else reason)
                self._wake.set()

    def _yield_if_full(self) -> None:
        """If something waits in the plane for the socket, what comes now has to wait behind it. If the plane has failed
        to send, maybe in the middle of a chunk, the stream is broken."""
        if self._port is not None and self._port.waiting_bytes:
            self._take_back()
            self._wake.set()

    def port_watch(self) -> None:
        if self._lent is not None:
            self._lent.scheduler.watch(trio.current_time())
            self._yield_if_paced(self._lent)

    def _yield_if_paced(self, stream: OutboundStream) -> None:
        """If the path has to be paced from now on, the plane must not send on it."""
        if stream.scheduler.paced and self._lent is stream:
            # At once: what comes next is queued, and the plane runs once more before the task of the stream does. What
            # it sent then would overtake the queue.
            self.port_handed_back()

    def port_sent(self) -> None:
        self._sent_since_tick = True

    def port_handed_back(self) -> None:
        self._take_back()
        self._wake.set()

    def release(self) -> None:
        """Detach the present stream: its `serve` returns as it does when a newer stream takes over."""
        self._take_back()
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.scope.cancel()

    def set_keepalive(self, keepalive: KeepalivePolicy) -> None:
        """Change the keepalive, on the present stream too. The time to answer starts anew, so no peer is late at once.
        Call it only for a stream on which control frames were agreed.
        """
        differs = keepalive.after_s != self.keepalive.after_s
        self.keepalive = keepalive
        if differs and self.stream is not None:
            self.stream.answered_at = trio.current_time()
            self.ping()

    def answered(self) -> None:
        """A PONG arrived, so what we send arrives."""
        if self.stream is not None:
            self.stream.answered_at = trio.current_time()

    def ping(self) -> None:
        """Ping now, however recent the last ping is."""
        if self.send_control(self.keepalive.frame(time.monotonic_ns())):
            self._pinged_at = trio.current_time()

    def tick(self, now: float, tick_s: float) -> None:
        """Drop old frames, and ping a stream that would otherwise be silent for too long before the next tick.

        To be called every ``tick_s``. Raises a bug of `send` that happened while there was no stream.
        """
        if self._fault is not None and self.stream is None:
            fault, self._fault = self._fault, None
            raise fault
        self.tx_queue.expire(now)
        if self.stream is not None:
            scheduler = self.stream.scheduler
            was_paced = scheduler.paced
            scheduler.tick(now)
            if self._refused or (was_paced and not scheduler.paced):
                self._refused = False
                self._wake.set()  # its task may lend it to the plane again, which nothing else would tell it
        if self._sent_since_tick and not self.keepalive.always:
            self._sent_since_tick = False
            self._pinged_at = now
        elif self.stream is not None and now + tick_s - self._pinged_at > self.keepalive.after_s:
            self.ping()
            self._sent_since_tick = False
        silent_s = self.keepalive.unanswered_s
        if silent_s is not None and self.stream is not None and now - self.stream.answered_at > silent_s:
            self.stream.scope.cancel()


def set_shutdown_reason(reason: str) -> None:
    """Why this process stops, for its last frames: `shutdown_frame` says it from now on. It holds for one trio.run."""
    _shutdown_reason.set(reason)


def shutdown_frame(reason: str) -> bytes:
    """The BYE of a stream that is cancelled. ``reason``: used unless the whole process has one."""
    return control.bye(_shutdown_reason.get() or reason)


@asynccontextmanager
async def ending_cleanly(writer: BodyWriter, farewell_frame: Callable[[], bytes] = bytes) -> AsyncIterator[None]:
    """When the body of the ``with`` is cancelled, end the stream on a frame boundary.

    The peer has GRACE_S to take what is pending. A deployed client keeps half a frame for its next stream, and then
    cannot decode that stream.

    ``farewell_frame``: makes a control frame to send before the end, or nothing.
    """
    try:
        yield
    except trio.Cancelled:
        with trio.move_on_after(GRACE_S, shield=True):
            await writer.try_finish(farewell_frame())
        raise
    except PeerError:
        raise
    except Exception:  # a bug: nothing more is sent, except the rest of a frame that has begun
        if not writer.broken:
            with trio.move_on_after(GRACE_S, shield=True), suppress(PeerError):
                await writer.drain()
        raise


@asynccontextmanager
async def breaking_off(writer: BodyWriter) -> AsyncIterator[None]:
    """When the body of the ``with`` is cancelled or has a bug, stop on a frame boundary and leave out the stream's end.

    The peer has GRACE_S to take what is pending.

    This is for the download of a deployed client. If it ends cleanly, a generation 2 client counts that as a success,
    and reconnects at its next rotation, 7 to 15 minutes later; after a failure it reconnects within 10 s.
    """
    try:
        yield
    except PeerError:
        raise
    except BaseException:
        await break_off(writer, GRACE_S, shield=True)
        raise


async def break_off(writer: BodyWriter, limit_s: float, *, shield: bool = False) -> None:
    """Stop a stream on a frame boundary and leave out its end; reset it if the peer does not take what is pending.

    ``limit_s``: how long the peer has for that. The caller closes the connection. If this is cancelled, it may be
    called again.
    """
    with trio.move_on_after(limit_s, shield=shield):
        await writer.try_break_off()
    if writer.pending and not writer.broken:
        writer.connection.abort()
