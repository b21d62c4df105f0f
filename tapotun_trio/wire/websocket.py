"""WebSocket messages as one more framing of an endless body (RFC 6455 section 5).

::

    0        1        2           (0, 2 or 8)        (0 or 4)
    +--------+--------+----------------------+-----------------+---------------
    |F000 op |M length| length, big-endian   | masking key     | payload
    +--------+--------+----------------------+-----------------+---------------
     F: the last frame of its message          M: masked with the key: always from a client, never from a server
     length: 0-125; 126: it is in the next two bytes; 127: in the next eight; the shortest form is required
     op: 0 continuation, 2 binary, 8 close, 9 ping, 10 pong; anything else is refused, including 1, text

The concatenated payloads of binary messages are the body: frames of the tunnel, cut anywhere. Message boundaries have
no meaning, like chunk boundaries. Control frames may come between any two WebSocket frames.

Untrusted input; raises PeerError only.
"""

from __future__ import annotations

import functools
from mmap import mmap
from struct import Struct
from typing import Final

from ..errors import EndReason, PeerError
from ..native import PUMP
from ..text import one_line

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

# Close codes that we send (section 7.4.1).
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005  # never sent: stands for a close without a code

MAX_CONTROL_BYTES: Final = 125  # section 5.5
KEY_BYTES: Final = 4

_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_HEAD: Final = Struct(">BB")
_HEAD_16: Final = Struct(">BBH")
_HEAD_64: Final = Struct(">BBQ")
# Codes that a close may have (section 7.4 and its IANA registry): those of the protocol, and the private ones.
_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
_PRIVATE_CODES: Final = range(3000, 5000)
# Below this many bytes one XOR of two integers is faster than four translations (measured: equal at 1 KiB).
_FEW_BYTES: Final = 1024


class WebSocketBody:
    """Finds the payload of binary messages in a receive buffer. A `body.Body`; the peer's close ends it.

    Each byte must be passed to `span` once only, because what a client sent is unmasked in place.

    Attributes:
        ended: the peer's close came.
        ping: payload of the newest ping, for the caller to answer and to clear; None: there is none to answer. Older
            pings need no answer (section 5.5.3).
        code: the code of the close that ended the body; NO_STATUS if it had none.
        reason: the reason of that close, made safe for a log line.
    """

    __slots__ = (
        "_control",
        "_head",
        "_key",
        "_left",
        "_masked",
        "_opcode",
        "_within",
        "code",
        "ended",
        "ping",
        "reason",
    )

    def __init__(self, *, masked: bool) -> None:
        """``masked``: the other end is a client, whose frames must be masked. A server's must not (section 5.1)."""
        self.ended = False
        self.ping: bytes | None = None
        self.code = NO_STATUS
        self.reason = ""
        self._masked = masked
        self._within = False  # a message has begun, and its last frame has not come
        self._head = b""  # the beginning of a frame head that is not complete
        self._opcode = BINARY
        self._left = 0  # payload bytes of the current frame that have not come yet
        self._key = b""  # rotated so that its first byte is for the next payload byte
        self._control = b""  # payload of the current control frame, as far as it came

    def span(self, buffer: bytearray | mmap, pos: int, end: int) -> tuple[int, int]:
        """As `body.Body.span`; the returned span is unmasked. A call consumes at most one frame without payload."""
        if not self._left and pos < end and not self.ended:
            pos = self._take_head(buffer, pos, end)
        stop = min(end, pos + self._left)
        if stop == pos:
            return pos, pos
        self._left -= stop - pos
        if self._key:
            self._unmask(buffer, pos, stop)
        if self._opcode == BINARY:
            return pos, stop
        self._control += buffer[pos:stop]
        if not self._left:
            self._take_control()
        return stop, stop

    def eof(self) -> None:
        """As `body.Body.eof`. A WebSocket may only end with a close."""
        if not self.ended:
            raise PeerError("connection closed without the end of its WebSocket", reason=EndReason.CLOSED)

    def _take_head(self, buffer: bytearray | mmap, pos: int, end: int) -> int:
        """Parse as much of a frame's head as is there. Returns where that ends."""
        have = len(self._head)
        head = self._head + buffer[pos : pos + _HEAD_64.size + KEY_BYTES - have]
        size = _HEAD.size
        if have + end - pos >= size:
            first, second = head[0], head[1]
            if have < size:
                self._check_head(first, second)
            size = _sizes(second)
        if have + end - pos < size:
            self._head = head[: have + end - pos]
            return end
        self._head = b""
        self._begin(first, _length(head, second & ~_MASKED), head[size - KEY_BYTES : size] if second & _MASKED else b"")
        return pos + size - have

    def _check_head(self, first: int, second: int) -> None:
        """Check the first two bytes of a head, before the rest of it has come."""
        opcode = first & 0x0F
        if first & _RESERVED:
            raise _bad("reserved bits are set, and no extension was agreed")
        if bool(second & _MASKED) != self._masked:
            raise _bad("a client's frame is not masked" if self._masked else "a server's frame is masked")
        if opcode in (CLOSE, PING, PONG):
            if not first & _FINAL:
                raise _bad("a control frame is fragmented")
            if second & ~_MASKED > MAX_CONTROL_BYTES:
                raise _bad(f"a control frame has more than {MAX_CONTROL_BYTES} bytes")
        elif opcode == TEXT:
            raise _bad("a text message; frames are sent in binary messages")
        elif opcode not in (CONTINUATION, BINARY):
            raise _bad(f"unknown opcode {opcode}")
        elif (opcode == CONTINUATION) != self._within:
            raise _bad("a new message within another one" if self._within else "a continuation of no message")

    def _begin(self, first: int, length: int, key: bytes) -> None:
        opcode = first & 0x0F
        self._left, self._key = length, key
        if opcode in (CONTINUATION, BINARY):
            self._opcode = BINARY
            self._within = not first & _FINAL
        else:
            self._opcode = opcode
            self._control = b""
            if not length:
                self._take_control()

    def _take_control(self) -> None:
        if self._opcode == PING:
            self.ping = self._control
        elif self._opcode == CLOSE:
            self.code, self.reason = read_close(self._control)
            self.ended = True

    def _unmask(self, buffer: bytearray | mmap, pos: int, stop: int) -> None:
        if PUMP is not None:
            PUMP.mask_in_place(buffer, pos, stop, self._key)
        else:
            buffer[pos:stop] = mask_in_python(buffer[pos:stop], self._key)
        turn = (stop - pos) % KEY_BYTES
        self._key = self._key[turn:] + self._key[:turn]


