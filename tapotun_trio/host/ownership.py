"""Who has an interface's name: one process of a network namespace, from before it connects until its device is gone.

A client makes its device only when the server has told its address. By then it has taken the token, and with it the
streams of a client that ran already. So the name is owned first, by a listening Unix socket with an abstract name
(unix(7)), which is as the owner of an interface should be:

- Abstract names belong to a network namespace, as the names of interfaces do.
- The kernel takes one back with its descriptor, however the process ends.
- It needs no directory that can be written to, and no capability.
- The kernel says who listens (SO_PEERCRED). Anybody may take such a name. An owner is believed to run an interface if
  it is of our own user or of root, or if it has CAP_NET_ADMIN and has given up gaining more. One of anybody else costs
  a warning, and what is left then is the look at the interface itself, which no stranger can make.

The owner tells those whom it believes what it is called and which config it has. Untrusted input all the same: it is
bounded, and made fit for one line.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

import msgspec
import trio

from ..errors import HostError
from ..text import one_line, shorten
from .process.privileges import CAP_NET_ADMIN
from .tun import taken_by

# A service manager may start the next process while the last one still takes its interface down: 0.3 s for its
# streams, and some for its routes.
PATIENCE_S: Final = 2.0
_LOOK_S: Final = 0.05
ANSWER_S: Final = 0.5  # an owner that is suspended says nothing
# Strangers may ask too: one is looked at, and then there is a pause. So the queue before somebody who should know is
# shorter than the half second for which he waits.
_BACKLOG: Final = 64
_PAUSE_S: Final = 0.005

_PROC: Final = "/proc/{pid}/{name}"

_ANSWER_BYTES: Final = 8192
_COMMAND_CHARS: Final = 200
_CONFIG_CHARS: Final = 400

_PEER_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred, linux/socket.h

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
_REQUEST: Final = 0x01
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_IFLA_IFNAME: Final = 3
_NLMSGHDR: Final = struct.Struct("=IHHII")
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_NLATTR: Final = struct.Struct("=HH")


class _Told(msgspec.Struct, frozen=True):
    """What an owner says of itself."""

    pid: int = 0
    command: str = ""
    config: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a name.

    Attributes:
        pid: 0 if it is in a PID namespace that we do not see.
        believed: it runs such an interface, as the top of this file says.
        command, config: for people, empty if they are not known.
    """

    pid: int
    uid: int
    believed: bool
    command: str = ""
    config: str = ""

    def __str__(self) -> str:
        """``process 4711 (tapotun /etc/tapotun/office.json; config /etc/tapotun/office.json)``."""
        whose = "" if self.believed else f" of user {self.uid}"
        process = f"process {self.pid}{whose}" if self.pid else f"a process{whose} of another PID namespace"
        known = [self.command, f"config {self.config}" if self.config else ""]
        return f"{process} ({'; '.join(filter(None, known))})" if any(known) else process


class OwnedName:
    """A name that is ours. Made by `own_name`.

    Attributes:
        doubt: why another start of this program might not see that; None: it will.
    """

    def __init__(self, name: str, doubt: str | None) -> None:
        self._name = name
        self.doubt = doubt

    def require_free(self) -> None:
        """Raises HostError if there is an interface of that name, before we have made ours."""
        if has_link(self._name):
            raise HostError(f"cannot create TUN interface {self._name}: {taken_by(self._name)}")


@asynccontextmanager
async def own_name(
    name: str, config_file: str = "", *, believed: Collection[int] | None = None
) -> AsyncIterator[OwnedName]:
    """Have an interface's name to ourselves until exit: no process that runs this program starts with it.

    ``config_file``: for those who ask; ``believed``: users whose processes are owners, by default root and our own.
    Raises HostError if another process has the name, or an interface of that name is there, for two seconds.
    Cancel-safe.
    """
    believed = {0, os.geteuid()} if believed is None else believed
    sock, owned = await _take(name, believed)
    if sock is None:
        yield owned
        return
    with sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer, sock, _introduction(config_file), believed)
            yield owned
            nursery.cancel_scope.cancel()


