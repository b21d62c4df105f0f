"""What rtnetlink's notifications say about this machine's ways into the network. No I/O.

Follows linux/rtnetlink.h, linux/if_addr.h and linux/if.h; by hand, since these come unasked and in any number.

What counts as news, and what does not:

- An address that comes or goes. Not the renewal of its lifetime, nor an IPv6 address while the kernel still
  looks for a duplicate of it, nor link-local ones and loopback's, which come and go with their links.
- A link that goes up or down, if it has an address that counts: ports of a bridge, or the far ends of
  containers, are nobody's path.
- A default route of the main table, or half of one (0.0.0.0/1 and 128.0.0.0/1 is how other VPNs override it).
- Nothing of ours: neither the interfaces of this process, by their names, nor what carries our protocol number,
  from whatever process. (For addresses the kernel has a place for that number since 5.18.)

The kernel does not say it when IPv4 routes vanish with their link or with their source address. So after either,
what is known of the routes there is forgotten, and the next one to be told about is news again.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ...text import one_line
from ..interfaces import Change
from ..items import MAIN_TABLE
from .codec import PROTOCOL
from .socket import attributes

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
_NLM_F_REPLACE: Final = 0x100
_NLM_F_DUMP_REQUEST: Final = 0x301

_IFF_UP: Final = 0x1
_IFF_RUNNING: Final = 0x40
_IFLA_IFNAME: Final = 3
_IFLA_EXT_MASK: Final = 29
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_IFA_PROTO: Final = 11
_IFA_F_OPTIMISTIC: Final = 0x04
_IFA_F_DADFAILED: Final = 0x08
_IFA_F_TENTATIVE: Final = 0x40
_RT_SCOPE_LINK: Final = 253  # and beyond it, RT_SCOPE_HOST

_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_PRIORITY: Final = 6
# What makes two routes to one network different: DST, OIF, GATEWAY, PRIORITY, PREFSRC, MULTIPATH, VIA, PREF,
# ENCAP_TYPE, ENCAP, NH_ID. Not the lifetime in CACHEINFO: IPv6 routers renew it every few minutes.
_ROUTE_IDENTITY: Final = frozenset({_RTA_DST, _RTA_OIF, 5, _RTA_PRIORITY, 7, 9, 18, 20, 21, 22, 30})

HALF_DEFAULT: Final = 1  # the longest prefix that counts as a default route

# All with struct nlmsghdr before them: length u32, type u16, flags u16, sequence u32, pid u32.
_NLMSGHDR: Final = struct.Struct("=IHHII")
_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, hardware type, index, flags, which of them changed
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, prefix lengths, tos, table, protocol, scope, type, flags

_PHRASES: Final = 4  # in one log line


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    admin_up: bool
    """Somebody set it up (IFF_UP)."""
    up: bool
    """And it works: there is a carrier (IFF_RUNNING)."""


@dataclass(frozen=True, slots=True)
class Address:
    index: int
    text: str
    prefix: int
    usable: bool
    """Not while the kernel looks for a duplicate (RFC 4862), nor after it found one."""
    counts: bool
    """Neither link-local, nor loopback's, nor ours by its protocol number."""


