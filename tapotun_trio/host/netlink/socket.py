"""Sends requests to the kernel's rtnetlink and receives its answers, over a trio socket. Knows no routes or rules.

Follows linux/netlink.h and RFC 3549. The kernel executes a request inside the send call and has queued every answer
when that call returns, so reading an answer never waits for the kernel's work. On the other hand, a send takes as long
as the work: about 3 us for a route, and longer while other processes hold the kernel's RTNL lock.

::

    struct nlmsghdr                          struct nlmsgerr, the payload of NLMSG_ERROR
    0        4     6      8    12   16       0      4              20
    +--------+-----+------+----+----+--      +------+--------------+---------------- - -
    | length | type| flags| seq| pid|        | -errno| our nlmsghdr | extended ack TLVs
    +--------+-----+------+----+----+--      +------+--------------+---------------- - -
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import trio
from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)

from ...errors import HostError, shortage_of

# linux/netlink.h; pyroute2 0.9.7 has no names for these.
_NETLINK_CAP_ACK: Final = 10
_NLMSGERR_ATTR_MSG: Final = 1
_NLA_TYPE_MASK: Final = 0x3FFF

HEADER: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port id."""
_U16: Final = struct.Struct("=H")
_U32: Final = struct.Struct("=I")
_I32: Final = struct.Struct("=i")
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_SEQUENCE_OFFSET: Final = 8
_FLAGS_OFFSET: Final = 6
_ACK_TLVS_OFFSET: Final = 20  # a capped answer repeats only the header of our request

# Messages in one send. If all of them fail, their answers (about 1 KiB each, by the kernel's accounting) have to fit
# into the socket's receive buffer, 208 KiB by default (net.core.rmem_default).
GROUP: Final = 64

# The kernel writes dumps in buffers of up to 32 KiB (NLMSG_GOODSIZE, max_recvmsg_len), so nothing is truncated.
_RECEIVE_BYTES: Final = 64 * 1024

