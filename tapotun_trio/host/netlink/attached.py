"""Finds the networks that this machine is attached to, which are the networks of its addresses.

An address attaches the machine to its network under two conditions. Its link is up and has a carrier. And the kernel
has a route to that network through the link, without a gateway. (An address with the flag "noprefixroute" may have no
such route.) The route may have any metric, since DHCP clients choose one. It may be in any table that the kernel looks
up for packets of this machine, either without a source or with that address as their source.

- Networks that are only reached through a VRF do not count, since the tunnel's routes are not in the VRF's table.
- A link without a carrier does not count, because no host can be reached through it. So a bridge such as docker0 counts
  only while a container runs.
- Each address also counts as a network of its own, of one address. The networks of the loopback interface count too.
  The kernel's local table has both, and is looked up first.
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
_QUESTIONS: Final = 2  # route lookups for each network


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network to which an address may attach this machine.

    Attributes:
        is_local: the network is in the kernel's local table, so no route has to be looked up.
        protocol: as in `AssignedAddress`.
    """

    index: int
    network: IPv4Network
    ip: IPv4Address
    is_local: bool
    protocol: int | None


def candidates(
    addresses: Iterable[AssignedAddress],
    networks: Collection[IPv4Network],
    own: int,
    within: Collection[IPv4Network] = (),
) -> list[Candidate]:
    """Return the networks of ``addresses`` that contain one of ``networks``, or that have more than one address and lie
    in one of ``within``, except those of the interface ``own``. Pure."""
    # Of two networks, one contains the other, or they do not overlap. So in sorted order, only the first network that
    # is not before an address's network has to be compared with it. There may be thousands of both.
    wanted = sorted((int(network.network_address), network.prefixlen) for network in networks)
    found: dict[tuple[int, IPv4Network], Candidate] = {}
    for address in addresses:
        if address.index == own:
            continue
        is_loopback = address.index == _LOOPBACK_INDEX
        for network in dict.fromkeys((IPv4Network(address.ip), address.network)):
            at = bisect_left(wanted, (int(network.network_address), network.prefixlen))
            contains = at < len(wanted) and wanted[at][0] <= int(network.broadcast_address)
            if contains or (network.prefixlen < _HOST and any(map(network.subnet_of, within))):
                is_local = is_loopback or network == IPv4Network(address.ip)
                candidate = Candidate(address.index, network, address.ip, is_local, address.protocol)
                found.setdefault((address.index, network), candidate)
    return list(found.values())


def probe_address(network: IPv4Network, own: IPv4Address) -> IPv4Address:
    """Choose an address of the network for the route lookup; if possible, one that is not in the kernel's local
    table."""
    last = int(network.broadcast_address)
    for number in range(int(network.network_address) + (network.prefixlen < _HOST - 1), last + 1):
        if number != int(own):
            return IPv4Address(number)
    return network.network_address


async def find_attached(
    kernel: Rtnetlink, own: int, networks: Collection[IPv4Network], within: Collection[IPv4Network] = ()
) -> list[AttachedNetwork]:
    """As `Network.attached`. ``own``: the index of the interface whose networks do not count.

    A checkpoint. Cancel-safe. Raises HostError as `Rtnetlink` does.
    """
    if not networks and not within:
        return []
    addresses = await kernel.dump(codec.dump_addresses(family=AF_INET), codec.read_assigned)
    possible = candidates(addresses, networks, own, within)
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
            # Before Linux 5.18 the kernel does not report who added an address, so any TUN interface may be ours.
            is_tunnel = candidate.protocol == PROTOCOL or (details.bare and not says_protocol)
            attached[AttachedNetwork(candidate.network, one_line(details.link.name), is_tunnel)] = None
    return list(attached)


async def _routed(kernel: Rtnetlink, possible: list[Candidate]) -> set[Candidate]:
    """Return the candidates that the kernel routes through their own link, without a gateway."""
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
