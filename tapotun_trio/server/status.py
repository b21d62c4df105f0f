"""The status of a server interface: its listeners, its counters, and its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from ..cooperative import Steps
from ..http.virtual_hosts import Registration
from ..peer.status import by_reason, peer_status
from ..status.model import InterfaceStatus, ListenerStatus, PeerStatus
from .segment import Segment
from .session import Session

ABSENT: Final = "this machine does not have that address yet"
PEERS_PER_STEP: Final = 50  # about a millisecond


def server_status(
    common: InterfaceStatus,
    sessions: Sequence[Session],
    registration: Registration,
    device_drops: Mapping[str, int],
    refusals: Mapping[str, int],
    segment: Segment | None = None,
) -> Steps[InterfaceStatus]:
    """``common``, completed with what the server knows, in steps. Each client's status is from the step that reaches
    it."""
    peers: list[PeerStatus] = []
    for session in sessions:
        client = session.client
        status = peer_status(
            session, client.name, addresses=client.addresses, routes=client.routes, sources=client.sources
        )
        if segment is not None:
            counts = segment.switch.counts_of(session.port)
            status = msgspec.structs.replace(
                status,
                macs=segment.switch.size(session.port),
                macs_learned=counts.learned,
                macs_moved=counts.moved,
                macs_evicted=counts.evicted,
                flooded_packets=segment.flooded_by(session),
            )
        peers.append(status)
        if len(peers) % PEERS_PER_STEP == 0:
            yield
    of_all = None if segment is None else segment.switch.counts
    return msgspec.structs.replace(
        common,
        listen=_listeners(registration),
        device_drops=by_reason(device_drops),
        refusals=by_reason(refusals),
        macs=None if segment is None else len(segment.switch),
        macs_learned=None if of_all is None else of_all.learned,
        macs_moved=None if of_all is None else of_all.moved,
        macs_evicted=None if of_all is None else of_all.evicted,
        flooded_packets=None if segment is None else segment.flooded,
        peers=peers,
    )


def _listeners(registration: Registration) -> list[ListenerStatus]:
    open_ones = [
        ListenerStatus(
            address=endpoint.listener.name,
            problem=ABSENT if endpoint.listener.waits else None,
            refusals=by_reason(endpoint.refusals),
        )
        for endpoint in registration.endpoints
    ]
    return open_ones + [ListenerStatus(address=name, problem=error) for name, error in registration.refused.items()]
