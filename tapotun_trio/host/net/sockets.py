"""Byte streams for the data path: a call tries at once, without a task switch, and waits only if nothing can be done.

trio.SocketStream checkpoints at every call, and trio.SSLStream moves each byte through a MemoryBIO (measured: 2.2 times
the CPU per byte of an `ssl.SSLSocket`). Here an attempt is one system call, and waiting is a separate call.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from mmap import mmap
from typing import Final

import trio

from ...errors import EndReason, PeerError, shortage_of
from ...native import Tls
from ..interfaces import PathState
from .segments import SegmentState

# Unsent data beyond this stays in our TxQueue, where it can still be dropped (tcp(7), TCP_NOTSENT_LOWAT). See
# `Connection.limit_unsent` for streams that turn out to be fast.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; socket has no name for it before Python 3.12

# Up to TURNS receives follow each other without a wait if each returns at least MORE_BYTES: under load there is more
# data already, and a wait costs as much as two super-packets (measured: 8 to 15 % of the CPU per byte).
TURNS: Final = 8
MORE_BYTES: Final = 32 * 1024

# The kernel's detection of a dead path, in addition to our keepalives: it also notices unacknowledged bytes on a stream
# whose opposite direction is a different connection.
KEEPALIVE_S: Final = 10
DEAD_S: Final = 30
# For a base client, which gives up a silent stream only after 60 s. With DEAD_S it would lose streams that it still
# uses, and would reconnect later than the path recovers.
BASE_DEAD_S: Final = 90

# Whether new TLS connections of this trio run are such that `datapath.plane` can be lent them: see `tls_records`. The
# plane says so while it runs. It stands here because importing `ssl` takes megabytes, and most ends need none.
TLS_RECORDS_WANTED: Final = trio.lowlevel.RunVar[bool]("tls_records_wanted", default=False)

_SIOCOUTQ: Final = termios.TIOCOUTQ  # linux/sockios.h has the same number
ACKNOWLEDGED_POLL_S: Final = 0.005
UNLIMITED_BYTES: Final = 1 << 30

# struct tcp_info, linux/tcp.h: tcpi_snd_mss, _unacked, _sacked, _lost, _retrans, _rtt, _total_retrans,
# _notsent_bytes, _min_rtt, _data_segs_out, _delivery_rate.
_TCP_INFO: Final = struct.Struct("=16xI4xIIII28xI28xI40xII4xIQ")
# tcpi_retransmits, _snd_mss, _last_ack_recv, _rtt, _bytes_acked, _bytes_received, _notsent_bytes.
_SEGMENT_INFO: Final = struct.Struct("=2xB13xI36xI8xI48xQQ8xI")
_SO_MEMINFO: Final = 55  # asm-generic/socket.h; its first u32 (SK_MEMINFO_RMEM_ALLOC) is the received data
_SIOCINQ: Final = termios.FIONREAD  # linux/sockios.h has the same number
# Also of struct tcp_info: tcpi_last_data_sent and tcpi_last_data_recv, in milliseconds.
_TCP_SILENCE: Final = struct.Struct("=44xI4xI")
_CONGESTION_BYTES: Final = 16  # TCP_CA_NAME_MAX

# See `datapath.congestion`, which chooses between BBR and others.
BBR: Final = "bbr"
CUBIC: Final = "cubic"
RENO: Final = "reno"  # used until that choice; every kernel has it

# Errors that only a bug of ours can cause. All others may come from the network, and there are many (icmp_err_convert
# in net/ipv4/icmp.c; a `prohibit` route causes EACCES, a `blackhole` route EINVAL).
_BUGS: Final = frozenset({errno.EBADF, errno.EFAULT, errno.ENOTSOCK})
# The peer is gone. Which of these errors shows it, or whether an orderly end does, depends on timing.
_GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN})
GONE: Final = "gone"  # the `PeerError.key` of all of them


def address_text(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """The IP address of a socket address. A link-local one has its zone, without which it cannot be connected to:
    ``fe80::1%eth0``. Python leaves the zone out."""
    text = address[0]
    if len(address) == 2 or not address[3]:
        return text
    try:
        return f"{text}%{socket.if_indextoname(address[3])}"
    except OSError:  # the interface is gone, or this machine has no descriptor left
        return f"{text}%{address[3]}"


def local_address(sock: socket.socket) -> str | None:
    """The local IP address of a socket, without a zone. None: it has none yet, or is closed, or a Unix socket."""
    try:
        address = sock.getsockname()
    except OSError:
        return None
    if not isinstance(address, tuple):
        return None
    text = str(address[0]).partition("%")[0]
    return None if text in ("0.0.0.0", "::") else text


class Connection:
    """One connected stream socket. Its owner calls `close`, from any task, any number of times.

    One task at a time may wait for readability, and one for writability. Using a closed connection raises PeerError,
    also in a task that was already waiting.

    Attributes:
        name: the peer's name for logs.
        borrowers: functions that are called before the descriptor is closed: whoever has a copy of its number must not
            use it any more.
    """

    __slots__ = ("_busy", "_fd", "_sock", "_tcp", "_turns", "borrowers", "name")

    def __init__(self, sock: socket.socket, name: str) -> None:
        """Takes over the connected ``sock``. ``name`` is the peer's name for logs: ``192.0.2.7:51234``."""
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._busy = False  # the last receive returned at least MORE_BYTES
        self._turns = 0  # receives since the last wait
        self.borrowers: list[Callable[[], None]] = []
        self.name = name
        self._tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
        if self._tcp:
            _tune(sock)

    # -- for those who move bytes in C: see `datapath.plane`

    @property
    def can_lend_sending(self) -> bool:
        """Whether others may send on the descriptor now, with what `lend_sending` gives."""
        return self._fd >= 0

    @property
    def can_lend_receiving(self) -> bool:
        """Whether others may receive on the descriptor now, with what `lend_receiving` gives."""
        return self._fd >= 0

    @property
    def holds_received(self) -> bool:
        """Whether received bytes may wait in this object, where its descriptor does not show them. They are gone when
        `try_receive` returns None."""
        return False

    def lend_sending(self) -> Tls | None:
        """What seals the bytes to be sent; None: the socket takes them as they are."""
        return None

    def take_back_sending(self, rest: bytes) -> bytes:
        """``rest``: what still has to be sent on the socket, as it is. Returns what to offer to `try_send` first, until
        it is taken. With TLS that only stands for the rest, because that is sealed already."""
        return rest

    def lend_receiving(self) -> tuple[Tls, mmap, int, int] | None:
        """What opens the records that are received, a buffer for them, and where in it the received ones begin and end;
        None: the bytes of the socket are what is received."""
        return None

    def take_back_receiving(self, raw_start: int, raw_stop: int, *, other: bool) -> None:
        """Take back what `lend_receiving` gave. ``other``: the next record is for `try_receive`, because it has other
        content than data."""

    @property
    def tls(self) -> str | None:
        """The TLS version as text for people, such as ``TLS 1.3``. None: the connection has no TLS, or is closed."""
        return None

    @property
    def encrypted(self) -> bool | None:
        """Whether the connection uses TLS. None if that is not known: the connection is closed, or it has no TLS but
        its other end is on this machine and may be a proxy that terminates or adds TLS."""
        if self.tls is not None:
            return True
        if (remote := self.remote_address) is None:
            return None
        bare = remote.partition("%")[0]  # the zone may be almost any text
        if bare == self.local_address:
            return None
        address = ip_address(bare)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return None if (mapped or address).is_loopback else False

    def fileno(self) -> int:
        """The socket's descriptor; -1 after `close`."""
        return self._fd

    def try_receive(self, into: memoryview) -> int | None:
        """Receive what is available. Returns its length, 0 at the end of the stream, None if nothing is available
        yet."""
        try:
            return self._sock.recv_into(into)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self.failure(exc) from exc

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        """Send as much of the parts as the kernel takes, in one system call. Returns the number of bytes, 0 if none."""
        try:
            return self._sock.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self.failure(exc) from exc

    async def wait_readable(self) -> None:
        """Cancel-safe; always a checkpoint."""
        try:
            await trio.lowlevel.wait_readable(self._open_fd())
        except trio.ClosedResourceError as exc:
            raise self._closed() from exc
        except OSError as exc:  # epoll_ctl(2): no memory, or the limit of watches is reached
            raise self.failure(exc) from exc

    async def wait_writable(self) -> None:
        """Cancel-safe; always a checkpoint."""
        try:
            await trio.lowlevel.wait_writable(self._open_fd())
        except trio.ClosedResourceError as exc:
            raise self._closed() from exc
        except OSError as exc:
            raise self.failure(exc) from exc

    async def receive(self, into: memoryview) -> int:
        """Receive at least one byte, or 0 at the end of the stream. If it is cancelled, nothing is lost.

        A checkpoint at least every TURNS calls.
        """
        if not self._busy or self._turns >= TURNS:
            self._turns = 0
            await self.wait_readable()
        while (received := self.try_receive(into)) is None:
            self._turns = 0
            await self.wait_readable()
        self._turns += 1
        self._busy = received >= MORE_BYTES
        return received

    async def send_all(self, data: bytes) -> None:
        """Send everything. If it is cancelled, it may have sent a part."""
        view = memoryview(data)
        while view:
            sent = self.try_send((view,))
            view = view[sent:]
            if view:
                await self.wait_writable()
        await trio.lowlevel.checkpoint()

    def path(self) -> PathState | None:
        """The state of the connection's path; None for a Unix socket and a closed one. Takes 1 us."""
        if not self._tcp:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            mss, unacked, sacked, lost, retrans, rtt_us, resent, unsent, min_rtt_us, sent, rate = _TCP_INFO.unpack(info)
        except (OSError, struct.error):  # closed, or a kernel before 4.9, whose answer is shorter
            return None
        flying = unacked - sacked - lost + retrans
        min_rtt_us = min(min_rtt_us, rtt_us)  # all ones while it is not known
        return PathState(rtt_us / 1e6, min_rtt_us / 1e6, rate, flying * mss, unsent, sent, resent)

    def segments(self) -> SegmentState | None:
        """Return the state of the segments sent and received. None for a Unix socket, for a closed socket, and before
        Linux 4.12."""
        if not self._tcp or self._fd < 0:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGMENT_INFO.size)
            retransmits, mss, ack_age_ms, rtt_us, acked, received, unsent = _SEGMENT_INFO.unpack(info)
            flying = self.unacknowledged_bytes - unsent
            held = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4)
            readable = fcntl.ioctl(self._fd, _SIOCINQ, bytes(4))
        except (OSError, struct.error, PeerError):
            return None
        # The kernel holds data that cannot be read yet, because an earlier segment is missing.
        gap = any(held) and not any(readable)
        return SegmentState(mss, flying, retransmits, acked, received, gap, ack_age_ms / 1e3, rtt_us / 1e6)

    def silence(self) -> tuple[float, float] | None:
        """Return the seconds since this end last sent data and since it last received data. Without any data, they
        count from the connection's start. None for a Unix socket and for a closed socket. Takes 1 us."""
        if not self._tcp:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_SILENCE.size)
            sent_ms, received_ms = _TCP_SILENCE.unpack(info)
        except (OSError, struct.error):
            return None
        return sent_ms / 1e3, received_ms / 1e3

    @property
    def congestion_control(self) -> str | None:
        """The algorithm in use, e.g. ``cubic``; None if this is not TCP or closed."""
        return _congestion_control(self._sock) if self._tcp else None

    @property
    def preferred_congestion_control(self) -> str | None:
        """The algorithm that the host prefers: the route's (``ip route ... congctl``) or the machine's default.
        Needs a free descriptor. None if this is not TCP or closed."""
        if (present := self.congestion_control) != RENO:
            return present
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
                return _congestion_control(fresh)
        except OSError:
            return present

    def try_congestion_control(self, name: str) -> OSError | None:
        """Set the algorithm. Returns why that is not possible: ENOENT: the kernel does not have it, and cannot load its
        module or may not for us. EPERM: this process may not use it (only CAP_NET_ADMIN may use those that
        net.ipv4.tcp_allowed_congestion_control does not list), or the route has `congctl lock`
        (tcp_set_congestion_control in net/ipv4/tcp_cong.c)."""
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError as exc:
            return exc
        return None

    def limit_unsent(self, limit_bytes: int) -> None:
        """Limit how much the kernel takes beyond what it can send now (NOTSENT_LOWAT_BYTES at the start)."""
        if self._tcp:
            with suppress(OSError):  # reset or closed; its next use reports that
                self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, limit_bytes)

    def presume_dead_after(self, dead_s: int) -> None:
        """Make the kernel break the connection when nothing is acknowledged for this long (DEAD_S at the start).

        A proxy may use one connection for several clients in turn, so this is to be called for each request.
        """
        if self._tcp:
            with suppress(OSError):  # reset or closed; its next use reports that
                _presume_dead_after(self._sock, dead_s)

    def keepalive_after(self, idle_s: int) -> None:
        """Make the kernel probe the peer when the connection has been idle for this long (KEEPALIVE_S at the start).

        The kernel does not probe while sent data is unacknowledged (tcp_keepalive_timer in net/ipv4/tcp_timer.c).
        """
        if self._tcp:
            with suppress(OSError):  # reset or closed; its next use reports that
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes that were sent and that the peer's kernel has not acknowledged yet (SIOCOUTQ, tcp(7)); 0 if not known,
        as on a Unix socket. Raises PeerError."""
        if not self._tcp:
            return 0
        fd = self._open_fd()
        try:
            return int.from_bytes(fcntl.ioctl(fd, _SIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError as exc:
            raise self.failure(exc) from exc

    async def wait_acknowledged(self) -> None:
        """Wait until the peer's kernel has everything that was sent. Has no deadline. Cancel-safe.

        Raises PeerError.
        """
        while self.unacknowledged_bytes:  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(ACKNOWLEDGED_POLL_S)
        await trio.lowlevel.checkpoint()

    @property
    def local_address(self) -> str | None:
        """The local IP address; None for a Unix socket or a closed connection. An IPv6 link-local address has no zone
        here, as in `host.interfaces.Change`."""
        return local_address(self._sock)

    def has_lost_its_address(self, local_addresses: frozenset[str] | None) -> bool:
        """Whether this machine no longer has the local address. ``local_addresses``: those that it has; None if not
        known."""
        local = self.local_address
        return local_addresses is not None and local is not None and local not in local_addresses

    @property
    def remote_address(self) -> str | None:
        """The peer's IP address as `address_text`; None for a Unix socket, and if the peer is gone."""
        try:
            address = self._sock.getpeername()
        except OSError:
            return None
        return address_text(address) if isinstance(address, tuple) else None

    def shutdown_sending(self) -> None:
        """Send the end of the stream; receiving continues."""
        with suppress(OSError):  # the connection is gone already, which the next receive reports
            self._sock.shutdown(socket.SHUT_WR)

    def detach(self) -> socket.socket:
        """Transfer the socket to the caller. This object is closed afterwards."""
        self._fd = -1
        return self._sock

    def close(self) -> None:
        """Close at once. The kernel still sends what it has taken. Wakes tasks that wait."""
        if self._fd < 0:
            return
        for end in list(self.borrowers):
            end()
        fd, self._fd = self._fd, -1
        trio.lowlevel.notify_closing(fd)
        self._sock.close()

    def abort(self) -> None:
        """Close with a reset; the kernel discards what it has not sent."""
        if self._fd >= 0:
            with suppress(OSError):  # a Unix socket has no such option; then this is a close
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def _open_fd(self) -> int:
        # If trio is asked to wait for descriptor -1, it raises, and then assumes forever that a task waits for it.
        if self._fd < 0:
            raise self._closed()
        return self._fd

    def _closed(self) -> PeerError:
        return PeerError(f"connection to {self.name} was closed", reason=EndReason.CLOSED)

    def failure(self, exc: OSError) -> Exception:
        """The exception to raise for an error of the socket."""
        if self._fd < 0:
            return self._closed()
        if exc.errno in _BUGS:
            return exc
        text = f"connection to {self.name} broke"
        if (shortage := shortage_of(exc, text)) is not None:
            return shortage
        return PeerError(f"{text}: {exc.strerror}", reason=EndReason.BROKEN, key=GONE if exc.errno in _GONE else None)


