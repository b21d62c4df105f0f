"""The status of a client interface: what the server gave it, and the server as its only peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from ..config.model import DeviceKind
from ..host.items import Address, BridgeAddress, DesiredState, Item, Route
from ..netconf.left_out import LeftOut
from ..netconf.transport_routes import Conflict, host_route_text
from ..peer.boottime import wall_time
from ..peer.status import Peer, peer_status
from ..status.model import InterfaceStatus, LeftOutStatus, TransportConflictStatus
from ..text import one_line, shorten

REASON_CHARS: Final = 200
MAX_CONFLICTS: Final = 100  # in each list, since a server may push any number of routes


def client_status(
    common: InterfaceStatus,
    peer: Peer,
    server: str,
    desired: DesiredState | None,
    device: DeviceKind,
    conflicts: Sequence[Conflict],
    left_out: Sequence[LeftOut],
    segment_limit_bytes: int | None,
    path_problem: str | None,
) -> InterfaceStatus:
    """``common``, completed with what the client knows.

    Args:
        server: the name of ``peer``.
        desired: None: the server has not answered yet.
        device: what the frames carry, once the server has answered.
        segment_limit_bytes, path_problem: describe the path of the newest stream.
    """
    items = () if desired is None else desired.items
    # The routes into the tunnel: those that the server pushed, and the default route of packets with the mark.
    absent = {each.item for each in left_out}
    routes = [item.network for item in items if isinstance(item, Route) and item not in absent]
    return msgspec.structs.replace(
        common,
        since=wall_time(peer.peer_info.state_since),
        device=common.device if desired is None else device,
        addresses=[str(item.interface) for item in items if isinstance(item, Address | BridgeAddress)],
        mtu_bytes=None if desired is None else desired.mtu,
        transport_conflicts=[_conflict(conflict) for conflict in conflicts[:MAX_CONFLICTS]],
        left_out=[_left_out(each) for each in left_out[:MAX_CONFLICTS]],
        peers=[
            msgspec.structs.replace(
                peer_status(peer, server, routes=routes),
                segment_limit_bytes=segment_limit_bytes,
                path_problem=path_problem,
            )
        ],
    )


def with_refused_routes(status: InterfaceStatus, refused: Mapping[Item, str]) -> InterfaceStatus:
    """Move the routes that the kernel refused to a list of their own. ``refused``: each with the kernel's reason."""
    reasons = {str(item.network): why for item, why in refused.items() if isinstance(item, Route)}
    if not reasons:
        return status
    shown = {route: one_line(shorten(why, REASON_CHARS)) for route, why in list(reasons.items())[:MAX_CONFLICTS]}
    (server,) = status.peers
    routes = [route for route in server.routes if route not in reasons]
    peer = msgspec.structs.replace(server, routes=routes, refused_routes=shown)
    return msgspec.structs.replace(status, peers=[peer])


def _conflict(conflict: Conflict) -> TransportConflictStatus:
    return TransportConflictStatus(
        route=str(conflict.network),
        address=str(conflict.address),
        action=conflict.action,
        host_route=host_route_text(conflict),
    )


def _left_out(left_out: LeftOut) -> LeftOutStatus:
    attached = left_out.attached
    return LeftOutStatus(
        route=str(left_out.network),
        reason=left_out.reason,
        network=None if attached is None else str(attached.network),
        device=None if attached is None else attached.device,
    )
