"""Encodes and decodes rtnetlink messages about bridges and their ports. No I/O.

Follows linux/if_link.h and net/bridge/br_netlink.c. What other links have in common with them is in `link_codec`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from socket import AF_UNSPEC
from typing import Final

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ..items import BridgePort
from .codec import PROTOCOL
from .link_codec import (
    IFINFOMSG_END,
    IFLA,
    IFLA_AF_SPEC,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    Link,
    read_link,
    read_promote_secondaries,
)
from .messages import append, attribute, encode, read_number
from .socket import HEADER, attributes

_IFLA_ADDRESS: Final = IFLA["IFLA_ADDRESS"]
_IFLA_IFALIAS: Final = IFLA["IFLA_IFALIAS"]
_IFLA_GROUP: Final = IFLA["IFLA_GROUP"]
_IFLA_MASTER: Final = IFLA["IFLA_MASTER"]

# linux/if_link.h; as numbers, since pyroute2 has other names for these.
_IFLA_INFO_SLAVE_KIND: Final = 4
_IFLA_INFO_SLAVE_DATA: Final = 5
_IFLA_BR_MCAST_SNOOPING: Final = 23
_IFLA_BRPORT_STATE: Final = 1
_IFLA_BRPORT_GUARD: Final = 5
_IFLA_BRPORT_LEARNING: Final = 8
_IFLA_BRPORT_ISOLATED: Final = 33  # Linux 4.18; older kernels ignore it

_BR_STATE_DISABLED: Final = 0  # linux/if_bridge.h

_BRIDGE: Final = "bridge"
_OWN: Final = "tapotun"
"""How the ifalias of a bridge of ours begins; the name of the interface that made it follows. The bridge's group is
`codec.PROTOCOL`. The doctor knows both as well."""


@dataclass(frozen=True, slots=True)
class BridgingLink:
    """A link, with what decides whether it is a bridge, whose bridge it is, or how it is the port of one.

    Attributes:
        kind: ``bridge``, ``tun``, ...; empty: it has none, as a network card.
        owner: the interface of ours that made this bridge. None: it is no bridge of ours. Empty: it is ours, and its
            maker was killed before it could say so.
        mac: empty if the link has no address.
        master: the index of the bridge (or bond, or VRF) that the link is a port of; 0: of none.
        promotes: whether the kernel keeps the other IPv4 addresses of a network when the first one is removed, by the
            setting of this link.
        isolated, learning, bpdu_guard: the options of a bridge's port; false for other links.
        is_disabled: the bridge passes nothing on that comes from this port or goes to it.
    """

    link: Link
    kind: str
    owner: str | None
    mac: bytes
    master: int
    promotes: bool
    isolated: bool = False
    learning: bool = False
    bpdu_guard: bool = False
    is_disabled: bool = False

    @property
    def is_bridge(self) -> bool:
        return self.kind == _BRIDGE

    def is_port(self, bridge: BridgingLink, options: BridgePort) -> bool:
        """Whether it is a port of the bridge, with these options."""
        return (self.master, self.isolated, self.learning, self.bpdu_guard) == (
            bridge.link.index,
            options.isolated,
            options.learning,
            options.bpdu_guard,
        )


def read_bridging_link(message: memoryview) -> BridgingLink | None:
    """Decode RTM_NEWLINK. None as `read_link`."""
    link = read_link(message)
    if link is None:
        return None
    found = dict(attributes(message[IFINFOMSG_END:]))
    info = dict(attributes(found.get(IFLA_LINKINFO, memoryview(b""))))
    kind, port_kind = (_text(info.get(number)) for number in (IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND))
    options: dict[int, memoryview] = {}
    if port_kind == _BRIDGE:
        options = dict(attributes(info.get(_IFLA_INFO_SLAVE_DATA, memoryview(b""))))
    return BridgingLink(
        link,
        kind,
        _owner(_text(found.get(_IFLA_IFALIAS)), read_number(found.get(_IFLA_GROUP))) if kind == _BRIDGE else None,
        bytes(found.get(_IFLA_ADDRESS, b"")),
        read_number(found.get(_IFLA_MASTER)),
        read_promote_secondaries(found.get(IFLA_AF_SPEC)),
        isolated=bool(read_number(options.get(_IFLA_BRPORT_ISOLATED))),
        learning=bool(read_number(options.get(_IFLA_BRPORT_LEARNING))),
        bpdu_guard=bool(read_number(options.get(_IFLA_BRPORT_GUARD))),
        is_disabled=_IFLA_BRPORT_STATE in options and read_number(options[_IFLA_BRPORT_STATE]) == _BR_STATE_DISABLED,
    )


def _owner(alias: str, group: int) -> str | None:
    """A person may write any alias, so the group counts, too."""
    if group != PROTOCOL:
        return None
    first, _, owner = alias.partition(" ")
    return owner if not alias or (first == _OWN and owner) else None


def read_master(message: memoryview) -> int:
    """The index of the bridge whose port the link is, from a message for which `read_link` returns a link; 0: of
    none."""
    for number, payload in attributes(message[IFINFOMSG_END:]):
        if number == _IFLA_MASTER:
            return read_number(payload)
    return 0


def is_port_change(message: memoryview, index: int) -> bool:
    """Whether a message about a link says something about this link as the port of a bridge (AF_BRIDGE)."""
    return message[HEADER.size] != AF_UNSPEC and struct.unpack_from("=i", message, HEADER.size + 4)[0] == index


def create_bridge(name: str, mac: bytes) -> bytearray:
    """Request a new bridge. The kernel refuses with EEXIST if there is a link of that name. A bridge with a MAC address
    of its own keeps it, whichever ports it gets. It floods multicasts, as the server's switch does: with snooping it
    would announce itself to the whole segment by IGMP and MLD (br_multicast_join_snoopers, Linux 5.10), without any
    address.

    An alias cannot be given here. So the bridge gets a group, by which it is known until `claim_bridge`."""
    message = encode(
        ifinfmsg, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, {}, [("IFLA_IFNAME", name), ("IFLA_GROUP", PROTOCOL)]
    )
    append(message, _IFLA_ADDRESS, mac)
    kind = attribute(IFLA_INFO_KIND, _BRIDGE.encode() + b"\0")
    options = attribute(_IFLA_BR_MCAST_SNOOPING, b"\0")
    return append(message, IFLA_LINKINFO, kind + attribute(IFLA_INFO_DATA, options))


def claim_bridge(index: int, owner: str, mac: bytes) -> bytearray:
    """Mark a bridge as ours, made by the interface ``owner``, and set its MAC address."""
    alias = f"{_OWN} {owner}".encode(errors="surrogateescape")
    message = encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, [])
    append(message, _IFLA_IFALIAS, alias)
    return append(message, _IFLA_ADDRESS, mac)


def remove_link(index: int) -> bytearray:
    return encode(ifinfmsg, RTM_DELLINK, 0, {"index": index}, [])


def set_master(index: int, master: int) -> bytearray:
    """``master``: 0: the link is no port any more."""
    return encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, [("IFLA_MASTER", master)])


def set_port_options(index: int, port: BridgePort) -> bytearray:
    """Request for a link that is the port of a bridge."""
    options = (
        (_IFLA_BRPORT_ISOLATED, port.isolated),
        (_IFLA_BRPORT_LEARNING, port.learning),
        (_IFLA_BRPORT_GUARD, port.bpdu_guard),
    )
    data = b"".join(attribute(number, bytes([value])) for number, value in options)
    info = attribute(_IFLA_INFO_SLAVE_KIND, _BRIDGE.encode() + b"\0") + attribute(_IFLA_INFO_SLAVE_DATA, data)
    return append(encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, []), IFLA_LINKINFO, info)


def _text(payload: memoryview | None) -> str:
    return "" if payload is None else bytes(payload).rstrip(b"\0").decode(errors="surrogateescape")
