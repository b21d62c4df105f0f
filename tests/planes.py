"""What the tests of the plane share: a TUN device that is a pair of sockets, and frames.

A SOCK_SEQPACKET socket keeps the boundaries of what is written, is full after a while, and refuses what is larger than
its buffer (EMSGSIZE). So it is a TUN device to everything that only reads and writes; `TunDevice` and the plane both
work on its descriptor.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tapotun_trio.datapath import plane
from tapotun_trio.host.tun import TunDevice
from tapotun_trio.wire.frames import MAX_FRAME_BYTES

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
