"""Where things are in an Ethernet frame (IEEE 802.3, 802.1Q) as it stands in a stream of a TAP interface.

::

    0      2          14            20       26           28
    +------+----------+-------------+--------+------------+-----------------------------+
    | L    | vnet hdr | destination | source | type       | IP, ARP, ...                |
    +------+----------+-------------+--------+------------+------------+----------------+
                                             | tag 0x8100 | ID | type  | the same, tagged
                                             +------------+----+-------+----------------+
                                                          28   30      32

The type is big-endian. A number below 0x600 is a length, as in frames of spanning trees. Tags stay inside the frame:
the kernel writes them there, and takes them out at the other end.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

ETHERNET_BYTES: Final = 14  # the header without tags
TAG_BYTES: Final = 4
MAX_TAGS: Final = 2  # behind which anything is looked for
TYPE_IPV4: Final = 0x0800
TYPE_ARP: Final = 0x0806
TYPE_VLAN: Final = 0x8100  # 802.1Q: a tag of a customer
TYPE_IPV6: Final = 0x86DD
TYPE_SERVICE_VLAN: Final = 0x88A8  # 802.1ad: a tag of a provider, in front of the customer's
TAGS: Final = frozenset({TYPE_VLAN, TYPE_SERVICE_VLAN})  # what the kernel takes for a tag (eth_type_vlan)

# Offsets in a frame as it stands in a stream.
PACKET_AT: Final = 14
TYPE_AT: Final = PACKET_AT + ETHERNET_BYTES - 2
IP_AT: Final = PACKET_AT + ETHERNET_BYTES
TAGGED_IP_AT: Final = IP_AT + TAG_BYTES

_TYPES: Final = Struct(f">{TYPE_AT}xHxxH")  # the type, and the type behind a tag
_IPV4_BYTES: Final = 20
_IPV6_BYTES: Final = 40
_TCP_OR_UDP: Final = frozenset({6, 17})


def ip_header_at(view: memoryview, at: int, size_bytes: int) -> int:
    """Where in this frame an IP header begins that carries TCP or UDP; 0: there is none.

    It may be behind one tag. What is behind more tags, and IPv6 with extension headers, is not found: frames like that
    are carried one by one.

    Args:
        at: where the frame begins.
        size_bytes: the size of the frame, from its length field on.

    Returns IP_AT, TAGGED_IP_AT or 0. There is room for an IP header, and it has the version that the type says.
    Untrusted input; never raises.
    """
    if size_bytes < IP_AT + _IPV4_BYTES:
        return 0
    kind, tagged = _TYPES.unpack_from(view, at)
    ip_at = IP_AT
    if kind in TAGS:
        kind, ip_at = tagged, TAGGED_IP_AT
    packet = at + ip_at
    if kind == TYPE_IPV4:
        carries = size_bytes >= ip_at + _IPV4_BYTES and view[packet] >> 4 == 4 and view[packet + 9] in _TCP_OR_UDP
    elif kind == TYPE_IPV6:
        carries = size_bytes >= ip_at + _IPV6_BYTES and view[packet] >> 4 == 6 and view[packet + 6] in _TCP_OR_UDP
    else:
        carries = False
    return ip_at if carries else 0
