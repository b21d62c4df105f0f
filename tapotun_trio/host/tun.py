"""A TUN or TAP interface: whole frames in and out of the kernel, through /dev/net/tun.

Follows linux/if_tun.h; the results of the calls are those of drivers/net/tun.c. The interface exists while its file
descriptor is open (with several queues, while one of them is), so the kernel removes it even after a kill -9.
"""

from __future__ import annotations

import array
import errno
import fcntl
import io
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import trio

from ..errors import HostError, shortage_of
from ..wire.frames import LENGTH_BYTES, FrameRange
from .ipv6 import refuse_router_advertisements
from .process.privileges import missing_net_admin, open_tun_node

VNET_HEADER_BYTES: Final = 12  # struct virtio_net_hdr_v1, linux/virtio_net.h
MAX_FRAME_BYTES: Final = VNET_HEADER_BYTES + 65535

# linux/if_tun.h, with the direction bits of asm-generic/ioctl.h (x86, arm, riscv, s390, loongarch).
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC
_TUNGETIFF: Final = 0x800454D2
_TUNSETCARRIER: Final = 0x400454E2  # Linux 4.20
_SIOCSIFHWADDR: Final = 0x8924  # linux/sockios.h; on the descriptor, it sets the address of the interface behind it

_IFF_TUN: Final = 0x0001
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100  # Linux 3.8
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
# Refuse an interface that exists. Without this flag, TUNSETIFF would take over another program's persistent device
# with its addresses and routes.
_IFF_TUN_EXCL: Final = 0x8000

_FLAGS: Final = _IFF_NO_PI | _IFF_VNET_HDR

# Work that the kernel may leave to us: the checksum of a packet, and the segmentation of TCP data to the MTU.
_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02
_TUN_F_TSO6: Final = 0x04
_TUN_F_TSO_ECN: Final = 0x08
_TUN_F_USO4: Final = 0x20  # Linux 6.2; set together with USO6
_TUN_F_USO6: Final = 0x40
_BASE_OFFLOADS: Final = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN

_IFREQ: Final = struct.Struct("16sH22x")  # struct ifreq with ifr_flags, linux/if.h
_IFREQ_MAC: Final = struct.Struct("16sH6s16x")  # struct ifreq with ifr_hwaddr: the hardware type and the address
_ARPHRD_ETHER: Final = 1  # linux/if_arp.h
_NAME_BYTES: Final = 15  # IFNAMSIZ - 1

# How many packets may wait for us to read. The kernel's default of 500 holds 2 ms of small packets; if another process
# has the CPU for longer, the rest is lost (docs/performance-notes.md#device-queue). An operator may set another length:
# ip link set txqueuelen.
_TX_QUEUE_PACKETS: Final = 2000

# The kernel cuts longer super-packets before they come to us. It measures them with their Ethernet header, but before
# it has inserted up to two VLAN tags, of 4 bytes each; a frame of ours has at most 65535 bytes.
_TAP_GSO_BYTES: Final = 65535 - 2 * 4

# The interface is gone although the descriptor is open: another program deleted it (ip link delete).
_GONE: Final = frozenset({errno.EBADFD, errno.ENODEV})

# The kernel refuses this frame, but may take the next one: malformed (EINVAL, EFAULT, EMSGSIZE), interface down (EIO),
# no memory now. EIO is only a drop, since the operator may set the link up again.
_REFUSED: Final = frozenset(
    {errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EFAULT, errno.ENOMEM, errno.ENOBUFS, errno.EPERM}
)


# No more queues are available, because of the driver's limit or of a security module.
_NO_QUEUE: Final = frozenset({errno.EPERM, errno.EACCES, errno.E2BIG, errno.EINVAL, errno.EOPNOTSUPP})


class QueueRefusedError(HostError):
    """The kernel refuses another queue for an interface; the existing queues work."""


