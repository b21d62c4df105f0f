"""The Internet checksum (RFC 1071), as far as coalescing needs it."""

from __future__ import annotations

from operator import add
from typing import Final

from ..wire.frames import HEADER_BYTES

_ID_AT: Final = 4
_IP_CHECKSUM_AT: Final = 10


def fold(total: int) -> int:
    """A sum of 16-bit words, reduced to 16 bits and not inverted."""
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


def ip_headers_are_valid(frames: memoryview, size: int, ip_at: int = HEADER_BYTES) -> bool:
    """Whether the IP checksum of every frame is right, if their IP headers differ in ID and checksum only.

    ``size``: the size of each frame, in bytes. ``ip_at``: where in a frame the IP header begins. Both are even numbers.
    Untrusted input; never raises.
    """
    words, step, first = frames.cast("H"), size >> 1, ip_at >> 1
    # The words are in the machine's byte order. The sum works in either (RFC 1071, section 2).
    header = sum(words[first : first + 10])
    if header == 0 or header % 0xFFFF:
        return False
    checksums = words[first + (_IP_CHECKSUM_AT >> 1) :: step].tolist()
    sums = set(map(add, words[first + (_ID_AT >> 1) :: step].tolist(), checksums))
    return len({total % 0xFFFF for total in sums}) == 1 and 0xFFFF not in checksums
