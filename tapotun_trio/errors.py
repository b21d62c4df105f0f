"""The exceptions that are part of the program's behaviour, and whose fault each one is.

::

    TapotunError            everything below; what is not below is a bug and keeps its traceback
    ├── ConfigError         the operator's: the config file cannot be used as it stands
    ├── HostError           this machine's: no capability, a port in use, netlink said no
    │   └── ShortageError   this machine's, and it passes: no descriptor, no memory, no thread (also a PeerError)
    └── PeerError           the other end's (or something between): ends that session, nothing else

The text of each is one line for a person: the value, the place, the remedy. The cause, where there is
one, is chained with ``raise ... from``.

A shortage is never a bug. The attempt that meets it fails, is counted by the shortage's reason, and is tried again;
whatever runs already goes on. `shortage_of` is the one place that knows which errors are shortages.
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


class EndReason(StrEnum):
    """Why a stream, a connection or an attempt at one ended. The values are labels in logs, status and metrics.

    An HTTP error status is a reason of its own, ``http-503``; `http` makes it. Nothing here holds a peer's words.
    """

    # -- the path, or whoever is at its end
    ADDRESS_GONE = "address-gone"  # this machine no longer has the local address
    BROKEN = "broken"  # the connection was reset, or the kernel gave it up
    CLOSED = "closed"  # the other end closed it before the end
    CONNECT = "connect"  # no connection
    DNS = "dns"  # the name does not resolve
    ENDED = "ended"  # the other end ended the upload early
    NO_WEBSOCKET = "no-websocket"  # something on the path passes no WebSocket
    PROXY = "proxy"  # the outgoing proxy makes no connection
    REFUSED = "refused"  # nobody listens there
    SILENT = "silent"  # nothing came, or no ping was answered
    SLOW_READER = "slow-reader"  # it does not take what it is sent
    SLOW_REQUEST = "slow-request"  # a request that did not come to its end
    STALLED = "stalled"  # the other end took nothing any more
    TLS = "tls"  # no TLS that both ends accept
    WS_CLOSED = "ws-closed"  # the other end closed the WebSocket with an error
    # -- on purpose
    DISCONNECTED = "disconnected"  # by the operator
    MOVED = "moved"  # another transport replaces it
    REPLACED = "replaced"  # another machine uses the token, or a newer stream came
    # -- the protocol
    BAD_ANSWER = "bad-answer"
    BAD_CHUNK = "bad-chunk"
    BAD_CONF = "bad-conf"
    BAD_FRAME = "bad-frame"
    BAD_PARAMS = "bad-params"
    BAD_PROXY_HEADER = "bad-proxy-header"
    BAD_REQUEST = "bad-request"
    BAD_RESPONSE = "bad-response"
    BAD_VNET = "bad-vnet"
    BAD_WEBSOCKET = "bad-websocket"
    PIPELINING = "pipelining"  # too much came behind an upload's end
    PROTOCOL = "protocol"
    TOO_LONG = "too-long"  # a line of the control socket
    # -- the config of one end, or of a proxy
    OWN_ADDRESS = "own-address"  # the address that the server gives would cut the client off
    UNTRUSTED_PROXY = "untrusted-proxy"  # the PROXY protocol from an address that is not trusted
    # -- the control socket
    BUSY = "busy"
    FOREIGN = "foreign"  # it speaks another version of the protocol
    # -- this machine and this program
    INTERNAL_ERROR = "internal-error"  # a bug; the log has its traceback
    NO_ADDRESS_FAMILY = "no-address-family"
    NO_DESCRIPTORS = "no-descriptors"
    NO_MEMORY = "no-memory"
    NO_SPACE = "no-space"
    NO_THREAD = "no-thread"

    @classmethod
    def http(cls, status: int) -> EndReason:
        """An answer with that status (100 to 599) in place of the one that was wanted."""
        return cls(f"http-{status}")

    @classmethod
    def _missing_(cls, value: object) -> EndReason | None:
        """``http-NNN``, which has no member of its own until it is met."""
        if not (isinstance(value, str) and re.fullmatch(r"http-[1-5][0-9]{2}", value)):
            return None
        member = str.__new__(cls, value)
        member._name_, member._value_ = value.upper().replace("-", "_"), value
        found: EndReason = cls._value2member_map_.setdefault(value, member)  # type: ignore[assignment]
        return found

    @property
    def is_answer(self) -> bool:
        """Something at the other end answered: the path to the server works."""
        return self is EndReason.REFUSED or self in ("http-502", "http-503", "http-504")

    @property
    def is_protocol_error(self) -> bool:
        """The other end broke the protocol."""
        return self.startswith("bad-")

    @property
    def is_for_operator(self) -> bool:
        """A config is wrong, so it is logged as a warning, although a stranger can cause it."""
        return self in (EndReason.UNTRUSTED_PROXY, EndReason.BAD_PROXY_HEADER)

    @property
    def is_one_way(self) -> bool:
        """Nothing can be sent any more, or nobody would read it."""
        return self in (EndReason.BROKEN, EndReason.CLOSED)

    @property
    def rules_out_websocket(self) -> bool:
        """No WebSocket passes on this path."""
        return self in (EndReason.NO_WEBSOCKET, EndReason.BAD_RESPONSE)

    @property
    def suggests_no_websocket(self) -> bool:
        """No WebSocket passes, if none ever has: a proxy whose server restarts says the same."""
        return self.rules_out_websocket or self in (
            *(EndReason.CLOSED, EndReason.SILENT),
            *("http-403", "http-502", "http-503", "http-504"),
        )


class RefusalReason(StrEnum):
    """Why a request or a connection came to nothing before it was a stream. Labels in status and metrics; what ends a
    connection for another reason is counted by its `EndReason`."""

    BAD_METHOD = "bad-method"
    BAD_TOKEN = "bad-token"
    EVICTED = "evicted"  # too many connections without a token
    OTHER_SESSION = "other-session"  # another machine has the token
    UNKNOWN_PATH = "unknown-path"


class TapotunError(Exception):
    """Base of every failure that is not a bug in this program."""


class ConfigError(TapotunError):
    """The configuration is unusable. The text has one line per finding."""


class HostError(TapotunError):
    """The operating system refused something this interface needs."""


class PeerError(TapotunError):
    """The peer, or the path to it, broke the protocol or went away.

    The only exception that may leave a parser of network bytes.

    Attributes:
        reason: how it is counted.
        key: what a log recognises a repeated failure by. One cause has one key, also where its text depends on
            timing or on the address that was tried. The text itself, if nothing else is given.
    """

    def __init__(self, text: str, *, reason: EndReason = EndReason.PROTOCOL, key: str | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.key = text if key is None else key

    def without_traceback(self) -> Self:
        """The same, for an attribute: an error that was raised holds frames, and with them whatever stores it. That
        cycle would keep a stream's buffers until the garbage collector comes."""
        same = type(self).__new__(type(self), *self.args)
        same.__dict__.update(self.__dict__)
        return same


