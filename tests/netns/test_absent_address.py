"""Addresses to listen on that come after the start, as they do on machines that boot."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, Process, command, ping, tapotun, wait_until

from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, allowed, cable, client_config, running, server_config, token

pytestmark = pytest.mark.netns

LATER: Final = "198.51.100.7"
LATER6: Final = "2001:db8::7"
PATIENCE_S: Final = 30.0


def url(address: str) -> str:
    return f"http://{f'[{address}]' if ':' in address else address}:8080/ip"


def assert_connects(client: Host, address: str) -> None:
    with running(client, client_config(server=url(address)), until=UPLOADING):
        assert ping(client, TUNNEL_SERVER).ok


def warnings(daemon: Process) -> list[str]:
    return [line for line in daemon.log.splitlines() if " WARNING " in line]


def reachable(server: Host, client: Host, address: str, *, tentative: bool = False) -> None:
    """Give the server the address."""
    if ":" in address:
        server.ip(f"address add {address}/64 dev eth0 {'' if tentative else 'nodad'}".rstrip())
        client.ip("address add 2001:db8::2/64 dev eth0 nodad")
    else:
        server.ip(f"address add {address}/32 dev eth0")
        client.ip(f"route add {address} dev eth0")


@pytest.mark.parametrize("address", [LATER, LATER6])
def test_an_address_that_comes_later(lab: Lab, address: str) -> None:
    """Alone in its config: the server starts, says so, and is there with the address."""
    server, client = cable(lab)
    with running(server, server_config(listen=address)) as daemon:
        [line] = warnings(daemon)
        assert "this machine does not have that address yet" in line
        assert address in line
        assert "this machine does not have that address yet" in status(server)
        reachable(server, client, address)
        assert_connects(client, address)
        assert "does not have that address" not in status(server)


def status(host: Host) -> str:
    return " ".join(host.run([*command(), "status"], timeout=PATIENCE_S).stdout.split())


def test_one_of_several_is_not_there(lab: Lab) -> None:
    server, client = cable(lab)
    with running(server, server_config(listen=[LATER, SERVER, LATER6])) as daemon:
        assert len(warnings(daemon)) == 2
        assert_connects(client, SERVER)
        for address in (LATER, LATER6):
            reachable(server, client, address)
            assert_connects(client, address)


def test_an_ipv6_address_whose_check_for_duplicates_is_under_way(lab: Lab) -> None:
    """Bound while it is tentative: the kernel says of it what it says of none at all."""
    server, client = cable(lab)
    server.sysctl("net.ipv6.conf.eth0.accept_dad", 1)
    server.sysctl("net.ipv6.conf.eth0.dad_transmits", 6)  # a second each
    reachable(server, client, LATER6, tentative=True)
    assert "tentative" in str(server.ip("address show dev eth0"))
    with running(server, server_config(listen=LATER6)) as daemon:
        assert len(warnings(daemon)) == 1
        assert_connects(client, LATER6)


def test_ipv6_is_switched_off(lab: Lab) -> None:
    server, client = cable(lab)
    server.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    with running(server, server_config(listen=["::1", SERVER])) as daemon:
        [line] = warnings(daemon)
        assert "[::1]:8080" in line
        assert_connects(client, SERVER)


def test_the_admin_listener(lab: Lab) -> None:
    server, client = cable(lab)
    root: dict[str, Any] = {
        "interfaces": [server_config()],
        "admin": {"listen": f"{LATER}:9433", "token": token("admin")},
    }
    with running(server, write(server, root)) as daemon:
        assert [line for line in warnings(daemon) if f"admin: {LATER}:9433: this machine does not have" in line]
        assert_connects(client, SERVER)
        reachable(server, client, LATER)
        asked = ["curl", "-s", "--max-time", "5", f"http://{LATER}:9433/healthz"]
        wait_until(lambda: client.run(asked, check=False).returncode == 0, PATIENCE_S, "the admin listener")


def write(host: Host, root: dict[str, Any]) -> str:
    file = host.tmp / "root.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(root), encoding="utf-8")
    return str(file)


def test_a_port_that_is_taken_ends_the_start_as_ever(lab: Lab) -> None:
    server, _ = cable(lab)
    with running(server, server_config()):
        other = server_config(allowed("a", "10.11.0.2"), name="tun1", net="10.11.0.1/24")
        with tapotun(server, [other]) as second:
            assert second.wait(PATIENCE_S) == 1
            assert f"cannot listen on {SERVER}:8080: the port is in use" in second.log
        with running(server, {**other, "listen": [SERVER, "127.0.0.1"]}) as third:
            assert any("continuing without it, and trying again" in line for line in warnings(third))
