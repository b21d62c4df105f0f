"""What a probe finds out. Times are in milliseconds or, where the name says so, seconds; sizes are in bytes.

The JSON report is this, field by field, so a change here is one of the report: see `report.VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Flow: TypeAlias = Literal["streams", "held-back", "broken", "not-tested"]
"""``broken``: neither passed on nor kept: an answer or an end came in its place."""

Kind: TypeAlias = Literal[
    "nginx", "caddy", "haproxy", "apache", "cloudflare", "cloudfront", "fastly", "none", "unknown"
]
"""Who answered: a reverse proxy that we know; ``none``: our server itself; ``unknown``: something else."""

Server: TypeAlias = Literal["extended", "base", "unknown"]


@dataclass(slots=True)
class Dns:
    """A name's addresses. ``ms`` is None if it was an address already."""

    host: str
    ms: float | None = None
    addresses: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(slots=True)
class Tcp:
    """A connection, to the outgoing proxy if there is one. ``unreachable``: addresses that do not answer, and why."""

    ms: float | None = None
    address: str | None = None
    unreachable: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(slots=True)
class Tls:
    """``offered``: what of all versions the server speaks. ``days_left``: until the certificate ends; less than 0: it
    has ended; None: not known. ``issuer``: the name of the authority."""

    ms: float | None = None
    version: str | None = None
    offered: list[str] = field(default_factory=list)
    days_left: float | None = None
    issuer: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Http:
    """The answer to the GET, or, with a ``status`` of None, why there was none. ``own``: an error's text is one that a
    server of ours sends; else the proxy's own."""

    ms: float | None = None
    status: int | None = None
    server: Server = "unknown"
    proxy: Kind = "unknown"
    server_header: str | None = None
    via: str | None = None
    own: bool = False
    keepalive_s: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Direction:
    """A download or an upload.

    Attributes:
        held_bytes: how many had to be sent until the first came out; None with ``held-back``: not so many that we sent,
            or not measured.
        held_until_end: nothing came out before the body's end.
        held_ms: how much later than after a round trip the first bytes came.
        status: of an answer that ended an upload early.
        ended_after_s: so long after its beginning it was ended from elsewhere; None: it was not.
        ended_after_bytes: likewise, and for a limit on a body's size.
    """

    state: Flow = "not-tested"
    held_bytes: int | None = None
    held_until_end: bool = False
    held_ms: float | None = None
    status: int | None = None
    ended_after_s: float | None = None
    ended_after_bytes: int | None = None
    error: str | None = None


@dataclass(slots=True)
class Rtt:
    """Of PINGs that were answered one at a time."""

    samples: int
    min_ms: float
    median_ms: float
    max_ms: float


@dataclass(slots=True)
class Throughput:
    """``down`` is what came back of what was sent up, so it is a lower bound where the path is slower up than down."""

    up_mbit_s: float | None = None
    down_mbit_s: float | None = None
    sent_bytes: int = 0


@dataclass(slots=True)
class WebSocket:
    """``ok`` is None if it was not tested."""

    ok: bool | None = None
    status: int | None = None
    error: str | None = None


@dataclass(slots=True)
class Idle:
    """Silence after which a stream was ended from elsewhere; None: none up to ``tested_s`` (which is 0: not tested).
    ``upload_status``: of the answer that ended the upload. ``upload_late``: it turned out to be dead only when it was
    used again, so its time is an upper bound."""

    limit_s: float
    download_tested_s: float = 0.0
    upload_tested_s: float = 0.0
    download_s: float | None = None
    upload_s: float | None = None
    upload_status: int | None = None
    upload_late: bool = False


@dataclass(slots=True)
class Measured:
    """All of it. What stays None or ``not-tested`` was not reached; ``not_tested`` says why, for a person."""

    url: str
    transport: Literal["auto", "http", "websocket"] = "auto"
    outgoing_proxy: str | None = None
    token_in_use: bool = False
    dns: Dns | None = None
    tcp: Tcp | None = None
    tls: Tls | None = None
    http: Http | None = None
    download: Direction = field(default_factory=Direction)
    upload: Direction = field(default_factory=Direction)
    rtt: Rtt | None = None
    throughput: Throughput | None = None
    websocket: WebSocket = field(default_factory=WebSocket)
    idle: Idle | None = None
    not_tested: list[str] = field(default_factory=list)
    seconds: float = 0.0
