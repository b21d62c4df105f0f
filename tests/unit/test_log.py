"""log: one line per event, whatever is in it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.config.model import ClientConfig, Secret, Url
from tapotun_trio.log import (
    LEVELS,
    JournalFormatter,
    JsonFormatter,
    RateLimitedLog,
    TextFormatter,
    client_logger,
    interface_logger,
    is_journal,
    process_logger,
    set_up_logging,
)

pytestmark = pytest.mark.usefixtures("logging_as_before")

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x08\x9b31m\u2028\u2029\x85\u202e\nsecond line\r"


def record(message: str, *args: object, **extra: str) -> logging.LogRecord:
    made = logging.LogRecord("tapotun", logging.INFO, __file__, 1, message, args, None)
    made.created, made.msecs = 1_795_359_845.123, 123.0
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_text() -> None:
    line = TextFormatter().format(record("connected from %s", "192.0.2.7:51234", interface="corp0", client="branch-a"))
    assert line == "2026-11-22T15:04:05.123Z INFO    corp0 branch-a: connected from 192.0.2.7:51234"


@pytest.mark.parametrize(
    ("extra", "where"),
    [({}, ""), ({"interface": "tun0"}, "tun0: "), ({"interface": "tun0", "client": "a"}, "tun0 a: ")],
)
def test_text_says_where(extra: dict[str, str], where: str) -> None:
    assert TextFormatter().format(record("event", **extra)).endswith(f"INFO    {where}event")


@pytest.mark.parametrize("where", ["message", "interface", "client"])
def test_a_text_line_is_one_line_and_harmless_to_a_terminal(where: str) -> None:
    """Parts of it come from the network: a reason phrase, a name."""
    made = record("%s", HOSTILE) if where == "message" else record("event", **{where: HOSTILE})
    line = TextFormatter().format(made)
    assert line.splitlines() == [line]
    assert line.isprintable()


@given(st.text())
def test_any_text_is_one_printable_line(text: str) -> None:
    assert TextFormatter().format(record("%s", text)).isprintable()


@given(st.text(), st.text())
def test_any_text_is_one_line_of_json(text: str, name: str) -> None:
    line = JsonFormatter().format(record("%s", text, interface=name))
    assert line.isprintable()
    fields = json.loads(line)
    assert fields["event"] == text
    assert fields.get("interface", "") == name


@pytest.mark.parametrize("fmt", ["json", "journal"])
@pytest.mark.parametrize("where", ["message", "interface", "client"])
def test_a_line_of_json_is_harmless_to_a_terminal(where: str, fmt: str) -> None:
    """C0, DEL, C1, bidi, line separators, tags beyond the BMP, half a surrogate pair: escaped, and decoded as sent."""
    hostile = "\x07\x1b[31m\x7f\x85\x9b31m\u061c\u200b\u2028\u2029\u202e\u2066\ufeff\U000e0001\ud800 ä"
    formatter = JsonFormatter() if fmt == "json" else JournalFormatter("json")
    line = formatter.format(record("%s", hostile) if where == "message" else record("event", **{where: hostile}))
    assert line.isprintable()
    assert "ä" in line
    fields = json.loads(line.removeprefix("<6>"))
    assert fields["event" if where == "message" else where] == hostile


def test_json() -> None:
    line = JsonFormatter().format(record("up in %.1f s", 2.25, interface="tun0", client="a"))
    assert json.loads(line) == {
        "time": "2026-11-22T15:04:05.123Z",
        "level": "info",
        "interface": "tun0",
        "client": "a",
        "event": "up in 2.2 s",
    }


def failed() -> logging.LogRecord:
    made = record("a bug")
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        made.exc_info = sys.exc_info()
    return made


def test_a_bug_s_traceback_follows_its_line() -> None:
    first, *traceback = TextFormatter().format(failed()).splitlines()
    assert first.endswith("a bug")
    assert traceback[-1] == "ZeroDivisionError: why"


def test_a_bug_s_traceback_is_a_field_in_json() -> None:
    fields = json.loads(JsonFormatter().format(failed()))
    assert fields["traceback"].endswith("ZeroDivisionError: why")


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_set_up(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("warning", "text")
    set_up_logging("info", fmt)  # once more: no second handler
    process_logger().info("process")
    interface_logger("tun0").warning("interface")
    client_logger("tun0", "a").debug("not shown")
    client_logger("tun0", "a").error("client %d", 7)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    if fmt == "json":
        assert [json.loads(line)["event"] for line in lines] == ["process", "interface", "client 7"]
        assert json.loads(lines[2])["client"] == "a"
    else:
        assert [line.split("Z ", 1)[1] for line in lines] == [
            "INFO    process",
            "WARNING tun0: interface",
            "ERROR   tun0 a: client 7",
        ]


def test_to_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is what JOURNAL_STREAM names, and only there."""
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        found = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        set_up_logging("debug", "text")
        client_logger("tun0", "a").warning("line\none")
        process_logger().debug("noise")
        set_up_logging("info", "json")
        process_logger().error("bad")
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
        set_up_logging("info", "text")
        process_logger().info("elsewhere")
    first, second, third, last = (tmp_path / "stderr").read_text().splitlines()
    assert first.startswith("<4>tun0 a: line")
    assert second == "<7>noise"
    assert json.loads(third.removeprefix("<3>"))["event"] == "bad"
    assert last.endswith("INFO    elsewhere")
    assert not last.startswith("<")


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_each_line_of_a_traceback_has_its_priority(fmt: str) -> None:
    made = failed()
    made.levelno = logging.ERROR
    lines = JournalFormatter(fmt).format(made).splitlines()
    assert all(line.startswith("<3>") for line in lines)
    assert len(lines) == 1 or lines[-1] == "<3>ZeroDivisionError: why"


