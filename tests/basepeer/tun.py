"""A real TUN interface with virtio headers, plain blocking reads and writes, and the `ip` command."""

import errno
import fcntl
import os
import select
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Self

from . import vnet
from .link import Bell
from .wire import MAX_PACKET, Conf, Frame

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_BASE_OFFLOADS: Final = 0x01 | 0x02 | 0x04 | 0x08  # CSUM, TSO4, TSO6, TSO_ECN: not USO
_READ_BYTES: Final = vnet.SIZE + (1 << 17)


class KernelRefused(Exception):
    """The kernel answered EINVAL to a frame: a deployed peer's process ends on it."""


class Tun:
    """ "TUN offloads enabled by a base peer: CSUM, TSO4, TSO6, TSO_ECN. Not USO".

    The interface goes when `close` is called. With `ipv6` it forwards IPv6 packets too, which a base
    peer's kernel does hand out (router solicitations) unless told not to.
    """

    def __init__(self, name: str, *, ipv6: bool = False) -> None:
        self.name = name
        self._ipv6 = ipv6
        self._bell = Bell()
        self._thread: threading.Thread | None = None
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", vnet.SIZE))
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _BASE_OFFLOADS)
        except OSError:
            self.close()
            raise
        if not ipv6:
            switch = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
            if switch.exists():
                switch.write_text("1")

    def configure(self, conf: Conf, routes: Iterable[str] = ()) -> None:
        """Address, MTU, up, routes; may be called again with other values, without a break."""
        _ip("link", "set", self.name, "mtu", str(conf.mtu), "up")
        for address in conf.ips:
            _ip("address", "replace", f"{address}/{conf.prefix}", "dev", self.name)
        for route in (*conf.routes, *routes):
            _ip("route", "replace", route, "dev", self.name)

    def write(self, frame: Frame) -> None:
        """One frame, "re-injected by one write". Raises KernelRefused; a full or downed TUN drops it."""
        try:
            os.write(self._fd, frame.header + frame.packet)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise KernelRefused(f"the kernel refuses {frame.header.hex()}") from exc

    def pump(self, deliver: Callable[[Frame], object]) -> None:
        """Start the thread that reads packets and hands them on."""
        self._thread = threading.Thread(target=self._pump, args=(deliver,), name=f"tun {self.name}")
        self._thread.start()

    def _pump(self, deliver: Callable[[Frame], object]) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._bell.fileno(), select.POLLIN)
        while not any(fd == self._bell.fileno() for fd, _ in poll.poll()):
            try:
                data = os.read(self._fd, _READ_BYTES)
            except OSError:
                # EIO while the interface is down, EBADFD when somebody deleted it.
                if self._bell.wait(0.1):
                    return
                continue
            frame = Frame(data[vnet.SIZE :], data[: vnet.SIZE])
            version = frame.packet[0] >> 4
            if len(frame.packet) <= MAX_PACKET and (version == 4 or (version == 6 and self._ipv6)):
                deliver(frame)

    def close(self) -> None:
        """Stop reading and let the interface go."""
        self._bell.ring()
        if self._thread is not None:
            self._thread.join()
        self._bell.close()
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
