"""What was measured, kept by cell and load, and as tables. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..report import columns
from ..stats import paired
from .measure import Delays, Run
from .plan import PAIRS, Cell, Load


@dataclass
class CellResults:
    """Of one cell: the runs of each load, round by round, and what its road has seen. `failures` are for people."""

    cell: Cell
    runs: dict[Load, list[Run | None]] = field(default_factory=dict)
    road: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, load: Load, run: Run | None) -> None:
        """The load's run of the next round; None: it failed."""
        self.runs.setdefault(load, []).append(run)

    def median(self, load: Load, of: Callable[[Run], float]) -> float | None:
        """Of all rounds."""
        found = [of(run) for run in self.runs.get(load, []) if run is not None]
        return statistics.median(found) if found else None

    def gain(self, flows: int, *, down: bool) -> float | None:
        """Throughput of several pairs over that of one: the median of the rounds' own ratios."""
        several, one = (self.runs.get(Load(pairs, flows, down), []) for pairs in (PAIRS, 1))
        if len(several) != len(one):  # the cell broke off between the two
            return None
        ratios = paired(*([run.mbit_s if run else None for run in runs] for runs in (several, one)))
        return statistics.median(ratios) if ratios else None

    def late_percent(self) -> float:
        """Share of the packets that came out of the road late."""
        packets = sum(way["packets"] for way in self.road.values())
        return 100 * sum(way["late"] for way in self.road.values()) / packets if packets else 0.0

    def as_json(self) -> dict[str, Any]:
        """For a program. JSON has no infinity: null is a delay of a request that was lost."""
        loads = [
            {**asdict(load), "runs": [_finite(asdict(run)) if run else None for run in runs]}
            for load, runs in self.runs.items()
        ]
        return {"cell": asdict(self.cell), "loads": loads, "road": self.road, "failures": self.failures}


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _finite(value) if isinstance(value, dict) else None if value == math.inf else value
        for name, value in found.items()
    }


def throughput_table(results: Iterable[CellResults]) -> list[str]:
    """Mbit/s without a tunnel, over one pair and over several, and the gain, of each direction and number of flows."""
    rows = [[f"Mbit/s: no tunnel / 1 pair / {PAIRS} pairs, gain", *(f"{flows} {way}" for way, flows in _WAYS)]]
    for found in results:
        cells = []
        for way, flows in _WAYS:
            down = way == "down"
            numbers = [
                number(found.median(Load(pairs, flows, down), lambda run: run.mbit_s), 1)
                for pairs in ((1, PAIRS) if found.cell.proxy else (0, 1, PAIRS))
            ]
            cells.append(f"{' / '.join(numbers)}  x {number(found.gain(flows, down=down), 2)}")
        rows.append([str(found.cell), *cells])
    return columns(rows)


def delay_table(results: Iterable[CellResults], *, flows: int) -> list[str]:
    """Round trips of requests: 50 / 95 / 99 %, in ms."""
    kinds = ("1 pair", f"{PAIRS} pairs", f"{PAIRS}, beside")
    rows = [[f"ms: 50 / 95 / 99 %, beside {flows}", *(f"{way}, {kind}" for way in ("up", "down") for kind in kinds)]]
    for found in results:
        cells = []
        for down in (False, True):
            one, four = Load(1, flows, down), Load(PAIRS, flows, down)
            cells += [
                delays([run.every for run in found.runs.get(one, []) if run]),
                delays([run.every for run in found.runs.get(four, []) if run]),
                delays([run.beside for run in found.runs.get(four, []) if run and run.beside]),
            ]
        rows.append([str(found.cell), *cells])
    return columns(rows)


_WAYS = tuple((way, flows) for way in ("up", "down") for flows in (1, 8))


def delays(found: Sequence[Delays]) -> str:
    """The medians of the runs' percentiles: ``42 / 80 / 116``."""
    if not found:
        return "-"
    points = (statistics.median(getattr(it, name) for it in found) for name in ("median", "p95", "p99"))
    return " / ".join("lost" if math.isinf(point) else f"{point:.0f}" for point in points)


def number(found: float | None, decimals: int) -> str:
    """``-`` for what is not there."""
    return "-" if found is None else f"{found:.{decimals}f}"


def text(results: Sequence[CellResults]) -> str:
    """Everything that is printed at the end."""
    results = sorted(results, key=lambda it: (it.cell.proxy, it.cell.congestion != "cubic"))
    lines = [
        "medians of the rounds; a gain is the median of the rounds' own ratios; beside: requests through other pairs",
        "",
        *throughput_table(results),
    ]
    for flows in (1, 8):
        lines += ["", *delay_table(results, flows=flows)]
    costs = [[f"cores busy with both daemons: 1 pair / {PAIRS} pairs", *(f"{flows} {way}" for way, flows in _WAYS)]]
    for found in results:
        row = [str(found.cell)]
        for way, flows in _WAYS:
            both = (found.median(Load(pairs, flows, way == "down"), lambda run: run.cores) for pairs in (1, PAIRS))
            row.append(" / ".join(number(cost, 2) for cost in both))
        costs.append(row)
    lines += ["", *columns(costs), ""]
    late = max((found.late_percent() for found in results), default=0.0)
    lines.append(f"packets more than 2 ms late on the road, because the machine was busy: at most {late:.2f} %")
    failures = [f"  {found.cell}: {failure}" for found in results for failure in found.failures]
    if failures:
        lines += ["", "FAILED:", *failures]
    return "\n".join(lines)
