"""The base server's routing (docs/protocol.md#routing), and the check of source addresses.

A verdict is a small integer, which the data path caches and compares: the index of the client that gets the packet, or
one of the negative constants below.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import chain
from typing import Final, Literal, Self

from ..martians import HOSTLESS, MARTIANS
from .prefixes import PrefixTable, host_network

TO_DEVICE: Final = -1  # into the server's TUN
NO_ROUTE: Final = -2  # no client has the destination: drop
BAD_SOURCE: Final = -3  # the client may not use the source address: drop

_SERVER: Final = -1  # owner of the server's addresses; a client's number is its index
_NOBODY: Final = -2  # owner of the martians
_NO_BROADCAST: Final = 31  # networks with this prefix length or longer have no broadcast address (RFC 3021)
_STEP: Final = 50  # clients between two yields; they take about half a millisecond


@dataclass(frozen=True, slots=True)
class ClientNetworks:
    """The addresses of one client: its own, the networks behind it, and the sources that are pinned to it."""

    ip: IPv4Address
    routes: tuple[IPv4Network, ...] = ()
    sources: tuple[IPv4Address, ...] = ()


class Router:
    """Routes packets and checks their sources. Immutable: a changed config makes a new router, with new caches.

    Args:
        addresses: the server's own (its ``net`` address and ``ips``).
        local: networks that are never routed by source (top-level ``routes``).
        clients: a client is identified by its index in this sequence.
        source_check: ``strict``: a client may use its ``ip`` and ``routes`` only; ``loose``: also any address that
            neither another client nor the server owns (nobody owns the networks in ``local``, and ``sources`` do not
            make a client an owner), and that is no martian (`martians`); ``off``: any address.

    The longest matching prefix decides who owns an address. So a client with the route 0.0.0.0/0 does not own martians
    or the server's addresses, but a client with a longer prefix within them does. No client may use an address that no
    host can have (`HOSTLESS`).

    Methods take addresses as 4 bytes in network order.
    """

    def __init__(
        self,
        addresses: Sequence[IPv4Address],
        local: Sequence[IPv4Network],
        clients: Sequence[ClientNetworks],
        source_check: Literal["strict", "loose", "off"] = "loose",
    ) -> None:
        for _ in self._fill(addresses, local, clients, source_check):
            pass

    @classmethod
    def in_steps(
        cls,
        addresses: Sequence[IPv4Address],
        local: Sequence[IPv4Network],
        clients: Sequence[ClientNetworks],
        source_check: Literal["strict", "loose", "off"] = "loose",
    ) -> Generator[None, None, Router]:
        """Build a router in steps, so that the caller can do other work in between."""
        router = cls((), (), ())
        yield from router._fill(addresses, local, clients, source_check)
        return router

    def _fill(
        self,
        addresses: Sequence[IPv4Address],
        local: Sequence[IPv4Network],
        clients: Sequence[ClientNetworks],
        source_check: Literal["strict", "loose", "off"],
    ) -> Generator[None, None, None]:
        owned: list[tuple[IPv4Network, int]] = []
        pinned: dict[int, int] = {}
        client_addresses: dict[int, int] = {}
        for index, client in enumerate(clients):
            owned.append((host_network(client.ip), index))
            client_addresses.setdefault(int(client.ip), index)
            owned += [(net, index) for net in client.routes]
            for source in client.sources:
                pinned.setdefault(int(source), index)
            if index % _STEP == 0:
                yield
        self._clients = yield from PrefixTable.in_steps(owned)
        servers = [(host_network(address), _SERVER) for address in addresses]
        martians = [(network, _NOBODY) for network in MARTIANS]
        self._hostless = PrefixTable([(network, True) for network in HOSTLESS])
        self._owners = yield from PrefixTable.in_steps(chain(martians, servers, owned))
        self._client_addresses = client_addresses
        self._machine: frozenset[int] = frozenset()
        self._local = PrefixTable([(net, True) for net in (*map(host_network, addresses), *local)])
        self._pinned = pinned
        self._source_check = source_check

    def with_machine(self, interfaces: Iterable[IPv4Interface]) -> Self:
        """Return a router for a machine that also has these addresses, on any of its interfaces. Fast, because it
        shares the tables of this router.

        The server owns these addresses and the broadcast addresses of their networks. An address that is a client's
        ``ip`` stays the client's, because client and server may run on the same machine.
        """
        machine: set[int] = set()
        for interface in interfaces:
            machine.add(int(interface.ip))
            network = interface.network
            if network.prefixlen < _NO_BROADCAST:
                machine |= {int(network.network_address), int(network.broadcast_address)}
        router = copy(self)
        router._machine = frozenset(machine)
        return router

    def from_device(self, source: bytes, destination: bytes) -> int:
        """The verdict for a packet that the server's host sends into the tunnel: a client's index or NO_ROUTE."""
        client = self._clients.lookup(int.from_bytes(destination, "big"))
        if client is None:
            client = self._pinned.get(int.from_bytes(source, "big"))
        return NO_ROUTE if client is None else client

    def from_client(self, sender: int, source: bytes, destination: bytes) -> int:
        """The verdict for a packet from the client ``sender``: another client's index, TO_DEVICE or BAD_SOURCE."""
        if not self._may_use(sender, int.from_bytes(source, "big")):
            return BAD_SOURCE
        target = int.from_bytes(destination, "big")
        client = self._clients.lookup_other(target, sender)
        if client is not None:
            return client
        # Rule 2 of docs/protocol.md#routing. Unlike rule 1, it may choose the sender itself.
        client = self._pinned.get(int.from_bytes(source, "big"))
        if client is not None and self._local.lookup(target) is None:
            return client
        return TO_DEVICE

    def owns(self, client: int, source: bytes) -> bool:
        """Whether the address is the client's ``ip`` or in its ``routes``, and in no longer prefix of another owner."""
        return self._owners.lookup(int.from_bytes(source, "big")) == client

    def _may_use(self, sender: int, source: int) -> bool:
        if self._source_check == "off":
            return True
        if self._hostless.lookup(source) is not None:
            return False
        if source in self._machine:
            return self._client_addresses.get(source) == sender
        owner = self._owners.lookup(source)
        return owner == sender or (owner is None and self._source_check == "loose")
