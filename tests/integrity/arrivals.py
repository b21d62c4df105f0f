"""What a receiver of numbered packets makes of them. Pure: numbers and times in, counts out."""

from __future__ import annotations

from array import array
from bisect import bisect_right


class Arrivals:
    """Counts of what came, came twice and came late, with reordering as RFC 4737 defines it.

    A packet is *reordered* if one with a higher number arrived before it. Its *extent* is how many packets ago
    the first such one arrived, its lateness how long ago.
    """

    def __init__(self) -> None:
        self.arrived_ns = array("Q")  # by number: when it came first; 0 for never
        self.received = 0  # different ones
        self.duplicated = 0
        self.reordered = 0
        self.extent = 0  # the largest
        self.late_ns = 0  # of the same packets
        self._arrivals = 0
        # Every packet that was the highest yet: its number, the position of its arrival, and the time.
        self._highest: list[int] = []
        self._positions: list[int] = []

    def take(self, number: int, now_ns: int) -> None:
        """One packet. `now_ns` never goes back."""
        arrived = self.arrived_ns
        if number >= len(arrived):
            arrived.frombytes(bytes(8 * (number + 1 - len(arrived))))
        if arrived[number]:
            self.duplicated += 1
            return
        arrived[number] = now_ns
        self.received += 1
        self._arrivals += 1
        highest = self._highest
        if not highest or number > highest[-1]:
            highest.append(number)
            self._positions.append(self._arrivals)
            return
        first = bisect_right(highest, number)
        self.reordered += 1
        self.extent = max(self.extent, self._arrivals - self._positions[first])
        self.late_ns = max(self.late_ns, now_ns - arrived[highest[first]])