class TunDevice:
    """A `Device` on a TUN or TAP interface, or on one of its queues. `open_tun` and `add_queue` make and close it.

    Once it is closed, every method raises trio.ClosedResourceError, also in a task that waits.
    """

    __slots__ = ("_fd", "_file", "_name", "_readinto", "_uso", "_write", "is_tap")

    def __init__(self, name: str, fd: int, *, is_tap: bool = False) -> None:
        """Takes over ``fd``, which is attached to the interface ``name`` and non-blocking."""
        self._name = name
        self.is_tap = is_tap
        self._fd = fd
        self._uso = False
        # FileIO returns None on EAGAIN; os.readv would raise an exception for every empty read.
        self._file = io.FileIO(fd, "r+")
        self._readinto = self._file.readinto
        self._write = self._file.write

    @property
    def name(self) -> str:
        return self._name

    @property
    def text(self) -> str:
        """For an error."""
        return _text(self._name, is_tap=self.is_tap)

    @property
    def queues(self) -> Sequence[TunDevice]:
        """The queues for writing: this device alone."""
        return (self,)

    @property
    def descriptor(self) -> int | None:
        return None if self._fd == -1 else self._fd

    @property
    def descriptors(self) -> tuple[int, ...]:
        return () if self._fd == -1 else (self._fd,)

    def fileno(self) -> int:
        """The descriptor, which this object still owns; -1 once closed."""
        return self._fd

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        """As `Device.read_burst`. No checkpoint."""
        # This loop runs once for every frame, and each line of it costs 50 ns per packet. So it only collects lengths.
        # An empty read costs 775 ns.
        read, offset = self._readinto, LENGTH_BYTES
        lengths: list[int] = []
        append = lengths.append
        limit = limit_bytes + LENGTH_BYTES
        try:
            for _ in range(most):
                length = read(into[offset:])
                if length is None:
                    return lengths, False
                append(length)
                offset += length + LENGTH_BYTES
                if offset >= limit:
                    break
        except (OSError, ValueError) as exc:
            raise self._failure("read", exc) from exc
        return lengths, True

    def write(self, frame: memoryview | bytes, /) -> bool | None:
        """As `Device.write`. No checkpoint."""
        try:
            return True if self._write(frame) else None
        except (OSError, ValueError) as exc:
            if isinstance(exc, OSError) and exc.errno in _REFUSED:
                return False
            raise self._failure("write", exc) from exc

    def write_burst(self, view: memoryview, spans: Sequence[FrameRange], refused: list[FrameRange], /) -> int:
        """As `Device.write_burst`. No checkpoint."""
        write, number = self._write, 0
        for span in spans:
            try:
                if write(view[span[0] + LENGTH_BYTES : span[1]]) is None:
                    break
            except (OSError, ValueError) as exc:
                if not isinstance(exc, OSError) or exc.errno not in _REFUSED:
                    raise self._failure("write", exc) from exc
                refused.append(span)
            number += 1
        return number

    def write_parts(self, parts: Sequence[memoryview | bytes], /) -> bool | None:
        """As `Device.write_parts`. No checkpoint."""
        try:
            os.writev(self._open_fd(), parts)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno in _REFUSED:
                return False
            raise self._failure("write", exc) from exc
        return True

    async def wait_readable(self) -> None:
        """Wait until `read_burst` would return a frame or raise an error.

        A checkpoint, cancel-safe. One task at a time: trio.BusyResourceError.
        """
        try:
            await trio.lowlevel.wait_readable(self._open_fd())
        except OSError as exc:  # epoll_ctl(2): no memory, or the limit of watches is reached
            raise self._failure("wait for", exc) from exc

    async def wait_writable(self) -> None:
        """Wait until `write` may take a frame. While the interface is down, this waits until it is up again.

        A checkpoint, cancel-safe. One task at a time: trio.BusyResourceError.
        """
        try:
            await trio.lowlevel.wait_writable(self._open_fd())
        except OSError as exc:
            raise self._failure("wait for", exc) from exc

    def set_offloads(self, *, uso: bool) -> bool:
        """Set whether the kernel may also pass UDP super-packets (gso_type UDP_L4) to us. It may always pass TCP
        super-packets.

        Returns whether it may pass them now: False if not requested, or if this kernel cannot (before 6.2) or refuses.
        Raises HostError if the interface is gone, or if the kernel refuses to switch the offload off.
        """
        wanted = _BASE_OFFLOADS | (_TUN_F_USO4 | _TUN_F_USO6 if uso else 0)
        try:
            fcntl.ioctl(self._open_fd(), _TUNSETOFFLOAD, wanted)
        except OSError as exc:
            if exc.errno not in _GONE and not self._uso:
                return False
            raise self._failure("set offloads of", exc) from exc
        self._uso = uso
        return uso

    def set_carrier(self, *, up: bool) -> None:
        """As `OwnDevice.set_carrier`."""
        if not self.is_tap:
            return
        try:
            fcntl.ioctl(self._open_fd(), _TUNSETCARRIER, struct.pack("=i", up))
        except OSError as exc:
            if exc.errno == errno.EINVAL:  # the kernel does not know the request
                return
            raise self._failure("set the carrier of", exc) from exc

    def close(self) -> None:
        """Delete the interface or, if it has several queues, this queue. Idempotent.

        Tasks that wait for it get trio.ClosedResourceError.
        """
        fd, self._fd = self._fd, -1
        if fd == -1:
            return
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(fd)
        self._file.close()

    def _open_fd(self) -> int:
        if self._fd == -1:
            raise trio.ClosedResourceError(f"{self.text} is closed")
        return self._fd

    def _failure(self, verb: str, exc: OSError | ValueError) -> Exception:
        """The exception to raise for an error of the file object."""
        if isinstance(exc, ValueError):  # how FileIO reports that it is closed
            return trio.ClosedResourceError(f"{self.text} is closed")
        if exc.errno in _GONE:
            return HostError(f"{self.text} is gone: another program deleted it")
        doing = f"cannot {verb} {self.text}"
        return shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}")


