"""Whether to try again what was in vain: at once, then after one occasion, three, seven, and so on."""

from __future__ import annotations


class AdaptiveSkip:
    """Asked at each occasion, and told how it went. What works is tried every time.

    Attributes:
        most: as many occasions are passed over at most, so that what begins to work is found out some time.
    """

    __slots__ = ("_failures", "_left", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._failures = 0  # as many occasions were passed over since the last time in vain; 0: it was not in vain
        self._left = 0  # of these

    def should_try(self) -> bool:
        """Whether to try now. If not, this occasion counts as passed over."""
        if self._left:
            self._left -= 1
            return False
        return True

    def succeeded(self) -> None:
        """It was worth it."""
        self._failures = 0

    def failed(self) -> None:
        """It was not."""
        self._failures = self._left = min(2 * self._failures + 1, self.most)
