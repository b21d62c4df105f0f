"""Connects to a host name: tries all addresses, in the order and with the delays of RFC 8305."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Final, TypeAlias

import trio

from ...errors import EndReason, HostError, PeerError, ShortageError, shortage_of
from ..process.descriptors import no_descriptor_left
from .sockets import Connection, avoid_bbr, peer_name

# RFC 8305 section 8: how long an attempt runs alone before the next one starts in parallel.
ATTEMPT_DELAY_S: Final = 0.25
_SO_MARK: Final = 36  # asm-generic/socket.h; socket has no name for it

_Address = tuple[int, tuple[str, int] | tuple[str, int, int, int]]  # family, socket address

Resolved: TypeAlias = Callable[[Sequence[str]], Awaitable[None]]
"""Called with the addresses of a name before the first of them is tried; it may prepare for them."""

SegmentLimit: TypeAlias = Callable[[str], int | None]
"""The maximum segment size for connections to an address (see `segments.SegmentLimits`); None: the kernel's."""


async def connect(
    host: str,
    port: int,
    mark: int | None = None,
    resolved: Resolved | None = None,
    segment_limit: SegmentLimit | None = None,
) -> Connection:
    """Connect over TCP to the first of the host's addresses that answers.

    Resolves the name each time. The caller bounds the time. If it is cancelled, no socket stays open.

    Args:
        host, port: the server.
        mark: the fwmark of every socket (needs CAP_NET_ADMIN), by which policy routing can keep the transport out of
            the tunnel.
        resolved: called with the addresses first.
        segment_limit: asked for each address.

    Raises:
        PeerError: the name does not resolve, or no address answers (with the reason of each). Addresses of a family
            that this machine does not have are left out of the text.
        ShortageError: this machine lacks memory or descriptors.
        HostError: the mark is not allowed.
    """
    addresses = interleave(await _resolve(host, port))
    if resolved is not None:
        await resolved([str(address[0]) for _, address in addresses])
    failures: dict[str, int] = {}
    winner: socket.socket | None = None

    async def attempt(address: _Address, failed: trio.Event, nursery: trio.Nursery) -> None:
        nonlocal winner
        sock: socket.socket | None = None
        try:
            sock = open_transport_socket(address[0], mark)
            if segment_limit is not None and (mss := segment_limit(str(address[1][0]))) is not None:
                with suppress(OSError):  # then a connection that needs the limit fails, as it would without
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
            await connect_socket(sock, address[1])
        except OSError as exc:
            failures[str(address[1][0])] = exc.errno or errno.EIO
            failed.set()
        else:
            if winner is None:
                winner = sock
                nursery.cancel_scope.cancel()
        finally:
            if sock is not None and sock is not winner:
                sock.close()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed, nursery)
                with trio.move_on_after(ATTEMPT_DELAY_S):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise _no_answer(host, port, failures)
    try:
        return Connection(winner, peer_name(winner))
    except BaseException:
        winner.close()
        raise


async def _resolve(host: str, port: int) -> list[_Address]:
    """All addresses of a name, in the resolver's order. Raises PeerError."""
    doing = f"cannot resolve {host}"
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        # If the resolver got no descriptor, the C library reports an unknown name or a temporary failure.
        raise _shortage_of_resolver(exc, doing) or PeerError(
            f"{host} does not resolve: {exc.strerror}", reason=EndReason.DNS
        ) from exc
    except UnicodeError as exc:  # from the idna codec, if a label is too long
        raise PeerError(f"{host} is not a host name: {exc}", reason=EndReason.DNS) from exc
    except (OSError, MemoryError, RuntimeError) as exc:  # EAI_SYSTEM, or no thread can be started
        shortage = shortage_of(exc, doing)
        if shortage is None and not isinstance(exc, OSError):
            raise
        raise shortage or PeerError(f"{doing}: {exc}", reason=EndReason.DNS) from exc
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def _shortage_of_resolver(exc: socket.gaierror, doing: str) -> ShortageError | None:
    return shortage_of(MemoryError(), doing) if exc.errno == socket.EAI_MEMORY else no_descriptor_left(doing)


def interleave(addresses: Sequence[_Address]) -> list[_Address]:
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
            # As bytes: the kernel reads a u32, and Python would encode an int as signed.
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark.to_bytes(4, sys.byteorder))
    except OSError as exc:
        sock.close()
        if shortage_of(exc, "") is not None:
            raise
        raise HostError(f"transport_mark {mark}: {exc.strerror}; it needs CAP_NET_ADMIN") from exc
    return sock


async def connect_socket(sock: socket.socket, address: tuple[str, int] | tuple[str, int, int, int]) -> None:
    """connect(2) without blocking. Raises OSError. If it is cancelled, the caller closes the socket."""
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


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
