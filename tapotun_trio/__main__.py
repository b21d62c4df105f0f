"""The entry point of the process: ``python -m tapotun_trio``, and the script ``tapotun``."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Final

_NO_MEMORY: Final = (
    b"tapotun: not enough memory to run; raise MemoryMax= or LimitAS= of the service, or ulimit -v, or give the machine"
    b" more memory\n"
)
_WORKER: Final = "update-worker"  # equals update.task.WORKER; no user types it
_EXIT_RUNTIME: Final = 3  # equals exit_codes.RUNTIME; importing that may fail without memory


def main() -> int:
    """Run the command line. Returns the exit code."""
    # Imports take most of the start. A signal that arrives meanwhile stays pending until `cli` can handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    try:
        if sys.argv[1:] == [_WORKER]:
            from .update.worker import main as work

            return work()
        _repair_stdout()
        from .cli import main

        return main()
    except (MemoryError, ImportError, OSError) as exc:
        if not _is_no_memory(exc):
            raise
    # Outside of the handler, so that the memory held by the exception is free again.
    os.write(2, _NO_MEMORY)
    return _EXIT_RUNTIME


def _is_no_memory(exc: BaseException) -> bool:
    """Whether memory ran out. If a library does not fit into the address space, ImportError is raised (dlopen(3))."""
    if isinstance(exc, ImportError):
        return any(words in str(exc) for words in ("failed to map segment", "annot allocate memory"))
    return isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM)


def _repair_stdout() -> None:
    """Make printing safe: to /dev/null if stdout is closed, with escapes for characters that its encoding lacks."""
    if sys.stdout is None:  # started with descriptor 1 closed
        null_fd = os.open(os.devnull, os.O_WRONLY)
        sys.stdout = open(null_fd, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    raise SystemExit(main())
