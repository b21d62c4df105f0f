"""Keeps the state of this machine's links, addresses and default routes from rtnetlink notifications. No I/O.

What is reported as a change, and what is not:

- An address is reported when it is added or removed. Three things are not: the renewal of its lifetime; an IPv6 address
  while the kernel still looks for a duplicate; link-local and loopback addresses, which come and go with their links.
- A link is reported when it goes up or down, if it has an address that is tracked. The ports of a bridge and the far
  ends of containers have none, and no connection of this machine uses them as its path.
- A default route of the main table is reported, and half of one (other VPNs override it with 0.0.0.0/1 and
  128.0.0.0/1).
- Nothing of ours is reported: neither the interfaces of this process, which are known by name, nor the addresses and
  routes of any process that carry our protocol number. (For addresses the kernel has a field for that number since
  5.18.)

The kernel sends no notification when IPv4 routes vanish together with their link or their source address. So after
either event the tracker forgets the routes of that link, and reports the next notification about one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from socket import AF_INET6
from typing import Final

from pyroute2.netlink import NLM_F_REPLACE
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNETCONF,
    RTM_NEWROUTE,
)

from ...text import one_line
from ..interfaces import Change, InterfaceChange
from ..items import MAIN_TABLE, RouteKey
from . import bridge_codec, codec, link_codec
from .codec import KERNEL_PROTOCOL, PROTOCOL, KernelAddress
from .link_codec import Link
from .messages import read_number, read_sender

# The attributes that make two routes to one network different. The lifetime in CACHEINFO is not one of them: IPv6
# routers renew it every few minutes.
_ROUTE_IDENTITY: Final = frozenset(
    {
        codec.RTA_DST,
        codec.RTA_OIF,
        codec.RTA_GATEWAY,
        codec.RTA_PRIORITY,
        codec.RTA_PREFSRC,
        codec.RTA_MULTIPATH,
        codec.RTA_VIA,
        codec.RTA_PREF,
        codec.RTA_ENCAP_TYPE,
        codec.RTA_ENCAP,
        codec.RTA_NH_ID,
    }
)
# The attributes that identify a route: NLM_F_REPLACE replaces the route in which they are the same.
_REPLACE_KEY: Final = frozenset({codec.RTA_DST, codec.RTA_PRIORITY})

HALF_DEFAULT: Final = 1  # the longest prefix length that still counts as a default route

_MAX_PHRASES: Final = 4  # described in one log line
_MAX_SENDERS: Final = 8  # remembered for the changes to one interface
_HOSTS: Final = {4: 32, 6: 128}  # prefix lengths; a host route for this interface leads through another device

_AddressKey = tuple[int, str, int]  # interface index, address, prefix length
_Attributes = frozenset[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class _Route:
    family: int
    prefix: int
    tos: int
    index: int
    """The index of the interface; 0 if the route has none, or several (multipath)."""
    identity: _Attributes

    @property
    def replace_key(self) -> tuple[int, int, int, _Attributes]:
        attributes = frozenset(attribute for attribute in self.identity if attribute[0] in _REPLACE_KEY)
        return self.family, self.prefix, self.tos, attributes


class NetworkTracker:
    """The links, addresses and default routes of this machine as far as they are known, and what changed."""

    def __init__(self, own: Container[str]) -> None:
        """``own``: the names of our interfaces. More names may be added to it later."""
        self._own = own
        self._links: dict[int, Link] = {}
        self._addresses: dict[_AddressKey, KernelAddress] = {}
        # Only routes about which a notification came: a table may have a million routes, so none are read at the start.
        # Hence a route that existed before is reported once, when it is renewed for the first time.
        self._routes: set[_Route] = set()
        # The state at the last `drain`, and what was touched since. A thing may have changed and changed back, so a
        # comparison of both states is not enough.
        self._old_links: dict[int, Link] = {}
        self._old_addresses: dict[_AddressKey, KernelAddress] = {}
        self._touched_links: dict[int, None] = {}  # a set that keeps its order
        self._touched_addresses: dict[_AddressKey, None] = {}
        self._touched_families: dict[int, None] = {}  # the address families of default routes
        self._overflowed = False

    @property
    def dirty(self) -> bool:
        """Whether something has happened since the last `drain`; it may turn out to be nothing that is reported."""
        return bool(self._touched_links or self._touched_addresses or self._touched_families or self._overflowed)

    def load(self, links: Iterable[Link], addresses: Iterable[KernelAddress]) -> None:
        """Take over the state as it was read from the kernel."""
        new_links = {link.index: link for link in links}
        for index in self._links.keys() | new_links.keys():
            self._set_link(index, new_links.get(index))
        new_addresses = {_key(address): address for address in addresses}
        for key in self._addresses.keys() | new_addresses.keys():
            self._set_address(key, new_addresses.get(key))
        self._routes.clear()

    def overflow(self) -> None:
        """Record that notifications were lost. The loss itself is reported as a change, since one of them may have been
        about a route, and `load` reads no routes."""
        self._overflowed = True

    def handle_message(self, kind: int, flags: int, message: memoryview) -> bool:
        """Process one notification. ``message``: all of it, with its header. Returns whether it says that something has
        happened."""
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return self._handle_route(kind, flags, message)
        if kind in (RTM_NEWADDR, RTM_DELADDR):
            address = codec.read_address(message)
            return address is not None and self._set_address(_key(address), address if kind == RTM_NEWADDR else None)
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = link_codec.read_link(message)
            return link is not None and self._set_link(link.index, link if kind == RTM_NEWLINK else None)
        return False

    def drain(self) -> Change | None:
        """What has changed since the last call; None if nothing is to be reported."""
        phrases = [*self._link_changes(), *self._address_changes(), *self._route_changes()]
        incomplete = self._overflowed
        touched_links = frozenset(self._touched_links)
        touched_addresses = frozenset(text for _, text, _ in self._touched_addresses) | {
            address.text
            for address in (*self._old_addresses.values(), *self._addresses.values())
            if address.index in touched_links
        }
        if self._overflowed and not phrases:
            phrases.append("more happened to addresses and routes than could be followed")
        self._touched_links.clear()
        self._touched_addresses.clear()
        self._touched_families.clear()
        self._overflowed = False
        self._old_links = dict(self._links)
        self._old_addresses = dict(self._addresses)
        if not phrases:
            return None
        if len(phrases) > _MAX_PHRASES:
            phrases[_MAX_PHRASES:] = [f"and {len(phrases) - _MAX_PHRASES} more"]
        return Change(
            "; ".join(phrases),
            frozenset(address.text for address in self._addresses.values()),
            touched_addresses=touched_addresses,
            touched_links=touched_links,
            incomplete=incomplete,
        )

    # -- updating the state: each returns whether something has happened

    def _set_link(self, index: int, link: Link | None) -> bool:
        before = self._links.pop(index, None)
        if link is not None:
            self._links[index] = link
        else:
            for key in [key for key in self._addresses if key[0] == index]:
                self._set_address(key, None)
        if link is None or not link.admin_up:
            self._forget_routes(index)
        if _is_running(before) == _is_running(link):
            return False
        self._touched_links[index] = None
        return True

    def _set_address(self, key: _AddressKey, address: KernelAddress | None) -> bool:
        before = self._addresses.pop(key, None)
        if address is not None:
            self._addresses[key] = address
        else:
            self._forget_routes(key[0])
        if _is_reported(before) == _is_reported(address):
            return False
        self._touched_addresses[key] = None
        return True

    def _handle_route(self, kind: int, flags: int, message: memoryview) -> bool:
        header = codec.read_route_header(message)
        if header.dst_len > HALF_DEFAULT or header.table != MAIN_TABLE or header.protocol == PROTOCOL:
            return False
        found = codec.read_route_attributes(message)
        identity = frozenset((number, bytes(found[number])) for number in found.keys() & _ROUTE_IDENTITY)
        index = read_number(found.get(codec.RTA_OIF))
        route = _Route(header.family, header.dst_len, header.tos, index, identity)
        if kind == RTM_DELROUTE:
            self._routes.discard(route)
        elif route in self._routes:
            return False  # only renewed
        else:
            if flags & NLM_F_REPLACE:
                self._routes = {other for other in self._routes if other.replace_key != route.replace_key}
            self._routes.add(route)
        self._touched_families[header.family] = None
        return True

    def _forget_routes(self, index: int) -> None:
        """Forget the routes of a link, after an event with which the kernel may remove them without a notification."""
        self._routes = {route for route in self._routes if route.index not in (index, 0)}

    # -- describing changes

    def _link_changes(self) -> Iterator[str]:
        if not self._touched_links:
            return
        both = (*self._old_addresses.values(), *self._addresses.values())
        with_address = {address.index for address in both if address.tracked}
        for index in self._touched_links:
            if index not in with_address or self._is_own(index):
                continue
            link, name = self._links.get(index), self._name(index)
            if link is None:
                yield f"{name} is gone"
            elif _is_running(link) != _is_running(self._old_links.get(index)):
                yield f"{name} is {'up' if link.running else 'down'}"
            elif link.running:
                yield f"{name} was down for a moment"

    def _address_changes(self) -> Iterator[str]:
        for key in self._touched_addresses:
            index, text, _ = key
            if self._is_own(index):
                continue
            before, now = _is_reported(self._old_addresses.get(key)), _is_reported(self._addresses.get(key))
            if before != now:
                yield f"{self._name(index)}: address {text} {'added' if now else 'removed'}"
            elif now:
                yield f"{self._name(index)}: address {text} was gone for a moment"

    def _route_changes(self) -> Iterator[str]:
        for family in self._touched_families:
            yield "IPv6 default route changed" if family == AF_INET6 else "default route changed"

    def _is_own(self, index: int) -> bool:
        link = self._links.get(index) or self._old_links.get(index)
        return link is not None and link.name in self._own

    def _name(self, index: int) -> str:
        link = self._links.get(index) or self._old_links.get(index)
        return f"interface {index}" if link is None else one_line(link.name)


class InterfaceTracker:
    """Tracks changes to one interface of ours, to its addresses and routes, and to our rules. If the interface is the
    port of a bridge, tracks its place there, and the bridge's addresses and routes."""

    def __init__(self, index: int, is_route: Callable[[RouteKey], bool], master: int = 0) -> None:
        """The arguments are those of `Host.open_interface`. Assumes that the interface is up. ``master``: the index of
        the bridge that the interface is a port of; 0: of none."""
        self._index = index
        self._master = master
        self._master_up: bool | None = None  # None: not known
        self._is_route = is_route
        self._admin_up = True
        self._link: tuple[str, int] | None = None  # name and MTU
        self._toggled = False
        self._moved = False
        self._taken = False  # something was taken that only a program that is not ours takes
        self._routes_lost: set[RouteKey] = set()  # routes that another program has removed, or one of ours taken over
        self._down_tuns: set[int] = set()  # other TUN interfaces that are down
        self._senders: set[int] = set()
        self.dirty = False

    def load(self, links: Iterable[Link], addresses: Iterable[KernelAddress]) -> None:
        """As `NetworkTracker.load`."""
        for link in links:
            if link.index == self._index:
                self._set_link(link)

    def overflow(self) -> None:
        """As `NetworkTracker.overflow`."""
        self.dirty = self._taken = True

    def handle_message(self, kind: int, flags: int, message: memoryview) -> bool:
        """As `NetworkTracker.handle_message`."""
        if self._returns_routes(kind, message):
            self.dirty = True
            return True
        if not self._concerns(kind, flags, message):
            return False
        self.dirty = True
        if (key := _main_route_removed(kind, message)) is not None:
            self._routes_lost.add(key)
        else:
            self._taken = True
        if len(self._senders) < _MAX_SENDERS:
            self._senders.add(read_sender(message))
        return True

    def drain(self) -> InterfaceChange:
        """Return what has changed since the last call."""
        returned = not self._taken and not self._routes_lost
        change = InterfaceChange(self._toggled, self._moved, frozenset(self._senders), returned)
        self._toggled = self._moved = self._taken = self.dirty = False
        self._routes_lost.clear()
        self._senders.clear()
        return change

    def _returns_routes(self, kind: int, message: memoryview) -> bool:
        """Whether another interface, which is or may be ours, has lost routes that this one may want too.

        In the main table only one interface of ours has a route to a network. If that interface is set down or deleted,
        for example since its process was killed, its IPv4 routes vanish without a notification.
        """
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = link_codec.read_link(message)
            if link is None or link.index == self._index or link_codec.read_tun_index(message) is None:
                return False
            if kind == RTM_DELLINK:
                self._down_tuns.discard(link.index)
                self._routes_lost.clear()
                return True
            if link.admin_up or link.index in self._down_tuns:
                if link.admin_up:
                    self._down_tuns.discard(link.index)
                return False
            self._down_tuns.add(link.index)
            self._routes_lost.clear()
            return True
        if kind != RTM_DELROUTE:
            return False
        key, protocol, index, _ = codec.read_route_key(message)
        if protocol != PROTOCOL or index == self._index or not self._is_route(key):
            return False
        # The other interface had taken this route over.
        self._routes_lost.discard(key)
        return True

    def _concerns(self, kind: int, flags: int, message: memoryview) -> bool:
        if kind == RTM_NEWNETCONF:
            return link_codec.read_rp_filter_change(message) in (self._index, link_codec.NETCONF_ALL)
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = link_codec.read_link(message)
            if link is None:  # the options of a port, or that it is none any more
                return bool(self._master) and bridge_codec.is_port_change(message, self._index)
            if link.index == self._master:
                return self._set_master_link(link if kind == RTM_NEWLINK else None)
            if link.index != self._index:
                return False
            if kind == RTM_DELLINK:
                self._moved = link_codec.is_move(message)
                return True
            return self._set_link(link, bridge_codec.read_master(message))
        if kind == RTM_DELADDR:
            address = codec.read_address(message)
            return address is not None and address.index in self._indexes
        if kind == RTM_DELRULE:
            rule = codec.read_rule(message)
            return rule is not None and rule.protocol == PROTOCOL
        if kind not in (RTM_NEWROUTE, RTM_DELROUTE):
            return False
        key, protocol, index, _ = codec.read_route_key(message)
        if kind == RTM_DELROUTE:
            if protocol == KERNEL_PROTOCOL:  # the connected route of an address
                return index in self._indexes
            return protocol == PROTOCOL and (index == self._index or key[2] == _HOSTS[key[0]])
        # We never replace a route ourselves.
        return bool(flags & NLM_F_REPLACE) and self._is_route(key)

    @property
    def _indexes(self) -> tuple[int, ...]:
        """Those of the links that may have addresses of ours."""
        return (self._index, self._master) if self._master else (self._index,)

    def _set_link(self, link: Link, master: int | None = None) -> bool:
        changed = link.admin_up != self._admin_up
        if changed:
            self._admin_up = link.admin_up
            self._toggled = True
        before, self._link = self._link, (link.name, link.mtu)
        if master is not None and master != self._master:
            self._master, self._master_up = master, None
            return True
        return changed or before != self._link

    def _set_master_link(self, link: Link | None) -> bool:
        before, self._master_up = self._master_up, link is not None and link.admin_up
        return before != self._master_up


def _main_route_removed(kind: int, message: memoryview) -> RouteKey | None:
    """The key of a route of the main table that was removed and carried our number; None: it was something else."""
    if kind != RTM_DELROUTE:
        return None
    key, protocol, _, _ = codec.read_route_key(message)
    return key if protocol == PROTOCOL and key[3] == MAIN_TABLE else None


def _is_running(link: Link | None) -> bool:
    return link is not None and link.running


def _is_reported(address: KernelAddress | None) -> bool:
    return address is not None and address.usable and address.tracked


def _key(address: KernelAddress) -> _AddressKey:
    return address.index, address.text, address.prefix
