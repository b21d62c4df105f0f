"""The bridge that a TAP interface is a port of: makes it if it is to be ours, and gives it addresses.

The rules of this file:

- A bridge of ours is known by its group, and by its ifalias, ``tapotun`` and the name of the interface that made it.
  It is taken over if that interface is the same one, or if no interface has that name: the run that made it was
  killed. While another interface of ours has the name, the bridge is that one's.
- It has the MAC address of its maker, so that it keeps it when ports come and go. Its MTU is the smallest of its ports
  (br_mtu_auto_adjust, net/bridge/br_if.c). It says nothing of its own by IPv6 unless it has an IPv6 address of ours.
- Another program's bridge is never made, set up or removed, and only addresses with our protocol number are removed
  from it. Before Linux 5.18 the kernel has no such numbers, and then every address that the config has is ours. While
  one is removed, the bridge has promote_secondaries, so that the other program's addresses stay.
- An address of ours on a bridge outlives its interface. If a killed run left it, the next interface of ours that
  becomes a port of the bridge removes it, unless the bridge has another TAP interface as a port, which may be its
  owner.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Final, TypeAlias

from ...errors import HostError, MissingBridgeError, ShortageError
from ...families import IPAddress, with_prefix
from ...text import one_line
from ..interfaces import AddressedLink
from ..ipv6 import join_no_routers, make_link_local, refuse_router_advertisements
from ..items import Address, BridgeAddress, BridgePort, ConnectedRoute, Item, OwnBridge
from . import bridge_codec, codec, link_codec
from .bridge_codec import BridgingLink
from .codec import PROTOCOL, AssignedAddress
from .link_codec import Link
from .reader import NetworkReader
from .refusals import describe, refused, refused_item
from .route_lookup import BridgeNetwork
from .socket import GROUP, Refusal, Rtnetlink

BridgeItem: TypeAlias = OwnBridge | BridgePort | BridgeAddress

_TUN: Final = "tun"  # IFLA_INFO_KIND of TUN and TAP interfaces

_SAYS_PROTOCOL: Final = (5, 18)  # the first Linux with IFA_PROTO

# The item is gone, together with its interface or without it.
_ABSENT: Final = frozenset({errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO})
# A connected route: the kernel has made it, or cannot now, since the bridge is down.
_NEEDLESS: Final = frozenset({errno.EEXIST, errno.ENETDOWN, errno.ENETUNREACH})


class Bridges:
    """For `Netlink`, which makes one call at a time. All async methods are checkpoints, and raise HostError as
    `Rtnetlink` does."""

    def __init__(self, kernel: Rtnetlink, reader: NetworkReader) -> None:
        self._kernel = kernel
        self._reader = reader
        self._indexes: dict[str, int] = {}  # of each bridge, since its name may change
        # Of each interface, by its index: written before the request is sent, so that a cancelled one can be undone.
        self._addresses: dict[int, dict[BridgeAddress, int]] = {}

    def networks(self, index: int) -> frozenset[BridgeNetwork]:
        """The networks of the addresses that the interface with this index has on a bridge."""
        given = self._addresses.get(index, {})
        return frozenset((bridge, item.interface.network) for item, bridge in given.items())

    def addresses(self, index: int) -> frozenset[tuple[int, IPAddress]]:
        """The addresses that the interface with this index has on a bridge, each with the bridge's index."""
        given = self._addresses.get(index, {})
        return frozenset((bridge, item.interface.ip) for item, bridge in given.items())

    async def current_link(self, name: str, link: Link | None, addressed: str) -> AddressedLink | None:
        """As `Network.addressed_link`. ``link``: the interface, which may have another name now; None: it is gone."""
        port = None if link is None else await self._details(index=link.index)
        found = await self._details(index=port.master) if port is not None and port.master else None
        if found is None or not found.is_bridge:
            found = port if addressed == name else await self._details(name=addressed)
        if found is None or not found.mac:
            return None
        return AddressedLink(found.mac, frozenset(each.ip for each in await self._assigned(found.link.index)))

    async def require(self, name: str, bridge: str, *, create: bool, ending: Collection[str]) -> None:
        """As `Network.require_bridge`."""
        found = await self._details(name=bridge)
        if found is not None and found.owner in ending:
            if not create:
                owner = one_line(found.owner or "")
                text = f"interface {owner} made bridge {bridge}, which goes when that one stops; say "
                raise MissingBridgeError(text + '"create": true here, or leave it there', ends=True)
            found = None
        if found is not None and found.kind == "tun" and bridge in ending:  # the name is free then
            found = None
        if not create:
            _require_bridge(bridge, found)
        elif found is not None:
            await self._require_ours(name, describe(OwnBridge(bridge), name), found)

    async def refuse_ipv6_again(self, name: str, index: int) -> None:
        """Repair what the interface with this index says and takes by IPv6, and the bridge of ours whose port it is.

        Below an MTU of 1280 the kernel has discarded their IPv6 settings, and the new ones are its defaults. A TUN
        interface has no segment, and nothing to refuse."""
        port = await self._details(index=index)
        if port is None or not port.mac:
            return
        bridge = await self._details(index=port.master) if port.master else None
        is_port = bridge is not None and bridge.is_bridge
        refuse_router_advertisements(port.link.name, is_port=is_port)
        if bridge is None or not is_port:
            return
        join_no_routers(port.link.name)
        if bridge.owner not in ("", name):
            return
        refuse_router_advertisements(bridge.link.name)
        if self._has_ipv6(index, bridge):
            return  # it speaks IPv6, and what is missing of its addresses is added again
        await self._remove_link_local(bridge)

    async def _remove_link_local(self, bridge: BridgingLink) -> None:
        """Take its link-local address from a bridge of ours that has no other IPv6 address."""
        automatic = await self._reader.link_local(bridge.link.index)
        silent = link_codec.set_ipv6_silent(bridge.link.index)
        await self._kernel.transact([silent, *map(codec.remove_assigned, automatic)])

    async def add(
        self, name: str, link: Link, items: Sequence[BridgeItem], failed: Mapping[Item, str]
    ) -> dict[BridgeItem, HostError]:
        """Add items of one kind for the interface ``name``. Returns the refused ones with the reasons.

        ``failed``: the items of the same batch that were refused before. What needs a bridge of ours that could not be
        made is not tried, since the bridge of that name is another program's.
        """
        untried = {item.name for item in failed if isinstance(item, OwnBridge)}
        errors: dict[BridgeItem, HostError] = {}
        addresses: dict[str, list[BridgeAddress]] = {}
        for item in items:
            bridge = _bridge_of(item)
            if bridge in untried:
                errors[item] = HostError(f"{describe(item, name)}: not tried, as there is no bridge {bridge} of ours")
                continue
            try:
                match item:
                    case OwnBridge():
                        await self._add_bridge(name, link, item)
                    case BridgePort():
                        await self._add_port(name, link, item)
                    case BridgeAddress():
                        addresses.setdefault(bridge, []).append(item)
            except HostError as exc:
                errors[item] = exc
        for same in addresses.values():
            errors |= await self._add_addresses(name, link, same)
        return errors

    async def remove(self, name: str, link: Link | None, items: Sequence[BridgeItem]) -> list[HostError]:
        """Remove items. What is gone already, or is not ours, is no failure. Returns the failures.

        ``link``: the interface ``name``; None: it is gone."""
        failures: list[HostError] = []
        # All addresses of a bridge together: the time for an undo is short.
        for _, group in groupby(items, lambda item: (type(item), _bridge_of(item))):
            same = list(group)
            bridge = await self._find(_bridge_of(same[0]))
            if bridge is not None:
                failures += await self._remove_same(name, link, same, bridge)
            if link is not None:
                gone = [item for item in same if isinstance(item, BridgeAddress)]
                for item in gone:
                    self._addresses.get(link.index, {}).pop(item, None)
                had_ipv6 = any(item.interface.version == 6 for item in gone)
                is_ours = bridge is not None and bridge.owner in ("", name)
                if had_ipv6 and bridge is not None and is_ours and not self._has_ipv6(link.index, bridge):
                    await self._remove_link_local(bridge)
        return failures

    async def _remove_same(
        self, name: str, link: Link | None, items: Sequence[BridgeItem], bridge: BridgingLink
    ) -> list[HostError]:
        """Remove those of these items, of one kind and one bridge, that are there and are ours. Returns the
        failures."""
        index = bridge.link.index
        requests: dict[BridgeItem, bytearray] = {}
        ours = await self._ours(index) if isinstance(items[0], BridgeAddress) else []
        for item in items:
            match item:
                case OwnBridge():
                    if bridge.owner in ("", name):
                        requests[item] = bridge_codec.remove_link(index)
                case BridgePort():
                    port = None if link is None else await self._details(index=link.index)
                    if port is not None and port.master == index:
                        requests[item] = bridge_codec.set_master(port.link.index, 0)
                case BridgeAddress(_, interface):
                    if any(_is_at(item, each) for each in ours):
                        requests[item] = codec.remove_address(index, Address(interface))
        has_ipv4 = any(isinstance(item, BridgeAddress) and item.interface.version == 4 for item in requests)
        batch = list(requests.values())
        refusals = await (self._transact_removing(bridge, batch) if has_ipv4 else self._kernel.transact(batch))
        tried = list(requests)
        return [
            refused(describe(tried[number], name), name, refusal)
            for number, refusal in sorted(refusals.items())
            if refusal.errno not in _ABSENT
        ]

    async def _transact_removing(self, bridge: BridgingLink, requests: Sequence[bytearray]) -> dict[int, Refusal]:
        """As `Rtnetlink.transact`, for requests that remove IPv4 addresses of the bridge.

        With the first address of a network the kernel removes the others, which are another program's, unless it
        promotes them. So it promotes them for as long as one send takes: a cancellation leaves the setting as it was.
        """
        if bridge.promotes:
            return await self._kernel.transact(requests)
        refusals: dict[int, Refusal] = {}
        index, size = bridge.link.index, GROUP - 2
        for start in range(0, len(requests), size):
            part = requests[start : start + size]
            begin = link_codec.set_promote_secondaries(index)
            end = link_codec.set_promote_secondaries(index, promote=False)
            found = await self._kernel.transact([begin, *part, end])
            refusals |= {start + number - 1: refusal for number, refusal in found.items() if 0 < number <= len(part)}
        return refusals

    async def present(self, name: str, link: Link, items: Sequence[BridgeItem]) -> set[Item]:
        """Those of the items that are in the kernel. A bridge of ours that is down counts as absent, and so does an
        address whose connected route is gone while the bridge is up."""
        found: set[Item] = set()
        bridges = {each: await self._find(each) for each in {_bridge_of(item) for item in items}}
        port = await self._details(index=link.index) if items else None
        for bridge_name, bridge in bridges.items():
            if bridge is None or not bridge.is_bridge:
                continue
            mine = [item for item in items if _bridge_of(item) == bridge_name]
            addresses = [item for item in mine if isinstance(item, BridgeAddress)]
            assigned = await self._assigned(bridge.link.index) if addresses else []
            lacking = await self._lacking_routes(bridge, addresses)
            for item in mine:
                match item:
                    case OwnBridge():
                        is_present = bridge.owner in ("", name) and bridge.link.admin_up
                    case BridgePort():
                        is_present = port is not None and port.is_port(bridge, item)
                    case BridgeAddress():
                        is_present = item not in lacking and any(_is_at(item, each) for each in assigned)
                if is_present:
                    found.add(item)
        return found

    async def blocked_reason(self, link: Link) -> str | None:
        """As `LinkState.blocked_reason`."""
        if not self._indexes:
            return None  # no interface that was served here is a port
        port = await self._details(index=link.index)
        bridge = await self._details(index=port.master) if port is not None and port.master else None
        if port is None or bridge is None or not bridge.is_bridge:
            return None
        name, own = one_line(bridge.link.name), one_line(link.name)
        if not bridge.link.admin_up:
            if bridge.owner is not None:
                return None  # the interface that made it sets it up again
            up = f"`ip link set {name} up`"
            return f"bridge {name} is down, so nothing passes between its other ports and this one; {up}"
        if not (port.is_disabled and port.link.running):  # without a carrier every port is disabled
            return None
        again = f"`ip link set {own} down` and `ip link set {own} up` enable it again"
        if port.bpdu_guard:
            why = "since a BPDU has come through the tunnel (bpdu_guard)"
            return f"bridge {name} has disabled this port, {why}; {again}"
        return f"another program has disabled this port of bridge {name}; {again}"

    async def remove_left_over(self, name: str, kept: str | None) -> list[str]:
        """As `Network.remove_left_over_bridges`."""
        links = await self._kernel.dump(link_codec.dump_links(), bridge_codec.read_bridging_link)
        found = [each.link for each in links if each.owner == name and each.link.name != kept]
        await self._kernel.transact([bridge_codec.remove_link(link.index) for link in found])
        return [one_line(link.name) for link in found]

    async def _add_bridge(self, name: str, link: Link, item: OwnBridge) -> None:
        what = describe(item, name)
        maker = await self._details(index=link.index)
        if maker is None:
            raise HostError(f"{what}: interface {name} does not exist (any more)")
        bridge = await self._find(item.name)
        if bridge is None:
            refusals = await self._kernel.transact([bridge_codec.create_bridge(item.name, maker.mac)])
            for refusal in refusals.values():
                if refusal.errno != errno.EEXIST:  # otherwise another program was faster
                    has_bridges = refusal.errno != errno.EOPNOTSUPP
                    remedy = None if has_bridges else "this kernel has no bridges; `modprobe bridge` may load them"
                    raise refused(what, item.name, refusal, remedy)
            bridge = await self._details(name=item.name)
        if bridge is None:
            raise HostError(f"{what}: another program has removed it at once; keep it from doing so")
        await self._require_ours(name, what, bridge)
        index = bridge.link.index
        setup: list[bytearray] = []
        if self._indexes.get(item.name) != index or bridge.owner != name:
            refuse_router_advertisements(bridge.link.name)
            setup = [
                bridge_codec.claim_bridge(index, name, maker.mac),
                link_codec.set_promote_secondaries(index),
                *([] if self._has_ipv6(link.index, bridge) else [link_codec.set_ipv6_silent(index)]),
            ]
        # A refusal of the others is ignored: the bridge works without them.
        refusals = await self._kernel.transact([*setup, link_codec.set_link_admin_up(index)])
        self._indexes[item.name] = index  # not earlier: if that failed, all of it is sent again
        if (reason := refusals.get(len(setup))) is not None:
            raise refused(what, item.name, reason)

    def _has_ipv6(self, index: int, bridge: BridgingLink) -> bool:
        """Whether the interface with this index has an IPv6 address on the bridge."""
        given = self._addresses.get(index, {})
        return any(item.interface.version == 6 for item, where in given.items() if where == bridge.link.index)

    async def _require_ours(self, name: str, what: str, bridge: BridgingLink) -> None:
        """Raise HostError unless the bridge belongs to the interface ``name``, or was left by a killed run."""
        if not bridge.is_bridge:
            raise HostError(f"{what}: the name is taken, by an interface{_of_kind(bridge)}; choose another name")
        owner = bridge.owner
        if owner is None:
            raise HostError(
                f'{what}: another program made it; leave out "create" to use it, choose another name, or '
                f"`ip link delete {bridge.link.name}` if nobody needs it"
            )
        if owner not in ("", name) and await self._reader.find_link(name=owner) is not None:
            raise HostError(
                f"{what}: interface {one_line(owner)} of this program made it and removes it at its end; leave out "
                '"create" here, or choose another name'
            )

    async def _add_port(self, name: str, link: Link, item: BridgePort) -> None:
        what = describe(item, name)
        try:
            bridge = await self._expect(item.bridge)
        except HostError as exc:
            raise _in_context(what, exc) from exc
        requests = [
            bridge_codec.set_master(link.index, bridge.link.index),
            bridge_codec.set_port_options(link.index, item),
        ]
        join_no_routers(link.name)
        refusals = await self._kernel.transact(requests)
        for refusal in refusals.values():
            raise refused(what, name, refusal)
        await self._remove_left_over_addresses(link, bridge)

    async def _remove_left_over_addresses(self, link: Link, bridge: BridgingLink) -> None:
        """Remove the addresses that a killed run has left on the bridge."""
        index = bridge.link.index
        given = self._addresses.get(link.index, {})
        found = [
            each
            for each in await self._assigned(index)
            if each.protocol == PROTOCOL and not any(_is_at(item, each) for item in given)
        ]
        if not found:
            return
        links = await self._kernel.dump(link_codec.dump_links(), bridge_codec.read_bridging_link)
        if any(each.master == index and each.kind == _TUN and each.link.index != link.index for each in links):
            return
        await self._transact_removing(bridge, [codec.remove_assigned(each) for each in found])

    async def _add_addresses(
        self, name: str, link: Link, items: Sequence[BridgeAddress]
    ) -> dict[BridgeItem, HostError]:
        """Add addresses of one bridge."""
        try:
            bridge = await self._expect(items[0].bridge)
        except HostError as exc:
            return {item: _in_context(describe(item, name), exc) for item in items}
        errors: dict[BridgeItem, HostError] = {}
        index = bridge.link.index
        given = self._addresses.setdefault(link.index, {})
        assigned = await self._assigned(index)
        ours = await self._ours(index)
        refusals: dict[BridgeAddress, Refusal] = {}
        added: set[int] = set()  # the families that have got an address here
        # The source of a packet is the first address in IPv4, and the one that was added last in IPv6.
        ipv6 = [item for item in items if item.interface.version == 6]
        for item in (*(item for item in items if item.interface.version == 4), *reversed(ipv6)):
            # An interface has an IPv6 address only once, and the kernel ignores a new prefix length.
            version = item.interface.version
            same = [each for each in assigned if _is_at(item, each) or (version == 6 and each.ip == item.interface.ip)]
            if any(each not in ours for each in same):
                errors[item] = HostError(
                    f"{describe(item, name)}: another program gave the bridge this address; remove it there "
                    f"(`ip address del {item.interface} dev {bridge.link.name}`), or take it out of the config"
                )
                continue
            given[item] = index
            # An address that has to come behind one that is new is added anew.
            is_kept = any(_is_at(item, each) for each in same) and version not in added
            requests: list[bytearray] = []
            if not is_kept:
                added.add(version)
                requests = [*map(codec.remove_assigned, same), codec.add_address(index, Address(item.interface))]
            if version == 6 and bridge.owner in ("", name):
                refuse_router_advertisements(bridge.link.name)  # an MTU that was too small has discarded that
                make_link_local(bridge.link.name)
                requests.insert(0, link_codec.set_ipv6_automatic(index))
            removes = version == 4 and bool(same) and not is_kept
            found = await (self._transact_removing(bridge, requests) if removes else self._kernel.transact(requests))
            if not is_kept and (refusal := found.get(len(requests) - 1)) is not None:
                refusals[item] = refusal
        present = [item for item in items if item not in errors and item not in refusals]
        refusals |= await self._add_lacking_routes(bridge, present)
        for item, refusal in refusals.items():
            errors[item] = refused_item(item, bridge.link, refusal)
        return errors

    async def _add_lacking_routes(
        self, bridge: BridgingLink, items: Sequence[BridgeAddress]
    ) -> dict[BridgeAddress, Refusal]:
        """Add the connected routes of addresses that another program has removed. Returns the refusals."""
        found = await self._lacking_routes(bridge, items)
        lacking = [item for item in items if item in found]  # of one network, the first one is the source of packets
        routes = [codec.add_connected_route(bridge.link.index, ConnectedRoute(item.interface)) for item in lacking]
        refusals = await self._kernel.transact(routes)
        return {lacking[number]: it for number, it in refusals.items() if it.errno not in _NEEDLESS}

    async def _expect(self, name: str) -> BridgingLink:
        """The bridge. Raises MissingBridgeError if there is none, and HostError if the link is none: the end of a
        sentence."""
        bridge = _require_bridge(name, await self._find(name))
        self._indexes[name] = bridge.link.index
        return bridge

    async def _find(self, name: str) -> BridgingLink | None:
        """The bridge that had this name when it was first used here; if that is gone, the link that has the name now.
        The kernel may have given its index to another link."""
        index = self._indexes.get(name)
        found = None if index is None else await self._details(index=index)
        return found if found is not None and found.is_bridge else await self._details(name=name)

    async def _details(self, *, name: str = "", index: int = 0) -> BridgingLink | None:
        answer = await self._kernel.ask(link_codec.get_link(name=name, index=index))
        if not isinstance(answer, Refusal):
            return bridge_codec.read_bridging_link(memoryview(answer))
        if answer.errno == errno.ENODEV:
            return None
        raise HostError(f"cannot look up interface {name or index}: {answer.text}")

    async def _assigned(self, index: int) -> list[AssignedAddress]:
        found = await self._kernel.dump(codec.dump_addresses(index), codec.read_assigned)
        return [each for each in found if each.index == index]

    async def _ours(self, index: int) -> list[AssignedAddress]:
        """The addresses of the bridge with this index that we may remove: see the top of this file."""
        if _kernel_version() >= _SAYS_PROTOCOL:
            return [each for each in await self._assigned(index) if each.protocol == PROTOCOL]
        # A distribution may have given an older kernel the same. The kernel itself has added the addresses of the
        # loopback interface, and says so if it can.
        found = await self._kernel.dump(codec.dump_addresses(), codec.read_assigned)
        says_protocol = any(each.protocol is not None for each in found)
        return [each for each in found if each.index == index and (each.protocol == PROTOCOL or not says_protocol)]

    async def _lacking_routes(self, bridge: BridgingLink, items: Collection[BridgeAddress]) -> set[BridgeAddress]:
        """The addresses of which no table has a route of the kernel's to their network through the bridge.

        The kernel's own may have been replaced by one with another metric, or in another table. None while the bridge
        is down, as the kernel makes none then. None if the bridge is in a VRF: the main table is not its table.
        """
        lacking: set[BridgeAddress] = set()
        for version in {item.interface.version for item in items if bridge.link.admin_up and not bridge.master}:
            present = await self._reader.connected(version, bridge.link.index)
            lacking |= {
                item
                for item in items
                if item.interface.version == version and _makes_route(item) and item.interface.network not in present
            }
        return lacking


