"""The server of the control socket. Time, size and number of requests are bounded, so no client can block it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from socket import socket
from typing import Any, Final, TypeAlias

import trio
from msgspec import Struct

from ..errors import EndReason, PeerError, TapotunError
from ..host.net.listen import Listener
from ..host.net.sockets import Connection
from ..host.process.descriptors import ReserveDescriptor
from ..http.acceptor import Acceptor
from ..log import Faults, Log
from .protocol import BUSY, MAX_REQUEST_BYTES, LineReader, decode_arguments, decode_request, encode_error, encode_result

MAX_CONNECTIONS: Final = 32  # one more gets an error instead of an answer
MAX_WAITING: Final = 256  # connections whose command waits; they do not count towards MAX_CONNECTIONS meanwhile
REQUEST_S: Final = 5.0  # from accept to the request's end
ANSWER_S: Final = 10.0  # until the kernel has taken the whole answer
_REQUEST_READ_BYTES: Final = 4096


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
    """Accept and answer until cancelled. ``sock`` listens; its owner closes it.

    One descriptor is kept in reserve, so that commands are answered even when no other descriptor is left.
    """
    sock.setblocking(False)
    counts, faults, reserve = ConnectionCounts(), Faults(), ReserveDescriptor()

    async def serve(connection: Connection) -> None:
        counts.served += 1
        try:
            await _serve(connection, commands, log, counts, faults)
        finally:
            counts.served -= 1
            connection.close()
            reserve.refill()

    listener = Listener(sock, f"unix:{sock.getsockname()}")
    listener.relieve = reserve.release
    try:
        async with trio.open_nursery() as nursery:
            await Acceptor(listener, serve, log, label="control socket: ").run(nursery)
    finally:
        reserve.release()


class ConnectionCounts:
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


async def _serve(
    connection: Connection, commands: Commands, log: Log, counts: ConnectionCounts, faults: Faults
) -> None:
    answer = BUSY
    if counts.served <= MAX_CONNECTIONS:
        with trio.move_on_after(REQUEST_S) as deadline:
            line = await _read_line(connection)
        if deadline.cancelled_caught:
            raise PeerError(f"no complete request within {REQUEST_S:.0f} s", reason=EndReason.SLOW_REQUEST)
        if line is None:
            answer = encode_error("the request is too long")
        else:
            answer = await _answer(line, commands, log, counts, faults)
    with trio.move_on_after(ANSWER_S):
        await connection.send_all(answer)


async def _read_line(connection: Connection) -> bytes | None:
    """The request's line; None: it is too long."""
    reader = LineReader(MAX_REQUEST_BYTES)
    buffer = memoryview(bytearray(_REQUEST_READ_BYTES))
    try:
        while (line := reader.feed(bytes(buffer[: await connection.receive(buffer)]))) is None:
            pass
    except PeerError as exc:
        if exc.reason != EndReason.TOO_LONG:
            raise
        return None
    return line


async def _answer(line: bytes, commands: Commands, log: Log, counts: ConnectionCounts, faults: Faults) -> bytes:
    """Run the command. Any failure of it ends here, with an error for the client."""
    try:
        request = decode_request(line)
        command = commands.get(request.command)
        if command is None:
            return encode_error(f"no such command; this process has {', '.join(sorted(commands))}")
        arguments = decode_arguments(request.arguments, command.arguments)
        if command.waits and counts.waiting >= MAX_WAITING:
            return BUSY
        with counts.aside() if command.waits else nullcontext():
            return encode_result(await command.run(arguments))
    except TapotunError as exc:
        return encode_error(str(exc))
    except Exception as exc:  # noqa: BLE001 - logged with its traceback
        faults.log(log, trio.current_time(), "control socket: command ended", exc)
        return encode_error("internal error; the log of the process has its traceback")
