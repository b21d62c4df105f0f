"""The signals of a process that starts others, as those expect them."""

from __future__ import annotations

import signal
import threading
from typing import Final

_EXPECTED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def take_signals() -> None:
    """Have every process that we start begin with no signal ignored and none blocked, even if ours are.

    `nohup` ignores SIGHUP, a shell's ``&`` ignores SIGINT, and a process inherits what its parent ignores and blocks. A
    signal that the parent *handles* has its default action in a child (execve(2)). So such a signal gets a handler that
    does nothing: we go on ignoring it, and our children do not. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _EXPECTED:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, _ignore)
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # then nobody could wait for a child's exit code
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _ignore(*_: object) -> None:
    """For ourselves."""
