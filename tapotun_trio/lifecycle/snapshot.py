"""A snapshot of the running interfaces, taken from counters that are kept anyway. Never awaits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ..client.client import TunnelClient
from ..config.model import ClientConfig, ServerConfig
from ..datapath.counters import Counters, Transport
from ..datapath.rtt import RoundTrip
from ..datapath.sender import Sender
from ..host.items import Address, DesiredState, Route
from ..http.virtual_hosts import Registration
from ..netconf.transport_routes import Conflict, host_route_text
from ..peer.boottime import wall_time
from ..peer.info import PeerInfo
from ..server.server import TunnelServer
from ..server.session import Session
from ..status.model import (
    InterfaceState,
    InterfaceStatus,
    ListenerStatus,
    OutboxStatus,
    PeerState,
    PeerStatus,
    RateStatus,
    RoundTripStatus,
    TransportConflictStatus,
)
from .registry import Record

ABSENT: Final = "this machine does not have that address yet"
PART: Final = 50  # peers, which take about a millisecond
CONFLICTS: Final = 100  # a server may push any number of routes


def snapshot(records: Iterable[Record]) -> list[InterfaceStatus]:
    """How these interfaces are now."""
    return [status for status in snapshot_in_parts(records) if status is not None]


def snapshot_in_parts(records: Iterable[Record]) -> Iterator[InterfaceStatus | None]:
    """The same, for who has packets to move meanwhile: None is a moment for that. Each peer is as it is when its turn
    comes."""
    for record in records:
        config, tunnel = record.config, record.tunnel
        if not isinstance(config, ServerConfig):
            yield _of_client(record, config)
            continue
        peers: list[PeerStatus] = []
        # A reload gives the server another list, and leaves this one as it is.
        for session in tunnel.sessions if isinstance(tunnel, TunnelServer) else ():
            peers.append(_client(session))
            if len(peers) % PART == 0:
                yield None
        yield _of_server(record, config, peers)


def state_of(record: Record) -> InterfaceState:
    """Alone, for who waits until it is up."""
    tunnel = record.tunnel
    if tunnel is None or not record.ready:
        return "failed" if tunnel is None and record.last_error is not None else "starting"
    if isinstance(tunnel, TunnelClient) and tunnel.state != "connected":
        return "connecting"
    return "up"


def _of_server(record: Record, config: ServerConfig, peers: list[PeerStatus]) -> InterfaceStatus:
    server = record.tunnel if isinstance(record.tunnel, TunnelServer) else None
    return InterfaceStatus(
        name=config.name,
        kind="server",
        state=state_of(record),
        since=wall_time(record.since),
        addresses=[str(config.net), *map(str, config.ips)],
        mtu_bytes=config.mtu,
        listen=[] if server is None else _listeners(server.registration),
        path=config.path,
        device_drops={} if server is None else _counted(server.device_drops),
        refusals={} if server is None else _counted(server.refusals),
        restarts=record.restarts,
        last_error=record.last_error,
        peers=peers,
    )


def _listeners(registration: Registration) -> list[ListenerStatus]:
    open_ones = [
        ListenerStatus(
            address=it.listener.name,
            problem=ABSENT if it.listener.waits else None,
            refusals=_counted(it.refusals),
        )
        for it in registration.endpoints
    ]
    return open_ones + [ListenerStatus(address=name, problem=why) for name, why in registration.refused.items()]


def _of_client(record: Record, config: ClientConfig) -> InterfaceStatus:
    client = record.tunnel if isinstance(record.tunnel, TunnelClient) else None
    desired = None if client is None else client.desired
    return InterfaceStatus(
        name=config.name,
        kind="client",
        state=state_of(record),
        since=wall_time(record.since if client is None else client.peer_info.state_since),
        addresses=[] if desired is None else [str(it.interface) for it in desired.items if isinstance(it, Address)],
        mtu_bytes=None if desired is None else desired.mtu,
        restarts=record.restarts,
        last_error=record.last_error,
        transport_conflicts=[] if client is None else [_conflict(it) for it in client.guard.conflicts[:CONFLICTS]],
        peers=[] if client is None else [_server(client, config.server.authority)],
    )


def _conflict(it: Conflict) -> TransportConflictStatus:
    return TransportConflictStatus(
        route=str(it.network), address=str(it.address), action=it.action, host_route=host_route_text(it)
    )


def _client(session: Session) -> PeerStatus:
    client = session.client
    return _peer(
        client.name,
        session.state,
        session.transport,
        session.peer_info,
        session.counters,
        session.rtt,
        session.sender,
        addresses=[str(client.ip)],
        routes=[str(route) for route in client.routes],
        sources=[str(source) for source in client.sources],
    )


def _server(tunnel: TunnelClient, name: str) -> PeerStatus:
    return _peer(
        name,
        tunnel.state,
        tunnel.transport,
        tunnel.peer_info,
        tunnel.counters,
        tunnel.rtt,
        tunnel.sender,
        addresses=[],
        routes=_routes(tunnel.desired),
        sources=[],
    )


def _routes(desired: DesiredState | None) -> list[str]:
    """What leads to the server: what it pushed, and all of what carries the mark."""
    return [] if desired is None else [str(item.network) for item in desired.items if isinstance(item, Route)]


def _peer(
    name: str,
    state: PeerState,
    transport: Transport | None,
    peer_info: PeerInfo,
    counters: Counters,
    rtt: RoundTrip,
    sender: Sender,
    *,
    addresses: list[str],
    routes: list[str],
    sources: list[str],
) -> PeerStatus:
    rx_bits_per_s, tx_bits_per_s = peer_info.rates
    return PeerStatus(
        name=name,
        state=state,
        endpoint=peer_info.endpoint,
        transport=transport,
        extended=peer_info.extended,
        agent=peer_info.agent,
        addresses=addresses,
        routes=routes,
        sources=sources,
        connected_since=None if peer_info.connected_since is None else wall_time(peer_info.connected_since),
        last_frame_at=None if peer_info.last_heard is None else wall_time(peer_info.last_heard),
        rx_packets=counters.rx_packets,
        rx_bytes=counters.rx_bytes,
        tx_packets=counters.tx_packets,
        tx_bytes=counters.tx_bytes,
        rates=RateStatus(rx_bits_per_s=round(rx_bits_per_s, 1), tx_bits_per_s=round(tx_bits_per_s, 1)),
        rtt=RoundTripStatus(last_ms=_ms(rtt.last_s), smoothed_ms=_ms(rtt.smoothed_s), min_ms=_ms(rtt.minimum_s)),
        outbox=OutboxStatus(bytes=sender.tx_queue.depth_bytes, packets=sender.tx_queue.depth_packets),
        drops=_counted(counters.drops),
        stream_ends=_counted(counters.ends),
        reconnects=peer_info.reconnects,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _counted(counter: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counter.items()))
