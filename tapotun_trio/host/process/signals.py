"""Defines what each signal does to a process that runs interfaces. No signal that can be caught ends it without undo.

- `STOPS` end the process after undoing everything. SIGQUIT comes from Ctrl-\\, SIGABRT from a service manager's
  watchdog, and SIGXCPU when the limit of CPU time is near.
- SIGHUP reloads the config.
- `IGNORED` have no meaning here, but would end the process by default (signal(7)). SIGUSR1 asks some programs to open
  their log again. SIGALRM and its siblings come from timers that other code has set, SIGPWR and the real-time signals
  are sent by mistake.
- `FAULTS` are sent by the kernel to a broken program. A real fault still ends the process with a core dump, because
  blocking does not hold back the kernel's own signal (force_sig_info, kernel/signal.c). The same signal from another
  process stays blocked for ever.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT, signal.SIGXCPU)
FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS})
# Signals that do not end a process, or cannot be caught.
_HARMLESS: Final = frozenset(
    {
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGSTOP, signal.SIGKILL),
    }
)
IGNORED: Final = frozenset(signal.valid_signals()) - {*STOPS, *FAULTS, *_HARMLESS, signal.SIGHUP}


@contextmanager
def shielded_from_signals(exit_code: int) -> Iterator[None]:
    """Within the block, handle signals until the app does. SIGHUP is blocked, because a request to reload must not end
    a process that is starting. STOPS end the process at once with ``exit_code``: there is nothing to undo yet, and an
    import might swallow an exception. The other signals do nothing. Restores everything at the end.

    Call this before any thread is started, so that threads inherit the signal mask.
    """
    with ExitStack() as undo:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, *FAULTS})
        undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        undo.callback(_discard_held_back)
        for number in sorted(IGNORED):
            undo.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN) or signal.SIG_DFL)
        for number in STOPS:
            before = signal.signal(number, lambda *_: os._exit(exit_code))
            undo.callback(signal.signal, number, before or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        yield


def _discard_held_back() -> None:
    """Discard pending FAULTS from other processes, so that they do not end this process when they are unblocked."""
    while signal.sigtimedwait(FAULTS, 0) is not None:
        pass
