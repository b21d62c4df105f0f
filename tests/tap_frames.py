"""Ethernet frames for tests: made by hand, or of what is a frame of IP."""

from __future__ import annotations

import struct
from typing import Final

from .packets import frame

MAC_A: Final = bytes.fromhex("020000000001")
MAC_B: Final = bytes.fromhex("020000000002")
BROADCAST: Final = b"\xff" * 6
IPV4, ARP, VLAN, IPV6, SERVICE_VLAN = 0x0800, 0x0806, 0x8100, 0x86DD, 0x88A8
_VNET: Final = struct.Struct("<BBHHHHH")
NEEDS_CSUM: Final = 1


def ethernet(
    payload: bytes,
    kind: int = IPV4,
    *,
    to: bytes = MAC_B,
    source: bytes = MAC_A,
    tags: bytes = b"",
    vnet: bytes = bytes(12),
) -> bytes:
    """A frame of a TAP interface as it stands in a stream. ``tags``: see `tag`."""
    return frame(to + source + tags + struct.pack("!H", kind) + payload, vnet)


def tag(vlan: int = 1, kind: int = VLAN) -> bytes:
    """A tag, which stands before the type."""
    return struct.pack("!HH", kind, vlan)


def behind_ethernet(whole: bytes, *, to: bytes = MAC_B, source: bytes = MAC_A, tags: bytes = b"") -> bytes:
    """A frame of a TUN interface as one of a TAP interface. Its offsets are those from the Ethernet header."""
    flags, gso, hdr_len, size, start, offset, buffers = _VNET.unpack_from(whole, 2)
    more = 14 + len(tags)
    vnet = _VNET.pack(
        flags,
        gso,
        hdr_len + more if hdr_len else 0,
        size,
        start + more if flags & NEEDS_CSUM else start,
        offset,
        buffers,
    )
    kind = IPV6 if whole[14] >> 4 == 6 else IPV4
    return ethernet(whole[14:], kind, to=to, source=source, tags=tags, vnet=vnet)


def without_ethernet(whole: bytes, tags_bytes: int = 0) -> bytes:
    """Undoes `behind_ethernet`."""
    flags, gso, hdr_len, size, start, offset, buffers = _VNET.unpack_from(whole, 2)
    less = 14 + tags_bytes
    vnet = _VNET.pack(
        flags,
        gso,
        hdr_len - less if hdr_len else 0,
        size,
        start - less if flags & NEEDS_CSUM else start,
        offset,
        buffers,
    )
    return frame(whole[14 + less :], vnet)


def arp(*, to: bytes = BROADCAST, source: bytes = MAC_A) -> bytes:
    """A frame with the type of ARP."""
    return ethernet(bytes(28), ARP, to=to, source=source)


def in_header(whole: bytes, header: bytes) -> bytes:
    """As `behind_ethernet`, with any Ethernet header."""
    inner = behind_ethernet(whole, tags=header[12:-2])
    return inner[:14] + header + inner[14 + len(header) :]


def ethernet_bytes(whole: bytes) -> int:
    """The size of the Ethernet header of a frame, with all of its tags."""
    at = 26
    while whole[at : at + 2] in (b"\x81\0", b"\x88\xa8") and len(whole) >= at + 6:
        at += 4
    return at + 2 - 14
