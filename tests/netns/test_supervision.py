"""Under service managers: the service directories of conf/ as they are, in the real s6 and runit, and sd_notify."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, Process, command, ping, wait_until
from tests.harness.daemon import ROOT

from .ordinary import PLAIN, add_user, open_to_everybody
from .topologies import CLIENT, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config, token

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
NOBODY: Final = 65534
SERVICE_UID: Final = 4810  # of the user tapotun, as whom the services run
NET_ADMIN: Final = 1 << 12
DAC_READ_SEARCH: Final = 1 << 2
SEGMENT: Final = {
    "name": "seg0",
    "device": "tap",
    "listen": "127.0.0.1",
    "port": 8081,
    "bridge": {"name": "br0", "create": True},
    "clients": [{"name": "branch", "token": hashlib.sha1(token("branch").encode()).hexdigest()}],
}


class Service:
    """A directory of conf/, copied, with the paths that a machine would have replaced by the test's own."""

    def __init__(self, host: Host, manager: str, *entries: dict[str, Any]) -> None:
        self.host = host
        open_to_everybody(host)
        add_user(host, "tapotun", SERVICE_UID)
        self.directory = host.tmp / "services" / "tapotun"
        self.logs = host.tmp / "log"
        self.config = host.tmp / "tapotun.json"
        shutil.copytree(ROOT / "conf" / manager / "tapotun", self.directory)
        for file in (self.directory / "run", self.directory / "log" / "run"):
            text = file.read_text(encoding="utf-8")
            changed = text.replace("/etc/tapotun/tapotun.json", str(self.config))
            file.write_text(changed.replace("/var/log/tapotun", str(self.logs)), encoding="utf-8")
        programs = host.tmp / "bin"
        programs.mkdir()
        (programs / "tapotun").write_text(f'#!/bin/sh\nexec {" ".join(PLAIN)} "$@"\n', encoding="utf-8")
        (programs / "tapotun").chmod(0o755)
        self.env = {"PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin", "PYTHONPATH": str(ROOT)}
        self.write(*entries)

    def write(self, *entries: dict[str, Any]) -> None:
        self.config.touch(mode=0o640)
        os.chown(self.config, 0, SERVICE_UID)
        self.config.write_text(json.dumps(entries), encoding="utf-8")

    def ask(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.run(argv, check=check, env=self.env, timeout=PATIENCE_S + 10)

    def log(self) -> str:
        """All that the logger has kept."""
        files = [*sorted(self.logs.glob("@*")), self.logs / "current"]
        return "\n".join(it.read_text(encoding="utf-8") for it in files if it.exists())

    def wait_for_log(self, pattern: str, times: int = 1) -> None:
        wait_until(lambda: len(re.findall(pattern, self.log())) >= times, PATIENCE_S, f"{times} of {pattern}", self.log)


def until(holds: Callable[[], object], what: str, tell: Callable[[], str]) -> None:
    wait_until(holds, PATIENCE_S, what, tell)


def user_of(host: Host, pid: str) -> str:
    return host.run(["stat", "-c", "%U", f"/proc/{pid}/task"]).stdout.strip()


def has_segment(host: Host) -> bool:
    """Whether the TAP interface is a port of its bridge."""
    return " seg0: " in interfaces(host) and host.ip("link show seg0")[0].get("master") == "br0"


def interfaces(host: Host) -> str:
    return host.run(["ip", "-o", "link", "show"]).stdout


def test_s6(lab: Lab) -> None:
    server, client = cable(lab)
    service = Service(server, "s6", server_config(), SEGMENT)
    root = service.directory.parent
    with server.start(["s6-svscan", root], env=service.env) as scan:
        until(lambda: (service.directory / "supervise" / "status").exists(), "s6-supervise", scan.tail)
        service.ask("s6-svwait", "-U", "-t", "30000", service.directory)  # ready, by the notification descriptor
        assert "tun0" in interfaces(server)
        assert has_segment(server)
        with running(client, client_config(), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok
            # It is killed, and comes back by itself.
            pid = service.ask("s6-svstat", "-o", "pid", service.directory).stdout.strip()
            assert user_of(server, pid) == "tapotun"
            logger = service.ask("s6-svstat", "-o", "pid", service.directory / "log").stdout.strip()
            assert user_of(server, logger) == "tapotun"
            server.run(["kill", "-9", pid])
            service.wait_for_log("started: tun0", 2)
            service.ask("s6-svwait", "-U", "-t", "30000", service.directory)
            until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, "the tunnel", scan.tail)
            until(lambda: has_segment(server), "the segment", scan.tail)
        service.ask("s6-svc", "-h", service.directory)
        service.wait_for_log("reload: the config has not changed")
        # The log is rotated when it is told to, and goes on.
        service.ask("s6-svc", "-a", service.directory / "log")
        until(lambda: list(service.logs.glob("@*")), "a rotated log", service.log)
        # A config with errors: it is left alone until somebody has mended it.
        service.write(server_config(net="10.10.0.1"))
        service.ask("s6-svc", "-r", service.directory)
        service.wait_for_log(r"\[0\]\.net: ")
        until(
            lambda: (
                service.ask("s6-svstat", "-o", "up,wantedup", service.directory).stdout.split() == ["false", "false"]
            ),
            "it to stay down",
            lambda: service.ask("s6-svstat", service.directory).stdout,
        )
        assert len(re.findall(r"\[0\]\.net: ", service.log())) == 1
        service.write(server_config(), SEGMENT)
        service.ask("s6-svc", "-u", service.directory)
        service.ask("s6-svwait", "-U", "-t", "30000", service.directory)
        # And down it leaves nothing.
        assert has_segment(server)
        service.ask("s6-svc", "-wD", "-T", "30000", "-d", service.directory)
        assert not re.search(r" (tun0|seg0|br0): ", interfaces(server))
        service.wait_for_log("stopped")
        scan.stop(PATIENCE_S)


def test_runit(lab: Lab) -> None:
    server, client = cable(lab)
    service = Service(server, "runit", server_config(), SEGMENT)
    root = service.directory.parent
    sv = ["sv", "-w", "30"]
    with server.start(["runsvdir", "-P", root], env=service.env) as scan:
        until(lambda: (service.directory / "supervise" / "ok").exists(), "runsv", scan.tail)
        # Not `sv check` yet, which is content with a service that has no process so far.
        service.ask(*sv, "start", service.directory)  # its file `check`: every interface is up
        assert "tun0" in interfaces(server)
        assert has_segment(server)
        with running(client, client_config(), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok
            pid = (service.directory / "supervise" / "pid").read_text(encoding="ascii").strip()
            assert user_of(server, pid) == "tapotun"
            logger = (service.directory / "log" / "supervise" / "pid").read_text(encoding="ascii").strip()
            assert user_of(server, logger) == "tapotun"
            server.run(["kill", "-9", pid])
            service.wait_for_log("started: tun0", 2)
            service.ask(*sv, "check", service.directory)
            until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, "the tunnel", scan.tail)
            until(lambda: has_segment(server), "the segment", scan.tail)
        service.ask("sv", "hup", service.directory)
        service.wait_for_log("reload: the config has not changed")
        service.ask("sv", "alarm", service.directory / "log")  # svlogd rotates
        until(lambda: list(service.logs.glob("@*")), "a rotated log", service.log)
        service.write(server_config(net="10.10.0.1"))
        service.ask("sv", "term", service.directory)
        service.wait_for_log(r"\[0\]\.net: ")
        until(
            lambda: re.match("down: (?!.*want up)", service.ask("sv", "status", service.directory, check=False).stdout),
            "it to stay down",
            lambda: service.ask("sv", "status", service.directory, check=False).stdout,
        )
        assert len(re.findall(r"\[0\]\.net: ", service.log())) == 1
        service.write(server_config(), SEGMENT)
        service.ask(*sv, "start", service.directory)
        assert has_segment(server)
        service.ask(*sv, "stop", service.directory)
        assert not re.search(r" (tun0|seg0|br0): ", interfaces(server))
        scan.signal(signal.SIGHUP)  # which stops everything below it
        assert scan.wait(PATIENCE_S) == 111


class Systemd:
    """The far end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        path.chmod(0o777)
        self.sock.settimeout(PATIENCE_S)

    def wait(self, pattern: str) -> list[str]:
        """What is told, up to what matches. Raises TimeoutError."""
        told: list[str] = []
        while not told or not re.search(pattern, told[-1]):
            told.append(self.sock.recv(4096).decode())
        return told


def started(
    host: Host, systemd: Systemd, config: dict[str, Any], *options: str, without: tuple[str, ...] = ()
) -> Process:
    file = host.tmp / "notified.json"
    file.write_text(json.dumps([config]), encoding="utf-8")
    file.chmod(0o600)
    env = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "400000"}
    return host.start([*without, *command(), *options, file], name="tapotun", env=env, cwd=ROOT)


def test_systemd_is_told(lab: Lab) -> None:
    """A client is ready when its streams carry packets, not before; a reload begins and ends with a word."""
    server, client = cable(lab)
    systemd = Systemd(client.tmp / "notify")
    with systemd.sock, started(client, systemd, client_config()) as daemon:
        before = systemd.wait("STATUS=tun0 connecting")
        before += systemd.wait("WATCHDOG=1")
        assert "READY=1" not in before
        with running(server, server_config()):
            systemd.wait("READY=1")
            systemd.wait("STATUS=tun0 up")
            assert ping(client, TUNNEL_SERVER).ok
            daemon.signal(signal.SIGHUP)
            assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.wait("RELOADING=1")[-1])
            systemd.wait("READY=1")
            daemon.wait_for_log("reload: the config has not changed")
            daemon.signal(signal.SIGTERM)
            systemd.wait("STOPPING=1")
            assert daemon.wait(PATIENCE_S) == 0


def test_ready_with_a_warning_when_time_is_up(lab: Lab) -> None:
    _, client = cable(lab)
    systemd = Systemd(client.tmp / "notify")
    with systemd.sock, started(client, systemd, client_config(), "--ready-timeout", "0.5") as daemon:
        systemd.wait("READY=1")
        daemon.wait_for_log(r"not up within 0\.5 s: tun0 is connecting; reporting ready in any case")
        daemon.stop(PATIENCE_S)


def capabilities(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return {name: int(value, 16) for name, value in re.findall(r"(?m)^(Cap\w+|NoNewPrivs):\s+([0-9a-f]+)$", text)}


def test_root_gives_up_what_it_does_not_need(lab: Lab) -> None:
    server, client = cable(lab)
    with running(server, server_config()) as daemon, running(client, client_config(), until=UPLOADING):
        has = capabilities(daemon.pid)
        assert has["CapEff"] == has["CapPrm"] == NET_ADMIN | DAC_READ_SEARCH
        assert has["CapInh"] == has["CapAmb"] == 0
        assert has["NoNewPrivs"] == 1
        assert ping(client, TUNNEL_SERVER).ok


def test_a_user_with_cap_net_admin_and_nothing_else(lab: Lab) -> None:
    """As systemd's User= and AmbientCapabilities= start it."""
    server, client = cable(lab)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    ours = [
        *as_nobody,
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
    ]
    config = server.tmp / "nobody.json"
    config.write_text(json.dumps([server_config()]), encoding="utf-8")
    config.chmod(0o600)
    os.chown(config, NOBODY, NOBODY)
    for directory in (config.parent, *config.parent.parents):  # which only root may enter
        if directory.stat().st_uid == 0 and str(directory).startswith("/tmp/"):
            directory.chmod(stat.S_IMODE(directory.stat().st_mode) | 0o055)
    # By default everybody may open it; on some machines nobody but root.
    server.run(["mknod", "-m", "666", server.tmp / "tun", "c", "10", "200"])
    server.run(["mount", "--bind", server.tmp / "tun", "/dev/net/tun"])
    plain = [command()[0], "-m", "tapotun_trio"]  # it may write no coverage
    with server.start([*ours, *plain, config], name="tapotun", cwd=ROOT) as daemon:
        daemon.wait_for_log("started: ")
        assert capabilities(daemon.pid)["CapEff"] == NET_ADMIN
        with running(client, client_config(), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok
        # Another user's, and believed: it has been given what an interface takes. Root starts it once more.
        second = server.run([*plain, config], check=False, env={"PYTHONPATH": str(ROOT)})
        assert second.returncode == 1
        assert "tun0: the name is taken: process " in second.stderr
        assert str(config) in second.stderr
        assert daemon.stop(PATIENCE_S) == 0
    assert "tun0" not in interfaces(server)
    refused = server.run([*as_nobody, "--inh-caps=-all", "--ambient-caps=-all", *plain, str(config)], check=False)
    assert refused.returncode == 1
    assert "lacks CAP_NET_ADMIN; run as root, or under systemd with AmbientCapabilities=CAP_NET_ADMIN" in refused.stderr
    assert CLIENT not in refused.stderr


def test_the_unit_is_one_that_systemd_understands(lab: Lab) -> None:
    """As far as can be told without it running; and how hardened it is (0 is safest, 10 is not at all)."""
    host = lab.host("machine")
    unit = host.tmp / "tapotun@office.service"
    text = (ROOT / "conf" / "systemd" / "tapotun@.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/usr/bin/tapotun", "/bin/true"), encoding="utf-8")
    verified = host.run(["systemd-analyze", "verify", "--man=no", unit], timeout=PATIENCE_S)
    assert [it for it in (verified.stdout + verified.stderr).splitlines() if "tapotun" in it] == []
    judged = host.run(["systemd-analyze", "security", "--offline=true", unit], check=False, timeout=PATIENCE_S)
    score = re.search(r"Overall exposure level for tapotun@office\.service: (\d+\.\d)", judged.stdout)
    assert score is not None, judged.stdout + judged.stderr
    assert float(score[1]) <= 2.0
    assert f"gives it {score[1]} " in (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def filtered(text: str) -> set[str]:
    """The system calls that a unit's SystemCallFilter lets through, as systemd-analyze expands its groups."""

    def expanded(names: list[str]) -> set[str]:
        found = set[str]()
        for name in names:
            if not name.startswith("@"):
                found.add(name)
                continue
            said = subprocess.run(
                ["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True
            )
            words = [line.strip() for line in said.stdout.splitlines()[1:]]
            found |= expanded([word for word in words if word and not word.startswith("#")])
        return found

    passed = set[str]()
    for value in re.findall(r"(?m)^SystemCallFilter=(.+)$", text):
        if value.startswith("~"):
            passed -= expanded(value[1:].split())
        else:
            passed |= expanded(value.split())
    return passed


def test_the_unit_lets_every_system_call_through_that_is_made(lab: Lab) -> None:
    """In a whole life: addresses, a rule, traffic, a reload, a disconnect, the end."""
    server, client = cable(lab)
    config = server.tmp / "hub.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps([server_config(mark={"value": 7, "table": 7})]), encoding="utf-8")
    traces = server.tmp / "traces"
    # Not by `command`: what measures coverage makes calls of its own. With -D the process is the program, not strace.
    ours: list[str | os.PathLike[str]] = [command()[0], "-m", "tapotun_trio", config]
    traced = ["strace", "-D", "-f", "--signal=none", "-o", traces, *ours]
    with server.start(traced, name="strace", cwd=ROOT) as daemon:
        daemon.wait_for_log("started: ", PATIENCE_S)
        with running(client, client_config(), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok
            config.write_text(json.dumps([server_config(mtu=1400)]), encoding="utf-8")
            for verb in (["reload"], ["status"], ["disconnect", "laptop"]):
                server.run([*command(), *verb], timeout=PATIENCE_S)
        assert daemon.stop(PATIENCE_S) == 0
        until(
            lambda: re.search(r"\+\+\+ exited with 0 \+\+\+\n\Z", traces.read_text("utf-8", "replace")),
            "strace",
            daemon.tail,
        )
    made = set(re.findall(r"(?m)^\d+ +([a-z_0-9]+)\(", traces.read_text("utf-8", "replace")))
    assert {"capset", "sendmsg", "ioctl"} <= made
    text = (ROOT / "conf" / "systemd" / "tapotun@.service").read_text(encoding="utf-8")
    assert made - filtered(text) == set()


LEFT_DOWN: Final = (1, 2)
STARTED_AGAIN: Final = (0, 3, 75, 143)


class Ending:
    """In place of the program, one that ends with the code that it finds, and else rests until it is told to end."""

    def __init__(self, service: Service) -> None:
        tmp = service.host.tmp
        self.code, self.ended, self.rested = tmp / "code", tmp / "ended", tmp / "rested"
        for file in (self.code, self.ended, self.rested):
            file.touch()
        script = f'read code <{self.code} && : >{self.code} && echo >>{self.ended} && exit "$code"\n'
        script += f"echo >>{self.rested}\nexec sleep 1000\n"
        (tmp / "bin" / "tapotun").write_text(f"#!/bin/sh\n{script}", encoding="utf-8")

    def end_next_with(self, code: int) -> None:
        """The next start."""
        self.code.write_text(f"{code}\n", encoding="ascii")

    def has_ended(self, times: int) -> bool:
        return len(self.ended.read_text(encoding="ascii")) >= times

    def has_rested(self, times: int) -> bool:
        return len(self.rested.read_text(encoding="ascii")) >= times


@pytest.mark.parametrize("manager", ["s6", "runit"])
def test_what_each_exit_code_does(lab: Lab, manager: str) -> None:
    host = lab.host("machine")
    service = Service(host, manager)
    ending = Ending(service)
    if manager == "s6":
        scan, restart, start = ["s6-svscan"], ("s6-svc", "-r"), ("s6-svc", "-u")
    else:
        scan, restart, start = ["runsvdir", "-P"], ("sv", "term"), ("sv", "up")

    def is_left_down() -> bool:
        if manager == "s6":
            said = service.ask("s6-svstat", "-o", "up,wantedup", service.directory, check=False).stdout
            return said.split() == ["false", "false"]
        return bool(re.match("down: (?!.*want up)", service.ask("sv", "status", service.directory, check=False).stdout))

    with host.start([*scan, service.directory.parent], env=service.env) as daemon:
        for number, code in enumerate((*STARTED_AGAIN, *LEFT_DOWN), 1):
            wait_until(partial(ending.has_rested, number), PATIENCE_S, f"it to run, before {code}", daemon.tail)
            ending.end_next_with(code)
            service.ask(*restart, service.directory)
            wait_until(partial(ending.has_ended, number), PATIENCE_S, f"the end with {code}", daemon.tail)
            if code in LEFT_DOWN:
                until(is_left_down, f"it to stay down after {code}", daemon.tail)
                assert not ending.has_rested(number + 1)
                service.ask(*start, service.directory)
        wait_until(partial(ending.has_rested, number + 1), PATIENCE_S, "it to run, in the end", daemon.tail)
        if manager == "runit":
            daemon.signal(signal.SIGHUP)
            assert daemon.wait(PATIENCE_S) == 111
        else:
            daemon.stop(PATIENCE_S)
