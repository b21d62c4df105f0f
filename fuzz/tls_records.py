"""What a server sends after the TLS 1.3 handshake: records that it has sealed well, of any content, and other bytes.

Without the keys, a fuzzer would never get behind the tag. So the input is a program, which an oracle seals.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

from tapotun_trio.config.model import TlsConfig
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.tls_files import client_context
from tapotun_trio.host.net.tls_records import RecordConnection, can_open_records
from tapotun_trio.native import PUMP
from tests.unit.tls_oracle import ALERT, DATA, HANDSHAKE, Direction, key_update

from .feeding import arrivals, assert_printable

_SECRET: Final = bytes(range(32))
_CONTEXT: Final = client_context(TlsConfig(insecure=True))
_AS_IT_IS: Final = 5  # not sealed
_UPDATE: Final = 6
_KINDS: Final = (DATA, HANDSHAKE, ALERT, 20, 0, _AS_IT_IS, _UPDATE)


def _step(kind: int, content: bytes = b"", padding: int = 0) -> bytes:
    return bytes((_KINDS.index(kind) + len(_KINDS) * padding, len(content))) + content


# Each step: its kind and its padding, the size of its content, its content.
SEEDS: Final = [
    _step(DATA, b"one") + _step(DATA, b"two", 9) + _step(DATA) + _step(ALERT, b"\1\0"),
    _step(DATA, b"one") + _step(_UPDATE) + _step(DATA, b"two") + _step(_UPDATE, b"\1") + _step(ALERT, b"\2\x14"),
    _step(HANDSHAKE, b"\4\0\0\x05ab") + _step(HANDSHAKE, b"cde\4\0\0\1x") + _step(DATA, b"data"),
    _step(HANDSHAKE, b"\4\0\0\x05ab") + _step(DATA, b"data"),
    _step(HANDSHAKE, b"\x0d\0\0\0") + _step(DATA, b"data"),
    _step(HANDSHAKE, b"\x18\0\0\1\2"),
    _step(HANDSHAKE, b"\4\xff\xff\xff"),
    _step(DATA, b"data") + _step(_AS_IT_IS, b"\x17\x03\x03\0\x20" + bytes(32)) + _step(DATA, b"never"),
    _step(_AS_IT_IS, b"\x15\x03\x03\0\x02\2\x28"),
    _step(ALERT, b"\1\x5a") + _step(DATA, b"data") + _step(ALERT, b"\2"),
    _step(0, b"no type", 3),
    _step(_UPDATE) * 65,
]


def check(data: bytes) -> None:
    assert can_open_records(), "the native part is not built"
    sealed = b"".join(_sealed(data))
    outcomes = [_received(pieces) for pieces in arrivals(sealed)]
    assert all(outcome == outcomes[0] for outcome in outcomes), "the split makes a difference"


def _sealed(data: bytes) -> Iterator[bytes]:
    sends = Direction(0x1301, _SECRET)
    while len(data) >= 2:
        kind, padding, size = _KINDS[data[0] % len(_KINDS)], data[0] // len(_KINDS), data[1]
        content, data = data[2 : 2 + size], data[2 + size :]
        if kind == _AS_IT_IS:
            yield content
        elif kind == _UPDATE:
            yield sends.seal(key_update(len(content) & 1), HANDSHAKE)
            sends.update()
        else:
            yield sends.seal(content, kind, padding)


def _received(pieces: list[bytes]) -> tuple[bytes, str]:
    """The data, and how it ended."""
    assert PUMP is not None
    ours, far = socket.socketpair()
    data, into = bytearray(), memoryview(bytearray(20_000))
    with ours, far:
        connection = RecordConnection(ours, "server", _CONTEXT, b"h", None)
        secret = _SECRET.hex().encode()
        connection._records, connection._finished, connection._shown = PUMP.Tls(0x1301, secret, secret), True, -1
        try:
            for piece in pieces:
                far.sendall(piece)
                while (received := connection.try_receive(into)) is not None:
                    data += into[:received]
                    if received == 0:
                        return bytes(data), "close_notify"
        except PeerError as exc:
            assert_printable(exc)
            assert not connection.can_lend_receiving
            assert not connection.can_lend_sending
            return bytes(data), str(exc)
    return bytes(data), ""
