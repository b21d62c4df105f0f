"""Resolves host names in threads of its own, and remembers the addresses at which a server was found.

The name server may be reachable only through the tunnel. Then no name resolves while the tunnel is down, and the tunnel
stays down because no name resolves. So if a name does not resolve, `dial.connect` tries the addresses that worked last.
"""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from ...errors import EndReason, PeerError, ShortageError, shortage_of
from ..process.descriptors import no_descriptor_left

# The C library asks the next name server after 5 s (resolv.conf(5), timeout). With 6 s, a lookup succeeds even if the
# first name server is down.
LOOKUP_S: Final = 6.0
# How many lookups of one name may run at the same time. Each has a thread, and such a thread cannot be cancelled. The C
# library gives up after 10 s for each name server; a name service module (nsswitch.conf) may hang for longer.
MAX_LOOKUPS: Final = 4
LATE_S: Final = 30.0  # an answer too late for its own attempt is used by the next one, up to this age
MAX_ADDRESSES: Final = 8  # remembered for each name

Address: TypeAlias = tuple[int, tuple[str, int] | tuple[str, int, int, int]]  # family, socket address


@dataclass(slots=True)
class _Name:
    """What is known about one host name and port.

    Attributes:
        limiter: limits the threads that look this name up. Trio's default limiter is not used, because threads that
            hang would keep all others waiting.
        late: an answer that no attempt has used yet, and when it arrived (monotonic, s).
        newest: the newest answer.
        proven: the address at which the server was found last, then the other addresses of the name at that time.
        failure: why the newest lookup failed; None if it succeeded.
        doubted: IP addresses at which a program other than the server has answered since the server was last found.
    """

    limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MAX_LOOKUPS))
    late: tuple[float, list[Address]] | None = None
    newest: list[Address] = field(default_factory=list)
    proven: list[Address] = field(default_factory=list)
    failure: PeerError | None = None
    doubted: set[str] = field(default_factory=set)


class Resolver:
    """The host names that the clients of one process connect to."""

    def __init__(self) -> None:
        self._names: defaultdict[tuple[str, int], _Name] = defaultdict(_Name)

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Return all addresses of a name, in the order of the C library. Cancel-safe; after a cancellation the thread
        still runs until the lookup ends.

        Raises:
            PeerError: ``dns``; the text says whether the name or the name server is at fault.
            ShortageError: this machine lacks memory, descriptors or a thread.
        """
        literal = _literal(host, port)
        if literal is not None:
            return literal
        name = self._names[host, port]
        try:
            name.newest = await self._ask(name, host, port)
        except PeerError as exc:
            name.failure = exc.without_traceback()
            raise
        name.failure = None
        return name.newest

    async def _ask(self, name: _Name, host: str, port: int) -> list[Address]:
        late, name.late = name.late, None
        if late is not None and time.monotonic() - late[0] <= LATE_S:
            return late[1]

        def ask() -> list[Address]:
            found = lookup(host, port)
            name.late = time.monotonic(), found
            return found

        try:
            with trio.fail_after(LOOKUP_S):
                found = await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=name.limiter)
        except trio.TooSlowError as exc:
            text = f"{host} does not resolve: the name server does not answer within {LOOKUP_S:.0f} s"
            raise PeerError(f"{text}; check /etc/resolv.conf", reason=EndReason.DNS, key=_NO_ANSWER) from exc
        except (OSError, UnicodeError, MemoryError, RuntimeError) as exc:
            failure = _failure(exc, host)
            if failure is None:
                raise
            raise failure from exc
        name.late = None
        return found

    def worked(self, host: str, port: int, address: str | None) -> None:
        """Record that the server of this name was found at ``address``. None: the connection was closed, so its address
        is not known."""
        name = self._names[host, port]
        others = name.newest if any(it[1][0] == address for it in name.newest) else name.proven
        first = [it for it in others if it[1][0] == address]
        name.doubted.clear()
        if first:
            name.proven = [*first, *(it for it in others if it not in first)][:MAX_ADDRESSES]

    def doubt(self, host: str, port: int, address: str | None) -> None:
        """Record that a program other than the server answered at ``address``. None: the connection was closed, so its
        address is not known."""
        name = self._names[host, port]
        by_name = any(it[1][0] == address for it in name.newest)
        if name.doubted and not by_name and self.is_doubted(host, port, name.newest):
            name.doubted.clear()  # the remembered addresses do not work either, so the name is tried first again
        elif address is not None and len(name.doubted) < MAX_ADDRESSES:
            name.doubted.add(address)

    def is_doubted(self, host: str, port: int, addresses: Iterable[Address]) -> bool:
        """Whether a program other than the server answered at every one of ``addresses``."""
        return all(str(address[1][0]) in self._names[host, port].doubted for address in addresses)

    def proven(self, host: str, port: int) -> list[Address]:
        """Return the addresses at which the server of this name was found, the newest first; empty if it never was."""
        return list(self._names[host, port].proven)

    def failure(self, host: str, port: int) -> PeerError | None:
        """Return why the newest lookup of this name failed; None if it succeeded."""
        return self._names[host, port].failure


_NO_ANSWER: Final = "the name server does not answer"


def lookup(host: str, port: int) -> list[Address]:
    """Ask the C library for a name's addresses. Blocks. Raises OSError (including socket.gaierror) and UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def _literal(host: str, port: int) -> list[Address] | None:
    """Parse a host that is an IP address and needs no lookup. None: it is a name."""
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError):
        return None
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def _failure(exc: Exception, host: str) -> PeerError | None:
    """Translate the exception of a lookup. None: ``exc`` is a bug."""
    doing = f"cannot resolve {host}"
    if isinstance(exc, socket.gaierror):
        return _shortage_of_resolver(exc, doing) or _refusal(exc, host)
    if isinstance(exc, UnicodeError):  # from the idna codec, if a label is too long
        return PeerError(f"{host} is not a host name: {exc}", reason=EndReason.DNS)
    shortage = shortage_of(exc, doing)  # EAI_SYSTEM, or no thread can be started
    if shortage is None and isinstance(exc, OSError):
        return PeerError(f"{doing}: {exc}", reason=EndReason.DNS)
    return shortage


def _shortage_of_resolver(exc: socket.gaierror, doing: str) -> ShortageError | None:
    # If the C library's resolver gets no descriptor, it reports "name unknown" or "try again".
    return shortage_of(MemoryError(), doing) if exc.errno == socket.EAI_MEMORY else no_descriptor_left(doing)


def _refusal(exc: socket.gaierror, host: str) -> PeerError:
    if exc.errno == socket.EAI_AGAIN:
        # The C library reports the same error for a name server that is silent, is unreachable, or answers SERVFAIL.
        text = f"{_NO_ANSWER}, or answers with a failure ({exc.strerror}); check /etc/resolv.conf"
        return PeerError(f"{host} does not resolve: {text}", reason=EndReason.DNS, key=_NO_ANSWER)
    return PeerError(f"{host} does not resolve: {exc.strerror}", reason=EndReason.DNS)
