"""The status of a process. `lifecycle.snapshot` makes it; `tapotun status --json`, the panel and the metrics read it.
docs/status.md documents every field, and a test compares the two.

Sizes end in ``_bytes``, rates in ``_bits_per_s``, durations in ``_s`` or ``_ms``. Times (``..since``, ``.._at``) are
UTC, to the second. Packets and bytes are IP packets without framing, counted since the interface last started. There is
no token in here, and no hash of one.

These structs form trees, so the garbage collector does not track them (``gc=False``): with thousands of clients they
would trigger full collections.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

# Incremented when a field is removed or changes its meaning, not when one is added.
SCHEMA: Final = 1

InterfaceKind: TypeAlias = Literal["server", "client"]
# up: a server listens, or a client's streams carry packets. degraded: up, but something on this machine that the
# interface needs is missing. connecting: a client has no streams. failed: the interface will be restarted.
InterfaceState: TypeAlias = Literal["starting", "connecting", "up", "degraded", "failed"]
# connected: both directions. connecting: one or none yet. replaced: another machine uses this client's token.
PeerState: TypeAlias = Literal["connected", "connecting", "replaced", "offline"]

# What was done about a route that would capture the transport. excepted: a host route bypasses it. left-out: it was not
# made. withdrawn: removed while there is no session. captured: others made it, and the operator has to remove it.
TransportAction: TypeAlias = Literal["excepted", "left-out", "withdrawn", "captured"]

# Why a pushed network is left out. attached: this machine is attached to that network. tunnel-network: the same, for
# the network of the tunnel's own address, or for a part of it. tunnel-address: the tunnel's own address is in that
# network, where another machine may have it. martian: no packet is ever routed there.
LeftOutReason: TypeAlias = Literal["attached", "tunnel-network", "tunnel-address", "martian"]


class RoundTripStatus(Struct, frozen=True, kw_only=True, gc=False):
    """Round trips of pings through the tunnel's streams; null until the first is answered."""

    last_ms: float | None = None
    smoothed_ms: float | None = None
    min_ms: float | None = None


class OutboxStatus(Struct, frozen=True, kw_only=True, gc=False):
    """The queue of packets to a peer."""

    bytes: int = 0
    packets: int = 0


class RateStatus(Struct, frozen=True, kw_only=True, gc=False):
    """Rates over the last five seconds."""

    rx_bits_per_s: float = 0.0
    tx_bits_per_s: float = 0.0


class PeerStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One client of a server, or the server of a client. rx counts what this end received from it."""

    name: str
    state: PeerState
    endpoint: str | None = None
    transport: Literal["http", "websocket"] | None = None
    tls: str | None = None
    encrypted: bool | None = None
    extended: bool | None = None
    ipv6: bool | None = None
    agent: str | None = None
    addresses: list[str] = []
    routes: list[str] = []
    refused_routes: dict[str, str] = {}
    sources: list[str] = []
    connected_since: datetime | None = None
    last_frame_at: datetime | None = None
    last_seen_at: datetime | None = None
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
    plane_packets: int = 0
    macs: int | None = None
    macs_learned: int | None = None
    macs_moved: int | None = None
    macs_evicted: int | None = None
    flooded_packets: int | None = None
    segment_limit_bytes: int | None = None
    path_problem: str | None = None


class ListenerStatus(Struct, frozen=True, kw_only=True, gc=False):
    """An address that a server listens on, alone or with other interfaces. ``problem``: why it cannot be reached."""

    address: str
    problem: str | None = None
    refusals: dict[str, int] = {}


class TransportConflictStatus(Struct, frozen=True, kw_only=True, gc=False):
    """A route that would lead a client's connections to its server into the tunnel."""

    route: str
    address: str
    action: TransportAction
    host_route: str | None = None


class LeftOutStatus(Struct, frozen=True, kw_only=True, gc=False):
    """A network that the server pushed and that this machine does not route into the tunnel."""

    route: str
    reason: LeftOutReason
    network: str | None = None
    device: str | None = None


class InterfaceStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One interface of the config."""

    name: str
    kind: InterfaceKind
    state: InterfaceState
    since: datetime
    device: Literal["tun", "tap"] | None = None
    mac: str | None = None
    bridge: str | None = None
    addresses: list[str] = []
    mtu_bytes: int | None = None
    listen: list[ListenerStatus] = []
    path: str | None = None
    device_drops: dict[str, int] = {}
    refusals: dict[str, int] = {}
    macs: int | None = None
    macs_learned: int | None = None
    macs_moved: int | None = None
    macs_evicted: int | None = None
    flooded_packets: int | None = None
    restarts: int = 0
    last_error: str | None = None
    problem: str | None = None
    degraded: str | None = None
    repairs: int = 0
    transport_conflicts: list[TransportConflictStatus] = []
    left_out: list[LeftOutStatus] = []
    peers: list[PeerStatus] = []


class ReloadStatus(Struct, frozen=True, kw_only=True, gc=False):
    """The last reload of the config. With an ``error`` nothing was changed."""

    at: datetime
    changes: list[str] = []
    error: str | None = None


class PlaneStatus(Struct, frozen=True, kw_only=True, gc=False):
    """Which plane (`datapath.plane`) moves packets. ``why``: why it is not the native one."""

    kind: Literal["native", "python", "off"]
    why: str | None = None


class UpdateStatus(Struct, frozen=True, kw_only=True, gc=False):
    """What a process knows of new versions of the program. ``available``: a version that is newer than the running
    one. ``command``: what a person types to install it. ``obstacle``: why new versions are only reported, although the
    config wants more. ``error``: why the last check failed. ``refused``: versions that did not start here."""

    mode: Literal["check", "download", "apply"]
    channel: str
    installation: Literal["pyz", "deb", "pip", "container", "checkout"]
    checked_at: datetime | None = None
    available: str | None = None
    command: str | None = None
    downloaded: str | None = None
    downloaded_version: str | None = None
    obstacle: str | None = None
    error: str | None = None
    refused: list[str] = []


class ProcessStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One process with its interfaces."""

    schema: int = SCHEMA
    version: str
    pid: int
    name: str
    hostname: str = ""  # empty: an older version does not report it
    config_file: str
    started_at: datetime
    last_reload: ReloadStatus | None = None
    plane: PlaneStatus | None = None
    update: UpdateStatus | None = None
    interfaces: list[InterfaceStatus] = []