DEADLINE_S: Final = 5.0  # for a group, or for one datagram of a dump; either takes a millisecond
_DUMP_TRIES: Final = 8
# Refusals of a dump that say that there is nothing: no such table; no such address family (ipv6.disable=1).
_NOTHING_THERE: Final = frozenset({errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The kernel's negative answer: an errno, and the kernel's message if it sent one (else "")."""

    errno: int
    message: str = ""

    @property
    def text(self) -> str:
        text = os.strerror(self.errno)
        return f"{text} ({self.message})" if self.message else text


class _ChangedError(Exception):
    """The state changed while it was dumped."""


class Rtnetlink:
    """One NETLINK_ROUTE socket, in the network namespace of the thread that made it. One task at a time.

    Every method is a checkpoint and cancel-safe: a request that had been sent before the cancellation is executed, and
    the next call uses a fresh socket, so it never reads the answers to an old request. All methods raise HostError if
    the kernel does not answer within `DEADLINE_S`, or if answers are lost.
    """

    def __init__(
        self, open_socket: Callable[[], trio.socket.SocketType] | None = None, *, last_sequence: int = 0
    ) -> None:
        """Raises OSError.

        Args:
            open_socket: opens a connected socket; `open_kernel_socket` if it is None.
            last_sequence: the first request gets the sequence number after this one.
        """
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._sequence = last_sequence
        self._unread_answers = False
        self._closed = False
        self._open_socket = open_socket or open_kernel_socket
        self._sock = self._open_socket()

    def close(self) -> None:
        """Idempotent. Every later call of another method raises trio.ClosedResourceError."""
        self._closed = True
        self._sock.close()

    async def transact(self, messages: Iterable[bytearray]) -> dict[int, Refusal]:
        """Have the kernel execute requests, in order. Returns the refusals by the index of the request; the requests
        after a refused one are executed too. Writes sequence numbers and flags into the messages.

        Takes the messages from the iterable in groups as it sends them, so that other tasks run in between.
        """
        refusals: dict[int, Refusal] = {}
        waiting = iter(messages)
        start = 0
        while group := list(islice(waiting, GROUP)):
            refused, _ = await self._exchange(group)
            for index, refusal in refused.items():
                refusals[start + index] = refusal
            start += len(group)
        return refusals

    async def ask(self, message: bytearray) -> bytes | Refusal:
        """Send one request that is answered by one message."""
        refused, replies = await self._exchange([message])
        if refused:
            return refused[0]
        if 0 not in replies:
            raise HostError("the kernel's netlink acknowledged a query and did not answer it")
        return replies[0]

    async def ask_together(self, messages: Sequence[bytearray]) -> list[bytes | Refusal | None]:
        """Send up to GROUP requests at once; the kernel executes them before this process continues. Returns for each
        request its answer, its refusal, or None if it was executed without an answer."""
        refused, replies = await self._exchange(messages)
        return [refused.get(index, replies.get(index)) for index in range(len(messages))]

    async def dump(self, message: bytearray, read: Callable[[memoryview], T | None]) -> list[T]:
        """Send a request with NLM_F_DUMP. Returns the results of ``read`` for the messages of the answer, without None.

        ``read`` gets each message with its header, in a buffer that is used again. If the kernel has no such table, or
        no such address family, the result is empty. Raises HostError if the kernel refuses for another reason, or if
        the state changes faster than it can be read.
        """
        for _ in range(_DUMP_TRIES):
            try:
                return await self._dump_once(message, read)
            except _ChangedError:
                continue
        raise HostError("the kernel's routing state changes faster than it can be read; try again later")

    async def _exchange(self, group: Sequence[bytearray]) -> tuple[dict[int, Refusal], dict[int, bytes]]:
        """Send requests together. Returns the refusals and the other answers, each by the index of the request."""
        refusals: dict[int, Refusal] = {}
        replies: dict[int, bytes] = {}
        first = self._number(group)
        last = first + len(group) - 1
        # The kernel always reports a refusal, but reports a success only on demand. A report on the last request shows
        # that all are executed.
        _set_flags(group[-1], NLM_F_ACK)
        with self._complete_exchange():
            await self._send(b"".join(group))
            while True:
                for kind, flags, sequence, message in split(await self._receive()):
                    if not first <= sequence <= last:
                        continue
                    if kind != NLMSG_ERROR:
                        replies[sequence - first] = bytes(message)
                        continue
                    refusal = _refusal(message, flags)
                    if refusal is not None:
                        refusals[sequence - first] = refusal
                    if sequence == last:
                        return refusals, replies

    async def _dump_once(self, message: bytearray, read: Callable[[memoryview], T | None]) -> list[T]:
        results: list[T] = []
        changed = False
        number = self._number([message])
        with self._complete_exchange():
            await self._send(message)
            while True:
                for kind, flags, sequence, reply in split(await self._receive()):
                    if sequence != number:
                        continue
                    if flags & NLM_F_DUMP_INTR:
                        changed = True
                    if kind not in (NLMSG_ERROR, NLMSG_DONE):
                        result = read(reply)
                        if result is not None:
                            results.append(result)
                        continue
                    refusal = _refusal(reply, flags)
                    if refusal is not None and refusal.errno not in _NOTHING_THERE:
                        raise HostError(f"cannot read the kernel's routing state: {refusal.text}")
                    if changed:
                        raise _ChangedError
                    return results

    def _number(self, group: Sequence[bytearray]) -> int:
        """Give the messages consecutive sequence numbers; returns the first."""
        if self._sequence + len(group) > 0xFFFF_FFFF:
            self._sequence = 0
        first = self._sequence + 1
        for sequence, message in enumerate(group, first):
            _U32.pack_into(message, _SEQUENCE_OFFSET, sequence)
        self._sequence = first + len(group) - 1
        return first

    @contextmanager
    def _complete_exchange(self) -> Iterator[None]:
        """A context manager for a request and its answers. An early exit leaves answers unread, so the next request
        uses a new socket. (While a dump is incomplete, the kernel also refuses another one: EBUSY.)"""
        if self._closed:
            raise trio.ClosedResourceError("this netlink socket is closed")
        try:
            if self._unread_answers:
                self._sock.close()
                self._sock = self._open_socket()
            self._unread_answers = True
            yield
        except trio.TooSlowError as exc:
            raise HostError(f"the kernel's netlink gave no answer within {DEADLINE_S:g} s") from exc
        except OSError as exc:
            # ENOBUFS: answers did not fit into the receive buffer and are lost.
            doing = "the kernel's netlink failed"
            raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc
        self._unread_answers = False

    async def _send(self, data: bytes | bytearray) -> None:
        with trio.fail_after(DEADLINE_S):
            await self._sock.send(data)  # a datagram: all of it or nothing

    async def _receive(self) -> memoryview:
        """One datagram from the kernel, valid until the next call."""
        with trio.fail_after(DEADLINE_S):
            while True:
                length, address = await self._sock.recvfrom_into(self._buffer)
                if address[0] == 0:  # nl_pid of the kernel. Any process may send to a netlink socket's address.
                    return self._buffer[:length]


def open_kernel_socket() -> trio.socket.SocketType:
    """A NETLINK_ROUTE socket that is connected to the kernel, for the caller to close. Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, 0))
        sock.connect((0, 0))  # from now on only the kernel may send to this socket
        # Ask for refusals without the request's payload (Linux 4.3) and with the kernel's message (4.12). We look for
        # the message directly behind the request's header.
        with suppress(OSError):
            sock.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        # Ask the kernel to filter dumps. A kernel before 4.20 sends everything, so the reader filters again.
        with suppress(OSError):
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        return trio.socket.from_stdlib_socket(sock)
    except BaseException:
        sock.close()
        raise


