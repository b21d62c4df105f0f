"""Which networks no packet may be routed to."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from tapotun_trio.martians import is_hostless, martian_kind

from ..tables import table


@table(
    "network kind",
    ("a default route", "0.0.0.0/0", None),
    ("half of one", "0.0.0.0/1", None),
    ("the other half", "128.0.0.0/1", None),
    ("a quarter that has multicast in it", "192.0.0.0/2", None),
    ("wider than this network", "0.0.0.0/7", None),
    ("this network", "0.0.0.0/8", "this network"),
    ("the unspecified address", "0.0.0.0/32", "this network"),
    ("beside it", "1.0.0.0/8", None),
    ("wider than loopback", "126.0.0.0/7", None),
    ("loopback", "127.0.0.0/8", "loopback"),
    ("one address of it", "127.0.0.53/32", "loopback"),
    ("a part", "127.128.0.0/9", "loopback"),
    ("multicast", "224.0.0.0/4", "multicast"),
    ("a group", "239.255.255.250/32", "multicast"),
    ("reserved", "240.0.0.0/4", "reserved"),
    ("a part of it", "250.0.0.0/8", "reserved"),
    ("both together", "224.0.0.0/3", "multicast and reserved"),
    ("the broadcast address", "255.255.255.255/32", "the broadcast address"),
    ("two with the broadcast address", "255.255.255.254/31", "reserved"),
    ("link-local", "169.254.0.0/16", None),
    ("a private network", "10.0.0.0/8", None),
    ("beside multicast", "223.255.255.0/24", None),
)
def test_kinds(network: str, kind: str | None) -> None:
    found = martian_kind(IPv4Network(network))
    assert found is None if kind is None else kind in (found or "")


@table(
    "network kind",
    ("a default route", "::/0", None),
    ("half of one", "::/1", None),
    ("the other half", "8000::/1", None),
    ("an eighth that has multicast and link-local addresses in it", "e000::/3", None),
    ("the unspecified address", "::/128", "the unspecified address"),
    ("the loopback address", "::1/128", "the loopback address"),
    ("both together", "::/127", None),
    ("beside them", "::2/128", None),
    ("IPv4-mapped addresses", "::ffff:0:0/96", "IPv4-mapped"),
    ("a part of them", "::ffff:10.0.0.0/104", "IPv4-mapped"),
    ("wider than they", "::fffe:0:0/95", None),
    ("IPv4 addresses behind NAT64", "64:ff9b::/96", None),
    ("multicast", "ff00::/8", "multicast"),
    ("a group", "ff02::1/128", "multicast"),
    ("link-local", "fe80::/10", "link-local"),
    ("those that every machine has", "fe80::/64", "link-local"),
    ("beside them", "fec0::/10", None),
    ("a private network", "fd00::/8", None),
    ("for documents", "2001:db8::/32", None),
)
def test_kinds_of_ipv6(network: str, kind: str | None) -> None:
    found = martian_kind(IPv6Network(network))
    assert found is None if kind is None else kind in (found or "")


@table(
    "network expected",
    ("a default route", "::/0", False),
    ("the unspecified address", "::/128", True),
    ("the loopback address", "::1/128", True),
    ("IPv4-mapped addresses", "::ffff:127.0.0.0/104", True),
    ("a group", "ff0e::1/128", True),
    ("link-local", "fe80::/64", True),
    ("site-local, as it once was", "fec0::/10", False),
)
def test_hostless_of_ipv6(network: str, expected: bool) -> None:
    assert is_hostless(IPv6Network(network)) is expected


@table(
    "network expected",
    ("a default route", "0.0.0.0/0", False),
    ("this network", "0.0.0.0/8", True),
    ("a part of loopback", "127.1.0.0/16", True),
    ("a group", "224.0.0.5/32", True),
    ("multicast and reserved", "224.0.0.0/3", False),
    ("reserved, which Linux takes for unicast", "240.0.0.0/24", False),
    ("the broadcast address", "255.255.255.255/32", True),
    ("link-local", "169.254.0.0/16", False),
)
def test_hostless(network: str, expected: bool) -> None:
    assert is_hostless(IPv4Network(network)) is expected
