"""Headers that proxies and visitors wrote: an entry left of an address that is not trusted is never believed."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

from tapotun_trio.http.forwarded import Address, client_of

_TRUSTED: Final = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
_VISITOR: Final = "203.0.113.7"

SEEDS: Final = [
    b"\x00203.0.113.7, 10.0.0.1",
    b"\x002001:db8::1, [fd00::1]:443",
    b"\x01for=192.0.2.60;proto=http;by=203.0.113.43, for=10.0.0.1",
    b'\x01for="[2001:db8:cafe::17]:4711", for=unknown',
    b'\x01for="_gazonk", for=_hidden;host="a\\"b,c"',
    b'\x01for="',
]


def check(data: bytes) -> None:
    if not data:
        return
    name = "forwarded" if data[0] & 1 else "x-forwarded-for"
    value = data[1:].decode("latin-1")
    client = client_of({name: value}, _trusts)
    assert (client is None) == (not value.strip())
    if client is not None:
        assert client.isprintable()
        assert len(client) <= 100
    # What a proxy of ours adds at the right end is the answer, with anything in front of it.
    added = f"for={_VISITOR}" if name == "forwarded" else _VISITOR
    assert client_of({name: f"{value}, {added}"}, _trusts) == _VISITOR


def _trusts(address: Address) -> bool:
    return any(address.version == network.version and address in network for network in _TRUSTED)
