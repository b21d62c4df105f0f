"""A daemon inside a host: started, watched, stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .errors import ProcessError, WaitError, wait_until

STOP_S: Final = 5.0
TAIL_LINES: Final = 25

ENDING: Final = (*(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGXCPU, signal.SIGKILL),)
"""The signals that end our daemon."""


class Process:
    """A process that a `Host` started, its standard output and error captured as one log.

    The log is a file in memory: a daemon never blocks on a reader, and nothing is left on the disk.
    As a context manager it stops the process with SIGTERM at the end, and raises ProcessError if the
    process had ended by itself by then: a daemon that crashed is a failed test even where nobody looked.
    """

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log_fd: int) -> None:
        """Called by `Host.start`. Owns both the process and the file descriptor of its log."""
        self.name = name
        self._popen = popen
        self._log_fd = log_fd
        self._closed_log: bytes | None = None
        self._end_is_expected = False

    def __repr__(self) -> str:
        state = "running" if self.running else f"ended with {self.exit_code}"
        return f"<Process {self.name} pid {self.pid} {state}>"

    @property
    def pid(self) -> int:
        """The PID as the test sees it (inside its host the process has another one)."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """False once the process has ended, for any reason."""
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._popen.poll()

    def check_running(self) -> None:
        """Raises ProcessError, with the end of its log, if it has ended."""
        if not self.running:
            raise ProcessError(f"{self.name} has ended\n{self.tail()}")

    # The log

    @property
    def log(self) -> str:
        """Everything that it has printed so far."""
        return self._read_log(0)

    @property
    def log_end(self) -> int:
        """Where the log ends now, in bytes: hand it to `wait_for_log` to look only at what comes later."""
        return len(self._closed_log) if self._closed_log is not None else os.fstat(self._log_fd).st_size

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of the log under a heading, as the errors show them."""
        text = "\n".join(f"  | {line}" for line in self.log.splitlines()[-lines:])
        return f"log of {self!r}:\n{text or '  (empty)'}"

    def wait_for_log(self, pattern: str, timeout: float = 10.0, *, after: int = 0) -> re.Match[str]:
        """Wait until the log matches a regular expression (`re.MULTILINE`), at most `timeout` seconds.

        Raises WaitError, or ProcessError at once if the process has ended without saying it.
        """
        expression = re.compile(pattern, re.MULTILINE)

        def search() -> re.Match[str] | None:
            ended = not self.running  # asked before reading, or its last words could be missed
            match = expression.search(self._read_log(after))
            if match is None and ended:
                raise ProcessError(f"{self.name} ended without logging {pattern!r}\n{self.tail()}")
            return match

        return wait_until(search, timeout, f"{pattern!r} in the log of {self.name}", self.tail)

    def _read_log(self, start: int) -> str:
        if self._closed_log is not None:
            return self._closed_log[start:].decode(errors="replace")
        # pread: the file offset is shared with the process that writes.
        return os.pread(self._log_fd, max(0, self.log_end - start), start).decode(errors="replace")

    # Life and death

    def stop(self, timeout: float = STOP_S, *, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Send SIGTERM (or another) and wait for the end. Returns the exit code.

        Raises WaitError after `timeout` seconds, having killed it then; ProcessError if it was not running.
        """
        if not self.running and not self._end_is_expected:
            self._end_is_expected = True
            raise ProcessError(f"{self.name} had already ended\n{self.tail()}")
        self.signal(with_signal)
        try:
            return self.wait(timeout)
        except WaitError:
            self.kill()
            raise

    def wait(self, timeout: float = STOP_S) -> int:
        """Wait for it to end by itself. Returns the exit code; raises WaitError after `timeout` seconds."""
        self._end_is_expected = True
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise WaitError(f"waited {timeout:g} s for the end of {self.name}\n{self.tail()}") from None

    def kill(self) -> int:
        """SIGKILL, and wait until it is gone. Returns the exit code."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def pause(self) -> None:
        """SIGSTOP: alive, but deaf and mute. Returns when it has stopped; raises WaitError."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: self.state == "T", STOP_S, f"{self.name} to be suspended", self.tail)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself (not to its children). None is sent to one that has ended."""
        if number in ENDING:
            self._end_is_expected = True
        self._popen.send_signal(number)

    @property
    def state(self) -> str:
        """The kernel's letter for it: R, S, T, Z ..."""
        return Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]

    # What it holds

    def fds(self) -> Counter[str]:
        """How many open file descriptors of each kind: ``{"socket": 3, "/dev/net/tun": 1, ...}``.

        Kinds, not numbers: a stream that was replaced has another inode but is no leak.
        """
        kinds: Counter[str] = Counter()
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except FileNotFoundError:
                continue  # closed between the listing and the look
            kinds[re.sub(r":\[\d+\]$", "", target)] += 1
        return kinds

    def cpu_seconds(self) -> float:
        """User and system time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # Lifetime

    def close(self) -> None:
        """Kill it if it still runs and keep its log in memory. Idempotent; the host calls it at its end."""
        if self._closed_log is not None:
            return
        if self.running:
            self.kill()
        self._closed_log = self.log.encode()
        os.close(self._log_fd)
        self._log_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.running:
                self.stop()
            elif not self._end_is_expected and error is None:
                raise ProcessError(f"{self.name} ended by itself\n{self.tail()}")
        finally:
            self.close()
