"""The status of a client interface: what the server gave it, and the server as its only peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..host.items import Address, DesiredState, Route
from ..netconf.transport_routes import Conflict, host_route_text
from ..peer.boottime import wall_time
from ..peer.status import Peer, peer_status
from ..status.model import InterfaceStatus, TransportConflictStatus

MAX_CONFLICTS: Final = 100  # a server may push any number of routes


def client_status(
    common: InterfaceStatus,
    peer: Peer,
    server: str,
    desired: DesiredState | None,
    conflicts: Sequence[Conflict],
    segment_limit_bytes: int | None,
    path_problem: str | None,
) -> InterfaceStatus:
    """``common``, completed with what the client knows.

    Args:
        server: the name of ``peer``.
        desired: None: the server has not answered yet.
        segment_limit_bytes, path_problem: of the newest stream's path.
    """
    items = () if desired is None else desired.items
    # The routes into the tunnel: those that the server pushed, and the default route of packets with the mark.
    routes = [item.network for item in items if isinstance(item, Route)]
    return msgspec.structs.replace(
        common,
        since=wall_time(peer.peer_info.state_since),
        addresses=[str(item.interface) for item in items if isinstance(item, Address)],
        mtu_bytes=None if desired is None else desired.mtu,
        transport_conflicts=[_conflict(conflict) for conflict in conflicts[:MAX_CONFLICTS]],
        peers=[
            msgspec.structs.replace(
                peer_status(peer, server, routes=routes),
                segment_limit_bytes=segment_limit_bytes,
                path_problem=path_problem,
            )
        ],
    )


def _conflict(conflict: Conflict) -> TransportConflictStatus:
    return TransportConflictStatus(
        route=str(conflict.network),
        address=str(conflict.address),
        action=conflict.action,
        host_route=host_route_text(conflict),
    )
