"""Resolves host names in threads of its own, and remembers the addresses at which a server was found.

The name server may be reachable through the tunnel only. Then nothing resolves while the tunnel is down, and the tunnel
stays down while nothing resolves. So `dial.connect` tries the addresses that worked last beside a name that fails.
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

# The C library asks the next name server after 5 s (resolv.conf(5), timeout), so one that is gone beside one that
# answers is no failure.
LOOKUP_S: Final = 6.0
# Lookups of one name that may be under way, each in a thread, which nothing can end from outside. The C library gives
# one up after 10 s for each name server; a name service module (nsswitch.conf) may hang for longer.
MAX_LOOKUPS: Final = 4
LATE_S: Final = 30.0  # an answer that came after its attempt had ended is used by the next one, up to this age
MAX_ADDRESSES: Final = 8  # remembered of one name

Address: TypeAlias = tuple[int, tuple[str, int] | tuple[str, int, int, int]]  # family, socket address


@dataclass(slots=True)
class _Name:
    """One host and port.

    Attributes:
        limiter: of the threads that ask for it. Not Trio's own one: threads that hang must not keep others waiting.
        late: an answer that nobody has taken yet, and when it came (monotonic, s).
        newest: the newest answer.
        proven: the address at which the server was found last, then the others that had the same name.
        failure: why the newest lookup failed; None: it did not.
        doubted: IP addresses at which something else than the server answered, since the server was found last.
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
        """All addresses of a name, in the order of the C library. Cancel-safe: the thread ends by itself, later.

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
        """The server of this name was found at ``address``, which one of its connections had (None: it is gone)."""
        name = self._names[host, port]
        others = name.newest if any(it[1][0] == address for it in name.newest) else name.proven
        first = [it for it in others if it[1][0] == address]
        name.doubted.clear()
        if first:
            name.proven = [*first, *(it for it in others if it not in first)][:MAX_ADDRESSES]

    def doubt(self, host: str, port: int, address: str | None) -> None:
        """Something else than the server answered at ``address`` (None: the connection is gone)."""
        name = self._names[host, port]
        by_name = any(it[1][0] == address for it in name.newest)
        if name.doubted and not by_name and self.is_doubted(host, port, name.newest):
            name.doubted.clear()  # the memory does not lead to the server either, so the name is first again
        elif address is not None and len(name.doubted) < MAX_ADDRESSES:
            name.doubted.add(address)

    def is_doubted(self, host: str, port: int, addresses: Iterable[Address]) -> bool:
        """Something else answered at every one of ``addresses``."""
        return all(str(address[1][0]) in self._names[host, port].doubted for address in addresses)

    def proven(self, host: str, port: int) -> list[Address]:
        """Where the server of this name was found, the newest address first; empty if it never was."""
        return list(self._names[host, port].proven)

    def failure(self, host: str, port: int) -> PeerError | None:
        """Why the newest lookup of this name failed; None: it did not."""
        return self._names[host, port].failure


_NO_ANSWER: Final = "the name server does not answer"


def lookup(host: str, port: int) -> list[Address]:
    """Ask the C library. Blocks. Raises OSError (socket.gaierror too), UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def _literal(host: str, port: int) -> list[Address] | None:
    """An address that needs no lookup; None: it is a name."""
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError):
        return None
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def _failure(exc: Exception, host: str) -> PeerError | None:
    """The error of a lookup; None: ``exc`` is a bug."""
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
    # If the resolver got no descriptor, the C library reports that the name is unknown, or that one may try again.
    return shortage_of(MemoryError(), doing) if exc.errno == socket.EAI_MEMORY else no_descriptor_left(doing)


def _refusal(exc: socket.gaierror, host: str) -> PeerError:
    if exc.errno == socket.EAI_AGAIN:
        # The C library does not tell silence, an unreachable name server and SERVFAIL apart.
        text = f"{_NO_ANSWER}, or answers with a failure ({exc.strerror}); check /etc/resolv.conf"
        return PeerError(f"{host} does not resolve: {text}", reason=EndReason.DNS, key=_NO_ANSWER)
    return PeerError(f"{host} does not resolve: {exc.strerror}", reason=EndReason.DNS)
