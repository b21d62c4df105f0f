"""``x-tun-conf``: the header of a base server's 200 with the client's parameters, base64 of packed fields.

::

    generation 1    mtu:u16  prefix:u8  ip:4                                            7 bytes
    generation 2    mtu:u16  prefix:u8  n:u8  ip:4 * n  m:u8  (ip:4 prefix:u8) * m      5 + 4n + 5m bytes

n and m are numbers of addresses and of pushed routes. Integers are little-endian, addresses in network order.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network
from struct import Struct
from typing import Final, Literal

from ..errors import EndReason, PeerError
from .settings import InterfaceSettings, usable

_FIXED: Final = Struct("<HB")
_GENERATION_1_BYTES: Final = 7
_MIN_MTU_BYTES: Final = 68  # RFC 791: every link carries this much


@dataclass(frozen=True, slots=True)
class TunConf:
    """The parameters of a client's interface.

    Attributes:
        mtu: the MTU in bytes.
        addresses: at least one address; all have the same prefix length.
        routes: pushed by the server.
        generation: the generation of the layout, which shows what the server understands.
    """

    mtu: int
    addresses: tuple[IPv4Interface, ...]
    routes: tuple[IPv4Network, ...] = ()
    generation: Literal[1, 2] = field(default=2, compare=False)

    @property
    def settings(self) -> InterfaceSettings:
        """The parameters without the layout."""
        return InterfaceSettings(self.mtu, self.addresses, self.routes)


def encode_generation_1(mtu: int, address: IPv4Interface) -> str:
    """The header's value for one address."""
    packed = _FIXED.pack(mtu, address.network.prefixlen) + address.packed
    return base64.b64encode(packed).decode("ascii")


def encode_generation_2(conf: TunConf) -> str:
    """The header's value with all addresses and routes (at most 255 of each)."""
    prefix = conf.addresses[0].network.prefixlen
    packed = _FIXED.pack(conf.mtu, prefix) + bytes([len(conf.addresses)])
    packed += b"".join(address.packed for address in conf.addresses)
    packed += bytes([len(conf.routes)])
    packed += b"".join(net.network_address.packed + bytes([net.prefixlen]) for net in conf.routes)
    return base64.b64encode(packed).decode("ascii")


def decode(value: str) -> TunConf:
    """Parse a header's value of either generation; 7 bytes are generation 1. Untrusted input; raises PeerError only.

    A pushed route with host bits is accepted as its network, unlike in the kernel's own tools, because deployed servers
    may not check theirs.
    """
    try:
        packed = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _bad("is not base64") from exc
    if len(packed) < _GENERATION_1_BYTES:
        raise _bad(f"has {len(packed)} bytes, at least {_GENERATION_1_BYTES} are needed")
    mtu, prefix = _FIXED.unpack_from(packed)
    if mtu < _MIN_MTU_BYTES:
        raise _bad(f"says MTU {mtu}, at least {_MIN_MTU_BYTES} is needed")
    if prefix > 32:
        raise _bad(f"says prefix length {prefix}, more than 32")
    if len(packed) == _GENERATION_1_BYTES:
        address = _address(packed[3:7], prefix)
        if not usable([address]):
            raise _bad(f"gives the address {address.ip}, which no interface can have")
        return TunConf(mtu, (address,), generation=1)
    count = packed[3]
    routes_at = 4 + 4 * count
    if not count or len(packed) <= routes_at or len(packed) != routes_at + 1 + 5 * packed[routes_at]:
        raise _bad(f"has {len(packed)} bytes, which fits neither generation")
    addresses = tuple(_address(packed[at : at + 4], prefix) for at in range(4, routes_at, 4))
    if not usable(addresses):
        raise _bad("has an address twice, or one that no interface can have")
    routes = tuple(_route(packed[at : at + 5]) for at in range(routes_at + 1, len(packed), 5))
    return TunConf(mtu, addresses, tuple(dict.fromkeys(routes)))


def _address(packed: bytes, prefix: int) -> IPv4Interface:
    return IPv4Interface((packed, prefix))


def _route(packed: bytes) -> IPv4Network:
    if packed[4] > 32:
        raise _bad(f"pushes a route with prefix length {packed[4]}, more than 32")
    return IPv4Network((packed[:4], packed[4]), strict=False)


def _bad(what: str) -> PeerError:
    return PeerError(f"the server's x-tun-conf {what}", reason=EndReason.BAD_CONF)
