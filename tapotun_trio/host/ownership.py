"""Reserves an interface's name for one process per network namespace, from before it connects until its device is gone.

A client creates its device only when the server has sent its address. By then it has used the token, and so has taken
the streams of a client that was already running. So the name is reserved first, with a listening Unix socket that has
an abstract name (unix(7)). Such a socket has the right properties:

- Abstract names belong to a network namespace, as the names of interfaces do.
- The kernel releases the name with the descriptor, however the process ends.
- It needs no writable directory and no capability.
- The kernel reports who listens (SO_PEERCRED). Any process may take such a name. The owner is trusted to run an
  interface if it belongs to our own user or to root, or if it has CAP_NET_ADMIN and no_new_privs. Any other owner
  causes only a warning; then the interface itself is checked, which an unprivileged process cannot create.

The owner sends its command line and the path of its config to processes that it trusts. The receiver treats this as
untrusted input: it is bounded, and reduced to one line.
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

from ..errors import HostError, ShortageError, shortage_of
from ..text import one_line, shorten
from .process.privileges import CAP_NET_ADMIN
from .tun import taken_by

# A service manager may start the next process while the previous one still takes its interface down: 0.3 s for its
# streams, and some time for its routes.
PATIENCE_S: Final = 2.0
_RETRY_S: Final = 0.05
ANSWER_S: Final = 0.5  # for the owner's answer; a suspended owner sends none
# Any process may connect; each connection is handled within one pause. So a full backlog takes 0.32 s, which is less
# than ANSWER_S, and a process that waits for its answer gets it.
BACKLOG: Final = 64
PAUSE_S: Final = 0.005

PROC: Final = "/proc"

_ANSWER_BYTES: Final = 8192
_COMMAND_CHARS: Final = 200
_CONFIG_CHARS: Final = 400

_PEER_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred, linux/socket.h


class _Introduction(msgspec.Struct, frozen=True):
    """What an owner sends about itself."""

    pid: int = 0
    command: str = ""
    config: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that owns a name.

    Attributes:
        pid: 0 if it is in a PID namespace that is not visible to us.
        trusted: it is trusted to run such an interface, by the rules at the top of this file.
        command, config: for people; empty if not known.
    """

    pid: int
    uid: int
    trusted: bool
    command: str = ""
    config: str = ""

    def __str__(self) -> str:
        """``process 4711 (tapotun /etc/tapotun/office.json; config /etc/tapotun/office.json)``."""
        whose = "" if self.trusted else f" of user {self.uid}"
        process = f"process {self.pid}{whose}" if self.pid else f"a process{whose} of another PID namespace"
        known = [self.command, f"config {self.config}" if self.config else ""]
        return f"{process} ({'; '.join(filter(None, known))})" if any(known) else process


class OwnedName:
    """A reserved name. Made by `own_name`.

    Attributes:
        doubt: why another start of this program might not notice the reservation; None: it will notice.
    """

    def __init__(self, name: str, doubt: str | None) -> None:
        self._name = name
        self.doubt = doubt

    def require_free(self) -> None:
        """Call before creating the interface. Raises HostError if an interface of that name already exists. Raises
        ShortageError if this machine lacks the memory or descriptors to find out."""
        if has_link(self._name):
            raise HostError(f"cannot create interface {self._name}: {taken_by(self._name)}")


@asynccontextmanager
async def own_name(
    name: str, config_file: str = "", *, trusted: Collection[int] | None = None
) -> AsyncIterator[OwnedName]:
    """Reserve an interface's name until exit: no other process of this program starts with the same one.

    Cancel-safe.

    Args:
        name: the interface's name.
        config_file: reported to other processes that want the name.
        trusted: the user ids whose processes are trusted owners; by default root and our own.

    Raises:
        HostError: after two seconds another process still has the name, or an interface of that name exists.
        ShortageError: after two seconds this machine still lacks the memory or descriptors to find out whether one
            exists.
    """
    trusted = {0, os.geteuid()} if trusted is None else trusted
    sock, owned = await _take(name, trusted)
    if sock is None:
        yield owned
        return
    with sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer, sock, _introduction(config_file), trusted)
            yield owned
            nursery.cancel_scope.cancel()


