"""Link-local addresses of a segment: the table against a slow oracle, and what a guard with it lets nobody do."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.macs import parse_mac
from tapotun_trio.routing import link_local as module
from tapotun_trio.routing.address_guard import AddressGuard, learn_from_device
from tapotun_trio.routing.link_local import HELD_S, SERVERS_SIDE, LinkLocalTable, is_link_local, mac_in

from .test_address_guard import ALL_NODES, IPV6, NA, NOBODY, NS, RA, REDIRECT, ethernet, icmp, ipv6

MACS: Final = [parse_mac(f"02:00:00:00:00:0{n}") for n in range(4)]
PINNED: Final = {MACS[2]: 1, MACS[3]: SERVERS_SIDE}
PORTS: Final = (SERVERS_SIDE, 0, 1, 2)


def packed(text: str) -> bytes:
    return ip_address(text).packed


def made_from(mac: bytes) -> bytes:
    """RFC 4291 appendix A."""
    return packed("fe80::")[:8] + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


ADDRESSES: Final = [*map(made_from, MACS), *(packed(f"fe80::{n}") for n in range(1, 5))]


def owner_of(mac: bytes) -> int | None:
    return PINNED.get(mac)


class Event(NamedTuple):
    port: int
    mac: bytes
    address: bytes
    at: float


class Oracle:
    """Remembers every claim, and looks through all of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._events: list[Event] = []

    def _kept(self, port: int) -> list[bytes]:
        """What this port has, the latest first, before anybody else took it."""
        latest = dict.fromkeys(each.address for each in reversed(self._events) if each.port == port)
        return [address for address in latest if self._last(address).port == port]

    def _last(self, address: bytes) -> Event:
        return [each for each in self._events if each.address == address][-1]

    def holder(self, address: bytes) -> tuple[int, bytes, float] | None:
        """The port, the MAC address with which it came to that port, and the last claim."""
        events = [each for each in self._events if each.address == address]
        if not events:
            return None
        last = first = len(events) - 1
        while first and events[first - 1].port == events[last].port:
            first -= 1
        return events[last].port, events[first].mac, events[last].at

    def may_claim(self, port: int, mac: bytes, address: bytes, now: float) -> bool:
        if port == SERVERS_SIDE:
            return True
        for one in MACS:
            if made_from(one) == address and one in PINNED:
                return PINNED[one] == port
            if made_from(one) == address and one == mac:
                return True
        holder = self.holder(address)
        if holder is None or holder[0] == port or holder[1] == mac:
            return True
        return holder[0] != SERVERS_SIDE and now - holder[2] >= HELD_S

    def claim(self, port: int, mac: bytes, address: bytes, now: float) -> None:
        kept = self._kept(port)
        if address not in kept and len(kept) >= self._most:
            self._events = [each for each in self._events if each.address != kept[-1]]
        self._events.append(Event(port, mac, address, now))

    def remove_port(self, port: int) -> None:
        gone = self._kept(port)
        self._events = [each for each in self._events if each.address not in gone]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(PORTS),
            st.sampled_from(MACS),
            st.sampled_from(ADDRESSES),
            st.sampled_from([0.0, 1.0, 1.0, HELD_S - 1, HELD_S]),
            st.sampled_from([False] * 9 + [True]),
        ),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_the_table_does_as_the_oracle(steps: list[tuple[int, bytes, bytes, float, bool]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CLIENT_ADDRESSES", most)
        patch.setattr(module, "MAX_SERVER_ADDRESSES", most)
        table, oracle, now = LinkLocalTable(owner_of), Oracle(most), 0.0
        for port, mac, address, pause, removes in steps:
            now += pause
            if removes:
                table.remove_port(port)
                oracle.remove_port(port)
            allowed = table.may_claim(port, mac, address, now)
            assert allowed == oracle.may_claim(port, mac, address, now)
            if allowed:
                table.claim(port, mac, address, now)
                oracle.claim(port, mac, address, now)
            assert len(table) == sum(oracle.holder(one) is not None for one in ADDRESSES) <= most * len(PORTS)
        table.clear()
        assert not len(table)


@given(st.binary(max_size=16) | st.binary(min_size=11, max_size=11).map(lambda rest: b"\xfe\x80\0\0\0" + rest))
def test_of_any_bytes(address: bytes) -> None:
    whole = len(address) == 16
    assert is_link_local(address) == (whole and ip_address(address).is_link_local)
    if whole and is_link_local(address) and (mac := mac_in(address)) is not None:
        assert made_from(mac) == address


def test_an_address_of_a_mac() -> None:
    assert mac_in(packed("fe80::5054:ff:fe12:3456")) == parse_mac("52:54:00:12:34:56")
    for other in ("fe80::1", "fe80:1::5054:ff:fe12:3456", "2001:db8::5054:ff:fe12:3456", "fe80::5054:ff:1:3456"):
        assert mac_in(packed(other)) is None


# ------------------------------------------------------------------ with the guard

A, B, SITE = 0, 1, 2
GLOBAL: Final = packed("2001:db8::2")
GUARD: Final = AddressGuard({A: frozenset({GLOBAL}), B: frozenset({packed("2001:db8::3")})})
X, Y = packed("fe80::a:b:c:1"), packed("fe80::a:b:c:2")
MAC_A, MAC_B, MAC_SITE = (parse_mac(f"02:00:00:00:aa:0{n}") for n in range(3))


def nobodys(mac: bytes) -> int | None:
    return None


def discovery(kind: int, source: bytes, mac: bytes, target: bytes = b"") -> memoryview:
    frame = ethernet(IPV6, ipv6(source, ALL_NODES, icmp(kind, target), 58))
    return memoryview(frame[:6] + mac + frame[12:])


FORMS: Final = {
    "advertisement": lambda address, mac: discovery(NA, GLOBAL, mac, address),
    "source of an advertisement": lambda address, mac: discovery(NA, address, mac, GLOBAL),
    "solicitation": lambda address, mac: discovery(NS, address, mac, GLOBAL),
    "search for a duplicate": lambda address, mac: discovery(NS, NOBODY, mac, address),
    "router's solicitation": lambda address, mac: discovery(133, address, mac),
}


@pytest.mark.parametrize("second", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("first", FORMS.values(), ids=FORMS.keys())
def test_who_comes_first_has_it(
    first: Callable[[bytes, bytes], memoryview], second: Callable[[bytes, bytes], memoryview]
) -> None:
    guard, table = AddressGuard({}), LinkLocalTable(nobodys)  # no other address is anybody's
    assert not guard.refuses(A, first(X, MAC_A), table, 0.0)
    assert guard.refuses(B, second(X, MAC_B), table, HELD_S - 1)
    assert not guard.refuses(B, second(Y, MAC_B), table, HELD_S - 1)
    assert not guard.refuses(A, second(X, MAC_A), table, HELD_S - 1)
    assert guard.refuses(B, second(X, MAC_B), table, HELD_S), "the owner's last claim counts"
    assert not guard.refuses(B, second(X, MAC_B), table, 2 * HELD_S - 1)
    assert guard.refuses(A, first(X, MAC_A), table, 2 * HELD_S - 1)


def test_a_refused_frame_claims_nothing() -> None:
    table = LinkLocalTable(nobodys)
    assert GUARD.refuses(A, discovery(NA, X, MAC_A, packed("2001:db8::3")), table, 0.0)
    assert GUARD.refuses(A, discovery(RA, X, MAC_A), table, 0.0)
    assert not len(table)


def test_a_router_and_what_it_names() -> None:
    """A redirect names a neighbour, which may be nobody else's, and does not become the router's."""
    table = LinkLocalTable(nobodys)
    assert not GUARD.refuses(A, discovery(NS, X, MAC_A, GLOBAL), table, 0.0)
    assert not GUARD.refuses(SITE, discovery(RA, Y, MAC_SITE), table, 0.0)
    assert GUARD.refuses(SITE, discovery(RA, X, MAC_SITE), table, 0.0)
    assert GUARD.refuses(SITE, discovery(REDIRECT, Y, MAC_SITE, X), table, 0.0)
    free = packed("fe80::a:b:c:3")
    assert not GUARD.refuses(SITE, discovery(REDIRECT, Y, MAC_SITE, free), table, 0.0)
    assert not GUARD.refuses(B, discovery(NS, free, MAC_B, GLOBAL), table, 0.0)


def test_the_servers_side_has_what_it_says() -> None:
    """The router of the server's network is there, and a client may have claimed its address before it spoke."""
    router, table = packed("fe80::1"), LinkLocalTable(nobodys)
    assert not GUARD.refuses(A, discovery(NS, router, MAC_A, GLOBAL), table, 0.0)
    learn_from_device(discovery(RA, router, MAC_SITE), table, 1.0)
    for port, mac in ((A, MAC_A), (SITE, MAC_B)):
        for now in (2.0, 1.0 + 100 * HELD_S):
            assert GUARD.refuses(port, discovery(NA, router, mac, router), table, now), "however long it is silent"
    learn_from_device(discovery(NA, Y, MAC_SITE, b"short"), table, 2.0)
    assert not GUARD.refuses(SITE, discovery(NS, Y, MAC_B, GLOBAL), table, 2.0), "what is hidden claims nothing"


def test_nobody_is_kept_from_the_address_of_a_mac_by_whoever_claimed_it_before() -> None:
    table = LinkLocalTable(nobodys)
    address = made_from(MAC_A)
    assert not GUARD.refuses(B, discovery(NA, address, MAC_B, address), table, 0.0)
    assert not GUARD.refuses(A, discovery(NS, NOBODY, MAC_A, address), table, 1.0)
    assert GUARD.refuses(B, discovery(NA, address, MAC_B, address), table, 2.0)


def test_a_host_that_moves_takes_its_address_along() -> None:
    table = LinkLocalTable(nobodys)
    assert not GUARD.refuses(A, discovery(NS, X, MAC_A, GLOBAL), table, 0.0)
    assert not GUARD.refuses(SITE, discovery(NS, X, MAC_A, GLOBAL), table, 1.0)
    # If that was somebody else with its MAC address, the address cannot be kept without that.
    assert not GUARD.refuses(SITE, discovery(NS, X, MAC_SITE, GLOBAL), table, 2.0)
    assert not GUARD.refuses(A, discovery(NS, X, MAC_A, GLOBAL), table, 3.0)
    assert GUARD.refuses(SITE, discovery(NS, X, MAC_SITE, GLOBAL), table, 4.0)


def test_a_flood_of_addresses_takes_nothing_from_others() -> None:
    table = LinkLocalTable(nobodys)
    assert not GUARD.refuses(A, discovery(NS, X, MAC_A, GLOBAL), table, 0.0)
    for number in range(2 * module.MAX_CLIENT_ADDRESSES):
        address = packed("fe80::b:0:0:0")[:12] + number.to_bytes(4, "big")
        assert not GUARD.refuses(SITE, discovery(NS, address, MAC_SITE, GLOBAL), table, 0.0)
    assert len(table) == module.MAX_CLIENT_ADDRESSES + 1
    assert GUARD.refuses(SITE, discovery(NS, X, MAC_SITE, GLOBAL), table, 0.0)


def test_a_claim_without_memory_harms_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(dict[bytes, object]):
        def __setitem__(self, address: bytes, holder: object) -> None:
            raise MemoryError

    monkeypatch.setattr(module, "MAX_CLIENT_ADDRESSES", 1)
    table = LinkLocalTable(nobodys)
    with monkeypatch.context() as patch:
        patch.setattr(table, "_holders", Full())
        with pytest.raises(MemoryError):
            table.claim(A, MAC_A, X, 0.0)
    table.claim(B, MAC_B, X, 1.0)
    table.claim(A, MAC_A, Y, 2.0)  # in the place of X
    table.remove_port(A)
    assert table.may_claim(SITE, MAC_SITE, Y, 3.0)
    assert not table.may_claim(SITE, MAC_SITE, X, 3.0), "that is B's"
    table.remove_port(B)
    assert not len(table)
