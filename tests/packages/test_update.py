"""Updates of a real pyz: three versions under a checked stream, one that does not start, attacks, and machines that
refuse. What they update from is made by the publisher's tools; `make release` is run, too."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tapotun_trio import __version__
from tests.harness import ROOT, Host, Lab, Process
from tests.integrity import CheckedUdp
from tests.netns.ordinary import add_user, open_to_everybody
from tests.netns.topologies import (
    RETRY_S,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    cable,
    client_config,
    running,
    server_config,
)
from tests.pyz_files import derive, install_launcher, sha256
from tools.release.__main__ import main as release

from .conftest import make
from .test_apt import publishing

pytestmark = pytest.mark.netns

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
PORT: Final = 8099
NOBODY: Final = 65534
SERVICE_UID: Final = 4810  # of the user tapotun, under s6 and runit
LOOPBACK: Final = "127.0.0.1"  # nobody connects
UPDATE_S: Final = 60.0  # to fetch, verify and try a version, on a slow machine
FIRST, SECOND, BAD, THIRD, EVIL = (f"{__version__}.post{number}" for number in range(1, 6))

# What a service manager does: it starts the program again after every exit code but 0, 1 and 2.
_SERVICE: Final = """
trap 'stop=yes; kill -TERM $child' TERM
while :; do
    "$@" & child=$!
    wait $child; code=$?
    [ -z "$stop" ] || { wait $child; code=$?; }
    echo "exit code $code"
    case $code in 0 | 1 | 2) exit $code ;; esac