def holder_of(name: str) -> Holder | None:
    """The owner of the name; None if there is none, or if it does not listen. Blocks for ANSWER_S at most."""
    if (found := connect_to_owner(name, {0, os.geteuid()})) is None:
        return None
    sock, holder = found
    with sock:
        if holder.trusted:
            select.select([sock], [], [], ANSWER_S)
        return _described(sock, holder)


def has_link(name: str) -> bool:
    """Whether an interface has this name or alternative name.

    Returns False also if the kernel does not answer: creating the interface will then report the reason. Raises
    ShortageError if this machine lacks descriptors or memory at the moment, since that says nothing about the name.
    """
    try:
        # Imported at first use, as in `linux`. if_nametoindex(3) is not used, because its ioctl makes the kernel run
        # modprobe if there is no such interface (net/core/dev_ioctl.c).
        from .netlink import link_codec
        from .netlink.socket import HEADER

        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
            sock.send(link_codec.get_link(name=name))
            # The answer was queued when the send returned, see `netlink.socket`. Its header is enough.
            answer = sock.recv(HEADER.size, socket.MSG_DONTWAIT)
    except (OSError, MemoryError) as exc:
        if (shortage := shortage_of(exc, f"cannot look for an interface named {name}")) is not None:
            raise shortage from exc
        return False
    return link_codec.is_link(answer)


async def _take(name: str, trusted: Collection[int]) -> tuple[socket.socket | None, OwnedName]:
    """Returns the listening socket that reserves the name, for the caller to close; None if there cannot be one."""
    deadline = trio.current_time() + PATIENCE_S
    sock: socket.socket | None = None
    with ExitStack() as undo:
        competitor = undo.enter_context(_Competitor(name, trusted))
        while True:
            last = trio.current_time() >= deadline
            doubt = refusal = None
            if sock is None:
                try:
                    sock = undo.enter_context(_listen(name))
                except OSError as exc:
                    if exc.errno == errno.EADDRINUSE:
                        doubt, refusal = await competitor.check(last=last)
                    else:
                        doubt = f"the name {name} cannot be reserved: {exc.strerror or exc}"
            shortage: ShortageError | None = None
            try:
                if refusal is None and has_link(name):
                    refusal = f"cannot create interface {name}: {taken_by(name)}"
                    refusal += "" if doubt is None else f" ({doubt})"
            except ShortageError as exc:
                shortage = exc.without_traceback()
            if refusal is None and shortage is None:
                if sock is not None:
                    undo.pop_all()
                    competitor.close()
                return sock, OwnedName(name, doubt)
            if last:
                raise shortage or HostError(refusal)
            await trio.sleep(_RETRY_S)


class _Competitor:
    """The process that has the name that we want."""

    def __init__(self, name: str, trusted: Collection[int]) -> None:
        self._name = name
        self._trusted = trusted
        self._first: tuple[socket.socket, Holder] | None = None

    async def check(self, *, last: bool) -> tuple[str | None, str | None]:
        """Returns (doubt, refusal), one of them None: why the reservation is doubtful, or why the name is taken.

        ``last``: this is the last check, so it asks the owner again.
        """
        # A suspended owner accepts no connection, and each stays in its backlog: so at most two are made.
        if self._first is None:
            self._first = found = connect_to_owner(self._name, self._trusted)
        elif last and (found := connect_to_owner(self._name, self._trusted)) is not None:
            self.close()
            self._first = found
        else:
            found = self._first
            if last and not _is_open(found[0]):  # that process is gone, and the present owner does not listen
                found = None
        if found is None:  # the owner has just ended, or does not listen yet
            text = f"the name {self._name} is reserved by a process that does not answer"
            return (text, None) if last else (None, text)
        sock, holder = found
        if not holder.trusted:
            owner = _described(sock, holder)
            return f"the name {self._name} is reserved by {owner}, which is not a tapotun process", None
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
        sock.bind(abstract_address(name))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_to_owner(name: str, trusted: Collection[int]) -> tuple[socket.socket, Holder] | None:
    """A connection to the process that listens, for the caller to close. None: none listens, or its backlog is full."""
    try:
        sock = _socket()
    except OSError:
        return None
    try:
        sock.connect(abstract_address(name))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        pid, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock, Holder(pid, uid, uid in trusted or _has_net_admin_for_good(pid, uid))