def dump_links() -> bytearray:
    """The request that `read_link` reads the answers to."""
    # Without the statistics, which are three quarters of an answer.
    mask = struct.pack("=HHI", 8, _IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return _dump(_RTM_GETLINK, bytes(_IFINFOMSG.size) + mask)


def dump_addresses() -> bytearray:
    """The request that `read_address` reads the answers to."""
    return _dump(_RTM_GETADDR, bytes(_IFADDRMSG.size))


def read_link(message: memoryview) -> Link | None:
    """From RTM_NEWLINK or RTM_DELLINK. None: it is not about the link itself, but about a port of a bridge."""
    family, _, index, flags, _ = _IFINFOMSG.unpack_from(message, _NLMSGHDR.size)
    if family != socket.AF_UNSPEC:
        return None
    name = ""
    for kind, payload in attributes(message[_NLMSGHDR.size + _IFINFOMSG.size :]):
        if kind == _IFLA_IFNAME:
            name = bytes(payload).rstrip(b"\0").decode(errors="surrogateescape")
            break
    working = _IFF_UP | _IFF_RUNNING
    return Link(index, name, admin_up=bool(flags & _IFF_UP), up=flags & working == working)


def read_address(message: memoryview) -> Address | None:
    """From RTM_NEWADDR or RTM_DELADDR. None: neither IPv4 nor IPv6."""
    family, prefix, flags, scope, index = _IFADDRMSG.unpack_from(message, _NLMSGHDR.size)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = dict(attributes(message[_NLMSGHDR.size + _IFADDRMSG.size :]))
    # With a peer, IFA_ADDRESS is the peer's.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None:
        return None
    if _IFA_FLAGS in found:  # all 32 bits; the lower 8 mean the same
        flags = _number(found[_IFA_FLAGS])
    tentative = bool(flags & _IFA_F_TENTATIVE) and not flags & _IFA_F_OPTIMISTIC
    proto = found.get(_IFA_PROTO)
    return Address(
        index,
        socket.inet_ntop(family, packed),
        prefix,
        usable=not (tentative or flags & _IFA_F_DADFAILED),
        counts=scope < _RT_SCOPE_LINK and (proto is None or proto[0] != PROTOCOL),
    )


_Key = tuple[int, str, int]  # of an address: interface, text, prefix length
_Attributes = frozenset[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class _Route:
    family: int
    prefix: int
    tos: int
    index: int
    """Its interface's; 0 if it has none, or several (multipath)."""
    identity: _Attributes

    @property
    def place(self) -> tuple[int, int, int, _Attributes]:
        """What only one route can have that was set with NLM_F_REPLACE."""
        kinds = (_RTA_DST, _RTA_PRIORITY)
        return self.family, self.prefix, self.tos, frozenset(it for it in self.identity if it[0] in kinds)


class NetworkTracker:
    """The machine's links, addresses and default routes, as far as they have been told, and what is new of them."""

    def __init__(self, own: Container[str]) -> None:
        """``own``: the names of our interfaces. Others may join them later."""
        self._own = own
        self._links: dict[int, Link] = {}
        self._addresses: dict[_Key, Address] = {}
        # Not all of them: a table may have a million routes, so nobody reads it first. Hence a route that was
        # there before us is news once, when it is renewed for the first time.
        self._routes: set[_Route] = set()
        # As they were at the last `drain`, and what has changed since; maybe there and back, hence not a comparison.
        self._old_links: dict[int, Link] = {}
        self._old_addresses: dict[_Key, Address] = {}
        self._touched_links: dict[int, None] = {}  # a set that keeps its order
        self._touched_addresses: dict[_Key, None] = {}
        self._touched_families: dict[int, None] = {}  # those of default routes
        self._lost = False

    @property
    def dirty(self) -> bool:
        """Whether something has happened since the last `drain`. It may have been nothing that counts."""
        return bool(self._touched_links or self._touched_addresses or self._touched_families or self._lost)

    def load(self, links: Iterable[Link], addresses: Iterable[Address]) -> None:
        """Take in the state as it was read from the kernel, in place of notifications."""
        new_links = {link.index: link for link in links}
        for index in self._links.keys() | new_links.keys():
            self._set_link(index, new_links.get(index))
        new_addresses = {_key(address): address for address in addresses}
        for key in self._addresses.keys() | new_addresses.keys():
            self._set_address(key, new_addresses.get(key))
        self._routes.clear()

    def lose(self) -> None:
        """Notifications were lost. That alone is news: what was lost may be a route, which `load` does not see."""
        self._lost = True

    def handle_message(self, kind: int, flags: int, message: memoryview) -> bool:
        """Take in one notification: its type, its flags, and all of it with its header. Returns whether it says
        that something has happened."""
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return self._hear_route(kind, flags, message)
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            address = read_address(message)
            return address is not None and self._set_address(_key(address), address if kind == _RTM_NEWADDR else None)
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = read_link(message)
            return link is not None and self._set_link(link.index, link if kind == RTM_NEWLINK else None)
        return False

    def drain(self) -> Change | None:
        """What has happened since the last call; None if nothing that counts."""
        phrases = [*self._link_news(), *self._address_news(), *self._route_news()]
        if self._lost and not phrases:
            phrases.append("more happened to addresses and routes than could be followed")
        self._touched_links.clear()
        self._touched_addresses.clear()
        self._touched_families.clear()
        self._lost = False
        self._old_links = dict(self._links)
        self._old_addresses = dict(self._addresses)
        if not phrases:
            return None
        if len(phrases) > _PHRASES:
            phrases[_PHRASES:] = [f"and {len(phrases) - _PHRASES} more"]
        return Change("; ".join(phrases), frozenset(address.text for address in self._addresses.values()))

    # -- taking in

    def _set_link(self, index: int, link: Link | None) -> bool:
        before = self._links.pop(index, None)
        if link is not None:
            self._links[index] = link
        else:
            for key in [key for key in self._addresses if key[0] == index]:
                self._set_address(key, None)
        if link is None or not link.admin_up:
            self._forget_routes(index)
        if _works(before) == _works(link):
            return False
        self._touched_links[index] = None
        return True

    def _set_address(self, key: _Key, address: Address | None) -> bool:
        before = self._addresses.pop(key, None)
        if address is not None:
            self._addresses[key] = address
        else:
            self._forget_routes(key[0])
        if _serves(before) == _serves(address):
            return False
        self._touched_addresses[key] = None
        return True

    def _hear_route(self, kind: int, flags: int, message: memoryview) -> bool:
        family, prefix, _, tos, table, protocol, _, _, _ = _RTMSG.unpack_from(message, _NLMSGHDR.size)
        if prefix > HALF_DEFAULT or table != MAIN_TABLE or protocol == PROTOCOL:
            return False
        found = dict(attributes(message[_NLMSGHDR.size + _RTMSG.size :]))
        identity = frozenset((kind, bytes(found[kind])) for kind in found.keys() & _ROUTE_IDENTITY)
        route = _Route(family, prefix, tos, _number(found.get(_RTA_OIF, b"")), identity)
        if kind == RTM_DELROUTE:
            self._routes.discard(route)
        elif route in self._routes:
            return False  # only renewed
        else:
            if flags & _NLM_F_REPLACE:
                self._routes = {other for other in self._routes if other.place != route.place}
            self._routes.add(route)
        self._touched_families[family] = None
        return True

    def _forget_routes(self, index: int) -> None:
        """After something with which the kernel may take routes away, unasked and untold."""
        self._routes = {route for route in self._routes if route.index not in (index, 0)}

    # -- telling

    def _link_news(self) -> Iterator[str]:
        if not self._touched_links:
            return
        both = (*self._old_addresses.values(), *self._addresses.values())
        counting = {address.index for address in both if address.counts}
        for index in self._touched_links:
            if index not in counting or self._is_own(index):
                continue
            link, name = self._links.get(index), self._name(index)
            if link is None:
                yield f"{name} is gone"
            elif _works(link) != _works(self._old_links.get(index)):
                yield f"{name} is {'up' if link.up else 'down'}"
            elif link.up:
                yield f"{name} was down for a moment"

    def _address_news(self) -> Iterator[str]:
        for key in self._touched_addresses:
            index, text, _ = key
            if self._is_own(index):
                continue
            before, now = _serves(self._old_addresses.get(key)), _serves(self._addresses.get(key))
            if before != now:
                yield f"{self._name(index)}: address {text} {'added' if now else 'removed'}"
            elif now:
                yield f"{self._name(index)}: address {text} was gone for a moment"

    def _route_news(self) -> Iterator[str]:
        for family in self._touched_families:
            yield "IPv6 default route changed" if family == socket.AF_INET6 else "default route changed"

    def _is_own(self, index: int) -> bool:
        link = self._links.get(index) or self._old_links.get(index)
        return link is not None and link.name in self._own

    def _name(self, index: int) -> str:
        link = self._links.get(index) or self._old_links.get(index)
        return f"interface {index}" if link is None else one_line(link.name)


class LinkTracker:
    """Whether one interface is set up, and whether somebody has changed that."""

    def __init__(self, name: str) -> None:
        """It is up, as far as we know."""
        self._name = name
        self._raised = True
        self.dirty = False

    def load(self, links: Iterable[Link], addresses: Iterable[Address]) -> None:
        """As `NetworkTracker.load`."""
        for link in links:
            if link.name == self._name:
                self._raised = link.admin_up

    def lose(self) -> None:
        """As `NetworkTracker.lose`: it may have been down and up again."""
        self.dirty = True

    def handle_message(self, kind: int, flags: int, message: memoryview) -> bool:
        """As `NetworkTracker.handle_message`."""
        link = read_link(message) if kind == RTM_NEWLINK else None
        if link is None or link.name != self._name or link.admin_up == self._raised:
            return False
        self._raised = link.admin_up
        self.dirty = True
        return True

    def drain(self) -> bool:
        """Whether it is up now."""
        self.dirty = False
        return self._raised


def _works(link: Link | None) -> bool:
    return link is not None and link.up


def _serves(address: Address | None) -> bool:
    return address is not None and address.usable and address.counts


def _key(address: Address) -> _Key:
    return address.index, address.text, address.prefix


def _number(payload: memoryview | bytes) -> int:
    return int.from_bytes(payload, sys.byteorder)


def _dump(kind: int, body: bytes) -> bytearray:
    return bytearray(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, _NLM_F_DUMP_REQUEST, 0, 0) + body)
