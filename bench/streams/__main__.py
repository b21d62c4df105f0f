"""`python -m bench.streams`: exit code 0 if everything was measured; the numbers do not matter."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from ..errors import BenchError
from ..native import compiled
from ..report import OUT
from ..run import machine, stay_on
from .cell import ROAD, measure_cell
from .plan import PLANS, Plan
from .results import CellResults, text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description="one pair of streams against four")
    parser.add_argument("--plan", choices=sorted(PLANS), default="full", help="full: an hour, quick: three minutes")
    parser.add_argument("--out", type=Path, default=OUT, help=f"directory for the results (default {OUT})")
    parser.add_argument("--cores", type=int, default=2, help="number of cores to use (default 2)")
    parser.add_argument("--jobs", type=int, default=3, help="cells measured at a time (default 3)")
    args = parser.parse_args()
    plan = PLANS[args.plan]
    print(f"planned: {plan.total_s / min(args.jobs, len(plan.cells)) / 60:.0f} minutes", flush=True)
    stay_on(args.cores)
    # It computes little, and a packet that waits for a CPU behind another program would look like a slow path.
    with suppress(PermissionError):
        os.nice(-10)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        results = _measure(plan, args.jobs, args.out)
    except BenchError as exc:
        print(f"bench-streams: {exc}", file=sys.stderr)
        return 1
    printed = text(results)
    (args.out / "streams.txt").write_text(printed + "\n", encoding="utf-8")
    print(f"\n{printed}\n\nwritten to {args.out}: streams.txt, streams.json")
    return 1 if any(found.failures for found in results) else 0


def _measure(plan: Plan, jobs: int, out: Path) -> list[CellResults]:
    """Every cell, in the plan's order. The JSON is written after each one, so an interrupted run is not lost."""
    begun, done = time.monotonic(), dict[int, CellResults]()
    here = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        program = compiled(ROAD, Path(directory))
        # Each cell has a process of its own: the requests' clock shares its interpreter with nothing.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
            cells = {
                pool.submit(measure_cell, cell, plan, program, number): number for number, cell in enumerate(plan.cells)
            }
            for future in as_completed(cells):
                found = done[cells[future]] = future.result()
                load = os.getloadavg()[0]
                print(f"{time.monotonic() - begun:6.0f} s, load {load:.1f}: {found.cell}", flush=True)
                for failure in found.failures:
                    print(f"  FAILED: {failure}", flush=True)
                results = [done[number] for number in sorted(done)]
                content = {"machine": here, "cells": [it.as_json() for it in results]}
                (out / "streams.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [done[number] for number in sorted(done)]


if __name__ == "__main__":
    sys.exit(main())
