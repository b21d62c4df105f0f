"""Checked transfers: bytes over TCP between two hosts, timed, and compared by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self

from .errors import TransferError
from .host import Host
from .tools import family_of

_CHUNK_BYTES: Final = 1 << 20


class Payload:
    """A file in memory whose content shows every loss, repetition and exchange: numbered random blocks.

    Usable for many transfers. Close it (or use it as a context manager) to give the memory back.
    """

    def __init__(self, size: int) -> None:
        """`size` is in bytes."""
        self.size = size
        self.fd = os.memfd_create("payload")
        noise = os.urandom(_CHUNK_BYTES)
        for number in range(-(-size // _CHUNK_BYTES)):
            block = number.to_bytes(8, "big") + noise[8:]
            _write_all(self.fd, block[: size - number * _CHUNK_BYTES])

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the content, computed when first asked for."""
        return _sha256(self.fd)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Transfer:
    """A finished transfer whose checksum was right. `seconds`: first byte sent to last byte received."""

    size: int
    seconds: float
    sha256: str

    @property
    def gbit_s(self) -> float:
        """Throughput of the payload."""
        return self.size * 8 / self.seconds / 1e9


def upload(opener: Host, listener: Host, address: str, payload: Payload | int, **options: Any) -> Transfer:
    """`opener` connects to `listener` at `address` over TCP and sends it the payload (or that many bytes).

    Options, all by keyword: `port` (0: any), `timeout` seconds for the whole (60), `mark` (fwmark of the
    opener's socket), `source` (its address), `progress` (called with the bytes received so far).
    The time is taken without the checksums, which are compared afterwards.

    Raises TransferError if anything is lost, added or changed, or the connection breaks or stalls.
    """
    return _transfer(opener, listener, address, payload, opener_sends=True, **options)


def download(opener: Host, listener: Host, address: str, payload: Payload | int, **options: Any) -> Transfer:
    """As `upload`, but the one who connects receives."""
    return _transfer(opener, listener, address, payload, opener_sends=False, **options)


def _transfer(
    opener: Host,
    listener: Host,
    address: str,
    payload: Payload | int,
    *,
    opener_sends: bool,
    port: int = 0,
    timeout: float = 60.0,
    mark: int | None = None,
    source: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Transfer:
    if isinstance(payload, int):
        with Payload(payload) as made:
            return _transfer(
                opener,
                listener,
                address,
                made,
                opener_sends=opener_sends,
                port=port,
                timeout=timeout,
                mark=mark,
                source=source,
                progress=progress,
            )
    way = f"{opener.name} {'->' if opener_sends else '<-'} {listener.name} at {address}"
    try:
        near, far = _connected(opener, listener, address, port=port, mark=mark, source=source, timeout=timeout)
        with near, far, Payload(0) as received:
            sender, receiver = (near, far) if opener_sends else (far, near)
            _touch(received.fd, payload.size)
            start = time.monotonic()
            with ThreadPoolExecutor(1, "sender") as pool:
                sending = pool.submit(_send, sender, payload, start + timeout)
                try:
                    _receive(receiver, received.fd, start + timeout, progress)
                except BaseException:
                    sender.close()  # or the sender, and with it the pool, would wait for its own timeout
                    raise
                seconds = time.monotonic() - start
                sending.result()
            if received.sha256 != payload.sha256:
                size = os.fstat(received.fd).st_size
                raise TransferError(f"{way}: {size} of {payload.size} bytes arrived, and not as they were sent")
    except OSError as exc:
        raise TransferError(f"{way}: {exc} (limit {timeout:g} s)") from exc
    return Transfer(payload.size, seconds, payload.sha256)


def _connected(
    opener: Host,
    listener: Host,
    address: str,
    *,
    port: int,
    mark: int | None,
    source: str | None,
    timeout: float,
) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection between two hosts. Raises OSError."""
    with listener.socket(family_of(address)) as ears:
        ears.settimeout(timeout)
        ears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ears.bind((address, port))
        ears.listen(1)
        near = opener.socket(family_of(address))
        try:
            near.settimeout(timeout)
            if mark is not None:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if source is not None:
                near.bind((source, 0))
            near.connect(ears.getsockname()[:2])
            far, _ = ears.accept()
        except BaseException:
            near.close()
            raise
    return near, far


def _send(sock: socket.socket, payload: Payload, deadline: float) -> None:
    offset = 0
    while offset < payload.size:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        with open(payload.fd, "rb", closefd=False) as file:
            # In pieces, so that the deadline holds for the whole: a timeout is one for each wait.
            offset += sock.sendfile(file, offset, min(64 * _CHUNK_BYTES, payload.size - offset))
    sock.shutdown(socket.SHUT_WR)


def _receive(sock: socket.socket, fd: int, deadline: float, progress: Callable[[int], None] | None) -> None:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    total = 0
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        if not (count := sock.recv_into(buffer)):
            break
        _write_all(fd, buffer[:count])
        total += count
        if progress is not None:
            progress(total)
    os.ftruncate(fd, total)


def _touch(fd: int, size: int) -> None:
    """Write zeros there and go back. A page that was never used costs a virtual machine more than the network
    does, so all are fetched before the clock runs."""
    zeros = bytes(_CHUNK_BYTES)
    for offset in range(0, size, _CHUNK_BYTES):
        _write_all(fd, zeros[: size - offset])
    os.lseek(fd, 0, os.SEEK_SET)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sha256(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False, buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
