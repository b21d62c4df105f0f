"""The subcommands that talk to running processes: status, wait, disconnect, reload. They start quickly, without
trio."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeVar

import msgspec

from .. import exit_codes
from ..errors import EndReason, HostError, PeerError, TapotunError
from ..status.mac_table import render_macs
from ..status.model import ProcessStatus
from ..status.render import WIDTH, render
from ..text import one_line, one_line_json
from .client import ANSWER_S, FIRST_ANSWER_S, PATIENCE_S, NobodyThereError, ask, ask_all
from .protocol import (
    LONGEST_WAIT_S,
    DisconnectArguments,
    DisconnectResult,
    MacsArguments,
    MacsReport,
    MacsResult,
    ReloadArguments,
    ReloadResult,
    StatusArguments,
    StatusReport,
    WaitArguments,
    WaitResult,
)
from .socket_path import control_directories, find, name_of

RELOAD_S: Final = 60.0
_OTHERS_S: Final = 1.0  # limit for asking which other processes run
LOOK_S: Final = 0.2  # between two attempts to find a process that does not run yet

_HOME: Final = "\x1b[H"
_END_OF_LINE: Final = "\x1b[K"
_REST: Final = "\x1b[J"

T = TypeVar("T")


def status(arguments: argparse.Namespace) -> int:
    """Print the state of the interfaces; repeatedly with ``watch``. Returns the exit code."""
    try:
        return _watch(arguments) if arguments.watch else _status(arguments)
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.OK


def wait(arguments: argparse.Namespace) -> int:
    """Wait until the interfaces are up or the time is over. Returns the exit code."""
    return _wait(arguments.interfaces, arguments.name, arguments.timeout)


def disconnect(arguments: argparse.Namespace) -> int:
    """End one client's streams. Returns the exit code."""
    client = arguments.client
    request = DisconnectArguments(client, arguments.interface)
    try:
        answers, refusals = _ask_all(arguments.name, "disconnect", request, DisconnectResult)
    except TapotunError as exc:
        return _fail(str(exc))
    if not answers:
        return _fail(*refusals.texts())
    done = [name for name, answer in answers if answer.sessions]
    which = f" (process {', '.join(done or [name for name, _ in answers])})" if refusals.asked > 1 else ""
    if done:
        hint = "it may reconnect at once; to keep it out, remove its token from the config"
        print(f"disconnected {one_line(client)}{which}; {hint}")
    else:
        print(f"{one_line(client)} is not connected{which}")
    return exit_codes.OK


def reload(arguments: argparse.Namespace) -> int:
    """Make processes read their config again. Returns the exit code."""
    request = ReloadArguments(arguments.dry_run)
    try:
        answers, refusals = _ask_all(arguments.name, "reload", request, ReloadResult, timeout_s=RELOAD_S)
    except TapotunError as exc:
        return _fail(str(exc))
    for name, answer in answers:
        for line in answer.changes or ["the config has not changed"]:
            print(f"{name}: {one_line(line)}" if refusals.asked > 1 else one_line(line))
    return _fail(*refusals.texts()) if refusals else exit_codes.OK


def running(timeout_s: float) -> list[ProcessStatus]:
    """The status of every process of this machine that this user may ask and that answers."""
    outcomes = _each(None, "status", StatusArguments(), ProcessStatus, timeout_s=timeout_s)
    return [answer for _, answer in outcomes if isinstance(answer, ProcessStatus)]


# ------------------------------------------------------------------ status


def _status(arguments: argparse.Namespace) -> int:
    if arguments.macs:
        return _macs(arguments)
    processes, errors = _fetch(arguments.interfaces, arguments.name)
    if arguments.json:
        _write(_printable(msgspec.json.format(_encode(processes), indent=2).decode()) + "\n")
    else:
        _write(_page(processes, full=arguments.full))
    _print_errors(errors)
    return exit_codes.OK if processes else exit_codes.FAILED


def _watch(arguments: argparse.Namespace) -> int:
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        _watch_forever(arguments)
    return exit_codes.OK


def _watch_forever(arguments: argparse.Namespace) -> NoReturn:
    on_terminal = sys.stdout.isatty() and not arguments.json
    again = False
    while True:
        if arguments.macs:
            tables, errors = _fetch_macs(arguments.interfaces, arguments.name)
            text = _macs_json(tables) if arguments.json else _macs_page(tables)
            if on_terminal:
                _write(_screen([*text.splitlines(), *errors]))
            else:
                _write(("\n" if again and not arguments.json else "") + text)
                _print_errors(errors)
            again = True
            time.sleep(arguments.watch)
            continue
        processes, errors = _fetch(arguments.interfaces, arguments.name)
        if arguments.json:
            _write(one_line_json(_encode(processes).decode()) + "\n")
            _print_errors(errors)
        elif on_terminal:
            _write(_screen([*_page(processes, full=arguments.full).splitlines(), *errors]))
        else:
            _write(("\n" if again else "") + _page(processes, full=arguments.full))
            _print_errors(errors)
        again = True
        time.sleep(arguments.watch)


