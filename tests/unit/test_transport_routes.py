"""What of a plan would carry the transport into the tunnel: judged by a kernel in miniature, which looks every table up
by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address, ip_interface, ip_network
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.families import IPAddress, IPInterface, IPNetwork, host_network, is_host
from tapotun_trio.host.items import (
    CONNECTED_METRICS,
    MAIN_METRICS,
    MAIN_TABLE,
    Address,
    HostRoute,
    Item,
    NextHop,
    Route,
    Rule,
)
from tapotun_trio.netconf.transport_routes import Conflict, decide, describe, makes_local

from ..twins import FAMILIES, twin, twin_of

OURS: Final = "tun"
LOCAL: Final = "local"
MARK_TABLE: Final = 100
OWN_TABLE: Final = 200  # of the operator, for the transport's mark
MARK: Final = 7
DEVICES: Final = {3: "eth0", 4: "eth1"}


@dataclass(frozen=True)
class Entry:
    network: IPNetwork
    metric: int
    target: str


Tables = dict[int, list[Entry]]
Rules = list[tuple[int, int | None, int]]
"""Priority, fwmark or None for any, table."""


def look_up(address: IPAddress, mark: int | None, tables: Tables, rules: Rules) -> tuple[Entry, int, int] | None:
    """The entry, its table, and the priority of the rule that led there: by trying every one."""
    for priority, fwmark, number in sorted(rules, key=lambda it: it[0]):
        if fwmark not in (None, mark or 0):
            continue
        fitting = [it for it in tables.get(number, []) if address in it.network]
        if fitting:
            return min(fitting, key=lambda it: (-it.network.prefixlen, it.metric)), number, priority
    return None


def way_to(address: IPAddress, mark: int | None, tables: Tables, rules: Rules) -> NextHop | None:
    """As the host's netlink finds it while nothing of ours stands."""
    found = look_up(address, mark, tables, rules)
    if found is None:
        return None
    entry, number, priority = found
    index = next(index for index, name in DEVICES.items() if name == entry.target)
    return NextHop(entry.network, number, entry.metric, index, entry.target, above_main=priority < 32766)


def make(items: Iterable[Item], tables: Tables, rules: Rules) -> tuple[Tables, Rules]:
    """What stands once the kernel has made the items in their order. It refuses a route as long as one that stands,
    with the same metric."""
    tables = {number: list(entries) for number, entries in tables.items()}
    rules = list(rules)
    for item in items:
        match item:
            case Address(interface):
                entry = Entry(interface.network, CONNECTED_METRICS[interface.version], OURS)
                if not is_host(interface.network):
                    _add(tables.setdefault(MAIN_TABLE, []), entry)
            case Route(network, number):
                _add(tables.setdefault(number, []), Entry(network, MAIN_METRICS[network.version], OURS))
            case Rule(fwmark, number):
                rules.append((11_600, fwmark, number))
            case HostRoute():
                entry = Entry(host_network(item.address), 1 << 30, item.device)
                _add(tables.setdefault(item.table, []), entry)
    return tables, rules


def _add(entries: list[Entry], new: Entry) -> None:
    if all((it.network, it.metric) != (new.network, new.metric) for it in entries):
        entries.append(new)


def target(address: IPAddress, mark: int | None, items: Sequence[Item], tables: Tables, rules: Rules) -> str | None:
    """Where the kernel sends it: its local table comes first."""
    if any(isinstance(it, Address) and makes_local(it.interface, address) for it in items):
        return LOCAL
    found = look_up(address, mark, *make(items, tables, rules))
    return None if found is None else found[0].target


# Networks that nest: few addresses, many lengths.
FIRST: Final = IPv4Address("203.0.113.0")
LENGTHS: Final = st.sampled_from((0, 1, 8, 16, 24, 27, 28, 29, 30, 31, 32))
METRICS: Final = {4: (0, 100), 6: (1, 100, 256, 1024)}


def some_addresses(version: int) -> st.SearchStrategy[IPAddress]:
    return st.integers(0, 31).map(lambda n: twin_of(FIRST + n, version))


def some_interfaces(version: int) -> st.SearchStrategy[IPInterface]:
    return st.builds(
        lambda n, length: ip_interface(twin(f"{FIRST + n}/{length}", version)), st.integers(0, 31), LENGTHS
    )


def some_networks(version: int) -> st.SearchStrategy[IPNetwork]:
    return some_interfaces(version).map(lambda it: it.network)


def some_entries(version: int) -> st.SearchStrategy[Entry]:
    return st.builds(
        Entry, some_networks(version), st.sampled_from(METRICS[version]), st.sampled_from(tuple(DEVICES.values()))
    )


