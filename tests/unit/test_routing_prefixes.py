"""routing.prefixes against a linear scan."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.families import IPAddress, IPNetwork, host_network, network_of
from tapotun_trio.routing.prefixes import PrefixTable

Rules = list[tuple[IPNetwork, int]]


def linear_scan(rules: Rules, address: IPAddress) -> int | None:
    """The value of the longest network that holds the address; of equal ones the first."""
    longest, found = -1, None
    for network, value in rules:
        if address in network and network.prefixlen > longest:
            longest, found = network.prefixlen, value
    return found


# Few addresses and all lengths, so that networks nest and lookups hit. A table has one family.
def addresses_of(size_bytes: int) -> st.SearchStrategy[IPAddress]:
    parts = st.tuples(*[st.sampled_from([0, 10, 127, 128, 255])] * 4)
    # Those of IPv6 differ at both ends, and in the middle.
    return st.builds(lambda four: ip_address(bytes(four for four in four for _ in range(size_bytes // 4))), parts)


def networks_of(size_bytes: int) -> st.SearchStrategy[IPNetwork]:
    bits = 8 * size_bytes
    lengths = st.sampled_from([0, 1, 7, 8, 9, 16, 23, 24, 25, 31, 32, bits - 1, bits]) | st.integers(0, bits)
    return st.builds(network_of, addresses_of(size_bytes), lengths)


values = st.integers(-1, 3)  # 0 and -1 are values like any other
family = st.sampled_from([4, 16])
rules_and_addresses = family.flatmap(
    lambda size: st.tuples(
        st.lists(st.tuples(networks_of(size), values), max_size=25),
        st.lists(addresses_of(size), min_size=1, max_size=10),
    )
)


@settings(max_examples=200, deadline=None)
@given(rules_and_addresses)
def test_lookup(case: tuple[Rules, list[IPAddress]]) -> None:
    rules, wanted = case
    table = PrefixTable(rules)
    for address in wanted:
        assert table.lookup(int(address)) == linear_scan(rules, address)


@settings(max_examples=200, deadline=None)
@given(rules_and_addresses, values)
@example(([(IPv4Network("10.0.0.0/8"), 0), (IPv4Network("10.0.0.0/8"), 1)], [IPv4Address("10.0.0.1")]), 0)
@example(([(IPv6Network("fd00::/8"), 0), (IPv6Network("fd00::/8"), 1)], [IPv6Address("fd00::1")]), 0)
def test_lookup_other(case: tuple[Rules, list[IPAddress]], unwanted: int) -> None:
    """ "over all entries but those of ``unwanted``": also where that one has the same network."""
    rules, wanted = case
    table = PrefixTable(rules)
    others = [(network, value) for network, value in rules if value != unwanted]
    for address in wanted:
        assert table.lookup_other(int(address), unwanted) == linear_scan(others, address)


@settings(max_examples=200, deadline=None)
@given(rules_and_addresses, values)
def test_lookup_other_where_no_network_is_given_twice(case: tuple[Rules, list[IPAddress]], unwanted: int) -> None:
    rules, wanted = dict(case[0]), case[1]
    table = PrefixTable(rules.items())
    others = [(network, value) for network, value in rules.items() if value != unwanted]
    for address in wanted:
        assert table.lookup_other(int(address), unwanted) == linear_scan(others, address)


@pytest.mark.parametrize("text", ["0.0.0.0", "127.255.255.255", "128.0.0.0", "255.255.255.255", "::", "7f::", "ff::ff"])
def test_the_default_route_and_the_ends_of_the_address_space(text: str) -> None:
    address = ip_address(text)
    everything = PrefixTable([(network_of(address, 0), "default")])
    assert everything.lookup(int(address)) == "default"
    assert everything.lookup_other(int(address), "default") is None
    one = PrefixTable([(host_network(address), "host")])
    assert one.lookup(int(address)) == "host"
    assert one.lookup(int(IPv4Address("1.2.3.4"))) is None


def test_an_empty_table() -> None:
    table: PrefixTable[int] = PrefixTable([])
    assert table.lookup(0) is None
    assert table.lookup_other(0, 1) is None
