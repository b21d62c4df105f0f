"""The verbs that ask running processes: status, wait, disconnect. No trio in here, so that they are quick."""

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
from ..status.model import ProcessStatus
from ..status.render import WIDTH, render
from ..text import one_line
from .client import ANSWER_S, NobodyThereError, ask
from .protocol import (
    LONGEST_WAIT_S,
    DisconnectArguments,
    DisconnectResult,
    ReloadArguments,
    ReloadResult,
    StatusArguments,
    StatusReport,
    WaitArguments,
    WaitResult,
)
from .socket_path import control_directories, find, name_of

RELOAD_S: Final = 60.0
LOOK_S: Final = 0.2  # between two looks for a process that is not there yet

_HOME: Final = "\x1b[H"
_END_OF_LINE: Final = "\x1b[K"
_REST: Final = "\x1b[J"

T = TypeVar("T")


def status(arguments: argparse.Namespace) -> int:
    """Print how the interfaces are; again and again with ``watch``. Returns the exit code."""
    try:
        return _watch(arguments) if arguments.watch else _status(arguments)
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.OK


def wait(arguments: argparse.Namespace) -> int:
    """Return when the interfaces are up, or the time is over."""
    return _wait(arguments.interfaces, arguments.name, arguments.timeout)


def disconnect(arguments: argparse.Namespace) -> int:
    """End one client's streams."""
    client = arguments.client
    request = DisconnectArguments(client, arguments.interface)
    try:
        answers, refusals = _ask_all(arguments.name, "disconnect", request, DisconnectResult)
    except TapotunError as exc:
        return _fail(str(exc))
    if not answers:
        return _fail(*refusals)
    sessions = sum(answer.sessions for answer in answers)
    if sessions:
        print(
            f"disconnected {one_line(client)}; it may reconnect at once; to keep it out, remove its token from the config"
        )
    else:
        print(f"{one_line(client)} is not connected")
    return exit_codes.OK


def reload(arguments: argparse.Namespace) -> int:
    """Have a process read its config again."""
    request = ReloadArguments(arguments.dry_run)
    try:
        answers, refusals = _ask_all(arguments.name, "reload", request, ReloadResult, timeout_s=RELOAD_S)
    except TapotunError as exc:
        return _fail(str(exc))
    for answer in answers:
        for line in answer.changes:
            print(one_line(line))
    if answers and not any(answer.changes for answer in answers):
        print("the config has not changed")
    return _fail(*refusals) if refusals else exit_codes.OK


def running(timeout_s: float) -> list[ProcessStatus]:
    """What the processes of this machine say that may be asked, and do answer."""
    failure_log: list[str] = []  # nobody reads them
    answers = _each(None, "status", StatusArguments(), ProcessStatus, failure_log, timeout_s=timeout_s)
    return [answer for _, answer in answers if answer is not None]


# ------------------------------------------------------------------ status


def _status(arguments: argparse.Namespace) -> int:
    processes, failure_log = _look(arguments.interfaces, arguments.name)
    if arguments.json:
        _write(msgspec.json.format(msgspec.json.encode(StatusReport(processes=processes)), indent=2).decode() + "\n")
    else:
        _write(_page(processes))
    _complain(failure_log)
    return exit_codes.OK if processes else exit_codes.FAILED


def _watch(arguments: argparse.Namespace) -> int:
    with suppress(KeyboardInterrupt):  # this is how it ends
        _watch_for_ever(arguments)
    return exit_codes.OK


def _watch_for_ever(arguments: argparse.Namespace) -> NoReturn:
    on_terminal = sys.stdout.isatty() and not arguments.json
    again = False
    while True:
        processes, failure_log = _look(arguments.interfaces, arguments.name)
        if arguments.json:
            _write(msgspec.json.encode(StatusReport(processes=processes)).decode() + "\n")
            _complain(failure_log)
        elif on_terminal:
            _write(_screen([*_page(processes).splitlines(), *failure_log]))
        else:
            _write(("\n" if again else "") + _page(processes))
            _complain(failure_log)
        again = True
        time.sleep(arguments.watch)


def _page(processes: list[ProcessStatus]) -> str:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
    return render(processes, datetime.now(UTC), width=width, colour=colour)


def _screen(lines: list[str]) -> str:
    """Over what stood there before, without a flicker; what does not fit is left out, and said so."""
    room = shutil.get_terminal_size((WIDTH, 24)).lines - 1
    if len(lines) > room:
        hidden = len(lines) - room + 1
        lines = [*lines[: room - 1], f"... {hidden} more lines: name an interface, or make the window larger"]
    return _HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in lines) + _REST