def test_without_a_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_journal("1:1")


def test_with_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started with descriptor 2 closed."""
    monkeypatch.setattr(sys, "stderr", None)
    set_up_logging("info", "text")
    process_logger().error("to nobody")


class Disk(io.StringIO):
    full = False

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_full_disk_ends_nothing_and_is_told_once_there_is_room(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(sys, "stderr", disk)
    set_up_logging("info", fmt)
    disk.full = True
    for number in range(100):
        process_logger().info("lost %d", number)
    assert disk.getvalue().count("\n") == 100  # as far as the buffer takes them, and no traceback of logging's own
    disk.full = False
    at = disk.tell()
    process_logger().info("kept")
    process_logger().info("and no more of it")
    kept, told, last = disk.getvalue()[at:].splitlines()
    assert "100 lines before this came late, or not at all: No space left on device" in told
    assert "kept" in kept
    assert "and no more of it" in last


LOGGING: Final = """\
import logging, sys
from tapotun_trio.log import process_logger, set_up_logging

set_up_logging("info", sys.argv[1])
for number in range(20):
    process_logger().info("%d %s", number, "\u00e9" * 3000)
print("goes on", flush=True)
sys.stdin.readline()
process_logger().info("kept")
process_logger().info("last")
"""


@pytest.mark.parametrize("fmt", ["text", "json"])
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_that_hangs_holds_nothing_up(fmt: str, kind: str) -> None:
    """What a full pipe cannot take is missed, and a line that was begun is ended before the next. Likewise a terminal
    that was stopped, as Ctrl-S does it."""
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    if kind == "terminal":
        termios.tcflow(writer, termios.TCOOFF)
    argv = [sys.executable, "-c", LOGGING, fmt]
    with (
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer, bufsize=0) as process,
        os.fdopen(reader, "rb", buffering=0) as log,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0], "it waits for the reader"
        assert process.stdout.readline() == b"goes on\n"
        if kind == "terminal":
            termios.tcflow(writer, termios.TCOON)
        os.close(writer)
        pieces = []
        while select.select([log], [], [], 0)[0]:
            pieces.append(log.read(1 << 20))
        process.stdin.write(b"\n")
        with suppress(OSError):  # EIO: how a terminal ends
            while piece := log.read(1 << 20):
                pieces.append(piece)
    assert process.returncode == 0
    *begun, kept, told, last = b"".join(pieces).decode().splitlines()
    missed = re.search("([0-9]+) lines before this came late, or not at all: the reader of the log took nothing", told)
    assert missed is not None
    assert "kept" in kept
    assert "last" in last
    whole = [line for line in begun if line.rstrip('"}').endswith("\u00e9" * 3000)]
    assert len(whole) == 20 - int(missed[1])
    assert len(begun) <= len(whole) + 1
    assert begun or kind == "terminal"


@pytest.mark.parametrize("level", LEVELS)
def test_levels(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level, "text")
    log = process_logger()
    for name in LEVELS:
        log.log(logging.getLevelNamesMapping()[name.upper()], name)
    shown = [line.rsplit(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == list(LEVELS[LEVELS.index(level) :])


def test_an_event_that_anybody_can_cause_is_logged_sparingly(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "text")
    rate_limited = RateLimitedLog(interval_s=10.0)
    for now in (0.0, 1.0, 9.9, 10.0, 30.0, 30.0):
        rate_limited.log(process_logger(), logging.WARNING, now, f"refused at {now}")
    shown = [line.split("WARNING ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["refused at 0.0", "refused at 10.0 (2 more since the last such line)", "refused at 30.0"]


def test_a_token_does_not_show() -> None:
    secret = Secret("TOKEN")
    config = ClientConfig(name="tun0", server=Url("http", "h", 80, "/"), token=secret)
    for text in (f"{secret}", f"{secret!r}", f"{secret:>20}", str(secret), repr(config), f"{[secret]}"):
        assert "TOKEN" not in text
    assert "TOKEN" not in TextFormatter().format(record("%s %r %s", secret, secret, config))
    assert secret.reveal() == "TOKEN"
    assert type(secret.reveal()) is str
