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

from collections.abc import Iterator
from typing import TypeVar

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
    """

    def __init__(self, text: str, *, reason: str = "protocol") -> None:
        super().__init__(text)
        self.reason = reason

    def without_traceback(self) -> PeerError:
        """The same, for an attribute: an error that was raised holds frames, and with them whatever stores it. That
        cycle would keep a stream's buffers until the garbage collector comes."""
        return PeerError(str(self), reason=self.reason)


def leaves(group: BaseExceptionGroup[T]) -> Iterator[T]:
    """The exceptions in a group and in the groups within it: one event each for the log."""
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from leaves(exc)
        else:
            yield exc
