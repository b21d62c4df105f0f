"""routing.router against the rules of docs/protocol.md#routing, written down as they stand there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address
from typing import Final, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.families import IPAddress, IPNetwork, host_network
from tapotun_trio.routing.router import BAD_SOURCE, NO_ROUTE, ON_LINK, TO_DEVICE, ClientNetworks, Router

from ..tables import table
from ..twins import Family, both_families

Check = Literal["strict", "loose", "off"]


@dataclass(frozen=True)
class World:
    """What a router is made of."""

    addresses: tuple[IPAddress, ...]
    local: tuple[IPNetwork, ...]
    clients: tuple[ClientNetworks, ...]

    def router(self, check: Check) -> Router:
        return Router(self.addresses, self.local, self.clients, check)


def longest_prefix(address: IPAddress, owners: Iterable[tuple[int, Sequence[IPNetwork]]]) -> int | None:
    """The owner of the longest network that holds the address; of equal ones the first."""
    hits = [(-net.prefixlen, who) for who, nets in owners for net in nets if address in net]
    return min(hits, key=lambda hit: hit[0])[1] if hits else None


def networks_of(client: ClientNetworks) -> list[IPNetwork]:
    """ "every client's `ip` (as /32 or /128) and `routes`" """
    return [*map(host_network, client.addresses), *client.routes]


def pinned_to(world: World, source: IPAddress) -> int | None:
    """ "if S is one of some client's `sources`" """
    return next((i for i, client in enumerate(world.clients) if source in client.sources), None)


LINK_LOCAL: Final = IPv6Network("fe80::/10")


def on_link(source: IPAddress, destination: IPAddress) -> bool:
    """docs/protocol.md#routing: what never leaves its link."""
    return source.version == 6 and (destination.is_multicast or source in LINK_LOCAL or destination in LINK_LOCAL)


def route_from_client(world: World, sender: int, source: IPAddress, destination: IPAddress) -> int:
    """docs/protocol.md#routing, a packet from client C, step by step."""
    others = [(i, networks_of(client)) for i, client in enumerate(world.clients) if i != sender]
    hit = longest_prefix(destination, others)
    if hit is not None:
        return hit
    pinned = pinned_to(world, source)
    servers_own = destination in world.addresses
    if pinned is not None and not servers_own and not any(destination in net for net in world.local):
        return pinned
    return TO_DEVICE


def route_from_device(world: World, source: IPAddress, destination: IPAddress) -> int:
    """docs/protocol.md#routing, rules 4 to 6: 1 over all clients, then 2 without the exception, else dropped."""
    hit = longest_prefix(destination, [(i, networks_of(client)) for i, client in enumerate(world.clients)])
    if hit is None:
        hit = pinned_to(world, source)
    return NO_ROUTE if hit is None else hit


_SERVER = -1
_NOBODY = -2
MARTIANS: Final[list[IPNetwork]] = [
    IPv4Network(it) for it in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")
]
MARTIANS6: Final[list[IPNetwork]] = [
    IPv6Network(it) for it in ("::/128", "::1/128", "::ffff:0:0/96", "ff00::/8", "fe80::/10")
]


def owner_of(world: World, address: IPAddress) -> int | None:
    """An address belongs to the client, or the server, with the longest network around it; a martian to nobody."""
    martians = (_NOBODY, [*MARTIANS, *MARTIANS6])
    server = (_SERVER, [host_network(it) for it in world.addresses])
    return longest_prefix(address, [martians, server, *((i, networks_of(c)) for i, c in enumerate(world.clients))])


def may_use(world: World, check: Check, sender: int, source: IPAddress) -> bool:
    """docs/config.md#server-source_check: strict = only its own; loose = anything that nobody else owns; off."""
    owner = owner_of(world, source)
    nobodys = [*MARTIANS[:3], *MARTIANS6]
    if any(source in network for network in nobodys) and check != "off":
        return False
    return {"strict": owner == sender, "loose": owner in (sender, None), "off": True}[check]


