"""A signal that comes while the program is still being imported, sent by a real process to itself at a known import."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio import exit_codes

# Python imports this first of all, by its name.
SITE: Final = """\
import os, signal, sys

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MOMENT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        return None

sys.meta_path.insert(0, Hook())
"""
ROOT: Final = Path(__file__).parents[2]
CLIENT: Final = {"name": "tun0", "server": "http://127.0.0.1:1/ip", "token": "raw-token-of-the-client"}
STOPS: Final = (signal.SIGINT, signal.SIGTERM)
# In the order of a start; from "trio" on, the config has been read.
IMPORTS: Final = ("tapotun_trio.cli", "argparse", "msgspec", "tapotun_trio.config.load")
LATER_IMPORTS: Final = ("tapotun_trio.app", "trio", "ssl", "tapotun_trio.lifecycle.supervisor")


def signalled(tmp_path: Path, number: signal.Signals, moment: str, *argv: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "MOMENT": moment, "SIGNAL": str(int(number))}
    program = [sys.executable, "-m", "tapotun_trio"]
    return subprocess.run([*program, *argv], env=env, capture_output=True, text=True, check=False, timeout=60)


def config_file(tmp_path: Path, **changed: object) -> str:
    file = tmp_path / "config.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([{**CLIENT, **changed}]))
    return str(file)


@pytest.mark.parametrize("moment", [*IMPORTS, *LATER_IMPORTS])
@pytest.mark.parametrize("number", STOPS)
def test_a_stop_is_obeyed_without_a_word(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    done = signalled(tmp_path, number, moment, config_file(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (exit_codes.OK, "", "")


@pytest.mark.parametrize("moment", IMPORTS)
def test_a_hangup_ends_nothing(tmp_path: Path, moment: str) -> None:
    """It goes on to what it has to say of its config."""
    done = signalled(tmp_path, signal.SIGHUP, moment, config_file(tmp_path, server=1))
    assert done.returncode == exit_codes.FAILED
    assert "[0].server: 1 is a number, not text" in done.stderr


@pytest.mark.parametrize("moment", IMPORTS)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, exit_codes.INTERRUPTED), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
def test_the_other_verbs_end_as_anything_in_a_terminal(
    tmp_path: Path, number: signal.Signals, code: int, moment: str
) -> None:
    done = signalled(tmp_path, number, moment, "validate-config", config_file(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_the_moments_are_there(tmp_path: Path) -> None:
    """An import that the program does not make would make the tests above look at nothing."""
    early = f"import sys, tapotun_trio.__main__; assert {IMPORTS[0]!r} not in sys.modules; import {', '.join(IMPORTS)}"
    code = f"{early}; assert 'trio' not in sys.modules; import tapotun_trio.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert set(done.stdout.split()) >= {*IMPORTS, *LATER_IMPORTS}


@pytest.mark.parametrize("manager", ["s6", "runit"])
def test_a_hangup_before_python_itself_has_started(tmp_path: Path, manager: str) -> None:
    """The service's script lets it pass; what it starts is here another script in the program's place."""
    program = tmp_path / "tapotun"
    program.write_text("#!/bin/sh\nkill -HUP $$\necho lives on\n")
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    service = ROOT / "conf" / manager / "tapotun"
    done = subprocess.run(
        [service / "run"], env=env, cwd=service, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "lives on\n")


ANCESTOR: Final = """\
import signal, subprocess, sys

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
from tests.harness import take_signals

take_signals()
signal.raise_signal(signal.SIGHUP)  # whoever ignores it survives it
look = "import re; print(*re.findall(r'Sig(?:Blk|Ign):.*', open('/proc/self/status').read()))"
done = subprocess.run([sys.executable, "-S", "-c", look], capture_output=True, text=True, check=True)
print(done.stdout)
sys.exit(7)
"""


def test_what_the_tests_start_has_no_signal_ignored_nor_blocked() -> None:
    """Whoever started them: nohup, a shell's `&`, a service manager."""
    done = subprocess.run([sys.executable, "-c", ANCESTOR], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    blocked, ignored = (int(it, 16) for it in re.findall(r":\s*([0-9a-f]+)", done.stdout))
    assert blocked == 0
    of_python = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    of_glibc = 1 << 32 - 1 | 1 << 33 - 1  # its own two (nptl(7)): no program can change what it inherits of them
    assert ignored & ~(of_python | of_glibc) == 0
