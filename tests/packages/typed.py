"""Keys typed into a real interactive shell, on a terminal of its own, and what it makes of them.

A program of its own, so that it can run on a host of the lab:
``python -m tests.packages.typed SHELL SETUP KEYS WANTED [KEYS WANTED]...``. It starts the shell, has it run SETUP,
types KEYS, and waits until WANTED (a regular expression) stands on the screen since; then the line makes way for the
next.
Exit code 0: all did; 1: one did not within 20 s, and the screen is printed.
"""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time
from typing import Final

LIMIT_S: Final = 20.0
_SHELLS: Final = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
# ECMA-48 control sequences, and others that a terminal does not show.
_UNSEEN: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|[\x00\x07\r]")
_PROMPT: Final = "READY> "


def main(shell: str, setup: str, *typed: str) -> int:
    """See above."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="dumb", PS1="starting> ", HOME="/nonexistent", COLUMNS="120", LINES="50")
        os.execvp(_SHELLS[shell][0], _SHELLS[shell])
    screen = Screen(terminal)
    try:
        os.write(terminal, f"{setup}; PS1='{_PROMPT[:3]}''{_PROMPT[3:]}'\n".encode())
        for keys, wanted in zip(typed[::2], typed[1::2], strict=True):
            if not screen.wait_for(re.escape(_PROMPT)):
                print(f"{shell} is not ready for {keys!r}:\n{screen.text}")
                return 1
            screen.text = ""
            os.write(terminal, keys.encode())
            if not screen.wait_for(wanted):
                print(f"{shell} made this of {keys!r}:\n{screen.text}\nand not: {wanted}")
                return 1
            screen.text = ""
            os.write(terminal, b"\x15\n")  # Ctrl-U
        return 0
    finally:
        os.close(terminal)  # which hangs up
        os.waitpid(pid, 0)


class Screen:
    """What a terminal showed."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self.text = ""

    def wait_for(self, wanted: str) -> bool:
        """Whether it appears in time."""
        deadline = time.monotonic() + LIMIT_S
        while (left := deadline - time.monotonic()) > 0:
            if re.search(wanted, self.text):
                return True
            if select.select([self._terminal], [], [], left)[0]:
                try:
                    data = os.read(self._terminal, 65536)
                except OSError:  # the shell has ended
                    return False
                self.text = _UNSEEN.sub("", self.text + data.decode(errors="replace"))
        return False


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