# A small address space, so that everything overlaps with everything.
addresses4 = st.builds(
    lambda third, last: IPv4Address(bytes([10, 0, third, last])), st.integers(0, 3), st.integers(0, 3)
)
addresses6 = st.builds(
    lambda third, last: IPv6Address(0x2001_0DB8 << 96 | third << 64 | last), st.integers(0, 3), st.integers(0, 3)
)
addresses = st.one_of(addresses4, addresses6)
sources4 = addresses4 | st.sampled_from([IPv4Address(it) for it in ("0.0.0.1", "127.0.0.1", "224.0.0.5", "240.0.0.9")])
odd6 = [IPv6Address(it) for it in ("::", "::1", "::ffff:10.0.0.1", "ff02::5", "fe80::9", "febf::1", "fec0::1")]
packets = st.one_of(
    st.tuples(sources4, addresses4),
    st.tuples(*[addresses6 | st.sampled_from(odd6)] * 2),
)
networks = st.one_of(
    st.builds(
        lambda address, length: IPv4Network((address, length), strict=False),
        addresses4,
        st.sampled_from([0, 8, 22, 23, 24, 30, 31, 32]),
    ),
    st.builds(
        lambda address, length: IPv6Network((address, length), strict=False),
        addresses6,
        st.sampled_from([0, 32, 62, 63, 64, 126, 127, 128]),
    ),
)
checks = st.sampled_from(["strict", "loose", "off"])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """As config lets them pass: no address and no network is anybody's twice. `sources` may be."""
    own = draw(st.lists(addresses, min_size=1, max_size=3, unique=True))
    ips = draw(st.lists(addresses, max_size=6, unique=True).map(lambda ips: [ip for ip in ips if ip not in own]))
    taken: set[IPNetwork] = {host_network(it) for it in (*own, *ips)}
    clients = []
    while ips:
        mine = [ips.pop()]
        if ips and ips[-1].version != mine[0].version and draw(st.booleans()):
            mine.append(ips.pop())
        routes = [it for it in draw(st.lists(networks, max_size=3, unique=True)) if it not in taken]
        taken.update(routes)
        clients.append(ClientNetworks(tuple(mine), tuple(routes), tuple(draw(st.lists(addresses, max_size=2)))))
    return World(tuple(own), tuple(draw(st.lists(networks, max_size=3))), tuple(clients))


@settings(max_examples=200, deadline=None)
@given(worlds(), checks, st.lists(packets, min_size=1, max_size=8))
def test_against_the_text(world: World, check: Check, packets: list[tuple[IPAddress, IPAddress]]) -> None:
    router = world.router(check)
    for source, destination in packets:
        key = source.packed, destination.packed
        stays = on_link(source, destination)
        assert router.from_device(*key) == (ON_LINK if stays else route_from_device(world, source, destination))
        for sender in range(len(world.clients)):
            assert router.owns(sender, source.packed) == (owner_of(world, source) == sender)
            expected = (
                ON_LINK
                if stays
                else route_from_client(world, sender, source, destination)
                if may_use(world, check, sender, source)
                else BAD_SOURCE
            )
            assert router.from_client(sender, *key) == expected


# As conf/examples/server-corp.json: two clients, one with a source pinned to it.
CORP = World(
    addresses=(IPv4Address("10.50.0.1"), IPv4Address("10.50.0.254")),
    local=(IPv4Network("172.20.0.0/16"),),
    clients=(
        ClientNetworks(
            (IPv4Address("10.50.0.2"),),
            (IPv4Network("10.60.0.0/24"), IPv4Network("10.61.0.0/24")),
            (IPv4Address("192.168.100.10"),),
        ),
        ClientNetworks((IPv4Address("10.50.0.3"),), (IPv4Network("10.70.0.0/24"), IPv4Network("10.60.0.128/25"))),
    ),
)
A, B = 0, 1


def packed(*texts: str) -> tuple[bytes, ...]:
    return tuple(ip_address(text).packed for text in texts)