class InternalError(PeerError):
    """A bug of ours, where it ends one stream or one attempt. Its cause is the bug; the log has its traceback."""


class ShortageError(HostError, PeerError):
    """This machine lacks something for the moment.

    It is a PeerError as well because its scope is a PeerError's: it ends the attempt, the stream or the request that
    met it. Where an interface as a whole cannot start, it is handled as any HostError is.

    Attributes:
        lack: what this machine lacks, for people.
        remedy: and what to do about it.
    """

    def __init__(self, doing: str, reason: EndReason, lack: str, remedy: str) -> None:
        super().__init__(f"{doing}: {lack}; {remedy}", reason=reason, key=reason)
        self.lack = lack
        self.remedy = remedy


# What a shortage is counted by, and what people can do about it. The fact itself is told in the system's own words.
_MORE_MEMORY: Final = "raise MemoryMax= of the service, or give the machine more memory"
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
        "switch IPv6 on at this machine, or use an address of the other family",
    ),
}
_NO_THREAD: Final = (EndReason.NO_THREAD, "raise TasksMax= of the service, or ulimit -u")
SHORTAGES: Final = frozenset(reason for reason, _ in (*_SHORTAGES.values(), _NO_THREAD))
_NO_THREAD_TEXT: Final = "can't start new thread"  # Modules/_threadmodule.c: a RuntimeError without a class of its own


def shortage_of(exc: BaseException, doing: str) -> ShortageError | None:
    """The shortage that ``exc`` is a sign of; None: it is none. ``doing``: what failed, for people."""
    if isinstance(exc, ShortageError):
        return exc
    if isinstance(exc, RuntimeError) and str(exc).startswith(_NO_THREAD_TEXT):
        return ShortageError(doing, _NO_THREAD[0], "no thread can be started", _NO_THREAD[1])
    number = 0
    if isinstance(exc, MemoryError) or getattr(exc, "reason", None) == "MALLOC_FAILURE":  # the latter: an ssl.SSLError
        number = errno.ENOMEM
    elif isinstance(exc, OSError) and not hasattr(exc, "library"):  # an ssl.SSLError has OpenSSL's numbers as errno
        number = exc.errno or 0
    if number not in _SHORTAGES:
        return None
    reason, remedy = _SHORTAGES[number]
    return ShortageError(doing, reason, os.strerror(number), remedy.format(limit=_descriptor_limit()))


@contextmanager
def passing_shortages(doing: str) -> Iterator[None]:
    """Raise ShortageError in place of what the body raises for a shortage. Anything else passes unchanged.
    ``doing``: what failed, for people."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as exc:
        found = shortage_of(exc, doing)
        if found is None:
            raise
        raise found from exc


def shortage_in(exc: BaseException, doing: str) -> ShortageError | None:
    """As `shortage_of`; a group is a shortage if all that is in it is, and then it is its first one."""
    if not isinstance(exc, BaseExceptionGroup):
        return shortage_of(exc, doing)
    found = [shortage_of(it, doing) for it in leaves(exc)]
    return None if None in found else found[0]


def is_peers_fault(exc: BaseException) -> bool:
    """It is a PeerError, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return all(isinstance(it, PeerError) for it in leaves(exc))
    return isinstance(exc, PeerError)


def failure_of(exc: Exception, doing: str) -> PeerError:
    """What ends a stream or an attempt at one: a peer's failure or a shortage, of several the first; InternalError if
    there is a bug among them. ``doing``: what failed, for people.

    Raises ``exc`` if it is a HostError, or holds one, that is no shortage: that ends more than a stream.
    """
    first: PeerError | None = None
    bug: BaseException | None = None
    for it in leaves(exc) if isinstance(exc, ExceptionGroup) else (exc,):
        found = it if isinstance(it, PeerError) else shortage_of(it, doing)
        if isinstance(it, HostError) and found is None:
            raise exc
        first = first or found
        bug = bug or (it if found is None else None)
    if bug is None:
        assert first is not None
        return first
    failure = InternalError(
        f"internal error: {one_line(shorten(repr(bug), _BUG_CHARS))}", reason=EndReason.INTERNAL_ERROR
    )
    failure.__cause__ = bug
    return failure


def _descriptor_limit() -> str:
    import resource  # only when it is needed: this module is the first of all that are imported

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


def leaves(group: BaseExceptionGroup[T]) -> Iterator[T]:
    """The exceptions in a group and in the groups within it: one event each for the log."""
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from leaves(exc)
        else:
            yield exc