def avoid_bbr(sock: socket.socket) -> None:
    """If the host prefers BBR, start without it. To be called before ``sock`` connects or listens.

    Afterwards it is too late: BBR makes the kernel pace the connection's segments, with a timer for each, and that
    stays so when another algorithm replaces it (sk_pacing_status, bbr_init in net/ipv4/tcp_bbr.c).
    """
    if _congestion_control(sock) == BBR:
        with suppress(OSError):  # then BBR stays, which is slower but no failure
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, RENO.encode())


def _congestion_control(sock: socket.socket) -> str | None:
    try:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_BYTES)
    except OSError:
        return None
    return name.rstrip(b"\0").decode()


def _tune(sock: socket.socket) -> None:
    """Set each option separately, and ignore failures: an emulated kernel may lack one, and a connection that was
    already reset accepts none. Its first use reports the reset."""
    tcp = socket.IPPROTO_TCP
    for level, option, value in (
        (tcp, socket.TCP_NODELAY, 1),
        (tcp, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (tcp, socket.TCP_KEEPIDLE, KEEPALIVE_S),
        (tcp, socket.TCP_KEEPINTVL, KEEPALIVE_S),
    ):
        with suppress(OSError):
            sock.setsockopt(level, option, value)
    _presume_dead_after(sock, DEAD_S)


def _presume_dead_after(sock: socket.socket, dead_s: int) -> None:
    """If both are set, the kernel uses TCP_USER_TIMEOUT (tcp_keepalive_timer in net/ipv4/tcp_timer.c). Failures are
    ignored, as in `_tune`."""
    for option, value in ((socket.TCP_USER_TIMEOUT, dead_s * 1000), (socket.TCP_KEEPCNT, dead_s // KEEPALIVE_S)):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def peer_name(sock: socket.socket) -> str:
    """The peer's name for logs: ``192.0.2.7:51234``, ``[fe80::7%eth0]:51234``."""
    try:
        peer = sock.getpeername()
    except OSError:
        return "a peer that is gone"
    if isinstance(peer, tuple):
        text = address_text(peer)
        return f"[{text}]:{peer[1]}" if ":" in text else f"{text}:{peer[1]}"
    return "unix socket"