@table(
    "sender source destination verdict",
    ("to the other client", A, "10.50.0.2", "10.50.0.3", B),
    ("to a network behind it", A, "10.60.0.1", "10.70.0.9", B),
    ("to the longer prefix within its own", A, "10.50.0.2", "10.60.0.200", B),
    ("to its own network: not back to itself", A, "10.50.0.2", "10.61.0.1", TO_DEVICE),
    ("to its own address", A, "10.50.0.2", "10.50.0.2", TO_DEVICE),
    ("around its own longer prefix, to the shorter one", B, "10.50.0.3", "10.60.0.200", A),
    ("to the server", A, "10.50.0.2", "10.50.0.1", TO_DEVICE),
    ("to the world", A, "10.50.0.2", "1.1.1.1", TO_DEVICE),
    ("pinned source to the world", B, "192.168.100.10", "1.1.1.1", A),
    ("pinned source to the server", B, "192.168.100.10", "10.50.0.1", TO_DEVICE),
    ("pinned source to another address of the server", B, "192.168.100.10", "10.50.0.254", TO_DEVICE),
    ("pinned source to a local network", B, "192.168.100.10", "172.20.9.9", TO_DEVICE),
    ("pinned source to a client", B, "192.168.100.10", "10.61.0.1", A),
    ("pinned source from the client itself, to the letter", A, "192.168.100.10", "1.1.1.1", A),
    ("a source of the other client", A, "10.70.0.1", "1.1.1.1", BAD_SOURCE),
    ("a source of the server", A, "10.50.0.254", "10.50.0.3", BAD_SOURCE),
    ("a source that nobody has", A, "8.8.8.8", "10.50.0.3", B),
    ("the unspecified source", A, "0.0.0.0", "10.50.0.3", BAD_SOURCE),
)
def test_corp_from_a_client(sender: int, source: str, destination: str, verdict: int) -> None:
    assert CORP.router("loose").from_client(sender, *packed(source, destination)) == verdict


@table(
    "check source allowed",
    ("strict: its own address", "strict", "10.50.0.2", True),
    ("strict: its network", "strict", "10.60.0.1", True),
    ("strict: the other's longer prefix within it", "strict", "10.60.0.200", False),
    ("strict: a source pinned to it", "strict", "192.168.100.10", False),
    ("strict: nobody's", "strict", "8.8.8.8", False),
    ("loose: nobody's", "loose", "8.8.8.8", True),
    ("loose: a local network's", "loose", "172.20.0.1", True),
    ("loose: the other's", "loose", "10.50.0.3", False),
    ("loose: the server's", "loose", "10.50.0.1", False),
    ("loose: another one of the server", "loose", "10.50.0.254", False),
    ("loose: this network", "loose", "0.1.2.3", False),
    ("loose: loopback", "loose", "127.0.0.1", False),
    ("loose: the rest of loopback", "loose", "127.255.255.254", False),
    ("loose: multicast", "loose", "224.0.0.1", False),
    ("loose: the end of multicast", "loose", "239.255.255.255", False),
    ("loose: reserved", "loose", "240.0.0.1", False),
    ("loose: broadcast", "loose", "255.255.255.255", False),
    ("loose: link-local", "loose", "169.254.1.1", True),
    ("loose: beside loopback", "loose", "126.255.255.255", True),
    ("loose: beside multicast", "loose", "223.255.255.255", True),
    ("off: the other's", "off", "10.50.0.3", True),
    ("off: the server's", "off", "10.50.0.1", True),
)
def test_corp_source_check(check: Check, source: str, allowed: bool) -> None:
    verdict = CORP.router(check).from_client(A, *packed(source, "1.1.1.1"))
    assert (verdict != BAD_SOURCE) == allowed


