"""Connecting to a name: every address is tried, in the order and with the head starts of RFC 8305."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, zip_longest
from typing import Final, TypeAlias

import trio

from ..errors import HostError, PeerError
from .sockets import Connection, leave_undecided, peer_name

# RFC 8305 section 8: how long an attempt has before the next one starts beside it.
ATTEMPT_DELAY_S: Final = 0.25
_SO_MARK: Final = 36  # asm-generic/socket.h; socket has no name for it

_Address = tuple[int, tuple[str, int] | tuple[str, int, int, int]]  # family, socket address

Resolved: TypeAlias = Callable[[Sequence[str]], Awaitable[None]]
"""Told of a name's addresses before the first of them is tried; it may make ready for them."""


async def connect(host: str, port: int, mark: int | None = None, resolved: Resolved | None = None) -> Connection:
    """Connect over TCP to the first of the host's addresses that answers.

    The name is resolved anew each time. ``mark`` is the fwmark of every socket tried (needs CAP_NET_ADMIN), so that
    policy routing can keep the transport out of the tunnel. The caller bounds the time; cancelled, nothing stays.

    Raises PeerError: the name does not resolve, or nobody answers (with each address's own reason).
    Raises HostError: the mark is not allowed.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        raise PeerError(f"{host} does not resolve: {exc.strerror}", reason="dns") from exc
    except UnicodeError as exc:  # the idna codec, of a label that is too long
        raise PeerError(f"{host} is not a host name: {exc}", reason="dns") from exc
    addresses = interleave([(family, address) for family, _, _, _, address in found])  # type: ignore[misc]
    if resolved is not None:
        await resolved([str(address[0]) for _, address in addresses])
    failures: dict[str, int] = {}
    winner: socket.socket | None = None

    async def attempt(address: _Address, failed: trio.Event, nursery: trio.Nursery) -> None:
        nonlocal winner
        sock = _socket(address[0], mark)
        try:
            await _connect_socket(sock, address[1])
        except OSError as exc:
            failures[str(address[1][0])] = exc.errno or errno.EIO
            failed.set()
        else:
            if winner is None:
                winner = sock
                nursery.cancel_scope.cancel()
        finally:
            if sock is not winner:
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
        raise _nobody_answers(host, port, failures)
    return Connection(winner, peer_name(winner))


def interleave(addresses: Sequence[_Address]) -> list[_Address]:
    """The resolver's order, but the families in turn (RFC 8305 section 4), beginning with its first one's."""
    first = [a for a in addresses if a[0] == addresses[0][0]]
    other = [a for a in addresses if a[0] != addresses[0][0]]
    return [a for a in chain.from_iterable(zip_longest(first, other)) if a is not None]


def _socket(family: int, mark: int | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    leave_undecided(sock)
    try:
        if mark is not None:
            # As bytes: the kernel reads a u32, and Python takes an int for a signed one.
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark.to_bytes(4, sys.byteorder))
    except OSError as exc:
        sock.close()
        raise HostError(f"transport_mark {mark}: {exc.strerror}; it needs CAP_NET_ADMIN") from exc
    return sock


async def _connect_socket(sock: socket.socket, address: tuple[str, int] | tuple[str, int, int, int]) -> None:
    """connect(2) without blocking. Raises OSError. Cancelled, close the socket."""
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def _nobody_answers(host: str, port: int, failures: dict[str, int]) -> PeerError:
    """One reason for all addresses is said once."""
    errors = set(failures.values())
    if len(errors) == 1:
        why = os.strerror(errors.pop())
    else:
        why = ", ".join(f"{address}: {os.strerror(error)}" for address, error in failures.items())
    refused = any(error == errno.ECONNREFUSED for error in failures.values())
    return PeerError(f"cannot connect to {host} port {port}: {why}", reason="refused" if refused else "connect")
