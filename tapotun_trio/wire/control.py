"""Control frames, and what the two ends agree on before they send any (PROTOCOL, "Extended").

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

from ..errors import PeerError
from ..text import one_line, shorten

CONTROL_LENGTH: Final = 1  # stands where a frame has its packet's length
CONTROL: Final = Struct("<HBI")
# PARAMS with some two thousand routes; whatever claims to be longer is not a frame of ours.
MAX_PAYLOAD_BYTES: Final = 48 * 1024

PARAMS: Final = 1
PING: Final = 2
PONG: Final = 3
UPLOAD_SEEN: Final = 4
BYE: Final = 5
AGENT: Final = 6  # ours; client to server, once a stream: name and version of its software
# Ours: a kind that shall never mean anything, so that every peer skips it. A probe fills an upload with it.
PADDING: Final = 255

FEATURES_HEADER: Final = "x-tun-features"
SESSION_HEADER: Final = "x-tun-session"
# Ours: a client that lost its token to another machine asks whether that one is gone, and takes nothing away.
YIELD_HEADER: Final = "x-tun-yield"
# Ours: name and version of the server's software, for status, where features were agreed. A client cannot know before
# it is answered that they are, and a base server shall see no more of us: it says the same in an AGENT frame.
AGENT_HEADER: Final = "x-tun-agent"

# Ours: a number that a client gives each PUT, and that UPLOAD_SEEN brings back. A proxy that holds uploads back may
# deliver one when it has ended, and the next one is none the better for it.
UPLOAD_HEADER: Final = "x-tun-upload"

CTL: Final = "ctl"
WS: Final = "ws"  # the client may come with a WebSocket in place of GET and PUT
SUPPORTED: Final = frozenset({CTL, WS})

# How a BYE begins that says: another machine has this token now.
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
        raise PeerError(f"PONG of {len(payload)} bytes", reason="bad-frame")
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
