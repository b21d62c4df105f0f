"""What a running process tells about itself. `tunnel.status` and `app` fill these in; `tapotun status --json`, panel
and metrics read them. docs/status.md documents every field, and a test keeps it to this file.

Sizes end in ``_bytes``, rates in ``_bits_per_s``, durations in ``_s`` or ``_ms``; moments (``..since``, ``.._at``) are
UTC, to the second. Packets and bytes are IP packets without framing, counted since the interface started last. No
token, nor a hash of one, is in here.

These are trees, so the garbage collector need not know them (``gc=False``): of thousands of clients they would have it
search everything.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

# Raised when a field goes or changes its meaning; a field that is added leaves it as it is.
SCHEMA: Final = 1

InterfaceKind: TypeAlias = Literal["server", "client"]
# up: a server listens, a client's streams carry packets. connecting: a client without them. failed: it starts again.
InterfaceState: TypeAlias = Literal["starting", "connecting", "up", "failed"]
# connected: both directions. connecting: one of them, or trying. replaced: another machine uses this client's token.
PeerState: TypeAlias = Literal["connected", "connecting", "replaced", "offline"]


class RoundTripStatus(Struct, frozen=True, kw_only=True, gc=False):
    """Of pings through the tunnel's own streams; null until the first one was answered."""

    last_ms: float | None = None
    smoothed_ms: float | None = None
    min_ms: float | None = None


class OutboxStatus(Struct, frozen=True, kw_only=True, gc=False):
    """What waits to be sent to a peer."""

    bytes: int = 0
    packets: int = 0


class RateStatus(Struct, frozen=True, kw_only=True, gc=False):
    """Over the last five seconds."""

    rx_bits_per_s: float = 0.0
    tx_bits_per_s: float = 0.0


class PeerStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One client of a server, or the server of a client. rx is what this end received from it."""

    name: str
    state: PeerState
    endpoint: str | None = None
    transport: Literal["http", "websocket"] | None = None
    extended: bool | None = None
    agent: str | None = None
    addresses: list[str] = []
    routes: list[str] = []
    sources: list[str] = []
    connected_since: datetime | None = None
    last_frame_at: datetime | None = None
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    rates: RateStatus = field(default_factory=RateStatus)
    rtt: RoundTripStatus = field(default_factory=RoundTripStatus)
    outbox: OutboxStatus = field(default_factory=OutboxStatus)
    drops: dict[str, int] = {}
    stream_ends: dict[str, int] = {}
    reconnects: int = 0


class ListenerStatus(Struct, frozen=True, kw_only=True, gc=False):
    """A socket that a server listens on, maybe together with other interfaces."""

    address: str
    refusals: dict[str, int] = {}


class InterfaceStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One definition of the config."""

    name: str
    kind: InterfaceKind
    state: InterfaceState
    since: datetime
    addresses: list[str] = []
    mtu_bytes: int | None = None
    listen: list[ListenerStatus] = []
    path: str | None = None
    device_drops: dict[str, int] = {}
    refusals: dict[str, int] = {}
    restarts: int = 0
    last_error: str | None = None
    peers: list[PeerStatus] = []


class ReloadStatus(Struct, frozen=True, kw_only=True, gc=False):
    """The last time that the config was read again. With an ``error`` nothing was changed."""

    at: datetime
    changes: list[str] = []
    error: str | None = None


class ProcessStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One process, whole."""

    schema: int = SCHEMA
    version: str
    pid: int
    name: str
    config_file: str
    started_at: datetime
    last_reload: ReloadStatus | None = None
    interfaces: list[InterfaceStatus] = []
