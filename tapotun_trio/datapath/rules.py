"""Rules of the plane: what decides where a frame goes. `plane` has them, too.

A rule says which frames it is for, and what their key is. Guards: (offset in the frame, mask, value). Pieces: (offset,
size). The first rule counts whose guards match, and whose pieces are within the frame. A frame that no rule is for goes
to Python.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from ..wire.ethernet import IP_AT, PACKET_AT, TAG_BYTES, TAGGED_IP_AT, TYPE_AT, TYPE_IPV6, TYPE_VLAN
from ..wire.frames import HEADER_BYTES, MIN_IPV6_BYTES

Guard: TypeAlias = tuple[int, int, int]
Piece: TypeAlias = tuple[int, int]
Rule: TypeAlias = tuple[tuple[Guard, ...], tuple[Piece, ...]]
_IS_IPV4: Final[Guard] = (HEADER_BYTES, 0xF0, 0x40)
_IS_IPV6: Final[Guard] = (HEADER_BYTES, 0xF0, 0x60)
_HAS_IPV6_HEADER: Final[Guard] = (HEADER_BYTES + MIN_IPV6_BYTES - 1, 0, 0)  # the frame is that long
# Next header: hop-by-hop options are part of the key because such a packet may be a jumbogram, which needs a look.
_NEXT_HEADER: Final[Piece] = (HEADER_BYTES + 6, 1)
BY_ADDRESSES: Final[tuple[Rule, ...]] = (
    ((_IS_IPV4,), ((HEADER_BYTES + 12, 8),)),
    ((_IS_IPV6, _HAS_IPV6_HEADER), (_NEXT_HEADER, (HEADER_BYTES + 8, 32))),
)
# IPv6: also the part of both addresses that says whether they are link-local or multicast.
ALL_ALIKE: Final[tuple[Rule, ...]] = (
    ((_IS_IPV4,), ()),
    ((_IS_IPV6, _HAS_IPV6_HEADER), (_NEXT_HEADER, (HEADER_BYTES + 8, 2), (HEADER_BYTES + 24, 2))),
)
# Ethernet: by both MAC addresses.
BY_MACS: Final[tuple[Rule, ...]] = (((), ((PACKET_AT, 12),)),)
# The same where ARP and neighbour discovery are looked at: also by the type, behind one tag too, and the next header of
# IPv6. A verdict may be kept if these say that it is neither.
_TYPE_IS_IPV6, _TAGGED_TYPE_IS_IPV6 = (
    ((at, 0xFF, TYPE_IPV6 >> 8), (at + 1, 0xFF, TYPE_IPV6 & 0xFF)) for at in (TYPE_AT, TYPE_AT + TAG_BYTES)
)
_IS_TAGGED: Final = ((TYPE_AT, 0xFF, TYPE_VLAN >> 8), (TYPE_AT + 1, 0xFF, TYPE_VLAN & 0xFF))
BY_MACS_GUARDED: Final[tuple[Rule, ...]] = (
    ((*_TYPE_IS_IPV6, (IP_AT + 6, 0, 0)), ((PACKET_AT, 14), (IP_AT + 6, 1))),
    ((*_IS_TAGGED, *_TAGGED_TYPE_IS_IPV6, (TAGGED_IP_AT + 6, 0, 0)), ((PACKET_AT, 18), (TAGGED_IP_AT + 6, 1))),
    ((*_IS_TAGGED, (TAGGED_IP_AT - 1, 0, 0)), ((PACKET_AT, 18),)),
    ((), ((PACKET_AT, 14),)),
)
# Matches every frame.
ALL_FRAMES: Final[tuple[Rule, ...]] = (((), ()),)
