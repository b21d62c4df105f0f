"""A config that is read again while traffic flows: by SIGHUP and by `tapotun reload`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import ROOT, Host, Lab, Process, command, ping, wait_for_ping, wait_until
from tests.integrity import CheckedUdp
from tests.unit.test_early_signals import IMPORTS, LATER_IMPORTS, SITE

from ..twins import FAMILIES, as_ipv6, twin
from .topologies import (
    CLIENT,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    client_config,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
SECOND: Final = "10.10.0.3"
BEHIND: Final = "10.60.0.0/24"


class Hub:
    """A server whose file can be written anew, and two clients' machines.

    Configs and texts are written with IPv4 addresses; with ``version`` 6, all that is inside the tunnel becomes IPv6.
    """

    def __init__(self, lab: Lab, version: int = 4) -> None:
        self.version = version
        self.server, self.first, self.second = (lab.host(name) for name in ("server", "first", "second"))
        lab.link(self.server, f"{SERVER}/24", self.first, f"{CLIENT}/24")
        lab.link(self.server, "198.51.100.1/24", self.second, "198.51.100.2/24")
        self.file = self.server.tmp / "hub.json"
        self.write(self.config())

    def config(self, *clients: Config, **fields: Any) -> Config:
        entries = clients or (allowed("laptop"), allowed("phone", SECOND))
        inside = server_config(*entries, **fields)
        return {**(inside if self.version == 4 else as_ipv6(inside)), "listen": [SERVER, "198.51.100.1"]}

    def __call__(self, text: str) -> str:
        return twin(text, self.version)

    def write(self, *entries: Config) -> None:
        self.file.touch(mode=0o600)
        self.file.write_text(json.dumps(entries), encoding="utf-8")

    def reload(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.server.run([*command(), "reload", *options], check=check, timeout=PATIENCE_S + 30)

    def status(self) -> dict[str, Any]:
        answer = self.server.run([*command(), "status", "--json"], timeout=PATIENCE_S)
        found = json.loads(answer.stdout)["processes"][0]
        assert isinstance(found, dict)
        return found


def entry_of(who: str, server: str = SERVER) -> Config:
    return client_config(who, server=f"http://{server}:8080/ip")


def routes(host: Host, version: int = 4) -> str:
    return host.run(["ip", f"-{version}", "route", "show", "dev", "tun0"]).stdout


def mtu(host: Host) -> int:
    found = re.search(r"mtu (\d+)", host.run(["ip", "link", "show", "tun0"]).stdout)
    assert found is not None
    return int(found[1])


@pytest.mark.usefixtures("each_plane")
@pytest.mark.parametrize("version", FAMILIES)
def test_the_least_is_changed_and_nobody_else_loses_a_packet(lab: Lab, version: int) -> None:
    hub = Hub(lab, version)
    with (
        running(hub.server, hub.file) as daemon,
        running(hub.first, entry_of("laptop"), "--log-level", "debug", until=UPLOADING) as laptop,
        running(hub.second, entry_of("phone", "198.51.100.1"), until=UPLOADING) as phone,
        CheckedUdp(hub.first, hub(TUNNEL_CLIENT), hub.server, hub(TUNNEL_SERVER), rate=500) as udp,
    ):
        udp.wait_for_flow()
        before = laptop.log_end
        # Another client gets routes and another address; a third one comes.
        phone_now = allowed("phone", "10.10.0.30", routes=[BEHIND])
        changed = hub.config(allowed("laptop"), phone_now, allowed("tablet", "10.10.0.4"), ips=["10.10.0.99"])
        hub.write(changed)
        planned = hub.reload("--dry-run").stdout.splitlines()
        assert planned == [
            hub("tun0: ips changed (+10.10.0.99)"),
            hub("tun0 phone: ip, routes changed (ip 10.10.0.3 -> 10.10.0.30, routes +10.60.0.0/24)"),
            "tun0 tablet: added",
        ]
        assert hub(BEHIND) not in routes(hub.server, version)
        assert hub.reload().stdout.splitlines() == planned
        daemon.wait_for_log("reload: done")
        assert hub(BEHIND) in routes(hub.server, version)
        wait_for_ping(hub.second, hub("10.10.0.99"))  # which now has another address, by PARAMS, on its old streams
        assert hub("10.10.0.30") in hub.second.run(["ip", "address", "show", "tun0"]).stdout
        assert "trying again" not in phone.log
        # By a signal: the phone goes, with a word, and does not come back.
        hub.write(hub.config(allowed("laptop"), ips=["10.10.0.99"]))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("reload: tun0 phone: removed")
        phone.wait_for_log("its token is not in the config any more")
        phone.wait_for_log("403")
        assert hub(BEHIND) not in routes(hub.server, version)
        # A further address of the server's goes alone, and a shorter keepalive finds nobody late.
        hub.write(hub.config(allowed("laptop"), keepalive=1))
        last_changes = [hub("tun0: ips changed (-10.10.0.99)"), "tun0: keepalive changed (10 -> 1)"]
        assert hub.reload().stdout.splitlines() == last_changes
        assert hub("10.10.0.99") not in hub.server.run(["ip", "address", "show", "tun0"]).stdout
        udp.wait_for_flow()
        for way in udp.finish():
            assert (way.lost, way.duplicated, way.corrupted) == (0, 0, 0), way
        assert not re.search("download|upload", laptop.log[before:]), laptop.tail()
        last = hub.status()["last_reload"]
        assert last["error"] is None
        assert last["changes"] == last_changes


@pytest.mark.parametrize("version", FAMILIES)
def test_mtu_and_mark_change_at_both_ends(lab: Lab, version: int) -> None:
    hub = Hub(lab, version)
    with running(hub.server, hub.file), running(hub.first, entry_of("laptop"), until=UPLOADING) as laptop:
        before = laptop.log_end
        hub.write(hub.config(mtu=1380, mark={"value": 77, "table": 77}))
        hub.reload()
        assert mtu(hub.server) == 1380
        wait_until(lambda: mtu(hub.first) == 1380, PATIENCE_S, "the client's MTU", laptop.tail)
        assert "fwmark 0x4d lookup 77" in hub.server.run(["ip", f"-{version}", "rule"]).stdout
        hub.write(hub.config())
        hub.reload()
        assert mtu(hub.server) == 1500
        assert "fwmark 0x4d" not in hub.server.run(["ip", f"-{version}", "rule"]).stdout
        assert ping(hub.first, hub(TUNNEL_SERVER)).ok
        assert "trying again" not in laptop.log[before:]


def test_a_client_gets_another_mark_and_loses_no_packet(lab: Lab) -> None:
    hub = Hub(lab)
    file = hub.first.tmp / "client.json"
    file.touch(mode=0o600)

    def reload(**fields: Any) -> subprocess.CompletedProcess[str]:
        file.write_text(json.dumps([{**entry_of("laptop"), **fields}]), encoding="utf-8")
        return hub.first.run([*command(), "reload"], check=False, timeout=PATIENCE_S)

    def rules() -> list[tuple[str, str]]:
        return re.findall(r"fwmark (\S+) lookup (\d+)", hub.first.run(["ip", "rule"]).stdout)

    def pushed(wanted: bool) -> bool:
        return ("10.99" in routes(hub.first)) is wanted

    file.write_text(json.dumps([entry_of("laptop")]), encoding="utf-8")
    with (
        running(hub.server, hub.file),
        running(hub.first, file, until=UPLOADING) as laptop,
        CheckedUdp(hub.first, TUNNEL_CLIENT, hub.server, TUNNEL_SERVER, rate=500) as udp,
    ):
        udp.wait_for_flow()
        before = laptop.log_end
        for value in (77, 78):
            answer = reload(mark={"value": value, "table": value})
            assert answer.returncode == 0
            assert re.fullmatch(rf"tun0: mark changed \(.* -> {value} in table {value}\)\n", answer.stdout)
            assert rules() == [(hex(value), str(value))]
            # What the server changes later goes with it.
            hub.write(hub.config(push_routes=["10.99.0.0/24"] if value == 77 else []))
            hub.reload()
            wait_until(partial(pushed, value == 77), PATIENCE_S, "the routes", laptop.tail)
            assert rules() == [(hex(value), str(value))]
        assert reload().stdout == "tun0: mark changed (78 in table 78 -> none)\n"
        assert rules() == []
        for way in udp.finish():
            assert (way.lost, way.duplicated, way.corrupted) == (0, 0, 0), way
        assert "trying again" not in laptop.log[before:]


def assert_refused(hub: Hub, daemon: Process, laptop: Process, words: str) -> None:
    """The reload was, and everything is as it was."""
    before = laptop.log_end
    answer = hub.reload(check=False)
    assert answer.returncode == 1
    assert "nothing was changed, the old config stays in use" in answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr + daemon.log
    daemon.wait_for_log(re.escape(words))
    assert words in hub.status()["last_reload"]["error"]
    assert ping(hub.first, TUNNEL_SERVER).ok
    assert "trying again" not in laptop.log[before:]


def test_any_error_changes_nothing(lab: Lab) -> None:
    hub = Hub(lab)
    with running(hub.server, hub.file) as daemon, running(hub.first, entry_of("laptop"), until=UPLOADING) as laptop:
        hub.file.write_text("[{]", encoding="utf-8")
        assert_refused(hub, daemon, laptop, "line 1")
        hub.write(hub.config(net="10.10.0.1"))
        assert_refused(hub, daemon, laptop, "[0].net")
        hub.file.unlink()
        assert_refused(hub, daemon, laptop, "cannot be read")
        # The machine refuses the last of several changes: those before it are undone.
        hub.server.ip("route add 10.88.0.0/24 dev lo metric 0 proto static")
        taken = allowed("laptop", routes=["10.88.0.0/24"])
        hub.write(hub.config(taken, allowed("phone", SECOND), mtu=1400))
        assert_refused(hub, daemon, laptop, "10.88.0.0/24")
        assert mtu(hub.server) == 1500
        with hub.server.socket() as busy:
            busy.bind((SERVER, 9090))
            busy.listen()
            more = server_config(allowed("x", "10.30.0.2"), name="tun1", port=9090, net="10.30.0.1/24")
            hub.write(hub.config(allowed("laptop")), more)
            assert_refused(hub, daemon, laptop, "9090")
        assert [it["name"] for it in hub.status()["interfaces"]] == ["tun0"]
        assert len(hub.status()["interfaces"][0]["peers"]) == 2
        assert token("laptop") not in daemon.log


def test_interfaces_come_and_go(lab: Lab) -> None:
    hub = Hub(lab)
    more = server_config(allowed("tablet", "10.30.0.2"), name="tun1", port=9090, net="10.30.0.1/24")
    with running(hub.server, hub.file) as daemon, running(hub.first, entry_of("laptop"), until=UPLOADING) as laptop:
        before = laptop.log_end
        hub.write(hub.config(), more)
        assert hub.reload().stdout == "tun1: added\n"
        extra = client_config("tablet", name="tun1", server=f"http://{SERVER}:9090/ip")
        with running(hub.first, extra, until=UPLOADING):
            assert ping(hub.first, "10.30.0.1").ok
            moved = {**more, "port": 9091}
            hub.write(hub.config(), moved)
            assert hub.reload().stdout == "tun1: listen, port changed, so it starts again\n"
            hub.server.wait_for_listener(9091, by=daemon)
        hub.write(hub.config())
        assert hub.reload().stdout == "tun1: removed\n"
        assert "tun1" not in hub.server.run(["ip", "-o", "link"]).stdout
        assert hub.reload().stdout == "the config has not changed\n"
        assert ping(hub.first, TUNNEL_SERVER).ok
        assert "trying again" not in laptop.log[before:]


def test_a_base_client_is_told_by_connecting_again(lab: Lab) -> None:
    """It knows no PARAMS: its streams end when what it is told changes, and only then."""
    hub = Hub(lab)
    arguments = [f"http://{SERVER}:8080/ip", token("laptop"), "--tun", "tun0", "--generation", "1"]
    with (
        running(hub.server, hub.file) as daemon,
        hub.first.start([sys.executable, "-m", "tests.basepeer", "client", *arguments], cwd=ROOT) as peer,
    ):
        peer.wait_for_log("READY", PATIENCE_S)
        before = daemon.log_end
        hub.write(hub.config(allowed("laptop"), ips=["10.10.0.99"]))
        hub.reload()
        assert ping(hub.first, "10.10.0.99").ok
        assert "connected from" not in daemon.log[before:]
        hub.write(hub.config(allowed("laptop"), mtu=1400))
        hub.reload()
        daemon.wait_for_log(r"laptop: connected from .* \(base\)", PATIENCE_S, after=before)
        peer.stop(PATIENCE_S)


@pytest.mark.parametrize("moment", [*IMPORTS, *LATER_IMPORTS])
def test_a_hangup_while_it_is_being_imported(lab: Lab, moment: str) -> None:
    """Nothing ends. The file may have been read before, so it is read once more."""
    host = lab.host("machine")
    (host.tmp / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    file = host.tmp / "hub.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([server_config(listen="127.0.0.1")]), encoding="utf-8")
    env = {"PYTHONPATH": str(host.tmp), "MOMENT": moment, "SIGNAL": str(int(signal.SIGHUP))}
    with host.start([*command(), file], name="tapotun", env=env, cwd=ROOT) as daemon:
        daemon.wait_for_log("started: tun0", PATIENCE_S)
        daemon.wait_for_log("reload: the config has not changed", PATIENCE_S)
        assert daemon.stop() == 0


FORTY_RELOADS: Final = """
import glob, socket, time
(path,) = glob.glob("/run/tapotun/*.sock")
socks = [socket.socket(socket.AF_UNIX) for _ in range(40)]
for sock in socks:
    sock.connect(path)
    sock.sendall(b'{"command":"reload"}\\n')
