"""The base server's routing (docs/protocol.md#routing), and the check of source addresses.

A verdict is a small integer, which the data path caches and compares: the index of the client that gets the packet, or
one of the negative constants below.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Literal, Self

from ..families import IPAddress, IPInterface, IPNetwork, host_network, stays_on_link
from ..martians import HOSTLESS, MARTIANS
from .prefixes import PrefixTable

TO_DEVICE: Final = -1  # into the server's TUN
NO_ROUTE: Final = -2  # no client has the destination: drop
BAD_SOURCE: Final = -3  # the client may not use the source address: drop
ON_LINK: Final = -4  # an address of IPv6 that has a meaning on its link only: drop

_SERVER: Final = -1  # owner of the server's addresses; a client's number is its index
_NOBODY: Final = -2  # owner of the martians
_STEP: Final = 50  # clients between two yields; they take about half a millisecond


@dataclass(frozen=True, slots=True)
class ClientNetworks:
    """The addresses of one client: its own, the networks behind it, and the sources that are pinned to it."""

    addresses: tuple[IPAddress, ...]
    routes: tuple[IPNetwork, ...] = ()
    sources: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class _Family:
    """What the router knows of one family. Numbers are addresses in host byte order.

    Attributes:
        clients: the networks of each client, by the client's index.
        owners: the same, and the server's addresses and the martians.
        hostless: see `martians.HOSTLESS`.
        local: the server's addresses and its local networks.
        client_addresses: the client that has this address as its own.
        pinned: the client by which packets from this source leave.
        machine: addresses of this machine outside the tunnel.
    """

    clients: PrefixTable[int]
    owners: PrefixTable[int]
    hostless: PrefixTable[bool]
    local: PrefixTable[bool]
    client_addresses: dict[int, int]
    pinned: dict[int, int]
    machine: frozenset[int] = frozenset()


def _family_in_steps(
    version: int, addresses: Sequence[IPAddress], local: Sequence[IPNetwork], clients: Sequence[ClientNetworks]
) -> Generator[None, None, _Family]:
    """``addresses``, ``local``: those of this family."""
    owned: list[tuple[IPNetwork, int]] = []
    pinned: dict[int, int] = {}
    client_addresses: dict[int, int] = {}
    for index, client in enumerate(clients):
        for address in client.addresses:
            if address.version == version:
                owned.append((host_network(address), index))
                client_addresses.setdefault(int(address), index)
        owned += [(net, index) for net in client.routes if net.version == version]
        for source in client.sources:
            if source.version == version:
                pinned.setdefault(int(source), index)
        if index % _STEP == 0:
            yield
    servers = [(host_network(address), _SERVER) for address in addresses]
    martians = [(network, _NOBODY) for network in MARTIANS if network.version == version]
    return _Family(
        clients=(yield from PrefixTable.in_steps(owned)),
        owners=(yield from PrefixTable.in_steps(chain(martians, servers, owned))),
        hostless=PrefixTable((network, True) for network in HOSTLESS if network.version == version),
        local=PrefixTable((network, True) for network in (*map(host_network, addresses), *local)),
        client_addresses=client_addresses,
        pinned=pinned,
    )


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
    host can have (`HOSTLESS`). A packet that must not leave its link (`families.stays_on_link`) is never routed,
    whatever ``source_check`` is: a router advertisement would change the configuration of another machine.

    Methods take addresses as 4 or 16 bytes in network order, both of one family.
    """

    def __init__(
        self,
        addresses: Sequence[IPAddress],
        local: Sequence[IPNetwork],
        clients: Sequence[ClientNetworks],
        source_check: Literal["strict", "loose", "off"] = "loose",
    ) -> None:
        for _ in self._fill(addresses, local, clients, source_check):
            pass

    @classmethod
    def in_steps(
        cls,
        addresses: Sequence[IPAddress],
        local: Sequence[IPNetwork],
        clients: Sequence[ClientNetworks],
        source_check: Literal["strict", "loose", "off"] = "loose",
    ) -> Generator[None, None, Router]:
        """Build a router in steps, so that the caller can do other work in between."""
        router = cls((), (), ())
        yield from router._fill(addresses, local, clients, source_check)
        return router

    def _fill(
        self,
        addresses: Sequence[IPAddress],
        local: Sequence[IPNetwork],
        clients: Sequence[ClientNetworks],
        source_check: Literal["strict", "loose", "off"],
    ) -> Generator[None, None, None]:
        self._source_check = source_check
        self._families: dict[int, _Family] = {}
        for version, address_bytes in (4, 4), (6, 16):
            own = [address for address in addresses if address.version == version]
            networks = [network for network in local if network.version == version]
            self._families[address_bytes] = yield from _family_in_steps(version, own, networks, clients)

    def with_machine(self, interfaces: Iterable[IPInterface]) -> Self:
        """Return a router for a machine that also has these addresses, on any of its interfaces. Fast, because it
        shares the tables of this router.

        The server owns these addresses, and those of their networks that no other host can have: the broadcast
        addresses of IPv4, and the subnet-router anycast address of IPv6 (RFC 4291 section 2.6.1). An address that is a
        client's ``ip`` stays the client's, because client and server may run on the same machine.
        """
        machine: dict[int, set[int]] = {4: set(), 16: set()}
        for interface in interfaces:
            own, network = machine[len(interface.packed)], interface.network
            own.add(int(interface.ip))
            if network.max_prefixlen - network.prefixlen > 1:  # RFC 3021, RFC 6164
                own.add(int(network.network_address))
                if network.version == 4:
                    own.add(int(network.broadcast_address))
        router = copy(self)
        router._families = {
            address_bytes: replace(family, machine=frozenset(machine[address_bytes]))
            for address_bytes, family in self._families.items()
        }
        return router

    def from_device(self, source: bytes, destination: bytes) -> int:
        """The verdict for a packet that the server's host sends into the tunnel: a client's index, NO_ROUTE or
        ON_LINK."""
        if stays_on_link(source + destination):
            return ON_LINK
        family = self._families[len(destination)]
        client = family.clients.lookup(int.from_bytes(destination, "big"))
        if client is None:
            client = family.pinned.get(int.from_bytes(source, "big"))
        return NO_ROUTE if client is None else client

    def from_client(self, sender: int, source: bytes, destination: bytes) -> int:
        """The verdict for a packet from the client ``sender``: another client's index, TO_DEVICE, BAD_SOURCE or
        ON_LINK. ON_LINK comes before BAD_SOURCE."""
        if stays_on_link(source + destination):
            return ON_LINK
        family = self._families[len(source)]
        if not self._may_use(family, sender, int.from_bytes(source, "big")):
            return BAD_SOURCE
        target = int.from_bytes(destination, "big")
        client = family.clients.lookup_other(target, sender)
        if client is not None:
            return client
        # Rule 2 of docs/protocol.md#routing. Unlike rule 1, it may choose the sender itself.
        client = family.pinned.get(int.from_bytes(source, "big"))
        if client is not None and family.local.lookup(target) is None:
            return client
        return TO_DEVICE

    def owns(self, client: int, source: bytes) -> bool:
        """Whether the address is the client's ``ip`` or in its ``routes``, and in no longer prefix of another owner."""
        return self._families[len(source)].owners.lookup(int.from_bytes(source, "big")) == client

    def _may_use(self, family: _Family, sender: int, source: int) -> bool:
        if self._source_check == "off":
            return True
        if family.hostless.lookup(source) is not None:
            return False
        if source in family.machine:
            return family.client_addresses.get(source) == sender
        owner = family.owners.lookup(source)
        return owner == sender or (owner is None and self._source_check == "loose")
