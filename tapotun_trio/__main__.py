"""The entry point of the process: ``python -m tapotun_trio``, and the script ``tapotun``."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> int:
    """Run the command line. Returns the exit code."""
    # Imports take most of the start. A signal that arrives meanwhile stays pending until `cli` can handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    _repair_stdout()
    from .cli import main

    return main()


def _repair_stdout() -> None:
    """Make printing safe: to /dev/null if stdout is closed, with escapes for characters that its encoding lacks."""
    if sys.stdout is None:  # started with descriptor 1 closed
        null_fd = os.open(os.devnull, os.O_WRONLY)
        sys.stdout = open(null_fd, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    raise SystemExit(main())