def _encode(processes: list[ProcessStatus]) -> bytes:
    return msgspec.json.encode(StatusReport(processes=processes))


def _printable(text: str) -> str:
    """Return lines of JSON without terminal control characters. Another process has sent the content, so it is not
    trusted."""
    return "\n".join(map(one_line_json, text.split("\n")))


def _page(processes: list[ProcessStatus], *, full: bool) -> str:
    on_terminal = sys.stdout.isatty()
    colour = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    size = shutil.get_terminal_size((WIDTH, 24))
    return render(
        processes,
        datetime.now(UTC),
        width=size.columns if on_terminal else WIDTH,
        rows=size.lines if on_terminal else None,
        full=full,
        colour=colour,
    )


def _screen(lines: list[str]) -> str:
    """Overwrite the screen without flicker. Lines that do not fit are left out, and the last line says how many."""
    room = shutil.get_terminal_size((WIDTH, 24)).lines - 1
    if len(lines) > room:
        hidden = len(lines) - room + 1
        lines = [*lines[: room - 1], f"... {hidden} more lines: name an interface, or make the window larger"]
    return _HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in lines) + _REST


def _fetch(interfaces: Sequence[str], name: str | None) -> tuple[list[ProcessStatus], list[str]]:
    """The processes that run one of these interfaces (empty: any), and the errors of those that did not answer."""
    try:
        answers, refusals = _ask_all(name, "status", StatusArguments(), ProcessStatus)
    except TapotunError as exc:
        return [], [str(exc)]
    processes, errors = [answer for _, answer in answers], refusals.texts()
    if not interfaces:
        return processes, errors
    there = {interface.name for process in processes for interface in process.interfaces}
    for missing in dict.fromkeys(interfaces):
        if missing not in there:
            errors.append(f"there is no interface {missing}; running: {', '.join(sorted(there)) or 'none'}")
    shown = [
        msgspec.structs.replace(
            process, interfaces=[interface for interface in process.interfaces if interface.name in interfaces]
        )
        for process in processes
    ]
    return [process for process in shown if process.interfaces], errors


# ------------------------------------------------------------------ status --macs


def _macs(arguments: argparse.Namespace) -> int:
    found, errors = _fetch_macs(arguments.interfaces, arguments.name)
    if arguments.json:
        _write(_printable(msgspec.json.format(_encode_macs(found), indent=2).decode()) + "\n")
    else:
        _write(_macs_page(found))
    _print_errors(errors)
    return exit_codes.OK if found else exit_codes.FAILED


def _encode_macs(found: list[MacsResult]) -> bytes:
    return msgspec.json.encode(MacsReport(processes=found))


def _macs_json(found: list[MacsResult]) -> str:
    return one_line_json(_encode_macs(found).decode()) + "\n"


def _macs_page(found: list[MacsResult]) -> str:
    width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
    return render_macs((table for process in found for table in process.interfaces), width=width)


def _fetch_macs(interfaces: Sequence[str], name: str | None) -> tuple[list[MacsResult], list[str]]:
    """The tables of the processes that have one of these interfaces (empty: any), and for people why others have none.

    A process that has no TAP interface has nothing to say, so it is left out.
    """
    try:
        answers, refusals = _ask_all(name, "macs", MacsArguments(), MacsResult)
    except TapotunError as exc:
        return [], [str(exc)]
    errors = refusals.texts()
    there = {table.interface for _, answer in answers for table in answer.interfaces}
    wanted = set(interfaces) or there
    for missing in dict.fromkeys(interfaces):
        if missing not in there:
            listed = ", ".join(sorted(there)) or "none"
            errors.append(f"there is no server {missing} with a TAP interface; running: {listed}")
    if not there and not interfaces and not errors:
        errors.append('no server with a TAP interface ("device": "tap") runs here')
    shown = [
        msgspec.structs.replace(answer, interfaces=[each for each in answer.interfaces if each.interface in wanted])
        for _, answer in answers
    ]
    return [answer for answer in shown if answer.interfaces], errors


# ------------------------------------------------------------------ wait


def _wait(interfaces: list[str], name: str | None, timeout_s: float | None) -> int:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    state = _nobody(name)
    while True:
        left_s = LONGEST_WAIT_S if deadline is None else max(min(deadline - time.monotonic(), LONGEST_WAIT_S), 0)
        try:
            waiting = _wait_once(interfaces, name, left_s)
        except NobodyThereError:
            waiting = None
        except TapotunError as exc:
            if not (isinstance(exc, PeerError) and exc.reason == EndReason.BUSY):
                return _fail(str(exc))
            waiting, state = None, str(exc)
        if waiting is not None:
            if not waiting:
                return exit_codes.OK
            state = "; ".join(f"{one_line(interface)} is {its_state}" for interface, its_state in waiting.items())
        if deadline is not None and time.monotonic() >= deadline:
            _print_errors([f"not up within {timeout_s:g} s: {state}"])
            return exit_codes.RUNTIME
        if waiting is None:
            time.sleep(LOOK_S)


