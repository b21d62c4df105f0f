"""Byte streams as the data path wants them: try now, without a task switch; wait only when there is nothing to do.

trio.SocketStream checkpoints at every call, and trio.SSLStream moves each byte through a MemoryBIO (measured:
2.2 times the CPU per byte of an `ssl.SSLSocket`). Here a try is one system call, and waiting is a call of its own.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from ...errors import EndReason, PeerError, shortage_of
from ..interfaces import PathState

# What waits unsent beyond this waits in our outbox, where it can still be dropped (tcp(7), TCP_NOTSENT_LOWAT).
# See `Connection.limit_unsent` for streams that turn out to be fast.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; socket has no name for it before Python 3.12

# Receives that may follow each other without a wait, each while the one before it brought at least so much: under
# load there is more already, and a wait costs as much as two super-packets (measured: 8 to 15 % of the CPU per byte).
TURNS: Final = 8
MORE_BYTES: Final = 32 * 1024

# The kernel's own view of a dead path, as a second net below our keepalives: it also knows of bytes that nobody
# acknowledges on a stream whose other direction is a different connection.
KEEPALIVE_S: Final = 10
DEAD_S: Final = 30
# For a deployed client, which waits 60 s before it gives a silent stream up. It would lose the streams that it still
# has, and come back later than the path does.
BASE_DEAD_S: Final = 90

_SIOCOUTQ: Final = termios.TIOCOUTQ  # the same number, linux/sockios.h
ACKNOWLEDGED_POLL_S: Final = 0.005
UNLIMITED_BYTES: Final = 1 << 30

# struct tcp_info, linux/tcp.h: tcpi_snd_mss, _unacked, _sacked, _lost, _retrans, _rtt, _total_retrans,
# _notsent_bytes, _min_rtt, _data_segs_out, _delivery_rate.
_TCP_INFO: Final = struct.Struct("=16xI4xIIII28xI28xI40xII4xIQ")
_CONGESTION_BYTES: Final = 16  # TCP_CA_NAME_MAX

# See `tunnel.congestion`, which chooses one of the two where the host prefers the first.
RESTLESS: Final = "bbr"
CALM: Final = "cubic"
UNDECIDED: Final = "reno"  # until then; every kernel has it

# Errors that only a bug of ours can cause. All others the kernel passes on from the network, and there are many (see
# icmp_err_convert in net/ipv4/icmp.c; a `prohibit` route gives EACCES, a `blackhole` route EINVAL).
_BUGS: Final = frozenset({errno.EBADF, errno.EFAULT, errno.ENOTSOCK})
# The far end is gone. Which of these says so, or whether an orderly end does, is a matter of moments.
_GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN})
GONE: Final = "gone"  # the `PeerError.key` of all of them


class Connection:
    """One connected stream socket, owned: whoever has it calls `close`, from any task, any number of times.

    One task at a time may wait for readability and one for writability. A task that waits when another one
    closes gets PeerError, as everybody does who uses a closed connection.
    """

    __slots__ = ("_busy", "_fd", "_sock", "_tcp", "_turns", "name")

    def __init__(self, sock: socket.socket, name: str) -> None:
        """Takes ``sock`` over, as it is connected. ``name`` is the far end for people: ``192.0.2.7:51234``."""
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._busy = False  # the last receive brought much
        self._turns = 0  # receives since the last wait
        self.name = name
        self._tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
        if self._tcp:
            _tune(sock)

    def try_receive(self, into: memoryview) -> int | None:
        """Receive what is there: its length, 0 at the end of the stream, None if nothing is there yet."""
        try:
            return self._sock.recv_into(into)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._failed(exc) from exc

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        """Send what the kernel takes of the parts, as one system call: the number of bytes, 0 if none."""
        try:
            return self._sock.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._failed(exc) from exc

    async def wait_readable(self) -> None:
        """Cancel-safe; always a checkpoint."""
        try:
            await trio.lowlevel.wait_readable(self._open_fd())
        except trio.ClosedResourceError as exc:
            raise self._closed() from exc
        except OSError as exc:  # epoll_ctl(2) has no memory, or no watch left
            raise self._failed(exc) from exc

    async def wait_writable(self) -> None:
        """Cancel-safe; always a checkpoint."""
        try:
            await trio.lowlevel.wait_writable(self._open_fd())
        except trio.ClosedResourceError as exc:
            raise self._closed() from exc
        except OSError as exc:
            raise self._failed(exc) from exc

    async def receive(self, into: memoryview) -> int:
        """Receive at least one byte, or 0 at the end of the stream. Cancelled, nothing is lost.

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
        """Send everything. Cancelled, it may have sent a part."""
        view = memoryview(data)
        while view:
            sent = self.try_send((view,))
            view = view[sent:]
            if view:
                await self.wait_writable()
        await trio.lowlevel.checkpoint()

    def path(self) -> PathState | None:
        """How the connection's path is now (1 us); None where there is none: a Unix socket, a closed one."""
        if not self._tcp:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            mss, unacked, sacked, lost, retrans, rtt_us, resent, unsent, min_rtt_us, sent, rate = _TCP_INFO.unpack(info)
        except (OSError, struct.error):  # closed, or a kernel before 4.9, whose answer is shorter
            return None
        flying = unacked - sacked - lost + retrans
        min_rtt_us = min(min_rtt_us, rtt_us)  # all ones as long as it is not known
        return PathState(rtt_us / 1e6, min_rtt_us / 1e6, rate, flying * mss, unsent, sent, resent)

    @property
    def congestion_control(self) -> str | None:
        """What the kernel uses, e.g. ``cubic``; None: not TCP, or closed."""
        return _congestion_control(self._sock) if self._tcp else None

    @property
    def preferred_congestion_control(self) -> str | None:
        """What it would be if nobody chose: its route's (``ip route ... congctl``), or the machine's, which is not
        asked if no descriptor is left for that. None: not TCP, or closed."""
        if (present := self.congestion_control) != UNDECIDED:
            return present
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
                return _congestion_control(fresh)
        except OSError:
            return present

    def try_congestion_control(self, name: str) -> None:
        """Have the kernel use another one. Where it is not there, or not for us, everything stays as it is."""
        with suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())

    def limit_unsent(self, limit_bytes: int) -> None:
        """How much the kernel takes beyond what it can send now (NOTSENT_LOWAT_BYTES at the start)."""
        if self._tcp:
            with suppress(OSError):  # reset or closed: its next use says so
                self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, limit_bytes)

    def presume_dead_after(self, dead_s: int) -> None:
        """Have the kernel break the connection when nothing is acknowledged for this long (DEAD_S at the start).

        A proxy may use one connection for one client after the other, so this is said for each request.
        """
        if self._tcp:
            with suppress(OSError):  # reset or closed: its next use says so
                _presume_dead_after(self._sock, dead_s)

    @property
    def unacknowledged_bytes(self) -> int:
        """What the peer's kernel has not acknowledged yet of what was sent (SIOCOUTQ, tcp(7)); 0 if nobody can tell,
        as on a Unix socket. Raises PeerError."""
        if not self._tcp:
            return 0
        fd = self._open_fd()
        try:
            return int.from_bytes(fcntl.ioctl(fd, _SIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError as exc:
            raise self._failed(exc) from exc

    async def wait_acknowledged(self) -> None:
        """Until the peer's kernel has everything that was sent. No deadline of its own. Cancel-safe.

        Raises PeerError.
        """
        while self.unacknowledged_bytes:  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(ACKNOWLEDGED_POLL_S)
        await trio.lowlevel.checkpoint()

    @property
    def local_address(self) -> str | None:
        """This end's IP address; None for a Unix socket, and once closed."""
        try:
            address = self._sock.getsockname()
        except OSError:
            return None
        return str(address[0]) if isinstance(address, tuple) else None

    def has_lost_its_address(self, local_addresses: frozenset[str] | None) -> bool:
        """Its local address is none of this machine's any more; None: they are not known."""
        local = self.local_address
        return local_addresses is not None and local is not None and local not in local_addresses

    @property
    def remote_address(self) -> str | None:
        """The far end's IP address; None for a Unix socket, and for a peer that is gone."""
        try:
            address = self._sock.getpeername()
        except OSError:
            return None
        return str(address[0]) if isinstance(address, tuple) else None

    def shutdown_sending(self) -> None:
        """Tell the peer that nothing more comes; receiving goes on."""
        with suppress(OSError):  # it is gone already, which the next receive will say
            self._sock.shutdown(socket.SHUT_WR)

    def detach(self) -> socket.socket:
        """Give the socket away; this object is closed from here on."""
        self._fd = -1
        return self._sock

    def close(self) -> None:
        """Close at once; the kernel goes on sending what it has taken. Wakes whoever waits."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            trio.lowlevel.notify_closing(fd)
            self._sock.close()

    def abort(self) -> None:
        """Close, throw away what the kernel has not sent, and tell the peer with a reset."""
        if self._fd >= 0:
            with suppress(OSError):  # a Unix socket has no such option; then this is a close
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def _open_fd(self) -> int:
        # Asked to wait for descriptor -1, trio raises, and then believes for ever that somebody waits for it.
        if self._fd < 0:
            raise self._closed()
        return self._fd

    def _closed(self) -> PeerError:
        return PeerError(f"connection to {self.name} was closed", reason=EndReason.CLOSED)

    def _failed(self, exc: OSError) -> Exception:
        if self._fd < 0:
            return self._closed()
        if exc.errno in _BUGS:
            return exc
        text = f"connection to {self.name} broke"
        if (shortage := shortage_of(exc, text)) is not None:
            return shortage
        return PeerError(f"{text}: {exc.strerror}", reason=EndReason.BROKEN, key=GONE if exc.errno in _GONE else None)


def leave_undecided(sock: socket.socket) -> None:
    """Before it connects, or listens for those that do: where the host prefers RESTLESS, do not begin with that.

    Later it would be too late: BBR has the kernel pace a connection's segments, one timer each, and that stays as it is
    when another one takes over (sk_pacing_status, bbr_init in net/ipv4/tcp_bbr.c).
    """
    if _congestion_control(sock) == RESTLESS:
        with suppress(OSError):  # then RESTLESS it is, which is slower and no failure
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNDECIDED.encode())


def _congestion_control(sock: socket.socket) -> str | None:
    try:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_BYTES)
    except OSError:
        return None
    return name.rstrip(b"\0").decode()


def _tune(sock: socket.socket) -> None:
    """Each option for itself: an emulated kernel may lack one, and a connection that was reset already takes none. Its
    first use will say what happened."""
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
    """Of the two the kernel goes by TCP_USER_TIMEOUT (tcp_keepalive_timer in net/ipv4/tcp_timer.c). None is needed, as
    in `_tune`."""
    for option, value in ((socket.TCP_USER_TIMEOUT, dead_s * 1000), (socket.TCP_KEEPCNT, dead_s // KEEPALIVE_S)):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def peer_name(sock: socket.socket) -> str:
    """The far end for people: ``192.0.2.7:51234``."""
    try:
        peer = sock.getpeername()
    except OSError:
        return "a peer that is gone"
    if isinstance(peer, tuple):
        return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
    return "unix socket"
