"""conf/openwrt/tapotun, run by busybox's shell as OpenWrt has it, with a stand-in for /etc/rc.common.

The stand-in has the functions that the script calls, as procd documents them, and writes down what it is asked. procd
itself does not run here, so what it makes of that is not tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapotun_trio.cli import build_parser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "conf" / "openwrt" / "tapotun"
VALID = json.dumps([{"name": "tun0", "server": "http://vpn.example.com/ip", "token": "raw-token"}])

# A line for each call, its arguments separated by tabs. $RUNNING: the instances that procd has.
RC_COMMON = r"""
initscript=$1 action=$2
note() { local IFS="$(printf '\t')"; echo "$*" >>"$CALLS"; }
procd_open_instance() { note open "$@"; }
procd_set_param() { note set "$@"; }
procd_append_param() { note append "$@"; }
procd_close_instance() { note close; }
procd_running() { case " $RUNNING " in *" $1/$2 "*) return 0 ;; esac; return 1; }
logger() { note logger "$@"; }
. "$initscript"
[ "$USE_PROCD" = 1 ] || exit 99
note order "$START" "$STOP"
"$action"_service
"""


class Router:
    """The script, with the program of this checkout and directories of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.configs = place / "etc"
        self.configs.mkdir()
        self.program = place / "tapotun"
        self.users = place / "passwd"
        self.users.write_text("root:x:0:0::/root:/bin/ash\n", encoding="ascii")
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tapotun_trio "$@"\n', encoding="utf-8")
        self.program.chmod(0o755)
        text = SCRIPT.read_text(encoding="utf-8")
        for old, new in {
            "#!/bin/sh /etc/rc.common": "#!/bin/sh",
            "PROGRAM=/usr/bin/tapotun": f"PROGRAM={self.program}",
            "CONFIGS=/etc/tapotun\n": f"CONFIGS={self.configs}\n",
            " /etc/passwd ": f" {self.users} ",
        }.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        (place / "init").write_text(text, encoding="utf-8")
        (place / "rc.common").write_text(RC_COMMON, encoding="utf-8")

    def run(self, action: str, running: str = "") -> tuple[list[list[str]], subprocess.CompletedProcess[str]]:
        """The calls, and what it said."""
        calls = self.place / "calls"
        calls.unlink(missing_ok=True)
        environment = {**os.environ, "CALLS": str(calls), "RUNNING": running, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["busybox", "ash", self.place / "rc.common", self.place / "init", action],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
        )
        return [line.split("\t") for line in calls.read_text(encoding="utf-8").splitlines()], done


@pytest.fixture
def router(tmp_path: Path) -> Router:
    return Router(tmp_path)


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", "--enable=all", "--exclude=SC2250,SC2310,SC2311,SC2312", SCRIPT], check=False)
    assert done.returncode == 0
    assert SCRIPT.stat().st_mode & 0o111


def test_each_config_is_an_instance(router: Router) -> None:
    for name in ("office", "home net"):
        (router.configs / f"{name}.json").write_text(VALID, encoding="utf-8")
    (router.configs / "token").touch()
    calls, done = router.run("start")
    assert (done.returncode, done.stderr) == (0, "")
    assert calls[0] == ["order", "95", "10"]
    instances = "\n".join("\t".join(call) for call in calls[1:]).split("\nclose")
    assert [it.strip().split("\n")[0] for it in instances] == ["open\thome net", "open\toffice", ""]
    parameters = {call[1]: call[2:] for call in calls[1:] if call[0] == "set"}
    assert parameters["respawn"] == ["60", "15", "0"]
    assert parameters["stdout"] == parameters["stderr"] == ["1"]
    assert parameters["term_timeout"] == ["10"]
    # The command is one that the program takes.
    program, *arguments = parameters["command"] + [it for call in calls if call[0] == "append" for it in call[2:]][-1:]
    assert program == str(router.program)
    parsed = build_parser().parse_args(arguments)
    assert (parsed.name, parsed.file) == ("office", str(router.configs / "office.json"))


def test_where_there_is_a_user_it_is_that(router: Router) -> None:
    (router.configs / "office.json").write_text(VALID, encoding="utf-8")
    running = "tapotun/office"  # else it is validated first, which is not what is tested here
    assert ["append", "command", "--user", "tapotun"] not in router.run("start", running)[0]
    with router.users.open("a", encoding="ascii") as users:
        users.write("tapotun:x:810:810::/var:/bin/false\n")
    assert ["append", "command", "--user", "tapotun"] in router.run("start", running)[0]


def test_a_config_with_errors_is_not_started_and_says_why(router: Router) -> None:
    (router.configs / "bad.json").write_text('[{"net": "10.0.0.1/24"}]', encoding="utf-8")
    (router.configs / "office.json").write_text(VALID, encoding="utf-8")
    calls, done = router.run("start")
    assert [call[1] for call in calls if call[0] == "open"] == ["office"]
    logged = [call[-1] for call in calls if call[0] == "logger"]
    assert logged
    assert any("bad.json" in line for line in logged)
    assert done.stderr.splitlines() == logged
    # What runs must be named again, or procd would stop it.
    calls, done = router.run("start", running="tapotun/bad tapotun/office")
    assert [call[1] for call in calls if call[0] == "open"] == ["bad", "office"]
    assert done.stderr == ""


def test_without_a_config_there_is_no_instance(router: Router) -> None:
    assert router.run("start")[0] == [["order", "95", "10"]]
    calls, done = router.run("reload")
    assert (calls, done.returncode) == ([["order", "95", "10"]], 0)


def test_a_reload_asks_each_process_and_stops_none(router: Router) -> None:
    """With a program that only says what it was asked: a real reload is tested with the other managers."""
    for name in ("a", "b"):
        (router.configs / f"{name}.json").touch()
    router.program.write_text(f'#!/bin/sh\necho "$@" >>{router.place}/asked\n[ "$3" != a ]\n', encoding="utf-8")
    calls, done = router.run("reload")
    assert done.returncode == 1, "one of them refused"
    assert calls == [["order", "95", "10"]]
    assert (router.place / "asked").read_text(encoding="utf-8") == "reload --name a\nreload --name b\n"