def _wait_once(interfaces: list[str], name: str | None, timeout_s: float) -> dict[str, str]:
    """The interfaces that are not up after ``timeout_s``, with their states. Raises NobodyThereError."""
    deadline = time.monotonic() + timeout_s
    waiting: dict[str, str] = {}
    outcomes = _each(name, "status", StatusArguments(), ProcessStatus)
    processes = [(path, answer) for path, answer in outcomes if isinstance(answer, ProcessStatus)]
    there = {interface.name for _, process in processes for interface in process.interfaces}
    # A process that does not answer matters only if it may have one of the interfaces.
    if not (interfaces and there >= set(interfaces)):
        for _, outcome in outcomes:
            if isinstance(outcome, HostError | PeerError):
                raise outcome
    if not there:
        raise NobodyThereError("no tapotun is running")
    for missing in interfaces:
        if missing not in there:
            raise HostError(f"there is no interface {missing}; running: {', '.join(sorted(there))}")
    for path, process in processes:
        wanted = [interface.name for interface in process.interfaces if not interfaces or interface.name in interfaces]
        if wanted:
            left_s = max(deadline - time.monotonic(), 0)
            answer = ask(path, "wait", WaitArguments(wanted, left_s), WaitResult, timeout_s=left_s + ANSWER_S)
            waiting |= {
                name: f"{state}: {answer.problems[name]}" if name in answer.problems else state
                for name, state in answer.waiting.items()
            }
    return waiting


# ------------------------------------------------------------------ requests to processes


class _Refusals(list[tuple[str, str]]):
    """The names and errors of the processes that gave no answer. The name is empty if the error already contains it."""

    asked = 0  # how many processes were asked

    def texts(self) -> list[str]:
        """Return the errors, with the name of the process if several were asked."""
        return [f"{name}: {error}" if name and self.asked > 1 else error for name, error in self]


def _ask_all(
    name: str | None, command: str, request: msgspec.Struct, kind: type[T], *, timeout_s: float = ANSWER_S
) -> tuple[list[tuple[str, T]], _Refusals]:
    """Ask every process. Returns the name and the answer of each, and the errors of those that gave no answer.

    Raises NobodyThereError: no process runs.
    """
    answers: list[tuple[str, T]] = []
    refusals = _Refusals()
    first_s = FIRST_ANSWER_S if command == "status" else None  # for a person; the other commands are for scripts, too
    for path, outcome in _each(name, command, request, kind, timeout_s=timeout_s, first_s=first_s):
        refusals.asked += 1
        if isinstance(outcome, HostError | PeerError):
            refusals.append((name_of(path) if isinstance(outcome, PeerError) else "", one_line(str(outcome))))
        else:
            answers.append((name_of(path), outcome))
    if not refusals.asked:
        raise NobodyThereError(f"{_nobody(name)} ({_others(name)})")
    return answers, refusals


def _nobody(name: str | None) -> str:
    return "no tapotun is running" if name is None else f"no tapotun named {name} is running"


def _others(name: str | None) -> str:
    """Return text that names the other processes; if there are none, the directories that were searched."""
    others: list[str] = []
    if name is not None:
        found = _each(None, "status", StatusArguments(), ProcessStatus, timeout_s=_OTHERS_S)
        others = [name_of(path) for path, _ in found]
    if others:
        return f"running: {', '.join(others)}"
    return f"no control socket in {', '.join(place.directory for place in control_directories(os.environ))}"


def _each(
    name: str | None,
    command: str,
    request: msgspec.Struct,
    kind: type[T],
    *,
    timeout_s: float = ANSWER_S,
    first_s: float | None = None,
) -> list[tuple[str, T | HostError | PeerError]]:
    """Ask these processes. Returns each name with the answer, or with the error."""
    paths = [path for path in find(control_directories(os.environ)) if name is None or name_of(path) == name]
    patience_s = None if command == "reload" else PATIENCE_S  # a reload may wait for a slow disk
    outcomes = ask_all(paths, command, request, kind, timeout_s=timeout_s, first_s=first_s, patience_s=patience_s)
    return [(path, outcome) for path, outcome in outcomes if not _is_nobody(outcome)]


def _is_nobody(outcome: object) -> bool:
    """Whether the process has ended, or the socket is not a control socket: a server may have its socket for a proxy in
    the same directory."""
    foreign = isinstance(outcome, PeerError) and outcome.reason == EndReason.FOREIGN
    return foreign or isinstance(outcome, NobodyThereError)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_errors(errors: list[str]) -> None:
    for error in errors:
        print(f"tapotun: {one_line(error)}", file=sys.stderr)


def _fail(*errors: str) -> int:
    _print_errors(list(errors))
    return exit_codes.FAILED
