"""Connects to a host name: tries all addresses, in the order and with the delays of RFC 8305.

If the name does not resolve, the addresses at which its server was found last are tried. This does not weaken
authentication: TLS still compares the certificate with the name.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from itertools import chain, zip_longest
from typing import Final, Protocol, TypeAlias

import trio

from ...errors import EndReason, HostError, PeerError, ShortageError, shortage_of
from ...families import IPNetwork, host_network, is_within
from .resolver import Address, Resolver
from .sockets import Connection, address_text, avoid_bbr, peer_name

# RFC 8305 section 8: how long an attempt runs alone before the next one starts in parallel.
ATTEMPT_DELAY_S: Final = 0.25
# For this long only the addresses of the name are tried. After that, the addresses that worked last are tried too.
NAME_ALONE_S: Final = 2.0
# An address of each family that only a default route leads to: 192.0.0.170 of RFC 7050, and what NAT64 makes of it.
_FAR: Final = {4: (socket.AF_INET, ("192.0.0.170", 53)), 6: (socket.AF_INET6, ("64:ff9b::c000:aa", 53))}
_NOT_FAR: Final = (10, 127)  # the first bytes of RFC 1918's largest network and of the loopback
_SO_MARK: Final = 36  # asm-generic/socket.h; socket has no name for it


SegmentLimit: TypeAlias = Callable[[str], int | None]
"""The maximum segment size for connections to an address (see `segments.SegmentLimits`); None: the kernel's."""


class Preparation(Protocol):
    """Is told the addresses before a connection attempt, and may prepare for them."""

    async def resolved(self, addresses: Sequence[str]) -> None:
        """The name has resolved to these addresses."""

    async def remembered(self, addresses: Sequence[str]) -> None:
        """These addresses are tried too, because they worked last."""

    def unresolved(self) -> None:
        """The name does not resolve."""

    def may_try(self, address: str) -> bool:
        """Whether this one of the addresses may be tried now; if not, it counts as unreachable."""

    def connecting(self, sock: socket.socket) -> None:
        """This socket is about to be connected. It is closed when its attempt has failed."""


