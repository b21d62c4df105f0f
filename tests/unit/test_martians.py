"""Which networks no packet may be routed to."""

from __future__ import annotations

from ipaddress import IPv4Network

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
