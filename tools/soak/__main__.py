"""`python -m tools.soak`: exit code 0 if every bound held."""

from __future__ import annotations

import argparse
import sys

from tests.harness import Lab

from .run import soak
from .topology import FAULTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="seconds; no new fault after that")
    parser.add_argument("--kind", action="append", choices=sorted(FAULTS), help="only these kinds. Default: all")
    args = parser.parse_args()
    kinds = args.kind or sorted(FAULTS)
    with Lab() as lab:
        report = soak(lab, args.seed, args.faults, args.limit, lambda text: print(text, flush=True), kinds)
    print(f"\n{report}")
    for line in report.faults:
        print(f"NOT AS IT SHOULD BE: {line}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
