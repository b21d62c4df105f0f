"""Where a base server sends a packet: the rules of docs/protocol.md#routing by linear scan, with nothing clever."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from .wire import sha1


@dataclass(frozen=True)
class ClientSpec:
    """A client that a base server knows: the SHA-1 of its token, its address, what lies behind it.

    `pushed` are the routes that a generation 2 `x-tun-conf` gives to the client.
    """

    token_sha1: str
    ip: str
    routes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    pushed: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        token: str,
        ip: str,
        *,
        routes: Iterable[str] = (),
        sources: Iterable[str] = (),
        pushed: Iterable[str] = (),
    ) -> "ClientSpec":
        """For a raw token."""
        return cls(sha1(token), ip, tuple(routes), tuple(sources), tuple(pushed))

    def prefixes(self) -> list[IPv4Network]:
        """ "client's `ip` (as /32) and `routes`"."""
        return [IPv4Network(self.ip), *(IPv4Network(route) for route in self.routes)]


@dataclass(frozen=True)
class Router:
    """The server's side of it: its own addresses and its top-level `routes`."""

    own: tuple[str, ...]
    routes: tuple[str, ...]
    clients: tuple[ClientSpec, ...]
    _local: list[IPv4Network] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._local.extend(IPv4Network(net) for net in (*self.own, *self.routes))

    def from_client(self, packet: bytes, sender: ClientSpec) -> ClientSpec | None:
        """The client that gets a client's packet; None for the server's TUN.

        1. "longest prefix over every *other* client's `ip` (as /32) and `routes`";
        2. "else, if S is one of some client's `sources`, to that client, unless D is the server's own
           address or lies in the server's top-level `routes`";
        3. "else into the server's TUN".
        """
        source, destination = _ends(packet)
        hit = self._longest(destination, [c for c in self.clients if c is not sender])
        if hit is not None:
            return hit
        if any(destination in net for net in self._local):
            return None
        return self._by_source(source)

    def from_tun(self, packet: bytes) -> ClientSpec | None:
        """ "Packet from the server's TUN: 1 over all clients, then 2 without the exception, else dropped"."""
        source, destination = _ends(packet)
        return self._longest(destination, self.clients) or self._by_source(source)

    def _longest(self, to: IPv4Address, clients: Iterable[ClientSpec]) -> ClientSpec | None:
        hits = [(net.prefixlen, c) for c in clients for net in c.prefixes() if to in net]
        return max(hits, key=lambda hit: hit[0])[1] if hits else None

    def _by_source(self, source: IPv4Address) -> ClientSpec | None:
        for client in self.clients:
            if str(source) in client.sources:
                return client
        return None


def _ends(packet: bytes) -> tuple[IPv4Address, IPv4Address]:
    return ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20])
