"""The Internet checksum (RFC 1071), as far as merging needs it."""

from __future__ import annotations

from operator import add
from typing import Final

_ID_AT: Final = 18
_IP_CHECK_AT: Final = 24


def fold(total: int) -> int:
    """A sum of 16-bit words, not inverted."""
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


def have_right_checksums(frames: memoryview, size: int) -> bool:
    """Whether every frame's IP header sums up to what it should, all of it but ID and checksum being the same.

    ``size``: of each of the frames, even. Untrusted input; never raises.
    """
    words, step = frames.cast("H"), size >> 1
    # In the machine's byte order, whichever that is: RFC 1071, section 2.
    header = sum(words[7:17])
    if header == 0 or header % 0xFFFF:
        return False
    checks = words[_IP_CHECK_AT >> 1 :: step].tolist()
    sums = set(map(add, words[_ID_AT >> 1 :: step].tolist(), checks))
    return len({total % 0xFFFF for total in sums}) == 1 and 0xFFFF not in checks
