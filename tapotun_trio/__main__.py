"""The first of us that runs: ``python -m tapotun_trio``, and ``tapotun``, the script."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> int:
    """Run the command line. Returns the exit code."""
    # Imports take most of a start. A signal that comes in their time waits until `cli` knows what is to become of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    _mend_stdout()
    from .cli import main

    return main()


def _mend_stdout() -> None:
    """What is printed has a place, if only /dev/null, and what its encoding lacks is no reason to fail."""
    if sys.stdout is None:  # started with descriptor 1 closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        sys.stdout = open(nowhere, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    raise SystemExit(main())
