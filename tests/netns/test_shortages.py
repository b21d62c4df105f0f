"""A machine that lacks something for a while: the interface, its routes and its streams stay, and one line says why."""

from __future__ import annotations

import json
import resource
import signal
from typing import Final

import pytest

from tests.harness import Host, Lab, Process, command, no_leaks, ping, wait_until

from .injection import injected
from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, cable, client_config, index, routes, running, server_config

pytestmark = pytest.mark.netns

FEW: Final = 4  # less than are open: those stay, and there are no others
ROTATE_S: Final = [1, 2]
PATIENCE_S: Final = 60.0


def warnings(daemon: Process) -> list[str]:
    return [line for line in daemon.log.splitlines() if " WARNING " in line or " ERROR " in line]


def limit(daemon: Process, soft: int) -> None:
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))


def ends(host: Host) -> dict[str, int]:
    """Of the client's streams, by reason."""
    (process,) = json.loads(host.run([*command(), "status", "--json"]).stdout)["processes"]
    found: dict[str, int] = process["interfaces"][0]["peers"][0]["stream_ends"]
    return found


@pytest.mark.parametrize("name", [SERVER, "vpn.example.com"])
def test_a_client_without_descriptors_at_rotations(lab: Lab, name: str) -> None:
    """An address, and a name: to resolve that takes a descriptor and a thread."""
    server, client = cable(lab)
    config = client_config(server=f"http://{name}:8080/ip", rotate_s=ROTATE_S)
    with (
        running(server, server_config(push_routes=["10.99.0.0/16"])),
        no_leaks(client),
        running(client, config, "--log-level", "debug", until=UPLOADING) as daemon,
    ):
        wait_until(lambda: len(routes(client)) >= 2, PATIENCE_S, "the pushed route", daemon.tail)
        before, standing = index(client, "tun0"), routes(client)
        (_, hard), end = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE), daemon.log_end
        limit(daemon, FEW)
        for _ in range(4):
            daemon.wait_for_log(r"trying again in", PATIENCE_S, after=end)
            end = daemon.log_end
            assert ping(client, TUNNEL_SERVER).ok
        assert (index(client, "tun0"), routes(client)) == (before, standing)
        (line,) = warnings(daemon)
        assert f"RLIMIT_NOFILE is {FEW}: raise LimitNOFILE=" in line
        limit(daemon, hard)
        daemon.wait_for_log("download from", PATIENCE_S, after=daemon.log_end)
        assert ping(client, TUNNEL_SERVER).ok
        assert ends(client).get("no-descriptors", 0) >= 4
        assert ends(client).keys() <= {"no-descriptors"}
        assert (index(client, "tun0"), routes(client)) == (before, standing)
        assert len(warnings(daemon)) == 1


def test_a_client_without_descriptors_at_a_reconnect(lab: Lab) -> None:
    """Nothing runs for a while. The routes stay, so that nothing leaves by another way."""
    server, client = cable(lab)
    with running(server, server_config(push_routes=["10.99.0.0/16"])), running(client, client_config()) as daemon:
        wait_until(lambda: len(routes(client)) >= 2, PATIENCE_S, "the pushed route", daemon.tail)
        before, standing = index(client, "tun0"), routes(client)
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        limit(daemon, FEW)
        end = daemon.log_end
        client.ip("link set eth0 down")
        client.ip("link set eth0 up")
        server_address = f"address replace {SERVER}/24 dev eth0"
        server.ip(server_address)
        daemon.wait_for_log("RLIMIT_NOFILE is", PATIENCE_S, after=end)
        assert index(client, "tun0") == before
        assert standing <= routes(client)
        limit(daemon, hard)
        wait_until(lambda: ping(client, TUNNEL_SERVER).ok, PATIENCE_S, "the tunnel", daemon.tail)
        assert index(client, "tun0") == before


def test_a_server_without_descriptors(lab: Lab) -> None:
    """Who is connected stays so; who comes waits until there are some again."""
    server, client = cable(lab)
    with (
        running(server, server_config()) as daemon,
        running(client, client_config(), until=UPLOADING),
    ):
        before = index(server, "tun0")
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        limit(daemon, FEW)
        with client.socket() as late:
            late.settimeout(PATIENCE_S)
            late.connect((SERVER, 8080))
            late.sendall(b"GET /ip HTTP/1.1\r\nHost: x\r\n\r\n")
            daemon.wait_for_log(f"cannot accept on {SERVER}:8080: .*RLIMIT_NOFILE is {FEW}: raise LimitNOFILE=")
            assert ping(client, TUNNEL_SERVER).ok
            limit(daemon, hard)
            assert late.recv(100).startswith(b"HTTP/1.1 403 ")
        assert ping(client, TUNNEL_SERVER).ok
        assert index(server, "tun0") == before


def test_a_reload_without_descriptors_changes_nothing(lab: Lab) -> None:
    server, _ = cable(lab)
    with running(server, server_config()) as daemon:
        before = index(server, "tun0")
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        limit(daemon, FEW)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("cannot be read: Too many open files.*LimitNOFILE=")
        daemon.wait_for_log("reload: nothing was changed, the old config stays in use")
        limit(daemon, hard)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("reload: the config has not changed")
        assert index(server, "tun0") == before


NO_IPV6: Final = """
import errno, socket

class Socket(socket.socket):
    def __init__(self, family=-1, *args, **kwargs):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super().__init__(family, *args, **kwargs)

socket.socket = Socket
"""


@pytest.mark.parametrize("how", ["no such family", "switched off"])
def test_a_name_with_addresses_of_both_families_where_there_is_no_ipv6(lab: Lab, how: str) -> None:
    server, client = cable(lab)
    client.run(["sh", "-c", f"printf '2001:db8::1 both.test\n{SERVER} both.test\n' >>/etc/hosts"])
    if how == "switched off":
        client.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    else:  # the resolver names the IPv6 address first, as there is one of ours that reaches it
        client.ip("address add 2001:db8::2/64 dev eth0")
    config = client_config(server="http://both.test:8080/ip", rotate_s=ROTATE_S)
    source = NO_IPV6 if how == "no such family" else ""
    with running(server, server_config()), injected(client, [config], source, name="tapotun") as daemon:
        daemon.wait_for_log(UPLOADING)
        before, end = index(client, "tun0"), daemon.log_end
        for _ in range(2):
            daemon.wait_for_log("download from", PATIENCE_S, after=end)
            end = daemon.log_end
        assert ping(client, TUNNEL_SERVER).ok
        assert index(client, "tun0") == before
        assert warnings(daemon) == []


def test_a_daemon_under_nohup_still_reloads_at_a_hangup(lab: Lab) -> None:
    """It outlives its terminal, as nohup promises: a hangup has it read its config again, which ends nothing."""
    server, _ = cable(lab)
    config = server.tmp / "nohup.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps([server_config()]), encoding="utf-8")
    with server.start(["nohup", *command(), config], name="tapotun") as daemon:
        daemon.wait_for_log("started: ")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("reload: the config has not changed")
        daemon.check_running()