def frame_head(opcode: int, size_bytes: int, key: bytes = b"") -> bytes:
    """The head of a message in one frame, or of a control frame. ``key``: the key of a masked frame, which ends the
    head."""
    masked = _MASKED if key else 0
    if size_bytes < 126:
        return _HEAD.pack(_FINAL | opcode, masked | size_bytes) + key
    if size_bytes < 1 << 16:
        return _HEAD_16.pack(_FINAL | opcode, masked | 126, size_bytes) + key
    return _HEAD_64.pack(_FINAL | opcode, masked | 127, size_bytes) + key


def frame(opcode: int, payload: bytes, key: bytes = b"") -> bytes:
    """A message in one frame, or a control frame, masked if there is a key."""
    return frame_head(opcode, len(payload), key) + (mask(payload, key) if key else payload)


def mask(payload: bytes | bytearray | memoryview, key: bytes) -> bytes | bytearray:
    """XOR each byte of the payload with the bytes of the key in turn (section 5.3). Applied twice, it gives the payload
    again. In C, where there is a native part."""
    if PUMP is not None:
        masked: bytes = PUMP.mask(payload, key)
        return masked
    return mask_in_python(payload, key)


def mask_in_python(payload: bytes | bytearray | memoryview, key: bytes) -> bytes | bytearray:
    """`mask` without the native part.

    There is no loop over bytes. A short payload is one XOR of two large integers. These have to be converted to digits
    of 30 bits and back, so for a long payload four translations of every fourth byte are 1.5 times as fast (0.6 GB/s).
    """
    size = len(payload)
    if size < _FEW_BYTES:
        words = -(-size // KEY_BYTES)
        mixed = int.from_bytes(payload, "little") ^ int.from_bytes(key * words, "little")
        return mixed.to_bytes(words * KEY_BYTES, "little")[:size]
    masked = bytearray(payload)
    for turn in range(KEY_BYTES):
        masked[turn::KEY_BYTES] = masked[turn::KEY_BYTES].translate(_xor_table(key[turn]))
    return masked


@functools.cache
def _xor_table(byte: int) -> bytes:
    return bytes(value ^ byte for value in range(256))


def close_payload(code: int, reason: str = "") -> bytes:
    """The payload of a close (section 5.5.1): a code, and up to 123 bytes of ``reason``."""
    text = reason.encode()[: MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore")
    return code.to_bytes(2, "big") + text.encode()


def read_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a close, from its payload. Untrusted input; raises PeerError only."""
    if not payload:
        return NO_STATUS, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or (code not in _CODES and code not in _PRIVATE_CODES):
        raise _bad("a close with a code that must not be sent")
    try:
        return code, one_line(payload[2:].decode())
    except UnicodeDecodeError as exc:
        raise _bad("a close whose reason is not UTF-8") from exc


def _sizes(second: int) -> int:
    """Size of a head in bytes, from its second byte."""
    length = second & ~_MASKED
    size = _HEAD_64.size if length == 127 else _HEAD_16.size if length == 126 else _HEAD.size
    return size + KEY_BYTES if second & _MASKED else size


def _length(head: bytes, short: int) -> int:
    """Size of the payload in bytes. ``short``: the 7 bits of the second byte."""
    if short < 126:
        return short
    length: int = (_HEAD_16 if short == 126 else _HEAD_64).unpack_from(head)[2]
    if length < (126 if short == 126 else 1 << 16):
        raise _bad("a length is not in its shortest form")
    if length >= 1 << 63:
        raise _bad("a length of 2**63 or more")
    return length


def _bad(what: str) -> PeerError:
    return PeerError(f"malformed WebSocket: {what}", reason=EndReason.BAD_WEBSOCKET)
