"""The transmit queue for one peer: bounded in bytes and in age, and kept short by CoDel. Putting never blocks.

Packets are always dropped at the head. Then the packets behind it arrive sooner, and the sender learns of the loss
sooner.

No clock of its own: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from ..wire.frames import HEADER_BYTES
from .codel import CoDel
from .counters import DropReason

MAX_BYTES: Final = 12 * 1024 * 1024  # the same as deployed servers
# The same as deployed servers. An interactive packet that is older is better sent again by its sender.
MAX_AGE_S: Final = 0.1


class TxQueue:
    """A queue of batches of one or more whole frames. A batch is put as a whole, and taken and dropped frame by frame.

    Args:
        drops: counts dropped packets by reason.

    Attributes:
        batches: what is queued, oldest first: when it was put, number of packets, their frames. The sender looks at it
            to see whether the queue is empty, which costs less than a call.
        head_offset: bytes of the oldest batch that were taken already.
    """

    __slots__ = ("_bytes", "_codel", "_drops", "_head_packets", "_max_age_s", "_max_bytes", "batches", "head_offset")

    def __init__(self, drops: Counter[str], *, max_bytes: int = MAX_BYTES, max_age_s: float = MAX_AGE_S) -> None:
        self._drops = drops
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._codel = CoDel()
        self.batches: deque[tuple[float, int, bytes]] = deque()
        self.head_offset = 0
        self._head_packets = 0  # packets of the head batch that have left already
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether something is queued."""
        return bool(self.batches)

    @property
    def depth_bytes(self) -> int:
        """What is queued, in bytes of frames."""
        return self._bytes

    @property
    def depth_packets(self) -> int:
        """What is queued, in packets. Computed by the call, so that it costs nothing when packets are put or taken."""
        return sum([packets for _, packets, _ in self.batches]) - self._head_packets

    def put(self, frames: memoryview | bytes, packets: int, now: float) -> None:
        """Queue a copy of a batch. If it does not fit, the oldest batches are dropped."""
        self.expire(now)
        while self.batches and self._bytes + len(frames) > self._max_bytes:
            self.drop_oldest(DropReason.QUEUE_FULL)
        self.batches.append((now, packets, bytes(frames)))
        self._bytes += len(frames)

    def take(self, now: float, limit_bytes: int, *, cut: bool = True) -> tuple[int, bytes]:
        """Take the oldest frames that CoDel does not drop.

        Args:
            limit_bytes: take no more, but at least one frame.
            cut: a batch may be cut between its frames. Otherwise whole batches are taken, at least one even if it is
                larger than the limit; a single batch is then not copied.

        Returns:
            The number of packets, and their frames joined; ``(0, b"")`` if nothing is left.
        """
        self.expire(now)
        taken: list[memoryview | bytes] = []
        packets = size = 0
        while self.batches and size < limit_bytes:
            # One decision is enough for a whole batch: its packets have waited equally long, and CoDel's next drop is
            # in the future.
            while self.batches and self._codel.should_drop(now - self.batches[0][0], self._bytes, now):
                self.drop_frame(DropReason.CODEL)
            if not self.batches:
                break
            count, frames = self._cut(limit_bytes - size, cut=cut, needed=not taken)
            if not count:
                break
            packets += count
            size += len(frames)
            taken.append(frames)
        if not self.batches:
            self._codel.on_empty()
        return packets, b"".join(taken)

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        while self.batches and now - self.batches[0][0] > self._max_age_s:
            self.drop_oldest(DropReason.QUEUE_AGE)

    def _cut(self, limit_bytes: int, *, cut: bool, needed: bool) -> tuple[int, memoryview | bytes]:
        """Take what fits of the head batch; if ``cut``, that may be a part of it. If ``needed``, at least one frame."""
        _, packets, frames = self.batches[0]
        start, stop, count = self.head_offset, len(frames), packets - self._head_packets
        if stop - start > limit_bytes and (cut or not needed):
            stop, count = (_frame_end(frames, start), 1) if needed else (start, 0)
            while cut and stop < len(frames) and (end := _frame_end(frames, stop)) - start <= limit_bytes:
                stop = end
                count += 1
        self._remove(stop, count)
        return count, frames if stop - start == len(frames) else memoryview(frames)[start:stop]

    def drop_frame(self, reason: str) -> None:
        """Drop the oldest frame. The queue must not be empty."""
        self._remove(_frame_end(self.batches[0][2], self.head_offset), 1)
        self._drops[reason] += 1

    def drop_ipv6(self, reason: str) -> None:
        """Drop all packets of IPv6."""
        batches, at = list(self.batches), self.head_offset
        self.batches.clear()
        self._bytes = self.head_offset = self._head_packets = 0
        for put_at, _, frames in batches:
            kept: list[bytes] = []
            while at < len(frames):
                end = _frame_end(frames, at)
                if frames[at + HEADER_BYTES] >> 4 == 6:
                    self._drops[reason] += 1
                else:
                    kept.append(frames[at:end])
                at = end
            at = 0
            if kept:
                self.batches.append((put_at, len(kept), b"".join(kept)))
                self._bytes += sum(map(len, kept))

    def drop_oldest(self, reason: str) -> None:
        """Drop the rest of the oldest batch. The queue must not be empty."""
        _, packets, frames = self.batches[0]
        self._drops[reason] += packets - self._head_packets
        self._remove(len(frames), 0)

    def _remove(self, stop: int, packets: int) -> None:
        """Remove the head batch up to this offset, which is that many packets."""
        self._bytes -= stop - self.head_offset
        self.head_offset = stop
        self._head_packets += packets
        if stop == len(self.batches[0][2]):
            self.batches.popleft()
            self.head_offset = self._head_packets = 0


def _frame_end(frames: bytes, at: int) -> int:
    return at + HEADER_BYTES + (frames[at] | frames[at + 1] << 8)