def _look(interfaces: Sequence[str], name: str | None) -> tuple[list[ProcessStatus], list[str]]:
    """What the processes answered that run one of these interfaces (none: any), and what there is to complain of."""
    try:
        processes, failure_log = _ask_all(name, "status", StatusArguments(), ProcessStatus)
    except TapotunError as exc:
        return [], [str(exc)]
    if not interfaces:
        return processes, failure_log
    there = {it.name for process in processes for it in process.interfaces}
    for missing in dict.fromkeys(interfaces):
        if missing not in there:
            failure_log.append(f"there is no interface {missing}; running: {', '.join(sorted(there)) or 'none'}")
    shown = [
        msgspec.structs.replace(process, interfaces=[it for it in process.interfaces if it.name in interfaces])
        for process in processes
    ]
    return [process for process in shown if process.interfaces], failure_log


# ------------------------------------------------------------------ wait


def _wait(interfaces: list[str], name: str | None, timeout_s: float | None) -> int:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    state = "no tapotun is running" if name is None else f"no tapotun named {name} is running"
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
            state = ", ".join(f"{one_line(interface)} is {how}" for interface, how in waiting.items())
        if deadline is not None and time.monotonic() >= deadline:
            _complain([f"not up within {timeout_s:g} s: {state}"])
            return exit_codes.RUNTIME
        if waiting is None:
            time.sleep(LOOK_S)


def _wait_once(interfaces: list[str], name: str | None, timeout_s: float) -> dict[str, str]:
    """What is not up after so long, and how it is. Raises NobodyThereError: no process is there to ask."""
    deadline = time.monotonic() + timeout_s
    waiting: dict[str, str] = {}
    processes = [(path, it) for path, it in _each(name, "status", StatusArguments(), ProcessStatus) if it is not None]
    there = {it.name for _, process in processes for it in process.interfaces}
    if not there:
        raise NobodyThereError("no tapotun is running")
    for missing in interfaces:
        if missing not in there:
            raise HostError(f"there is no interface {missing}; running: {', '.join(sorted(there))}")
    for path, process in processes:
        wanted = [it.name for it in process.interfaces if not interfaces or it.name in interfaces]
        if wanted:
            left_s = max(deadline - time.monotonic(), 0)
            answer = ask(path, "wait", WaitArguments(wanted, left_s), WaitResult, timeout_s=left_s + ANSWER_S)
            waiting |= answer.waiting
    return waiting


# ------------------------------------------------------------------ whom to ask


def _ask_all(
    name: str | None, command: str, request: msgspec.Struct, kind: type[T], *, timeout_s: float = ANSWER_S
) -> tuple[list[T], list[str]]:
    """Every process's answer, and the complaints of those that gave none. Raises NobodyThereError: there is none."""
    answers: list[T] = []
    failure_log: list[str] = []
    asked = 0
    for _, answer in _each(name, command, request, kind, failure_log, timeout_s=timeout_s):
        asked += 1
        if answer is not None:
            answers.append(answer)
    if not asked:
        where = ", ".join(place.directory for place in control_directories(os.environ))
        called = "" if name is None else f" named {name}"
        raise NobodyThereError(f"no tapotun{called} is running (no control socket in {where})")
    return answers, failure_log


def _each(
    name: str | None,
    command: str,
    request: msgspec.Struct,
    kind: type[T],
    failure_log: list[str] | None = None,
    *,
    timeout_s: float = ANSWER_S,
) -> list[tuple[str, T | None]]:
    """Each process that is there, and its answer; None with a complaint for one that gave none. Without a list of
    complaints, what it would be is raised."""
    found: list[tuple[str, T | None]] = []
    for path in find(control_directories(os.environ)):
        if name is not None and name_of(path) != name:
            continue
        try:
            found.append((path, ask(path, command, request, kind, timeout_s=timeout_s)))
        except NobodyThereError:
            continue
        except (HostError, PeerError) as exc:
            if isinstance(exc, PeerError) and exc.reason == EndReason.FOREIGN:
                continue  # a socket of something else: a server may listen for its proxy here
            if failure_log is None:
                raise
            failure_log.append(one_line(str(exc)))
            found.append((path, None))
    return found


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _complain(failure_log: list[str]) -> None:
    for complaint in failure_log:
        print(f"tapotun: {one_line(complaint)}", file=sys.stderr)


def _fail(*failure_log: str) -> int:
    _complain(list(failure_log))
    return exit_codes.FAILED
