"""What shells are told of the command line. The scripts in real shells: tests/packages/test_completion.py."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from tapotun_trio import cli
from tapotun_trio.shell import bash, fish, zsh
from tapotun_trio.shell.typed import VERBS, UnknownVerbError, with_verb
from tapotun_trio.shell.usage import own_options, verb_parsers, verbs

from .test_status import pair, world
from .test_subcommands import asked, call, run_directory

__all__ = ["run_directory"]

SCRIPTS = {"bash": bash.script, "zsh": zsh.script, "fish": fish.script}


def parser() -> argparse.ArgumentParser:
    return cli.build_parser()


def test_every_verb_can_be_told_from_a_file_name() -> None:
    """`tapotun FILE` is `tapotun run FILE`, so the program knows its verbs by name."""
    assert {verb.name for verb in verbs(parser())} == VERBS


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("hub.json", "run hub.json"),
        ("--log-level debug hub.json", "run --log-level debug hub.json"),
        ("--name status hub.json", "run --name status hub.json"),
        ("--name hub status", "status --name hub"),
        ("status --watch tun0", "status --watch=2.0 tun0"),
        ("--name hub status --watch tun0", "status --name hub --watch=2.0 tun0"),
        ("status --watch 5 tun0", "status --watch 5 tun0"),
        # A file, although it is named like a verb:
        ("conf/server", "run conf/server"),
        ("server.json", "run server.json"),
        ("servers", "run servers"),
        ("up", "run up"),
    ],
)
def test_what_was_typed(typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "servers").touch()
    (tmp_path / "up").touch()
    assert with_verb(typed.split()) == meant.split()


def test_every_option_of_run_may_come_before_it() -> None:
    """`--user nobody run FILE` took nobody for the file."""
    options = [
        action.option_strings[-1]
        for action in verb_parsers(parser())["run"]._actions
        if action.option_strings and action.nargs is None
    ]
    assert "--user" in options
    for option in options:
        assert with_verb([option, "value", "run", "x.json"]) == ["run", option, "value", "x.json"]


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("up x.json", "did you mean: tapotun run x.json"),
        ("statsu", "did you mean: tapotun status"),
        ("start", "did you mean: tapotun run FILE"),
        ("Status --json", "did you mean: tapotun status --json"),
        ("--name hub relaod", "did you mean: tapotun reload --name hub"),
        ("--log-level debug serve x.json", "did you mean: tapotun run --log-level debug x.json"),
        ("validate hub.json", "did you mean: tapotun validate-config hub.json"),
        ("show tun0", "did you mean: tapotun status tun0"),
        ("kick 'my laptop'", "did you mean: tapotun disconnect 'my laptop'"),
        ("genkey", "did you mean: tapotun token"),
        ("stop", "systemctl stop tapotun@NAME"),
        ("restart hub", "systemctl restart tapotun@NAME restarts a service"),
        ("comp bash", "did you mean: tapotun completion bash"),
        ("help", "did you mean: tapotun --help"),
        ("help status", "did you mean: tapotun status --help"),
        ("version", "did you mean: tapotun --version"),
        ("xyzzy x.json", "tapotun --help lists the verbs"),
        ("xyzzy", "tapotun --help lists the verbs"),
        ("folder x.json", "tapotun --help lists the verbs"),
    ],
)
def test_a_word_that_is_no_verb(typed: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnknownVerbError) as caught:
        with_verb(shlex.split(typed))
    assert str(caught.value).endswith(advice)


def test_what_a_value_is() -> None:
    found = {verb.name: verb for verb in verbs(parser())}
    kinds = {
        (verb.name, *(it.flags[-1:] or (it.metavar,))): it.kind
        for verb in found.values()
        for it in (*verb.options, *verb.positionals)
    }
    assert (
        kinds["run", "FILE"]
        == kinds["doctor", "FILE"]
        == kinds["probe", "URL|FILE"]
        == kinds["probe", "--token-file"]
        == "file"
    )
    assert kinds["status", "INTERFACE"] == kinds["disconnect", "INTERFACE"] == "interfaces"
    assert kinds["disconnect", "CLIENT"] == "clients"
    assert kinds["wait", "--name"] == kinds["reload", "--name"] == "processes"
    assert kinds["run", "--name"] == kinds["probe", "--server-name"] == kinds["probe", "--interface"] == ""


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_has_every_verb_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script == SCRIPTS[shell](verbs(parser()), own_options(parser()))
    assert "@" not in script.replace('"$@"', "").replace("[@]", "").replace("${@", "")  # a place that was not filled
    for verb in verbs(parser()):
        assert verb.name in script
        for option in verb.options:
            for flag in option.flags:
                assert (f"-l {flag[2:]} " if shell == "fish" and flag.startswith("--") else flag) in script, flag


def test_an_unknown_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["completion", "tcsh"])
    assert exit_.value.code == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


async def test_names_that_run(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(*pair()) as it, asked(it, "one"), asked(it, "two"):
        (run_directory / "text.sock").write_text("no socket")
        for kind, names in {"processes": "one\ntwo\n", "interfaces": "a\nhub\n", "clients": "a\n"}.items():
            assert await call("completion", kind) == 0
            assert capsys.readouterr() == (names, "")
    for kind in ("processes", "interfaces", "clients"):
        assert await call("completion", kind) == 0
        assert capsys.readouterr().err == ""
