"""Start, stop, kill, restart: what is there while it runs, and that nothing is there afterwards."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tapotun_trio.host.items import MAIN_METRICS
from tapotun_trio.host.process.signals import STOPS
from tests.harness import (
    ROOT,
    Host,
    Lab,
    capture,
    command,
    nginx_proxy,
    no_leaks,
    ping,
    tapotun,
    udp_echo,
    udp_exchange,
    wait_for_ping,
    wait_until,
)

from ..twins import FAMILIES, twin
from .dual import SERVER_6, dual_cable
from .topologies import (
    CLIENT,
    PROTOCOL,
    RETRY_S,
    SERVER,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    addresses,
    allowed,
    cable,
    client_config,
    flood,
    has_interface,
    index,
    mark_rules,
    mtu,
    routes,
    running,
    server_config,
    token,
    tunnel,
)

pytestmark = pytest.mark.netns

MARK = {"value": 100, "table": 100}
OUR_RULE = [(100, "100", PROTOCOL)]


# Routes that the server pushes


@pytest.mark.parametrize("version", FAMILIES)
def test_a_pushed_route_in_whose_way_another_stands(lab: Lab, version: int) -> None:
    """It costs that route and one line. Everything else works, and the next time that the link comes up it is tried
    again."""
    server, client = dual_cable(lab)
    mine, free = twin("10.60.0.0/24", version), twin("10.61.0.0/24", version)
    far, gateway = twin(TUNNEL_SERVER, version), SERVER if version == 4 else SERVER_6
    client.ip(f"route add {mine} via {gateway} metric {MAIN_METRICS[version]}")
    config = server_config(
        allowed("laptop", twin(TUNNEL_CLIENT, version)),
        net=f"{far}/{24 if version == 4 else 120}",
        push_routes=[mine, free],
    )
    with running(server, config), running(client, client_config()) as daemon:
        wait_for_ping(client, far)
        wait_until(lambda: "continuing without what the server" in daemon.log, 5, "the word about it", daemon.tail)
        [line] = [line for line in daemon.log.splitlines() if "continuing without" in line]
        assert mine in line
        assert "another route of protocol" in line
        assert "remove it" in line
        report = json.loads(client.run([*command(), "status", "--json"]).stdout)
        (server_status,) = report["processes"][0]["interfaces"][0]["peers"]
        assert (server_status["routes"], list(server_status["refused_routes"])) == ([free], [mine])
        assert "another route of protocol" in server_status["refused_routes"][mine]
        daemon.wait_for_log("ready: tun0")
        assert daemon.log.index("started: tun0") < daemon.log.index("upload to") < daemon.log.index("ready: tun0")
        assert devices(client, version) == {mine: ["eth0"], free: ["tun0"]}
        client.ip(f"route del {mine} via {gateway}")
        client.ip("link set tun0 down")
        client.ip("link set tun0 up")
        wait_until(lambda: devices(client, version) == {mine: ["tun0"], free: ["tun0"]}, 10, "both routes", daemon.tail)
        wait_for_ping(client, far)
        assert daemon.log.count("continuing without") == 1
    assert devices(client, version) == {}


def devices(host: Host, version: int) -> dict[str, list[str]]:
    """Of the routes to networks in 10.60.0.0/15, or its twin: where they lead."""
    found: dict[str, list[str]] = {}
    for route in host.ip(f"-{version} route show root {twin('10.60.0.0/15', version)}"):
        found.setdefault(route["dst"], []).append(route["dev"])
    return found


# The end

STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # until SIGCONT


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_leaves_nothing(lab: Lab, number: signal.Signals) -> None:
    server, client = cable(lab)
    fields = {"ips": ["10.10.0.254"], "mark": MARK, "mtu": 1400}
    laptop = allowed("laptop", routes=["10.60.0.0/24"])
    with (
        no_leaks(server, client),
        running(server, server_config(laptop, **fields)) as server_daemon,
        running(client, client_config(mark=MARK), until=UPLOADING) as client_daemon,
    ):
        assert ping(client, TUNNEL_SERVER).ok
        for daemon in (client_daemon, server_daemon):
            assert daemon.stop(STOP_S, with_signal=number) == 0
            assert daemon.log.endswith("INFO    stopped\n")


def test_no_other_signal_ends_it(lab: Lab) -> None:
    """By default each of them would, and leave the rule behind."""
    others = sorted(signal.valid_signals() - {*STOPS, signal.SIGHUP, signal.SIGKILL, *STOPPING})
    with tunnel(lab, mark=MARK) as it:
        for daemon in (it.server_daemon, it.client_daemon):
            for number in others:
                daemon.signal(number)
        assert ping(it.client, TUNNEL_SERVER).ok
        assert it.server_daemon.running
        assert it.client_daemon.running


def test_a_real_fault_still_ends_it(lab: Lab) -> None:
    """The signals of a broken program are held back, but not when the kernel itself sends them."""
    program = "import ctypes\nfrom tapotun_trio.host.process.signals import *\n"
    program += "with shielded_from_signals(0): ctypes.string_at(0)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("stopped", ["server", "client"])
def test_a_stop_under_load(lab: Lab, stopped: str) -> None:
    with tunnel(lab) as it, no_leaks():
        with flood(it.server, TUNNEL_CLIENT), flood(it.client, TUNNEL_SERVER):
            assert {"server": it.server_daemon, "client": it.client_daemon}[stopped].stop(STOP_S) == 0
        assert not has_interface({"server": it.server, "client": it.client}[stopped], "tun0")


@pytest.mark.parametrize("stalled", ["server", "client"])
def test_a_stop_beside_a_peer_that_takes_nothing(lab: Lab, stalled: str) -> None:
    """Its end of the connection is full, so no stream can be ended as it should."""
    with tunnel(lab) as it:
        deaf, other, host, to = {
            "client": (it.client_daemon, it.server_daemon, it.server, TUNNEL_CLIENT),
            "server": (it.server_daemon, it.client_daemon, it.client, TUNNEL_SERVER),
        }[stalled]
        deaf.pause()
        with flood(host, to):
            _wait_for_a_full_connection(host)
            assert other.stop(STOP_S) == 0
        assert not has_interface(host, "tun0")
        deaf.resume()


def _wait_for_a_full_connection(host: Host) -> None:
    """Until the kernel holds bytes for port 8080, or from it, that the far end does not take."""

    def probe() -> bool:
        lines = host.run(["ss", "-Htn", "state", "established", "( sport = 8080 or dport = 8080 )"]).stdout
        return any(int(line.split()[1]) > 100_000 for line in lines.splitlines())

    wait_until(probe, 10, "a full connection")


def test_a_second_signal_forces(lab: Lab) -> None:
    """It ends at once, without the rest of the teardown. The kernel takes the interface; the rule that stays is
    replaced by the next run."""
    with tunnel(lab, mark=MARK) as it:
        it.client_daemon.pause()
        with flood(it.server, TUNNEL_CLIENT):
            _wait_for_a_full_connection(it.server)
            it.server_daemon.signal(signal.SIGTERM)
            it.server_daemon.wait_for_log("a second signal stops at once")
            it.server_daemon.signal(signal.SIGTERM)
            assert it.server_daemon.wait(STOP_S) in (128 + signal.SIGTERM, 0)  # 0: the first was faster
        wait_until(lambda: not has_interface(it.server, "tun0"), STOP_S, "tun0 to go")
        it.client_daemon.resume()


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_two_signals_in_one_moment(lab: Lab, first: signal.Signals, second: signal.Signals) -> None:
    """As a service manager and a Ctrl-C together give them: an orderly end or a forced one, but no traceback."""
    server, _ = cable(lab)
    with no_leaks(server), running(server, server_config(mark=MARK)) as daemon:
        daemon.pause()
        daemon.signal(first)
        daemon.signal(second)
        daemon.resume()
        assert daemon.wait(STOP_S) in (0, 128 + first, 128 + second)


# A client that is not connected, stopped


def _black_hole(host: Host) -> None:
    host.ip("neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")


def _silent_nameserver(host: Host) -> None:
    _black_hole(host)
    file = host.tmp / "resolv.conf"
    file.write_text("nameserver 192.0.2.77\n", encoding="ascii")
    host.run(["mount", "--bind", file, "/etc/resolv.conf"])


UNCONNECTED: dict[str, tuple[str, Callable[[Host], object], str]] = {
    "refused, and waiting for the next try": ("http://192.0.2.1:8080/", lambda host: None, "Connection refused"),
    "no answer to SYN": ("http://192.0.2.77:8080/", _black_hole, "started: "),
    "no answer from the nameserver": ("http://vpn.example.net/", _silent_nameserver, "started: "),
}


@pytest.mark.parametrize("state", UNCONNECTED)
def test_a_client_without_a_connection_stops_at_once(lab: Lab, state: str) -> None:
    url, prepare, sign = UNCONNECTED[state]
    _, client = cable(lab)
    prepare(client)
    with no_leaks(client), running(client, client_config(server=url), until=sign) as daemon:
        wait_until(lambda: daemon.cpu_seconds() > 0, 1, "it to have begun")
        assert daemon.stop(STOP_S) == 0


# Killed, and restarted over the leftovers


def test_killed_and_restarted(lab: Lab) -> None:
    """kill -9 leaves one rule on each side, which the next run replaces, and which is gone after an orderly end."""
    server, client = cable(lab)
    configs = ((server, server_config(mark=MARK), "started: "), (client, client_config(mark=MARK), UPLOADING))
    with no_leaks(server, client):
        killed = [tapotun(host, [config]) for host, config, _ in configs]
        killed[1].wait_for_log(UPLOADING, RETRY_S)
        for process, (host, _, _) in zip(killed, configs, strict=True):
            process.kill()
            wait_until(lambda: not has_interface(host, "tun0"), STOP_S, "tun0 to go")  # noqa: B023
            assert mark_rules(host) == OUR_RULE
        with (
            running(server, configs[0][1]),
            running(client, configs[1][1], until=UPLOADING),
        ):
            for host in (server, client):
                assert mark_rules(host) == OUR_RULE
                assert routes(host, "100") == {("default", "tun0", PROTOCOL)}
            assert ping(client, TUNNEL_SERVER).ok
            assert ping(client, TUNNEL_SERVER, mark=100).ok


def test_a_killed_client_comes_back(lab: Lab) -> None:
    """Several times; and each time the server lets go of what it had for the one before."""
    server, client = cable(lab)
    with running(server, server_config()) as daemon, no_leaks(client, fds_of=[daemon]):
        for _ in range(3):
            with running(client, client_config(), until=UPLOADING) as killed:
                assert ping(client, TUNNEL_SERVER).ok
                assert ping(server, TUNNEL_CLIENT).ok
                killed.kill()


@pytest.mark.parametrize("version", FAMILIES)
def test_a_restarted_server_is_found_again(lab: Lab, version: int) -> None:
    """However long it was away. Its end is clean the first time and none at all the second; then it comes back with
    another MTU, address and prefix for the client, which changes the client's interface but does not replace it.
    ``version``: of what is inside the tunnel."""
    server, client = cable(lab)
    hub, laptop = twin(TUNNEL_SERVER, version), twin(TUNNEL_CLIENT, version)
    net, wider = twin(f"{TUNNEL_SERVER}/24", version), twin(f"{TUNNEL_SERVER}/16", version)
    first = server_config(allowed("laptop", laptop), net=net)
    with (
        running(client, client_config(mark=MARK), until="refused") as daemon,
        capture(client, "eth0", "tcp dst port 8080 and tcp[tcpflags] & tcp-syn != 0") as attempts,
        no_leaks(server),
    ):
        with running(server, first):
            daemon.wait_for_log(UPLOADING, RETRY_S)
            number = index(client, "tun0")
            assert (addresses(client, "tun0", version), mtu(client, "tun0")) == (
                [twin(f"{TUNNEL_CLIENT}/24", version)],
                1500,
            )
            assert ping(client, hub).ok
        attempts.wait_for(attempts.count() + 4, timeout=2 * RETRY_S)
        with running(server, first) as second:
            wait_for_ping(client, hub, RETRY_S)
            second.kill()
        changed = server_config(allowed("laptop", twin("10.10.7.9", version)), net=wider, mtu=1300)
        with running(server, changed):
            wait_for_ping(client, hub, RETRY_S)
            wait_until(lambda: mtu(client, "tun0") == 1300, 5, "the new MTU", daemon.tail)
            assert addresses(client, "tun0", version) == [twin("10.10.7.9/16", version)]
            assert index(client, "tun0") == number
            assert ping(client, hub, size=1272 if version == 4 else 1252, dont_fragment=True).ok
            assert ping(client, hub, mark=100).ok
            assert mark_rules(client, version) == OUR_RULE
            assert routes(client, "100", version) == {("default", "tun0", PROTOCOL)}
            own = {it for it in routes(client, version=version) if it[1] == "tun0" and it[0] != "ff00::/8"}
            assert own == {(twin("10.10.0.0/16", version), "tun0", "2")}


def test_an_interface_that_somebody_deletes_comes_back(lab: Lab) -> None:
    with tunnel(lab) as it:
        for host, daemon in ((it.server, it.server_daemon), (it.client, it.client_daemon)):
            number = index(host, "tun0")
            host.ip("link del tun0")
            daemon.wait_for_log("is gone: another program deleted it")
            wait_until(lambda: has_interface(host, "tun0"), RETRY_S, "another tun0", daemon.tail)  # noqa: B023
            assert index(host, "tun0") != number
        wait_for_ping(it.client, TUNNEL_SERVER, RETRY_S)


# Several in one process


def _branch(**fields: object) -> Config:
    """The other way round: `client` has a server for `server`."""
    return server_config(
        allowed("back", "10.20.0.2"), name="back", net="10.20.0.1/24", port=8082, listen=CLIENT, **fields
    )


def test_servers_and_clients_in_one_file(lab: Lab) -> None:
    """Two servers and a client in one process, another client and a server in the other."""
    server, client = cable(lab)
    guests = server_config(allowed("guest", "10.30.0.2"), name="guests", port=8081, net="10.30.0.1/24")
    back = client_config("back", name="back", server=f"http://{CLIENT}:8082/")
    guest = client_config("guest", name="guests", server=f"http://{SERVER}:8081/any/path?is=fine")
    with (
        no_leaks(server, client),
        running(client, [_branch()]) as _,
        running(server, [server_config(), guests, back], until="started: tun0, guests, back"),
        running(client, [client_config(), guest]) as clients,
    ):
        clients.wait_for_log("tun0: upload to ")
        clients.wait_for_log("guests: upload to ")
        for host, address in (
            (client, TUNNEL_SERVER),
            (server, TUNNEL_CLIENT),
            (client, "10.30.0.1"),
            (server, "10.30.0.2"),
            (client, "10.20.0.2"),
            (server, "10.20.0.1"),
        ):
            wait_for_ping(host, address)


@pytest.mark.parametrize(
    ("verb", "ready"),
    [("run", "tun0, back"), (None, "tun0, back"), ("server", "tun0"), ("client", "back")],
)
def test_verbs_choose_what_runs(lab: Lab, verb: str | None, ready: str) -> None:
    server, _ = cable(lab)
    both = [server_config(), client_config("back", name="back", server=f"http://{CLIENT}:8082/")]
    with no_leaks(server), running(server, both, verb=verb, until=f"started: {ready}$") as daemon:
        assert has_interface(server, "tun0") == ("tun0" in ready)
        # The client tries at once, and nobody is there.
        if "back" in ready:
            daemon.wait_for_log("back: .*refused")
            assert not re.search("ready: .*back", daemon.log)
        else:
            assert "back" not in daemon.log


def test_one_interface_in_trouble_is_no_other_ones(lab: Lab) -> None:
    server, client = cable(lab)
    both = [server_config(), server_config(allowed("x", "10.11.0.2"), name="tun1", net="10.11.0.1/24", port=8081)]
    with running(server, both) as daemon, running(client, client_config(), until=UPLOADING) as peer:
        number = index(server, "tun0")
        server.ip("link del tun1")
        daemon.wait_for_log("tun1: .*restarting in")
        with udp_echo(server, TUNNEL_SERVER) as port:
            assert udp_exchange(client, TUNNEL_SERVER, port, b"undisturbed") == b"undisturbed"
        wait_until(lambda: has_interface(server, "tun1"), RETRY_S, "tun1 again", daemon.tail)
        assert index(server, "tun0") == number
        assert peer.log.count("download from") == 1  # it noticed nothing


# What cannot start


def _no_tun_driver(host: Host) -> None:
    host.run(["mount", "-t", "tmpfs", "none", "/dev/net"])


def _taken_port(host: Host) -> None:
    host.start([sys.executable, "-m", "http.server", "8080", "--bind", SERVER])
    host.wait_for_listener(8080)


# What is prepared, what the config differs in, and what the one line says.
HOPELESS: dict[str, tuple[Callable[[Host], object], Config, str]] = {
    "port taken": (_taken_port, {}, rf"tun0: .*{SERVER}:8080.*in use"),
    "name taken": (lambda host: host.ip("tuntap add dev tun0 mode tun"), {}, r"tun0"),
    "no driver": (_no_tun_driver, {}, r"/dev/net/tun: No such file.*modprobe tun"),
    "misspelt field": (lambda host: None, {"mtuu": 1500}, r"\[0\]\.mtuu.*mtu"),
    "raw token": (lambda host: None, {"clients": [{"token": "test", "ip": TUNNEL_CLIENT}]}, r"clients\[0\]\.token"),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_what_cannot_start_says_why_in_one_line(lab: Lab, case: str) -> None:
    prepare, fields, line = HOPELESS[case]
    server, _ = cable(lab)
    prepare(server)
    with no_leaks(server), running(server, server_config(**fields), until=line) as daemon:
        assert daemon.wait(5) == 1
    errors = [it for it in daemon.log.splitlines() if " INFO " not in it]
    assert len(errors) == 1, daemon.tail()


def test_an_ordinary_user_is_told_what_is_missing(lab: Lab) -> None:
    """The file and the interpreter it may read here, wherever they lie: that is not what this is about."""
    server, _ = cable(lab)
    file = server.tmp / "server.json"
    file.write_text(json.dumps([server_config()]), encoding="ascii")
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading]
    # Not by `command`: nobody may write no coverage data.
    with no_leaks(server):
        done = server.run([*nobody, sys.executable, "-m", "tapotun_trio", file], check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "CAP_NET_ADMIN" in line or "/dev/net/tun: Permission denied" in line  # the latter: not mode 0666 here
    assert "run as root" in line


def test_a_client_whose_interface_name_is_taken_does_not_start(lab: Lab) -> None:
    """It finds that out before it connects, so that nobody's streams are taken over."""
    server, client = cable(lab)
    client.ip("link add tun0 type veth peer name veth9")
    with running(server, server_config()) as hub, tapotun(client, [client_config()]) as daemon:
        assert daemon.wait(RETRY_S) == 1
        assert (
            "ERROR   tun0: cannot create interface tun0: the name is taken, by an interface of kind veth" in daemon.log
        )
        assert "connected from" not in hub.log
        client.ip("link del tun0")
        with running(client, client_config(), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok


def test_wrong_usage(lab: Lab) -> None:
    host = lab.host("host")
    for arguments in ([], ["run"], ["run", "--log-level", "loud", "x.json"], ["validate-config"]):
        done = host.run([*command(), *arguments], check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: tapotun" in done.stderr
    missing = host.run([*command(), "/nowhere/x.json"], check=False)
    assert missing.returncode == 1
    assert len(missing.stderr.splitlines()) == 1


# Odds and ends of a start


def test_a_machine_without_ipv6(lab: Lab) -> None:
    """The default is loopback of both families; where there is only one, that does."""
    server, client = cable(lab)
    for scope in ("all", "default"):
        server.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)
    config = server_config()
    del config["listen"]
    with running(server, config), nginx_proxy(server), no_leaks(client):
        reachable = {it for it in server.listening() if it.startswith("tcp ")}  # the control socket is another matter
        assert reachable == {"tcp 127.0.0.1:8080", "tcp 0.0.0.0:80"}
        with running(client, client_config(server=f"http://{SERVER}/"), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok


def test_ipv6_in_between(lab: Lab) -> None:
    """Two listeners; a client with a literal, and one with a name of which only the IPv4 address answers."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, [f"{SERVER}/24", "2001:db8::1/64"], client, [f"{CLIENT}/24", "2001:db8::2/64"])
    client.hosts({"vpn.example.com": SERVER})
    client.run(["sh", "-c", "echo 2001:db8::77 vpn.example.com >>/etc/hosts"])
    client.ip("-6 neigh add 2001:db8::77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")  # answers nothing
    config = server_config(listen=[SERVER, "2001:db8::1"])
    with no_leaks(server, client), running(server, config):
        for host in ("[2001:db8::1]", "vpn.example.com"):
            with running(client, client_config(server=f"http://{host}:8080/ip"), until=UPLOADING):
                assert ping(client, TUNNEL_SERVER).ok


def test_a_token_from_a_file(lab: Lab) -> None:
    server, client = cable(lab)
    file = client.tmp / "token"
    file.touch(mode=0o600)
    file.write_text(token("laptop") + "\n", encoding="ascii")
    config = client_config(token_file=str(file))
    del config["token"]
    with running(server, server_config()), running(client, config, until=UPLOADING) as daemon:
        assert ping(client, TUNNEL_SERVER).ok
        assert " WARNING " not in daemon.log


def test_a_unix_socket_behind_nginx(lab: Lab) -> None:
    """The file is there while it runs, and one that a killed run has left is no obstacle."""
    server, client = cable(lab)
    path = server.tmp / "tapotun.sock"
    config = server_config(listen=f"unix:{path}")
    del config["port"]
    with nginx_proxy(server, f"unix:{path}"), no_leaks(server, client):
        tapotun(server, [config]).wait_for_log("started: ")
        server.processes[-1].kill()
        assert path.is_socket()
        with (
            running(server, config),
            running(client, client_config(server="http://vpn.example.com/ip"), until=UPLOADING),
        ):
            assert ping(client, TUNNEL_SERVER).ok
            assert not any("8080" in it for it in server.listening())
        assert not path.exists()


def test_the_log_as_json(lab: Lab) -> None:
    server, _ = cable(lab)
    with running(server, server_config(), "--log-format", "json", until='"event": "started: tun0"') as daemon:
        pass
    assert all(line.startswith('{"time": ') for line in daemon.log.splitlines())
