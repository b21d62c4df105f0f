"""A second start of an interface: the process that has it does not notice, and the second one says who that is."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, Process, command, no_leaks, ping, tapotun, wait_for_ping, wait_until
from tests.integrity import CheckedUdp

from .test_supervision import Service
from .topologies import (
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    cable,
    client_config,
    has_interface,
    running,
    server_config,
    tunnel,
)

pytestmark = pytest.mark.netns

REFUSED_S: Final = 15.0  # it waits for two seconds, and a start takes some here
NOBODY: Final = 65534
DOUBT: Final = "a second start is noticed only once the tunnel is up"

# Takes the name of an interface as the program does, and answers nobody. A mighty one has CAP_NET_ADMIN and has given
# up gaining more, as the program has, but in a user namespace of its own: anybody may have that.
_SQUATTER: Final = f"""\
import ctypes, socket, sys, time
if sys.argv[2:] == ["mighty"]:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x10000000) == 0
    with open("/proc/self/uid_map", "w") as file:
        file.write("0 {NOBODY} 1")
    assert libc.prctl(38, 1, 0, 0, 0) == 0
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind("\\0tapotun-trio/interface/" + sys.argv[1])
sock.listen()
print("has it", flush=True)
time.sleep(1000)
"""


def pid_inside(process: Process) -> int:
    """As the processes of its host see it."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def config_of(process: Process) -> str:
    """The file that it was started with."""
    return Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")[-1].decode()


def refused(host: Host, config: Config | str, *options: str) -> str:
    """Start it once more. Its log; it ends with 1, by itself."""
    second = tapotun(host, config if isinstance(config, str) else [config], *options, name="tapotun-second")
    assert second.wait(REFUSED_S) == 1, second.tail()
    second.close()
    assert "Traceback" not in second.log
    return second.log


@contextmanager
def undisturbed(server: Host, client: Host) -> Iterator[None]:
    """A checked stream through the tunnel loses nothing meanwhile."""
    with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=200, size=600) as udp:
        udp.wait_for_flow()
        yield
        ways = udp.finish()
    for way in ways:
        assert way.faultless, way


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_second_start(lab: Lab, side: str) -> None:
    """With the same file, and with another one whose interface has the same name."""
    with tunnel(lab) as it:
        host, first = (it.client, it.client_daemon) if side == "client" else (it.server, it.server_daemon)
        other = client_config() if side == "client" else server_config(port=8081, net="10.11.0.1/24", clients=[])
        wait_for_ping(it.client, TUNNEL_SERVER)  # so the server has both streams, whose descriptors count
        mark = it.client_daemon.log_end
        with no_leaks(it.server, it.client, fds_of=[first]), undisturbed(it.server, it.client):
            for config in (config_of(first), other):
                log = refused(host, config)
                assert f"ERROR   tun0: the name is taken: process {pid_inside(first)} (" in log
                assert f"config {config_of(first)}" in log
        assert ping(it.client, TUNNEL_SERVER).ok
        assert "another machine" not in it.client_daemon.log
        assert "restarting in" not in it.client_daemon.log[mark:]


def test_a_config_with_an_admin_listener(lab: Lab) -> None:
    """Its port is in use too, and says less."""
    server, _ = cable(lab)
    file = server.tmp / "admin.json"
    file.touch(mode=0o600)
    admin = {"listen": 9116}
    file.write_text(json.dumps({"interfaces": [server_config()], "admin": admin}), encoding="utf-8")
    with running(server, str(file)) as first:
        log = refused(server, str(file))
        assert "admin: cannot listen on 127.0.0.1:9116: the port is in use" in log
        assert f"tun0: the name is taken: process {pid_inside(first)} (" in log
        assert f"config {file}" in log
        following = tapotun(server, str(file), name="tapotun-next")
        first.signal(signal.SIGTERM)
        following.wait_for_log("started: ")
        assert first.wait(STOP_S) == 0
        assert following.stop(STOP_S) == 0, following.tail()


def test_while_the_first_does_not_reach_its_server(lab: Lab) -> None:
    """It has no interface yet, and has the name all the same; also while it is suspended."""
    _, client = cable(lab)
    with running(client, client_config()) as first:
        assert not has_interface(client, "tun0")
        text = f"tun0: the name is taken: process {pid_inside(first)} ("
        log = refused(client, client_config())
        assert text in log
        assert f"config {config_of(first)}" in log
        first.pause()
        try:
            assert text in refused(client, client_config())
        finally:
            first.resume()
        answer = client.run([*command(), "doctor", config_of(first)], check=False).stdout
        assert f"process {pid_inside(first)} (" in answer
        assert "runs an interface tun0 already" in answer


