"""Counters of a running end, in a file that the test maps too."""

from __future__ import annotations

import mmap
from typing import Final

_FIELDS: Final = 6
LIVE_BYTES: Final = 8 * _FIELDS


class Live:
    """Six numbers. One process writes, any may read; a number is never seen half written."""

    def __init__(self, memory: mmap.mmap) -> None:
        """`memory` has `LIVE_BYTES`."""
        self.cells = memoryview(memory).cast("Q")

    @property
    def sent(self) -> int:
        """Packets, or bytes over TCP."""
        return self.cells[0]

    @property
    def received(self) -> int:
        """Different packets, or bytes over TCP."""
        return self.cells[1]

    @property
    def unsent(self) -> int:
        """What the kernel refused to send: no route, no address."""
        return self.cells[2]

    @property
    def newest_sent_ns(self) -> int:
        """When the packet that was sent last, of those that came, was sent."""
        return self.cells[3]

    @property
    def newest_arrived_ns(self) -> int:
        """When it came."""
        return self.cells[4]

    @property
    def silent(self) -> bool:
        """It has obeyed the order to send no more, so that `sent` stays as it is. Over UDP only."""
        return bool(self.cells[5])

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.received} received, {self.unsent} could not be sent"
