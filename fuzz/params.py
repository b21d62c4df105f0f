"""PARAMS."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.params import KEEPALIVE_S, Params, decode, encode

from .feeding import assert_printable

SEEDS: Final = [
    encode(Params(mtu=1500, addresses=(IPv4Interface("10.10.0.2/24"),))),
    encode(
        Params(
            mtu=65535,
            addresses=(IPv4Interface("10.10.0.2/24"), IPv4Interface("10.10.0.3")),
            routes=(IPv4Network("10.0.0.0/8"),),
            keepalive=2.5,
        )
    ),
    encode(
        Params(
            mtu=1280,
            addresses=(IPv4Interface("10.10.0.2/24"), IPv6Interface("2001:db8::2/64")),
            routes=(IPv6Network("::/0"), IPv6Network("fd00::/8")),
            dns=(IPv6Address("2001:db8::53"),),
        )
    ),
    b'{"mtu":1279,"addresses":["fd00::2/64"]}',
    b'{"mtu":1500,"addresses":["fd00::2%eth0/64","::ffff:10.0.0.2/120","fe80::1/64"],"routes":["fd00::%x/8","ff00::/8"]}',
    b'{"mtu":1500,"addresses":["10.10.0.2/255.255.255.0"],"more":{"a":[null,true,1e5,"\\u00e9"]}}',
    b'{"x":' + b"[" * 2000,
]


def check(data: bytes) -> None:
    try:
        parameters = decode(data)
    except PeerError as exc:
        assert_printable(exc)
        return
    assert 68 <= parameters.mtu <= 65535
    assert KEEPALIVE_S[0] <= parameters.keepalive <= KEEPALIVE_S[1]
    assert 0 < len(parameters.addresses) == len(set(parameters.addresses))
    for each in (*parameters.addresses, *parameters.routes, *parameters.dns):
        assert "%" not in str(each)
    assert parameters.mtu >= 1280 or all(each.version == 4 for each in parameters.addresses)
    assert decode(encode(parameters)) == parameters
    try:
        without = decode(data, ipv6=False)
    except PeerError:
        assert all(each.version == 6 for each in parameters.addresses)
    else:
        assert without == parameters.without_ipv6()
