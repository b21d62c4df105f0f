"""What each signal does to a process that runs interfaces: no signal that can be caught ends it without undo.

- STOPS end the process in order. SIGQUIT is Ctrl-\\, SIGABRT is the watchdog of a service manager, and SIGXCPU says
  that the limit of CPU time is near.
- SIGHUP reloads the config.
- `IGNORED` would end the process by default (signal(7)), and mean nothing here: SIGUSR1 is sent to let a program open
  its log again, SIGALRM and its siblings by timers of others, SIGPWR and the real-time signals by mistake.
- `FAULTS` are the kernel's for a broken program. One that another process sends is held back for ever, while a fault
  itself still ends the process, with a core dump: the kernel does not hold its own back (force_sig_info,
  kernel/signal.c).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT, signal.SIGXCPU)
FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS})
# These do not end a process, or cannot be caught.
_HARMLESS: Final = frozenset(
    {
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGSTOP, signal.SIGKILL),
    }
)
IGNORED: Final = frozenset(signal.valid_signals()) - {*STOPS, *FAULTS, *_HARMLESS, signal.SIGHUP}


@contextmanager
def shielded_from_signals(exit_code: int) -> Iterator[None]:
    """Within the block, until the app handles them: SIGHUP is held back, because a request to reload must not end a
    process that is starting; STOPS end the process at once, with this exit code, since nothing has begun and an import
    might swallow an exception; the others do nothing. Restores everything at the end.

    To be called before any thread is started, which inherits the mask.
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
    """Forget the faults that others have sent, so that they do not end the process when they are let through."""
    while signal.sigtimedwait(FAULTS, 0) is not None:
        pass
