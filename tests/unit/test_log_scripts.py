"""conf/*/tapotun/log/run: the logger runs as an ordinary user, and writes into a directory of its own and no other.

`tests/netns/test_supervision.py` runs the scripts under the real s6 and runit.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {"runit": "svlogd", "s6": "s6-log"}
USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter, unlike ``tmp_path``."""
    with TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def run(directory: Path, manager: str, logs: Path) -> subprocess.CompletedProcess[str]:
    """The script with another directory and another user, and a logger that only writes a file where it would write."""
    logger = directory / SCRIPTS[manager]
    logger.write_text('#!/bin/sh\nfor last; do :; done\ncd "$last" && id -un >current\n')
    logger.chmod(0o755)
    text = (ROOT / "conf" / manager / "tapotun/log/run").read_text()
    assert "=/var/log/tapotun\n" in text
    assert "user=tapotun\n" in text
    script = directory / "run"
    script.write_text(text.replace("=/var/log/tapotun", f"={logs}").replace("user=tapotun", "user=nobody"))
    environment = {"PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("manager", SCRIPTS)
def test_a_directory_of_its_own(place: Path, manager: str) -> None:
    (place / "var").mkdir()
    (place / "log").symlink_to(place / "var")  # an operator's, above it
    for _ in range(2):
        done = run(place, manager, place / "log" / "tapotun")
        assert (done.returncode, done.stderr) == (0, "")
    logs = place / "var" / "tapotun"
    assert (logs / "current").read_text() == f"{USER}\n"
    assert stat.S_IMODE(logs.stat().st_mode) == 0o750
    assert logs.owner() == (logs / "current").owner() == USER


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's logger was never root")
@pytest.mark.parametrize("manager", SCRIPTS)
def test_files_of_a_logger_that_was_root(place: Path, manager: str) -> None:
    logs = place / "tapotun"
    logs.mkdir(mode=0o750)
    (logs / "current").write_text("old\n")
    done = run(place, manager, logs)
    assert (done.returncode, done.stderr) == (0, "")
    assert (logs / "current").read_text() == f"{USER}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
@pytest.mark.parametrize("manager", SCRIPTS)
def test_another_user_s_directory(place: Path, manager: str) -> None:
    """Its files keep their owner, and root writes none."""
    logs = place / "tapotun"
    logs.mkdir(mode=0o777)
    os.chown(logs, 4711, 4711)
    (logs / "theirs").touch()
    done = run(place, manager, logs)
    assert done.returncode == 1
    assert "is a link, or another user's" in done.stderr
    assert [(file.name, file.stat().st_uid) for file in logs.iterdir()] == [("theirs", 0)]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is to be led astray")
def test_a_link_of_the_logger_leads_root_nowhere(place: Path) -> None:
    """svlogd's config is written as the user to whom the directory belongs."""
    logs, victim = place / "tapotun", place / "victim"
    logs.mkdir(mode=0o750)
    os.chown(logs, pwd.getpwnam("nobody").pw_uid, 0)
    (logs / "config").symlink_to(victim)
    run(place, "runit", logs)
    assert not victim.exists()


@pytest.mark.parametrize("manager", SCRIPTS)
def test_a_link_that_another_user_left_there(place: Path, manager: str) -> None:
    """Also one that leads to a directory of root's with the same name."""
    victim = place / "etc" / "tapotun"
    victim.mkdir(parents=True)
    (place / "log").mkdir()
    (place / "log" / "tapotun").symlink_to(victim)
    done = run(place, manager, place / "log" / "tapotun")
    assert done.returncode == 1
    assert f"{place}/log/tapotun: is a link, or another user's; remove it" in done.stderr
    assert list(victim.iterdir()) == []