async def connect(
    host: str,
    port: int,
    mark: int | None = None,
    preparation: Preparation | None = None,
    resolver: Resolver | None = None,
    segment_limit: SegmentLimit | None = None,
    present: str | None = None,
) -> Connection:
    """Connect over TCP to the first of the host's addresses that answers.

    Resolves the name each time. If this machine has no route to the IPv4 addresses of the host, they are tried through
    the NAT64 of its network, if it has one (RFC 8305 section 7.1). The addresses at which ``resolver`` knows the server
    was found are tried too in three cases: the name does not resolve, none of its addresses answers, or none has
    answered after NAME_ALONE_S. They are tried first if something other than the server was at every address of the
    name. If it was at some of them only, those are tried last. With ``present``, the name is not even looked up unless
    that address fails, or has not answered after NAME_ALONE_S. The caller bounds the time. If this call is cancelled,
    no socket stays open.

    Args:
        host, port: the server.
        mark: the fwmark of every socket (needs CAP_NET_ADMIN). Policy routing can use it to keep the transport out of
            the tunnel.
        preparation: is told all addresses before the first of them is tried.
        resolver: remembers addresses from earlier connections. None: a new resolver is used, which remembers none.
        segment_limit: is called once for each address.
        present: the IP address at which the server is connected already, for a connection that has to reach the same
            machine. A name may have the addresses of several.

    Raises:
        PeerError: the name does not resolve, or no address answers. The text has the reason for each address, except
            those of a family that this machine does not have.
        ShortageError: this machine lacks memory, descriptors or threads.
        HostError: the mark is not allowed.
    """
    resolver = resolver or Resolver()
    race = _Race(mark, preparation, segment_limit)
    unresolved: PeerError | None = None
    has_no_nat64 = False
    stumbled, forgotten = trio.Event(), trio.Event()
    remembered = resolver.proven(host, port)

    present_failed = trio.Event()

    async def by_present(address: str) -> None:
        if preparation is not None:
            await preparation.remembered([address])
        await race.run(await resolver.resolve(address, port))
        present_failed.set()

    async def wait_for_present() -> None:
        if present is not None:
            with trio.move_on_after(NAME_ALONE_S):
                await present_failed.wait()

    async def by_name() -> None:
        nonlocal unresolved
        await wait_for_present()
        try:
            found = await resolver.resolve(host, port)
            addresses = resolver.doubted_last(host, port, interleave(found))
        except PeerError as exc:
            unresolved = exc.without_traceback()
            if preparation is not None and exc.reason == EndReason.DNS:
                preparation.unresolved()
        else:
            if preparation is not None:
                await preparation.resolved([address_text(address) for _, address in addresses])
            if remembered and resolver.is_doubted(host, port, addresses):
                stumbled.set()
                with trio.move_on_after(NAME_ALONE_S):
                    await forgotten.wait()
            await race.run(addresses)
            stumbled.set()
            await by_nat64(addresses)
        stumbled.set()

    async def by_nat64(addresses: Sequence[Address]) -> None:
        nonlocal has_no_nat64
        unreachable = [each for each in addresses if race.failures.get(address_text(each[1])) == errno.ENETUNREACH]
        if not any(family == socket.AF_INET for family, _ in unreachable) or not has_default_route(6, mark):
            return
        synthesized = await resolver.through_nat64(unreachable)
        has_no_nat64 = not synthesized
        if preparation is not None:
            await preparation.remembered([address_text(address) for _, address in synthesized])
        await race.run(synthesized)

    async def by_memory() -> None:
        await wait_for_present()
        with trio.move_on_after(NAME_ALONE_S):
            await stumbled.wait()
        if isinstance(unresolved, ShortageError):
            return  # the retry would fail for the same reason, which is reported once
        if preparation is not None:
            await preparation.remembered([address_text(address) for _, address in remembered])
        await race.run(remembered)
        forgotten.set()

    try:
        async with trio.open_nursery() as nursery:
            race.scope = nursery.cancel_scope
            if present is not None:
                nursery.start_soon(by_present, present)
            nursery.start_soon(by_name)
            if remembered:
                nursery.start_soon(by_memory)
    except BaseException:
        race.close()
        raise
    if race.winner is None:
        try:
            raise _failure(host, port, unresolved, race.failures, no_nat64=has_no_nat64)
        finally:
            unresolved = None  # otherwise this frame and the traceback would refer to each other
    try:
        return Connection(race.winner, peer_name(race.winner))
    except BaseException:
        race.close()
        raise


class _Race:
    """Attempts to connect to one address each. The first that succeeds ends the others.

    Attributes:
        scope: cancels all attempts.
        winner: the connected socket.
        failures: the errno for each address that failed.
    """

    def __init__(self, mark: int | None, preparation: Preparation | None, segment_limit: SegmentLimit | None) -> None:
        self.scope = trio.CancelScope()
        self.winner: socket.socket | None = None
        self.failures: dict[str, int] = {}
        self._mark = mark
        self._preparation = preparation
        self._segment_limit = segment_limit
        self._tried: set[Address] = set()

    async def run(self, addresses: Sequence[Address]) -> None:
        """Try these addresses, except those already tried. Returns when all have failed; never returns if one
        succeeds."""
        async with trio.open_nursery() as nursery:
            for address in addresses:
                if address in self._tried:
                    continue
                self._tried.add(address)
                failed = trio.Event()
                nursery.start_soon(self._attempt, address, failed)
                with trio.move_on_after(ATTEMPT_DELAY_S):
                    await failed.wait()

    async def _attempt(self, address: Address, failed: trio.Event) -> None:
        sock: socket.socket | None = None
        try:
            if self._preparation is not None and not self._preparation.may_try(address_text(address[1])):
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
            sock = open_transport_socket(address[0], self._mark)
            limit = self._segment_limit
            if limit is not None and (mss := limit(address_text(address[1]))) is not None:
                with suppress(OSError):  # without the limit, only paths that need it fail
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
            if self._preparation is not None:
                self._preparation.connecting(sock)
            await connect_socket(sock, address[1])
        except OSError as exc:
            self.failures[address_text(address[1])] = exc.errno or errno.EIO
            failed.set()
        else:
            if self.winner is None:
                self.winner = sock
                self.scope.cancel()
        finally:
            if sock is not None and sock is not self.winner:
                sock.close()

    def close(self) -> None:
        """Close the winner, if there is one."""
        if self.winner is not None:
            self.winner.close()


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """The addresses in the resolver's order, but with alternating families (RFC 8305 section 4)."""
    first = [a for a in addresses if a[0] == addresses[0][0]]
    other = [a for a in addresses if a[0] != addresses[0][0]]
    return [a for a in chain.from_iterable(zip_longest(first, other)) if a is not None]


