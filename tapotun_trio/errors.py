"""The exceptions that are part of the program's behaviour, and whose fault each one is.

::

    TapotunError            everything below; what is not below is a bug and keeps its traceback
    ├── ConfigError         the operator's: the config file cannot be used as it stands
    ├── HostError           this machine's: no capability, a port in use, netlink said no
    └── PeerError           the other end's (or something between): ends that session, nothing else

The text of each is one line for a person: the value, the place, the remedy. The cause, where there is
one, is chained with ``raise ... from``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final, TypeVar

T = TypeVar("T", bound=BaseException)

# Words under which a request or a session is counted that ended by what is not the peer's fault.
INTERNAL_ERROR: Final = "internal-error"  # a bug; the log has its traceback
SHORTAGE: Final = "shortage"  # this machine had no memory, descriptor or thread left for it

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


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
    """

    def __init__(self, text: str, *, reason: str = "protocol") -> None:
        super().__init__(text)
        self.reason = reason


def leaves(group: BaseExceptionGroup[T]) -> Iterator[T]:
    """The exceptions in a group and in the groups within it: one event each for the log."""
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from leaves(exc)
        else:
            yield exc


def is_peers_fault(exc: BaseException) -> bool:
    """It is a PeerError, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return all(isinstance(it, PeerError) for it in leaves(exc))
    return isinstance(exc, PeerError)


def shortage(exc: BaseException) -> str | None:
    """What this machine lacked, for a person; None: the exception is something else. A shortage passes, and is never a
    bug. A group is one if all that is in it is."""
    if isinstance(exc, BaseExceptionGroup):
        lacking = [shortage(it) for it in leaves(exc)]
        return None if None in lacking else lacking[0]
    if isinstance(exc, MemoryError):
        return "this machine has no memory left"
    if isinstance(exc, OSError) and exc.errno in _SHORTAGES:
        remedy = "; raise the open files limit" if exc.errno in (errno.EMFILE, errno.ENFILE) else ""
        return f"{exc.strerror}{remedy}"
    if isinstance(exc, RuntimeError) and str(exc) == "can't start new thread":  # CPython has no type of its own for it
        return "no thread left; raise the limit of processes"
    return None
