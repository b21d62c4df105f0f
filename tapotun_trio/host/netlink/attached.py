"""Finds the networks that this machine is attached to: those of its addresses.

An address attaches the machine to its network if its link is up and has a carrier, and if the kernel does have a route
to that network through the link, without a gateway. The route may be in any table that the kernel looks up for packets
of this machine, without a source or with that address as their source, and of any metric: DHCP clients choose one. (An
address may have no such route: "noprefixroute".)

- Networks that only a VRF reaches do not count, since the tunnel's routes are not in its table.
- A link without a carrier does not count: nobody is reached there. So a bridge such as docker0 counts while a container
  runs.
- An address counts by itself too, as a network of one address, and so does whatever the loopback interface has: the
  kernel looks up its local table first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET
from typing import Final

from ...text import one_line
from ..items import AttachedNetwork
from . import codec
from .codec import PROTOCOL, RTN_UNICAST, AssignedAddress
from .socket import GROUP, Rtnetlink

_LOOPBACK_INDEX: Final = 1  # LOOPBACK_IFINDEX, linux/if.h
_HOST: Final = 32
_QUESTIONS: Final = 2  # for each network


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that an address may attach this machine to.

    Attributes:
        is_local: the kernel's local table has it, so no route needs to be looked for.
        protocol: as in `AssignedAddress`.
    """

    index: int
    network: IPv4Network
    ip: IPv4Address
    is_local: bool
    protocol: int | None


def candidates(addresses: Iterable[AssignedAddress], networks: Collection[IPv4Network], own: int) -> list[Candidate]:
    """The networks of ``addresses``, except those of the interface ``own``, that contain one of ``networks``. Pure."""
    # In this order the first of them that lies in a network is the first that is not before it, since of two networks
    # one contains the other, or they have nothing in common. There may be thousands of both.
    wanted = sorted((int(network.network_address), network.prefixlen) for network in networks)
    found: dict[tuple[int, IPv4Network], Candidate] = {}
    for address in addresses:
        if address.index == own:
            continue
        is_loopback = address.index == _LOOPBACK_INDEX
        for network in dict.fromkeys((IPv4Network(address.ip), address.network)):
            at = bisect_left(wanted, (int(network.network_address), network.prefixlen))
            if at < len(wanted) and wanted[at][0] <= int(network.broadcast_address):
                is_local = is_loopback or network == IPv4Network(address.ip)
                candidate = Candidate(address.index, network, address.ip, is_local, address.protocol)
                found.setdefault((address.index, network), candidate)
    return list(found.values())


def probe_address(network: IPv4Network, own: IPv4Address) -> IPv4Address:
    """An address of the network by which its route can be found: not one of the kernel's local table, if possible."""
    last = int(network.broadcast_address)
    for number in range(int(network.network_address) + (network.prefixlen < _HOST - 1), last + 1):
        if number != int(own):
            return IPv4Address(number)
    return network.network_address


async def find_attached(kernel: Rtnetlink, own: int, networks: Collection[IPv4Network]) -> list[AttachedNetwork]:
    """The attached networks that contain one of ``networks``, except those of the interface ``own``.

    A checkpoint. Cancel-safe. Raises HostError as `Rtnetlink` does.
    """
    if not networks:
        return []
    addresses = await kernel.dump(codec.dump_addresses(family=AF_INET), codec.read_assigned)
    possible = candidates(addresses, networks, own)
    if not possible:
        return []
    found = await kernel.dump(codec.dump_links(), codec.read_attachable_link)
    links = {details.link.index: details for details in found if details.link.running and not details.in_vrf}
    possible = [candidate for candidate in possible if candidate.index in links]
    routed = await _routed(kernel, [candidate for candidate in possible if not candidate.is_local])
    says_protocol = any(address.protocol is not None for address in addresses)
    attached: dict[AttachedNetwork, None] = {}
    for candidate in possible:
        if candidate.is_local or candidate in routed:
            details = links[candidate.index]
            # A kernel before 5.18 does not say who made an address, so there every TUN interface may be ours.
            is_tunnel = candidate.protocol == PROTOCOL or (details.bare and not says_protocol)
            attached[AttachedNetwork(candidate.network, one_line(details.link.name), is_tunnel)] = None
    return list(attached)


async def _routed(kernel: Rtnetlink, possible: list[Candidate]) -> set[Candidate]:
    """Those to whose network the kernel has a route through their link, without a gateway."""
    routed: set[Candidate] = set()
    step = GROUP // _QUESTIONS
    for start in range(0, len(possible), step):
        some = possible[start : start + step]
        questions: list[bytearray] = []
        for candidate in some:
            probe = probe_address(candidate.network, candidate.ip)
            questions += [
                codec.lookup_route(probe, 0, index=candidate.index, match=True, source=source)
                for source in (None, candidate.ip)
            ]
        answers = await kernel.ask_together(questions)
        for number, candidate in enumerate(some):
            for answer in answers[_QUESTIONS * number : _QUESTIONS * (number + 1)]:
                if isinstance(answer, bytes) and _leads_there(candidate, answer):
                    routed.add(candidate)
    return routed


def _leads_there(candidate: Candidate, answer: bytes) -> bool:
    route = codec.read_route(memoryview(answer))
    is_direct = route.type == RTN_UNICAST and route.gateway is None
    return is_direct and route.network.prefixlen >= candidate.network.prefixlen
