"""Programs an interface's link, addresses, routes and rules: `Network` over rtnetlink.

The rules of this file:

- What we make carries `messages.PROTOCOL`, and only what carries it is ever changed or removed.
- Adding is exclusive. Where the kernel then says that something stands already, we look whose it is.
- In the main table a network has one route of ours, and the interface that came last has it.
- Every other table is shared ground, as two interfaces (of two processes, too) may have the same ``mark``.
  There an interface takes a *slot*, a number that is the metric of its routes and the priority of its rules
  in that table. So the default routes of both stand, and each interface removes its own route and rule.
- A route ends with its interface, a rule does not. So a rule of ours without a route of ours in the same slot
  is left over from a killed run, and whoever next adds a rule for its fwmark removes it. (Hence a rule is
  added after the route of its table, and removed before it.)
- Nor does a host route past the interface: see `ways`, which knows them by their metric.

What a fwmark rule needs besides, for packets of this machine itself:

- A socket with SO_MARK gets its source address by the route in the marked table: the interface's. A packet
  that nftables marks on its way out (``type route hook output``) has its source address already, by the main
  table, and needs masquerading on the interface: that is the operator's to configure, as is the mark itself.
- Replies come in through the interface unmarked, and strict reverse path filtering (rp_filter=1) drops them,
  because the main table does not send to their source through this interface. The filter goes by the higher
  of "all" and the interface's own setting; so with a rule, and where strict mode would hold, we set loose
  mode (2) on our own interface, and change nothing outside of it. The stricter way is the operator's:
  net.ipv4.conf.all.src_valid_mark=1, and restoring the mark of incoming packets from conntrack.
- Where the table has no route (the interface is down), the lookup goes on to the main table.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from itertools import chain, groupby
from typing import Final

import trio

from ...errors import HostError, ShortageError, shortage_of
from ..items import MAIN_TABLE, Address, HostRoute, Item, ItemsRefused, NextHop, Route, Rule
from ..process.privileges import missing_net_admin
from . import codec
from .codec import PROTOCOL, KernelRoute, KernelRule, Link
from .reader import NetworkReader
from .route_lookup import RouteLookup, add_host_route, left_over, remove_host_route, remove_standing
from .socket import Refusal, Rtnetlink

# Priorities of our rules, and metrics of our routes outside the main table. A lower priority is asked first:
# these come after Tailscale's (5210-5270) and before the main table's (32766).
SLOTS: Final = range(11_600, 12_000)

_RP_FILTER_STRICT: Final = 1  # networking/ip-sysctl
_RP_FILTER_LOOSE: Final = 2

# So many of the routes that stand in the way are looked up for one error: each takes a dump of its table.
_OBSTACLES: Final = 5

# What a removal may meet: it is gone already, or its interface is, or this kernel cannot have had it.
_ABSENT: Final = frozenset(
    {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}
)

_PASSING: Final = frozenset({errno.ENOMEM, errno.ENOBUFS})  # of the kernel's refusals; the same may pass later


class Netlink:
    """A `Network` on a netlink socket of its own. Made by `open_netlink`, which closes it.

    Several tasks may use it; one waits for the other. All methods are checkpoints.
    """

    def __init__(self, kernel: Rtnetlink) -> None:
        self._kernel = kernel
        self._standing = NetworkReader(kernel)
        self._ways = RouteLookup(kernel, self._standing)
        self._lock = trio.Lock()
        self._shortage: ShortageError | None = None  # the first that the present `add` has met
        # Both are written before the kernel is told, so that a cancelled `add` can be removed.
        self._slots: dict[tuple[str, int], int] = {}  # interface and table
        self._rules: dict[tuple[str, Rule], int] = {}  # interface and rule: its priority

    async def link_up(self, name: str, mtu: int) -> None:
        """As `Network.link_up`. The interface says nothing of its own: IPv6 link-local is switched off first.

        (It comes back, once, when the MTU of a link that is up rises to 1280 or more: below that the kernel
        had thrown the interface's IPv6 settings away.)
        """
        async with self._lock:
            link = await self._standing.link(name)
            silent = codec.set_ipv6_silent(link.index)
            up = codec.set_link_up(link.index, mtu)
            wishes = [codec.set_promote_secondaries(link.index), silent]
            refusals = await self._kernel.transact([*wishes, up, bytearray(silent)])
            # It works without what else was asked for. A refusal of that is no reason to have no tunnel.
            if (refusal := refusals.get(len(wishes))) is not None:
                raise _refused(f"interface {name} with MTU {mtu}", name, refusal)

    async def add(self, name: str, items: Sequence[Item]) -> None:
        """As `Network.add`. A rule belongs behind the route of its table: see the top of this file."""
        async with self._lock:
            link = await self._standing.link(name)
            failed: dict[Item, str] = {}
            self._shortage = None
            for addresses, routes, rules, host_routes in _runs(items):
                if addresses:
                    failed |= await self._add_addresses(link, addresses)
                if host_routes:
                    batch = [add_host_route(link.index, item) for item in host_routes]
                    failed |= await self._reasons(link, host_routes, await self._kernel.transact(batch))
                for table in dict.fromkeys(route.table for route in routes):
                    there = [route for route in routes if route.table == table]
                    if table == MAIN_TABLE:
                        failed |= await self._add_to_main(link, there)
                    else:
                        failed |= await self._add_to_shared(link, table, there)
                if rules:
                    bare = {item.table for item in failed if isinstance(item, Route)}
                    failed |= {
                        rule: f"{_describe(rule, name)}: not tried, as the route of its table was refused"
                        for rule in rules
                        if rule.table in bare
                    }
                    failed |= await self._add_rules(link, [rule for rule in rules if rule.table not in bare])
            if failed:
                raise ItemsRefused(failed, self._shortage)

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        """As `Network.remove`. Goes on after a failure, and raises the first one at the end."""
        async with self._lock:
            link = await self._standing.find_link(name=name)
            failures: list[HostError] = []
            for addresses, routes, rules, host_routes in _runs(items):
                failures += await self._remove_host_routes(name, link, host_routes)
                if link is not None:  # else they went with it
                    batch = (codec.remove_address(link.index, address) for address in addresses)
                    refusals = await self._kernel.transact(chain(batch, codec.remove_routes(link.index, routes)))
                    both: list[Item] = [*addresses, *routes]
                    failures += [
                        _refused(_describe(both[index], name), name, refusal)
                        for index, refusal in sorted(_without(refusals, _ABSENT).items())
                    ]
                for rule in rules:
                    refusals = await self._remove_rule(name, link, rule)
                    failures += [_refused(_describe(rule, name), name, refusal) for refusal in refusals.values()]
            if failures:
                raise failures[0]

    async def way(
        self, name: str, address: IPv4Address, mark: int | None, hidden: Sequence[HostRoute] = ()
    ) -> NextHop | None:
        """As `Network.way`."""
        async with self._lock:
            link = await self._standing.link(name)
            return await self._ways.way(link.index, address, mark or 0, hidden)

    async def leads_into(self, name: str, address: IPv4Address, mark: int | None) -> bool:
        """As `Network.leads_into`."""
        async with self._lock:
            link = await self._standing.link(name)
            return await self._ways.leads_into(link.index, address, mark or 0)

    async def addresses(self) -> list[tuple[IPv4Address, str]]:
        """The IPv4 addresses of this machine that others may reach it by, each with the name of its interface."""
        async with self._lock:
            return await self._standing.addresses()

    async def left_over(self) -> list[str]:
        """What `remove_left_over` would remove."""
        async with self._lock:
            return [str(route.network.network_address) for route in await left_over(self._standing)]

    async def remove_left_over(self) -> list[str]:
        """As `Network.remove_left_over`."""
        async with self._lock:
            found = await left_over(self._standing)
            await self._kernel.transact([remove_standing(route) for route in found])
            return [str(route.network.network_address) for route in found]

    # -- adding: each returns what was refused, and why

    async def _add_addresses(self, link: Link, addresses: Sequence[Address]) -> dict[Item, str]:
        refusals = await self._kernel.transact([codec.add_address(link.index, item) for item in addresses])
        return await self._reasons(link, addresses, refusals)

    async def _add_to_main(self, link: Link, routes: Sequence[Route]) -> dict[Item, str]:
        refusals = await self._kernel.transact(codec.add_routes(link.index, routes, 0))
        if _existing(refusals):
            ours = _by_network(await self._standing.routes(MAIN_TABLE, protocol=PROTOCOL), 0)
            refusals = await self._renew(link, routes, 0, refusals, ours)
        return await self._reasons(link, routes, refusals)

    async def _add_to_shared(self, link: Link, table: int, routes: Sequence[Route]) -> dict[Item, str]:
        while True:  # Ends: every round takes a slot that was free a moment ago, and gives up if there is none.
            try:
                slot = await self._slot(link, table)
            except HostError as exc:
                return dict.fromkeys(routes, str(exc))
            refusals = await self._kernel.transact(codec.add_routes(link.index, routes, slot))
            existing = _existing(refusals)
            if not existing:
                break
            standing = _by_network(await self._standing.routes(table), slot)
            mine = {
                network: route
                for network, route in standing.items()
                if route.protocol == PROTOCOL and route.index == link.index
            }
            if all(routes[index].network in mine for index in existing):
                refusals = await self._renew(link, routes, slot, refusals, mine)
                break
            # Another process was quicker, or got the slot while our interface was down and had no routes.
            await self._kernel.transact(codec.remove_routes(link.index, routes))
            del self._slots[link.name, table]
        return await self._reasons(link, routes, refusals)

    async def _renew(
        self,
        link: Link,
        routes: Sequence[Route],
        metric: int,
        refusals: Mapping[int, Refusal],
        ours: Mapping[IPv4Network, KernelRoute],
    ) -> dict[int, Refusal]:
        """Try again with the routes that were refused for something that stands. Returns the refusals left.

        Where that something is ours, it is removed first. Both go out together, so hardly a packet meets the
        gap; NLM_F_REPLACE has none, but it replaces whichever route comes first, be it ours or not.
        """
        left = dict(refusals)
        batch: list[bytearray] = []
        tried: dict[int, int] = {}  # position in the batch: index of the route
        for index in _existing(refusals):
            route = routes[index]
            standing = ours.get(route.network)
            if standing is not None:
                if standing.serves(route, link.index):
                    del left[index]
                    continue
                batch += codec.remove_routes(standing.index, [route])
            tried[len(batch)] = index
            batch += codec.add_routes(link.index, [route], metric)
        again = await self._kernel.transact(batch)
        for position, index in tried.items():
            if position in again:
                left[index] = again[position]
            else:
                del left[index]
        return left

    async def _add_rules(self, link: Link, rules: Sequence[Rule]) -> dict[Item, str]:
        failed: dict[Item, str] = {}
        if rules:
            try:
                await self._accept_replies(link)
            except HostError as exc:
                return dict.fromkeys(rules, str(exc))
        for rule in rules:
            try:
                slot = await self._slot(link, rule.table)
            except HostError as exc:
                failed[rule] = str(exc)
                continue
            before = self._rules.get((link.name, rule))
            self._rules[link.name, rule] = slot
            refusals = await self._kernel.transact([codec.add_rule(rule, slot)])
            # EEXIST: ours from before, by table, mark and priority.
            failed |= await self._reasons(link, [rule], _without(refusals, {errno.EEXIST}))
            if before is not None and before != slot:
                await self._kernel.transact([codec.remove_rule(rule, before)])
        if rules:
            await self._remove_left_over({rule.fwmark for rule in rules})
        return failed

    async def _accept_replies(self, link: Link) -> None:
        """Loosen a strict reverse path filter for this interface: see the top of this file."""
        if max(_rp_filter("all"), _rp_filter(link.name)) == _RP_FILTER_STRICT:
            refusals = await self._kernel.transact([codec.set_rp_filter(link.index, _RP_FILTER_LOOSE)])
            for refusal in refusals.values():
                raise _refused(f"rp_filter of interface {link.name}", link.name, refusal)

    async def _slot(self, link: Link, table: int) -> int:
        """The slot of an interface in a table: the one it has, or a free one."""
        key = link.name, table
        if key not in self._slots:
            rules = await self._standing.rules()
            routes = await self._standing.routes(table)
            for route in routes:
                if (route.protocol, route.index) == (PROTOCOL, link.index) and route.metric in SLOTS:
                    self._slots[key] = route.metric  # from another Netlink
                    return route.metric
            taken = {route.metric for route in routes} | {rule.priority for rule in rules}
            free = next((slot for slot in SLOTS if slot not in taken), None)
            if free is None:
                raise HostError(
                    f"interface {link.name}: no priority from {SLOTS[0]} to {SLOTS[-1]} is free for a rule "
                    f"to table {table}; remove what is left over (`ip rule`)"
                )
            self._slots[key] = free
        return self._slots[key]

    # -- removing

    async def _remove_host_routes(
        self, name: str, link: Link | None, host_routes: Sequence[HostRoute]
    ) -> list[HostError]:
        if link is None:
            # They outlive it, and nothing tells its number any more. All those without an interface are dead.
            if host_routes:
                found = await left_over(self._standing)
                await self._kernel.transact([remove_standing(route) for route in found])
            return []
        batch = [remove_host_route(link.index, item) for item in host_routes]
        refusals = _without(await self._kernel.transact(batch), _ABSENT)
        return [_refused(_describe(host_routes[index], name), name, refusal) for index, refusal in refusals.items()]

    async def _remove_rule(self, name: str, link: Link | None, rule: Rule) -> dict[int, Refusal]:
        priority = self._rules.get((name, rule))
        if priority is not None:
            priorities = [priority]
        else:
            # Not made, or through another Netlink: then it is the one in our route's slot, or in nobody's.
            # In this order, as in `_remove_left_over`.
            candidates = [
                standing.priority
                for standing in await self._standing.rules()
                if _is_ours(standing, {rule.fwmark}) and standing.table == rule.table
            ]
            owners = await self._standing.slot_owners({rule.table}) if candidates else {}
            index = 0 if link is None else link.index
            priorities = [number for number in candidates if owners.get((rule.table, number)) in (None, index)]
        refusals = await self._kernel.transact([codec.remove_rule(rule, number) for number in priorities])
        self._rules.pop((name, rule), None)
        return _without(refusals, _ABSENT)

    async def _remove_left_over(self, fwmarks: set[int]) -> None:
        """Remove our rules for those marks whose owner died."""
        mine = {(rule.table, priority) for (_, rule), priority in self._rules.items()}
        # In this order: an owner makes its route before its rule, and removes it after.
        rules = [
            rule
            for rule in await self._standing.rules()
            if _is_ours(rule, fwmarks) and (rule.table, rule.priority) not in mine
        ]
        if not rules:
            return
        owners = await self._standing.slot_owners({rule.table for rule in rules})
        dead = [rule for rule in rules if (rule.table, rule.priority) not in owners]
        # Refusals do not matter: another owner may do the same at the same time.
        await self._kernel.transact(
            [codec.remove_rule(Rule(rule.fwmark or 0, rule.table), rule.priority) for rule in dead]
        )

    # -- failing

    async def _reasons(self, link: Link, items: Sequence[Item], refusals: Mapping[int, Refusal]) -> dict[Item, str]:
        reasons: dict[Item, str] = {}
        obstacles = 0
        for index, refusal in sorted(refusals.items()):
            item = items[index]
            refused = _refused(_describe(item, link.name), link.name, refusal)
            if self._shortage is None and isinstance(refused, ShortageError):
                self._shortage = refused
            text = str(refused)
            if isinstance(item, Route) and refusal.errno == errno.EEXIST:
                obstacles += 1
                if obstacles <= _OBSTACLES:
                    text += f"; {await self._standing.obstacle(item)}"
            reasons[item] = text
        return reasons


@asynccontextmanager
async def open_netlink() -> AsyncIterator[Netlink]:
    """A netlink connection of its own, closed at exit. What was made through it stays. Raises HostError."""
    try:
        kernel = Rtnetlink()
    except OSError as exc:
        doing = "cannot open a netlink socket"
        raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc
    try:
        yield Netlink(kernel)
    finally:
        kernel.close()


def _runs(items: Sequence[Item]) -> Iterator[tuple[list[Address], list[Route], list[Rule], list[HostRoute]]]:
    """The items in their order, as runs of one kind: in each tuple all lists but one are empty."""
    for _, group in groupby(items, type):
        run = list(group)
        yield (
            [item for item in run if isinstance(item, Address)],
            [item for item in run if isinstance(item, Route)],
            [item for item in run if isinstance(item, Rule)],
            [item for item in run if isinstance(item, HostRoute)],
        )


def _existing(refusals: Mapping[int, Refusal]) -> list[int]:
    return sorted(index for index, refusal in refusals.items() if refusal.errno == errno.EEXIST)


def _without(refusals: Mapping[int, Refusal], errnos: AbstractSet[int]) -> dict[int, Refusal]:
    return {index: refusal for index, refusal in refusals.items() if refusal.errno not in errnos}


def _by_network(routes: Sequence[KernelRoute], metric: int) -> dict[IPv4Network, KernelRoute]:
    """The routes that ours with that metric would collide with."""
    return {route.network: route for route in routes if (route.metric, route.tos) == (metric, 0)}


def _is_ours(rule: KernelRule, fwmarks: set[int]) -> bool:
    return rule.protocol == PROTOCOL and rule.fwmark in fwmarks


def _rp_filter(interface: str) -> int:
    """The setting of an interface or of "all"; 0 where /proc does not tell."""
    try:
        with open(f"/proc/sys/net/ipv4/conf/{interface}/rp_filter", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _describe(item: Item, name: str) -> str:
    match item:
        case Address(interface):
            return f"address {interface} dev {name}"
        case Route(network, table):
            return f"route {network} dev {name}" + (f" table {table}" if table != MAIN_TABLE else "")
        case Rule(fwmark, table):
            return f"rule fwmark {fwmark} lookup table {table} of {name}"
        case HostRoute(table=table):
            return f"host route {item}" + (f" table {table}" if table != MAIN_TABLE else "") + f" past {name}"


def _refused(what: str, name: str, refusal: Refusal) -> HostError:
    remedies = {
        errno.ENETDOWN: f"the interface is down: `ip link set {name} up`, and nobody else should set it down",
        errno.EINVAL: "this kernel takes no such thing; take it out of the config that asks for it",
        errno.ENODEV: "the interface is gone: somebody else deleted it",
    }
    if refusal.errno in _PASSING:
        shortage = shortage_of(OSError(refusal.errno, refusal.text), what)
        assert shortage is not None
        return shortage
    remedy = missing_net_admin() if refusal.errno == errno.EPERM else remedies.get(refusal.errno)
    return HostError(f"{what}: {refusal.text}" + (f"; {remedy}" if remedy else ""))