@table(
    "source destination verdict",
    ("to a client", "10.50.0.1", "10.50.0.3", B),
    ("to the longest prefix", "10.50.0.1", "10.60.0.200", B),
    ("to the shorter prefix", "10.50.0.1", "10.60.0.1", A),
    ("pinned source", "192.168.100.10", "1.1.1.1", A),
    ("pinned source, without the exception for local networks", "192.168.100.10", "172.20.0.1", A),
    ("pinned source, to the server", "192.168.100.10", "10.50.0.1", A),
    ("nobody's", "10.50.0.1", "1.1.1.1", NO_ROUTE),
)
def test_corp_from_the_device(source: str, destination: str, verdict: int) -> None:
    assert CORP.router("loose").from_device(*packed(source, destination)) == verdict


@both_families
def test_a_source_pinned_to_two_clients_goes_to_the_first(family: Family) -> None:
    pinned = (ip_address(family("9.9.9.9")),)
    clients = [ClientNetworks((ip_address(family(f"10.0.0.{n}")),), (), pinned) for n in (2, 3)]
    router = Router([ip_address(family("10.0.0.1"))], [], clients)
    assert router.from_device(*packed(family("9.9.9.9"), family("1.1.1.1"))) == 0


@pytest.mark.parametrize("check", ["strict", "loose", "off"])
@both_families
def test_no_clients(check: Check, family: Family) -> None:
    router = Router([ip_address(family("10.0.0.1"))], [], [], check)
    assert router.from_device(*packed(family("10.0.0.1"), family("10.0.0.2"))) == NO_ROUTE


# A client that everything leads to, as an exit does, and one with addresses that only its config may make its own.
EXITS: Final = (
    ClientNetworks((IPv4Address("10.50.0.2"),), (IPv4Network("0.0.0.0/0"),)),
    ClientNetworks(
        (IPv4Address("10.50.0.3"),), tuple(map(IPv4Network, ("240.1.0.0/16", "224.0.0.0/4", "127.0.0.8/29")))
    ),
)
MACHINE: Final = [IPv4Interface(it) for it in ("203.0.113.10/24", "10.50.0.1/24", "10.50.0.3/24", "192.0.2.4/31")]


@table(
    "sender source allowed",
    ("anybody's, by the default route", A, "8.8.8.8", True),
    ("the server's", A, "10.50.0.1", False),
    ("a martian by the default route", A, "127.0.0.1", False),
    ("a martian that is another client's", A, "240.1.2.3", False),
    ("a martian that the config gives to it", B, "240.1.2.3", True),
    ("a group that the config routes to it", B, "224.0.0.5", False),
    ("a loopback address that the config routes to it", B, "127.0.0.9", False),
    ("the broadcast address", B, "255.255.255.255", False),
    ("this machine's on another interface", A, "203.0.113.10", False),
    ("this machine's, where nobody owns it", B, "203.0.113.10", False),
    ("a neighbour of this machine", A, "203.0.113.11", True),
    ("the broadcast address there", A, "203.0.113.255", False),
    ("the network address there", A, "203.0.113.0", False),
    ("the broadcast address of the tunnel", A, "10.50.0.255", False),
    ("the other end of a network without a broadcast address", A, "192.0.2.5", True),
    ("its own, where it runs on this machine", B, "10.50.0.3", True),
    ("that of a client on this machine", A, "10.50.0.3", False),
)
@pytest.mark.parametrize("check", ["strict", "loose"])
def test_sources_on_a_machine_with_other_addresses(check: Check, sender: int, source: str, allowed: bool) -> None:
    router = Router([IPv4Address("10.50.0.1")], [], EXITS, check).with_machine(MACHINE)
    assert (router.from_client(sender, *packed(source, "1.1.1.1")) != BAD_SOURCE) == allowed


def test_another_machine_s_addresses_replace_those_before() -> None:
    router = Router([IPv4Address("10.50.0.1")], [], EXITS).with_machine(MACHINE).with_machine([])
    assert router.from_client(A, *packed("203.0.113.10", "1.1.1.1")) == TO_DEVICE