def open_transport_socket(family: int, mark: int | None) -> socket.socket:
    """A non-blocking TCP socket with the mark, for the caller to close.

    Raises OSError, and HostError if the mark is not allowed.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    avoid_bbr(sock)
    try:
        if mark is not None:
            _set_mark(sock, mark)
    except OSError as exc:
        sock.close()
        if shortage_of(exc, "") is not None:
            raise
        raise HostError(f"transport_mark {mark}: {exc.strerror}; it needs CAP_NET_ADMIN") from exc
    return sock


def _set_mark(sock: socket.socket, mark: int) -> None:
    # As bytes: the kernel reads a u32, and Python would encode an int as signed.
    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark.to_bytes(4, sys.byteorder))


async def connect_socket(sock: socket.socket, address: tuple[str, int] | tuple[str, int, int, int]) -> None:
    """connect(2) without blocking. Raises OSError. If it is cancelled, the caller closes the socket."""
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def has_default_route(version: int, mark: int | None = None) -> bool:
    """Whether this machine has a default route of an IP version, for packets with this fwmark. Sends nothing."""
    return _has_route(*_FAR[version], mark)


def has_default_route_past(networks: Collection[IPNetwork]) -> bool:
    """Whether this machine has a default route of IPv4 by which packets go that go into none of these networks. Sends
    nothing. False if there is hardly an address outside of them."""
    family, (far, port) = _FAR[4]
    for each in (far, *(f"{first}.0.0.170" for first in range(1, 224) if first not in _NOT_FAR)):
        if not any(is_within(host_network(IPv4Address(each)), network) for network in networks):
            return _has_route(family, (each, port))
    return False


def _has_route(family: int, address: tuple[str, int], mark: int | None = None) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            if mark is not None:
                _set_mark(sock, mark)
            sock.connect(address)
    except OSError:
        return False
    return True


def _failure(
    host: str, port: int, unresolved: PeerError | None, failures: dict[str, int], *, no_nat64: bool
) -> PeerError:
    """Return the error for "no address answered".

    Args:
        unresolved: why the name did not resolve; None if it did.
        no_nat64: this machine has no route to the IPv4 addresses, and its network no NAT64.
    """
    if unresolved is None:
        failure = _no_answer(host, port, failures)
        if isinstance(failure, ShortageError) or not no_nat64:
            return failure
        text = (
            f"{failure}; this machine has IPv6 only, and its network has no NAT64: use a name that has IPv6 addresses"
        )
        return PeerError(text, reason=failure.reason, key=failure.key)
    if not failures:
        return unresolved
    tried = _no_answer(host, port, failures)
    if isinstance(tried, ShortageError):
        return tried
    places = ", ".join(sorted(failures))
    reasons = ", ".join(sorted({os.strerror(error) for error in failures.values()}))
    text = f"{unresolved}; and {places}, which worked last: {reasons}"
    return PeerError(text, reason=tried.reason, key=f"{unresolved.key}, {tried.key}")


def _no_answer(host: str, port: int, failures: dict[str, int]) -> PeerError:
    """The error if no address answered. A reason that is the same for all addresses is given once.

    The text does not depend on the order in which they failed. Addresses of a family that this machine does not have
    are left out if there are others.
    """
    doing = f"cannot connect to {host} port {port}"
    reasons = {address: error for address, error in failures.items() if error != errno.EAFNOSUPPORT} or failures
    errors = sorted(set(reasons.values()))
    for error in errors:
        if (shortage := shortage_of(OSError(error, os.strerror(error)), doing)) is not None:
            return shortage
    if len(errors) == 1:
        reason = os.strerror(errors[0])
    else:
        reason = ", ".join(f"{address}: {os.strerror(error)}" for address, error in sorted(reasons.items()))
    refused = errno.ECONNREFUSED in errors
    return PeerError(
        f"{doing}: {reason}", reason=EndReason.REFUSED if refused else EndReason.CONNECT, key=f"connect: {errors}"
    )
