"""The first of us that runs: ``python -m tapotun_trio``, and ``tapotun``, the script."""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command line. Returns the exit code."""
    # Imports take most of a start. A signal that comes in their time waits until `cli` knows what is to become of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    from .cli import main

    return main()


if __name__ == "__main__":
    raise SystemExit(main())
