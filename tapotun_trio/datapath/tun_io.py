"""The task pair between a TUN device and the streams."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Final, TypeAlias

import trio

from ..errors import EndReason, PeerError, ShortageError, passing_shortages, shortage_of
from ..host.interfaces import Device, Queue
from ..log import Log, RateLimitedLog
from ..wire.frames import HEADER_BYTES, LENGTH_BYTES, MAX_FRAME_BYTES, MIN_PACKET_BYTES, FrameRange, Parts
from ..wire.uniform import BLOCK_FROM, count_uniform
from ..wire.vnet import GSO_UDP_L4, VNET_BYTES, validate_vnet_header
from .adaptive_skip import AdaptiveSkip
from .counters import DropReason
from .gro_udp import MERGED_FROM, block_runs, coalesce, find_runs
from .sender import Sender

# A burst is sent when it has grown to four super-packets. With two the far end had work earlier, but both ends paid
# more: one wake-up and one send for each (measured: 1.9 against 1.6 CPU seconds per GB, at the same throughput).
BURST_BYTES: Final = 256 * 1024
_SLAB_BYTES: Final = BURST_BYTES + MAX_FRAME_BYTES
# So many bursts without a wait in between: waiting costs as much as a dozen small packets (epoll, a task switch).
_BURSTS_PER_WAKE: Final = 4

# A queue for each client of a server, up to so many. From one for all each got what its TCP grabbed, and a burst went
# out in as many pieces as it had turns of clients (measured, 8 downloads: Jain's index 0.93 -> 0.99, together 4.5 -> 8
# Gbit/s; a small packet in turn for each of many clients costs a tenth more).
MAX_QUEUES: Final = 16

# Nor may packets that nobody gets, or small ones, keep the reader at it for ever.
_READS_PER_BURST: Final = 512

# What this machine lacks may be there again in a moment; it is told so often.
SHORTAGE_PAUSE_S: Final = 0.1
SHORTAGE_S: Final = 60.0

QUEUE_BYTES: Final = 1024 * 1024

# To look for runs costs 0.9 us a packet. After a receive that had none, the next one is not looked at, and so on, twice
# as many each time, up to so many.
_MAX_PASSED_OVER: Final = 63
# Likewise for super-packets, as long as the kernel refuses each and takes its pieces: before Linux 6.2 it knows none of
# UDP. TCP's it always knew. Once it has taken one, what it refuses is that packet's fault, which a peer may have looked
# for, and the next one is tried.
_MAX_NOT_MERGED: Final = 1023

# Whose outbox the frame at this offset of the slab belongs into; None drops it, counted by whoever says so.
Classify: TypeAlias = Callable[[memoryview, int], Sender | None]


async def read_device(
    device: Device, classify: Classify, only_sender: Callable[[], Sender | None], log: Log | None = None
) -> None:
    """Move frames from the device to the senders, for ever. Raises HostError if the device is gone. Without memory for
    a burst that burst is lost, and ``log`` is told, now and then.

    Frames are read into one slab behind room for their length, so that a burst is wire format as it stands; a
    run of adjacent frames to one sender is handed over as one slice of it.

    ``only_sender``: the sender that everything goes to, if there is but one. While its socket is full the kernel keeps
    the packets, which costs nothing, and holds a local TCP back before any is lost. With several senders nobody waits
    for another one's socket, and what it does not take is copied. Measured, one TCP stream: 5 % less CPU per byte, 26 %
    fewer wake-ups of the sender; a blast of UDP delivers 10 % more at 64 bytes, 30 % more at 1,400.
    """
    with passing_shortages("cannot get a buffer for the TUN interface"):
        view = memoryview(mmap(-1, _SLAB_BYTES))
    more, turns, shortages = False, 0, RateLimitedLog(SHORTAGE_S)
    while True:
        if (sender := only_sender()) is not None and sender.stalled:
            await sender.wait_for_room()
        try:
            if not more or turns == _BURSTS_PER_WAKE:
                turns = 0
                await device.wait_readable()
            more = _read_burst(device, classify, view)
        except (MemoryError, ShortageError) as exc:
            more = False
            if log is not None:
                text = str(shortage_of(exc, f"cannot read TUN interface {device.name}"))
                shortages.log(log, logging.WARNING, trio.current_time(), text)
            await trio.sleep(SHORTAGE_PAUSE_S)
        turns += 1


def _read_burst(device: Device, classify: Classify, view: memoryview) -> bool:
    """Read until the device is dry or the burst is large enough, and send. Returns whether there may be more."""
    lengths, more = device.read_burst(view, BURST_BYTES, _READS_PER_BURST)
    run_to: Sender | None = None
    run_at = run_end = packets = 0
    for start, stop, count in _finish_frames(view, lengths):
        to = classify(view, start)
        if to is None:
            for _ in range(count - 1):  # it is counted by whoever says so
                classify(view, start)
            continue
        if to is not run_to or start != run_end:
            if run_to is not None:
                run_to.send(view[run_at:run_end], packets)
            run_to, run_at, packets = to, start, 0
        packets += count
        run_end = stop
    if run_to is not None:
        run_to.send(view[run_at:run_end], packets)
    return more


def _finish_frames(view: memoryview, lengths: list[int]) -> list[FrameRange]:
    """Complete the headers of what `Device.read_burst` has read, and say where the frames are.

    Many of one length are one block if they are alike, and judged as one: 0.4 us less for each.
    """
    spans: list[FrameRange] = []
    at = number = 0
    frames = len(lengths)
    while number < frames:
        length = lengths[number]
        begin = number
        number += 1
        while number < frames and lengths[number] == length:
            number += 1
        size = LENGTH_BYTES + length
        packet_bytes = length - VNET_BYTES
        end = at + (number - begin) * size
        if packet_bytes < MIN_PACKET_BYTES:  # no IP packet, and the wire has no word for it
            at = end
            continue
        if number - begin >= BLOCK_FROM:
            at = _finish_blocks(view, at, end, size, spans)
        for start in range(at, end, size):
            view[start] = packet_bytes & 0xFF
            view[start + 1] = packet_bytes >> 8
            # num_buffers: kernels before 6.15 leave the two bytes as they find them, with what the slab held before.
            view[start + HEADER_BYTES - 2] = view[start + HEADER_BYTES - 1] = 0
            spans.append((start, start + size, 1))
        at = end
    return spans


def _finish_blocks(view: memoryview, at: int, end: int, size: int, spans: list[FrameRange]) -> int:
    """Add the blocks with which many frames of one size begin. Returns where that leaves off."""
    count, packet_bytes = (end - at) // size, size - HEADER_BYTES
    view[at:end:size] = bytes((packet_bytes & 0xFF,)) * count
    view[at + 1 : end : size] = bytes((packet_bytes >> 8,)) * count
    view[at + HEADER_BYTES - 2 : end : size] = view[at + HEADER_BYTES - 1 : end : size] = bytes(count)
    while alike := count_uniform(view, at, size, (end - at) // size):
        spans.append((at, at + alike * size, alike))
        at += alike * size
    return at


class DeviceWriter:
    """Writes in place while the device takes frames; queues copies, up to QUEUE_BYTES, while it does not.

    Args:
        drops: where frames are counted that found the queue full, or were refused later on.
    """

    __slots__ = ("_bytes", "_device", "_drops", "_looking", "_merging_tcp", "_merging_udp", "_queue", "_wake")

    def __init__(self, device: Queue, drops: Counter[str]) -> None:
        self._device = device
        self._drops = drops
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._looking = AdaptiveSkip(_MAX_PASSED_OVER)
        self._merging_udp = AdaptiveSkip(_MAX_NOT_MERGED)
        self._merging_tcp = AdaptiveSkip(_MAX_NOT_MERGED)
        self._wake = trio.Event()

    def write_all(self, view: memoryview, spans: Sequence[FrameRange], drops: Counter[str]) -> None:
        """Write the frames of one receive, runs of one flow (UDP, TCP) as one; count in ``drops`` what is refused.

        Raises HostError: device gone; PeerError, when all are written: a frame that no honest peer sends was refused.
        """
        refused: list[FrameRange] = []
        for _, _, count in spans:
            if count > 1:
                self._write_blocks(view, spans, refused)
                break
        else:
            if len(spans) < MERGED_FROM:
                self._write_each(view, spans, refused)
            else:
                self._write_singles(view, spans, refused)
        for start, stop, _ in refused:
            if not validate_vnet_header(view[start:stop]):
                raise PeerError("frame with an impossible vnet header", reason=EndReason.BAD_VNET)
            drops[DropReason.DEVICE_REFUSED] += 1

    def _write_blocks(self, view: memoryview, spans: Sequence[FrameRange], refused: list[FrameRange]) -> None:
        """Write blocks, and single frames between them."""
        at = 0
        for number, span in enumerate(spans):
            if span[2] > 1:
                self._write_singles(view, spans[at:number], refused)
                for run, parts in block_runs(view, span):
                    self._write_run(view, run, parts, refused)
                at = number + 1
        self._write_singles(view, spans[at:], refused)

    def _write_singles(self, view: memoryview, frames: Sequence[FrameRange], refused: list[FrameRange]) -> None:
        if len(frames) < MERGED_FROM or not self._merging_udp.should_try() or not self._looking.should_try():
            self._write_each(view, frames, refused)
        elif self._write_runs(view, frames, refused):
            self._looking.succeeded()
        else:
            self._looking.failed()

    def _write_runs(self, view: memoryview, frames: Sequence[FrameRange], refused: list[FrameRange]) -> bool:
        """Returns whether that was worth looking for runs."""
        merged = 0
        for run in find_runs(view, frames):
            parts = coalesce(view, run) if len(run) >= MERGED_FROM else None
            if self._write_run(view, run, parts, refused):
                merged += len(run)
        return 2 * merged >= len(frames)

    def _write_run(
        self, view: memoryview, spans: Sequence[FrameRange], parts: Parts | None, refused: list[FrameRange]
    ) -> bool:
        """Write them as one, which ``parts`` are, or each alone. Returns whether as one."""
        taken: bool | None = None
        if parts is not None and not self._queue:
            merging = self._merging_udp if parts[0][1] == GSO_UDP_L4 else self._merging_tcp
            taken = self._device.write_parts(parts) if merging.should_try() else None
            if taken:
                merging.most = 0  # this kernel can: what it refuses from now on is that packet's own fault
                return True
        before = len(refused)
        self._write_each(view, spans, refused)
        # The packets are good, each alone is taken, and all together are not. While the link is down, none is.
        if taken is False and len(refused) == before:
            merging.failed()
        return False

    def _write_each(self, view: memoryview, spans: Sequence[FrameRange], refused: list[FrameRange]) -> None:
        if len(spans) == 1 and spans[0][2] > 1:
            start, stop, count = spans[0]
            size = (stop - start) // count
            spans = [(at, at + size, 1) for at in range(start, stop, size)]
        done = 0 if self._queue else self._device.write_burst(view, spans, refused)
        if done < len(spans):
            for start, stop, _ in spans[done:]:
                self._put(view[start + LENGTH_BYTES : stop])

    def _put(self, frame: memoryview) -> None:
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

    async def run(self) -> None:
        """Write what was queued, in order, whenever the device can take it; for ever."""
        while True:
            await self._wake.wait()
            while self._queue:
                await self._device.wait_writable()
                while self._queue and (taken := self._device.write(self._queue[0])) is not None:
                    self._bytes -= len(self._queue.popleft())
                    if not taken:
                        self._drops[DropReason.DEVICE_REFUSED] += 1
            self._wake = trio.Event()
