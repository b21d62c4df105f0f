"""conf/*/tapotun/log/run: a logger that runs as root writes into a directory of its own and into no other."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {"runit": "svlogd", "s6": "s6-log"}


def run(directory: Path, manager: str, logs: Path) -> subprocess.CompletedProcess[str]:
    """The script with another directory, and a logger that only writes a file where it would write."""
    logger = directory / SCRIPTS[manager]
    logger.write_text('#!/bin/sh\nfor last; do :; done\ncd "$last" && echo logged >current\n')
    logger.chmod(0o755)
    text = (ROOT / "conf" / manager / "tapotun/log/run").read_text()
    assert "/var/log/tapotun" in text
    script = directory / "run"
    script.write_text(text.replace("/var/log/tapotun", str(logs)))
    environment = {"PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("manager", SCRIPTS)
def test_a_directory_of_its_own(tmp_path: Path, manager: str) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "log").symlink_to(tmp_path / "var")  # an operator's, above it
    for _ in range(2):
        done = run(tmp_path, manager, tmp_path / "log" / "tapotun")
        assert (done.returncode, done.stderr) == (0, "")
    logs = tmp_path / "var" / "tapotun"
    assert (logs / "current").read_text() == "logged\n"
    assert stat.S_IMODE(logs.stat().st_mode) == 0o750


@pytest.mark.parametrize("manager", SCRIPTS)
def test_a_link_that_another_user_left_there(tmp_path: Path, manager: str) -> None:
    """Also one that leads to a directory of root's with the same name."""
    victim = tmp_path / "etc" / "tapotun"
    victim.mkdir(parents=True)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "tapotun").symlink_to(victim)
    done = run(tmp_path, manager, tmp_path / "log" / "tapotun")
    assert done.returncode == 1
    assert f"{tmp_path}/log/tapotun: is a link, or another user's; remove it" in done.stderr
    assert list(victim.iterdir()) == []