def open_tun(
    name: str, *, multi_queue: bool = False, mac: bytes | None = None, is_port: bool = False
) -> AbstractContextManager[TunDevice]:
    """Create the TUN interface ``name``, down and without addresses; it is gone at exit.

    Frames have a little-endian ``virtio_net_hdr_v1``; checksum and TCP segmentation offloads are on.
    ``multi_queue``: `add_queue` may add more queues. ``mac``, ``is_port``: as for `Host.open_device`.
    Raises HostError: the name is taken or invalid, no /dev/net/tun, no CAP_NET_ADMIN.
    """
    encoded = _check_name(name)
    flags = _FLAGS | (_IFF_MULTI_QUEUE if multi_queue else 0)
    return _open(name, lambda fd: _create(fd, name, encoded, flags, mac, is_port=is_port), is_tap=mac is not None)


def add_queue(first: TunDevice) -> AbstractContextManager[TunDevice]:
    """Add a queue, until exit, to an interface that was opened with ``multi_queue``. Raises HostError as `open_tun`,
    and QueueRefusedError."""
    return _open(first.name, lambda fd: _join(fd, first), is_tap=first.is_tap)


@contextmanager
def _open(name: str, attach: Callable[[int], None], *, is_tap: bool) -> Iterator[TunDevice]:
    fd = open_tun_node()
    try:
        attach(fd)
        device = TunDevice(name, fd, is_tap=is_tap)
    except BaseException:
        os.close(fd)
        raise
    try:
        yield device
    finally:
        device.close()


def _check_name(name: str) -> bytes:
    """Accepts what dev_valid_name() of net/core/dev.c accepts, except ``%``, which TUNSETIFF replaces with a number."""
    encoded = name.encode(errors="surrogateescape")
    if not 0 < len(encoded) <= _NAME_BYTES:
        raise HostError(f"interface name {name!r} has {len(encoded)} bytes; use 1 to {_NAME_BYTES}, such as 'tun0'")
    if name in (".", "..") or any(char in "/:%\0" or char.isspace() for char in name):
        raise HostError(
            f"{name!r} is not an interface name: '/', ':', '%' and spaces are not allowed, nor '.' and '..'; "
            "use one such as 'tun0'"
        )
    return encoded


