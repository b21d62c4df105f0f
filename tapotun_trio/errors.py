"""The exceptions that are part of the program's behaviour, and whose fault each one is.

::

    TapotunError            base of the errors below; any other exception is a bug and keeps its traceback
    ├── ConfigError         the operator's fault: the config file cannot be used as it is
    ├── HostError           this machine's: no capability, a port in use, an error of netlink
    │   ├── MissingBridgeError   this machine's, and maybe temporary: another program makes the bridge
    │   └── ShortageError   this machine's and temporary: no descriptor, memory or thread (also a PeerError)
    └── PeerError           the peer's, or of something on the path: ends that session, nothing else

The text of each is one line for people: the value, the place, the remedy. The cause, if there is one, is chained with
``raise ... from``.

A shortage is never a bug. The attempt that meets it fails, is counted by the shortage's reason, and is tried again;
everything that already runs continues. Only `shortage_of` knows which errors are shortages.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, Self, TypeVar

from .text import one_line, shorten

T = TypeVar("T", bound=BaseException)

_BUG_CHARS: Final = 100
PEER_ERROR_CHARS: Final = 1000


class EndReason(StrEnum):
    """Why a stream, a connection or an attempt at one ended. The values are labels in logs, status and metrics.

    An HTTP error status is a reason of its own, ``http-503``; `http` makes it. Nothing here holds a peer's words.

    Attributes:
        meaning: the reason in one phrase, for the panel.
    """

    meaning: str

    # -- the path, or the other end
    ADDRESS_GONE = "address-gone", "this machine no longer has the local address"
    BROKEN = "broken", "the connection was reset, or the kernel gave it up"
    CLOSED = "closed", "the other end closed the connection before the stream or request was complete"
    CONNECT = "connect", "no connection could be made"
    DNS = "dns", "the server's name does not resolve"
    ENDED = "ended", "the other end ended the upload early"
    NO_WEBSOCKET = "no-websocket", "something on the path does not pass a WebSocket"
    PATH_MTU = "path-mtu", "small packets pass on the path, large ones do not"
    PROXY = "proxy", "the outgoing proxy did not make the connection"
    REFUSED = "refused", "nothing listens at the address"
    SILENT = "silent", "nothing was received, or a ping was not answered"
    SLOW_READER = "slow-reader", "the other end did not read what it was sent"
    SLOW_REQUEST = "slow-request", "the request was not complete in time"
    STALLED = "stalled", "the other end stopped reading"
    TLS = "tls", "the two ends could not agree on TLS; the log has the reason"
    WS_CLOSED = "ws-closed", "the other end closed the WebSocket with an error"
    # -- on purpose
    DISCONNECTED = "disconnected", "ended by the operator"
    MOVED = "moved", "a WebSocket replaced it"
    REPLACED = "replaced", "another machine uses the token, or a newer stream replaced it"
    # -- the protocol
    BAD_ANSWER = "bad-answer", "a malformed answer at the control socket"
    BAD_CHUNK = "bad-chunk", "malformed chunks"
    BAD_CONF = "bad-conf", "the answer has no usable x-tun-conf header"
    BAD_FRAME = "bad-frame", "malformed frames"
    BAD_PARAMS = "bad-params", "the server sent parameters that cannot be used"
    BAD_PROXY_HEADER = "bad-proxy-header", "a malformed PROXY protocol header"
    BAD_REQUEST = "bad-request", "a malformed HTTP request"
    BAD_RESPONSE = "bad-response", "a malformed HTTP response"
    BAD_VNET = "bad-vnet", "malformed packet headers (virtio)"
    BAD_WEBSOCKET = "bad-websocket", "a malformed WebSocket"
    PIPELINING = "pipelining", "too much data followed the end of an upload"
    PROTOCOL = "protocol", "the other end broke the protocol"
    TOO_LONG = "too-long", "a line at the control socket is too long"
    # -- the config of one end, or of a proxy
    OTHER_DEVICE = "other-device", "one end's interface carries IP packets, and the other's Ethernet frames"
    OWN_ADDRESS = "own-address", "the server assigned the address at which the client reaches the server"
    UNTRUSTED_PROXY = "untrusted-proxy", "a PROXY protocol header from an address that is not trusted"
    # -- the control socket
    BUSY = "busy", "too many connections at the control socket"
    FOREIGN = "foreign", "another version of the control protocol"
    # -- this machine and this program
    INTERNAL_ERROR = "internal-error", "an error in this program; the log has its traceback"
    NO_ADDRESS_FAMILY = "no-address-family", "this machine does not have the address family"
    NO_DESCRIPTORS = "no-descriptors", "this machine had no free file descriptor; the log has the limit"
    NO_MEMORY = "no-memory", "this machine had no free memory"
    NO_SPACE = "no-space", "this machine had no free space"
    NO_THREAD = "no-thread", "this machine could not start a thread"

    def __new__(cls, value: str, meaning: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    @classmethod
    def http(cls, status: int) -> EndReason:
        """A response with that status (100 to 599) instead of the expected one."""
        return cls(f"http-{status}")

    @classmethod
    def _missing_(cls, value: object) -> EndReason | None:
        """``http-NNN``, which becomes a member when it is first used."""
        if not (isinstance(value, str) and re.fullmatch(r"http-[1-9][0-9]{2}", value)):
            return None
        member = str.__new__(cls, value)
        member._name_, member._value_ = value.upper().replace("-", "_"), value
        member.meaning = "an HTTP response with this status, from the server or a proxy"
        found: EndReason = cls._value2member_map_.setdefault(value, member)  # type: ignore[assignment]
        return found

    @property
    def is_answer(self) -> bool:
        """Whether something at the other end answered, so that the path to the server works."""
        return self is EndReason.REFUSED or self in ("http-502", "http-503", "http-504")

    @property
    def is_protocol_error(self) -> bool:
        """Whether the other end violated the protocol."""
        return self.startswith("bad-")

    @property
    def is_for_operator(self) -> bool:
        """Whether a config is probably wrong. Then it is logged as a warning, although an unauthenticated peer can
        cause it."""
        return self in (EndReason.UNTRUSTED_PROXY, EndReason.BAD_PROXY_HEADER)

    @property
    def is_one_way(self) -> bool:
        """Whether nothing can be sent any more, or the other end would not read it."""
        return self in (EndReason.BROKEN, EndReason.CLOSED, EndReason.PATH_MTU)

    @property
    def rules_out_websocket(self) -> bool:
        """Whether this path does not support WebSocket."""
        return self in (EndReason.NO_WEBSOCKET, EndReason.BAD_RESPONSE)

    @property
    def suggests_no_websocket(self) -> bool:
        """Whether the path may not support WebSocket, if none has worked yet.

        If one has worked, a server behind a proxy may just be restarting: the proxy answers the same then.
        """
        return self.rules_out_websocket or self in (
            *(EndReason.CLOSED, EndReason.SILENT),
            *("http-403", "http-502", "http-503", "http-504"),
        )


class RefusalReason(StrEnum):
    """Why a request or a connection was refused before it became a stream. Labels in status and metrics. A connection
    that ends for another reason is counted by its `EndReason`.

    Attributes:
        meaning: the reason in one phrase, for the panel.
    """

    meaning: str

    BAD_METHOD = "bad-method", "the method is neither GET nor PUT"
    BAD_TOKEN = "bad-token", "no token, or one that is not in the config"
    EVICTED = "evicted", "too many connections that had not sent a token"
    NO_ADDRESS = "no-address", "the client has addresses of IPv6 only here, and did not offer IPv6"
    NO_TAP = "no-tap", "the interface carries Ethernet frames, and the client did not offer that"
    OTHER_SESSION = "other-session", "another machine has taken the token over"
    UNKNOWN_PATH = "unknown-path", "no interface has this path"

    def __new__(cls, value: str, meaning: str) -> Self:
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member


class TapotunError(Exception):
    """Base of all errors that are not a bug in this program."""


class ConfigError(TapotunError):
    """The config cannot be used. The text has one line per finding."""


class HostError(TapotunError):
    """The operating system refused something this interface needs."""


class MissingBridgeError(HostError):
    """The bridge that the interface becomes a port of does not exist. Another program may make it later.

    Attributes:
        ends: it exists, but ends with an interface of ours that is about to stop.
    """

    def __init__(self, text: str, *, ends: bool = False) -> None:
        super().__init__(text)
        self.ends = ends


class PeerError(TapotunError):
    """The peer, or something on the path to it, violated the protocol or disconnected.

    The only exception that a parser of network bytes may raise.

    Attributes:
        reason: the reason under which the failure is counted.
        key: the value by which a log recognises a repeated failure; by default the text. One cause has one key, even if
            its text depends on timing or on the address that was tried.
    """

    def __init__(self, text: str, *, reason: EndReason = EndReason.PROTOCOL, key: str | None = None) -> None:
        text = one_line(shorten(text, PEER_ERROR_CHARS))  # part of the text may come from the peer
        super().__init__(text)
        self.reason = reason
        self.key = text if key is None else key

    def without_traceback(self) -> Self:
        """A copy without traceback, to be stored in an attribute.

        A traceback refers to stack frames, and through them to the object that stores the error. That cycle would keep
        a stream's buffers until the garbage collector runs.
        """
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        return copy


class InternalError(PeerError):
    """A bug of ours that ended one stream or one attempt. Its cause is the bug, whose traceback is in the log."""


class ShortageError(HostError, PeerError):
    """This machine lacks a resource for the moment.

    It is also a PeerError because it has the same scope: it ends the attempt, the stream or the request that met it. If
    an interface as a whole cannot start, it is handled like any HostError.

    Attributes:
        lack: what this machine lacks, for people.
        remedy: what to do about it, for people.
    """

    def __init__(self, doing: str, reason: EndReason, lack: str, remedy: str) -> None:
        super().__init__(f"{doing}: {lack}; {remedy}", reason=reason, key=reason)
        self.lack = lack
        self.remedy = remedy


# For each errno: the reason by which the shortage is counted, and its remedy. strerror(3) names the shortage itself.
_MORE_MEMORY: Final = "raise MemoryMax= or LimitAS= of the service, or ulimit -v, or give the machine more memory"
_SHORTAGES: Final = {
    errno.EMFILE: (
        EndReason.NO_DESCRIPTORS,
        "RLIMIT_NOFILE is {limit}: raise LimitNOFILE= of the service, or ulimit -n",
    ),
    errno.ENFILE: (EndReason.NO_DESCRIPTORS, "raise the sysctl fs.file-max"),
    errno.ENOMEM: (EndReason.NO_MEMORY, _MORE_MEMORY),
    errno.ENOBUFS: (EndReason.NO_MEMORY, _MORE_MEMORY),
    errno.ENOSPC: (EndReason.NO_SPACE, "see df, and the sysctl fs.epoll.max_user_watches"),
    errno.EAFNOSUPPORT: (
        EndReason.NO_ADDRESS_FAMILY,
        "enable IPv6 on this machine, or use an address of the other family",
    ),
}
_NO_THREAD: Final = (EndReason.NO_THREAD, "raise TasksMax= of the service, or ulimit -u")
SHORTAGES: Final = frozenset(reason for reason, _ in (*_SHORTAGES.values(), _NO_THREAD))
_NO_THREAD_TEXT: Final = "can't start new thread"  # Modules/_threadmodule.c raises a plain RuntimeError


def reason_of(exc: OSError, place: str | os.PathLike[str]) -> str:
    """Why a system call failed, in one line. It begins with the file's name, unless that is ``place``, which the
    caller's text names already."""
    name, reason = exc.filename2 or exc.filename, exc.strerror or str(exc)
    if name is None or isinstance(name, int) or os.fsdecode(name) == os.fspath(place):
        return one_line(reason)
    return one_line(f"{os.fsdecode(name)}: {reason}")


