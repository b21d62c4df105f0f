"""Medians, spreads, ratios. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Spread:
    """What several samples of one thing come to."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Raises ValueError if there are none."""
        if not samples:
            raise ValueError("no samples")
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that ``percent`` of all samples do not exceed (nearest rank).

    Raises ValueError if there are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    rank = math.ceil(percent / 100 * len(samples))
    return sorted(samples)[max(rank, 1) - 1]


def paired(samples: Sequence[float | None], bases: Sequence[float | None]) -> list[float]:
    """Each sample over the base of the same round; rounds in which one of them is missing or zero are left out."""
    return [
        sample / base
        for sample, base in zip(samples, bases, strict=True)
        if sample is not None and base is not None and base > 0
    ]


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all shares are equal, 1/n if one has everything.

    (sum x)^2 / (n * sum x^2): Jain, Chiu, Hawe, DEC-TR-301, 1984. Raises ValueError if there is nothing to share.
    """
    squares = sum(share * share for share in shares)
    if squares == 0:
        raise ValueError("no shares, or all are zero")
    return sum(shares) ** 2 / (len(shares) * squares)