def _create(fd: int, name: str, encoded: bytes, flags: int, mac: bytes | None, *, is_port: bool) -> None:
    call = "TUNSETIFF"
    kind = _IFF_TUN if mac is None else _IFF_TAP
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, flags | kind | _IFF_TUN_EXCL))
        call = "TUNSETVNETHDRSZ"
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER_BYTES))
        try:
            fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("=i", 1))
        except OSError:
            if sys.byteorder != "little":  # on a little-endian machine it only confirms the default
                call = "TUNSETVNETLE"
                raise
        with suppress(OSError):  # without it, the kernel passes complete packets one by one
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _BASE_OFFLOADS)
        with suppress(OSError):  # without it, the queue keeps the kernel's default length
            _set_up_link(name, is_tap=mac is not None)
        if mac is not None:
            call = "SIOCSIFHWADDR"
            fcntl.ioctl(fd, _SIOCSIFHWADDR, _IFREQ_MAC.pack(encoded, _ARPHRD_ETHER, mac))
            with suppress(OSError):  # before Linux 4.20 it always has a carrier
                fcntl.ioctl(fd, _TUNSETCARRIER, struct.pack("=i", 0))
            refuse_router_advertisements(name, is_port=is_port)
    except OSError as exc:
        doing = f"cannot create {_text(name, is_tap=mac is not None)}"
        raise shortage_of(exc, doing) or HostError(f"{doing}: {_reason(exc, call, name)}") from exc


def _set_up_link(name: str, *, is_tap: bool) -> None:
    """Set the length of the queue, and let the interface make no IPv6 link-local address, whoever sets it up. A TAP
    interface gets no super-packet that is too long for a frame of ours.

    By netlink, which requires CAP_NET_ADMIN in the network namespace only. SIOCSIFTXQLEN requires it in the initial
    user namespace, which root of another one does not have. The kernel has executed the requests when the send returns.
    A refusal is ignored: `Network.link_up` tries again. Raises OSError."""
    # Imported at first use, as in `linux`.
    from .netlink import link_codec

    index = socket.if_nametoindex(name)
    requests = link_codec.set_queue_length(index, _TX_QUEUE_PACKETS) + link_codec.set_ipv6_silent(index)
    if is_tap:
        requests += link_codec.set_gso_max_size(index, _TAP_GSO_BYTES)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.sendto(requests, (0, 0))


def _join(fd: int, first: TunDevice) -> None:
    encoded = first.name.encode(errors="surrogateescape")
    flags = _FLAGS | _IFF_MULTI_QUEUE | (_IFF_TAP if first.is_tap else _IFF_TUN)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, flags))
        # If the interface was deleted meanwhile, TUNSETIFF has created a new one. This call fails then (EBADFD), and
        # the new interface is removed with its descriptor.
        fcntl.ioctl(first.fileno(), _TUNGETIFF, bytes(_IFREQ.size))
    except OSError as exc:
        doing = f"cannot add a queue to {first.text}"
        kind = QueueRefusedError if exc.errno in _NO_QUEUE else HostError
        raise shortage_of(exc, doing) or kind(f"{doing}: TUNSETIFF: {exc.strerror}") from exc


def _text(name: str, *, is_tap: bool) -> str:
    return f"{'TAP' if is_tap else 'TUN'} interface {name}"


def taken_by(name: str) -> str:
    """For an error: why the name is not available, and what to do. Call it if another interface has the name."""
    driver = _driver(name.encode(errors="surrogateescape"))
    if driver in ("tun", ""):
        return (
            "the name is taken, by another process or by a persistent device; "
            f"stop that process, `ip link delete {name}` if nobody needs it, or choose another name"
        )
    return f"the name is taken, by an interface of kind {driver}; choose another name"


def _reason(exc: OSError, call: str, name: str) -> str:
    match exc.errno:
        case errno.EPERM:
            return f"{call}: {exc.strerror}; {missing_net_admin()}"
        case errno.EBUSY:
            return taken_by(name)
        case errno.EINVAL:
            return "the kernel does not allow this name (or is too old for IFF_VNET_HDR); try another name"
        case _:
            return f"{call}: {exc.strerror or exc}"


_SIOCETHTOOL: Final = 0x8946  # linux/sockios.h
_ETHTOOL_GDRVINFO: Final = 0x00000003  # linux/ethtool.h: struct ethtool_drvinfo { u32 cmd; char driver[32]; ...
_DRVINFO_BYTES: Final = 196


def _driver(encoded: bytes) -> str:
    """The driver of an interface, or "" if the kernel does not report one."""
    info = array.array("B", struct.pack("=I", _ETHTOOL_GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"))
    request = struct.pack("16sP", encoded, info.buffer_info()[0]).ljust(40, b"\0")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
    except OSError:
        return ""
    return info.tobytes()[4:36].rstrip(b"\0").decode(errors="replace")
