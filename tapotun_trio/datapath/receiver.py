"""The inbound path: the receiving half of one stream, at either end and over either transport.

A `Receiver` drives the loop. It hands the frames of each receive to ``deliver`` and each control frame to
``on_control``, which belong to the client or to the session. `deliver_to_device` is what a client does with frames;
`Session.forward` is what a server does with them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import trio

from ..errors import EndReason, PeerError
from ..families import stays_on_link
from ..host.net.sockets import Connection
from ..wire import control
from ..wire.frames import (
    ECHO_FIRST_BYTE,
    ECHO_PACKET_BYTES,
    ETHERNET_HEAD,
    HEAD,
    IPV6_DESTINATION_AT,
    IPV6_SOURCE_AT,
    MIN_IPV6_BYTES,
    NEXT_HEADER_AT,
    ROUTED_IPV6_HEAD,
    FrameRange,
    FrameReader,
)
from ..wire.vnet import is_bounded
from .counters import Counters, DropReason
from .plane import DeliverNow, Lane, current_plane, current_steps
from .sender import MAX_CONTROLS
from .steps import CannotLendError, Next
from .tun_io import DeviceWriter

# Takes the frames that one step completed: the buffer, and where they are in it. May raise PeerError.
Deliver: TypeAlias = Callable[[FrameReader, list[FrameRange]], Awaitable[None]]
# Takes one control frame: its kind and its payload. May raise PeerError.
OnControl: TypeAlias = Callable[[int, bytes], Awaitable[None]]
# Queues a control frame or an echo for the peer. The result is not used: a frame that finds no room is dropped.
SendControl: TypeAlias = Callable[[bytes], object]


class Receiver:
    """The receiving half of one stream: its loop, how long it has been silent, and its early end.

    ::

        receiver = Receiver(connection, reader, deliver, on_control, sender.send_control)
        with receiver.running():
            await receiver.run(reader.prime(rest))

    Another task calls `tick` once a second, and may call `end`.

    Attributes:
        ended: set when the block of `running` is left: the last frame was delivered.
    """

    __slots__ = (
        "_arrivals",
        "_arrivals_at_tick",
        "_because",
        "_connection",
        "_deliver",
        "_heard_at",
        "_lane",
        "_on_control",
        "_reader",
        "_scope",
        "_send_control",
        "_silence_s",
        "ended",
    )

    def __init__(
        self,
        connection: Connection,
        reader: FrameReader,
        deliver: Deliver,
        on_control: OnControl,
        send_control: SendControl,
        lane: Callable[[], Lane | DeliverNow | None] = lambda: None,
    ) -> None:
        """The caller closes ``connection``.

        Args:
            deliver: gets the frames of every step, in order; called even for a step without frames.
            on_control: gets every control frame, in order and after the frames of its step. Of several PINGs in one
                step it gets only the last, after all other control frames.
            send_control: takes the PONG for that PING.
            lane: where the plane may put frames from now on, or if it has no native part for that, what takes them at
                once; None: for now ``deliver`` has to take them.
        """
        self._connection = connection
        self._reader = reader
        self._deliver = deliver
        self._on_control = on_control
        self._send_control = send_control
        self._lane = lane
        self._scope = trio.CancelScope()
        self._because: PeerError | None = None
        self._heard_at = trio.current_time()
        self._silence_s = 0.0  # the limit at the last tick
        self._arrivals = 0  # receives that brought something
        self._arrivals_at_tick = -1
        self.ended = trio.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """`end` cancels the body; then this raises the error that `end` was given. Use it once."""
        try:
            with self._scope:
                yield
        finally:
            self.ended.set()
        if self._because is not None:
            raise self._because.without_traceback()

    async def run(self, first: list[FrameRange], before_step: Callable[[], None] | None = None) -> None:
        """Receive until the end of the body. Other tasks run between two steps.

        Cancel-safe between steps only: what was received and not delivered is lost with the stream.

        Args:
            first: the frames that came together with the head; ``deliver`` is called even if there are none.
            before_step: called before the frames of each step are delivered.

        Raises:
            PeerError: a malformed frame, a broken connection, or what ``deliver`` and ``on_control`` raise.
        """
        connection, reader, deliver = self._connection, self._reader, self._deliver
        frames = first
        while True:
            if before_step is not None:
                before_step()
            await deliver(reader, frames)
            if reader.controls:
                await self._take_controls()
            if reader.ended:
                return
            if reader.pending:
                await trio.lowlevel.checkpoint()
                frames = reader.feed(0)
                continue
            found = await self._lend(before_step)
            if found is not None:
                frames = found
                continue
            received = await connection.receive(reader.space())
            self._arrivals += 1
            if received == 0:
                reader.eof()
            frames = reader.feed(received)

    async def _lend(self, before_step: Callable[[], None] | None) -> list[FrameRange] | None:
        """Let the plane receive until something needs this task. Returns the frames to deliver now; None: the plane
        cannot receive now."""
        connection, reader, steps = self._connection, self._reader, current_steps()
        if steps is None or connection.fileno() < 0:
            return None
        plane, lane = current_plane(), self._native_lane()
        try:
            if plane is not None and lane is not None:
                if await plane.receive(connection, reader, lane, self._count_arrivals):
                    reader.eof()
                return reader.feed(0) if reader.pending else []
            if (found := self._lane()) is not None:
                deliver = found.deliver if isinstance(found, Lane) else found
                await steps.lend(
                    (connection.fileno(),), partial(self._step, deliver, before_step), connection.borrowers
                )
                return []
        except CannotLendError:
            pass
        return None

    def _native_lane(self) -> Lane | None:
        """Where the native plane may put frames now; None: it cannot receive now, and maybe never."""
        if current_plane() is None or not self._reader.can_lend() or not self._connection.can_lend_receiving:
            return None
        lane = self._lane()
        return lane if isinstance(lane, Lane) else None

    def _step(self, deliver: DeliverNow, before_step: Callable[[], None] | None) -> Next:
        """What `run` does with one receive, without waiting: for the plane."""
        connection, reader = self._connection, self._reader
        if reader.pending:
            frames = reader.feed(0)
        else:
            received = connection.try_receive(reader.space())
            if received is None:
                return Next.READABLE
            self._arrivals += 1
            if received == 0:
                reader.eof()
            frames = reader.feed(received)
        if before_step is not None:
            before_step()
        deliver(reader, frames)
        if reader.controls or reader.ended or self._native_lane() is not None:
            return Next.TASK
        return Next.AGAIN if reader.pending or connection.holds_received else Next.READABLE

    def _count_arrivals(self, arrivals: int) -> None:
        self._arrivals += arrivals

    async def _take_controls(self) -> None:
        """Only the last PING of a step is answered, as RFC 6455 section 5.5.3 allows: an answer costs more than a
        PING."""
        controls, self._reader.controls = self._reader.controls, []
        ping: bytes | None = None
        for kind, payload in controls:
            if kind == control.PING:
                ping = payload
            else:
                await self._on_control(kind, payload)
        if ping is not None:
            self._send_control(control.encode(control.PONG, ping))
            await self._on_control(control.PING, ping)

    def tick(self, now: float, silence_s: float) -> bool:
        """Call it about once a second. Ends the stream if nothing came for ``silence_s``. Returns whether something
        came since the last tick."""
        if silence_s < self._silence_s:  # a shorter limit counts from now on, since more was allowed until now
            self._heard_at = now
        self._silence_s = silence_s
        if self._arrivals != self._arrivals_at_tick:
            self._arrivals_at_tick = self._arrivals
            self._heard_at = now
            return True
        if now - self._heard_at >= silence_s:
            self.end(PeerError(f"nothing came for {silence_s:.0f} s", reason=EndReason.SILENT))
        return False

    def end(self, because: PeerError) -> None:
        """Cancel the stream. Its own task raises ``because``."""
        self._because = because
        self._scope.cancel()

    @property
    def brought_anything(self) -> bool:
        """Whether any bytes have been received."""
        return self._arrivals > 0

    @property
    def heard_at(self) -> float:
        """When something came last, to within one tick; when the stream began, if nothing has come."""
        return self._heard_at

    @property
    def was_ended(self) -> bool:
        """Whether `end` was called."""
        return self._because is not None


def refused_ipv6(view: memoryview, at: int) -> DropReason | None:
    """Why a client lets an IPv6 packet pass in neither direction; None: it may pass.

    Callers ask only if it may be refused: its next header is 0, or an address of it begins with 0xFE or 0xFF. ``at``:
    where its frame is in the buffer; it has room for an IPv6 header. Untrusted input; never raises.
    """
    payload_bytes, next_header, key = ROUTED_IPV6_HEAD.unpack_from(view, at)
    if not (payload_bytes or next_header):
        return DropReason.JUMBOGRAM
    return DropReason.LINK_LOCAL if stays_on_link(key) else None


def deliver_to_device(
    view: memoryview,
    frames: list[FrameRange],
    device: DeviceWriter,
    counters: Counters,
    send_control: SendControl,
    *,
    ipv6: bool = False,
) -> None:
    """A client's per-frame loop: write the packets to the device, send echoes back to the server, count everything.

    ``ipv6``: whether IPv6 was agreed on. What must not leave its link is dropped: with a router advertisement a server
    could change the configuration of this machine.

    Raises PeerError at a frame that no honest server sends, after the frames before it were written; HostError if the
    device is gone.
    """
    unpack = HEAD.unpack_from
    echoes, inward = list[bytes](), list[FrameRange]()
    packets = packets_bytes = 0
    try:
        for frame in frames:
            start, stop, count = frame
            length, gso_type, gso_size, first = unpack(view, start)
            if first >> 4 != 4:
                if first == ECHO_FIRST_BYTE and length == ECHO_PACKET_BYTES:
                    # A generation 2 ping is sent back unchanged (docs/protocol.md#base-pings), up to a limit.
                    if len(echoes) < MAX_CONTROLS:
                        echoes.append(bytes(view[start:stop]))
                    continue
                if first >> 4 != 6:
                    raise PeerError("frame without an IP packet", reason=EndReason.BAD_FRAME)
                if not ipv6:
                    counters.drops[DropReason.NOT_IPV4] += count
                    continue
                if length < MIN_IPV6_BYTES:
                    raise PeerError(f"frame with an IPv6 packet of {length} bytes", reason=EndReason.BAD_FRAME)
                if (
                    view[start + NEXT_HEADER_AT] == 0
                    or view[start + IPV6_SOURCE_AT] >= 0xFE
                    or view[start + IPV6_DESTINATION_AT] >= 0xFE
                ) and (reason := refused_ipv6(view, start)) is not None:
                    counters.drops[reason] += count
                    packets += count
                    packets_bytes += count * length
                    continue
            if gso_type and not is_bounded(length, gso_size):
                raise PeerError("super-packet of absurdly small packets", reason=EndReason.BAD_VNET)
            packets += count
            packets_bytes += count * length
            inward.append(frame)
    finally:  # the frames before a bad one are good
        counters.rx_packets += packets
        counters.rx_bytes += packets_bytes
        device.write_all(view, inward, counters.drops)
    for echo in echoes:
        send_control(echo)


def deliver_ethernet(view: memoryview, frames: list[FrameRange], device: DeviceWriter, counters: Counters) -> None:
    """A client's per-frame loop on a TAP interface: write everything to the device, and count it. What is in a frame is
    the business of this machine's bridge, or of its network stack.

    A super-packet of absurdly small packets is dropped, as if the kernel had refused it. That is no fault of the
    server: the kernel passes on what a virtual machine at the server's bridge has made up.

    Raises HostError if the device is gone.
    """
    unpack = ETHERNET_HEAD.unpack_from
    absurd = set[FrameRange]()
    packets = packets_bytes = 0
    for frame in frames:
        start, _, count = frame
        length, gso_type, gso_size = unpack(view, start)
        packets += count
        packets_bytes += count * length
        if gso_type and not is_bounded(length, gso_size):
            absurd.add(frame)
            counters.drops[DropReason.DEVICE_REFUSED] += count
    counters.rx_packets += packets
    counters.rx_bytes += packets_bytes
    device.write_all(view, [frame for frame in frames if frame not in absurd] if absurd else frames, counters.drops)