done
"""


class Publisher:
    """Somebody who publishes as docs/releasing.md says, with keys that have no passphrase.

    Attributes:
        keys: the directory with the keys.
        directory: the repository, as a web server has it.
        root_file: what clients trust.
    """

    def __init__(self, place: Path) -> None:
        self.keys = place / "keys"
        self.directory = place / "repository"
        self.root_file = self.keys / "root.json"
        self.keys.mkdir(mode=0o700, parents=True)
        for role in ("root", "targets", "online"):
            self._run("make-key", "--no-passphrase", f"{self.keys / role}.pem")
        self.run("init", *(f"--{role}={self.keys / role}.pub" for role in ("root", "targets", "online")))

    def run(self, verb: str, *arguments: str) -> None:
        """A verb of tools/release that uses the repository."""
        self._run(verb, f"--repository={self.directory}", f"--keys={self.keys}", *arguments)

    def add(self, version: str, content: bytes) -> Path:
        """Publish a version. Returns the file that clients fetch."""
        file = self.keys.with_name(f"{version}.pyz")
        file.write_bytes(content)
        self.run("publish", str(file))
        return self.directory / "targets" / "stable" / f"{sha256(content)}.tapotun.pyz"

    def _run(self, *argv: str) -> None:
        assert release(argv) == 0, argv


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "publisher")


@pytest.fixture
def versions(pyz: Path, tmp_path: Path) -> Callable[..., bytes]:
    """Makes a version: a real pyz that calls itself that."""
    return lambda version, **changed: derive(pyz, tmp_path / "versions" / version, version, **changed)


class Installed:
    """A pyz with its launcher on a host, run by a service manager."""

    def __init__(self, host: Host, pyz: Path, config: Config, publisher: Publisher, **update: str) -> None:
        self.host = host
        self.directory = Path(host.tmp) / "opt"
        self.directory.mkdir(mode=0o755)
        self.pyz = self.directory / "tapotun.pyz"
        self.pyz.write_bytes(pyz.read_bytes())
        self.pyz.chmod(0o755)
        self.previous = self.directory / "tapotun.pyz.previous"
        self.launcher = install_launcher(self.pyz)
        self.config_file = Path(host.tmp) / "tapotun.json"
        self.config_file.touch(mode=0o600)
        self._config = config
        self._looks = 0
        self.command = f"{self.pyz} update --install {self.config_file}"  # which the program tells people to type
        root_file = Path(host.tmp) / "root.json"
        root_file.write_bytes(publisher.root_file.read_bytes())
        self._root_file = str(root_file)
        self.write(**update)
        argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(publisher.directory)]
        host.start([*argv, str(PORT)], name="http.server")
        host.wait_for_listener(PORT)
        self.process: Process

    def write(self, **update: str) -> None:
        """The config, with other settings of ``update``."""
        settings = {"url": f"http://127.0.0.1:{PORT}/", "root_file": self._root_file, "spread": "0s", **update}
        text = json.dumps({"interfaces": [self._config], "update": settings})
        self.config_file.write_text(text, encoding="utf-8")

    def start(self, *argv: str | Path) -> Process:
        state = f"STATE_DIRECTORY={self.host.tmp / 'state'}"
        words: list[str | Path] = ["env", "-i", f"PATH={SYSTEM_PATH}", state]
        words += argv or (self.launcher, "run", "--name", "it", self.config_file)
        self.process = self.host.start(["sh", "-c", _SERVICE, "sh", *words], name="tapotun", cwd="/")
        return self.process

    def ask(self, *arguments: str) -> str:
        """Of the program that is installed."""
        return self.host.run([sys.executable, self.pyz, *arguments], timeout=60).stdout

    def look_again(self, **update: str) -> None:
        """Look for updates now: a reload with another config begins with a check."""
        self._looks += 1
        self.write(every=f"{self._looks + 1}d", **update)
        self.ask("reload", "--name", "it")

    def kill(self, *at: Path) -> None:
        """SIGKILL to the daemon; its service manager starts it again. ``at``: the daemon is made to look for updates,
        and is killed as soon as one of these files is there."""
        before = self.process.log_end
        shell = self.process.pid  # of this namespace; the status has PIDs of the host's
        [pid] = Path(f"/proc/{shell}/task/{shell}/children").read_text(encoding="ascii").split()
        daemon = os.pidfd_open(int(pid))
        try:
            if at:
                self.look_again(mode="apply")
            deadline = time.monotonic() + UPDATE_S
            while at and not any(map(os.path.lexists, at)):
                assert time.monotonic() < deadline, self.process.tail()
                time.sleep(0.001)  # the first file is there for some 50 ms, which wait_until could miss
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        finally:
            os.close(daemon)
        self.process.wait_for_log("exit code 137$", STOP_S, after=before)

    def status(self) -> dict[str, Any]:
        process: dict[str, Any] = json.loads(self.ask("status", "--json", "--name", "it"))["processes"][0]
        return process

    def wait_for_version(self, version: str, after: int) -> None:
        """Until that version has been installed and has started."""
        self.process.wait_for_log(f"version {version} is installed", UPDATE_S, after=after)
        self.process.wait_for_log("exit code 75$", STOP_S + 10, after=after)
        self.process.wait_for_log(f"update: version {version} has started, and stays", UPDATE_S, after=after)
        assert self.status()["version"] == version


def stop(*installed: Installed) -> None:
    for each in installed:
        assert each.process.stop(STOP_S + 5) == 0, each.process.tail()


def test_three_versions_and_a_bad_one_under_a_checked_stream(
    pyz: Path, lab: Lab, publisher: Publisher, versions: Callable[..., bytes]
) -> None:
    server, client = cable(lab)
    publisher.add(FIRST, versions(FIRST))
    hub = Installed(server, pyz, server_config(), publisher, mode="check")
    laptop = Installed(client, pyz, client_config(), publisher, mode="check")
    for each in (hub, laptop):
        each.start()
    with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=500, size=600) as udp:
        udp.wait_for_flow(timeout=RETRY_S)
        laptop.process.wait_for_log(f"update: version {FIRST} is available: {laptop.command}", UPDATE_S)
        assert laptop.status()["update"]["available"] == FIRST
        said = " ".join(laptop.ask("status", "--name", "it").split())  # its lines are as wide as a terminal
        assert f"update: {FIRST} is available: {laptop.command}" in said

        # One end; the other one hears why.
        heard, before = laptop.process.log_end, hub.process.log_end
        hub.look_again(mode="apply")
        hub.wait_for_version(FIRST, before)
        laptop.process.wait_for_log("the server ends the session: updating", RETRY_S, after=heard)
        udp.wait_for_flow(timeout=RETRY_S)
        assert hub.status()["update"]["available"] is None
        assert hub.previous.read_bytes() == pyz.read_bytes()
        assert sorted(os.listdir(hub.directory)) == [
            *("tapotun", "tapotun.pyz", "tapotun.pyz.lock", "tapotun.pyz.previous")
        ]

        # Both at once, one of them for the first time.
        second = versions(SECOND)
        publisher.add(SECOND, second)
        starts = {each: each.process.log_end for each in (hub, laptop)}
        for each in (hub, laptop):
            each.look_again(mode="apply")
        for each in (hub, laptop):
            each.wait_for_version(SECOND, starts[each])
            assert each.pyz.read_bytes() == second
        udp.wait_for_flow(timeout=RETRY_S)

        # A version that passes its self-check, and does not start.
        publisher.add(BAD, versions(BAD, app="raise SystemExit(1)\n"))
        before = hub.process.log_end
        hub.look_again(mode="apply")
        hub.process.wait_for_log(f"version {BAD} is installed", UPDATE_S, after=before)
        back = f"version {BAD} has not started 3 times: VERSION {SECOND} IS BACK"
        hub.process.wait_for_log(back, UPDATE_S, after=before)
        hub.process.wait_for_log("started: tun0", UPDATE_S, after=before)
        hub.process.wait_for_log(f"ERROR .*version {BAD} did not start here; this version is back", after=before)
        said = hub.process.log[before:]
        assert [said.count(f"version {BAD} on trial, start {n} of 3") for n in (1, 2, 3)] == [1, 1, 1]
        assert said.count("exit code 3") == 3
        udp.wait_for_flow(timeout=RETRY_S)
        # It is not tried again.
        hub.process.wait_for_log(f"version {BAD} is available, but did not start here", UPDATE_S, after=before)
        status = hub.status()
        assert status["version"] == SECOND
        assert (status["update"]["available"], status["update"]["refused"]) == (BAD, [BAD])
        # The next one is.
        publisher.add(THIRD, versions(THIRD))
        before = hub.process.log_end
        hub.look_again(mode="apply")
        hub.wait_for_version(THIRD, before)
        udp.wait_for_flow(timeout=RETRY_S)
        ways = udp.finish()
    # Some are lost: those that were sent while an end was restarting. How long that took, wait_for_flow has bounded.
    for way in ways:
        assert (way.duplicated, way.corrupted) == (0, 0), way
    stop(hub, laptop)


@contextmanager
def tampered(directory: Path) -> Iterator[None]:
    """What the block does to this directory is undone."""
    kept = directory.with_name("kept")
    shutil.copytree(directory, kept)
    try:
        yield
    finally:
        shutil.rmtree(directory)
        kept.rename(directory)


def test_attacks_on_a_daemon_that_installs_updates(
    pyz: Path, lab: Lab, publisher: Publisher, versions: Callable[..., bytes], tmp_path: Path
) -> None:
    """By somebody who has the web server, and by kill -9 while it installs."""
    server, client = cable(lab)
    programs = {version: versions(version) for version in (FIRST, SECOND, EVIL)}
    first, evil = programs[FIRST], programs[EVIL]
    assert len(evil) == len(first)  # its length does not give it away
    publisher.add(__version__, pyz.read_bytes())
    old = shutil.copytree(publisher.directory, tmp_path / "old")
    thief = Publisher(tmp_path / "thief")
    thief.add(EVIL, evil)
    hub = Installed(server, pyz, server_config(), publisher, mode="apply")
    hub.start().wait_for_log("started: tun0")
    target = publisher.add(FIRST, first)

    def serve(directory: Path) -> None:
        shutil.copytree(directory, publisher.directory, dirs_exist_ok=True)

    attacks: dict[str, Callable[[], object]] = {
        "its SHA-256 differs": lambda: target.write_bytes(evil),
        f"has {len(first) - 1} bytes, and the signed list says {len(first)}": lambda: target.write_bytes(first[:-1]),
        r"timestamp\.json is not signed by the keys that are trusted here": lambda: serve(thief.directory),
        r"timestamp\.json is older than what this machine has seen before": lambda: serve(old),
    }
    with (
        running(client, client_config(), until=UPLOADING),
        CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=200, size=600) as udp,
    ):
        udp.wait_for_flow(timeout=RETRY_S)
        pid = hub.status()["pid"]
        for refusal, attack in attacks.items():
            with tampered(publisher.directory):
                attack()
                before = hub.process.log_end
                hub.look_again(mode="apply")
                hub.process.wait_for_log(f"WARNING update: .*{refusal}", UPDATE_S, after=before)
                assert hub.status()["pid"] == pid
                if "older" in refusal:  # a process that has just started knows what is old, too
                    before = hub.process.log_end
                    hub.kill()
                    hub.process.wait_for_log(f"WARNING update: .*{refusal}", UPDATE_S, after=before)
            assert hub.pyz.read_bytes() == pyz.read_bytes()
            udp.wait_for_flow(timeout=RETRY_S)

        # Killed while it writes the new program, and between the note of its trial and its start.
        new, trial = (hub.pyz.with_suffix(f".pyz.{it}") for it in ("new", "trial"))
        signed = {pyz.read_bytes()}
        for version, at in {FIRST: (new, trial), SECOND: (trial,)}.items():
            if version != FIRST:
                publisher.add(version, programs[version])
            signed.add(programs[version])
            before = hub.process.log_end
            hub.kill(*at)
            assert hub.pyz.read_bytes() in signed
            hub.process.wait_for_log(f"update: version {version} has started, and stays", UPDATE_S, after=before)
            assert hub.pyz.read_bytes() == programs[version]
            udp.wait_for_flow(timeout=RETRY_S)
        ways = udp.finish()
    for way in ways:
        assert (way.duplicated, way.corrupted) == (0, 0), way
    assert sorted(os.listdir(hub.directory)) == [
        *("tapotun", "tapotun.pyz", "tapotun.pyz.lock", "tapotun.pyz.previous")
    ]
    assert EVIL not in hub.process.log
    stop(hub)


# In the directory of the pyz, $1: mounted so that an update cannot be installed there.
_READ_ONLY: Final = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
_FULL: Final = 'cp -a "$1" /run/opt && mount -t tmpfs -o size=8m,mode=755 tmpfs "$1" && cp -a /run/opt/. "$1"'


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (_READ_ONLY, "new versions are only reported: .*cannot be replaced: Read-only file system; mount it writable"),
        (_FULL, r"tapotun\.pyz: cannot be replaced: No space left on device; make room on that disk"),
    ],
    ids=["read-only", "full"],
)
def test_a_disk_that_takes_no_update(
    pyz: Path, lab: Lab, publisher: Publisher, versions: Callable[..., bytes], place: str, text: str
) -> None:
    host = lab.host("server")
    publisher.add(FIRST, versions(FIRST))
    hub = Installed(host, pyz, server_config(listen=LOOPBACK), publisher, mode="apply")
    host.run(["sh", "-ec", place, "sh", str(hub.directory)])
    daemon = hub.start()
    daemon.wait_for_log(f"WARNING update: .*{text}", UPDATE_S)
    update = hub.status()["update"]
    if place == _READ_ONLY:
        daemon.wait_for_log(f"version {FIRST} is available: {hub.command}", UPDATE_S)
        assert "Read-only file system" in update["obstacle"]
    else:
        assert "No space left on device" in update["error"]
    listed = host.run(["ls", str(hub.directory)]).stdout.split()
    assert listed == ["tapotun", "tapotun.pyz", *(["tapotun.pyz.lock"] if place == _FULL else [])]
    there = host.run(["sha256sum", str(hub.pyz)]).stdout.split()[0]  # this test sees what is below the mount
    assert there == hashlib.sha256(pyz.read_bytes()).hexdigest()
    stop(hub)


def test_a_user_who_is_not_root(pyz: Path, lab: Lab, publisher: Publisher, versions: Callable[..., bytes]) -> None:
    """Root's start with another user would run a program of that user's. A start as that user may."""
    host = lab.host("server")
    open_to_everybody(host)
    first = versions(FIRST)
    publisher.add(FIRST, first)
    hub = Installed(host, pyz, server_config(listen=LOOPBACK), publisher, mode="apply")
    for path in (Path(host.tmp), hub.directory, hub.pyz, hub.config_file):
        os.chown(path, NOBODY, NOBODY)
    daemon = hub.start(hub.launcher, "run", "--name", "it", "--user", "nobody", hub.config_file)
    daemon.wait_for_log('update: new versions are only reported: with "user" this program is started as root', UPDATE_S)
    daemon.wait_for_log(f"version {FIRST} is available", UPDATE_S)
    stop(hub)
    assert hub.pyz.read_bytes() == pyz.read_bytes()
    shutil.rmtree(host.tmp / "state", ignore_errors=True)

    as_nobody = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    as_nobody += ["--inh-caps=+net_admin", "--ambient-caps=+net_admin", "env", f"XDG_RUNTIME_DIR={host.tmp}"]
    before = hub.start(*as_nobody, hub.launcher, "run", "--name", "it", hub.config_file).log_end
    hub.process.wait_for_log(f"update: version {FIRST} has started, and stays", UPDATE_S, after=before)
    assert hub.pyz.read_bytes() == first
    assert (hub.pyz.stat().st_uid, stat.S_IMODE(hub.pyz.stat().st_mode)) == (NOBODY, 0o755)
    stop(hub)


@pytest.mark.parametrize("manager", ["s6", "runit"])
def test_under_s6_and_runit(
    manager: str, pyz: Path, lab: Lab, publisher: Publisher, versions: Callable[..., bytes]
) -> None:
    """The service directory of conf/, with the lines that docs/update.md has for it: an update, and a version that does
    not start and is taken back."""
    host = lab.host("server")
    open_to_everybody(host)
    add_user(host, "tapotun", SERVICE_UID)
    host.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib"])
    hub = Installed(host, pyz, server_config(listen=LOOPBACK), publisher, mode="apply")
    for file in (hub.directory, hub.pyz, hub.launcher, hub.config_file):
        os.chown(file, SERVICE_UID, SERVICE_UID)
    text = (ROOT / "docs" / "update.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"(?ms)^install -d [^\n]*\nexec setpriv .*?tapotun\.json$", text)
    lines = lines.replace("/opt/tapotun/", f"{hub.directory}/").replace(
        "/etc/tapotun/tapotun.json", str(hub.config_file)
    )
    if manager == "s6":
        lines = lines.replace("/tapotun run ", "/tapotun run --notify-fd 3 ")
    service = host.tmp / "services" / "tapotun"
    shutil.copytree(ROOT / "conf" / manager / "tapotun", service)
    shutil.rmtree(service / "log")  # so that the log is that of what starts it
    head, found, _ = (service / "run").read_text(encoding="utf-8").partition("exec tapotun run ")
    assert found
    (service / "run").write_text(f"{head}{lines}\n", encoding="utf-8")
    scan = ["s6-svscan"] if manager == "s6" else ["runsvdir", "-P"]
    clean = ["env", "-i", f"PATH={SYSTEM_PATH}:/usr/sbin:/sbin"]
    log = host.start([*clean, *scan, service.parent], name=manager, cwd="/")
    log.wait_for_log("started: tun0", UPDATE_S)

    def ask(*arguments: str) -> str:
        as_user = ["setpriv", "--reuid=tapotun", "--regid=tapotun", "--init-groups"]
        return host.run([*as_user, *clean, hub.launcher, *arguments, "--name", "tapotun"], timeout=60).stdout

    def publish(number: int, version: str, content: bytes) -> int:
        publisher.add(version, content)
        before = log.log_end
        hub.write(mode="apply", every=f"{number}d")
        ask("reload")
        return before

    first = versions(FIRST)
    before = publish(2, FIRST, first)
    log.wait_for_log(f"version {FIRST} is installed", UPDATE_S, after=before)
    log.wait_for_log(f"update: version {FIRST} has started, and stays", UPDATE_S, after=before)
    assert hub.pyz.read_bytes() == first
    assert ask("status").startswith(f"tapotun {FIRST} tapotun, pid ")

    before = publish(3, BAD, versions(BAD, app="raise SystemExit(1)\n"))
    log.wait_for_log(f"version {BAD} has not started 3 times: VERSION {FIRST} IS BACK", UPDATE_S, after=before)
    log.wait_for_log("started: tun0", UPDATE_S, after=before)
    assert hub.pyz.read_bytes() == first
    assert ask("status").startswith(f"tapotun {FIRST} tapotun, pid ")
    said = log.log[before:]
    assert [said.count(f"version {BAD} on trial, start {n} of 3") for n in (1, 2, 3)] == [1, 1, 1]
    if manager == "s6":
        host.run([*clean, "s6-svscanctl", "-t", service.parent])
        log.wait(STOP_S + 5)
    else:
        log.signal(signal.SIGHUP)  # which stops everything below it
        assert log.wait(STOP_S + 5) == 111


def test_what_a_person_installs_meanwhile_stays_and_a_person_can_install(
    pyz: Path, lab: Lab, publisher: Publisher, versions: Callable[..., bytes]
) -> None:
    host = lab.host("server")
    hub = Installed(host, pyz, server_config(listen=LOOPBACK), publisher, mode="apply")
    daemon = hub.start()
    daemon.wait_for_log("started: tun0")
    mine = hub.pyz.with_suffix(".mine")
    mine.write_bytes(versions(FIRST))
    mine.chmod(0o755)
    mine.replace(hub.pyz)
    second = versions(SECOND)
    publisher.add(SECOND, second)
    hub.look_again(mode="apply")
    daemon.wait_for_log("update: .*somebody has replaced it since this process started; restart to run it", UPDATE_S)
    assert sorted(os.listdir(hub.directory)) == ["tapotun", "tapotun.pyz", "tapotun.pyz.lock"]
    said = hub.ask("update", "--install", str(hub.config_file))
    assert f"version {SECOND} is installed as {hub.pyz}; restart what runs, which is still {FIRST}" in said
    assert hub.pyz.read_bytes() == second
    stop(hub)
    hub.start().wait_for_log(f"update: version {SECOND} has started, and stays", UPDATE_S)
    stop(hub)


# ------------------------------------------------------------------ make release

_CONTROL: Final = f"""Package: tapotun
Version: {__version__}-1
Architecture: amd64
Section: net
Priority: optional
Maintainer: nobody <nobody@example.org>
Description: stands for the package
"""

# Stands for the make that `make release` starts: what the builds make is there already. mkdir fails if dist is, too.
_BUILT: Final = """#!/bin/sh
mkdir dist && cp -a '{built}/.' dist && exec make -o venv -o zig -o dist -o pyz -o deb -o sbom "$@"
"""


def git(checkout: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", checkout, *who, *arguments], check=True, capture_output=True)


def test_make_release(
    pyz: Path,
    publisher: Publisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As docs/releasing.md has it, in a tagged checkout. test_reproducible.py has the builds; they are not repeated."""
    built, checkout, package = (tmp_path / name for name in ("built", "checkout", "package"))
    built.mkdir()
    shutil.copy(pyz, built)
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(_CONTROL, encoding="ascii")
    deb = built / f"tapotun_{__version__}-1_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", package, deb], check=True, capture_output=True)
    builds = tmp_path / "make"
    builds.write_text(_BUILT.format(built=built), encoding="utf-8")
    builds.chmod(0o755)

    # The sources as they are here, committed or not.
    checkout.mkdir()
    subprocess.run(
        ["sh", "-ec", 'git ls-files -z | xargs -0 cp -a --parents -t "$1"', "sh", checkout], check=True, cwd=ROOT
    )
    changelog = checkout / "CHANGELOG.md"
    introduction, _, sections = changelog.read_text(encoding="utf-8").partition("\n## ")
    _, _, section = sections.partition("\n")
    heading = f"\n## {__version__} (2026-11-30)\n"  # what the page says to write in place of "Unreleased"
    changelog.write_text(introduction + heading + section, encoding="utf-8")
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "x")
    (checkout / "dist").mkdir()
    left_over = checkout / "dist" / "of-another-version.whl"
    left_over.touch()

    with publishing(deb) as archive:
        monkeypatch.setenv("GNUPGHOME", str(archive.gnupg))
        made = archive.place / "made"
        words = ["-C", str(checkout), "--old-file=venv", "release", f"PY={sys.executable}", f"MAKE={builds}"]
        words += [f"RELEASE_KEYS={publisher.keys}", f"RELEASE_REPOSITORY={publisher.directory}", "DEB_ARCH=amd64"]
        words += [f"APT_REPOSITORY={made}", f"APT_KEY={archive.key}", "APT_URL=https://example.org/apt"]
        with pytest.raises(AssertionError, match=f"this commit has no tag, and must have v{__version__}"):
            make(*words)
        assert left_over.exists()
        assert not made.exists()
        git(checkout, "tag", f"v{__version__}")
        targets = publisher.keys / "targets.pem"
        targets.rename(tmp_path / "elsewhere")
        with pytest.raises(AssertionError, match="1 of targets must sign, and too few are here"):
            make(*words)
        assert left_over.exists()
        assert not made.exists()
        (tmp_path / "elsewhere").rename(targets)
        make(*words)
        assert not left_over.exists()
        [published] = (made / "public" / "pool").rglob("*.deb")
        assert published.read_bytes() == deb.read_bytes()
        assert (made / "public" / "dists" / "stable" / "InRelease").exists()
    capsys.readouterr()
    publisher.run("show")  # which verifies it
    size = pyz.stat().st_size
    assert capsys.readouterr().out.splitlines()[-1] == f"stable/tapotun.pyz: {__version__}, {size} bytes"
