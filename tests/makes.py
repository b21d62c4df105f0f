"""Runs make for a test: as a developer does in a shell, no matter what started the tests.

CI starts them by ``make test ARGS=...``. A make that runs below another one takes over its options, prints the
directories that it enters, and finds the variables of its command line in the environment.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

from tests.harness import ROOT

TIMEOUT_S: Final = 1200.0  # building all packages takes a minute on two idle cores

# GNU make's manual, "Communicating Options to a Sub-make" and "Variables/Recursion".
_OURS: Final = ("GNUMAKEFLAGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKE_TERMERR", "MAKE_TERMOUT", "MFLAGS")
# MAKEFLAGS ends with the command line's variables, in whose values spaces follow a backslash.
_VARIABLE: Final = re.compile(r"(?<!\\) (\w+)=")


def environment() -> dict[str, str]:
    """Ours, without what an outer make has put there."""
    ours = {*_OURS, *_VARIABLE.findall(f" {os.environ.get('MAKEFLAGS', '')}")}
    return {name: value for name, value in os.environ.items() if name not in ours}


def run_make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``make WORDS`` in the repository: targets, variables and options. It may fail."""
    return subprocess.run(
        ["make", *words],
        check=False,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