def shortage_of(exc: BaseException, doing: str) -> ShortageError | None:
    """The shortage that ``exc`` reports; None: it is not a shortage. ``doing``: what failed, for people."""
    if isinstance(exc, ShortageError):
        return exc
    if isinstance(exc, RuntimeError) and str(exc).startswith(_NO_THREAD_TEXT):
        return ShortageError(doing, _NO_THREAD[0], "no thread can be started", _NO_THREAD[1])
    number = 0
    if isinstance(exc, MemoryError) or getattr(exc, "reason", None) == "MALLOC_FAILURE":  # an ssl.SSLError
        number = errno.ENOMEM
    elif isinstance(exc, OSError) and not hasattr(exc, "library"):  # in an ssl.SSLError errno is a number of OpenSSL
        number = exc.errno or 0
    if number not in _SHORTAGES:
        return None
    reason, remedy = _SHORTAGES[number]
    return ShortageError(doing, reason, os.strerror(number), remedy.format(limit=_descriptor_limit()))


@contextmanager
def passing_shortages(doing: str) -> Iterator[None]:
    """Turn an exception of the body that reports a shortage into a ShortageError. Others pass unchanged.

    ``doing``: what failed, for people.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as exc:
        found = shortage_of(exc, doing)
        if found is None:
            raise
        raise found from exc


def shortage_in(exc: BaseException, doing: str) -> ShortageError | None:
    """As `shortage_of`, also for a group: its first shortage, if all its exceptions are shortages."""
    if not isinstance(exc, BaseExceptionGroup):
        return shortage_of(exc, doing)
    found = [shortage_of(leaf, doing) for leaf in leaves(exc)]
    return None if None in found else found[0]


def is_peers_fault(exc: BaseException) -> bool:
    """Whether it is a PeerError, or a group that contains nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return all(isinstance(leaf, PeerError) for leaf in leaves(exc))
    return isinstance(exc, PeerError)


