"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from typing import Final

FIRST_S: Final = 0.5
LIMIT_S: Final = 10.0
# The server's machine or its proxy answered, so the server itself is restarting. A retry costs little, and all clients
# of a restarted server should be back within 5 s.
NEAR_LIMIT_S: Final = 4.0
# A stream that worked for this long resets the count of failures. A proxy may end every stream at a fixed age, which
# is no reason to wait before the next one. The minimum keeps such streams from being reopened too often.
WORKED_S: Final = 1.0


class Backoff:
    """Full jitter: the first retry at once, then after a random time below 0.5, 1, 2, ... up to 10 s.

    Full jitter is the usual scheme that best spreads the requests of many clients that lose one server at the same
    time.
    """

    __slots__ = ("_failures", "_random")

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()
        self._failures = 0

    def next_s(self, *, lived_s: float = 0.0, near: bool = False) -> float:
        """Seconds to wait after the failure of a stream that had worked for ``lived_s``. ``near``: the other end
        answered; it was not silent."""
        if lived_s >= WORKED_S:
            self._failures = 0
        self._failures += 1
        if self._failures == 1:
            return 0.0
        ceiling = min(FIRST_S * 2.0 ** min(self._failures - 2, 10), NEAR_LIMIT_S if near else LIMIT_S)
        return self._random.uniform(0, ceiling)

    def reset(self) -> None:
        """The path changed, so earlier failures no longer count."""
        self._failures = 0