print("asked", flush=True)
time.sleep(3600)
"""


def test_forty_reloads_of_a_pipe_leave_no_thread_and_names_resolve(lab: Lab) -> None:
    """A FIFO that nobody writes to replaces the config. The client still resolves its server's name meanwhile."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, f"{SERVER}/24", client, f"{CLIENT}/24")
    client.hosts({"vpn.example.com": SERVER})
    file = client.tmp / "client.json"
    file.touch(mode=0o600)
    config = [client_config(server="http://vpn.example.com:8080/ip")]
    file.write_text(json.dumps(config), encoding="utf-8")
    with running(server, server_config()) as server_daemon, running(client, file, until=UPLOADING) as daemon:
        file.unlink()
        os.mkfifo(file, 0o600)
        threads = Path(f"/proc/{daemon.pid}/task")
        with client.start([sys.executable, "-c", FORTY_RELOADS], name="reloads") as reloads:
            reloads.wait_for_log("asked")
            daemon.wait_for_log("nobody wrote to this pipe within 10 s", PATIENCE_S)
            before = daemon.log_end
            assert client.run([*command(), "status"]).returncode == 0  # also while they wait for each other
            assert server_daemon.stop() == 0
            with running(server, server_config()):
                # The name is resolved again, while the reloads wait for their turns.
                daemon.wait_for_log(UPLOADING, PATIENCE_S, after=before)
                ping(client, TUNNEL_SERVER)
                assert len(list(threads.iterdir())) <= 4
