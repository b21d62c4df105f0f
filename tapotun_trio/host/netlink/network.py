"""Programs an interface's link, addresses, routes and rules: `Network` over rtnetlink.

The rules of this file:

- Items that we add carry `codec.PROTOCOL`, and only items that carry it are ever changed or removed.
- Adding is exclusive. If the kernel refuses because the item exists, we find out whose item it is.
- In the main table a network has at most one route of ours; the interface that was configured last has it.
- Every other table is shared, since two interfaces (even of two processes) may have the same ``mark``. There an
  interface takes a *slot*, a number that is the metric of its routes and the priority of its rules in that table. So
  the default routes of both can exist, and each interface removes its own route and rule. IPv4 and IPv6 have tables and
  rules of their own, and slots of their own.
- A route disappears with its interface, a rule does not. So a rule of ours without a route of ours in the same slot was
  left by a killed run, and the next interface that adds a rule for its fwmark removes it, whichever the IP versions of
  the two. (Hence a rule is added after the route of its table, and removed before it.)
- A host route past the interface does not disappear with it either: see `route_lookup`, which knows them by their
  metric.

What a fwmark rule needs in addition, for packets of this machine itself:

- A socket with SO_MARK gets its source address from the route in the marked table: the interface's address. A packet
  that nftables marks on its way out (``type route hook output``) already has its source address, from the main table,
  and needs masquerading on the interface. The operator configures that, as well as the mark itself.
- Replies come in through the interface unmarked, and strict reverse path filtering (rp_filter=1) drops them, because
  the main table does not send to their source through this interface. The kernel uses the higher of the settings of
  "all" and of the interface. So if there is a rule, and strict mode would apply, we set loose mode (2) on our own
  interface, and change nothing else. `state` says if strict mode applies later. A stricter setup is up to the
  operator: net.ipv4.conf.all.src_valid_mark=1, and restoring the mark of incoming packets from conntrack.
- If the table has no route (the interface is down), the lookup continues with the main table.

IPv6 has no reverse path filter of the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import chain, groupby
from socket import AF_INET6
from typing import Final

import trio

from ...cooperative import run_cooperatively
from ...errors import HostError, MissingBridgeError, ShortageError, shortage_of
from ...families import IPAddress, IPInterface, IPNetwork, with_prefix
from ..interfaces import AddressedLink
from ..items import (
    CONNECTED_METRICS,
    MAIN_METRICS,
    MAIN_TABLE,
    Address,
    AttachedNetwork,
    BridgeAddress,
    BridgePort,
    ConnectedRoute,
    CurrentRoute,
    HostRoute,
    Item,
    ItemsRefused,
    LinkState,
    NextHop,
    OwnBridge,
    Route,
    Rule,
)
from . import codec, link_codec
from .attached import find_attached
from .bridges import BridgeItem, Bridges
from .codec import KERNEL_PROTOCOL, PROTOCOL, KernelRoute
from .inventory import Inventory, absent
from .link_codec import Link
from .reader import NetworkReader
from .refusals import IPV6_MIN_MTU, NoIPv6Error, describe, refused, refused_item
from .route_lookup import RouteLookup, add_host_route, alone, host_route_metric, left_over
from .socket import Refusal, Rtnetlink

# Priorities of our rules, and metrics of our routes outside the main table. The kernel tries rules from the lowest
# number up: ours come after Tailscale's (5210-5270) and before the main table's (32766).
SLOTS: Final = range(11_600, 12_000)

_RP_FILTER_STRICT: Final = 1  # networking/ip-sysctl
_RP_FILTER_LOOSE: Final = 2

# How many conflicting routes are looked up for one error: each lookup takes a dump of the table.
_MAX_OBSTACLES: Final = 5

# Refusals of a removal that are no error: the item or its interface is gone, or this kernel cannot have had it. ENXIO:
# the interface has no IPv6, since its MTU is too small.
_ABSENT: Final = frozenset(
    {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}
)


class Netlink:
    """A `Network` on a netlink socket of its own. `open_netlink` makes and closes it.

    Several tasks may use it: calls wait for each other. All methods are checkpoints.
    """

    def __init__(self, kernel: Rtnetlink) -> None:
        self._kernel = kernel
        self._reader = NetworkReader(kernel)
        self._lookup = RouteLookup(kernel, self._reader)
        self._bridges = Bridges(kernel, self._reader)
        self._lock = trio.Lock()
        self._shortage: ShortageError | None = None  # the first one during the current `add`
        self._lacks_ipv6 = False  # as in `ItemsRefused`, during the current `add`
        self._indexes: dict[str, int] = {}  # of each interface, since its name may change
        # Both are written before the request is sent, so that a cancelled `add` can be undone.
        self._slots: dict[tuple[int, int, int], int] = {}  # IP version, index of the interface, and table
        self._rules: dict[tuple[int, Rule], int] = {}  # (index of the interface, rule) -> the rule's priority

    async def link_up(self, name: str, mtu: int) -> None:
        """As `Network.link_up`. Link-local addresses are switched off first."""
        async with self._lock:
            link = await self._link(name)
            silent = link_codec.set_ipv6_silent(link.index)
            up = link_codec.set_link_up(link.index, mtu)
            optional = [link_codec.set_promote_secondaries(link.index), silent]
            refusals = await self._kernel.transact([*optional, up, bytearray(silent)])
            # A refusal of the other requests is ignored: the tunnel works without them.
            if (refusal := refusals.get(len(optional))) is not None:
                raise refused(f"interface {name} with MTU {mtu}", name, refusal)
            if link.mtu < IPV6_MIN_MTU <= mtu:
                await self._bridges.refuse_ipv6_again(name, link.index)
                await self._remove_link_local(link)

    async def _remove_link_local(self, link: Link) -> None:
        """Remove the link-local address of an interface whose MTU has just become large enough for IPv6. Below that MTU
        the kernel has discarded the interface's IPv6 settings, so it has made that address with the default settings if
        the interface was up."""
        automatic = await self._reader.link_local(link.index)
        await self._kernel.transact([codec.remove_assigned(each) for each in automatic])

    async def add(self, name: str, items: Sequence[Item]) -> None:
        """As `Network.add`. A rule has to come after the route of its table: see the top of this file."""
        async with self._lock:
            link = await self._link(name)
            failed: dict[Item, str] = {}
            bridgeless: list[MissingBridgeError] = []
            self._shortage, self._lacks_ipv6 = None, False
            for addresses, connected, routes, rules, host_routes, bridging in _runs_of_one_kind(items):
                for item, error in (await self._bridges.add(name, link, bridging, failed)).items():
                    failed[item] = self._note(error)
                    if isinstance(error, MissingBridgeError):
                        bridgeless.append(error)
                if addresses:
                    failed |= await self._add_addresses(link, addresses)
                if connected:
                    failed |= await self._add_connected(link, connected)
                if host_routes:
                    failed |= await self._add_host_routes(link, host_routes)
                for version, table in dict.fromkeys((route.network.version, route.table) for route in routes):
                    same = [route for route in routes if (route.network.version, route.table) == (version, table)]
                    if table == MAIN_TABLE:
                        failed |= await self._add_to_main(link, version, same)
                    else:
                        failed |= await self._add_to_shared(link, version, table, same)
                if rules:
                    routeless = {(item.network.version, item.table) for item in failed if isinstance(item, Route)}
                    untried = [rule for rule in rules if (rule.version, rule.table) in routeless]
                    failed |= {
                        rule: f"{describe(rule, name)}: not tried, as the route of its table was refused"
                        for rule in untried
                    }
                    failed |= await self._add_rules(link, [rule for rule in rules if rule not in untried])
            if failed:
                missing_bridge = bridgeless[0] if bridgeless and len(bridgeless) == len(failed) else None
                raise ItemsRefused(failed, self._shortage, missing_bridge, lacks_ipv6=self._lacks_ipv6)

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        """As `Network.remove`. Continues after a failure, and raises the first one at the end."""
        async with self._lock:
            link = await self._find_link(name)
            failures: list[HostError] = []
            for addresses, _, routes, rules, host_routes, bridging in _runs_of_one_kind(items):
                failures += await self._bridges.remove(name, link, bridging)
                failures += await self._remove_host_routes(name, link, host_routes)
                if link is not None:  # otherwise they disappeared with it
                    batch = (codec.remove_address(link.index, address) for address in addresses)
                    refusals = await self._kernel.transact(chain(batch, codec.remove_routes(link.index, routes)))
                    both: list[Item] = [*addresses, *routes]
                    failures += [
                        refused(describe(both[index], name), name, refusal)
                        for index, refusal in sorted(_without(refusals, _ABSENT).items())
                    ]
                for rule in rules:
                    refusals = await self._remove_rule(name, rule)
                    failures += [refused(describe(rule, name), name, refusal) for refusal in refusals.values()]
            if failures:
                raise failures[0]

    async def next_hop(
        self, name: str, address: IPAddress, mark: int | None, hidden: Sequence[HostRoute] = ()
    ) -> NextHop | None:
        """As `Network.next_hop`."""
        async with self._lock, alone():
            link = await self._link(name)
            networks = self._bridges.networks(link.index)
            return await self._lookup.next_hop(link.index, address, mark or 0, hidden, networks)

    async def leads_into(self, name: str, address: IPAddress, mark: int | None) -> bool:
        """As `Network.leads_into`."""
        async with self._lock:
            link = await self._link(name)
            networks = self._bridges.networks(link.index)
            return await self._lookup.leads_into(link.index, address, mark or 0, networks)

    async def current_routes(
        self, name: str, addresses: Collection[str], mark: int | None
    ) -> dict[str, CurrentRoute | None]:
        """As `Network.current_routes`."""
        async with self._lock:
            link = await self._reader.find_link(name=name)
            return await self._lookup.current_routes(0 if link is None else link.index, addresses, mark or 0)

    async def attached(
        self, name: str, networks: Collection[IPNetwork], within: Collection[IPNetwork] = ()
    ) -> list[AttachedNetwork]:
        """As `Network.attached`."""
        async with self._lock:
            link = await self._link(name)
            own = self._bridges.addresses(link.index)
            return await find_attached(self._kernel, link.index, networks, within, own)

    async def machine_addresses(self) -> frozenset[IPInterface]:
        """As `Network.machine_addresses`."""
        async with self._lock:
            found = await self._kernel.dump(codec.dump_addresses(), codec.read_assigned)
            return frozenset(
                with_prefix(address.ip, address.network.prefixlen)
                for address in found
                if address.ip.version == 4 or not address.ip.is_link_local
            )

    async def addressed_link(self, name: str, addressed: str) -> AddressedLink | None:
        """As `Network.addressed_link`."""
        async with self._lock:
            return await self._bridges.current_link(name, await self._find_link(name), addressed)

    async def require_bridge(self, name: str, bridge: str, *, create: bool, ending: Collection[str]) -> None:
        """As `Network.require_bridge`."""
        async with self._lock:
            await self._bridges.require(name, bridge, create=create, ending=ending)

    async def addresses(self) -> list[tuple[IPAddress, str]]:
        """The addresses by which others may reach this machine, each with the name of its interface."""
        async with self._lock:
            return await self._reader.addresses()

    async def left_over(self) -> list[str]:
        """The addresses of the host routes that `remove_left_over` would remove."""
        async with self._lock:
            return [str(route.network.network_address) for route in await left_over(self._reader)]

    async def remove_left_over(self) -> list[str]:
        """As `Network.remove_left_over`."""
        async with self._lock:
            found = await left_over(self._reader)
            await self._kernel.transact([codec.remove_kernel_route(route) for route in found])
            return [str(route.network.network_address) for route in found]

    async def remove_left_over_bridges(self, name: str, kept: str | None) -> list[str]:
        """As `Network.remove_left_over_bridges`."""
        async with self._lock:
            return await self._bridges.remove_left_over(name, kept)

    async def index(self, name: str) -> int:
        """As `Network.index`."""
        async with self._lock:
            return (await self._link(name)).index

    async def state(self, name: str) -> LinkState | None:
        """As `Network.state`."""
        async with self._lock:
            link = await self._find_link(name)
            if link is None:
                return None
            is_strict = _filters_strictly(link.name)
            return LinkState(link.name, link.admin_up, link.mtu, is_strict, await self._bridges.blocked_reason(link))

    async def missing(self, name: str, items: Sequence[Item]) -> list[Item]:
        """As `Network.missing`."""
        async with self._lock:
            link = await self._link(name)
            priorities = {rule: priority for (index, rule), priority in self._rules.items() if index == link.index}
            inventory = Inventory(self._kernel, self._reader, link.index)
            if any(isinstance(item, HostRoute) for item in items):
                async with alone():  # another task or process may just be checking a route in the same way
                    present = await inventory.read(items, priorities)
            else:
                present = await inventory.read(items, priorities)
            bridging = [item for item in items if isinstance(item, (OwnBridge, BridgePort, BridgeAddress))]
            present.bridging = await self._bridges.present(name, link, bridging)
            return await run_cooperatively(absent(items, present))

    async def rename(self, name: str) -> None:
        """As `Network.rename`."""
        async with self._lock:
            link = await self._link(name)
            rename = link_codec.rename_link(link.index, name)
            refusal = (await self._kernel.transact([bytearray(rename)])).get(0)
            if refusal is not None and refusal.errno == errno.EBUSY:  # the link is up (before Linux 6.2)
                refusal = (await self._kernel.transact([link_codec.set_link_down(link.index), rename])).get(1)
            if refusal is not None:
                raise refused(f"interface {link.name} cannot be renamed to {name}", link.name, refusal)

    async def _find_link(self, name: str) -> Link | None:
        index = self._indexes.get(name)
        link = await (self._reader.find_link(name=name) if index is None else self._reader.find_link(index=index))
        if link is not None:
            self._indexes[name] = link.index
        return link

    async def _link(self, name: str) -> Link:
        link = await self._find_link(name)
        if link is None:
            raise HostError(f"interface {name} does not exist (any more)")
        return link

    # -- adding: each method returns the refused items with the reasons

    async def _add_addresses(self, link: Link, addresses: Sequence[Address]) -> dict[Item, str]:
        # Where nothing else decides, the source of a packet is the first address in IPv4, and the one that was added
        # last in IPv6 (ipv6_link_dev_addr, net/ipv6/addrconf.c).
        ipv6 = [item for item in addresses if item.interface.version == 6]
        ordered = [*(item for item in addresses if item.interface.version == 4), *reversed(ipv6)]
        misfits = await self._misfits(link, ipv6) if ipv6 else []
        batch = [*map(codec.remove_assigned, misfits), *(codec.add_address(link.index, item) for item in ordered)]
        refusals = await self._kernel.transact(batch)
        added = {index - len(misfits): refusal for index, refusal in refusals.items() if index >= len(misfits)}
        return await self._reasons(link, ordered, added)

    async def _misfits(self, link: Link, wanted: Collection[Address]) -> list[codec.AssignedAddress]:
        """The interface's IPv6 addresses that are wanted with another prefix length. An interface has an IPv6 address
        only once, and the kernel ignores a new prefix length."""
        lengths = {item.interface.ip: item.interface.network.prefixlen for item in wanted}
        found = await self._kernel.dump(codec.dump_addresses(link.index, AF_INET6), codec.read_assigned)
        return [
            each
            for each in found
            if each.index == link.index and lengths.get(each.ip, each.network.prefixlen) != each.network.prefixlen
        ]

    async def _add_connected(self, link: Link, connected: Sequence[ConnectedRoute]) -> dict[Item, str]:
        refusals = await self._kernel.transact([codec.add_connected_route(link.index, item) for item in connected])
        for number in _existing(refusals):
            # It is no failure if the route is there: an IPv6 address that is added again brings it back.
            network = connected[number].interface.network
            found = await self._reader.routes(network.version, MAIN_TABLE, protocol=KERNEL_PROTOCOL, network=network)
            if any(route.index == link.index for route in found):
                del refusals[number]
        return await self._reasons(link, connected, refusals)

    async def _add_host_routes(self, link: Link, host_routes: Sequence[HostRoute]) -> dict[Item, str]:
        refusals: dict[int, Refusal] = {}
        async with alone():
            for number, item in enumerate(host_routes):
                requests = add_host_route(item, link.index)
                refused = await self._kernel.transact(requests)
                if (refusal := refused.get(len(requests) // 2)) is not None:
                    refusals[number] = refusal
        return await self._reasons(link, host_routes, refusals)

    async def _add_to_main(self, link: Link, version: int, routes: Sequence[Route]) -> dict[Item, str]:
        metric = MAIN_METRICS[version]
        refusals = await self._kernel.transact(codec.add_routes(link.index, routes, metric))
        if _existing(refusals):
            ours = _by_network(await self._reader.routes(version, MAIN_TABLE, protocol=PROTOCOL), metric)
            refusals = await self._replace_ours(link, routes, metric, refusals, ours)
        return await self._reasons(link, routes, refusals)

    async def _add_to_shared(self, link: Link, version: int, table: int, routes: Sequence[Route]) -> dict[Item, str]:
        while True:  # It ends: each round takes a slot that was free a moment ago, or gives up if there is none.
            try:
                slot = await self._slot(link, version, table)
            except HostError as exc:
                return dict.fromkeys(routes, str(exc))
            refusals = await self._kernel.transact(codec.add_routes(link.index, routes, slot))
            existing = _existing(refusals)
            if not existing:
                break
            found = _by_network(await self._reader.routes(version, table), slot)
            mine = {
                network: route
                for network, route in found.items()
                if route.protocol == PROTOCOL and route.index == link.index
            }
            if all(routes[index].network in mine for index in existing):
                refusals = await self._replace_ours(link, routes, slot, refusals, mine)
                break
            # Another process took the slot first, or while our interface was down and had no routes.
            await self._kernel.transact(codec.remove_routes(link.index, routes))
            del self._slots[version, link.index, table]
        return await self._reasons(link, routes, refusals)

    async def _replace_ours(
        self,
        link: Link,
        routes: Sequence[Route],
        metric: int,
        refusals: Mapping[int, Refusal],
        ours: Mapping[IPNetwork, KernelRoute],
    ) -> dict[int, Refusal]:
        """Try again with the routes that were refused because a route exists. Returns the remaining refusals.

        An existing route of ours is removed first. Removal and addition are sent together, so very few packets fall
        into the gap. NLM_F_REPLACE would leave no gap, but it replaces the first route that it finds, ours or not.
        """
        remaining = dict(refusals)
        batch: list[bytearray] = []
        tried: dict[int, int] = {}  # position in the batch: index of the route
        for index in _existing(refusals):
            route = routes[index]
            existing = ours.get(route.network)
            if existing is not None:
                if existing.satisfies(route, link.index):
                    del remaining[index]
                    continue
                batch += codec.remove_routes(existing.index, [route])
            tried[len(batch)] = index
            batch += codec.add_routes(link.index, [route], metric)
        again = await self._kernel.transact(batch)
        for position, index in tried.items():
            if position in again:
                remaining[index] = again[position]
            else:
                del remaining[index]
        return remaining

    async def _add_rules(self, link: Link, rules: Sequence[Rule]) -> dict[Item, str]:
        failed: dict[Item, str] = {}
        if ipv4 := [rule for rule in rules if rule.version == 4]:
            try:
                await self._accept_replies(link)
            except HostError as exc:
                failed |= dict.fromkeys(ipv4, str(exc))
        rules = [rule for rule in rules if rule not in failed]
        for rule in rules:
            try:
                slot = await self._slot(link, rule.version, rule.table)
            except HostError as exc:
                failed[rule] = str(exc)
                continue
            before = self._rules.get((link.index, rule))
            self._rules[link.index, rule] = slot
            refusals = await self._kernel.transact([codec.add_rule(rule, slot)])
            # EEXIST is no failure: table, mark and priority show that the rule is ours, from before.
            failed |= await self._reasons(link, [rule], _without(refusals, {errno.EEXIST}))
            if before is not None and before != slot:
                await self._kernel.transact([codec.remove_rule(rule, before)])
        if rules:
            await self._remove_left_over(rules)
        return failed

    async def _accept_replies(self, link: Link) -> None:
        """Loosen a strict reverse path filter for this interface: see the top of this file."""
        if _filters_strictly(link.name):
            refusals = await self._kernel.transact([link_codec.set_rp_filter(link.index, _RP_FILTER_LOOSE)])
            for refusal in refusals.values():
                raise refused(f"rp_filter of interface {link.name}", link.name, refusal)

    async def _slot(self, link: Link, version: int, table: int) -> int:
        """The slot of an interface in a table: the one it has, or a free one."""
        key = version, link.index, table
        if key not in self._slots:
            rules = await self._reader.rules(version)
            routes = await self._reader.routes(version, table)
            for route in routes:
                if (route.protocol, route.index) == (PROTOCOL, link.index) and route.metric in SLOTS:
                    self._slots[key] = route.metric  # added by another Netlink object
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
        if not host_routes:
            return []
        if link is None:
            # Host routes outlive the interface, and its index is not known any more. All host routes without an
            # interface are stale.
            found = await left_over(self._reader)
            await self._kernel.transact([codec.remove_kernel_route(route) for route in found])
            return []
        batch = [codec.remove_host_route(item, host_route_metric(link.index)) for item in host_routes]
        async with alone():
            refusals = _without(await self._kernel.transact(batch), _ABSENT)
        return [refused(describe(host_routes[index], name), name, refusal) for index, refusal in refusals.items()]

    async def _remove_rule(self, name: str, rule: Rule) -> dict[int, Refusal]:
        index = self._indexes.get(name, 0)
        priority = self._rules.get((index, rule))
        if priority is not None:
            priorities = [priority]
        else:
            # The rule was not added, or another Netlink object added it. In that case it is in the slot of our route,
            # or in a slot without an owner. Rules are read before routes, as in `_remove_left_over`.
            candidates = [
                found.priority
                for found in await self._reader.rules(rule.version)
                if found.protocol == PROTOCOL and found.item == rule
            ]
            owners = await self._reader.slot_owners(rule.version, {rule.table}) if candidates else {}
            priorities = [number for number in candidates if owners.get((rule.table, number)) in (None, index)]
        refusals = await self._kernel.transact([codec.remove_rule(rule, number) for number in priorities])
        self._rules.pop((index, rule), None)
        return _without(refusals, _ABSENT)

    async def _remove_left_over(self, added: Sequence[Rule]) -> None:
        """Remove our left-over rules, whose owner is gone, if they match packets that the ``added`` rules match too.
        The masks may differ: the killed process may have been configured with another mask. So may the versions of IP:
        the interface of that process may have had both."""
        for version in (4, 6):
            await self._remove_left_over_of(version, [replace(rule, version=version) for rule in added])

    async def _remove_left_over_of(self, version: int, added: Sequence[Rule]) -> None:
        mine = {(rule.table, priority) for (_, rule), priority in self._rules.items() if rule.version == version}
        # Rules are read before routes, since an owner adds its route before its rule, and removes it after its rule.
        rules = [
            rule
            for rule in await self._reader.rules(version)
            if rule.protocol == PROTOCOL
            and rule.priority in SLOTS
            and any(rule.item.overlaps(other) for other in added)
            and (rule.table, rule.priority) not in mine
        ]
        if not rules:
            return
        owners = await self._reader.slot_owners(version, {rule.table for rule in rules})
        stale = [rule for rule in rules if (rule.table, rule.priority) not in owners]
        # Refusals are ignored: another owner may remove the same rules at the same time.
        await self._kernel.transact([codec.remove_rule(rule.item, rule.priority) for rule in stale])

    # -- errors

    async def _reasons(self, link: Link, items: Sequence[Item], refusals: Mapping[int, Refusal]) -> dict[Item, str]:
        reasons: dict[Item, str] = {}
        obstacles = 0
        for index, refusal in sorted(refusals.items()):
            item = items[index]
            text = self._note(refused_item(item, link, refusal))
            if isinstance(item, (Route, ConnectedRoute)) and refusal.errno == errno.EEXIST:
                obstacles += 1
                if obstacles <= _MAX_OBSTACLES:
                    text += f"; {await self._describe_obstacle(item)}"
            reasons[item] = text
        return reasons

    def _note(self, error: HostError) -> str:
        """The text of an error; the first shortage is kept."""
        self._lacks_ipv6 |= isinstance(error, NoIPv6Error)
        if self._shortage is None and isinstance(error, ShortageError):
            self._shortage = error
        return str(error)

    async def _describe_obstacle(self, item: Route | ConnectedRoute) -> str:
        if isinstance(item, Route):
            network, table, metric = item.network, item.table, MAIN_METRICS[item.network.version]
        else:
            network, table = item.interface.network, MAIN_TABLE
            metric = CONNECTED_METRICS[network.version]
        return await self._reader.describe_obstacle(network, table, metric)


@asynccontextmanager
async def open_netlink() -> AsyncIterator[Netlink]:
    """A netlink connection of its own, closed at exit. What was added through it stays. Raises HostError."""
    try:
        kernel = Rtnetlink()
    except OSError as exc:
        doing = "cannot open a netlink socket"
        raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc
    try:
        yield Netlink(kernel)
    finally:
        kernel.close()


def _runs_of_one_kind(
    items: Sequence[Item],
) -> Iterator[tuple[list[Address], list[ConnectedRoute], list[Route], list[Rule], list[HostRoute], list[BridgeItem]]]:
    """The items in their order, as runs of the same kind: in each tuple all lists but one are empty."""
    for _, group in groupby(items, type):
        run = list(group)
        yield (
            [item for item in run if isinstance(item, Address)],
            [item for item in run if isinstance(item, ConnectedRoute)],
            [item for item in run if isinstance(item, Route)],
            [item for item in run if isinstance(item, Rule)],
            [item for item in run if isinstance(item, HostRoute)],
            [item for item in run if isinstance(item, (OwnBridge, BridgePort, BridgeAddress))],
        )


def _existing(refusals: Mapping[int, Refusal]) -> list[int]:
    return sorted(index for index, refusal in refusals.items() if refusal.errno == errno.EEXIST)


def _without(refusals: Mapping[int, Refusal], errnos: AbstractSet[int]) -> dict[int, Refusal]:
    return {index: refusal for index, refusal in refusals.items() if refusal.errno not in errnos}


def _by_network(routes: Sequence[KernelRoute], metric: int) -> dict[IPNetwork, KernelRoute]:
    """The routes that collide with ours that have this metric."""
    return {route.network: route for route in routes if route.metric == metric and not route.selective}


def _filters_strictly(interface: str) -> bool:
    """Whether strict reverse path filtering applies to packets from this interface."""
    return max(_rp_filter("all"), _rp_filter(interface)) == _RP_FILTER_STRICT


def _rp_filter(interface: str) -> int:
    """The setting of an interface or of "all"; 0 if /proc does not have it."""
    try:
        with open(f"/proc/sys/net/ipv4/conf/{interface}/rp_filter", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