def _set_flags(message: bytearray, flags: int) -> None:
    (old,) = _U16.unpack_from(message, _FLAGS_OFFSET)
    _U16.pack_into(message, _FLAGS_OFFSET, old | flags)


def split(datagram: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """The messages of a datagram: type, flags, sequence number, and the whole message with its header.

    The kernel wrote it, so it is not hostile. Nevertheless an impossible length raises HostError.
    """
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < HEADER.size:
            raise HostError("the kernel's netlink sent half a message")
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
        if not HEADER.size <= length <= len(datagram) - offset:
            raise HostError("the kernel's netlink sent half a message")
        yield kind, flags, sequence, datagram[offset : offset + length]
        offset += _align(length)


def _refusal(message: memoryview, flags: int) -> Refusal | None:
    """The refusal in an NLMSG_ERROR or NLMSG_DONE; None for success."""
    if len(message) < HEADER.size + _I32.size:
        return None  # NLMSG_DONE of an old kernel
    (code,) = _I32.unpack_from(message, HEADER.size)
    if code >= 0:
        return None
    text = ""
    if flags & NLM_F_ACK_TLVS:
        (kind,) = _U16.unpack_from(message, 4)
        start = HEADER.size + (_ACK_TLVS_OFFSET if kind == NLMSG_ERROR else _I32.size)
        text = _extended_ack(message[start:])
    return Refusal(-code, text)


def _extended_ack(data: memoryview) -> str:
    """The kernel's message among the attributes of an extended ack, or ""."""
    for kind, payload in attributes(data):
        if kind == _NLMSGERR_ATTR_MSG:
            return bytes(payload).rstrip(b"\0").decode(errors="replace")
    return ""


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The types (without the flags in the upper bits) and payloads of a series of struct nlattr."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += _align(length)


def _align(length: int) -> int:
    """NLMSG_ALIGN, NLA_ALIGN."""
    return (length + 3) & ~3
