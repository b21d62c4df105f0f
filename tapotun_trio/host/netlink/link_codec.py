"""Encodes and decodes rtnetlink messages about links and their settings. No I/O.

Follows linux/if_link.h, linux/if_arp.h and linux/netconf.h. `bridge_codec` knows those of bridges. As in
`codec`, requests are built with pyroute2's message classes, and messages of the kernel are decoded by hand.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, AF_UNSPEC
from typing import Final

from pyroute2.netlink import NLM_F_DUMP
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import IFF_RUNNING, IFF_UP, ifinfmsg

from .messages import append, attribute, attribute_numbers, encode, read_number
from .socket import HEADER, attributes

IFLA: Final = attribute_numbers(ifinfmsg)
_IFLA_IFNAME: Final = IFLA["IFLA_IFNAME"]
_IFLA_MTU: Final = IFLA["IFLA_MTU"]
IFLA_LINKINFO: Final = IFLA["IFLA_LINKINFO"]
IFLA_AF_SPEC: Final = IFLA["IFLA_AF_SPEC"]

# pyroute2 0.9.7 has no names for the following.
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3  # linux/rtnetlink.h
_IFLA_NEW_NETNSID: Final = 45  # linux/if_link.h, Linux 4.16
IFLA_INFO_KIND: Final = 1  # linux/if_link.h
IFLA_INFO_DATA: Final = 2
_IFLA_INFO_SLAVE_KIND: Final = 4  # linux/if_link.h
_ARPHRD_NONE: Final = 0xFFFE  # linux/if_arp.h
_IFLA_INET_CONF: Final = 1  # linux/if_link.h
_IFLA_INET6_ADDR_GEN_MODE: Final = 8  # linux/if_link.h
_IN6_ADDR_GEN_MODE_EUI64: Final = 0  # linux/if_link.h
_IN6_ADDR_GEN_MODE_NONE: Final = 1  # linux/if_link.h
_IPV4_DEVCONF_RP_FILTER: Final = 8  # linux/ip.h
_IPV4_DEVCONF_PROMOTE_SECONDARIES: Final = 20  # linux/ip.h
_NETCONFA_IFINDEX: Final = 1  # linux/netconf.h
_NETCONFA_RP_FILTER: Final = 3  # linux/netconf.h
NETCONF_ALL: Final = -1  # NETCONFA_IFINDEX_ALL, linux/netconf.h: the settings in conf/all

_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, hardware type, index, flags, mask of changed flags
IFINFOMSG_END: Final = HEADER.size + _IFINFOMSG.size
_NETCONFMSG_END: Final = HEADER.size + 4  # one byte, the family, and padding (linux/netconf.h)


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    admin_up: bool
    """The administrator set it up (IFF_UP)."""
    running: bool
    """It is set up and has a carrier (IFF_UP and IFF_RUNNING)."""
    mtu: int = 0
    """In bytes; 0 if the message did not contain it."""


@dataclass(frozen=True, slots=True)
class AttachableLink:
    """A link, with the properties that decide whether it attaches this machine to the networks of its addresses.

    Attributes:
        bare: the link's packets have no link-layer header (ARPHRD_NONE). TUN interfaces are such links.
        in_vrf: the link is a VRF or belongs to one, so only sockets bound to the VRF use it.
    """

    link: Link
    bare: bool
    in_vrf: bool


def get_link(*, name: str = "", index: int = 0) -> bytearray:
    """Request one link, by name or by index."""
    attrs: list[tuple[str, object]] = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    if name:
        attrs.append(("IFLA_IFNAME", name))
    return encode(ifinfmsg, RTM_GETLINK, 0, {"index": index}, attrs)


def dump_links() -> bytearray:
    """Request all links; `read_link` and `read_tun_index` decode the answers."""
    # The statistics would be three quarters of an answer.
    return encode(ifinfmsg, RTM_GETLINK, NLM_F_DUMP, {}, [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)])


def read_link(message: memoryview) -> Link | None:
    """Decode RTM_NEWLINK or RTM_DELLINK. None if the message is about a bridge port instead of the link itself."""
    family, _, index, flags, _ = _IFINFOMSG.unpack_from(message, HEADER.size)
    if family != AF_UNSPEC:
        return None
    name, mtu = "", 0
    for number, payload in attributes(message[IFINFOMSG_END:]):
        if number == _IFLA_IFNAME:
            name = bytes(payload).rstrip(b"\0").decode(errors="surrogateescape")
        elif number == _IFLA_MTU:  # after the name, see rtnl_fill_ifinfo
            mtu = read_number(payload)
            break
    running = IFF_UP | IFF_RUNNING
    return Link(index, name, admin_up=bool(flags & IFF_UP), running=flags & running == running, mtu=mtu)


def is_move(message: memoryview) -> bool:
    """Whether an RTM_DELLINK says that the link was moved to another network namespace."""
    return any(number == _IFLA_NEW_NETNSID for number, _ in attributes(message[IFINFOMSG_END:]))


def read_attachable_link(message: memoryview) -> AttachableLink | None:
    """Decode a message about a link, as `read_link` does."""
    link = read_link(message)
    if link is None:
        return None
    hardware_type = _IFINFOMSG.unpack_from(message, HEADER.size)[1]
    info = dict(attributes(message[IFINFOMSG_END:])).get(IFLA_LINKINFO)
    kinds = {} if info is None else dict(attributes(info))
    in_vrf = any(bytes(kinds.get(number, b"")) == b"vrf\0" for number in (IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND))
    return AttachableLink(link, bare=hardware_type == _ARPHRD_NONE, in_vrf=in_vrf)


def read_tun_index(message: memoryview) -> int | None:
    """The index from an RTM_NEWLINK. None if the link is neither a TUN nor a TAP interface."""
    for number, payload in attributes(message[IFINFOMSG_END:]):
        if number == IFLA_LINKINFO and bytes(dict(attributes(payload)).get(IFLA_INFO_KIND, b""))[:4] == b"tun\0":
            index: int = _IFINFOMSG.unpack_from(message, HEADER.size)[2]
            return index
    return None


def set_link_up(index: int, mtu: int) -> bytearray:
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return encode(ifinfmsg, RTM_NEWLINK, 0, fields, [("IFLA_MTU", mtu)])


def set_link_admin_up(index: int) -> bytearray:
    return encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index, "flags": IFF_UP, "change": IFF_UP}, [])


def set_link_down(index: int) -> bytearray:
    return encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index, "flags": 0, "change": IFF_UP}, [])


def rename_link(index: int, name: str) -> bytearray:
    """Request a new name for a link. The kernel refuses with EBUSY if the link is up (before Linux 6.2), and with
    EEXIST if the name is taken."""
    return encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, [("IFLA_IFNAME", name)])


def set_queue_length(index: int, packets: int) -> bytearray:
    return encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, [("IFLA_TXQLEN", packets)])


def set_gso_max_size(index: int, size_bytes: int) -> bytearray:
    """The kernel cuts super-packets that are longer (gso_features_check, net/core/dev.c). At most 65535: then it limits
    those of IPv4, too (IFLA_GSO_IPV4_MAX_SIZE)."""
    return encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, [("IFLA_GSO_MAX_SIZE", size_bytes)])


def is_link(message: bytes) -> bool:
    """Whether the answer to `get_link` is a link (and not a refusal)."""
    return len(message) >= HEADER.size and HEADER.unpack_from(message)[1] == RTM_NEWLINK


def set_ipv6_silent(index: int) -> bytearray:
    """Switch off the automatic link-local address, and so duplicate detection, router solicitations and group reports.

    The kernel refuses with EAFNOSUPPORT if the interface has no IPv6: switched off, or the MTU is below 1280.
    """
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
    return _with_af_spec(index, attribute(AF_INET6, mode))


def set_ipv6_automatic(index: int) -> bytearray:
    """Switch on the automatic link-local address, which the kernel makes when the link gets a carrier."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_EUI64]))
    return _with_af_spec(index, attribute(AF_INET6, mode))


