"""`python -m bench.scaling`: exit code 0 if everything was measured; the numbers do not matter."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.harness import HarnessError

from ..errors import BenchError
from ..native import UDPFLOOD, compiled
from ..report import OUT, columns, value
from ..run import machine, stay_on
from ..stats import Spread
from ..targets import Verdict
from .crowd import POINTS, Cost, Idle, cost_curve, idle
from .fair import Fairness, fairness
from .reloads import IDLE, Gaps, reloads

COST_ROUNDS, COST_S, UP_PPS, DOWN_PPS = 5, 1.5, 40_000.0, 10_000.0
IDLE_CLIENTS, IDLE_KEEPALIVE_S, IDLE_S = 500, 10.0, 24.0
FAIR_ROUNDS, FAIR_S = 3, 4
RELOAD_ROUNDS, RELOAD_ROUND_S = 3, 18


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description="a server with many clients")
    parser.add_argument("--out", type=Path, default=OUT, help=f"directory for the results (default {OUT})")
    parser.add_argument("--cores", type=int, default=2, help="number of cores to use (default 2)")
    args = parser.parse_args()
    planned_s = 15 + COST_ROUNDS * len(POINTS) * 2 * (COST_S + 0.2) + 8 + IDLE_S + 15 + FAIR_ROUNDS * 5 * (FAIR_S + 1)
    planned_s += 5 + RELOAD_ROUNDS * RELOAD_ROUND_S
    print(f"planned: {planned_s:.0f} s of at most 300 s", flush=True)
    stay_on(args.cores)
    try:
        cost, waiting, shares, gaps = _measure()
    except (BenchError, HarnessError) as exc:
        print(f"bench-scaling: {exc}", file=sys.stderr)
        return 1
    verdicts = _verdicts(cost, waiting, shares, gaps)
    printed = _text(cost, waiting, shares, gaps, verdicts)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scaling.txt").write_text(printed + "\n", encoding="utf-8")
    found = _as_json(cost, waiting, shares, gaps, verdicts)
    (args.out / "scaling.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"\n{printed}\n\nwritten to {args.out}: scaling.txt, scaling.json")
    return 0


def _measure() -> tuple[Cost, Idle, Fairness, Gaps]:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        flood = compiled(UDPFLOOD, Path(directory))
        _tell(f"idle: {IDLE_CLIENTS} clients for {IDLE_S:.0f} s")
        waiting = idle(IDLE_CLIENTS, IDLE_KEEPALIVE_S, IDLE_S)
        _tell("cost of a packet")
        cost = cost_curve(flood, COST_ROUNDS, COST_S, UP_PPS, DOWN_PPS, _tell)
        _tell("fairness")
        shares = fairness(flood, FAIR_ROUNDS, FAIR_S, _tell)
        _tell("reloads and a scrape")
        return cost, waiting, shares, reloads(RELOAD_ROUNDS, _tell)


def _tell(text: str) -> None:
    print(text, flush=True)


def _growth(samples: dict[str, list[float]], point: str, base: str) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(more / less for more, less in zip(samples[point], samples[base], strict=True))


def _verdicts(cost: Cost, waiting: Idle, shares: Fairness, gaps: Gaps) -> list[Verdict]:
    found = []
    for way, samples in (("up", cost.up), ("down", cost.down)):
        for point, base in (("1,000 clients", "10 clients"), ("10,000 routes", "10 routes")):
            # "Does not grow": a tenth is what caches and the mood of a machine make of nothing.
            found.append(Verdict(f"a packet {way}, {point} of {base}", _growth(samples, point, base), 1.1, False))
    found += [
        Verdict(f"{waiting.clients} idle clients, of a core", waiting.cpu_percent, 2.0, False, " %"),
        Verdict("server's RSS for an idle client", waiting.mb_per_client, 0.3, False, " MB"),
        Verdict("Jain's index, 8 clients up", statistics.median(shares.up), 0.95, True),
        Verdict("Jain's index, 8 clients down", statistics.median(shares.down), 0.95, True),
        Verdict("8 beside a slow client, of beside nobody", shares.kept("nobody"), 0.95, True),
        Verdict("8 beside a slow client, of beside a fast one", shares.kept("fast"), 0.95, True),
    ]
    for name, gaps_ms in gaps.largest_ms.items():
        if name != IDLE:
            found.append(Verdict(f"largest gap, {name}", statistics.median(gaps_ms), 100.0, False, " ms"))
    return found


def _text(cost: Cost, waiting: Idle, shares: Fairness, gaps: Gaps, verdicts: list[Verdict]) -> str:
    here = machine()
    rows = [["CPU us for a packet", "from a client", "to a client", "", ""]]
    for point in POINTS:
        base = "10 routes" if point.routes else "10 clients"
        rows.append(
            [
                point.name,
                *(value(Spread.of(samples[point.name]), 2) for samples in (cost.up, cost.down)),
                *(f"x {_growth(samples, point.name, base):.2f}" for samples in (cost.up, cost.down)),
            ]
        )
    together = [["8 clients down, Gbit/s together", "", "Jain"]]
    for beside, totals in shares.beside.items():
        index = statistics.median(shares.beside_jain[beside])
        together.append([f"beside {beside}", value(Spread.of(totals), 2), f"{index:.3f}"])
    held = [
        [f"largest gap of a bystander's pings (every {gaps.interval_ms:g} ms), ms", "", "of idle", "took, s", "lost"]
    ]
    idle_ms = statistics.median(gaps.largest_ms[IDLE])
    for name, samples in gaps.largest_ms.items():
        held.append(
            [
                name,
                value(Spread.of(samples), 1),
                f"x {statistics.median(samples) / idle_ms:.1f}",
                value(Spread.of(gaps.took_s[name]), 1),
                str(gaps.lost[name]),
            ]
        )
    return "\n".join(
        [
            f"scaling, {here['date']}: Linux {here['kernel']}, Python {here['python']}, {here['cores']} cores",
            "medians (least-most); growth is the median of the rounds' own ratios to the smallest",
            "",
            *columns(rows),
            "",
            f"{waiting.clients} idle clients, keepalive {waiting.keepalive_s:g} s:"
            f" {waiting.cpu_percent:.2f} % of a core, RSS {waiting.empty_mb:.1f} -> {waiting.full_mb:.1f} MB",
            "",
            *columns(together),
            "",
            *columns(held),
            "",
            *(str(verdict) for verdict in verdicts),
        ]
    )


def _as_json(cost: Cost, waiting: Idle, shares: Fairness, gaps: Gaps, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "machine": {**machine(), "load": os.getloadavg()},
        "cost_us": asdict(cost),
        "idle": {**asdict(waiting), "mb_per_client": waiting.mb_per_client},
        "fairness": asdict(shares),
        "gaps": asdict(gaps),
        "targets": [verdict.as_json() for verdict in verdicts],
    }


if __name__ == "__main__":
    sys.exit(main())
