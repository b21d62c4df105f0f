"""Control frames, and what the two ends agree on before they send any (docs/protocol.md#extended).

::

    0        2        3            7             7+len
    +--------+--------+------------+-------------+
    | 1: u16 | kind u8| len: u32   | payload len |       little-endian; unknown kinds are skipped
    +--------+--------+------------+-------------+
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from struct import Struct
from typing import Final

from ..errors import EndReason, PeerError
from ..text import one_line, shorten

CONTROL_LENGTH: Final = 1  # stands where a frame has its packet's length
CONTROL: Final = Struct("<HBI")
# PARAMS with some two thousand routes; whatever claims to be longer is not a frame of ours.
MAX_PAYLOAD_BYTES: Final = 48 * 1024

# Kinds. Each is documented with its payload and direction (docs/protocol.md#control-frames).
PARAMS: Final = 1  # server -> client: JSON, see `params`; first frame of a download, and again after a change
PING: Final = 2  # both ways: u64 clock of the sender, ns; first on every stream, then every keepalive
PONG: Final = 3  # both ways: the PING's payload, on the sending stream of the end that was pinged
UPLOAD_SEEN: Final = 4  # server -> client: u32 number of the PUT, or empty; once its first frame has come
BYE: Final = 5  # both ways: UTF-8 reason; the sender goes away on purpose
AGENT: Final = 6  # client -> server: UTF-8 name and version of the software; first frame of an upload
PADDING: Final = 255  # both ways: anything; never means anything, so every peer skips it. Probes use it

# Headers, and which message has them (docs/protocol.md#headers).
FEATURES_HEADER: Final = "x-tun-features"  # GET: comma list of features offered; answer: those that hold
SESSION_HEADER: Final = "x-tun-session"  # GET, PUT: 32 hex digits, the same for all streams of a client
# GET: "1". A client that lost its token to another machine asks without taking it back: 409 while that one is there.
YIELD_HEADER: Final = "x-tun-yield"
# Answer to a GET that offered features: name and version of the server's software. The client says the same in an AGENT
# frame, since it cannot know before the answer whether the server is a base server.
AGENT_HEADER: Final = "x-tun-agent"

# PUT: 1 to 9 digits, the upload's number, which UPLOAD_SEEN brings back. A proxy that buffers uploads may deliver one
# after its end, and that proves nothing about the next one.
UPLOAD_HEADER: Final = "x-tun-upload"

# Features (docs/protocol.md#features).
CTL: Final = "ctl"  # control frames
WS: Final = "ws"  # the client may use one WebSocket instead of a GET and a PUT
SUPPORTED: Final = frozenset({CTL, WS})

# The beginning of a BYE that means: another machine has this token now (docs/protocol.md#sessions).
REPLACED: Final = "replaced: "

_CLOCK: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")
AGENT_CHARS: Final = 64

_SESSION: Final = re.compile(r"[0-9a-f]{32}")


def encode(kind: int, payload: bytes = b"") -> bytes:
    """A control frame. The payload may have up to MAX_PAYLOAD_BYTES."""
    return CONTROL.pack(CONTROL_LENGTH, kind, len(payload)) + payload


def ping(clock_ns: int) -> bytes:
    """A PING that carries the sender's own clock."""
    return encode(PING, _CLOCK.pack(clock_ns))


def echoed_clock(payload: bytes) -> int:
    """The clock that a PONG brings back, in ns. Untrusted input; raises PeerError only."""
    if len(payload) != _CLOCK.size:
        raise PeerError(f"PONG of {len(payload)} bytes", reason=EndReason.BAD_FRAME)
    clock: int = _CLOCK.unpack(payload)[0]
    return clock


def upload_seen(number: int | None) -> bytes:
    """An UPLOAD_SEEN for the upload of that number, if it had one."""
    return encode(UPLOAD_SEEN, b"" if number is None else _NUMBER.pack(number))


def seen_number(payload: bytes) -> int | None:
    """Which upload an UPLOAD_SEEN is about; None: it does not say. Untrusted input; never raises."""
    return int(_NUMBER.unpack(payload)[0]) if len(payload) == _NUMBER.size else None


def upload_number(value: str | None) -> int | None:
    """An upload's number as the peer sent it, or None if it is none. Untrusted input; never raises."""
    return int(value) if value is not None and _DIGITS.fullmatch(value) else None


def bye(reason: str) -> bytes:
    return encode(BYE, reason.encode())


def bye_reason(payload: bytes) -> str:
    """The text of a BYE, fit for a log line. Untrusted input; never raises."""
    return one_line(shorten(payload[:1000].decode("utf-8", "replace"), 200)) or "no reason given"


def agree(offer: str | None) -> frozenset[str]:
    """The features of a comma list (a header's value) that hold: those which we know too. Untrusted input."""
    names = {name.strip().lower() for name in (offer or "").split(",")}
    return SUPPORTED & names


def offer(features: Iterable[str] = SUPPORTED) -> str:
    """The header's value for these features."""
    return ", ".join(sorted(features))


def agent(value: str | None) -> str | None:
    """What the peer calls its software, fit for a line, or None if it does not say. Untrusted input; never raises."""
    text = one_line((value or "").strip()[: 2 * AGENT_CHARS])
    return shorten(text, AGENT_CHARS) if text else None


def agent_payload(payload: bytes) -> str | None:
    """The same from an AGENT. Untrusted input; never raises."""
    return agent(payload[:1000].decode("utf-8", "replace"))


def session_id(value: str | None) -> str | None:
    """A session id as the peer sent it, or None if it is none. Untrusted input; never raises."""
    return value if value is not None and _SESSION.fullmatch(value) else None
