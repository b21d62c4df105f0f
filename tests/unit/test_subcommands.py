"""status, wait and disconnect as a person calls them, and the document that --json prints."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import trio

from tapotun_trio import __version__, exit_codes
from tapotun_trio.cli import main
from tapotun_trio.control import socket_path
from tapotun_trio.control.handlers import Process, standard_commands
from tapotun_trio.control.protocol import ReloadArguments, ReloadResult, StatusReport
from tapotun_trio.control.server import Command, serve_control
from tapotun_trio.log import process_logger
from tapotun_trio.peer.boottime import boottime
from tapotun_trio.status import model
from tapotun_trio.status.macs import MacStatus, MacTableStatus

from ..tables import table
from .support import client_config, free_port
from .test_status import World, pair, world

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where processes are looked for, instead of /run/tapotun."""
    monkeypatch.setattr(socket_path, "RUN", str(tmp_path / "run"))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / "run"


@asynccontextmanager
async def asked(it: World, name: str = "office") -> AsyncIterator[None]:
    """A process of that name, whose interfaces are these."""
    with socket_path.listening(name, socket_path.control_directories({})) as sock:
        async with trio.open_nursery() as nursery:
            process = Process(name, "/etc/tapotun/office.json", boottime())
            nursery.start_soon(serve_control, sock, standard_commands(process, it.registry), process_logger())
            yield
            nursery.cancel_scope.cancel()


async def call(*argv: str) -> int:
    """Beside the processes that it asks."""
    return await trio.to_thread.run_sync(main, argv)


async def test_status(capsys: pytest.CaptureFixture[str]) -> None:
    async with world(*pair()) as it, asked(it):
        await it.connected()
        assert await call("status") == exit_codes.OK
        out, err = capsys.readouterr()
        assert err == ""
        assert "\x1b" not in out
        assert out.startswith(f"tapotun {__version__} office, pid ")
        assert re.findall(r"^interface: (.*)$", out, re.M) == ["hub", "a"]
        assert len(re.findall(r"^    state:      connected for ", out, re.M)) == 2
        assert max(map(len, out.splitlines())) <= 80

        assert await call("status", "a", "--name", "office") == exit_codes.OK
        assert re.findall(r"^interface: (.*)$", capsys.readouterr().out, re.M) == ["a"]

        assert await call("status", "--json", "hub") == exit_codes.OK
        report = msgspec.json.decode(capsys.readouterr().out, type=StatusReport, strict=True)
        assert report.schema == model.SCHEMA
        assert [interface.name for interface in report.processes[0].interfaces] == ["hub"]
        assert report.processes[0].config_file == "/etc/tapotun/office.json"


