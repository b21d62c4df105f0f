"""PARAMS: what an extended server tells its client, as JSON in a control frame."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Literal

import msgspec

from ..errors import EndReason, PeerError
from .tunconf import usable

KEEPALIVE_S = (1.0, 50.0)  # what a keepalive may be: below every proxy's usual 60 s


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that a newer peer adds are ignored. ``keepalive`` is in seconds, ``mtu`` in bytes.

    ``addresses`` and ``routes`` are for IPv4, at least one address; ``addresses6`` and ``routes6`` are of use only
    where IPv6 was agreed. ``dns``: name servers of the network behind the server. ``device``: what kind the frames are
    for; ``tap`` carries Ethernet frames.
    """

    mtu: int
    addresses: tuple[IPv4Interface, ...]
    addresses6: tuple[IPv6Interface, ...] = ()
    routes: tuple[IPv4Network, ...] = ()
    routes6: tuple[IPv6Network, ...] = ()
    dns: tuple[IPv4Address | IPv6Address, ...] = ()
    device: Literal["tun", "tap"] = "tun"
    keepalive: float = 10.0


class _Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """As it is in JSON: both families in one list, the first address of each first."""

    mtu: int
    addresses: list[str]
    routes: list[str] = []
    dns: list[str] = []
    device: str = "tun"
    keepalive: float = 10.0


def encode(params: Params) -> bytes:
    """The payload."""
    return msgspec.json.encode(
        _Wire(
            mtu=params.mtu,
            addresses=[str(it) for it in (*params.addresses, *params.addresses6)],
            routes=[str(it) for it in (*params.routes, *params.routes6)],
            dns=list(map(str, params.dns)),
            device=params.device,
            keepalive=params.keepalive,
        )
    )


def decode(payload: bytes) -> Params:
    """Untrusted input; raises PeerError only."""
    try:
        wire = msgspec.json.decode(payload, type=_Wire)
        addresses = list(map(ip_interface, wire.addresses))
        routes = list(dict.fromkeys(map(ip_network, wire.routes)))
        dns = tuple(dict.fromkeys(map(ip_address, wire.dns)))
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise PeerError("the server's parameters cannot be read", reason=EndReason.BAD_PARAMS) from exc
    if wire.device not in ("tun", "tap"):
        raise PeerError("the server's parameters are for an unknown kind of device", reason=EndReason.BAD_PARAMS)
    params = Params(
        mtu=wire.mtu,
        addresses=tuple(it for it in addresses if isinstance(it, IPv4Interface)),
        addresses6=tuple(it for it in addresses if isinstance(it, IPv6Interface)),
        routes=tuple(it for it in routes if isinstance(it, IPv4Network)),
        routes6=tuple(it for it in routes if isinstance(it, IPv6Network)),
        dns=dns,
        device="tap" if wire.device == "tap" else "tun",
        keepalive=wire.keepalive,
    )
    low, high = KEEPALIVE_S
    if not 68 <= params.mtu <= 65535 or not low <= params.keepalive <= high:
        raise PeerError("the server's parameters are out of range", reason=EndReason.BAD_PARAMS)
    if not usable(params.addresses):
        raise PeerError(
            "the server's parameters give no address, or one twice or unusable", reason=EndReason.BAD_PARAMS
        )
    return params
