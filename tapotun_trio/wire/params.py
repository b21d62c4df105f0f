"""PARAMS: the parameters that an extended server sends to its client, as JSON in a control frame.

::

    {
        "mtu": 1400,                                    bytes
        "addresses": ["10.0.0.2/24", "fd00::2/64"],     both families; at least one for IPv4
        "routes": ["10.1.0.0/16", "fd01::/64"],         both families; optional
        "dns": ["10.0.0.1"],                            optional
        "device": "tun",                                or "tap"; optional
        "keepalive": 10.0                               seconds; optional
    }
"""

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

KEEPALIVE_S = (1.0, 50.0)  # smallest and largest keepalive; below the usual 60 s of proxies


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters. Fields that a newer peer adds are ignored.

    Attributes:
        mtu: the MTU in bytes.
        addresses: the IPv4 addresses, at least one.
        addresses6: the IPv6 addresses; used only if IPv6 was agreed on.
        routes: IPv4 networks behind the server.
        routes6: IPv6 networks behind the server; used only if IPv6 was agreed on.
        dns: name servers of the network behind the server.
        device: what the frames carry: ``tun`` IP packets, ``tap`` Ethernet frames.
        keepalive: the seconds between two PINGs.
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
    """The fields as they are in JSON: both families in one list, IPv4 first."""

    mtu: int
    addresses: list[str]
    routes: list[str] = []
    dns: list[str] = []
    device: str = "tun"
    keepalive: float = 10.0


def encode(params: Params) -> bytes:
    """The payload of a PARAMS frame."""
    return msgspec.json.encode(
        _Wire(
            mtu=params.mtu,
            addresses=[str(address) for address in (*params.addresses, *params.addresses6)],
            routes=[str(route) for route in (*params.routes, *params.routes6)],
            dns=list(map(str, params.dns)),
            device=params.device,
            keepalive=params.keepalive,
        )
    )


def decode(payload: bytes) -> Params:
    """Parse the payload of a PARAMS frame. Untrusted input; raises PeerError only."""
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
        addresses=tuple(address for address in addresses if isinstance(address, IPv4Interface)),
        addresses6=tuple(address for address in addresses if isinstance(address, IPv6Interface)),
        routes=tuple(route for route in routes if isinstance(route, IPv4Network)),
        routes6=tuple(route for route in routes if isinstance(route, IPv6Network)),
        dns=dns,
        device="tap" if wire.device == "tap" else "tun",
        keepalive=wire.keepalive,
    )
    low, high = KEEPALIVE_S
    if not 68 <= params.mtu <= 65535 or not low <= params.keepalive <= high:
        raise PeerError("the server's parameters are out of range", reason=EndReason.BAD_PARAMS)
    if not usable(params.addresses):
        raise PeerError(
            "the server's parameters give no address, a repeated one or an unusable one", reason=EndReason.BAD_PARAMS
        )
    return params