# The same with IPv6, where only the differences are of interest.
DUAL: Final = World(
    addresses=(IPv4Address("10.50.0.1"), IPv6Address("2001:db8::1")),
    local=(IPv6Network("2001:db8:f::/48"),),
    clients=(
        ClientNetworks(
            (IPv4Address("10.50.0.2"), IPv6Address("2001:db8::2")),
            (IPv6Network("2001:db8:60::/48"),),
            (IPv6Address("2001:db8:9::9"),),
        ),
        ClientNetworks((IPv6Address("2001:db8::3"),), (IPv6Network("2001:db8:60:8000::/52"), IPv6Network("::/0"))),
    ),
)


@table(
    "sender source destination verdict",
    ("to the other client", A, "2001:db8::2", "2001:db8::3", B),
    ("to the longer prefix within its own", A, "2001:db8::2", "2001:db8:60:8000::1", B),
    ("by the other's default route", A, "2001:db8::2", "2001:db8:60:7fff::1", B),
    ("around its own default route", B, "2001:db8::3", "2606:4700::1", TO_DEVICE),
    ("to the server, which the default route does not have", B, "2001:db8::3", "2001:db8::1", TO_DEVICE),
    ("a pinned source", B, "2001:db8:9::9", "2606:4700::1", A),
    ("a pinned source to a local network", B, "2001:db8:9::9", "2001:db8:f::1", TO_DEVICE),
    ("a source of the other client", A, "2001:db8::3", "2606:4700::1", BAD_SOURCE),
    ("a source by the other's default route", A, "2606:4700::1", "2001:db8::3", BAD_SOURCE),
    ("a source of the server", B, "2001:db8::1", "2001:db8::2", BAD_SOURCE),
    ("the unspecified source", B, "::", "2001:db8::2", BAD_SOURCE),
    ("IPv4 in IPv6's clothes, of the client itself", A, "::ffff:10.50.0.2", "2001:db8::3", BAD_SOURCE),
    ("to everybody on the link", A, "2001:db8::2", "ff02::1", ON_LINK),
    ("to a group of the world", A, "2001:db8::2", "ff0e::1", ON_LINK),
    ("of a link-local address", A, "fe80::1", "2001:db8::3", ON_LINK),
    ("of a spoofed source to a group", A, "2001:db8::3", "ff02::1", ON_LINK),
    ("IPv4 beside it", A, "10.50.0.2", "10.50.0.1", TO_DEVICE),
)
def test_ipv6_from_a_client(sender: int, source: str, destination: str, verdict: int) -> None:
    assert DUAL.router("loose").from_client(sender, *packed(source, destination)) == verdict


@pytest.mark.parametrize("check", ["strict", "loose", "off"])
def test_no_check_lets_what_stays_on_its_link_pass(check: Check) -> None:
    for source, destination in (("fe80::1", "2001:db8::2"), ("2001:db8::3", "fe80::1"), ("2001:db8::3", "ff02::1")):
        assert DUAL.router(check).from_client(B, *packed(source, destination)) == ON_LINK
        assert DUAL.router(check).from_device(*packed(source, destination)) == ON_LINK


@table(
    "source allowed",
    ("this machine's on another interface", "2001:db8:a::10", False),
    ("a neighbour of this machine", "2001:db8:a::11", True),
    ("the last address there, which is no broadcast address", "2001:db8:a:0:ffff:ffff:ffff:ffff", True),
    ("the routers' anycast address there", "2001:db8:a::", False),
    ("the other end of a /127", "2001:db8:b::1", True),
    ("its own, where it runs on this machine", "2001:db8::3", True),
)
@pytest.mark.parametrize("check", ["strict", "loose"])
def test_ipv6_sources_on_a_machine_with_other_addresses(check: Check, source: str, allowed: bool) -> None:
    machine = [IPv6Interface(it) for it in ("2001:db8:a::10/64", "2001:db8:b::/127", "2001:db8::3/64")]
    router = DUAL.router(check).with_machine(machine)
    assert (router.from_client(B, *packed(source, "2001:db8::2")) != BAD_SOURCE) == allowed
