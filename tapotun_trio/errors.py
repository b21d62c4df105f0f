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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T", bound=BaseException)


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
        reason: a short fixed word for counters ("bad-frame", "closed", ...); never contains input.
        key: what a log recognises a repeated failure by. One cause has one key, also where its text depends on
            timing or on the address that was tried. The text itself, if nothing else is given.
    """

    def __init__(self, text: str, *, reason: str = "protocol", key: str | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.key = text if key is None else key


class ShortageError(HostError, PeerError):
    """This machine lacks something for the moment.

    It is a PeerError as well because its scope is a PeerError's: it ends the attempt, the stream or the request that
    met it. Where an interface as a whole cannot start, it is handled as any HostError is.

    Attributes:
        lack: what this machine lacks, for people.
        remedy: and what to do about it.
    """

    def __init__(self, doing: str, reason: str, lack: str, remedy: str) -> None:
        super().__init__(f"{doing}: {lack}; {remedy}", reason=reason, key=reason)
        self.lack = lack
        self.remedy = remedy


# What a shortage is counted by, and what people can do about it. The fact itself is told in the system's own words.
_MORE_MEMORY: Final = "raise MemoryMax= of the service, or give the machine more memory"
_SHORTAGES: Final = {
    errno.EMFILE: ("no-descriptors", "RLIMIT_NOFILE is {limit}: raise LimitNOFILE= of the service, or ulimit -n"),
    errno.ENFILE: ("no-descriptors", "raise the sysctl fs.file-max"),
    errno.ENOMEM: ("no-memory", _MORE_MEMORY),
    errno.ENOBUFS: ("no-memory", _MORE_MEMORY),
    errno.ENOSPC: ("no-space", "see df, and the sysctl fs.epoll.max_user_watches"),
    errno.EAFNOSUPPORT: ("no-address-family", "switch IPv6 on at this machine, or use an address of the other family"),
}
_NO_THREAD: Final = ("no-thread", "raise TasksMax= of the service, or ulimit -u")
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


def failure_of(exc: Exception, doing: str) -> PeerError:
    """What ended a stream or an attempt at one: a peer's failure or a shortage, of several the first.

    Raises ``exc``, or that part of a group, which is neither: that is not for a stream to handle.
    """
    if not isinstance(exc, ExceptionGroup):
        found = exc if isinstance(exc, PeerError) else shortage_of(exc, doing)
        if found is None:
            raise exc
        return found
    _, rest = exc.split(lambda it: isinstance(it, PeerError) or shortage_of(it, doing) is not None)
    if rest is not None:
        raise rest
    return failure_of(next(leaves(exc)), doing)


@contextmanager
def failing_alone(doing: str) -> Iterator[None]:
    """Raise one PeerError in place of whatever failure of a peer, or shortage, the body ends with, in a group or not.
    Anything else passes. ``doing``: what failed, for people."""
    try:
        yield
    except Exception as exc:
        found = failure_of(exc, doing)
        if found is exc:
            raise
        raise found from exc


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
