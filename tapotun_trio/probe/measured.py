"""The results of a probe. Times are in milliseconds or, where the name says so, in seconds; sizes are in bytes.

The JSON report has exactly these fields, so a change here changes the report: see `report.VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..config.model import DeviceKind

Flow: TypeAlias = Literal["streams", "held-back", "broken", "not-tested"]
"""``broken``: neither forwarded nor held back: there was a response or an end instead."""

Kind: TypeAlias = Literal[
    "nginx",
    "caddy",
    "haproxy",
    "apache",
    "varnish",
    "squid",
    "lighttpd",
    "trafficserver",
    "envoy",
    "traefik",
    "node",
    "cloudflare",
    "cloudfront",
    "fastly",
    "none",
    "unknown",
]
"""What responded: a known reverse proxy; ``none``: our server itself; ``unknown``: something else."""

Server: TypeAlias = Literal["extended", "base", "unknown"]


@dataclass(slots=True)
class Dns:
    """The addresses of a host. ``ms`` is None if the host is an address already."""

    host: str
    ms: float | None = None
    addresses: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(slots=True)
class Tcp:
    """The TCP connection, to the outgoing proxy if there is one.

    Attributes:
        unreachable: the error of each address that does not answer.
        no_route: the addresses to which this machine has no route, where another one answers.
    """

    ms: float | None = None
    address: str | None = None
    unreachable: dict[str, str] = field(default_factory=dict)
    no_route: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(slots=True)
class Tls:
    """The TLS handshake.

    Attributes:
        offered: the versions that the server accepts.
        days_left: until the certificate expires; below 0: it has expired; None: not known.
        issuer: the name of the certificate authority.
    """

    ms: float | None = None
    version: str | None = None
    offered: list[str] = field(default_factory=list)
    days_left: float | None = None
    issuer: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Http:
    """The response to the GET. If ``status`` is None, ``error`` says why there was no response.

    ``proxies``: every proxy that the response shows, in the order of `identify`; ``proxy`` is the first of them.
    ``own``: whether the body of an error response comes from a tapotun server, and not from a proxy.
    ``device``: what the frames carry; None: not known.
    ``ipv4``, ``ipv6``: whether the tunnel can carry that version of IP for this client; None: not known, or the frames
    are of Ethernet.
    """

    ms: float | None = None
    status: int | None = None
    server: Server = "unknown"
    proxy: Kind = "unknown"
    proxies: list[Kind] = field(default_factory=list)
    server_header: str | None = None
    via: str | None = None
    own: bool = False
    device: DeviceKind | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    keepalive_s: float | None = None
    error: str | None = None


@dataclass(slots=True)
class PathMtu:
    """Whether large packets pass.

    Attributes:
        ok: whether they pass; None: not tested.
        lost_bytes: the size of the lost TCP segments; None: not known, because the server sent them.
        passing_bytes: the size that was found to pass instead; None: no such size was found.
        address: the remote address of the connection.
    """

    ok: bool | None = None
    lost_bytes: int | None = None
    passing_bytes: int | None = None
    address: str | None = None


@dataclass(slots=True)
class Direction:
    """A download or an upload.

    Attributes:
        held_bytes: bytes that had to be sent until the first came out. None with ``held-back``: more than were sent, or
            not measured.
        held_until_end: nothing came out before the end of the body.
        held_ms: delay of the first bytes, beyond one round trip.
        status: the status of the response that ended an upload early.
        ended_after_s: time from the beginning until something else ended the stream; None: nothing did.
        ended_after_bytes: bytes sent until then, to recognise a limit on the body's size.
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
    """Round trips of PINGs that were sent one at a time."""

    samples: int
    min_ms: float
    median_ms: float
    max_ms: float


@dataclass(slots=True)
class Throughput:
    """``down`` is measured on echoes of what was sent up, so it is a lower bound if the path is slower up than down."""

    up_mbit_s: float | None = None
    down_mbit_s: float | None = None
    sent_bytes: int = 0


@dataclass(slots=True)
class WebSocket:
    """Whether a WebSocket passes. ``ok``: None if it was not tested."""

    ok: bool | None = None
    status: int | None = None
    error: str | None = None


@dataclass(slots=True)
class Idle:
    """The silence after which something on the path ended a stream; None: the stream survived ``.._tested_s`` (0: not
    tested).

    Attributes:
        upload_status: the status of the response that ended the upload.
        upload_late: the upload was found dead only when it was used again, so ``upload_s`` is an upper bound.
    """

    limit_s: float
    download_tested_s: float = 0.0
    upload_tested_s: float = 0.0
    download_s: float | None = None
    upload_s: float | None = None
    upload_status: int | None = None
    upload_late: bool = False


@dataclass(slots=True)
class Ages:
    """The ages at which something on the path ends streams, although data flows on them.

    ``download_s`` and ``upload_s``: the age at which two streams of this direction ended; None: no limit was found up
    to an age of ``download_tested_s`` or ``upload_tested_s`` (0: not tested).
    """

    limit_s: float
    download_tested_s: float = 0.0
    upload_tested_s: float = 0.0
    download_s: float | None = None
    upload_s: float | None = None


@dataclass(slots=True)
class Measured:
    """All results. A field that is None or ``not-tested`` was not measured; ``not_tested`` has the reasons, for
    people.

    ``device``: what the frames have to carry, as the client's config says; None: what the server says.
    ``has_ipv6``: whether the client's interface could have IPv6 addresses on this machine. ``ipv6_remedy``: what to do
    if not.
    ``upload_refused``: why a later upload was refused, although the first one was not.
    """

    url: str
    transport: Literal["auto", "http", "websocket"] = "auto"
    device: DeviceKind | None = None
    has_ipv6: bool = True
    ipv6_remedy: str = ""
    outgoing_proxy: str | None = None
    token_in_use: bool = False
    dns: Dns | None = None
    tcp: Tcp | None = None
    tls: Tls | None = None
    http: Http | None = None
    path_mtu: PathMtu = field(default_factory=PathMtu)
    download: Direction = field(default_factory=Direction)
    upload: Direction = field(default_factory=Direction)
    upload_refused: str | None = None
    rtt: Rtt | None = None
    throughput: Throughput | None = None
    websocket: WebSocket = field(default_factory=WebSocket)
    idle: Idle | None = None
    ages: Ages | None = None
    not_tested: list[str] = field(default_factory=list)
    seconds: float = 0.0
