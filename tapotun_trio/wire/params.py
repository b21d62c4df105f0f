"""PARAMS: what an extended server tells its client, as JSON in a control frame."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network

import msgspec

from ..errors import PeerError
from .tunconf import usable

KEEPALIVE_S = (1.0, 50.0)  # what a keepalive may be: below every proxy's usual 60 s


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that a newer peer adds are ignored. ``keepalive`` is in seconds, ``mtu`` in bytes."""

    mtu: int
    addresses: tuple[IPv4Interface, ...]
    routes: tuple[IPv4Network, ...] = ()
    keepalive: float = 10.0


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    mtu: int
    addresses: list[str]
    routes: list[str] = []
    keepalive: float = 10.0


def encode(params: Params) -> bytes:
    """The payload."""
    return msgspec.json.encode(
        _Wire(
            mtu=params.mtu,
            addresses=list(map(str, params.addresses)),
            routes=list(map(str, params.routes)),
            keepalive=params.keepalive,
        )
    )


def decode(payload: bytes) -> Params:
    """Untrusted input; raises PeerError only."""
    try:
        wire = msgspec.json.decode(payload, type=_Wire)
        params = Params(
            mtu=wire.mtu,
            addresses=tuple(map(IPv4Interface, wire.addresses)),
            routes=tuple(dict.fromkeys(map(IPv4Network, wire.routes))),
            keepalive=wire.keepalive,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise PeerError("the server's parameters cannot be read", reason="bad-params") from exc
    low, high = KEEPALIVE_S
    if not 68 <= params.mtu <= 65535 or not low <= params.keepalive <= high:
        raise PeerError("the server's parameters are out of range", reason="bad-params")
    if not usable(params.addresses):
        raise PeerError("the server's parameters give no address, or one twice or unusable", reason="bad-params")
    return params