MARKS: Final = st.sampled_from((None, MARK, MARK + 1))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Item], set[Item], list[IPAddress], int | None, Tables, Rules]:
    """What is wanted, what of it was pushed, the transport's addresses and mark, and the machine as it is."""
    version = draw(st.sampled_from(FAMILIES))
    entries = some_entries(version)
    pushed = {Route(it) for it in draw(st.lists(some_networks(version), max_size=4))}
    items: list[Item] = [*map(Address, draw(st.lists(some_interfaces(version), max_size=2, unique=True))), *pushed]
    if draw(st.booleans()):
        items += [Route(ip_network(twin("0.0.0.0/0", version)), MARK_TABLE), Rule(MARK, MARK_TABLE, version=version)]
    rules: Rules = [(32766, None, MAIN_TABLE)]
    tables: Tables = {MAIN_TABLE: draw(st.lists(entries, max_size=4, unique_by=lambda it: (it.network, it.metric)))}
    if draw(st.booleans()):
        rules.append((draw(st.sampled_from((1000, 40_000))), draw(st.sampled_from((None, MARK + 1))), OWN_TABLE))
        tables[OWN_TABLE] = draw(st.lists(entries, max_size=2, unique_by=lambda it: (it.network, it.metric)))
    addresses = draw(st.lists(some_addresses(version), min_size=1, max_size=3, unique=True))
    return items, set(pushed), addresses, draw(MARKS), tables, rules


@given(worlds())
def test_the_transport_never_enters_the_tunnel_and_all_else_still_does(
    world: tuple[list[Item], set[Item], list[IPAddress], int | None, Tables, Rules],
) -> None:
    items, pushed, addresses, mark, tables, rules = world
    ways = {it: way_to(it, mark, tables, rules) for it in addresses}
    decision = decide(items, ways, mark, pushed=pushed)
    stands = decision.items
    for address, way in ways.items():
        if way is not None:
            assert target(address, mark, stands, tables, rules) == way.device
        else:  # nothing leads there without us, so no host route can, and none is left over
            assert not any(it.address == address for it in decision.exceptions)
    # Host routes are first, so that what they are exceptions to is never without them.
    assert stands[: len(decision.exceptions)] == decision.exceptions
    # Each is needed, but perhaps in the mark's own table: whether another one comes before it is not asked.
    for exception in decision.exceptions:
        rest = [it for it in stands if it != exception]
        assert (
            _tables(decision.exceptions) & {MARK_TABLE} or target(exception.address, mark, rest, tables, rules) == OURS
        )
    # Only what cannot be helped is gone, and of everything else each address goes where it went.
    gone = [it for it in items if it not in stands]
    for item in gone:
        match item:
            case Route(network):
                assert is_host(network) or any(way is not None and not way.usable for way in ways.values())
            case Address(interface):
                assert any(makes_local(interface, address) for address in addresses)
            case _:
                pytest.fail(f"{item} is gone")
    kept = [it for it in items if it not in gone]
    for number in range(32):
        other = twin_of(FIRST + number, addresses[0].version)
        if other not in ways:
            assert target(other, None, stands, tables, rules) == target(other, None, kept, tables, rules)
    # The same again changes nothing, whatever stands already.
    assert decide(items, ways, mark, pushed=pushed, made=stands) == decision


def _tables(exceptions: Iterable[HostRoute]) -> set[int]:
    return {it.table for it in exceptions}


@given(worlds())
def test_what_cannot_be_excepted_is_left_out(
    world: tuple[list[Item], set[Item], list[IPAddress], int | None, Tables, Rules],
) -> None:
    items, pushed, addresses, mark, tables, rules = world
    found = {it: way_to(it, mark, tables, rules) for it in addresses}
    ways = {it: None if way is None else replace(way, usable=False) for it, way in found.items()}
    decision = decide(items, ways, mark, pushed=pushed)
    assert decision.exceptions == ()
    for address, way in ways.items():
        if way is not None:
            assert target(address, mark, decision.items, tables, rules) == way.device
    # No rule without the route of its table: that is a mark of a killed run.
    tables_left = {it.table for it in decision.items if isinstance(it, Route)}
    assert {it.table for it in decision.items if isinstance(it, Rule)} <= tables_left


@given(worlds())
def test_without_a_session_no_pushed_route_stands_between(
    world: tuple[list[Item], set[Item], list[IPAddress], int | None, Tables, Rules],
) -> None:
    items, pushed, addresses, mark, tables, rules = world
    ways = {it: way_to(it, mark, tables, rules) for it in addresses}
    decision = decide(items, ways, mark, pushed=pushed, withdraws=True)
    before = decide(items, ways, mark, pushed=pushed)
    for conflict in before.conflicts:
        assert conflict.item not in pushed or conflict.item not in decision.items
    # What stands in nobody's way stays, and so does what was not pushed.
    concerned = {it.item for it in before.conflicts} | {it.item for it in decision.conflicts}
    assert [it for it in items if it not in decision.items and it not in concerned] == []
    for address, way in ways.items():
        if way is not None:
            assert target(address, mark, decision.items, tables, rules) == way.device
    blind = decide(items, ways, mark, pushed=pushed, withdraws=True, withdraws_all=True)
    assert not pushed & set(blind.items)


SERVER: Final = IPv4Address("203.0.113.10")
WAY: Final = NextHop(IPv4Network("0.0.0.0/0"), index=3, device="eth0", gateway=IPv4Address("192.0.2.1"), metric=100)
PUSH: Final = Route(IPv4Network("203.0.113.0/24"))
EXCEPTION: Final = HostRoute(SERVER, 3, IPv4Address("192.0.2.1"), device="eth0")


