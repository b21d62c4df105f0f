"""`tapotun update`: its options, what it prints, and its exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tapotun_trio import __version__, exit_codes
from tapotun_trio.cli import main
from tapotun_trio.update.state import FILE, state_directory
from tests.harness.updates import Repository, Server, serving

from .test_config_load import server as a_server

PROGRAM: Final = b"a new program"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def server(repository: Repository) -> Iterator[Server]:
    with serving(repository.directory) as found:
        yield found


def config_file(directory: Path, **update: Any) -> str:
    file = directory / "config.json"
    file.write_text(json.dumps({"interfaces": [a_server()], "update": update}))
    return str(file)


def test_by_a_config(
    repository: Repository, server: Server, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.add(__version__, PROGRAM)
    repository.add("99.0", PROGRAM, "next")
    file = config_file(tmp_path, url=server.url, root_file="repository/metadata/1.root.json")
    assert main(["update", file]) == exit_codes.OK
    assert capsys.readouterr() == (f"tapotun {__version__}: nothing newer in channel stable\n", "")
    assert (state / FILE).exists()

    file = config_file(tmp_path, url=server.url, root_file="repository/metadata/1.root.json", channel="next")
    assert main(["update", "--check", file]) == exit_codes.AVAILABLE
    out, err = capsys.readouterr()
    assert out.startswith(f"tapotun 99.0 is there; this is {__version__}\n")
    assert err == ""


def test_by_options_into_a_file(
    repository: Repository, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.add("99.0", PROGRAM)
    output = tmp_path / "new.pyz"
    output.write_text("old")
    source = ["--url", server.url, "--root-file", str(repository.root_file)]
    assert main(["update", *source, "--output", str(output)]) == exit_codes.AVAILABLE
    assert output.read_bytes() == PROGRAM
    assert output.stat().st_mode & 0o777 == 0o755
    assert f"written to {output}, verified: {len(PROGRAM)} bytes, SHA-256 " in capsys.readouterr().out

    descriptors = os.listdir("/proc/self/fd")
    assert main(["update", *source, "--output", str(tmp_path / "missing" / "new")]) == exit_codes.FAILED
    assert capsys.readouterr().err == (
        f"tapotun update: {tmp_path}/missing/new cannot be written: No such file or directory\n"
    )
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_device_is_not_replaced(
    repository: Repository, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--output /dev/stdout`, typed by root, put the program in the place of the device, for the whole machine."""
    repository.add("99.0", PROGRAM)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link, to_file, dangling = tmp_path / "stdout", tmp_path / "redirected", tmp_path / "closed"
    link.symlink_to(pipe)
    file = tmp_path / "new.pyz"
    file.touch()
    to_file.symlink_to(file)
    dangling.symlink_to(tmp_path / "nothing")
    source = ["--url", server.url, "--root-file", str(repository.root_file)]
    for place in (pipe, link, to_file, dangling, tmp_path):
        assert main(["update", *source, "--output", str(place)]) == exit_codes.FAILED
        text = "is not a regular file; give the name of a new one"
        assert capsys.readouterr().err == f"tapotun update: {place} {text}\n"
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert server.requests == []


def test_what_cannot_be_trusted(
    repository: Repository, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Repository(tmp_path / "other")
    other.publish_root()
    assert main(["update", "--url", server.url, "--root-file", str(other.root_file)]) == exit_codes.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tapotun update: timestamp.json is not signed by the keys that are trusted here")
    assert err.count("\n") == 1


MISUSED: Final = [
    ([], "give the config FILE with an"),
    (["--url", "https://u/"], "--root-file is missing"),
    (["--url", "u", "--root-file", "r"], '"u" has no scheme'),
    (["--url", "https://me:s3cr3t@/", "--root-file", "r"], '"https://***@/" has no host'),
    (["--url", "https://u/", "--root-file", "r", "--channel", "../x"], "is not the name of a channel"),
    (["--url", "https://u/", "--root-file", "r", "--proxy", "socks5://me:s3cr3t@p:1"], "has the scheme socks5"),
    (["--url", "https://u/", "{file}"], "--url is given in addition to FILE"),
    (["--channel", "next", "{file}"], "--channel is given in addition to FILE"),
    (["{file}"], 'has no "update" in its root object'),
]


@pytest.mark.parametrize(("options", "text"), MISUSED, ids=[text for _, text in MISUSED])
def test_misuse(options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps([a_server()]))
    assert main(["update", *(option.format(file=file) for option in options)]) == exit_codes.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tapotun update: error: ")
    assert text in err
    assert "s3cr3t" not in err


def test_a_config_with_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["update", config_file(tmp_path, url="https://u/", every="1")]) == exit_codes.FAILED
    assert "update.every" in capsys.readouterr().err


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("tapotun_trio.update.run.find_spec", lambda name: None if name == "tuf" else found(name))
    assert main(["update", "--url", "https://u/", "--root-file", "r"]) == exit_codes.FAILED
    assert capsys.readouterr().err == (
        "tapotun update: needs the package tuf: run pip install 'tapotun-trio[update]'\n"
    )


def test_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert state_directory({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "HOME": "/h"}) == Path("/var/lib/a")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_directory({"XDG_STATE_HOME": "/x"}) == Path("/var/lib/tapotun")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    os.chown(tmp_path, 1000, 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/tapotun")
    for relative in ({}, {"XDG_STATE_HOME": "x"}):  # which the specification says to ignore
        assert state_directory(relative) == tmp_path / ".local/state/tapotun"


@pytest.mark.parametrize("home", ["/nonexistent", "/", "/root", "relative", "~"])
def test_the_state_directory_of_a_user_without_a_home(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a service and of a container. A user who is in no database had a directory "~" made."""
    monkeypatch.setattr(os, "geteuid", lambda: 4810)
    monkeypatch.setenv("HOME", home)
    assert state_directory({}) == Path("/var/lib/tapotun")


def test_a_state_directory_below_a_home_of_somebody_else_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Root has made it for the service. What it remembers would be lost."""
    monkeypatch.setattr(os, "geteuid", lambda: 4810)
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = tmp_path / ".local/state/tapotun"
    kept.mkdir(parents=True)
    assert state_directory({}) == Path("/var/lib/tapotun")
    os.chown(kept, 4810, 4810)
    assert state_directory({}) == kept


def test_a_user_who_is_in_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    for name in ("getuid", "geteuid"):
        monkeypatch.setattr(os, name, lambda: 54321)
    assert state_directory({}) == Path("/var/lib/tapotun")
