"""Requests to the kernel's rtnetlink and its answers, over a trio socket. Knows nothing of routes or rules.

Follows linux/netlink.h and RFC 3549. The kernel works a request off inside the send call and has queued every
answer when that call returns, so no answer is waited for longer than it takes to read it. The price is that a
send takes as long as the work does: about 3 us for a route, and longer while others hold the kernel's RTNL lock.

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
_ACK_TLVS_OFFSET: Final = 20  # capped: of our request, its header only

# Messages in one send. Should every one of them fail, their answers (about 1 KiB each, as the kernel counts)
# have to fit into the socket's receive buffer, 208 KiB by default (net.core.rmem_default).
GROUP: Final = 64

# The kernel writes dumps in buffers of up to 32 KiB (NLMSG_GOODSIZE, max_recvmsg_len), so nothing is cut off.
_RECEIVE_BYTES: Final = 64 * 1024

DEADLINE_S: Final = 5.0  # for a group or a piece of a dump; they take a millisecond
_DUMP_TRIES: Final = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The kernel's no: an errno, and its own words where it has any (else "")."""

    errno: int
    words: str = ""

    @property
    def text(self) -> str:
        text = os.strerror(self.errno)
        return f"{text} ({self.words})" if self.words else text


class _ChangedError(Exception):
    """What was being dumped has changed meanwhile."""


class Rtnetlink:
    """One NETLINK_ROUTE socket, in the network namespace of the thread that made it. One task at a time.

    Every method is a checkpoint and cancel-safe: what had been sent to the kernel when the cancellation came
    is done, and the next call starts on a fresh socket, so it never meets the answers to an old request.
    All of them raise HostError if the kernel does not answer within `DEADLINE_S`, or loses answers.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._sequence = 0
        self._disturbed = False
        self._closed = False
        self._sock = _open()

    def close(self) -> None:
        """Idempotent. Who uses it afterwards gets trio.ClosedResourceError."""
        self._closed = True
        self._sock.close()

    async def transact(self, messages: Iterable[bytearray]) -> dict[int, Refusal]:
        """Have the kernel work off requests, in order. Returns the refused ones by their index; a refusal
        does not stop the rest. Writes sequence numbers and flags into the messages.

        Takes no more of the messages at a time than it sends, so that other tasks run in between.
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
        """One request that is answered by one message."""
        refused, replies = await self._exchange([message])
        if refused:
            return refused[0]
        if 0 not in replies:
            raise HostError("the kernel's netlink acknowledged a question and did not answer it")
        return replies[0]

    async def ask_together(self, messages: Sequence[bytearray]) -> list[bytes | Refusal | None]:
        """Up to GROUP requests in one send, which the kernel works off before this process runs on. Returns for each
        its answer, why it was refused, or None: done, and there is nothing to say."""
        refused, replies = await self._exchange(messages)
        return [refused.get(index, replies.get(index)) for index in range(len(messages))]

    async def dump(self, message: bytearray, read: Callable[[memoryview], T | None]) -> list[T]:
        """A request with NLM_F_DUMP: what ``read`` makes of each message of the answer, which it gets with its
        header, in a buffer that is used again. What it makes None of is left out.

        ENOENT (no such table) is an empty answer. Raises HostError if the kernel refuses, or if what is
        dumped changes faster than it can be read.
        """
        for _ in range(_DUMP_TRIES):
            try:
                return await self._dump_once(message, read)
            except _ChangedError:
                continue
        raise HostError("the kernel's routing state changes faster than it can be read; try again later")

    async def _exchange(self, group: Sequence[bytearray]) -> tuple[dict[int, Refusal], dict[int, bytes]]:
        """Send requests together; collect the refusals, and what else was answered, by index."""
        refusals: dict[int, Refusal] = {}
        replies: dict[int, bytes] = {}
        first = self._number(group)
        last = first + len(group) - 1
        # A refusal is always sent, a success only if it is asked for: the last one stands for all before it.
        _set_flags(group[-1], NLM_F_ACK)
        with self._undisturbed():
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
        with self._undisturbed():
            await self._send(message)
            while True:
                for kind, flags, sequence, reply in split(await self._receive()):
                    if sequence != number:
                        continue
                    changed |= bool(flags & NLM_F_DUMP_INTR)
                    if kind not in (NLMSG_ERROR, NLMSG_DONE):
                        result = read(reply)
                        if result is not None:
                            results.append(result)
                        continue
                    refusal = _refusal(reply, flags)
                    if refusal is not None and refusal.errno != errno.ENOENT:
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
    def _undisturbed(self) -> Iterator[None]:
        """Around a request and its answers: whatever leaves it early leaves answers unread, so the next
        request goes out on a new socket. (After a dump cut short, the kernel would refuse another: EBUSY.)"""
        if self._closed:
            raise trio.ClosedResourceError("this netlink socket is closed")
        try:
            if self._disturbed:
                self._sock.close()
                self._sock = _open()
            self._disturbed = True
            yield
        except trio.TooSlowError as exc:
            raise HostError(f"the kernel's netlink gave no answer within {DEADLINE_S:g} s") from exc
        except OSError as exc:
            # ENOBUFS: answers did not fit into the receive buffer, and are lost.
            doing = "the kernel's netlink failed"
            raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc
        self._disturbed = False

    async def _send(self, data: bytes | bytearray) -> None:
        with trio.fail_after(DEADLINE_S):
            await self._sock.send(data)  # a datagram: all of it or nothing

    async def _receive(self) -> memoryview:
        """One datagram from the kernel, valid until the next call."""
        with trio.fail_after(DEADLINE_S):
            while True:
                length, address = await self._sock.recvfrom_into(self._buffer)
                if address[0] == 0:  # nl_pid: the kernel's. Any process may send to a netlink socket's address.
                    return self._buffer[:length]


def _open() -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, 0))
        sock.connect((0, 0))  # and from now on the kernel lets nobody else send to us
        # Shorter refusals, and then (only then do we find them) the kernel's own words in them: Linux 4.3 and 4.12.
        with suppress(OSError):
            sock.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        # Filters in dumps. A kernel before 4.20 sends all there is; whoever reads filters again.
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
    """The messages of a datagram: type, flags, sequence number, and all of it with its header.

    The kernel wrote it, so it is not hostile; a length that makes no sense raises HostError all the same.
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
    """What an NLMSG_ERROR or NLMSG_DONE says, None for success."""
    if len(message) < HEADER.size + _I32.size:
        return None  # NLMSG_DONE of an old kernel
    (code,) = _I32.unpack_from(message, HEADER.size)
    if code >= 0:
        return None
    words = ""
    if flags & NLM_F_ACK_TLVS:
        (kind,) = _U16.unpack_from(message, 4)
        start = HEADER.size + (_ACK_TLVS_OFFSET if kind == NLMSG_ERROR else _I32.size)
        words = _extended_ack(message[start:])
    return Refusal(-code, words)


def _extended_ack(data: memoryview) -> str:
    """The kernel's sentence among extended ack attributes, or ""."""
    for kind, payload in attributes(data):
        if kind == _NLMSGERR_ATTR_MSG:
            return bytes(payload).rstrip(b"\0").decode(errors="replace")
    return ""


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """A run of struct nlattr: the type of each, without the flags in its upper bits, and its payload."""
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