def test_each_namespace_has_its_own(lab: Lab) -> None:
    """Server and client on two machines, each with a tun0, and a third one with the client's config."""
    with tunnel(lab) as it:
        third = lab.host("third")
        with running(third, client_config()):
            assert ping(it.client, TUNNEL_SERVER).ok


def test_killed_and_started_at_once(lab: Lab) -> None:
    with tunnel(lab) as it:
        for _ in range(3):
            it.client_daemon.kill()
            with running(it.client, client_config(), until=UPLOADING, name="tapotun-next"):
                wait_for_ping(it.client, TUNNEL_SERVER, timeout=5)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_start_while_the_last_one_ends(lab: Lab, side: str) -> None:
    """A manager that starts the next one without waiting: it has the name a moment later."""
    with tunnel(lab) as it:
        host, last = (it.client, it.client_daemon) if side == "client" else (it.server, it.server_daemon)
        following = tapotun(host, config_of(last), name="tapotun-next")
        last.signal(signal.SIGTERM)
        following.wait_for_log("started: ")
        wait_for_ping(it.client, TUNNEL_SERVER, timeout=20)
        assert last.wait(STOP_S) == 0
        assert following.stop(STOP_S) == 0, following.tail()


def _tun(host: Host) -> None:
    host.ip("tuntap add dev tun0 mode tun")


def _bridge(host: Host) -> None:
    host.ip("link add tun0 type bridge")


def _alternative(host: Host) -> None:
    host.ip("link property add dev eth0 altname tun0")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_tun, "by another process or by a persistent device; stop that process, `ip link delete tun0`"),
        (_bridge, "by an interface of kind bridge"),
        (_alternative, "by an interface of kind veth"),
    ],
    ids=["persistent tun", "bridge", "alternative name"],
)
def test_an_interface_that_is_there(lab: Lab, make: Callable[[Host], None], words: str) -> None:
    """It is found before the first connection: the server hears nothing."""
    server, client = cable(lab)
    make(client)
    with running(server, server_config(), "--log-level", "debug") as daemon, no_leaks(server, client):
        mark = daemon.log_end
        log = refused(client, client_config())
        assert "ERROR   tun0: cannot create interface tun0: the name is taken, " in log
        assert words in log
        assert daemon.log[mark:] == ""


def test_an_interface_that_comes_while_the_client_runs(lab: Lab) -> None:
    """Before its first answer: it does not connect until that is gone."""
    server, client = cable(lab)
    with running(client, client_config()) as daemon:
        client.ip("tuntap add dev tun0 mode tun")
        daemon.wait_for_log("ERROR   tun0: cannot create interface tun0: the name is taken", 30)
        with running(server, server_config(), "--log-level", "debug") as hub:
            mark = hub.log_end
            after = daemon.log_end
            for _ in range(2):
                daemon.wait_for_log("tun0: restarting in", 30, after=after)
                after = daemon.log_end
            assert hub.log[mark:] == ""
            client.ip("link del tun0")
            daemon.wait_for_log(UPLOADING, 60)
            wait_for_ping(client, TUNNEL_SERVER, timeout=5)


@pytest.mark.parametrize("mighty", [False, True])
def test_a_stranger_has_the_name(lab: Lab, mighty: bool) -> None:
    """Any user may take it. That keeps nobody from starting, and a tunnel that is up is safe from a second start."""
    server, client = cable(lab)
    argv = [
        "setpriv",
        f"--reuid={NOBODY}",
        "--clear-groups",
        "--inh-caps=-all",
        sys.executable,
        "-c",
        _SQUATTER,
        "tun0",
    ]
    with running(server, server_config()), client.start([*argv, *(["mighty"] if mighty else [])]) as thief:
        thief.wait_for_log("^has it$")
        status = Path(f"/proc/{thief.pid}/status").read_text("ascii")
        effective = re.search(r"^CapEff:\t(\w+)$", status, re.MULTILINE)
        assert effective is not None
        assert bool(int(effective[1], 16)) == mighty
        who = f"the name tun0 is reserved by process {pid_inside(thief)} of user {NOBODY}"
        with running(client, client_config(), until=UPLOADING) as first:
            assert who in first.log
            assert DOUBT in first.log
            with undisturbed(server, client):
                log = refused(client, client_config())
                assert "tun0: cannot create interface tun0: the name is taken" in log
                assert who in log
            answer = client.run([*command(), "doctor", config_of(first)], check=False).stdout
            assert f"WARNING routes       process {pid_inside(thief)} of user {NOBODY}" in answer


