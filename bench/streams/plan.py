"""What is measured: paths, loads, and how long. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAIRS: Final = 4


@dataclass(frozen=True)
class Cell:
    """A path, and how the tunnel uses it.

    Attributes:
        rtt_ms: round trip of the empty path.
        loss_percent: share of the packets that the wire loses, in each direction.
        congestion: what the two hosts prefer (``ip route ... congctl``).
        proxy: whether the server is behind nginx (conf/proxies/nginx/nginx.conf), which ends TLS.
        burst: mean number of packets lost in a row; 1: losses are independent.
        mbit_s: rate of the link, each direction.
        queue_ms: length of the link's queue.
    """

    rtt_ms: int
    loss_percent: float
    congestion: str
    proxy: bool
    burst: float = 1.0
    mbit_s: int = 100
    queue_ms: int = 50

    @property
    def queue_bytes(self) -> int:
        """Length of the link's queue."""
        return self.mbit_s * 125 * self.queue_ms

    def __str__(self) -> str:
        kind = f", bursts of {self.burst:g}" if self.burst > 1 else ""
        link = f", {self.mbit_s} Mbit/s" if self.mbit_s != 100 else ""
        queue = f", a queue of {self.queue_ms} ms" if self.queue_ms != 50 else ""
        way = "nginx" if self.proxy else "http"
        return f"{way}, {self.congestion}, {self.rtt_ms} ms, {self.loss_percent:g} %{kind}{link}{queue}"


@dataclass(frozen=True)
class Load:
    """TCP flows in one direction, through one pair or several; 0 pairs: no tunnel."""

    pairs: int
    flows: int
    down: bool


@dataclass(frozen=True)
class Plan:
    """What to measure, and how often. Times in seconds, for each run."""

    cells: tuple[Cell, ...]
    rounds: int
    warm_up_s: int
    measured_s: int

    @property
    def total_s(self) -> float:
        """About how long it takes, one cell after the other."""
        runs = sum(len(loads_of(cell, turn)) for cell in self.cells for turn in range(self.rounds))
        return len(self.cells) * 6 + runs * (self.warm_up_s + self.measured_s + 2.3)


def loads_of(cell: Cell, turn: int) -> tuple[Load, ...]:
    """The loads of a round, in order. Every second round has them the other way round.

    The first round has those without a tunnel too, for orientation. Behind a proxy they would be the same.
    """
    pairs = (1, PAIRS) if cell.proxy or turn else (0, 1, PAIRS)
    loads = tuple(Load(number, flows, down) for down in (False, True) for flows in (1, 8) for number in pairs)
    return loads if turn % 2 == 0 else loads[::-1]


# Cells that keep the machine busy (bbr) come between others, since several are measured at a time.
_USUAL: Final = tuple(
    Cell(rtt_ms, loss, congestion, proxy)
    for rtt_ms in (40, 80)
    for loss in (0.1, 0.3, 1.0)
    for proxy in (False, True)
    for congestion in ("cubic", "bbr")
)
# What the verdict could depend on: a path without losses, losses that come together, and a slower link.
_OTHER: Final = (
    Cell(40, 0.0, "cubic", proxy=False),
    Cell(40, 0.0, "cubic", proxy=True),
    Cell(40, 0.3, "cubic", proxy=False, burst=8.0),
    Cell(40, 0.3, "cubic", proxy=False, mbit_s=20),
)

PLANS: Final = {
    "full": Plan((*_USUAL, *_OTHER), rounds=3, warm_up_s=4, measured_s=8),
    "quick": Plan((Cell(40, 0.3, "cubic", proxy=False), Cell(40, 0.3, "bbr", proxy=False)), 1, 3, 6),
}
