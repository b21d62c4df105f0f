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
- An IPv6 address need not say its network (RFC 5942): DHCPv6 gives a /128, and the network that is on the link comes
  from a router's advertisement. So such an address attaches the machine to the network of the route that the kernel
  itself or a reader of advertisements has made, and that leads to the nearest address that is not this machine's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from itertools import count
from typing import Final

from ...families import IPAddress, IPNetwork, host_network, is_host, is_within, network_of
from ...text import one_line
from ..items import AttachedNetwork
from . import codec, link_codec
from .codec import KERNEL_PROTOCOL, PROTOCOL, RTN_UNICAST, AssignedAddress
from .socket import GROUP, Rtnetlink

_LOOPBACK_INDEX: Final = 1  # LOOPBACK_IFINDEX, linux/if.h
_QUESTIONS: Final = 2  # route lookups for each network
_RA_PROTOCOL: Final = 9  # RTPROT_RA, linux/rtnetlink.h: systemd-networkd, NetworkManager and dhcpcd
_USUAL_PREFIX: Final = 64  # RFC 7421: nearly every network on a link
# What a provider gets. An advertisement of more than that, such as ::/1, is an attempt to take traffic from the tunnel.
_WIDEST_PREFIX: Final = 32


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network to which an address may attach this machine.

    Attributes:
        is_local: the network is in the kernel's local table, so no route has to be looked up.
        protocol: as in `AssignedAddress`.
    """

    index: int
    network: IPNetwork
    ip: IPAddress
    is_local: bool
    protocol: int | None


def candidates(
    addresses: Iterable[AssignedAddress],
    networks: Collection[IPNetwork],
    own: int,
    within: Collection[IPNetwork] = (),
    on_bridge: Collection[tuple[int, IPAddress]] = (),
) -> list[Candidate]:
    """Return the networks of ``addresses`` that contain one of ``networks``, or that have more than one address and lie
    in one of ``within``, except those of the interface ``own``, and of ``on_bridge``, its addresses on a bridge with
    the bridge's index. Link-local addresses of IPv6 do not count either: every link has the same network of them, to
    which nothing is routed. Pure."""
    # Of two networks, one contains the other, or they do not overlap. So in sorted order, only the first network that
    # is not before an address's network has to be compared with it. There may be thousands of both.
    wanted = sorted((network.version, int(network.network_address), network.prefixlen) for network in networks)
    found: dict[tuple[int, IPNetwork], Candidate] = {}
    for address in addresses:
        if address.index == own or (address.index, address.ip) in on_bridge:
            continue
        if address.ip.version == 6 and address.ip.is_link_local:
            continue
        is_loopback = address.index == _LOOPBACK_INDEX
        alone = host_network(address.ip)
        for network in dict.fromkeys((alone, address.network)):
            at = bisect_left(wanted, (network.version, int(network.network_address), network.prefixlen))
            contains = at < len(wanted) and wanted[at][:2] <= (network.version, int(network.broadcast_address))
            if contains or (not is_host(network) and any(is_within(network, outer) for outer in within)):
                is_local = is_loopback or network == alone
                candidate = Candidate(address.index, network, address.ip, is_local, address.protocol)
                found.setdefault((address.index, network), candidate)
    return list(found.values())


def probe_address(network: IPNetwork, own: IPAddress) -> IPAddress:
    """Choose an address of the network for the route lookup; if possible, one that is not in the kernel's local
    table. The first address may be there: as IPv4's broadcast address, or as the anycast address of IPv6 routers."""
    first = network.network_address
    for address in (first + number for number in range(network.num_addresses > 2, min(network.num_addresses, 3))):
        if address != own:
            return address
    return first


async def find_attached(
    kernel: Rtnetlink,
    own: int,
    networks: Collection[IPNetwork],
    within: Collection[IPNetwork] = (),
    on_bridge: Collection[tuple[int, IPAddress]] = (),
) -> list[AttachedNetwork]:
    """As `Network.attached`. ``own``: the index of the interface whose networks do not count; ``on_bridge``: its
    addresses on a bridge, which do not count either.

    A checkpoint. Cancel-safe. Raises HostError as `Rtnetlink` does.
    """
    if not networks and not within:
        return []
    addresses = await kernel.dump(codec.dump_addresses(), codec.read_assigned)
    possible = candidates(addresses, networks, own, within, on_bridge)
    bare = _without_network(addresses, own) if any(each.version == 6 for each in (*networks, *within)) else []
    if not possible and not bare:
        return []
    found = await kernel.dump(link_codec.dump_links(), link_codec.read_attachable_link)
    links = {details.link.index: details for details in found if details.link.running and not details.in_vrf}
    advertised = await _advertised(kernel, [address for address in bare if address.index in links], addresses)
    for candidate in candidates(advertised, networks, own, within, on_bridge):
        if not is_host(candidate.network) and candidate not in possible:
            possible.append(candidate)
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


def _without_network(addresses: Iterable[AssignedAddress], own: int) -> list[AssignedAddress]:
    """The IPv6 addresses that do not say the network that they are in; of those of one /64 and one link, the first."""
    found: dict[tuple[int, IPNetwork], AssignedAddress] = {}
    for address in addresses:
        is_bare = address.ip.version == 6 and address.network == host_network(address.ip)
        if is_bare and address.index not in (own, _LOOPBACK_INDEX) and not address.ip.is_link_local:
            found.setdefault((address.index, network_of(address.ip, _USUAL_PREFIX)), address)
    return list(found.values())


def _nearest(ip: IPAddress, ours: Container[int]) -> IPAddress:
    """The nearest address that is not one of ours, which the kernel's local table has."""
    number = int(ip)
    return IPv6Address(next(number ^ distance for distance in count(1) if number ^ distance not in ours))


async def _advertised(
    kernel: Rtnetlink, bare: Sequence[AssignedAddress], every: Iterable[AssignedAddress]
) -> list[AssignedAddress]:
    """The addresses ``bare`` with the networks in which they are on their links. Those without one are left out.
    ``every``: all addresses of this machine."""
    ours = {int(address.ip) for address in every if address.ip.version == 6} if bare else set()
    found: list[AssignedAddress] = []
    for start in range(0, len(bare), GROUP):
        some = bare[start : start + GROUP]
        questions = [
            codec.lookup_route(_nearest(address.ip, ours), 0, index=address.index, match=True) for address in some
        ]
        for address, answer in zip(some, await kernel.ask_together(questions), strict=True):
            if not isinstance(answer, bytes):
                continue
            route = codec.read_route(memoryview(answer))
            is_advertised = route.plain and route.protocol in (KERNEL_PROTOCOL, _RA_PROTOCOL)
            if is_advertised and address.ip in route.network and route.network.prefixlen >= _WIDEST_PREFIX:
                found.append(replace(address, network=route.network))
    return found


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
    # A lookup with an IPv6 source may answer with another device.
    is_direct = route.type == RTN_UNICAST and route.gateway is None and route.index in (0, candidate.index)
    return is_direct and route.network.prefixlen >= candidate.network.prefixlen