def _require_bridge(name: str, found: BridgingLink | None) -> BridgingLink:
    """Raises as `Bridges._expect`. ``found``: the link ``name``."""
    if found is None:
        raise MissingBridgeError(
            f"there is no bridge {name}; make it (`ip link add {name} up type bridge`), or say "
            '"create": true, which makes it and removes it at the end'
        )
    if not found.is_bridge:
        raise HostError(f"{name} is an interface{_of_kind(found)}, and no bridge; name a bridge")
    return found


def _kernel_version() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _in_context(what: str, error: HostError) -> HostError:
    """The error of the same kind, with ``what`` was tried before its text. A shortage says that itself."""
    if isinstance(error, ShortageError):
        return error
    return (MissingBridgeError if isinstance(error, MissingBridgeError) else HostError)(f"{what}: {error}")


def _bridge_of(item: BridgeItem) -> str:
    return item.name if isinstance(item, OwnBridge) else item.bridge


def _is_at(item: BridgeAddress, found: AssignedAddress) -> bool:
    return with_prefix(found.ip, found.network.prefixlen) == item.interface


def _makes_route(item: BridgeAddress) -> bool:
    """A /32 address gets no connected route, and a /128 does."""
    return item.interface.version == 6 or item.interface.network.prefixlen < 32


def _of_kind(link: BridgingLink) -> str:
    return f" of kind {link.kind}" if link.kind else ""
