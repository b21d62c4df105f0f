"""Cuts bytes into pieces, as a stream may deliver them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from hypothesis import strategies as st

# Where to cut, as numbers that `cut` folds into any length: so data and cuts are drawn independently.
cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """``data`` in order, cut at these places; no piece is empty."""
    if not data:
        return []
    inner = sorted({place % len(data) for place in places} - {0})
    return [data[start:stop] for start, stop in pairwise([0, *inner, len(data)])]


def every_chunking(data: bytes, places: Sequence[int]) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and cut at ``places``."""
    yield [data] if data else []
    yield [data[at : at + 1] for at in range(len(data))]
    yield cut(data, places)
