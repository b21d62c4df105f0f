"""Serves the control socket while the process runs. Connections, their time and their sizes are limited."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from socket import socket
from typing import Any, Final, TypeAlias

import trio
from msgspec import Struct

from ..errors import EndReason, PeerError, TapotunError, leaves, shortage_of
from ..log import Faults, Log, RateLimitedLog
from .protocol import BUSY, MAX_REQUEST_BYTES, LineReader, decode_arguments, decode_request, encode_error, encode_result

MAX_CONNECTIONS: Final = 32  # one more gets an error instead of an answer
MAX_WAITING: Final = 256  # connections whose command waits; they do not count towards MAX_CONNECTIONS meanwhile
REQUEST_S: Final = 5.0  # from accept to the request's end
ANSWER_S: Final = 10.0  # until the kernel has taken the whole answer
ACCEPT_RETRY_S: Final = 0.1
_READ_BYTES: Final = 4096
_BUGS: Final = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK})  # accept(2)


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        arguments: the type that the request's arguments are decoded to.
        run: gets the arguments and returns a value that msgspec can encode, or raises TapotunError with a line for the
            client. It limits its own time. It is cancelled with the process, but not when the client disconnects.
        waits: it mostly waits, so that its connection does not count towards MAX_CONNECTIONS meanwhile.
    """

    arguments: type[Struct]
    run: Callable[[Any], Awaitable[object]]
    waits: bool = False


Commands: TypeAlias = Mapping[str, Command]


async def serve_control(sock: socket, commands: Commands, log: Log) -> None:
    """Accept and answer until cancelled. ``sock`` listens; its owner closes it."""
    listener = trio.socket.from_stdlib_socket(sock)
    room, faults, shortages = _Room(), Faults(), RateLimitedLog()

    async def serve(connection: trio.socket.SocketType) -> None:
        """One connection. Any failure of it, an internal error included, ends here."""
        room.served += 1
        try:
            with connection:
                await _serve(trio.SocketStream(connection), commands, log, room, faults)
        except* (PeerError, trio.BrokenResourceError) as group:
            for exc in leaves(group):
                log.debug("control socket: %s", exc)
        except* Exception as group:  # noqa: BLE001 - logged with its traceback, and the process goes on
            faults.log(log, trio.current_time(), "control socket: connection closed", group)
        finally:
            room.served -= 1

    async with trio.open_nursery() as nursery:
        while True:
            try:
                connection, _ = await listener.accept()
            except OSError as exc:
                if exc.errno in _BUGS:
                    raise
                # Too few descriptors, or the client has disconnected. Neither ends a tunnel.
                if (shortage := shortage_of(exc, "cannot accept at the control socket")) is not None:
                    shortages.log(log, logging.WARNING, trio.current_time(), str(shortage))
                await trio.sleep(ACCEPT_RETRY_S)
                continue
            nursery.start_soon(serve, connection)


class _Room:
    """The number of connections that are being served, and that wait."""

    def __init__(self) -> None:
        self.served = 0
        self.waiting = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While the block runs, the connection counts as waiting and not as being served."""
        self.served -= 1
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            self.served += 1


async def _serve(stream: trio.SocketStream, commands: Commands, log: Log, room: _Room, faults: Faults) -> None:
    answer = BUSY
    if room.served <= MAX_CONNECTIONS:
        with trio.move_on_after(REQUEST_S) as deadline:
            line = await _read_line(stream)
        if deadline.cancelled_caught:
            raise PeerError(f"no complete request within {REQUEST_S:.0f} s", reason=EndReason.SLOW_REQUEST)
        if line is None:
            answer = encode_error("the request is too long")
        else:
            answer = await _answer(line, commands, log, room, faults)
    with trio.move_on_after(ANSWER_S):
        await stream.send_all(answer)


async def _read_line(stream: trio.SocketStream) -> bytes | None:
    """The request's line; None: it is too long."""
    reader = LineReader(MAX_REQUEST_BYTES)
    try:
        while (line := reader.feed(await stream.receive_some(_READ_BYTES))) is None:
            pass
    except PeerError as exc:
        if exc.reason != EndReason.TOO_LONG:
            raise
        return None
    return line


async def _answer(line: bytes, commands: Commands, log: Log, room: _Room, faults: Faults) -> bytes:
    """Run the command. Any failure of it ends here, with an error for the client."""
    try:
        request = decode_request(line)
        command = commands.get(request.command)
        if command is None:
            return encode_error(f"no such command; this process has {', '.join(sorted(commands))}")
        arguments = decode_arguments(request.arguments, command.arguments)
        if command.waits and room.waiting >= MAX_WAITING:
            return BUSY
        with room.aside() if command.waits else nullcontext():
            return encode_result(await command.run(arguments))
    except TapotunError as exc:
        return encode_error(str(exc))
    except Exception as exc:  # noqa: BLE001 - logged with its traceback
        faults.log(log, trio.current_time(), "control socket: command ended", exc)
        return encode_error("internal error; the log of the process has its traceback")
