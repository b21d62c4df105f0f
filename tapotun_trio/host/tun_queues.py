"""A TUN or TAP interface with several queues, which are read in turn.

The kernel chooses the queue of a packet (`tun_automq_select_queue`, `tun_flow_update` of drivers/net/tun.c). It is the
queue that packets of the same flow were last written to, if that was less than 3 s ago and the flow is one of the 4,096
that the kernel remembers. Otherwise the flow's hash chooses it. So a flow may change its queue when it is first
answered, or after a pause in the opposite direction, and then a few packets may be reordered. Fragments are a flow of
their own, as on a network card with several queues, because they have no ports.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import trio

from ..errors import HostError, shortage_of
from ..log import interface_logger
from .tun import QueueRefusedError, TunDevice, add_queue, open_tun

# The turn of a queue ends after this many bursts, or after the burst that reaches this many packets, since small
# packets are slow and other queues wait. With four bursts per turn eight clients got 6.8 Gbit/s in total, with eight
# bursts 8 Gbit/s, and still equal shares (Jain's index at least 0.99). The more packets of one client come in
# succession, the fewer wake-ups all clients need.
BURSTS_PER_TURN: Final = 8
PACKETS_PER_TURN: Final = 1024


class TunQueues:
    """A `Device` that reads from the queues that have frames. `open_tun_queues` makes and closes it."""

    __slots__ = ("_bursts", "_by_fd", "_epoll", "_fd", "_packets", "_ready", "_unfinished", "name", "queues")

    def __init__(self, queues: Sequence[TunDevice], epoll: select.epoll) -> None:
        """Watches the queues, which the caller still owns, with ``epoll``, which this takes over. Raises OSError."""
        self.name = queues[0].name
        self.queues = queues
        self._by_fd = {queue.fileno(): queue for queue in queues}
        # An epoll inside trio's epoll: one wake-up for all queues that are ready. With a task per queue, and so a
        # wake-up per queue, a server whose clients get small packets in turn used a fifth more CPU.
        self._epoll = epoll
        self._fd = self._epoll.fileno()
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self._ready: deque[TunDevice] = deque()
        self._bursts = self._packets = 0  # in the current turn, which is that of _ready[0]
        self._unfinished = False  # a turn ended before its queue was empty

    @property
    def descriptors(self) -> tuple[int, ...]:
        return () if self._fd == -1 else tuple(self._by_fd)

    def set_carrier(self, *, up: bool) -> None:
        """As `OwnDevice.set_carrier`."""
        self.queues[0].set_carrier(up=up)

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        """As `Device.read_burst`, from the queue whose turn it is. No checkpoint."""
        ready = self._ready
        if not ready:
            try:
                # The kernel moves what it has reported to the end of its list, so every queue gets its turn.
                ready.extend([self._by_fd[fd] for fd, _ in self._epoll.poll(0)])
            except ValueError:  # how epoll reports that it is closed
                raise self._closed() from None
            self._unfinished = False
            if not ready:
                return [], False
        lengths, more = ready[0].read_burst(into, limit_bytes, most)
        self._bursts += 1
        self._packets += len(lengths)
        if not more or self._bursts == BURSTS_PER_TURN or self._packets >= PACKETS_PER_TURN:
            ready.popleft()
            self._bursts = self._packets = 0
            if more:
                self._unfinished = True
        return lengths, more or self._unfinished or bool(ready)

    async def wait_readable(self) -> None:
        """Wait until a queue has a frame or an error. As `TunDevice.wait_readable`."""
        if self._fd == -1:
            raise self._closed()
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except OSError as exc:  # epoll_ctl(2): no memory, or the limit of watches is reached
            doing = f"cannot wait for {self.queues[0].text}"
            raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc

    def close(self) -> None:
        """Stop watching. Idempotent. A task that waits gets trio.ClosedResourceError."""
        fd, self._fd = self._fd, -1
        if fd == -1:
            return
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(fd)
        self._epoll.close()

    def _closed(self) -> trio.ClosedResourceError:
        return trio.ClosedResourceError(f"{self.queues[0].text} is closed")


@contextmanager
def open_tun_queues(name: str, count: int, mac: bytes | None = None, *, is_port: bool = False) -> Iterator[TunQueues]:
    """As `open_tun`, with ``count`` queues (2 to 256). If the kernel allows fewer, it has fewer, and a warning is
    logged."""
    with ExitStack() as stack:
        first = stack.enter_context(open_tun(name, multi_queue=True, mac=mac, is_port=is_port))
        queues = [first]
        try:
            while len(queues) < count:
                queues.append(stack.enter_context(add_queue(first)))
        except QueueRefusedError as exc:
            interface_logger(name).warning("%s; continuing with %d of %d", exc, len(queues), count)
        try:
            device = TunQueues(queues, stack.enter_context(select.epoll()))
        except OSError as exc:
            doing = f"cannot watch the queues of {first.text}"
            raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc
        stack.callback(device.close)
        yield device