def set_promote_secondaries(index: int, *, promote: bool = True) -> bytearray:
    """Keep the other addresses of a subnet when the first one is removed; by default the kernel removes them too
    (devinet.c)."""
    return _set_ipv4_option(index, _IPV4_DEVCONF_PROMOTE_SECONDARIES, int(promote))


def read_promote_secondaries(af_spec: memoryview | None) -> bool:
    """Whether a link has what `set_promote_secondaries` sets, from its IFLA_AF_SPEC. True: it does, or has no IPv4."""
    families = dict(attributes(af_spec if af_spec is not None else memoryview(b"")))
    settings = dict(attributes(families.get(AF_INET, memoryview(b"")))).get(_IFLA_INET_CONF)
    if settings is None:
        return True
    # An array of 32-bit numbers; the first one has the number 1.
    return bool(struct.unpack_from("=I", settings, 4 * (_IPV4_DEVCONF_PROMOTE_SECONDARIES - 1))[0])


def set_rp_filter(index: int, mode: int) -> bytearray:
    """``mode`` as in ip-sysctl: 0 off, 1 strict, 2 loose. Sets the interface's own value; the value of "all" may be
    higher."""
    return _set_ipv4_option(index, _IPV4_DEVCONF_RP_FILTER, mode)


def read_rp_filter_change(message: memoryview) -> int | None:
    """Decode an RTM_NEWNETCONF. Returns the index of the interface whose rp_filter was set, or NETCONF_ALL. None: the
    message is about something else."""
    found = dict(attributes(message[_NETCONFMSG_END:]))
    if message[HEADER.size] != AF_INET or not found.keys() >= {_NETCONFA_IFINDEX, _NETCONFA_RP_FILTER}:
        return None
    index: int = struct.unpack_from("=i", found[_NETCONFA_IFINDEX])[0]
    return index


def _set_ipv4_option(index: int, option: int, value: int) -> bytearray:
    conf = attribute(_IFLA_INET_CONF, attribute(option, struct.pack("=I", value)))
    return _with_af_spec(index, attribute(AF_INET, conf))


def _with_af_spec(index: int, family: bytes) -> bytearray:
    # Encoded by hand: pyroute2 knows IFLA_INET_CONF as the kernel dumps it (an array), not as the kernel expects it
    # (nested).
    return append(encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, []), IFLA_AF_SPEC, family)
