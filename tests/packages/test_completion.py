"""The completions in the real shells, beside a process that knows names."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, command
from tests.netns.topologies import allowed, running, server_config

pytestmark = pytest.mark.netns

NASTY: Final = "two words $(touch owned)"
"""A client's name may be anything. It is never run, and arrives as one word."""


@pytest.fixture
def machine(lab: Lab) -> Iterator[Host]:
    """A host with a server of three clients, called hub, and `tapotun` in its PATH."""
    host = lab.host("machine")
    place = host.tmp / "bin"
    place.mkdir()
    program = place / "tapotun"
    line = shlex.join([command()[0], "-m", "tapotun_trio"])
    program.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {line} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    clients = [allowed("laptop"), allowed("phone", "10.10.0.3"), allowed("x", "10.10.0.4") | {"name": NASTY}]
    for shell in ("bash", "zsh", "fish"):
        (host.tmp / f"_{shell}").mkdir()
        script = host.run([program, "completion", shell]).stdout
        (host.tmp / f"_{shell}" / "_tapotun").write_text(script, encoding="utf-8")
    (host.tmp / "files").mkdir()
    (host.tmp / "files" / "office.json").touch()
    (host.tmp / "files" / "other file.json").touch()
    with running(host, server_config(*clients, name="corp0", listen="127.0.0.1"), "--name", "hub"):
        yield host


SETUPS: Final = {
    "bash": "source {tmp}/_bash/_tapotun; cd {tmp}/files",
    "zsh": "fpath=({tmp}/_zsh $fpath); autoload -Uz compinit; compinit -u -D; cd {tmp}/files",
}


def typed(host: Host, shell: str, *pairs: tuple[str, str], setup: str | None = None) -> None:
    """Type the first of each pair, and wait until the screen has what matches the second."""
    setup = (setup or SETUPS[shell]).format(tmp=host.tmp)
    path = f"{host.tmp}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    argv = [sys.executable, "-m", "tests.packages.typed", shell, setup, *(it for pair in pairs for it in pair)]
    done = host.run(argv, check=False, timeout=300, env={"PATH": path, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr


# What is typed, and what stands there then.
TYPED: Final = [
    ("tapotun valid\t", r"tapotun validate-config "),
    ("tapotun disc\t", r"tapotun disconnect "),
    ("tapotun probe --tok\t", r"tapotun probe --token-file"),
    ("tapotun run --log-level w\t", r"--log-level warning"),
    ("tapotun --log-f\t", r"tapotun --log-format"),
    ("tapotun run off\t", r"tapotun run office\.json"),
    ("tapotun off\t", r"tapotun office\.json"),
    ("tapotun probe --token-file off\t", r"--token-file office\.json"),
    ("tapotun run oth\t", r"tapotun run other\\ file\.json"),
    ("tapotun status co\t", r"tapotun status corp0"),
    ("tapotun wait co\t", r"tapotun wait corp0"),
    ("tapotun reload --name h\t", r"--name hub"),
    ("tapotun disconnect corp0 lap\t", r"corp0 laptop"),
    ("tapotun disconnect lap\t", r"disconnect laptop"),
    ("tapotun completion f\t", r"completion fish"),
    ("tapotun probe --transport=web\t", r"--transport=websocket"),
]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_what_is_typed_is_completed(machine: Host, shell: str) -> None:
    typed(machine, shell, *TYPED)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_all_that_fits_is_shown(machine: Host, shell: str) -> None:
    every = r"(?s)(?=.*\bvalidate-config\b)(?=.*\bdisconnect\b)(?=.*\bschema\b)"
    if shell == "zsh":  # bash offers files only where no verb fits
        every += r"(?=.*office\.json)"
    typed(
        machine,
        shell,
        ("tapotun \t\t", every),
        ("tapotun disconnect \t\t", r"(?s)(?=.*\bcorp0\b)(?=.*\blaptop\b)(?=.*\bphone\b)"),
        ("tapotun status --\t\t", r"(?s)(?=.*--watch)(?=.*--json)(?=.*--name)"),
    )


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_name_from_elsewhere_is_a_word_and_never_run(machine: Host, shell: str) -> None:
    typed(
        machine,
        shell,
        ("tapotun disconnect two\t", r"disconnect two\\ words\\ \\\$\\\(touch\\ owned\\\)"),
    )
    assert not (machine.tmp / "files" / "owned").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_it_can_be_sourced_as_the_script_says(machine: Host, shell: str) -> None:
    script = (machine.tmp / f"_{shell}" / "_tapotun").read_text(encoding="utf-8")
    line = f"source <(tapotun completion {shell})"
    assert line in script
    before = "autoload -Uz compinit; compinit -u -D; " if shell == "zsh" else ""
    typed(machine, shell, ("tapotun disc\t", "tapotun disconnect "), setup=before + line)


def asked(host: Host, line: str) -> dict[str, str]:
    """What fish offers for a line, and what it says of each."""
    script = host.tmp / "_fish" / "_tapotun"
    ask = f"source {script}; cd {host.tmp}/files; complete -C {shlex.quote(line)}"
    path = f"{host.tmp}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = host.run(["fish", "--no-config", "-c", ask], env={"PATH": path, "HOME": str(host.tmp)}, timeout=60)
    assert done.stderr == ""
    return dict(it.partition("\t")[::2] for it in done.stdout.splitlines())


def test_fish(machine: Host) -> None:
    for keys, wanted in TYPED:
        line = keys.rstrip("\t")
        word = wanted.replace("\\", "").split(" ")[-1] or wanted.split(" ")[-2]
        assert word.split("/")[-1] in " ".join(asked(machine, line)), line
    assert asked(machine, "tapotun rel")["reload"].startswith("make running processes read their config again")
    assert set(asked(machine, "tapotun disconnect ")) == {"corp0", "laptop", "phone", NASTY}
    assert "--watch" in asked(machine, "tapotun status --")
    assert set(asked(machine, "tapotun run --log-level ")) == {"debug", "info", "warning", "error"}
    assert not (machine.tmp / "files" / "owned").exists()


def test_with_nothing_running_there_is_nothing_and_no_complaint(lab: Lab) -> None:
    host = lab.host("machine")
    for kind in ("interfaces", "clients", "processes"):
        done = host.run([*command(), "completion", kind])
        assert (done.stdout, done.stderr) == ("", "")
