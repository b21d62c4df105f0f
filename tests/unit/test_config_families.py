"""IPv6 in the config, and both families in one server.

`test_config_errors` and `test_config_load` have what the families have in common.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network, ip_address
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.config.diagnostics import InvalidValue
from tapotun_trio.config.model import ServerConfig
from tapotun_trio.config.parsers import parse_address, parse_network, parse_server_net, reserved_address_kind
from tapotun_trio.families import IPAddress, host_network, with_prefix
from tapotun_trio.martians import is_hostless

from .test_config_load import Json, accept_server, allowed, load_entries, server, sha1
from .test_config_properties import patient

NET4: Final = "10.10.0.1/24"
NET6: Final = "fd00:10::1/64"
BOTH: Final = [NET4, NET6]
ADD_NET: Final = 'add one to "net", as in ["10.10.0.1/24", "fd00:10::1/64"]'


def dual(**changes: Any) -> Json:
    """A dual-stack server with these changes; its client has both families."""
    return server(**{"net": BOTH, "clients": [allowed(ip=["10.10.0.2", "fd00:10::2"])], **changes})


def six(**changes: Any) -> Json:
    """A server of IPv6 only with these changes."""
    return server(**{"net": NET6, "clients": [allowed(ip="fd00:10::2")], **changes})


def with_client(**changes: Any) -> Json:
    """A dual-stack server whose client has these changes."""
    return dual(clients=[allowed(**{"ip": ["10.10.0.2", "fd00:10::2"], **changes})])


# ------------------------------------------------------------------ what is accepted


def test_a_server_of_both_families() -> None:
    found = accept_server(
        net=[NET6, NET4],  # IPv4 comes first, whatever the order in the file
        listen=["192.0.2.1", "2001:db8::1"],
        mtu=1280,
        ips=["fd00:10::9", "10.10.0.9"],
        routes=["fd00:20::/64", "172.20.0.0/16", "ff00::/8"],
        push_routes=["fd00:20::/64", "172.20.0.0/16"],
        push_dns=["FD00:20:0::53", "172.20.0.53"],
        clients=[
            allowed(
                ip=["fd00:10::2", "10.10.0.2"],
                routes=["fd00:60::/64", "10.60.0.0/24"],
                sources=["2001:db8::5", "192.168.100.10"],
            ),
            allowed(token=sha1("b"), ip="fd00:10::3"),
            allowed(token=sha1("c"), ip="10.10.0.4"),
        ],
    )
    assert found.nets == (IPv4Interface(NET4), IPv6Interface(NET6))
    assert (found.net4, found.net6) == found.nets
    assert list(map(str, found.ips)) == ["fd00:10::9", "10.10.0.9"]
    assert list(map(str, found.routes)) == ["fd00:20::/64", "172.20.0.0/16", "ff00::/8"]
    assert list(map(str, found.push_routes)) == ["fd00:20::/64", "172.20.0.0/16"]
    assert list(map(str, found.push_dns)) == ["fd00:20::53", "172.20.0.53"]
    first, second, third = found.clients
    assert (first.ipv4, first.ipv6) == first.addresses == (IPv4Address("10.10.0.2"), IPv6Address("fd00:10::2"))
    assert list(map(str, first.routes)) == ["fd00:60::/64", "10.60.0.0/24"]
    assert list(map(str, first.sources)) == ["2001:db8::5", "192.168.100.10"]
    assert (second.addresses, second.name) == ((IPv6Address("fd00:10::3"),), "fd00:10::3")
    assert (third.addresses, third.name) == ((IPv4Address("10.10.0.4"),), "10.10.0.4")
    assert first.name == "10.10.0.2"


@pytest.mark.parametrize("net", [NET6, [NET6]])
def test_a_server_of_ipv6_only(net: object) -> None:
    found = accept_server(net=net, clients=[allowed(ip=["fd00:10::2"])])
    assert found.nets == (IPv6Interface(NET6),)
    assert (found.net4, found.own_addresses) == (None, (IPv6Address("fd00:10::1"),))
    assert found.mtu == 1500


@pytest.mark.parametrize(
    "net", ["2001:db8::1/32", "fd00::1/126", "fd00::/127", "fd00::1/127", "fd00::7/128", "FD00::0:1/64"]
)
def test_nets(net: str) -> None:
    config, _ = load_entries(server(net=net, clients=[]))
    assert config is not None
    (interface,) = config.interfaces
    assert isinstance(interface, ServerConfig)
    assert interface.nets == (IPv6Interface(net),)


def test_both_hosts_of_a_127_can_be_used() -> None:
    assert accept_server(net="fd00::/127", clients=[allowed(ip="fd00::1")]).clients[0].ipv6 == IPv6Address("fd00::1")


def test_a_default_route_of_each_family() -> None:
    found = accept_server(
        net=BOTH, install_routes=False, clients=[allowed(ip=["10.10.0.2", "fd00:10::2"], routes=["0.0.0.0/0", "::/0"])]
    )
    assert found.clients[0].routes[1] == IPv6Network("::/0")


@pytest.mark.parametrize(
    ("route", "peers"),
    [("0.0.0.0/0", 1), ("0.0.0.0/1", 1), ("192.0.2.0/24", 1), ("::/0", 1), ("::/0", 2), ("2001:db8::/64", 2)],
)
def test_what_only_extended_clients_get_may_cover_the_server(route: str, peers: int) -> None:
    """They keep their own connections out of it, and base clients are not pushed these."""
    config, texts = load_entries(dual(push_routes=[route], peers=peers, listen=["192.0.2.1", "2001:db8::1"]))
    assert config is not None
    assert texts == []


def test_servers_of_different_families_do_not_conflict() -> None:
    """The networks of the two are compared with those of their family only."""
    assert load_entries(server(), six(name="b", port=81))[1] == []
    assert load_entries(six(), server(name="b", port=81))[1] == []


def test_255_networks_of_each_family_can_be_pushed() -> None:
    pushed = [f"172.16.{n}.0/24" for n in range(255)] + [f"fd01:{n:x}::/32" for n in range(1, 256)]
    assert list(map(str, accept_server(net=BOTH, push_routes=pushed).push_routes)) == pushed


# ------------------------------------------------------------------ findings

IPV6_ONE_FINDING: Final[list[tuple[Sequence[object], str]]] = [
    # --- at most one of each family ---
    ([dual(net=["10.11.0.1/24", NET4], clients=[allowed(ip="10.11.0.2")])], '[0].net[1]: "10.10.0.1/24" is IPv4, and '
     "so is [0].net[0]; write one network of each family"),
    ([six(net=[NET6, "fd00:11::1/64"])], '[0].net[1]: "fd00:11::1/64" is IPv6, and so is [0].net[0]; write one network '
     "of each family"),
    ([with_client(ip=["fd00:10::2", "fd00:10::2"])], '[0].clients[0].ip[1]: "fd00:10::2" is IPv6, and so is '
     "[0].clients[0].ip[0]; write one address of each family"),
    # --- a family that is not carried ---
    ([server(clients=[allowed(ip="fd00:10::2")])], f'[0].clients[0].ip: "fd00:10::2" is IPv6, and "net" has no IPv6 '
     f"network; {ADD_NET}"),
    ([six(clients=[allowed(ip=["10.10.0.2", "fd00:10::2"])])], f'[0].clients[0].ip[0]: "10.10.0.2" is IPv4, and "net" '
     f"has no IPv4 network; {ADD_NET}"),
    *(
        ([server(**{field: [value]})], f'[0].{field}[0]: "{value}" is IPv6, and "net" has no IPv6 network; {ADD_NET}')
        for field, value in (("ips", "fd00:10::9"), ("routes", "fd00:20::/64"), ("push_routes", "fd00:20::/64"),
                             ("push_dns", "fd00:10::1"))
    ),
    *(
        ([six(**{field: [value]})], f'[0].{field}[0]: "{value}" is IPv4, and "net" has no IPv4 network; {ADD_NET}')
        for field, value in (("ips", "10.10.0.9"), ("routes", "172.20.0.0/16"), ("push_routes", "172.20.0.0/16"),
                             ("push_dns", "10.10.0.1"))
    ),
    *(
        ([server(clients=[allowed(**{field: [value]})])], f'[0].clients[0].{field}[0]: "{value}" is IPv6, and "net" '
         f"has no IPv6 network; {ADD_NET}")
        for field, value in (("routes", "fd00:60::/64"), ("sources", "fd00:60::1"))
    ),
    *(
        ([with_client(ip=ip, **{field: [value]})], f'[0].clients[0].{field}[0]: "{value}" is {family}, and this client '
         f'has no {family} address; add one to its "ip"')
        for field, ip, family, value in (
            ("routes", "10.10.0.2", "IPv6", "fd00:60::/64"), ("sources", "10.10.0.2", "IPv6", "fd00:60::1"),
            ("routes", "fd00:10::2", "IPv4", "10.60.0.0/24"), ("sources", "fd00:10::2", "IPv4", "10.60.0.1"),
        )
    ),
    # --- each address in the net of its family ---
    ([with_client(ip=["10.10.0.2", "fd00:11::2"])], '[0].clients[0].ip[1]: "fd00:11::2" is outside net fd00:10::/64; '
     "choose an address in it"),
    ([with_client(ip=["10.11.0.2", "fd00:10::2"])], '[0].clients[0].ip[0]: "10.11.0.2" is outside net 10.10.0.0/24; '
     "choose an address in it"),
    ([dual(ips=["fd00:11::9"])], 'warning: [0].ips[0]: "fd00:11::9" is outside net fd00:10::/64, and clients are given '
     "no route to it; choose an address in it, or route it on the clients"),
    # --- in lists, the element is named, and a client may repeat its own address as a route ---
    ([dual(clients=[allowed(), allowed(token=sha1("b"), ip=["10.10.0.3", "fd00:10::1"])])], '[0].clients[1].ip[1]: '
     '"fd00:10::1" is already used at [0].net[1]; choose another address'),
    ([dual(clients=[allowed(ip=["10.10.0.2", "fd00:10::2"]), allowed(token=sha1("b"), ip="fd00:10::3",
                                                                     routes=["fd00:10::2/128"])])],
     '[0].clients[1].routes[0]: "fd00:10::2/128" is already used at [0].clients[0].ip[1]; leave it with one'),
    ([with_client(sources=["fd00:10::2"])], 'warning: [0].clients[0].sources[0]: "fd00:10::2" is this client\'s own '
     "address, so its packets would come back to it; remove it"),
    ([dual(clients=[allowed(ip=["fd00:10::2", "10.10.0.2"]), allowed(token=sha1("b"), ip="10.10.0.3",
                                                                     name="10.10.0.2")])],
     '[0].clients[1].name: "10.10.0.2" already names the client of [0].clients[0].ip[1]; choose another'),
    ([dual(listen=["0.0.0.0", "fd00:10::8"])], 'warning: [0].net[1]: "fd00:10::1/64" covers fd00:10::8, on which '
     "this server listens: it routes the clients' own connections into the tunnel; write only networks without it; "
     "extended clients add a host route around the tunnel, base clients lose their connection"),
    # --- mtu (RFC 8200 section 5) ---
    ([six(mtu=1279)], '[0].mtu: 1279 is too small for IPv6, which needs 1280 (RFC 8200); write at least 1280, or '
     'remove the IPv6 network from "net"'),
    ([dual(mtu=576)], '[0].mtu: 576 is too small for IPv6, which needs 1280 (RFC 8200); write at least 1280, or remove '
     'the IPv6 network from "net"'),
    # --- net ---
    ([server(net="fd00::1", clients=[])], '[0].net: "fd00::1" has no prefix length; write it, as in "fd00::1/64"'),
    ([six(net="fd00:10::/64")], '[0].net: "fd00:10::/64" is the subnet-router anycast address of fd00:10::/64; write '
     'the server\'s own address, such as "fd00:10::1/64"'),
    *(
        ([six(net=net)], f'[0].net: "{net}" has no prefix length from 0 to 128; write one such as "fd00:10::1/64"')
        for net in ("fd00:10::1/129", "fd00:10::1/", "fd00:10::1/-1", "fd00:10::1/ 64", "fd00:10::1/064",
                    "fd00:10::1/1000", "fd00:10::1/٦٤", "fd00:10::1/255.255.255.0", "fd00:10::1/ffff::1")
    ),
    ([six(net="fd00:10::1/ffff:ffff:ffff:ffff::")], '[0].net: "fd00:10::1/ffff:ffff:ffff:ffff::" has a netmask; write '
     'its prefix length: "fd00:10::1/64"'),
    *(
        ([six(net=net)], f'[0].net: "{net}" is not an address with prefix length; write one such as "10.10.0.1/24" or '
         '"fd00:10::1/64"')
        for net in ("fd00:10:1/64", "fd00:::1/64", "fd00:10::10000/64", "fd00::1::2/64", "fd00::1%/64", "[fd00:/64")
    ),
    ([six(net="[fd00:10::1]/64")], '[0].net: "[fd00:10::1]/64" has brackets; write "fd00:10::1/64"'),
    ([six(net="fd00:10::1/0")], '[0].net: "fd00:10::1/0" would send all traffic of this machine into the tunnel; write '
     'the prefix length of the tunnel\'s network, such as "fd00:10::1/64"'),
    *(
        ([six(net=f"{address}/64")], f'[0].net: "{address}/64" {problem}')
        for address, problem in {
            "::1": "is a loopback address; choose a unicast address such as fd00:10::2",
            "::": "is the unspecified address; choose a unicast address such as fd00:10::2",
            "ff02::1": "is a multicast address; choose a unicast address such as fd00:10::2",
            "fe80::1": "is link-local, and every link has such addresses; choose an address such as fd00:10::2",
            "fe80::1%eth0": "has a zone; write an address of wider scope",
            "fd00:10::1%eth0": "has a zone; leave out the % and what follows it",
            "::ffff:10.10.0.1": 'is an IPv4-mapped IPv6 address; write "10.10.0.1/24"',
        }.items()
    ),
    ([six(net="::ffff:10.10.0.1/112")], '[0].net: "::ffff:10.10.0.1/112" is an IPv4-mapped IPv6 address; write '
     '"10.10.0.1/16"'),
    # --- addresses ---
    *(
        ([dual(**{field: [address]})], f'[0].{field}[0]: "{address}" {problem}')
        for field in ("ips", "push_dns")
        for address, problem in {
            "::1": "is a loopback address; choose a unicast address such as fd00:10::2",
            "::": "is the unspecified address; choose a unicast address such as fd00:10::2",
            "ff0e::1": "is a multicast address; choose a unicast address such as fd00:10::2",
            "fe80::1": "is link-local, and every link has such addresses; choose an address such as fd00:10::2",
            "fe80::1%eth0": "has a zone; write an address of wider scope",
            "fd00:10::9%eth0": "has a zone; leave out the % and what follows it",
            "::ffff:10.10.0.9": 'is an IPv4-mapped IPv6 address; write "10.10.0.9"',
            "[fd00:10::9]": 'has brackets; write "fd00:10::9"',
            "fd00:10::9/64": 'has a prefix length where an address belongs; write "fd00:10::9"',
            "fd00:10::9 ": 'has white space at its ends; write "fd00:10::9"',
            "fd00:10:9": 'is not an IP address; write one such as "10.10.0.2" or "fd00:10::2"',
        }.items()
    ),
    ([with_client(ip=["10.10.0.2", "ff02::1"])], '[0].clients[0].ip[1]: "ff02::1" is a multicast address; choose a '
     "unicast address such as fd00:10::2"),
    ([with_client(sources=["fe80::1"])], '[0].clients[0].sources[0]: "fe80::1" is link-local, and every link has such '
     "addresses; choose an address such as fd00:10::2"),
    ([six(net="fd00:10::1/126", ips=["fd00:10::"])], '[0].ips[0]: "fd00:10::" is the subnet-router anycast address of '
     "fd00:10::/126; choose another address"),
    # --- networks ---
    *(
        ([with_client(routes=[network])], f'[0].clients[0].routes[0]: "{network}" {problem}')
        for network, problem in {
            "fd00:60::": 'has no prefix length; write it, as in "fd00:60::/128"',
            "fd00:60::/": 'has no prefix length from 0 to 128; write one such as "fd00:60::/64"',
            "fd00:60::1%eth0/128": "has a zone; leave out the % and what follows it",
            "fe80::%eth0/64": "has a zone; write an address of wider scope",
            "::ffff:10.60.0.0/120": 'is an IPv4-mapped IPv6 address; write "10.60.0.0/24"',
            "::ffff:10.60.0.0/64": 'is an IPv4-mapped IPv6 address; write "10.60.0.0/32"',
            "::ffff:10.60.0.9/120": 'is an IPv4-mapped IPv6 address; write "10.60.0.0/24"',
            "[fd00:60::]/64": 'has brackets; write "fd00:60::/64"',
            "::/128": "is the unspecified address, where no host can be; remove it",
            "::1/128": "is the loopback address, where no host can be; remove it",
            "fe80::/10": "is link-local (fe80::/10), where no host can be; remove it",
            "ff0e::/16": "is multicast (ff00::/8), where no host can be; remove it",
        }.items()
    ),
    *(
        ([dual(push_routes=[network])], f'[0].push_routes[0]: "{network}" is {kind}, where no packet is ever routed, '
         "and clients refuse it; remove it")
        for network, kind in {
            "::/128": "the unspecified address",
            "::1/128": "the loopback address",
            "fe80::/64": "link-local (fe80::/10)",
            "ff00::/8": "multicast (ff00::/8)",
        }.items()
    ),
    *(
        ([dual(routes=[network])], f'[0].routes[0]: "{network}" is {kind}, where no packet is ever routed; remove it')
        for network, kind in (("fe80::/10", "link-local (fe80::/10)"), ("::/128", "the unspecified address"))
    ),
    ([with_client(routes=["::/0"])], 'warning: [0].clients[0].routes[0]: "::/0" sends the traffic of this machine '
     'itself to this client too; set "install_routes": false to forward only what comes through the tunnel'),
    # --- two servers ---
    ([dual(), dual(name="b", port=81, net=["10.11.0.1/24", "fd00:10::9/64"], clients=[allowed(ip="10.11.0.2")])],
     '[1].net[1]: "fd00:10::/64" overlaps the network fd00:10::/64 of [0].net[1]; give each server a network of its '
     "own"),
    ([dual(), six(name="b", port=81, net="fd00::1/16", clients=[allowed(ip="fd00::2")])], 'warning: [0].net[1]: '
     '"fd00:10::/64" overlaps the network fd00::/16 of [1].net; give each server a network of its own'),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "line"), IPV6_ONE_FINDING, ids=[line[:60] for _, line in IPV6_ONE_FINDING])
def test_one_finding(entries: Sequence[object], line: str) -> None:
    config, texts = load_entries(*entries)
    assert [text for text in texts if not text.endswith("so none can connect; add one")] == [f"F: {line}"]
    assert (config is None) == (not line.startswith("warning: "))


def test_an_invalid_network_is_not_missed_by_what_lies_in_it() -> None:
    """One finding each, because nobody knows which family the invalid text was meant to be."""
    clients = [allowed(ip=["10.10.0.2", "fd00:10::2"], routes=["fd00:60::/64"])]
    for wrong in ("fd00:10::1", "fd00:10::1/200", 5):
        for net in ([NET4, wrong], wrong):
            config, texts = load_entries(server(net=net, ips=["fd00:10::9"], clients=clients))
            assert config is None
            assert len(texts) == 1, texts
    clients = [allowed(ip=["10.10.0.2", "fd00:10:2"], routes=["fd00:60::/64"], sources=["fd00:60::1"])]
    assert len(load_entries(dual(clients=clients))[1]) == 1


def test_a_route_of_a_client_may_repeat_an_address_of_it() -> None:
    found = accept_server(
        net=BOTH, clients=[allowed(ip=["10.10.0.2", "fd00:10::2"], routes=["10.10.0.2/32", "fd00:10::2/128"])]
    )
    assert len(found.clients[0].routes) == 2


# ------------------------------------------------------------------ the parsers, for any text

# The edges of what is refused are drawn often.
SPECIAL: Final = (
    *("0.0.0.0", "0.255.255.255", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.0.1", "10.0.0.0"),
    *("::", "::1", "::2", "::ffff:0:0", "::ffff:10.0.0.1", "::fffe:0:0", "fe80::1", "fec0::1", "ff02::1", "fd00::"),
)
ADDRESSES: Final[st.SearchStrategy[IPAddress]] = st.ip_addresses() | st.sampled_from(SPECIAL).map(ip_address)
WITH_PREFIX: Final = ADDRESSES.flatmap(
    lambda address: st.tuples(st.just(address), st.integers(0, address.max_prefixlen))
)
WRITTEN: Final[list[Callable[[IPAddress], str]]] = [str, lambda a: a.exploded, lambda a: str(a).upper()]


@patient
@given(ADDRESSES, st.sampled_from(WRITTEN))
def test_an_address_is_accepted_if_a_host_can_have_it(address: IPAddress, written: Callable[[IPAddress], str]) -> None:
    try:
        assert parse_address(written(address)) == address
    except InvalidValue:
        assert is_hostless(host_network(address))
    else:
        assert not is_hostless(host_network(address))


@patient
@given(WITH_PREFIX, st.sampled_from(WRITTEN))
def test_a_network_is_accepted_if_it_has_no_host_bits(
    value: tuple[IPAddress, int], written: Callable[[IPAddress], str]
) -> None:
    address, prefix = value
    network = with_prefix(address, prefix).network
    mapped = address in IPv6Network("::ffff:0:0/96")
    try:
        assert parse_network(f"{written(address)}/{prefix}") == network
    except InvalidValue as exc:
        assert mapped or network.network_address != address
        suggested = re.findall(r'"([^"]+)"', exc.remedy)
        assert suggested
        if not mapped:
            assert [parse_network(text) for text in suggested] == [network, host_network(address)]
    else:
        assert network.network_address == address
        assert not mapped


@patient
@given(WITH_PREFIX)
def test_a_net_is_accepted_if_its_address_can_be_used(value: tuple[IPAddress, int]) -> None:
    address, prefix = value
    net = with_prefix(address, prefix)
    unusable = (
        not prefix or is_hostless(host_network(address)) or reserved_address_kind(address, net.network) is not None
    )
    try:
        assert parse_server_net(str(net)) == net
    except InvalidValue:
        assert unusable
    else:
        assert not unusable


@patient
@given(WITH_PREFIX)
def test_no_host_has_the_ends_of_a_network(value: tuple[IPAddress, int]) -> None:
    """The oracle counts: hosts() of the standard library leaves out the same addresses."""
    address, _ = value
    for prefix in range(address.max_prefixlen - 3, address.max_prefixlen + 1):
        network = with_prefix(address, prefix).network
        assert [each for each in network if reserved_address_kind(each, network) is None] == list(network.hosts())


TEXTS: Final = st.text(alphabet="0123456789abcdfF:./[]% \n\u0664x", max_size=24) | st.text(max_size=12)


@patient
@given(WITH_PREFIX.map(lambda value: f"{value[0]}/{value[1]}") | TEXTS, TEXTS, st.integers(0, 24))
def test_whatever_is_accepted_means_the_same_when_written_again(text: str, inserted: str, at: int) -> None:
    parsers: list[Callable[[str], object]] = [parse_address, parse_network, parse_server_net]
    for candidate in (text, text[:at] + inserted + text[at:], text.partition("/")[0]):
        for parser in parsers:
            try:
                found = parser(candidate)
            except InvalidValue:
                continue
            assert parser(str(found)) == found
