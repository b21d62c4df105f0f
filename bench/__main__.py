"""`python -m bench`: exit code 0 if everything was measured, 1 if something was not; the numbers do not matter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from tests.harness import ROOT, HarnessError

from .errors import BenchError
from .plan import PLANS
from .plot import draw
from .report import OUT, write
from .run import bench, stay_on

CRELAY: Final = ROOT.parent / "shared" / "bench" / "crelay.c"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="the tunnel compared with a relay in C")
    parser.add_argument("--plan", choices=sorted(PLANS), default="full", help="full: ten minutes, quick: two")
    parser.add_argument("--crelay", type=Path, default=CRELAY, help=f"source of the C relay (default {CRELAY})")
    parser.add_argument("--out", type=Path, default=OUT, help=f"directory for the results (default {OUT})")
    parser.add_argument(
        "--cores", type=int, default=2, help="number of cores to use (default 2, which the targets are for)"
    )
    args = parser.parse_args()
    plan = PLANS[args.plan]
    print(plan, flush=True)
    stay_on(args.cores)
    try:
        results = bench(plan, args.crelay, lambda text: print(text, flush=True))
    except (BenchError, HarnessError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    print(f"\n{write(results, plan, args.out)}\n")
    try:
        draw(results, args.out / "bench.png")
    except ImportError as exc:
        print(f"bench: no plot: {exc}: `make bench` installs what it needs", file=sys.stderr)
        return 1
    print(f"written to {args.out}: bench.txt, bench.json, bench.png")
    for what in results.missing():
        print(f"not measured: {what}", file=sys.stderr)
    return 1 if results.missing() else 0


if __name__ == "__main__":
    sys.exit(main())
