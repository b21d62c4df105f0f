"""A TUN interface with several queues: a packet comes through one of them, and each is read in its turn.

Which one is up to the kernel (`tun_automq_select_queue`, `tun_flow_update` of drivers/net/tun.c): the one that packets
of the flow were last written to, if that is less than 3 s ago and the flow one of the 4,096 that it remembers, else
one that the flow's hash chooses. So a flow may change its queue when it is first answered, or after a silence the other
way, and then packets may overtake each other for once. Fragments are a flow of their own, as they are on a network card
with several queues: their ports are not looked at.
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

# A queue's turn is so many bursts, or the burst with which it came to so many packets: small ones are slow, and the
# others wait. With four bursts eight clients got 6.8 Gbit/s together, with eight 8, and were still equals (Jain's index
# 0.99 and more); the longer one client's packets follow each other, the less often everybody has to wake up.
_BURSTS_PER_TURN: Final = 8
_PACKETS_PER_TURN: Final = 1024


class TunQueues:
    """A `Device` that reads from whichever queues have something. Made by `open_tun_queues`, which closes it."""

    __slots__ = ("_bursts", "_by_fd", "_epoll", "_fd", "_left", "_packets", "_ready", "name", "queues")

    def __init__(self, queues: Sequence[TunDevice], epoll: select.epoll) -> None:
        """Watches the queues, which stay their owner's, with ``epoll``, which it takes over. Raises OSError."""
        self.name = queues[0].name
        self.queues = queues
        self._by_fd = {queue.fileno(): queue for queue in queues}
        # An epoll within trio's: one wake-up for all that is ready. A task for each queue, each woken for itself, cost
        # a server with clients that get small packets in turn a fifth more.
        self._epoll = epoll
        self._fd = self._epoll.fileno()
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self._ready: deque[TunDevice] = deque()
        self._bursts = self._packets = 0  # of the turn of the first of these
        self._left = False  # somebody's turn was over before all was read

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        """As `Device.read_burst`, from the queue whose turn it is. No checkpoint."""
        ready = self._ready
        if not ready:
            try:
                # What was told of goes to the end of the kernel's own list: nobody is passed over.
                ready.extend([self._by_fd[fd] for fd, _ in self._epoll.poll(0)])
            except ValueError:  # epoll's word for "closed"
                raise self._closed() from None
            self._left = False
            if not ready:
                return [], False
        lengths, more = ready[0].read_burst(into, limit_bytes, most)
        self._bursts += 1
        self._packets += len(lengths)
        if not more or self._bursts == _BURSTS_PER_TURN or self._packets >= _PACKETS_PER_TURN:
            ready.popleft()
            self._bursts = self._packets = 0
            self._left |= more
        return lengths, more or self._left or bool(ready)

    async def wait_readable(self) -> None:
        """Wait until a queue has a frame, or an error to tell. As `TunDevice.wait_readable`."""
        if self._fd == -1:
            raise self._closed()
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except OSError as exc:  # epoll_ctl(2) has no memory, or no watch left
            doing = f"cannot wait for TUN interface {self.name}"
            raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc

    def close(self) -> None:
        """Watch them no more. Idempotent. A task that waits gets trio.ClosedResourceError."""
        fd, self._fd = self._fd, -1
        if fd == -1:
            return
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(fd)
        self._epoll.close()

    def _closed(self) -> trio.ClosedResourceError:
        return trio.ClosedResourceError(f"TUN interface {self.name} is closed")


@contextmanager
def open_tun_queues(name: str, count: int) -> Iterator[TunQueues]:
    """As `open_tun`, with so many queues: 2 to 256. Fewer, with a warning, where the kernel gives no more."""
    with ExitStack() as stack:
        first = stack.enter_context(open_tun(name, multi_queue=True))
        queues = [first]
        try:
            while len(queues) < count:
                queues.append(stack.enter_context(add_queue(first)))
        except QueueRefusedError as exc:
            interface_logger(name).warning("%s; goes on with %d of %d", exc, len(queues), count)
        try:
            device = TunQueues(queues, stack.enter_context(select.epoll()))
        except OSError as exc:
            doing = f"cannot watch the queues of TUN interface {name}"
            raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc
        stack.callback(device.close)
        yield device
