"""What targets share: the ways in which bytes arrive, and what holds for every failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MAX_TEXT: Final = 1000  # characters of a failure, which is to be a line of the log


def arrivals(data: bytes) -> Iterator[list[bytes]]:
    """Whole; byte by byte, if there are not too many; and in pieces whose sizes the data itself decides."""
    yield [data]
    if len(data) <= 200:
        yield [data[at : at + 1] for at in range(len(data))]
    pieces, at = [], 0
    while at < len(data):
        size = 1 + data[at] % 61
        pieces.append(data[at : at + size])
        at += size
    yield pieces


def assert_printable(failure: Exception) -> None:
    """What a failure says is for a log: short, and nothing in it moves a terminal."""
    assert len(str(failure)) <= MAX_TEXT
    assert str(failure).isprintable()


def assert_hidden(secret: str, *texts: object) -> None:
    """A secret is in none of what is said."""
    for text in texts:
        assert secret not in str(text)
