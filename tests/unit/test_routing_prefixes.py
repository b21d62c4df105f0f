"""routing.prefixes against a linear scan."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.families import host_network
from tapotun_trio.routing.prefixes import PrefixTable

Rules = list[tuple[IPv4Network, int]]


def linear_scan(rules: Rules, address: IPv4Address) -> int | None:
    """The value of the longest network that holds the address; of equal ones the first."""
    longest, found = -1, None
    for network, value in rules:
        if address in network and network.prefixlen > longest:
            longest, found = network.prefixlen, value
    return found


# Few addresses and all lengths, so that networks nest and lookups hit.
addresses = st.builds(
    lambda parts: IPv4Address(bytes(parts)), st.tuples(*[st.sampled_from([0, 10, 127, 128, 255])] * 4)
)
networks = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    addresses,
    st.sampled_from([0, 1, 7, 8, 9, 16, 23, 24, 25, 31, 32]) | st.integers(0, 32),
)
values = st.integers(-1, 3)  # 0 and -1 are values like any other
rule_lists = st.lists(st.tuples(networks, values), max_size=25)


@settings(max_examples=100, deadline=None)
@given(rule_lists, st.lists(addresses, min_size=1, max_size=10))
def test_lookup(rules: Rules, wanted: list[IPv4Address]) -> None:
    table = PrefixTable(rules)
    for address in wanted:
        assert table.lookup(int(address)) == linear_scan(rules, address)


@settings(max_examples=100, deadline=None)
@given(rule_lists, values, st.lists(addresses, min_size=1, max_size=10))
@example([(IPv4Network("10.0.0.0/8"), 0), (IPv4Network("10.0.0.0/8"), 1)], 0, [IPv4Address("10.0.0.1")])
def test_lookup_other(rules: Rules, unwanted: int, wanted: list[IPv4Address]) -> None:
    """ "over all entries but those of ``unwanted``": also where that one has the same network."""
    table = PrefixTable(rules)
    others = [(network, value) for network, value in rules if value != unwanted]
    for address in wanted:
        assert table.lookup_other(int(address), unwanted) == linear_scan(others, address)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(networks, values, max_size=25),
    values,
    st.lists(addresses, min_size=1, max_size=10),
)
def test_lookup_other_where_no_network_is_given_twice(
    rules: dict[IPv4Network, int], unwanted: int, wanted: list[IPv4Address]
) -> None:
    table = PrefixTable(rules.items())
    others = [(network, value) for network, value in rules.items() if value != unwanted]
    for address in wanted:
        assert table.lookup_other(int(address), unwanted) == linear_scan(others, address)


@pytest.mark.parametrize("address", ["0.0.0.0", "127.255.255.255", "128.0.0.0", "255.255.255.255"])
def test_the_default_route_and_the_ends_of_the_address_space(address: str) -> None:
    everything = PrefixTable([(IPv4Network("0.0.0.0/0"), "default")])
    assert everything.lookup(int(IPv4Address(address))) == "default"
    assert everything.lookup_other(int(IPv4Address(address)), "default") is None
    one = PrefixTable([(host_network(IPv4Address(address)), "host")])
    assert one.lookup(int(IPv4Address(address))) == "host"
    assert one.lookup(int(IPv4Address("1.2.3.4"))) is None


def test_an_empty_table() -> None:
    table: PrefixTable[int] = PrefixTable([])
    assert table.lookup(0) is None
    assert table.lookup_other(0, 1) is None
