"""`python -m bench`: exit code 0 if everything was measured, 1 if something was not; the numbers do not matter."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from tests.harness import ROOT, HarnessError

from . import markdown as document
from .errors import BenchError
from .plan import PLANS
from .plot import draw
from .report import OUT, markdown, write
from .run import bench, stay_on
from .variants import PLANE, WITHOUT_PLANE

# The tests have a copy, so that a clone alone can be measured.
_CRELAYS: Final = (ROOT.parent / "shared" / "bench" / "crelay.c", ROOT / "tests" / "netns" / "crelay.c")
CRELAY: Final = next((file for file in _CRELAYS if file.is_file()), _CRELAYS[-1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="the tunnel compared with a relay in C")
    parser.add_argument("--plan", choices=sorted(PLANS), default="full", help="full: ten minutes, quick: two")
    parser.add_argument("--crelay", type=Path, default=CRELAY, help=f"source of the C relay (default {CRELAY})")
    parser.add_argument(
        "--plane",
        choices=("auto", "off", "both"),
        default="auto",
        help="the daemons' native data path: auto, as they are set up here; off; both, in the same rounds",
    )
    parser.add_argument(
        "--load-congestion",
        metavar="NAME",
        help="congestion control of the TCP that goes through (default: this machine's default)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the targets into this document, too")
    parser.add_argument("--remark", default="", help="a sentence about the machine, for the document")
    parser.add_argument("--out", type=Path, default=OUT, help=f"directory for the results (default {OUT})")
    parser.add_argument(
        "--cores", type=int, default=2, help="number of cores to use (default 2, which the targets are for)"
    )
    args = parser.parse_args()
    plan = PLANS[args.plan]
    if args.plane == "both":
        os.environ.pop(PLANE, None)  # it is set for one half of them only
        plan = plan.with_plane_off()
    elif args.plane == "off":
        os.environ.update(WITHOUT_PLANE)
    print(plan, flush=True)
    stay_on(args.cores)
    try:
        if args.markdown is not None:
            document.check(args.markdown, "bench")  # not after ten minutes
        results, plan = bench(plan, args.crelay, lambda text: print(text, flush=True), args.load_congestion)
        printed = write(results, plan, args.out)
        if args.markdown is not None:
            document.write(args.markdown, "bench", markdown(results, plan, args.remark))
    except (BenchError, HarnessError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    print(f"\n{printed}\n")
    try:
        draw(results, args.out / "bench.png")
    except ImportError as exc:
        print(f"bench: no plot: {exc}: `make bench` installs what it needs", file=sys.stderr)
        return 1
    print(f"written to {args.out}: bench.txt, bench.json, bench.png")
    missing = results.missing(plan)
    for what in missing:
        print(f"not measured: {what}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
