"""Resolves host names in threads of its own, and remembers the addresses at which a server was found.

The name server may be reachable only through the tunnel. Then no name resolves while the tunnel is down, and the tunnel
stays down because no name resolves. So if a name does not resolve, `dial.connect` tries the addresses that worked last.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Address
from typing import Final, TypeAlias

import trio

from ...errors import EndReason, PeerError, ShortageError, shortage_of
from ..process.descriptors import no_descriptor_left
from .nat64 import WELL_KNOWN_NAME, Prefix, find_prefixes, synthesize
from .sockets import address_text

# The C library asks the next name server after 5 s (resolv.conf(5), timeout). With 6 s, a lookup succeeds even if the
# first name server is down.
LOOKUP_S: Final = 6.0
# How many lookups of one name may run at the same time. Each has a thread, and such a thread cannot be cancelled. The C
# library gives up after 10 s for each name server; a name service module (nsswitch.conf) may hang for longer.
MAX_LOOKUPS: Final = 4
LATE_S: Final = 30.0  # an answer too late for its own attempt is used by the next one, up to this age
MAX_ADDRESSES: Final = 8  # remembered for each name
# If the addresses of both families have not come by then, each family is asked for alone, too.
BOTH_S: Final = 0.5
# If the name server has not told the prefix of the NAT64 by then, the prefix that it told last is used.
PREFIX_S: Final = 2.0

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
        doubted: IP addresses at which a program other than the server has answered, or nobody did after the connection
            was made, since the server was last found.
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
        self._prefixes: list[Prefix] = []  # of NAT64s, as they were found last

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
        if "%" in host:  # the zone of a literal; no name has this character
            text = f"cannot connect to {host}: this machine has no interface {host.partition('%')[2]}"
            raise PeerError(text, reason=EndReason.CONNECT)
        name = self._names[host, port]
        try:
            name.newest = await self._ask(name, host, port)
        except PeerError as exc:
            name.failure = exc.without_traceback()
            raise
        name.failure = None
        return name.newest

    async def through_nat64(self, addresses: Iterable[Address]) -> list[Address]:
        """Return the addresses at which this network's NAT64 reaches the IPv4 addresses among ``addresses``. Empty if
        it has none. Cancel-safe, as `resolve`. Raises ShortageError as `resolve` does."""
        with trio.move_on_after(PREFIX_S if self._prefixes else math.inf):
            try:
                found = await self.resolve(WELL_KNOWN_NAME, 0)
            except ShortageError:
                raise
            except PeerError:
                pass  # the name server cannot be asked now, or answers that there is no such address
            else:
                self._prefixes = find_prefixes(address[0] for family, address in found if family == socket.AF_INET6)
        targets = [address for family, address in addresses if family == socket.AF_INET]
        return [
            (socket.AF_INET6, (synthesize(prefix, host), port, 0, 0))
            for prefix in self._prefixes
            for host, port, *_ in targets
        ]

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
                found = await _first_answer(ask, host, port, name.limiter)
        except trio.TooSlowError as exc:
            text = f"{host} does not resolve: the name server does not answer within {LOOKUP_S:.0f} s"
            raise PeerError(f"{text}; check /etc/resolv.conf", reason=EndReason.DNS, key=_NO_ANSWER) from exc
        except (OSError, MemoryError, RuntimeError) as exc:
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
        others = name.newest if any(address_text(it[1]) == address for it in name.newest) else name.proven
        first = [it for it in others if address_text(it[1]) == address]
        name.doubted.clear()
        if first:
            name.proven = [*first, *(it for it in others if it not in first)][:MAX_ADDRESSES]

    def doubt(self, host: str, port: int, address: str | None) -> None:
        """Record that a program other than the server answered at ``address``, or that nothing followed the connection
        to it. None: the connection was closed, so its address is not known."""
        name = self._names[host, port]
        by_name = any(address_text(it[1]) == address for it in name.newest)
        if name.doubted and not by_name and self.is_doubted(host, port, name.newest):
            name.doubted.clear()  # the remembered addresses do not work either, so the name is tried first again
        elif address is not None and len(name.doubted) < MAX_ADDRESSES:
            name.doubted.add(address)

    def is_doubted(self, host: str, port: int, addresses: Iterable[Address]) -> bool:
        """Whether something other than the server was at every one of ``addresses``."""
        return all(address_text(address[1]) in self._names[host, port].doubted for address in addresses)

    def doubted_last(self, host: str, port: int, addresses: Iterable[Address]) -> list[Address]:
        """Sort: those of ``addresses`` at which something other than the server was come last."""
        doubted = self._names[host, port].doubted
        return sorted(addresses, key=lambda address: address_text(address[1]) in doubted)

    def proven(self, host: str, port: int) -> list[Address]:
        """Return the addresses at which the server of this name was found, the newest first; empty if it never was."""
        return list(self._names[host, port].proven)

    def failure(self, host: str, port: int) -> PeerError | None:
        """Return why the newest lookup of this name failed; None if it succeeded."""
        return self._names[host, port].failure


async def _first_answer(
    ask: Callable[[], list[Address]], host: str, port: int, limiter: trio.CapacityLimiter
) -> list[Address]:
    """Call ``ask``, which looks up a name, in a thread. If it takes longer than BOTH_S, ask for each family alone, too,
    and take the first addresses.

    ``ask`` waits for the addresses of both families. Some name servers never answer for IPv6 (RFC 8305 section 3, RFC
    4074), and then it takes 10 s or more. Raises what ``ask`` raises. Cancel-safe.
    """
    found: list[Address] | None = None
    failure: Exception | None = None

    async def both() -> None:
        nonlocal found, failure
        try:
            found = await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=limiter)
        except (OSError, MemoryError, RuntimeError) as exc:
            failure = exc
        nursery.cancel_scope.cancel()

    async def alone(family: int) -> None:
        nonlocal found
        ask_alone = partial(lookup, host, port, family)
        with suppress(OSError, MemoryError, RuntimeError):  # `both` learns the reason, too
            found = await trio.to_thread.run_sync(ask_alone, abandon_on_cancel=True, limiter=limiter)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(both)
        await trio.sleep(BOTH_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            nursery.start_soon(alone, family)
    if found is None:
        assert failure is not None, "the nursery ends with one of them"
        try:
            raise failure
        finally:
            failure = None  # otherwise this frame and the traceback would refer to each other
    return found


_NO_ANSWER: Final = "the name server does not answer"


def lookup(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[Address]:
    """Ask the C library for a name's addresses of both families, or of one. Blocks. Raises OSError (including
    socket.gaierror)."""
    found = socket.getaddrinfo(_encoded(host), port, family, socket.SOCK_STREAM)
    return [_unmapped(family, address) for family, _, _, _, address in found]  # type: ignore[arg-type]


def _encoded(host: str) -> bytes:
    """A host as the config allows it, which is ASCII, or an `address_text`, whose interface may have any name. For
    text, `socket` would load a codec that makes ASCII of it: 0.35 MB."""
    return os.fsencode(host)


def _unmapped(family: int, address: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """An IPv4-mapped address as what it is: the packets to it are IPv4, and so are the routes that decide about it."""
    text = address[0]
    if family == socket.AF_INET6 and (inner := IPv6Address(text.partition("%")[0]).ipv4_mapped) is not None:
        return socket.AF_INET, (str(inner), address[1])
    return family, address


def _literal(host: str, port: int) -> list[Address] | None:
    """Parse a host that is an IP address and needs no lookup. None: it is a name."""
    try:
        found = socket.getaddrinfo(
            _encoded(host), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except OSError:
        return None
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def _failure(exc: Exception, host: str) -> PeerError | None:
    """Translate the exception of a lookup. None: ``exc`` is a bug."""
    doing = f"cannot resolve {host}"
    if isinstance(exc, socket.gaierror):
        return _shortage_of_resolver(exc, doing) or _refusal(exc, host)
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
