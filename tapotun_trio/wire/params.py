"""PARAMS: the parameters that an extended server sends to its client, as JSON in a control frame.

::

    {
        "mtu": 1400,                                    bytes
        "addresses": ["10.0.0.2/24", "fd00::2/64"],     both families; at least one, or any number with "tap"
        "routes": ["10.1.0.0/16", "fd01::/64"],         both families; optional
        "dns": ["10.0.0.1"],                            optional
        "device": "tun",                                or "tap"; optional
        "keepalive": 10.0                               seconds; optional
    }
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Literal

import msgspec

from ..errors import EndReason, PeerError
from ..families import IPAddress, IPInterface, IPNetwork, only_ipv4
from .settings import MIN_IPV6_MTU_BYTES, TAP_MTU_BYTES, InterfaceSettings, usable

KEEPALIVE_S = (1.0, 50.0)  # smallest and largest keepalive; below the usual 60 s of proxies


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters. Fields that a newer peer adds are ignored.

    Attributes:
        mtu: the MTU in bytes; on a TAP interface within `TAP_MTU_BYTES`.
        addresses: at least one, but maybe none on a TAP interface. IPv6 ones only if IPv6 was agreed on.
        routes: networks behind the server. IPv6 ones only if IPv6 was agreed on.
        dns: name servers of the network behind the server. IPv6 ones only if IPv6 was agreed on, since no query reaches
            the others.
        device: what the frames carry: ``tun`` IP packets, ``tap`` Ethernet frames.
        keepalive: the seconds between two PINGs.
    """

    mtu: int
    addresses: tuple[IPInterface, ...]
    routes: tuple[IPNetwork, ...] = ()
    dns: tuple[IPAddress, ...] = ()
    device: Literal["tun", "tap"] = "tun"
    keepalive: float = 10.0

    @property
    def settings(self) -> InterfaceSettings:
        """The part that concerns the interface. A TAP interface gets no routes: the server routes no Ethernet, so it is
        no next hop."""
        return InterfaceSettings(self.mtu, self.addresses, self.routes if self.device == "tun" else ())

    def without_ipv6(self) -> Params:
        """Without addresses, routes and name servers of IPv6; perhaps without any address."""
        return msgspec.structs.replace(
            self,
            addresses=tuple(each for each in self.addresses if each.version == 4),
            routes=tuple(each for each in self.routes if each.version == 4),
            dns=only_ipv4(self.dns),
        )


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
            addresses=list(map(str, params.addresses)),
            routes=list(map(str, params.routes)),
            dns=list(map(str, params.dns)),
            device=params.device,
            keepalive=params.keepalive,
        )
    )


def decode(payload: bytes, *, ipv6: bool = True) -> Params:
    """Parse the payload of a PARAMS frame. Untrusted input; raises PeerError only.

    ``ipv6``: whether IPv6 was agreed on; if not, everything of IPv6 is ignored.
    """
    try:
        wire = msgspec.json.decode(payload, type=_Wire)
        if any("%" in text for text in (*wire.addresses, *wire.routes, *wire.dns)):
            raise ValueError("a zone has a meaning on one machine only")
        addresses = tuple(map(ip_interface, wire.addresses))
        routes = tuple(dict.fromkeys(map(ip_network, wire.routes)))
        dns = tuple(dict.fromkeys(map(ip_address, wire.dns)))
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise PeerError("the server's parameters cannot be read", reason=EndReason.BAD_PARAMS) from exc
    if wire.device not in ("tun", "tap"):
        raise PeerError("the server's parameters are for an unknown kind of device", reason=EndReason.BAD_PARAMS)
    params = Params(
        mtu=wire.mtu,
        addresses=addresses,
        routes=routes,
        dns=dns,
        device="tap" if wire.device == "tap" else "tun",
        keepalive=wire.keepalive,
    )
    if not ipv6:
        params = params.without_ipv6()
    low, high = KEEPALIVE_S
    if not 68 <= params.mtu <= 65535 or not low <= params.keepalive <= high:
        raise PeerError("the server's parameters are out of range", reason=EndReason.BAD_PARAMS)
    if params.mtu < MIN_IPV6_MTU_BYTES and any(each.version == 6 for each in params.addresses):
        raise PeerError(
            f"the server's parameters have MTU {params.mtu}, too small for IPv6", reason=EndReason.BAD_PARAMS
        )
    low_mtu, high_mtu = TAP_MTU_BYTES
    if params.device == "tap" and not low_mtu <= params.mtu <= high_mtu:
        raise PeerError(
            f"the server's parameters have MTU {params.mtu}, and a TAP interface needs {low_mtu} to {high_mtu}",
            reason=EndReason.BAD_PARAMS,
        )
    if not params.addresses and params.device == "tap":
        return params  # whoever uses the interface gets its addresses elsewhere, such as by DHCP
    if not usable(params.addresses):
        raise PeerError(
            "the server's parameters give no address, a repeated one or an unusable one", reason=EndReason.BAD_PARAMS
        )
    return params
