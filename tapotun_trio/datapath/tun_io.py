"""Reading and writing the TUN device: `read_device` towards the streams, `DeviceWriter` from them.

One read of the device is a burst of many frames, and one receive from a stream brings many frames, too. Both are
handled where they were read, in one buffer; a copy is made only of what has to wait.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from mmap import mmap
from typing import Final, NoReturn, Protocol, TypeAlias

import trio

from ..errors import EndReason, PeerError, ShortageError, passing_shortages, shortage_of
from ..host.interfaces import Device, LendableDevice, LendableQueue, Queue
from ..log import Log, RateLimitedLog
from ..wire.frames import (
    HEADER_BYTES,
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    MAX_PACKET_BYTES,
    MIN_ETHERNET_BYTES,
    MIN_IPV6_BYTES,
    MIN_PACKET_BYTES,
    FrameRange,
    Parts,
)
from ..wire.uniform import MIN_BLOCK_FRAMES, count_uniform, count_uniform_ethernet
from ..wire.vnet import GSO_UDP_L4, VNET_BYTES, validate_vnet_header
from .counters import DropReason
from .gro_udp import MIN_RUN_FRAMES, coalesce, coalesce_block, find_runs
from .plane import Flows, Plane, Verdict, current_plane, current_steps
from .sender import Sender
from .steps import CannotLendError, Next

# A burst is sent when it has grown to four super-packets. With two the far end starts to work earlier, but both ends
# pay more, for one wake-up and one send each (measured: 1.9 against 1.6 CPU seconds per GB, at the same throughput).
BURST_BYTES: Final = 256 * 1024
# Where the first frame of a burst is: a little further into a page than what is sent before it is long, the size line
# of a chunk ("1fd94", CR, LF) or the head of a WebSocket frame. So the kernel copies to a place in a page that is a
# little before the place of the source. With a start at 0 it was some bytes behind, and each load looked to the CPU
# as if it needed the store before it, because it compares the lower 12 bits of addresses first. On Zen 4 that copy
# took three times as long, and TCP through the plane was 0.75 to 0.81 of the relay's instead of 0.93 to 1.01
# (docs/performance-notes.md, Where the copy goes).
SLAB_START: Final = 16
_SLAB_BYTES: Final = SLAB_START + BURST_BYTES + MAX_FRAME_BYTES
# Bursts without a wait in between. Waiting costs as much as a dozen small packets (epoll, a task switch).
_BURSTS_PER_WAKE: Final = 4

# A server opens one device queue for each client, up to this many. With a single queue the clients' TCP connections got
# unequal shares, and a burst was sent in as many pieces as there were changes of client in it. Measured with 8
# downloads: Jain's index 0.93 -> 0.99, total throughput 4.5 -> 8 Gbit/s. One small packet in turn for each of many
# clients costs 10 % more.
MAX_QUEUES: Final = 16

# Limits a burst of small packets, or of packets that are dropped, so that other tasks get their turn.
_READS_PER_BURST: Final = 512

# How long to wait before the next read when this machine lacks memory, and how often that is logged.
SHORTAGE_PAUSE_S: Final = 0.1
SHORTAGE_S: Final = 60.0

QUEUE_BYTES: Final = 1024 * 1024

# Looking for runs costs 0.9 us a packet, so it is skipped after a receive that had none.
_MAX_SEARCH_SKIPS: Final = 63
# Writing super-packets is skipped while the kernel refuses each of them and takes their segments: before Linux 6.2 it
# knows no UDP super-packets. (It has always known TCP's.) Once the kernel has taken one, a refusal is about that single
# packet, which a peer may have caused on purpose, so the next one is tried again.
_MAX_GSO_SKIPS: Final = 1023

# Finds the sender for the frame at this offset of the buffer; None: drop the frame. The function counts the drop.
Classify: TypeAlias = Callable[[memoryview, int], Sender | None]
# Takes the frames of a burst of a TAP interface: the buffer, and where they are in it. They are good until it returns.
EthernetDispatch: TypeAlias = Callable[[memoryview, list[FrameRange]], None]


class FrameJudge(Protocol):
    """The decisions of `Classify`, for the plane."""

    def flows(self, plane: Plane) -> Flows:
        """The verdicts on the frames of the device."""

    def judge(self, view: memoryview, at: int, /) -> Verdict:
        """What was decided for the frame at this offset. Does not count it."""


class AdaptiveSkip:
    """Decides whether to try something that may be futile: after each failure more occasions are skipped.

    One occasion is skipped after the first failure, then three, seven, and so on. What works is tried every time.

    Attributes:
        max_skips: the most occasions to skip in a row, so that an improvement is noticed.
    """

    __slots__ = ("_left", "_skips", "max_skips")

    def __init__(self, max_skips: int) -> None:
        self.max_skips = max_skips
        self._skips = 0  # occasions to skip after the last failure; 0: the last try succeeded
        self._left = 0  # occasions that are still to be skipped

    def should_try(self) -> bool:
        """Whether to try now. If not, this occasion counts as skipped."""
        if self._left:
            self._left -= 1
            return False
        return True

    def succeeded(self) -> None:
        self._skips = 0

    def failed(self) -> None:
        self._skips = self._left = min(2 * self._skips + 1, self.max_skips)


async def read_device(
    device: Device,
    classify: Classify,
    only_sender: Callable[[], Sender | None],
    log: Log | None = None,
    judge: FrameJudge | None = None,
    *,
    ethernet: EthernetDispatch | None = None,
) -> None:
    """Move frames from the device to the senders, forever.

    Frames are read into one buffer, with room for a length field before each, so that a burst is in wire format without
    a copy. Adjacent frames to the same sender are handed over as one slice of the buffer.

    Args:
        classify: finds the sender for a frame.
        only_sender: the sender for everything, if there is just one; else None. While its socket is full the device is
            not read, so the kernel keeps the packets. That costs nothing, and holds a local TCP back before a packet
            is lost. With several senders, none waits for the socket of another, and what a full socket does not take is
            copied. Measured with one TCP stream: 5 % less CPU per byte, 26 % fewer wake-ups of the sender; a UDP flood
            delivers 10 % more at 64 bytes, 30 % more at 1,400.
        log: where a lack of memory is logged, every SHORTAGE_S at most. The burst that met it is lost.
        judge: for the plane. None: it does not read this device.
        ethernet: takes the frames instead of ``classify``, which is not called then: the device is a TAP interface.

    Raises:
        HostError: the device is gone.
    """
    kind = "TUN" if ethernet is None else "TAP"
    with passing_shortages(f"cannot get a buffer for the {kind} interface"):
        slab = mmap(-1, _SLAB_BYTES)
    view = memoryview(slab)[SLAB_START:]
    more, bursts, shortages = False, 0, RateLimitedLog(SHORTAGE_S)

    def step() -> Next:
        _read_burst(device, classify, view, ethernet)
        return Next.READABLE if (sender := only_sender()) is None or not sender.stalled else Next.TASK

    while True:
        if (sender := only_sender()) is not None and sender.stalled:
            await sender.wait_for_room()
        plane, steps = current_plane(), current_steps()
        try:
            if steps is not None and isinstance(device, LendableDevice) and device.descriptors:
                more = False
                if plane is None or judge is None:
                    with suppress(CannotLendError):
                        await steps.lend(device.descriptors, step)
                        continue
                elif await _lend_device(plane, device.descriptors, slab, classify, only_sender, judge, ethernet):
                    continue
            if not more or bursts == _BURSTS_PER_WAKE:
                bursts = 0
                await device.wait_readable()
            more = _read_burst(device, classify, view, ethernet)
        except (MemoryError, ShortageError) as exc:
            more = False
            if log is not None:
                text = str(shortage_of(exc, f"cannot read {kind} interface {device.name}"))
                shortages.log(log, logging.WARNING, trio.current_time(), text)
            await trio.sleep(SHORTAGE_PAUSE_S)
        bursts += 1


async def _lend_device(
    plane: Plane,
    queues: tuple[int, ...],
    slab: mmap,
    classify: Classify,
    only_sender: Callable[[], Sender | None],
    judge: FrameJudge,
    ethernet: EthernetDispatch | None,
) -> bool:
    """Let the plane read the device until something needs the task. Returns false if the task has to read itself."""
    view, sole, flows = memoryview(slab), only_sender(), judge.flows(plane)
    port = None if sole is None else sole.port(plane)

    def dispatch(frames: list[FrameRange]) -> bool:
        """Send the frames that the plane has no verdict on. Returns whether it goes on reading."""
        if ethernet is None:
            _dispatch(view, frames, classify)
        else:
            ethernet(view, frames)
        flows.learn(view, frames, judge.judge)
        if only_sender() is not sole:
            return False
        return sole is None or (sole.port(plane) is port and not sole.stalled)

    with suppress(CannotLendError):
        return await plane.read(queues, flows, slab, dispatch, port)
    return False


def _read_burst(device: Device, classify: Classify, view: memoryview, ethernet: EthernetDispatch | None = None) -> bool:
    """Read until the device is empty or the burst is large enough, and send. Returns whether there may be more."""
    lengths, more = device.read_burst(view, BURST_BYTES, _READS_PER_BURST)
    if ethernet is None:
        _dispatch(view, _finish_frames(view, lengths), classify)
    else:
        ethernet(view, _finish_frames(view, lengths, ethernet=True))
    return more


def _dispatch(view: memoryview, frames: list[FrameRange], classify: Classify) -> None:
    """Hand each frame to its sender, adjacent ones together."""
    batch_sender: Sender | None = None
    batch_start = batch_stop = packets = 0
    for start, stop, count in frames:
        sender = classify(view, start)
        if sender is None:
            for _ in range(count - 1):  # `classify` counts the drops, one a call
                classify(view, start)
            continue
        if sender is not batch_sender or start != batch_stop:
            if batch_sender is not None:
                batch_sender.send(view[batch_start:batch_stop], packets)
            batch_sender, batch_start, packets = sender, start, 0
        packets += count
        batch_stop = stop
    if batch_sender is not None:
        batch_sender.send(view[batch_start:batch_stop], packets)


def _finish_frames(view: memoryview, lengths: list[int], *, ethernet: bool = False) -> list[FrameRange]:
    """Complete the headers of what `Device.read_burst` has read. Returns where the frames are.

    Many uniform frames of one length are one block, which is classified as one: 0.4 us less for each.
    ``ethernet``: they are Ethernet frames. The largest packet behind its header may be more than a frame has room for.
    """
    min_bytes = MIN_ETHERNET_BYTES if ethernet else MIN_PACKET_BYTES
    found: list[FrameRange] = []
    at = number = 0
    short = False
    frames = len(lengths)
    while number < frames:
        length = lengths[number]
        first = number
        number += 1
        while number < frames and lengths[number] == length:
            number += 1
        size = LENGTH_BYTES + length
        packet_bytes = length - VNET_BYTES
        end = at + (number - first) * size
        if not min_bytes <= packet_bytes <= MAX_PACKET_BYTES:  # a frame cannot have such a length
            at = end
            continue
        if number - first >= MIN_BLOCK_FRAMES:
            count = count_uniform_ethernet if ethernet else count_uniform
            at = _finish_blocks(view, at, end, size, found, count)
        for start in range(at, end, size):
            view[start] = packet_bytes & 0xFF
            view[start + 1] = packet_bytes >> 8
            # num_buffers: kernels before 6.15 do not write these two bytes, so they hold what the buffer held before.
            view[start + HEADER_BYTES - 2] = view[start + HEADER_BYTES - 1] = 0
            found.append((start, start + size, 1))
        if packet_bytes < MIN_IPV6_BYTES:  # nor is such a packet one of IPv6
            short = True
        at = end
    return [each for each in found if not _is_short_ipv6(view, each)] if short and not ethernet else found


def _is_short_ipv6(view: memoryview, frame: FrameRange) -> bool:
    start, stop, count = frame
    return (stop - start) // count < HEADER_BYTES + MIN_IPV6_BYTES and view[start + HEADER_BYTES] >> 4 == 6


def _finish_blocks(
    view: memoryview,
    at: int,
    end: int,
    size: int,
    found: list[FrameRange],
    count_uniform: Callable[[memoryview, int, int, int], int],
) -> int:
    """Complete the headers of frames of one size, and add the blocks that they begin with to ``found``.

    Returns where the last block ends.
    """
    count, packet_bytes = (end - at) // size, size - HEADER_BYTES
    view[at:end:size] = bytes((packet_bytes & 0xFF,)) * count
    view[at + 1 : end : size] = bytes((packet_bytes >> 8,)) * count
    view[at + HEADER_BYTES - 2 : end : size] = view[at + HEADER_BYTES - 1 : end : size] = bytes(count)
    while uniform := count_uniform(view, at, size, (end - at) // size):
        found.append((at, at + uniform * size, uniform))
        at += uniform * size
    return at


class DeviceWriter:
    """Writes frames in place while the device takes them; queues copies, up to QUEUE_BYTES, while it does not.

    Args:
        drops: counts frames that found the queue full, or that the kernel refused after they had been queued.
        ethernet: the device is a TAP interface.

    Attributes:
        outlet: the number by which the plane writes to the device; None: it does not.
    """

    __slots__ = (
        "_bytes",
        "_device",
        "_drops",
        "_ethernet",
        "_plane",
        "_queue",
        "_search",
        "_tcp_gso",
        "_udp_gso",
        "_wake",
        "outlet",
    )

    def __init__(self, device: Queue, drops: Counter[str], *, ethernet: bool = False) -> None:
        self._device = device
        self._drops = drops
        self._ethernet = ethernet
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._search = AdaptiveSkip(_MAX_SEARCH_SKIPS)
        self._udp_gso = AdaptiveSkip(_MAX_GSO_SKIPS)
        self._tcp_gso = AdaptiveSkip(_MAX_GSO_SKIPS)
        self._wake = trio.Event()
        self._plane: Plane | None = None
        self.outlet: int | None = None

    def write_all(self, view: memoryview, frames: Sequence[FrameRange], drops: Counter[str]) -> None:
        """Write the frames of one receive; segments of one flow (UDP, TCP) are coalesced where possible.

        ``drops``: counts what the kernel refuses now.

        Raises HostError if the device is gone. Raises PeerError if a packet was refused that no honest peer sends, but
        only after all frames were written. An Ethernet frame that was refused is a drop.
        """
        refused: list[FrameRange] = []
        for _, _, count in frames:
            if count > 1:
                self._write_blocks(view, frames, refused)
                break
        else:
            if len(frames) < MIN_RUN_FRAMES:
                self._write_each(view, frames, refused)
            else:
                self._write_singles(view, frames, refused)
        for start, stop, _ in refused:
            # An honest peer's bridge may pass on what a virtual machine has made up.
            if not self._ethernet and not validate_vnet_header(view[start:stop]):
                raise PeerError("frame with an impossible vnet header", reason=EndReason.BAD_VNET)
            drops[DropReason.DEVICE_REFUSED] += 1

    def _write_blocks(self, view: memoryview, frames: Sequence[FrameRange], refused: list[FrameRange]) -> None:
        """Write blocks, and single frames between them."""
        at = 0
        for number, block in enumerate(frames):
            if block[2] > 1:
                self._write_singles(view, frames[at:number], refused)
                for run, parts in coalesce_block(view, block, ethernet=self._ethernet):
                    self._write_run(view, run, parts, refused)
                at = number + 1
        self._write_singles(view, frames[at:], refused)

    def _write_singles(self, view: memoryview, frames: Sequence[FrameRange], refused: list[FrameRange]) -> None:
        """Write single frames, as runs if looking for runs is worthwhile."""
        if len(frames) < MIN_RUN_FRAMES or not self._udp_gso.should_try() or not self._search.should_try():
            self._write_each(view, frames, refused)
        elif self._write_runs(view, frames, refused):
            self._search.succeeded()
        else:
            self._search.failed()

    def _write_runs(self, view: memoryview, frames: Sequence[FrameRange], refused: list[FrameRange]) -> bool:
        """Look for runs, and write them. Returns whether that was worthwhile: half the frames were coalesced."""
        coalesced, ethernet = 0, self._ethernet
        for run in find_runs(view, frames, ethernet=ethernet):
            parts = coalesce(view, run, ethernet=ethernet) if len(run) >= MIN_RUN_FRAMES else None
            if self._write_run(view, run, parts, refused):
                coalesced += len(run)
        return 2 * coalesced >= len(frames)

    def _write_run(
        self, view: memoryview, run: Sequence[FrameRange], parts: Parts | None, refused: list[FrameRange]
    ) -> bool:
        """Write a run as the one super-packet ``parts``, or its frames one by one. Returns whether it was written as
        one."""
        taken: bool | None = None
        if parts is not None and not self._queue:
            gso = self._udp_gso if parts[0][1] == GSO_UDP_L4 else self._tcp_gso
            taken = self._device.write_parts(parts) if gso.should_try() else None
            if taken:
                gso.max_skips = 0  # this kernel supports it: a later refusal is about that one packet
                return True
        before = len(refused)
        self._write_each(view, run, refused)
        # The kernel took each segment and refused the super-packet. While the link is down it refuses both.
        if taken is False and len(refused) == before:
            gso.failed()
        return False

    def _write_each(self, view: memoryview, frames: Sequence[FrameRange], refused: list[FrameRange]) -> None:
        """Write frames one by one; queue those that the device does not take now."""
        if len(frames) == 1 and frames[0][2] > 1:
            start, stop, count = frames[0]
            size = (stop - start) // count
            frames = [(at, at + size, 1) for at in range(start, stop, size)]
        done = 0 if self._queue else self._device.write_burst(view, frames, refused)
        if done < len(frames):
            for start, stop, _ in frames[done:]:
                self._enqueue(view[start + LENGTH_BYTES : stop])

    def _enqueue(self, frame: memoryview) -> None:
        """Queue a copy."""
        if self._bytes + len(frame) > QUEUE_BYTES:
            self._drops[DropReason.DEVICE_FULL] += 1
            return
        try:
            self._queue.append(bytes(frame))
        except MemoryError:
            self._drops[DropReason.NO_MEMORY] += 1
            return
        self._bytes += len(frame)
        self._wake.set()
        self._tell_plane(busy=True)

    def _tell_plane(self, *, busy: bool) -> None:
        if self._plane is not None and self.outlet is not None:
            self._plane.set_busy(self.outlet, busy=busy)

    async def run(self) -> None:
        """Write what was queued, in order, whenever the device can take it; forever. Meanwhile the plane may write to
        the device, too."""
        self._plane = current_plane()
        fd = self._device.descriptor if isinstance(self._device, LendableQueue) else None
        if self._plane is None or fd is None:
            await self._write_queued()
        try:
            self.outlet = self._plane.open_outlet(fd)
        except MemoryError:  # only Python writes to this queue, then
            await self._write_queued()
        self._tell_plane(busy=bool(self._queue))
        try:
            await self._write_queued()
        finally:
            self._plane.close_outlet(self.outlet)
            self.outlet = None

    async def _write_queued(self) -> NoReturn:
        while True:
            await self._wake.wait()
            while self._queue:
                await self._device.wait_writable()
                while self._queue and (taken := self._device.write(self._queue[0])) is not None:
                    self._bytes -= len(self._queue.popleft())
                    if not taken:
                        self._drops[DropReason.DEVICE_REFUSED] += 1
            self._tell_plane(busy=False)
            self._wake = trio.Event()
