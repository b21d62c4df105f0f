"""Sends a command to a running process. Blocking, on plain sockets: a short subcommand needs no event loop."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Final, TypeVar

from msgspec import Struct

from ..errors import EndReason, HostError, PeerError
from .protocol import MAX_ANSWER_BYTES, LineReader, decode_answer, encode_request

ANSWER_S: Final = 10.0
_ANSWER_READ_BYTES: Final = 256 * 1024

T = TypeVar("T")


class NobodyThereError(HostError):
    """The socket is stale or gone: the process has ended."""


def ask(path: str, command: str, arguments: Struct | None, kind: type[T], *, timeout_s: float = ANSWER_S) -> T:
    """Send a command to the process at this socket and return its answer, within ``timeout_s`` in all.

    Raises:
        NobodyThereError: the process has ended.
        HostError: permission denied, or no answer.
        PeerError: the answer is an error (reason "refused" or "busy"), or malformed.
    """
    deadline = time.monotonic() + timeout_s
    reader = LineReader(MAX_ANSWER_BYTES)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.settimeout(timeout_s)
            sock.connect(path)
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered without reading the request
                sock.sendall(encode_request(command, arguments))
            while True:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                sock.settimeout(left_s)
                if (line := reader.feed(sock.recv(_ANSWER_READ_BYTES))) is not None:
                    return decode_answer(line, kind)
        except (ConnectionRefusedError, FileNotFoundError, ConnectionResetError) as exc:
            raise NobodyThereError(f"{path}: no process listens there any more") from exc
        except PermissionError as exc:
            raise HostError(f"{path}: permission denied; ask as root, or as the user whose process it is") from exc
        except (TimeoutError, BlockingIOError) as exc:
            raise HostError(f"{path}: no answer within {timeout_s:.0f} s; is the process stopped?") from exc
        except OSError as exc:
            raise HostError(f"{path}: {exc.strerror or exc}") from exc
        except PeerError as exc:
            if exc.reason == EndReason.CLOSED:
                raise NobodyThereError(f"{path}: the process ended before it answered") from exc
            raise