async def test_several_processes_and_one_that_is_none(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(*pair()) as it, asked(it, "one"), asked(it, "two"):
        (run_directory / "text.sock").write_text("no socket")
        assert await call("status") == exit_codes.OK
        assert re.findall(rf"^tapotun {re.escape(__version__)} (\w+)", capsys.readouterr().out, re.M) == ["one", "two"]
        assert await call("status", "--name", "two") == exit_codes.OK
        assert re.findall(rf"^tapotun {re.escape(__version__)} (\w+)", capsys.readouterr().out, re.M) == ["two"]


async def test_several_processes_say_which(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(*pair()) as it, asked(it, "one"), asked(it, "two"):
        await it.connected()
        assert await call("disconnect", "a") == exit_codes.OK
        assert re.match(r"disconnected a \(process one(, two)?\); it may reconnect at once", capsys.readouterr().out)
        assert await call("disconnect", "mallory") == exit_codes.FAILED
        assert capsys.readouterr().err == "".join(
            f"tapotun: {name}: there is no client mallory here; the servers have a\n" for name in ("one", "two")
        )
        assert await call("reload", "--name", "tow") == exit_codes.FAILED
        assert capsys.readouterr().err == "tapotun: no tapotun named tow is running (running: one, two)\n"


async def test_several_reloads_say_which(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, list[str]] = {"one": ["tun0: mtu changed"], "two": []}

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        for name in changes:
            sock = stack.enter_context(socket_path.listening(name, socket_path.control_directories({})))

            async def reload(_: ReloadArguments, name: str = name) -> ReloadResult:
                return ReloadResult(changes[name])

            commands = {"reload": Command(ReloadArguments, reload)}
            nursery.start_soon(serve_control, sock, commands, process_logger())
        assert await call("reload") == exit_codes.OK
        assert capsys.readouterr().out == "one: tun0: mtu changed\ntwo: the config has not changed\n"
        assert await call("reload", "--name", "one") == exit_codes.OK
        assert capsys.readouterr().out == "tun0: mtu changed\n"
        nursery.cancel_scope.cancel()


async def test_status_complains(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await call("status") == exit_codes.FAILED
    assert capsys.readouterr() == (
        "",
        f"tapotun: no tapotun is running (no control socket in {run_directory})\n",
    )
    assert await call("status", "--json") == exit_codes.FAILED
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "processes": []}
    async with world(*pair()) as it, asked(it):
        assert await call("status", "b") == exit_codes.FAILED
        assert capsys.readouterr() == ("", "tapotun: there is no interface b; running: a, hub\n")
        assert await call("status", "--name", "other") == exit_codes.FAILED
        assert "no tapotun named other is running" in capsys.readouterr().err


async def test_wait(capsys: pytest.CaptureFixture[str]) -> None:
    assert await call("wait", "--timeout", "0.1") == exit_codes.RUNTIME
    assert capsys.readouterr().err == "tapotun: not up within 0.1 s: no tapotun is running\n"
    async with world(*pair()) as it, asked(it):
        assert await call("wait", "--timeout", "30") == exit_codes.OK
        assert it.interface("a").state == it.interface("hub").state == "up"
        assert await call("wait", "hub", "a") == exit_codes.OK
        assert await call("wait", "b") == exit_codes.FAILED
        assert capsys.readouterr().err == "tapotun: there is no interface b; running: a, hub\n"
    async with world(client_config("a", free_port())) as it, asked(it):
        assert await call("wait", "--timeout", "0.3") == exit_codes.RUNTIME
        assert capsys.readouterr().err.startswith("tapotun: not up within 0.3 s: a is connecting")
        await it.until(lambda: it.interface("a").problem is not None)
        assert await call("wait", "--timeout", "0.1") == exit_codes.RUNTIME
        assert re.fullmatch(
            r"tapotun: not up within 0\.1 s: a is connecting: download: cannot connect to .* refused.*\n",
            capsys.readouterr().err,
        )
        assert await call("status") == exit_codes.OK
        assert re.search(r"^  why: +download: cannot connect to ", capsys.readouterr().out, re.M)


async def test_a_process_that_hangs(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, and nobody waits for it who does not ask for it."""
    async with world(*pair()) as it, asked(it):
        with socket.socket(socket.AF_UNIX) as hung:
            hung.bind(str(run_directory / "hung.sock"))
            hung.listen()
            assert await call("status") == exit_codes.OK
            out, err = capsys.readouterr()
            assert out.startswith(f"tapotun {__version__} office, pid ")
            assert err == f"tapotun: {run_directory}/hung.sock: no answer within 2 s; is the process stopped?\n"
            assert await call("wait", "hub", "a", "--timeout", "30") == exit_codes.OK
            assert await call("wait", "b") == exit_codes.FAILED
            assert "hung.sock: no answer within 2 s" in capsys.readouterr().err


async def test_wait_for_a_process_that_starts_later() -> None:
    codes: list[int] = []

    async def wait() -> None:
        codes.append(await call("wait", "a", "--timeout", "30"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        async with world(*pair()) as it, asked(it):
            while not codes:  # noqa: ASYNC110 - a thread sets it
                await trio.sleep(0.01)
    assert codes == [exit_codes.OK]


async def test_wait_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where too many wait already; an error would say that it can never be."""
    monkeypatch.setattr("tapotun_trio.control.server.MAX_WAITING", 0)
    async with world(*pair()) as it, asked(it):
        assert await call("wait", "--timeout", "0.5") == exit_codes.RUNTIME
        assert "not up within 0.5 s: too many requests at the same time" in capsys.readouterr().err
        monkeypatch.setattr("tapotun_trio.control.server.MAX_WAITING", 1)
        assert await call("wait", "--timeout", "30") == exit_codes.OK


async def test_disconnect(capsys: pytest.CaptureFixture[str]) -> None:
    async with world(*pair()) as it, asked(it):
        await it.connected()
        assert await call("disconnect", "hub", "a") == exit_codes.OK
        out = capsys.readouterr().out
        assert out.startswith("disconnected a; it may reconnect at once")
        await it.until(lambda: it.peer("hub").reconnects == 1)
        assert await call("disconnect", "mallory") == exit_codes.FAILED
        assert capsys.readouterr().err == "tapotun: there is no client mallory here; the servers have a\n"


@table(
    "argv",
    ("a name with a slash", ["status", "--name", "../x"]),
    ("a name with a dot first", ["run", "--name", ".x", "f"]),
    ("no pause", ["status", "--watch=0"]),
    ("no number", ["wait", "--timeout", "soon"]),
    ("not a number", ["wait", "--timeout", "nan"]),
    ("no client", ["disconnect"]),
)
def test_usage(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == exit_codes.USAGE


class Enough(Exception):
    pass


@contextmanager
def two_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """--watch sleeps twice at most; the pauses that it asked for."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tapotun_trio.control.subcommands.time.sleep", sleep)
        yield pauses


async def test_watch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(*pair()) as it, asked(it):
        await it.connected()
        for argv, pause in ((("--watch", "a"), 2.0), (("--watch", "0.5", "a"), 0.5), (("--watch", "--json"), 2.0)):
            with two_looks(monkeypatch) as pauses:
                assert await call("status", *argv) == exit_codes.OK
            assert pauses == [pause, pause]
            out = capsys.readouterr().out
            if "--json" in argv:
                assert [len(json.loads(line)["processes"]) for line in out.splitlines()] == [1, 1]
            else:
                assert re.findall(r"^interface: (.*)$", out, re.M) == ["a", "a"]
                assert "\x1b" not in out


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
async def test_on_a_terminal(
    no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "10")
    async with world(*pair()) as it, asked(it):
        await it.connected()
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert await call("status") == exit_codes.OK
        assert ("\x1b[" in capsys.readouterr().out) is coloured
        with two_looks(monkeypatch):
            assert await call("status", "--watch") == exit_codes.OK
        first, second = capsys.readouterr().out.split("\x1b[H")[1:]
        assert len(first.splitlines()) == len(second.splitlines()) == 10  # the last one clears what is below
        assert "more lines" in first


def test_asking_needs_no_event_loop() -> None:
    script = (
        "import sys; from tapotun_trio.cli import main; code = main(['status']); print('trio' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split()[-2] == "False"


# ------------------------------------------------------------------ docs/status.md

STRUCTS: Final = {
    "report": StatusReport,
    "process": model.ProcessStatus,
    "reload": model.ReloadStatus,
    "plane": model.PlaneStatus,
    "update": model.UpdateStatus,
    "interface": model.InterfaceStatus,
    "transport conflict": model.TransportConflictStatus,
    "left-out network": model.LeftOutStatus,
    "listener": model.ListenerStatus,
    "peer": model.PeerStatus,
    "rates": model.RateStatus,
    "round trip": model.RoundTripStatus,
    "outbox": model.OutboxStatus,
    "MAC table": MacTableStatus,
    "MAC address": MacStatus,
}


def documented() -> dict[str, dict[str, str]]:
    """The tables of docs/status.md: heading, field, type."""
    text = (ROOT / "docs" / "status.md").read_text()
    sections = re.split(r"^### (.+)$", text.split("## The socket")[0], flags=re.M)[1:]
    return {
        heading: dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", body, re.M))
        for heading, body in zip(sections[::2], sections[1::2], strict=True)
    }


def test_the_document_has_every_field_and_no_other() -> None:
    assert {heading: list(fields) for heading, fields in documented().items()} == {
        heading: list(struct.__struct_fields__) for heading, struct in STRUCTS.items()
    }


def words(hint: Any) -> str:
    """A type as the document puts it."""
    told = {str: "string", int: "integer", float: "number", bool: "boolean", datetime: "moment", NoneType: "null"}
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return "string"
    if get_origin(hint) is list:
        return "array"
    return told.get(hint, "object")


@pytest.mark.parametrize("heading", STRUCTS)
def test_the_document_has_the_types(heading: str) -> None:
    hints = get_type_hints(STRUCTS[heading])
    assert documented()[heading] == {field: words(hint) for field, hint in hints.items()}


def test_the_states_are_documented() -> None:
    text = (ROOT / "docs" / "status.md").read_text()
    for alias in (model.InterfaceState, model.PeerState, model.InterfaceKind):
        for word in get_args(alias):
            assert f"`{word}`" in text


async def test_a_process_that_hangs_alone(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir(run_directory, 0o755)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(run_directory / "hung.sock"))
        hung.listen()
        assert await call("status") == exit_codes.FAILED
        assert "hung.sock: no answer within 3 s; is the process stopped?" in capsys.readouterr().err
