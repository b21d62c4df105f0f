"""Control frames, and the headers by which the two ends agree on them (docs/protocol.md#extended).

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

CONTROL_LENGTH: Final = 1  # where other frames have the length of their packet
CONTROL: Final = Struct("<HBI")
# Enough for PARAMS with about two thousand routes. A longer frame is malformed.
MAX_PAYLOAD_BYTES: Final = 48 * 1024

# Kinds, each with its direction and payload (docs/protocol.md#control-frames).
PARAMS: Final = 1  # server -> client: JSON, see `params`; the first frame of a download, and again after a change
# Both ways: u64, the sender's clock in ns (a probe sends a number and filling). It is the first frame on every stream
# and then comes once per keepalive.
PING: Final = 2
PONG: Final = 3  # both ways: the payload of the PING, on the stream that the pinged end sends on
UPLOAD_SEEN: Final = 4  # server -> client, when the first frame of a PUT has come: u32 number of the PUT, or empty
BYE: Final = 5  # both ways: UTF-8 reason; the sender ends the session on purpose
AGENT: Final = 6  # client -> server: UTF-8 name and version of its software; the first frame of an upload
PADDING: Final = 255  # both ways: any payload, without a meaning, so every peer skips it; used by probes

# Headers, and the messages that have them (docs/protocol.md#headers).
FEATURES_HEADER: Final = "x-tun-features"  # GET: comma-separated features that are offered; answer: those agreed on
SESSION_HEADER: Final = "x-tun-session"  # GET, PUT: 32 hex digits, the same for all streams of a client
# GET: "1", from a client that lost its token to another machine. It does not take the token back: the answer is 409
# while the other machine is connected.
YIELD_HEADER: Final = "x-tun-yield"
# Answer to a GET that offered features: name and version of the server's software. The client sends its own in an AGENT
# frame, because it does not know before the answer whether the server is a base server.
AGENT_HEADER: Final = "x-tun-agent"

# PUT: 1 to 9 digits, the number of the upload, which UPLOAD_SEEN repeats. A proxy that buffers uploads may deliver an
# upload after its end, which proves nothing about the next one.
UPLOAD_HEADER: Final = "x-tun-upload"

# Features (docs/protocol.md#features).
CTL: Final = "ctl"  # control frames
WS: Final = "ws"  # the client may use one WebSocket instead of a GET and a PUT
INET6: Final = "inet6"  # IPv6 packets either way, and addresses and routes of IPv6 in PARAMS
TAP: Final = "tap"  # frames carry Ethernet frames
SUPPORTED: Final = frozenset({CTL, WS, INET6, TAP})

# How the reason of a BYE begins if another machine has this token now (docs/protocol.md#sessions).
REPLACED: Final = "replaced: "

_CLOCK: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")
AGENT_CHARS: Final = 64

_SESSION: Final = re.compile(r"[0-9a-f]{32}")


def encode(kind: int, payload: bytes = b"") -> bytes:
    """A control frame. ``payload``: at most MAX_PAYLOAD_BYTES."""
    return CONTROL.pack(CONTROL_LENGTH, kind, len(payload)) + payload


def ping(clock_ns: int) -> bytes:
    """A PING that carries the sender's own clock."""
    return encode(PING, _CLOCK.pack(clock_ns))


def echoed_clock(payload: bytes) -> int:
    """Our own clock as a PONG brings it back, in ns. Untrusted input; raises PeerError only."""
    if len(payload) != _CLOCK.size:
        raise PeerError(f"PONG of {len(payload)} bytes", reason=EndReason.BAD_FRAME)
    clock: int = _CLOCK.unpack(payload)[0]
    return clock


def upload_seen(number: int | None) -> bytes:
    """An UPLOAD_SEEN for the upload with that number; None: the upload had no number."""
    return encode(UPLOAD_SEEN, b"" if number is None else _NUMBER.pack(number))


def seen_number(payload: bytes) -> int | None:
    """The number of the upload that an UPLOAD_SEEN is about; None: it has none. Untrusted input; never raises."""
    return int(_NUMBER.unpack(payload)[0]) if len(payload) == _NUMBER.size else None


def upload_number(value: str | None) -> int | None:
    """An upload's number from its header; None: absent or malformed. Untrusted input; never raises."""
    return int(value) if value is not None and _DIGITS.fullmatch(value) else None


def bye(reason: str) -> bytes:
    return encode(BYE, reason.encode())


def bye_reason(payload: bytes) -> str:
    """The reason in a BYE, made safe for a log line. Untrusted input; never raises."""
    return one_line(shorten(payload[:1000].decode("utf-8", "replace"), 200)) or "no reason given"


def agree(offer: str | None) -> frozenset[str]:
    """The features that both ends know. ``offer``: comma-separated, from a header. Untrusted input; never raises."""
    names = {name.strip().lower() for name in (offer or "").split(",")}
    return SUPPORTED & names


def offer(features: Iterable[str] = SUPPORTED) -> str:
    """The header's value for these features."""
    return ", ".join(sorted(features))


def agent(value: str | None) -> str | None:
    """Name and version of the peer's software, safe for a log line; None: not given. Untrusted input; never raises."""
    text = one_line((value or "").strip()[: 2 * AGENT_CHARS])
    return shorten(text, AGENT_CHARS) if text else None


def agent_payload(payload: bytes) -> str | None:
    """The same from an AGENT frame. Untrusted input; never raises."""
    return agent(payload[:1000].decode("utf-8", "replace"))


def session_id(value: str | None) -> str | None:
    """A session id from its header; None: absent or malformed. Untrusted input; never raises."""
    return value if value is not None and _SESSION.fullmatch(value) else None
