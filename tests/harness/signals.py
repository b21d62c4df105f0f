"""The signals of a process that starts others, as those expect them."""

from __future__ import annotations

import signal
import threading
from typing import Final

_EXPECTED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def take_signals() -> None:
    """Have every process that we start begin with no signal ignored and none blocked, whoever started us.

    `nohup` ignores SIGHUP, a shell's ``&`` SIGINT, and a process is born with what its parent ignores and blocks. What
    the parent *handles* is the default in a child (execve(2)), so here such a signal gets a handler that does nothing:
    for ourselves it stays ignored, as whoever started us wants. In another thread than the main one it does nothing.
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
