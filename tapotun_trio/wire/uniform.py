"""Tells whether many adjacent frames of one length are uniform: the same in chosen fields.

IPv4 frames are compared column by column: the same 16 bits of all frames are one strided slice, and one comparison of
two such slices, made in C, compares each frame with the next. Looking at one field of one frame costs Python 50 ns;
looking at a field of 64 frames at once costs 4 ns for each.

Of IPv6 frames everything before the payload must be the same, which would be three times as many columns. So their
first bytes are extracted, many with one call, and compared as a whole: 0.5 to 1 ns a byte.

Of Ethernet frames that carry TCP or UDP over IP, the whole Ethernet header must be the same, and of the IP header what
must be the same without Ethernet.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from .ethernet import IP_AT, TAGGED_IP_AT, ip_header_at
from .vnet import GSO_NONE, VNET_BYTES

_PACKET_AT: Final = 2 + VNET_BYTES

# With fewer frames it is as fast to look at each by itself (measured).
MIN_BLOCK_FRAMES: Final = 8

# Columns (even byte offsets in a frame) that are uniform in every block: length field and vnet header; version, IHL and
# TOS; TTL and protocol; source and destination.
_IPV4_COLUMNS: Final = (0, 8, 12, 14, 16, 18)  # in the packet
_BLOCK_COLUMNS: Final = (*range(0, _PACKET_AT, 2), *(_PACKET_AT + at for at in _IPV4_COLUMNS))
# The same behind an Ethernet header without and with a tag, together with that header.
_ETHERNET_COLUMNS: Final = {
    ip_at: (*range(0, ip_at, 2), *(ip_at + at for at in _IPV4_COLUMNS)) for ip_at in (IP_AT, TAGGED_IP_AT)
}
_IPV6_BYTES: Final = 40
# Of an IPv6 frame: length field, vnet header and IPv6 header.
_IPV6_HEADS_BYTES: Final = _PACKET_AT + _IPV6_BYTES
_GSO_TYPE_AT: Final = 3
_MAX_HEADS: Final = 64  # that are extracted with one call


def are_uniform(frames: memoryview, size_bytes: int, columns: tuple[int, ...] = _BLOCK_COLUMNS) -> bool:
    """Whether all frames have the same 16 bits in each of these columns.

    Args:
        frames: the frames, and nothing else.
        size_bytes: the size of each frame.
        columns: even offsets in a frame.

    Untrusted input; never raises.
    """
    end = len(frames)
    if size_bytes & 1:
        return all(
            frames[at : end - size_bytes : size_bytes] == frames[at + size_bytes : end : size_bytes]
            for column in columns
            for at in (column, column + 1)
        )
    words = frames.cast("H")
    step, end = size_bytes >> 1, end >> 1
    for column in columns:  # a generator expression takes 1.5 times as long
        at = column >> 1
        if words[at : end - step : step] != words[at + step : end : step]:
            return False
    return True


def are_uniform_ipv6(frames: memoryview, size_bytes: int, heads_bytes: int = _IPV6_HEADS_BYTES) -> bool:
    """Whether all frames have the same length, vnet header and IPv6 header.

    Args:
        frames: the frames, and nothing else.
        size_bytes: the size of each frame; it has room for an IPv6 header.
        heads_bytes: the size of what must be the same.

    Untrusted input; never raises.
    """
    first = bytes(frames[:heads_bytes])
    at, end = 0, len(frames)
    count = _MAX_HEADS
    while at < end:
        while count * size_bytes > end - at:
            count >>= 1
        if _heads(size_bytes, count, heads_bytes).unpack_from(frames, at).count(first) != count:
            return False
        at += count * size_bytes
    return True


@lru_cache(maxsize=64)
def _heads(size_bytes: int, count: int, heads_bytes: int) -> Struct:
    return Struct(f"{heads_bytes}s{size_bytes - heads_bytes}x" * count)


def count_uniform(view: memoryview, start: int, size_bytes: int, most: int) -> int:
    """How many frames from ``start`` on are uniform: ``most``, or a half of it, a quarter and so on.

    More frames than the returned number may be uniform. Returns 0 instead of a number below MIN_BLOCK_FRAMES.

    ``most``: the number of frames of ``size_bytes`` in the buffer. Untrusted input; never raises.
    """
    if view[start + _PACKET_AT] >> 4 == 6:
        return _count_uniform_ipv6(view, start, size_bytes, most)
    while most >= MIN_BLOCK_FRAMES:
        if are_uniform(view[start : start + most * size_bytes], size_bytes):
            return most
        most >>= 1
    return 0


def _count_uniform_ipv6(view: memoryview, start: int, size_bytes: int, most: int) -> int:
    if size_bytes < _IPV6_HEADS_BYTES:
        return 0
    while most >= MIN_BLOCK_FRAMES:
        if are_uniform_ipv6(view[start : start + most * size_bytes], size_bytes):
            return most
        most >>= 1
    return 0


def count_uniform_ethernet(view: memoryview, start: int, size_bytes: int, most: int) -> int:
    """The same as `count_uniform` of Ethernet frames.

    Only frames that carry TCP or UDP over IP, maybe behind one tag, and are no super-packets become a block. So nothing
    that a switch has to look into is in one. Untrusted input; never raises.
    """
    ip_at = ip_header_at(view, start, size_bytes)
    if not ip_at or view[start + _GSO_TYPE_AT] != GSO_NONE:
        return 0
    is_ipv6 = view[start + ip_at] >> 4 == 6
    while most >= MIN_BLOCK_FRAMES:
        frames = view[start : start + most * size_bytes]
        if is_ipv6:
            uniform = are_uniform_ipv6(frames, size_bytes, ip_at + _IPV6_BYTES)
        else:
            uniform = are_uniform(frames, size_bytes, _ETHERNET_COLUMNS[ip_at])
        if uniform:
            return most
        most >>= 1
    return 0
