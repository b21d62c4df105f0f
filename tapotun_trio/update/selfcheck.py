"""Runs a new version, out of the sealed memory that would be installed, and asks it whether it would work here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Final

import trio

from ..errors import HostError, shortage_of
from ..text import one_line, shorten

ANSWER_S: Final = 60.0  # a pyz has no bytecode, and some machines are slow
ANSWER_BYTES: Final = 512 * 1024
_KILL_S: Final = 10.0
_LINE_CHARS: Final = 300
# What tells a process that it is a service is not for these.
_LEFT_OUT: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM")


@dataclass(frozen=True, slots=True)
class _Answer:
    code: int
    text: str

    @property
    def line(self) -> str:
        """Its last line, for an error."""
        lines = self.text.strip().splitlines()
        return one_line(shorten(lines[-1], _LINE_CHARS)) if lines else f"exit code {self.code}"


async def self_check(program: int, version: str, config_file: str, running: int) -> None:
    """Ask the program for its version, for its opinion on the config file, and for that on this machine.

    A problem of this machine that the running version finds as well does not count, whatever the new one calls it.

    Args:
        program: the open file of the new version.
        running: that of the version that runs.

    Raises:
        HostError: the program does not work here, or does not answer in time.

    Cancel-safe: a process that was started is killed.
    """
    answer = await _ask(program, "--version")
    first = answer.text.partition("\n")[0]
    if answer.code or first != f"tapotun {version}":
        raise HostError(f"version {version} does not run here: --version: {answer.line}")
    answer = await _ask(program, "validate-config", config_file)
    if answer.code:
        raise HostError(f"version {version} does not accept the config: {answer.line}")
    answer = await _ask(program, "doctor", "--json", config_file)
    if answer.code:
        found = failures(answer.text)
        if found is None:
            raise HostError(f"version {version} cannot check this machine: {answer.line}")
        known = failures((await _ask(running, "doctor", "--json", config_file)).text) or set()
        if fresh := fresh_failures(found, known):
            raise HostError(f"version {version} would not work on this machine: {shorten(fresh[0], _LINE_CHARS)}")


def fresh_failures(found: set[str], known: set[str]) -> list[str]:
    """Those of ``found`` that the running version does not have. What it has in other words is no new one: of each
    check as many do not count as ``known`` has in words that are gone."""
    reworded = Counter(each.partition(":")[0] for each in known - found)
    fresh = []
    for each in sorted(found - known):
        check = each.partition(":")[0]
        if reworded[check] > 0:
            reworded[check] -= 1
        else:
            fresh.append(each)
    return fresh


def failures(text: str) -> set[str] | None:
    """The failures in the output of `tapotun doctor --json`; None: it is something else."""
    try:
        findings = json.loads(text)["findings"]
        return {one_line(f"{each['check']}: {each['text']}") for each in findings if each["severity"] == "failure"}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


async def _ask(program: int, *arguments: str) -> _Answer:
    """Run the program, and return what it prints. Raises HostError."""
    argv = [sys.executable, f"/proc/self/fd/{program}", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
    what = f"the self-check ({arguments[0]})"
    try:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(program,),
            env=environment,
            cwd="/",
        )
    except (OSError, RuntimeError) as exc:
        if (shortage := shortage_of(exc, what)) is not None:
            raise shortage from exc
        if not isinstance(exc, OSError):
            raise
        raise HostError(f"{what} cannot be started: {exc.strerror}") from exc
    try:
        with trio.move_on_after(ANSWER_S) as deadline:
            text = await _output(process, what)
            return _Answer(await process.wait(), text)
    finally:
        await _end(process)
    assert deadline.cancelled_caught
    raise HostError(f"{what} did not end within {ANSWER_S:g} s")


async def _end(process: trio.Process) -> None:
    """Kill the process if it still runs, and close its pipe."""
    with trio.move_on_after(_KILL_S, shield=True):
        process.kill()
        await process.wait()
    if process.stdout is not None:
        with trio.move_on_after(0, shield=True):
            await process.stdout.aclose()


async def _output(process: trio.Process, what: str) -> str:
    assert process.stdout is not None
    found = bytearray()
    async for piece in process.stdout:
        found += piece
        if len(found) > ANSWER_BYTES:
            raise HostError(f"{what} printed more than {ANSWER_BYTES} bytes")
    return found.decode("utf-8", "replace")