def _has_net_admin_for_good(pid: int, uid: int) -> bool:
    """Whether the process has CAP_NET_ADMIN in our user namespace, and no_new_privs, as this program has after its
    start (`privileges.drop_privileges`). False also if /proc does not say.

    An unprivileged process cannot have both. The capability alone would prove nothing: such a process could pass the
    socket to a set-user-ID program. But that program would run as another user, and no_new_privs disables set-user-ID.
    Any process may have all capabilities in a user namespace of its own, but the uid_map of that one differs from ours.
    """
    if pid <= 0:
        return False
    try:
        with open(f"{PROC}/{pid}/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        with open(f"{PROC}/{pid}/uid_map", "rb") as theirs, open("/proc/self/uid_map", "rb") as ours:
            same_namespace = theirs.read(_ANSWER_BYTES) == ours.read(_ANSWER_BYTES)
        has_it = bool(int(fields["CapEff"], 16) >> CAP_NET_ADMIN & 1)
        users = {int(user) for user in fields["Uid"].split()}
        return has_it and fields["NoNewPrivs"].strip() == "1" and users == {uid} and same_namespace
    except (OSError, ValueError, KeyError):
        return False


def _is_open(sock: socket.socket) -> bool:
    """Whether the other end is there and has sent nothing, as when it is suspended."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _socket() -> socket.socket:
    """Non-blocking, and keeps message boundaries."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def abstract_address(name: str) -> bytes:
    """Return the address of the Unix socket on which the owner of an interface's name listens."""
    return b"\0tapotun-trio/interface/" + os.fsencode(name)


def _described(sock: socket.socket, holder: Holder) -> Holder:
    """``holder`` with the description that it has sent, or else with what /proc says."""
    introduction = _Introduction()
    if holder.trusted:
        with suppress(OSError, msgspec.DecodeError):
            introduction = msgspec.json.decode(sock.recv(_ANSWER_BYTES), type=_Introduction)
    command = _fit(introduction.command or _command_of(holder.pid), _COMMAND_CHARS)
    return replace(holder, command=command, config=_fit(introduction.config, _CONFIG_CHARS))


def _command_of(pid: int) -> str:
    """A process's command line; empty if it is gone, or hidden (proc(5), hidepid), or not in our PID namespace."""
    if pid <= 0:
        return ""
    try:
        with open(f"{PROC}/{pid}/cmdline", "rb") as file:
            return file.read(_ANSWER_BYTES).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _introduction(config_file: str) -> bytes:
    """The answer to processes that want the name."""
    command, config = (text.encode(errors="replace").decode() for text in (" ".join(sys.orig_argv), config_file))
    introduction = _Introduction(os.getpid(), shorten(command, _COMMAND_CHARS), shorten(config, _CONFIG_CHARS))
    return msgspec.json.encode(introduction)


def _fit(text: str, limit: int) -> str:
    return one_line(shorten(text, limit))


async def _answer(sock: socket.socket, introduction: bytes, trusted: Collection[int]) -> None:
    """Send the introduction to trusted processes that connect, until cancelled."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        with suppress(OSError):  # the peer is gone again, or there is no free descriptor now
            connection, _ = sock.accept()
            with connection:
                connection.setblocking(False)
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
                if _PEER_CREDENTIALS.unpack(credentials)[1] in trusted:
                    connection.send(introduction)
        await trio.sleep(PAUSE_S)