def holder_of(name: str) -> Holder | None:
    """Who has that name; None: nobody, or somebody who does not listen. Blocking, for half a second at most."""
    if (found := _connect(name, {0, os.geteuid()})) is None:
        return None
    sock, holder = found
    with sock:
        if holder.believed:
            select.select([sock], [], [], ANSWER_S)
        return _described(sock, holder)


def has_link(name: str) -> bool:
    """Whether an interface has that name, or that alternative name. False also where that cannot be asked: making the
    interface will say why."""
    # Not if_nametoindex(3): its ioctl has the kernel run modprobe for a name that is not there (net/core/dev_ioctl.c).
    encoded = os.fsencode(name) + b"\0"
    attribute = _NLATTR.pack(_NLATTR.size + len(encoded), _IFLA_IFNAME) + encoded + bytes(-len(encoded) % 4)
    payload = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
            sock.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(payload), _RTM_GETLINK, _REQUEST, 1, 0) + payload)
            # The answer was queued when the send returned, see `rtnetlink`.
            answer = sock.recv(_NLMSGHDR.size, socket.MSG_DONTWAIT)
    except OSError:
        return False
    return len(answer) == _NLMSGHDR.size and _NLMSGHDR.unpack(answer)[1] == _RTM_NEWLINK


async def _take(name: str, believed: Collection[int]) -> tuple[socket.socket | None, OwnedName]:
    """The listening socket that owns the name, for the caller to close; None where there can be none."""
    deadline = trio.current_time() + PATIENCE_S
    sock: socket.socket | None = None
    with ExitStack() as undo:
        rival = undo.enter_context(_Rival(name, believed))
        while True:
            last = trio.current_time() >= deadline
            doubt = refusal = None
            if sock is None:
                try:
                    sock = undo.enter_context(_listen(name))
                except OSError as exc:
                    if exc.errno == errno.EADDRINUSE:
                        doubt, refusal = await rival.look(last=last)
                    else:
                        doubt = f"the name {name} cannot be reserved: {exc.strerror or exc}"
            if refusal is None and has_link(name):
                refusal = f"cannot create TUN interface {name}: {taken_by(name)}"
                refusal += "" if doubt is None else f" ({doubt})"
            if refusal is None:
                if sock is not None:
                    undo.pop_all()
                    rival.close()
                return sock, OwnedName(name, doubt)
            if last:
                raise HostError(refusal)
            await trio.sleep(_LOOK_S)


