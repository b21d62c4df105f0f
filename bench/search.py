"""The highest rate at which next to nothing is lost, found by halving. Pure: the probe is the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

LOSS: Final = 0.01
# A loss between LOSS and this may have been the machine's hiccup: such a probe is repeated once.
DOUBTFUL_LOSS: Final = 0.05


@dataclass(frozen=True)
class Probe:
    """What one try at a rate has shown; rates are packets per second."""

    asked: float
    offered: float
    loss: float

    @property
    def held(self) -> bool:
        """Next to nothing was lost."""
        return self.loss < LOSS


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    `rate` is the highest offered rate that held, 0 if none did. `sender_bound`: no try was refused, so it is the
    sender or the upper bound that ended the search, and the tunnel may do better than `rate`.
    """

    rate: float
    sender_bound: bool
    probes: list[Probe] = field(repr=False)


def lossless_rate(probe: Callable[[float], Probe], low: float, high: float, probes: int) -> Found:
    """Halve the interval between `low` and `high` (in octaves) with `probes` tries, and as many doubtful ones again.

    The bounds are fixed, so that two searches whose tries agree ask for the same rates. A try counts at the rate that
    its sender reached, not at the one it was asked for.
    """
    tried: list[Probe] = []
    best, refused = 0.0, False
    for _ in range(probes):
        rate = math.sqrt(low * high)
        result = probe(rate)
        tried.append(result)
        if LOSS <= result.loss < DOUBTFUL_LOSS:
            result = probe(rate)
            tried.append(result)
        if result.held:
            best, low = max(best, result.offered), rate
        else:
            refused, high = True, rate
    return Found(best, not refused, tried)
