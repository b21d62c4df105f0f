"""`python -m bench.compare`: exit code 0 if everything that is installed was measured; the numbers do not matter."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.harness import HarnessError

from .. import markdown as document
from ..errors import BenchError
from ..report import OUT
from ..run import stay_on
from .measure import compare
from .results import markdown, text
from .tools import TOOLS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="the tunnel beside other tools")
    parser.add_argument("--rounds", type=int, default=5, help="default 5, a minute each")
    parser.add_argument("--seconds", type=int, default=2, help="length of each run of TCP (default 2)")
    parser.add_argument("--tools", metavar="NAME,...", help=f"only these of {', '.join(TOOLS)}")
    parser.add_argument("--load-congestion", metavar="NAME", help="of what goes through (default: the machine's)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this document, too")
    parser.add_argument("--remark", default="", help="a sentence about the machine, for the document")
    parser.add_argument("--out", type=Path, default=OUT, help=f"directory for the results (default {OUT})")
    parser.add_argument("--cores", type=int, default=2, help="number of cores to use (default 2)")
    args = parser.parse_args()
    names = args.tools.split(",") if args.tools else list(TOOLS)
    if unknown := [name for name in names if name not in TOOLS]:
        parser.error(f"no tool {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    stay_on(args.cores)
    try:
        if args.markdown is not None:
            document.check(args.markdown, "bench-compare")  # not after seven minutes
        found = compare(args.rounds, args.seconds, names, lambda said: print(said, flush=True), args.load_congestion)
        printed = text(found)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "compare.txt").write_text(printed + "\n", encoding="utf-8")
        (args.out / "compare.json").write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
        if args.markdown is not None:
            document.write(args.markdown, "bench-compare", markdown(found, args.remark))
    except (BenchError, HarnessError) as exc:
        print(f"bench-compare: {exc}", file=sys.stderr)
        return 1
    print(f"\n{printed}\n\nwritten to {args.out}: compare.txt, compare.json")
    missing = found.missing(names)
    for what in missing:
        print(f"not measured: {what}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
