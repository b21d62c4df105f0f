"""What the tests of the plane share: a TUN device that is a pair of sockets, and frames.

A SOCK_SEQPACKET socket keeps the boundaries of what is written, is full after a while, and refuses what is larger than
its buffer (EMSGSIZE). So it is a TUN device to everything that only reads and writes; `TunDevice` and the plane both
work on its descriptor.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
import trio

from tapotun_trio.datapath import plane
from tapotun_trio.host.tun import TunDevice
from tapotun_trio.wire.frames import MAX_FRAME_BYTES

from .fakes import HANG_S, PLAIN_VNET, MemoryDevice

needs_pump: Final = pytest.mark.skipif(not plane.BUILT, reason="the native part is not built (see Makefile)")


class Tun:
    """The host's side of a device: what the test sends, the program reads.

    Attributes:
        device: the program's side.
    """

    def __init__(self, name: str, buffer_bytes: int | None) -> None:
        ours, self._host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._host.setblocking(False)
        self._host.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if buffer_bytes is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self.device = TunDevice(name, ours.detach())

    def send(self, frame: bytes) -> bool:
        """The host sends a packet, with its vnet header. Returns whether there was room."""
        try:
            self._host.send(frame)
        except BlockingIOError:
            return False
        return True

    def take(self, most: int = 1 << 30) -> list[bytes]:
        """What the program has written, and was not taken yet."""
        frames: list[bytes] = []
        while len(frames) < most:
            try:
                frames.append(self._host.recv(MAX_FRAME_BYTES))
            except BlockingIOError:
                break
        return frames

    @property
    def unread(self) -> bool:
        """Whether the program has not read all that was sent (unix(7), SIOCOUTQ)."""
        (waiting,) = struct.unpack("i", fcntl.ioctl(self._host, termios.TIOCOUTQ, bytes(4)))
        return bool(waiting)

    async def wait_written(self) -> None:
        """Wait until there is something to `take`."""
        await trio.lowlevel.wait_readable(self._host)

    def close(self) -> None:
        self.device.close()
        self._host.close()


@contextmanager
def fake_tun(name: str = "tun0", *, buffer_bytes: int | None = None) -> Iterator[Tun]:
    """A device. ``buffer_bytes``: how much it takes, roughly; the kernel refuses frames that are larger."""
    tun = Tun(name, buffer_bytes)
    try:
        yield tun
    finally:
        tun.close()


class SocketDevice(MemoryDevice):
    """A `MemoryDevice` with a descriptor, so that the plane can have it: a `Tun`. It has one queue.

    What the test sends while it is full waits, until the test looks at the device again.
    """

    def __init__(self, name: str, queue_count: int = 1) -> None:
        """``queue_count``: is not looked at, as the kernel may give fewer."""
        super().__init__(name)
        self._tun = Tun(name, 1 << 20)

    # -- the program's side

    @property
    def descriptor(self) -> int | None:
        return self._tun.device.descriptor

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self._tun.device.descriptors

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        return self._tun.device.read_burst(into, limit_bytes, most)

    def write(self, frame: memoryview | bytes, /) -> bool | None:
        return False if frame[0] & ~3 else self._tun.device.write(frame)  # as `MemoryDevice` refuses it

    async def wait_readable(self) -> None:
        await self._tun.device.wait_readable()

    async def wait_writable(self) -> None:
        await self._tun.device.wait_writable()

    # -- the test's side

    def send(self, packet: bytes, vnet: bytes = PLAIN_VNET) -> None:
        self.inbound.append(vnet + packet)
        self._flush()

    def _flush(self) -> None:
        while self.inbound and self._tun.send(self.inbound[0]):
            self.inbound.popleft()

    @property
    def unread(self) -> bool:
        self._flush()
        return bool(self.inbound) or self._tun.unread

    def take(self) -> list[bytes]:
        return self._tun.take()

    async def receive(self) -> bytes:
        with trio.fail_after(HANG_S):
            while not (frames := self._tun.take(1)):
                self._flush()
                await self._tun.wait_written()
        return frames[0]

    def close(self) -> None:
        super().close()
        self._tun.close()
