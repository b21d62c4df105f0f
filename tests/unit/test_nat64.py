"""host.net.nat64: RFC 7050, and the addresses of RFC 6052."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.host.net.nat64 import find_prefixes, synthesize

# RFC 6052 section 2.4, table 3: the prefix's bytes, and the address of 192.0.2.33.
EXAMPLES = [
    (4, "2001:db8::", "2001:db8:c000:221::"),
    (5, "2001:db8:100::", "2001:db8:1c0:2:21::"),
    (6, "2001:db8:122::", "2001:db8:122:c000:2:2100::"),
    (7, "2001:db8:122:300::", "2001:db8:122:3c0:0:221::"),
    (8, "2001:db8:122:344::", "2001:db8:122:344:c0:2:2100::"),
    (12, "2001:db8:122:344::", "2001:db8:122:344::192.0.2.33"),
    (12, "64:ff9b::", "64:ff9b::192.0.2.33"),
]


@pytest.mark.parametrize(("length", "prefix", "address"), EXAMPLES)
def test_the_addresses_of_the_rfc(length: int, prefix: str, address: str) -> None:
    packed = IPv6Address(prefix).packed[:length]
    assert synthesize(packed, "192.0.2.33") == str(IPv6Address(address))
    well_known = [synthesize(packed, f"192.0.0.{last}") for last in (170, 171)]
    assert find_prefixes(well_known) == [packed]
    assert find_prefixes(well_known[:1]) == [packed]


def test_a_prefix_that_looks_like_the_well_known_address() -> None:
    """192.0.0.170 is in it, too; only one of the two addresses agrees with that."""
    packed = IPv6Address("2001:db8:c000:aa::").packed[:12]
    assert find_prefixes([synthesize(packed, f"192.0.0.{last}") for last in (170, 171)])[0] == packed


@pytest.mark.parametrize("addresses", [[], ["2001:db8::1"], ["64:ff9b::192.0.0.172", "::"]])
def test_no_nat64(addresses: list[str]) -> None:
    assert find_prefixes(addresses) == []


@given(st.ip_addresses(v=6), st.sampled_from([4, 5, 6, 7, 8, 12]), st.ip_addresses(v=4))
def test_every_address_keeps_its_prefix_and_byte_8_is_zero(
    prefix: IPv6Address, length: int, address: IPv4Address
) -> None:
    packed = IPv6Address(synthesize(prefix.packed[:length], str(address))).packed
    assert packed[:length] == prefix.packed[:length]
    assert length == 12 or packed[8] == 0
    without_byte_8 = packed if length == 12 else packed[:8] + packed[9:]
    assert without_byte_8[length : length + 4] == address.packed
