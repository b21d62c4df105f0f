"""The C programs of a bench, compiled when it runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from .errors import BenchError

UDPFLOOD: Final = Path(__file__).with_name("udpflood.c")


def compiled(source: Path, directory: Path) -> Path:
    """The program of a C file, in that directory. Raises BenchError in one line."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler: apt-get install gcc libc6-dev")
    if not source.is_file():
        raise BenchError(f"{source} is not there: the relay to compare with; say where it is by CRELAY=/path/crelay.c")
    program = directory / source.stem
    done = subprocess.run(
        [compiler, "-O2", "-pthread", "-o", program, source], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{source} does not compile: {done.stderr.strip().splitlines()[0]}")
    return program
