"""Which addresses a client of a TAP interface claims by ARP and by neighbour discovery, and whether it may.

Whoever answers for an address gets its packets. With ``arp_guard`` a client that has an ``ip`` may claim that address
only, and no client may claim an address of another one, or of the server. Link-local addresses, which no config knows,
are `link_local`'s matter.

Frames are Ethernet frames, without their vnet header. Untrusted input; nothing here raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, Literal, NamedTuple

from ..macs import MAC_BYTES
from .link_local import SERVERS_SIDE, LinkLocalTable, is_link_local

_ETHERNET_BYTES: Final = 2 * MAC_BYTES + 2
_TYPE_AT: Final = 2 * MAC_BYTES

_IPV4: Final = 0x0800
_ARP: Final = 0x0806
_IPV6: Final = 0x86DD
_VLAN: Final = 0x8100  # 802.1Q
_TAGS: Final = frozenset({_VLAN, 0x88A8, 0x9100})  # also 802.1ad, and what came before it
_TAG_BYTES: Final = 4
_MAX_TAGS: Final = 2
_MIN_TYPE: Final = 0x0600  # less is a length (IEEE 802.3): then LLC follows, and maybe SNAP
# LLC and SNAP, up to the type (RFC 1042); the last byte is that of 802.1H.
_SNAP: Final = (b"\xaa\xaa\x03\x00\x00\x00", b"\xaa\xaa\x03\x00\x00\xf8")

# ARP of IPv4 over Ethernet (RFC 826): hardware type, protocol type, sizes. Then the operation, both addresses of the
# sender, and both of the target.
_ARP_HEAD: Final = b"\x00\x01\x08\x00\x06\x04"
_ARP_BYTES: Final = 28
_NO_ADDRESS: Final = bytes(4)

_IPV6_BYTES: Final = 40
_UNSPECIFIED: Final = bytes(16)
_ICMPV6: Final = 58
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
# Hop-by-hop options, routing, destination options, mobility, HIP, shim6: next header, and length in units of 8 bytes.
_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})
_MAX_EXTENSIONS: Final = 8
# Headers behind which there is no neighbour discovery: TCP, UDP, ESP, SCTP.
_ORDINARY: Final = frozenset({6, 17, 50, 132})

# RFC 4861 section 4.
_ROUTER_SOLICITATION: Final = 133
_ROUTER_ADVERTISEMENT: Final = 134
_NEIGHBOUR_SOLICITATION: Final = 135
_NEIGHBOUR_ADVERTISEMENT: Final = 136
_REDIRECT: Final = 137
_TARGET_AT: Final = 8  # in a solicitation or an advertisement of a neighbour


def is_ordinary(view: memoryview, at: int, end: int) -> bool:
    """Whether the Ethernet frame from ``at`` to ``end`` claims nothing, as its first headers already say: it carries
    IPv4, or IPv6 with an ordinary transport header, maybe behind one tag of 802.1Q. It has at least a whole Ethernet
    header.

    What this reads is in the key of `datapath.rules.BY_MACS_GUARDED`, so that frames with the same key are alike."""
    kind = view[at + _TYPE_AT] << 8 | view[at + _TYPE_AT + 1]
    if kind == _IPV4:
        return True
    header_at = at + _ETHERNET_BYTES + 6
    if kind == _VLAN:
        if at + _ETHERNET_BYTES + _TAG_BYTES > end:
            return False
        kind = view[at + _TYPE_AT + _TAG_BYTES] << 8 | view[at + _TYPE_AT + _TAG_BYTES + 1]
        if kind == _IPV4:
            return True
        header_at += _TAG_BYTES
    return kind == _IPV6 and header_at < end and view[header_at] in _ORDINARY


class Claim(NamedTuple):
    """What a frame claims.

    Attributes:
        own: addresses that the sender says are its own.
        other: an address that it says is somebody's, with a MAC address; None: none.
        routes: whether it says what only routers say.
    """

    own: tuple[bytes, ...]
    other: bytes | None = None
    routes: bool = False


class Hidden(Enum):
    """A frame may claim something that cannot be found out."""

    CLAIM = auto()


def claim_of(frame: memoryview) -> Claim | Literal[Hidden.CLAIM] | None:
    """What an Ethernet frame claims; None: nothing. It has at least a whole Ethernet header."""
    kind, at = _TYPE_AT, _ETHERNET_BYTES
    number = int.from_bytes(frame[kind:at], "big")
    for _ in range(_MAX_TAGS):
        if number not in _TAGS:
            break
        number, at = int.from_bytes(frame[at + 2 : at + _TAG_BYTES], "big"), at + _TAG_BYTES
    if number < _MIN_TYPE and bytes(frame[at : at + 6]) in _SNAP:
        number, at = int.from_bytes(frame[at + 6 : at + 8], "big"), at + 8
    if number in _TAGS:
        return Hidden.CLAIM  # more tags than anybody needs
    if number == _ARP:
        return _claim_of_arp(bytes(frame[at : at + _ARP_BYTES]))
    return _claim_of_ipv6(frame[at:]) if number == _IPV6 else None


def _claim_of_arp(packet: bytes) -> Claim | Literal[Hidden.CLAIM]:
    if len(packet) < _ARP_BYTES or not packet.startswith(_ARP_HEAD):
        return Hidden.CLAIM
    sender, target = packet[14:18], packet[24:28]
    # A probe (RFC 5227) asks whether anybody has the address that the sender is about to use.
    return Claim((target if sender == _NO_ADDRESS else sender,))


def _claim_of_ipv6(packet: memoryview) -> Claim | Literal[Hidden.CLAIM] | None:
    if len(packet) < _IPV6_BYTES:
        return Hidden.CLAIM
    header, at, is_fragment = packet[6], _IPV6_BYTES, False
    for _ in range(_MAX_EXTENSIONS):
        if header == _ICMPV6:
            return _claim_of_icmp(packet, at, is_fragment=is_fragment)
        if header not in _EXTENSIONS and header not in (_FRAGMENT, _AUTHENTICATION):
            return None
        if len(packet) < at + 8:
            return Hidden.CLAIM
        if header == _FRAGMENT:
            if packet[at + 2] or packet[at + 3] & 0xF8:
                return None  # not the first one; what it belongs to is worth nothing without the first
            is_fragment = True
            header, at = packet[at], at + 8
        elif header == _AUTHENTICATION:
            header, at = packet[at], at + 4 * (packet[at + 1] + 2)
        else:
            header, at = packet[at], at + 8 * (packet[at + 1] + 1)
    return Hidden.CLAIM


def _claim_of_icmp(packet: memoryview, at: int, *, is_fragment: bool) -> Claim | Literal[Hidden.CLAIM] | None:
    if len(packet) <= at:
        return Hidden.CLAIM
    kind = packet[at]
    if not _ROUTER_SOLICITATION <= kind <= _REDIRECT:
        return None
    if is_fragment:
        return Hidden.CLAIM  # RFC 6980: neighbour discovery is never fragmented
    source = bytes(packet[8:24])
    target = bytes(packet[at + _TARGET_AT : at + _TARGET_AT + 16])
    if kind == _ROUTER_ADVERTISEMENT:
        return Claim((source,), routes=True)
    if kind == _REDIRECT:  # names a neighbour, and its MAC address
        return Hidden.CLAIM if len(target) < 16 else Claim((source,), target, routes=True)
    own = () if source == _UNSPECIFIED else (source,)
    # A solicitation without a source says which address its sender is about to use (RFC 4862 section 5.4.2).
    if kind == _NEIGHBOUR_ADVERTISEMENT or (kind == _NEIGHBOUR_SOLICITATION and not own):
        return Hidden.CLAIM if len(target) < 16 else Claim((*own, target))
    return Claim(own)


class AddressGuard:
    """What each client may claim.

    Args:
        own: the addresses of each client that has any, by its port.
        servers: those of the server.

    Addresses are 4 or 16 bytes.
    """

    __slots__ = ("_own", "_servers", "_taken")

    def __init__(self, own: Mapping[int, frozenset[bytes]], servers: frozenset[bytes] = frozenset()) -> None:
        self._own = own
        self._servers = servers
        self._taken = servers.union(*own.values())

    def with_servers(self, more: frozenset[bytes]) -> AddressGuard:
        """The same guard, where the server has these addresses, too."""
        return AddressGuard(self._own, self._servers | more)

    def refuses(self, port: int, frame: memoryview, link_local: LinkLocalTable, now: float) -> bool:
        """Whether the frame claims what the client at this port may not claim, or hides whether it does.

        ``link_local``: who has which link-local address. Notes what the frame claims, if it may. The port may use the
        source of the frame.
        """
        claim = claim_of(frame)
        if claim is None:
            return False
        if claim is Hidden.CLAIM or (claim.routes and port in self._own):
            return True  # a host that was given an address is no router
        mac = _source_of(frame)
        claimed = claim.own if claim.other is None else (*claim.own, claim.other)
        own = self._own.get(port)
        for address in claimed:
            if own is not None and address in own:
                continue
            if address in self._taken:
                return True
            if is_link_local(address):
                if not link_local.may_claim(port, mac, address, now):
                    return True
            elif own is not None:
                return True
        _note(claim, port, mac, link_local, now)
        return False


def learn_from_device(frame: memoryview, link_local: LinkLocalTable, now: float) -> None:
    """Note which link-local addresses a frame from the server's side claims."""
    claim = claim_of(frame)
    if isinstance(claim, Claim):
        _note(claim, SERVERS_SIDE, _source_of(frame), link_local, now)


def _source_of(frame: memoryview) -> bytes:
    return bytes(frame[MAC_BYTES : 2 * MAC_BYTES])


def _note(claim: Claim, port: int, mac: bytes, link_local: LinkLocalTable, now: float) -> None:
    for address in claim.own:
        if is_link_local(address):
            link_local.claim(port, mac, address, now)
