"""PARAMS."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network
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
    assert decode(encode(parameters)) == parameters
