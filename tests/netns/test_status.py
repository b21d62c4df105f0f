"""tapotun status, wait and disconnect against real daemons, with traffic."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from tests.harness import Host, Lab, Process, command, nginx_proxy, ping, wait_for_ping, wait_until

from .topologies import (
    CLIENT,
    SERVER,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    allowed,
    cable,
    client_config,
    flood,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 30.0
NOBODY: Final = 65534

Status: TypeAlias = dict[str, Any]


def ask(host: Host, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """``tapotun ARGV`` on a host."""
    return host.run([*command(), *argv], check=check, timeout=PATIENCE_S + 30)


def peer(host: Host, *argv: str) -> Status:
    """The only peer of the only interface of the only process that is shown."""
    [process] = json.loads(ask(host, "status", "--json", *argv).stdout)["processes"]
    [interface] = process["interfaces"]
    [found] = interface["peers"]
    assert isinstance(found, dict)
    return found


def until(host: Host, holds: Callable[[Status], bool]) -> Status:
    """The peer as soon as that holds."""

    def look() -> Status | None:
        found = peer(host)
        return found if holds(found) else None

    return wait_until(look, PATIENCE_S, "that status", lambda: ask(host, "status").stdout)


def sockets(host: Host, directory: str = "/run/tapotun") -> list[str]:
    """The names of what is in there."""
    return host.run(["ls", "-A", directory], check=False).stdout.split()


def test_numbers_move_while_traffic_flows(lab: Lab) -> None:
    server, client = cable(lab)
    with (
        running(server, server_config(keepalive=1), "--name", "hub"),
        running(client, client_config(), until=UPLOADING),
    ):
        for host in (server, client):
            assert ask(host, "wait", "--timeout", str(PATIENCE_S)).returncode == 0
        wait_for_ping(client, TUNNEL_SERVER)
        first = peer(server, "tun0", "--name", "hub")
        assert first["state"] == "connected"
        assert re.fullmatch(rf"{re.escape(CLIENT)}:\d+", first["endpoint"])
        assert first["addresses"] == [TUNNEL_CLIENT]
        assert first["agent"].startswith("tapotun-trio/")
        assert first["rx_packets"] > 0
        assert (first["tls"], first["encrypted"]) == (None, False)
        with flood(client, TUNNEL_SERVER):
            until(server, lambda it: it["rx_bytes"] > first["rx_bytes"] + 1_000_000)
            until(server, lambda it: it["rates"]["rx_bits_per_s"] > 1_000_000)
            busy = until(client, lambda it: it["rates"]["tx_bits_per_s"] > 1_000_000)
        assert busy["name"] == busy["endpoint"] == f"{SERVER}:8080"
        assert (busy["tls"], busy["encrypted"]) == (None, False)
        for host in (server, client):
            rtt = until(host, lambda it: it["rtt"]["last_ms"] is not None)["rtt"]
            assert 0 < rtt["min_ms"] <= rtt["smoothed_ms"]
            until(host, lambda it: it["rates"] == {"rx_bits_per_s": 0.0, "tx_bits_per_s": 0.0})
        page = ask(server, "status").stdout
        assert re.search(r"^tapotun \S+ hub, pid \d+, up for ", page)
        assert re.search(r"^    endpoint:   192\.0\.2\.2:\d+ over HTTP, tapotun-trio/", page, re.M)
        assert "not encrypted" in " ".join(page.split())
        assert re.search(r"^    round trip: [\d.]+ ms, ", page, re.M)
        assert max(map(len, page.splitlines())) <= 80


def test_wait_and_disconnect(lab: Lab) -> None:
    server, client = cable(lab)
    with running(client, client_config(), until=None) as client_daemon:
        early = ask(client, "wait", "--timeout", "1", check=False)
        assert (early.returncode, early.stdout) == (3, "")
        assert early.stderr.startswith("tapotun: not up within 1 s: ")
        with running(server, server_config()) as server_daemon:
            ask(client, "wait", "tun0", "--timeout", str(PATIENCE_S))
            assert ping(client, TUNNEL_SERVER).ok
            done = ask(server, "disconnect", "tun0", "laptop")
            assert "it may reconnect" in done.stdout
            server_daemon.wait_for_log("tun0 laptop: disconnected by the operator", PATIENCE_S)
            client_daemon.wait_for_log("the server ends the session: disconnected by the operator", PATIENCE_S)
            until(server, lambda it: it["reconnects"] == 1 and it["state"] == "connected")
            wait_for_ping(client, TUNNEL_SERVER)
            unknown = ask(server, "disconnect", "desktop", check=False)
            assert (unknown.returncode, unknown.stdout) == (1, "")
            assert unknown.stderr == "tapotun: there is no client desktop here; the servers have laptop\n"
        assert until(client, lambda it: it["state"] != "connected")["connected_since"] is None


def test_the_socket_is_ours_alone_and_goes_with_the_process(lab: Lab) -> None:
    server, _ = cable(lab)
    with running(server, server_config(), "--name", "hub") as daemon:
        assert sockets(server) == ["hub.sock"]
        mode = (server_root(daemon) / "run" / "tapotun" / "hub.sock").stat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
        refused = server.run([*as_nobody, *command(), "status"], check=False)
        assert refused.returncode == 1
        assert "permission denied; ask as root" in refused.stderr
        other = server_config(allowed("laptop", "10.20.0.2"), name="tun1", net="10.20.0.1/24", port=8081)
        with running(server, other, "--name", "hub") as second:
            assert "no control socket, so tapotun status will not see this process" in second.log
            assert "another process of this name runs" in second.log
        daemon.signal(signal.SIGKILL)
        wait_until(lambda: not daemon.running, PATIENCE_S, "its end", daemon.tail)
        daemon.wait()
        assert sockets(server) == ["hub.sock"]
        assert ask(server, "status", check=False).returncode == 1
    with running(server, server_config(), "--name", "next"):
        assert sockets(server) == ["next.sock"]
        assert ask(server, "status").returncode == 0
    assert sockets(server) == []


def server_root(daemon: Process) -> Path:
    """The root directory as a daemon sees it."""
    return Path(f"/proc/{daemon.pid}/root")


def test_an_ordinary_user(lab: Lab) -> None:
    """With CAP_NET_ADMIN it has a tunnel; it may not write to /run, but into a runtime directory of its own if it has
    one."""
    server, _ = cable(lab)
    # Where this machine's is not 0666, as it is by default.
    server.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/dev/net"])
    server.run(["mknod", "-m", "666", "/dev/net/tun", "c", "10", "200"])
    rights = "+net_admin,+dac_read_search"  # the second for this checkout, which may be root's alone
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Not by `command`: nobody may write no coverage data.
    user += [f"--inh-caps={rights}", f"--ambient-caps={rights}", sys.executable, "-m", "tapotun_trio"]
    config = server.tmp / "config.json"
    config.write_text(json.dumps([server_config()]))
    bare = {"XDG_RUNTIME_DIR": "", "RUNTIME_DIRECTORY": ""}
    with server.start([*user, config], name="tapotun-bare", env=bare, cwd=ROOT) as daemon:
        daemon.wait_for_log("started: ", PATIENCE_S)
        assert "WARNING no control socket, so tapotun status will not see this process: /run/tapotun" in daemon.log
        assert daemon.stop(STOP_S) == 0
    runtime = server.tmp / "runtime"
    runtime.mkdir()
    os.chown(runtime, NOBODY, NOBODY)
    with_one = {**bare, "XDG_RUNTIME_DIR": str(runtime)}
    with server.start([*user, config], name="tapotun-user", env=with_one, cwd=ROOT) as daemon:
        daemon.wait_for_log("started: ", PATIENCE_S)
        assert "no control socket" not in daemon.log
        shown = server.run([*user, "status"], env=with_one)
        assert "interface: tun0" in shown.stdout.splitlines()
        assert stat.S_IMODE((runtime / "tapotun").stat().st_mode) == 0o700
        assert daemon.stop(STOP_S) == 0
    assert list(runtime.iterdir()) == []


def test_what_a_server_behind_a_proxy_tells(lab: Lab) -> None:
    """Strangers are counted, and nothing of a token is told."""
    server, client = cable(lab)
    config = {**server_config(allowed("laptop")), "listen": "127.0.0.1"}
    with (
        running(server, config),
        nginx_proxy(server, "127.0.0.1:8080"),
        running(client, client_config(server=f"http://{SERVER}/ip"), until=UPLOADING),
    ):
        client.run(["curl", "-s", "-H", "x-api-key: wrong", f"http://{SERVER}/ip"])
        ask(client, "wait", "--timeout", str(PATIENCE_S))
        assert until(server, lambda it: it["state"] == "connected")["endpoint"] is not None
        for host in (server, client):
            said = ask(host, "status", "--json").stdout + ask(host, "status").stdout
            assert token("laptop") not in said
            assert allowed("laptop")["token"] not in said
        [process] = json.loads(ask(server, "status", "--json").stdout)["processes"]
        assert process["interfaces"][0]["refusals"] == {"bad-token": 1}
