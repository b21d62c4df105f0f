"""Tells whether many adjacent frames of one length are uniform: the same in chosen fields.

Frames are compared column by column: the same 16 bits of all frames are one strided slice, and one comparison of two
such slices, made in C, compares each frame with the next. Looking at one field of one frame costs Python 50 ns; looking
at a field of 64 frames at once costs 4 ns for each.
"""

from __future__ import annotations

from typing import Final

from .vnet import VNET_BYTES

_PACKET_AT: Final = 2 + VNET_BYTES

# With fewer frames it is as fast to look at each by itself (measured).
MIN_BLOCK_FRAMES: Final = 8

# Columns (even byte offsets in a frame) that are uniform in every block: length field and vnet header; version, IHL and
# TOS; TTL and protocol; source and destination.
_BLOCK_COLUMNS: Final = (0, *range(2, _PACKET_AT, 2), _PACKET_AT, *(_PACKET_AT + at for at in (8, 12, 14, 16, 18)))


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


def count_uniform(view: memoryview, start: int, size_bytes: int, most: int) -> int:
    """How many frames from ``start`` on are uniform: ``most``, or a half of it, a quarter and so on.

    More frames than the returned number may be uniform. Returns 0 instead of a number below MIN_BLOCK_FRAMES.

    ``most``: the number of frames of ``size_bytes`` in the buffer. Untrusted input; never raises.
    """
    while most >= MIN_BLOCK_FRAMES:
        if are_uniform(view[start : start + most * size_bytes], size_bytes):
            return most
        most >>= 1
    return 0