def failure_of(exc: Exception, doing: str) -> PeerError:
    """The PeerError with which a stream, or an attempt to open one, ends.

    If ``exc`` is or contains a bug, this is an InternalError. Otherwise it is ``exc`` itself, or the first failure or
    shortage in the group.

    ``doing``: what failed, for people.

    Raises ``exc`` if it is or contains a HostError that is not a shortage, because that ends more than a stream.
    """
    first: PeerError | None = None
    bug: BaseException | None = None
    for leaf in leaves(exc) if isinstance(exc, ExceptionGroup) else (exc,):
        found = leaf if isinstance(leaf, PeerError) else shortage_of(leaf, doing)
        if isinstance(leaf, HostError) and found is None:
            raise exc
        first = first or found
        bug = bug or (leaf if found is None else None)
    if bug is None:
        assert first is not None
        return first
    failure = InternalError(
        f"internal error: {one_line(shorten(repr(bug), _BUG_CHARS))}", reason=EndReason.INTERNAL_ERROR
    )
    failure.__cause__ = bug
    return failure


def _descriptor_limit() -> str:
    import resource  # imported here because this module is the first that is imported, and seldom needs it

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


def leaves(group: BaseExceptionGroup[T]) -> Iterator[T]:
    """The exceptions in a group and in the groups that it contains. Each is one event for the log."""
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from leaves(exc)
        else:
            yield exc