class _Rival:
    """Who has the name that we want."""

    def __init__(self, name: str, believed: Collection[int]) -> None:
        self._name = name
        self._believed = believed
        self._first: tuple[socket.socket, Holder] | None = None

    async def look(self, *, last: bool) -> tuple[str | None, str | None]:
        """Why it is to be doubted that the name is ours, or why it is not; one of the two. ``last``: look closely."""
        # Each connection is left in the queue of an owner that is suspended, so there are two and no more.
        if self._first is None:
            self._first = found = _connect(self._name, self._believed)
        elif last and (found := _connect(self._name, self._believed)) is not None:
            self.close()
            self._first = found
        else:
            found = self._first
            if last and not _is_open(found[0]):  # it is gone, and the process that has the name now hides
                found = None
        if found is None:  # it has just gone, or does not listen yet
            text = f"the name {self._name} is reserved by a process that does not answer"
            return (text, None) if last else (None, text)
        sock, holder = found
        if not holder.believed:
            who = _described(sock, holder)
            return f"the name {self._name} is reserved by {who}, which is none of ours", None
        if last:
            with trio.move_on_after(ANSWER_S):
                await trio.lowlevel.wait_readable(sock)
            holder = _described(sock, holder)
        text = f"the name is taken: {holder} runs an interface {self._name}; stop that process, or choose another name"
        return None, text

    def close(self) -> None:
        if self._first is not None:
            self._first[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _listen(name: str) -> socket.socket:
    """Raises OSError."""
    sock = _socket()
    try:
        sock.bind(_address(name))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(name: str, believed: Collection[int]) -> tuple[socket.socket, Holder] | None:
    """A connection to the process that listens, for the caller to close. None: none does, or its queue is full."""
    try:
        sock = _socket()
    except OSError:
        return None
    try:
        sock.connect(_address(name))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        pid, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock, Holder(pid, uid, uid in believed or _has_net_admin_for_good(pid, uid))


def _has_net_admin_for_good(pid: int, uid: int) -> bool:
    """It has CAP_NET_ADMIN in our user namespace, and has given up gaining any capability, as this program does at its
    start (`rights.drop_privileges`). False also where /proc does not tell.

    No stranger gets there. The capabilities alone would prove nothing: he could start a set-user-ID program with the
    socket in its hands; but it would have its own user, and none has this flag that makes those programs harmless.
    And everybody has every capability in a user namespace of his own, whose map is not ours.
    """
    if pid <= 0:
        return False
    try:
        with open(_PROC.format(pid=pid, name="status"), encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        with open(_PROC.format(pid=pid, name="uid_map"), "rb") as theirs, open("/proc/self/uid_map", "rb") as ours:
            same_namespace = theirs.read(_ANSWER_BYTES) == ours.read(_ANSWER_BYTES)
        has_it = bool(int(fields["CapEff"], 16) >> CAP_NET_ADMIN & 1)
        users = {int(it) for it in fields["Uid"].split()}
        return has_it and fields["NoNewPrivs"].strip() == "1" and users == {uid} and same_namespace
    except (OSError, ValueError, KeyError):
        return False


def _is_open(sock: socket.socket) -> bool:
    """The other end is there and has said nothing, as one that is suspended."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _socket() -> socket.socket:
    """Each message whole, and none of it waits. CLOEXEC as all of Python's."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _address(name: str) -> bytes:
    return b"\0tapotun-trio/interface/" + os.fsencode(name)


def _described(sock: socket.socket, holder: Holder) -> Holder:
    """With what it says of itself, if it has, else with what /proc says."""
    told = _Told()
    if holder.believed:
        with suppress(OSError, msgspec.DecodeError):
            told = msgspec.json.decode(sock.recv(_ANSWER_BYTES), type=_Told)
    command = _fit(told.command or _command_of(holder.pid), _COMMAND_CHARS)
    return replace(holder, command=command, config=_fit(told.config, _CONFIG_CHARS))


def _command_of(pid: int) -> str:
    """A process's command line; empty if it is gone, or hidden (proc(5), hidepid), or not in our PID namespace."""
    if pid <= 0:
        return ""
    try:
        with open(_PROC.format(pid=pid, name="cmdline"), "rb") as file:
            return file.read(_ANSWER_BYTES).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _introduction(config_file: str) -> bytes:
    """What we tell."""
    command, config = (text.encode(errors="replace").decode() for text in (" ".join(sys.orig_argv), config_file))
    return msgspec.json.encode(_Told(os.getpid(), shorten(command, _COMMAND_CHARS), shorten(config, _CONFIG_CHARS)))


def _fit(text: str, limit: int) -> str:
    return one_line(shorten(text, limit))


async def _answer(sock: socket.socket, told: bytes, believed: Collection[int]) -> None:
    """Tell those who ask, and may know, who we are; for ever."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        with suppress(OSError):  # it is gone again, or no descriptor is left: the next one may find one
            connection, _ = sock.accept()
            with connection:
                connection.setblocking(False)
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
                if _PEER_CREDENTIALS.unpack(credentials)[1] in believed:
                    connection.send(told)
        await trio.sleep(_PAUSE_S)