def test_a_user_namespace_without_run(lab: Lab) -> None:
    """As root of a user namespace, whose network is new and whose /run cannot be written to."""
    client = lab.host("client")
    file = client.tmp / "client.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([client_config()]), encoding="utf-8")
    script = (
        f"mount -t tmpfs -o ro tmpfs /run && ip link set lo up && cd / || exit 9\n"
        f"{' '.join(command())} {file} & first=$!\n"
        f"for i in $(seq 100); do grep -q tapotun-trio/interface/tun0 /proc/net/unix && break; sleep 0.1; done\n"
        f"{' '.join(command())} {file}; echo code $?\n"
        f"kill $first; wait $first; echo first $?\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    answer = client.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script],
        timeout=60,
        env={"PYTHONPATH": root},
    )
    assert re.search(r"tun0: the name is taken: process \d+ \(.*config " + re.escape(str(file)), answer.stderr), answer
    assert DOUBT not in answer.stderr
    assert answer.stdout.splitlines() == ["code 1", "first 0"], answer


def test_a_reload_that_wants_another_process_s_name(lab: Lab) -> None:
    """All of it is refused, and nothing is stopped for it."""
    with tunnel(lab) as it:
        other = it.server.tmp / "other.json"
        entry = partial(server_config, allowed("b", "10.11.0.2"), port=8081, net="10.11.0.1/24")

        def write(*entries: dict[str, Any]) -> None:
            other.touch(mode=0o600)
            other.write_text(json.dumps(entries), encoding="utf-8")

        write(entry(name="tun1"))
        with running(it.server, str(other), "--name", "other", name="tapotun-other") as daemon:
            write(
                entry(name="tun1", port=8082),  # which would start again
                server_config(allowed("c", "10.12.0.2"), name="tun0", port=8083, net="10.12.0.1/24"),
            )
            with no_leaks(it.server, fds_of=[daemon]), undisturbed(it.server, it.client):
                answer = it.server.run([*command(), "reload", "--name", "other"], check=False, timeout=30)
                assert answer.returncode == 1
                assert f"tun0: the name is taken: process {pid_inside(it.server_daemon)} (" in answer.stderr
                assert f"config {config_of(it.server_daemon)}" in answer.stderr
            assert "tun1: stopp" not in daemon.log
            assert len(re.findall("tun1: listening", daemon.log)) == 1


def test_s6_restarts_a_client(lab: Lab) -> None:
    """Killed, and told to start again: it is up each time, since its name is free as soon as it is gone."""
    server, client = cable(lab)
    service = Service(client, "s6", client_config())
    with (
        running(server, server_config()),
        client.start(["s6-svscan", service.directory.parent], env=service.env) as scan,
    ):
        service.wait_for_log(UPLOADING)
        for number, how in enumerate(("-k", "-r", "-k"), start=2):
            service.ask("s6-svc", how, service.directory)
            service.wait_for_log(UPLOADING, number)
            wait_until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, 20, "the tunnel", scan.tail)
        assert "the name is taken" not in service.log()
        service.ask("s6-svc", "-wD", "-T", "30000", "-d", service.directory)
        scan.stop(30)


def test_runit_restarts_a_client(lab: Lab) -> None:
    server, client = cable(lab)
    service = Service(client, "runit", client_config())
    with (
        running(server, server_config()),
        client.start(["runsvdir", "-P", service.directory.parent], env=service.env) as scan,
    ):
        service.wait_for_log(UPLOADING)
        for number, how in enumerate(("kill", "restart", "kill"), start=2):
            service.ask("sv", "-w", "30", how, service.directory, check=how != "kill")
            service.wait_for_log(UPLOADING, number)
            wait_until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, 20, "the tunnel", scan.tail)
        assert "the name is taken" not in service.log()
        service.ask("sv", "-w", "30", "stop", service.directory)
        assert scan.stop(30, with_signal=signal.SIGHUP) == 111