def conflicts(*items: Item, way: NextHop | None = WAY, withdraws: bool = False) -> list[Conflict]:
    return list(decide(items, {SERVER: way}, None, pushed=items, withdraws=withdraws).conflicts)


CASES: Final = {
    "a push": (conflicts(PUSH), ["pushed route 203.0.113.0/24", "via 192.0.2.1 dev eth0"]),
    "two": (conflicts(PUSH, Route(IPv4Network("203.0.112.0/23"))), ["(and so do 1 more)"]),
    "an address": (
        conflicts(Address(IPv4Interface("203.0.113.5/24"))),
        ["the network of address 203.0.113.5/24", "host route 203.0.113.10 via"],
    ),
    "left out": (conflicts(PUSH, way=replace(WAY, usable=False)), ["it is left out; remove it from the server"]),
    "withdrawn": (conflicts(PUSH, withdraws=True), ["withdrawn until there is a session again"]),
    "the mark's": (
        list(
            decide(
                [Route(IPv4Network("0.0.0.0/0"), 9), Rule(5, 9)],
                {SERVER: WAY},
                5,
            ).conflicts
        ),
        ["the default route of mark table 9"],
    ),
    "somebody's": (
        conflicts(way=replace(WAY, captured_by=(IPv4Network("203.0.0.0/8", strict=False), MAIN_TABLE))),
        ["route 203.0.0.0/8, which is not ours", "keeps them out"],
    ),
    "somebody's host route": (
        conflicts(way=replace(WAY, captured_by=(IPv4Network(SERVER), MAIN_TABLE))),
        ["carries them into the tunnel; remove it"],
    ),
}


@pytest.mark.parametrize(("found", "words"), CASES.values(), ids=CASES)
def test_one_line_names_the_route_and_the_address(found: list[Conflict], words: list[str]) -> None:
    line = describe(found)
    assert all(it in line for it in [*words, str(SERVER)]), line
    assert "\n" not in line


@pytest.mark.parametrize("interface", ["192.0.2.1/32", "192.0.2.1/24", "192.0.2.2/31", "192.0.2.6/30"], ids=str)
def test_an_address_that_would_be_the_gateway_s_is_left_out(interface: str) -> None:
    item = Address(IPv4Interface(interface))
    decision = decide([item, PUSH], {SERVER: WAY}, None)
    taken = interface.startswith("192.0.2.1/")
    assert (item in decision.items) is not taken
    if taken:
        assert not any(isinstance(it, Address) for it in decision.items)
        [line] = [describe([it]) for it in decision.conflicts if it.item is item]
        assert f"{interface}, which the server gave, would replace the gateway 192.0.2.1" in line
    assert EXCEPTION in decision.items  # the push still needs it


def test_what_is_about_to_go_is_nobody_else_s() -> None:
    """The push was taken back and stands until the decision is carried out."""
    way = replace(WAY, captured_by=(PUSH.network, MAIN_TABLE))
    assert decide([], {SERVER: way}, None, made=[EXCEPTION, PUSH]).items == ()


def test_a_table_for_the_transport_alone_needs_no_help() -> None:
    way = replace(WAY, table=200, above_main=True)
    assert decide([PUSH], {SERVER: way}, 200).items == (PUSH,)
    assert decide([PUSH], {SERVER: replace(way, above_main=False)}, 200).items == (EXCEPTION, PUSH)


@pytest.mark.parametrize(
    ("interface", "address", "local"),
    [
        ("fd00::5/64", "fd00::5", True),
        ("fd00::5/64", "fd00::", True),  # the subnet-router anycast address
        ("fd00::5/64", "fd00::ffff:ffff:ffff:ffff", False),  # there is no broadcast address
        ("fd00::5/127", "fd00::4", False),
        ("fd00::5/128", "fd00::4", False),
        ("fd00::5/64", "203.0.113.5", False),
        ("203.0.113.5/24", "203.0.113.255", True),
        ("203.0.113.5/24", "fd00::", False),
    ],
)
def test_addresses_that_an_address_makes_local(interface: str, address: str, local: bool) -> None:
    assert makes_local(ip_interface(interface), ip_address(address)) is local


def test_a_family_that_is_dropped_takes_only_its_own_rule_along() -> None:
    """The mark's default route covers the server in one family; there, no host route is possible."""
    items: list[Item] = [Route(IPv4Network("0.0.0.0/0"), 9), Rule(0, 9)]
    others: list[Item] = [Route(ip_network("::/0"), 9), Rule(0, 9, version=6)]
    decision = decide([*items, *others], {SERVER: replace(WAY, usable=False)}, None)
    assert list(decision.items) == others


def test_a_mark_of_zero_is_every_packet_without_one() -> None:
    items: list[Item] = [Route(IPv4Network("0.0.0.0/0"), 9), Rule(0, 9)]
    assert decide(items, {SERVER: WAY}, None).exceptions == (replace(EXCEPTION, table=9),)
