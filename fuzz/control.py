"""The control socket's lines, from either end."""

from __future__ import annotations

from typing import Final

from tapotun_trio.control.protocol import (
    DisconnectArguments,
    LineReader,
    StatusArguments,
    StatusReport,
    WaitArguments,
    decode_answer,
    decode_arguments,
    decode_request,
    encode_error,
    encode_request,
    encode_result,
)
from tapotun_trio.errors import PeerError

from .feeding import arrivals, assert_printable

LIMIT_BYTES: Final = 4096

SEEDS: Final = [
    encode_request("status", StatusArguments(["tun0"])),
    encode_request("wait", WaitArguments([], 1.5)),
    encode_request("disconnect", DisconnectArguments("laptop", "tun0")),
    encode_result(StatusReport()),
    encode_error("no such command"),
    b'{"command":"status","arguments":' + b"[" * 2000 + b"\n",
]


def check(data: bytes) -> None:
    line, *others = [_read(pieces) for pieces in arrivals(data)]
    assert all(other == line for other in others)
    if not isinstance(line, bytes):
        return
    for kind in (StatusArguments, WaitArguments, DisconnectArguments):
        try:
            request = decode_request(line)
            arguments = decode_arguments(request.arguments, kind)
        except PeerError as exc:
            assert_printable(exc)
            continue
        again = decode_request(encode_request(request.command, arguments)[:-1])
        assert (again.command, decode_arguments(again.arguments, kind)) == (request.command, arguments)
    try:
        decode_answer(line, StatusReport)
    except PeerError as exc:
        assert_printable(exc)


def _read(pieces: list[bytes]) -> bytes | str | None:
    """The line, None if it is not complete, or why it was refused."""
    reader = LineReader(LIMIT_BYTES)
    try:
        for piece in pieces:
            if piece and (line := reader.feed(piece)) is not None:
                return line
    except PeerError as exc:
        assert_printable(exc)
        return exc.reason
    return None
