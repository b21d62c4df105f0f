"""The unit as the Debian package installs it, under the real systemd: every feature, with all of its hardening.

The clients are in a network namespace of their own, as another machine would be; everything else is the unit as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tests.harness import wait_until

from .booted import Booted, booted
from .chroot import Chroot
from .test_deb import installed

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 60.0
NET_ADMIN: Final = 1 << 12
NET_BIND_SERVICE: Final = 1 << 10
HUB: Final = "tapotun@hub.service"
LAPTOP: Final = "tapotun@laptop.service"
PHONE: Final = "tapotun@phone.service"

# In place of a proxy: ends TLS, asks for a certificate, and hands everything on to the server's Unix socket.
_RELAY: Final = """
import asyncio, ssl
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def serve(reader, writer):
    there = await asyncio.open_unix_connection("/run/tapotun-proxy/hub.sock")
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="/etc/tapotun/ca.pem")
    context.load_cert_chain("/root/relay.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    async with await asyncio.start_server(serve, "192.0.2.1", 443, ssl=context) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def allowed(name: str, ip: str, **fields: Any) -> dict[str, Any]:
    digest = hashlib.sha1(f"raw-token-of-{name}".encode()).hexdigest()
    return {"name": name, "token": digest, "ip": ip, **fields}


def hub_config(**fields: Any) -> dict[str, Any]:
    """Two servers: one on a port of root's, IPv4 and IPv6, with a rule; one on a Unix socket behind a proxy."""
    first = {
        "name": "tun0",
        "listen": ["192.0.2.1", "::1"],
        "port": 80,
        "net": "10.10.0.1/24",
        "ips": ["10.10.0.9"],
        "mark": {"value": 7, "table": 7},
        "push_routes": ["198.51.100.0/24"],
        "clients": [
            allowed("phone", "10.10.0.3", routes=["10.60.0.0/24"], sources=["203.0.113.7"]),
            allowed("spare", "10.10.0.4"),
        ],
        **fields,
    }
    second = {
        "name": "tun1",
        "listen": "unix:/run/tapotun-proxy/hub.sock",
        "trusted_proxies": ["unix"],
        "net": "10.20.0.1/24",
        "clients": [allowed("laptop", "10.20.0.2")],
    }
    return {"interfaces": [first, second], "admin": {"listen": 9433}}


@pytest.fixture(scope="module")
def machine(deb: Path, bookworm_with_systemd: Path) -> Iterator[Booted]:
    """With the package installed, and a second network namespace, "far", at the end of a cable."""
    with tempfile.TemporaryDirectory(prefix="systemd-") as directory:
        debian = Chroot.copy_of(bookworm_with_systemd, Path(directory, "root"))
        installed(debian, deb)
        with booted(debian) as running:
            for line in (
                "ip netns add far",
                "ip link add eth0 type veth peer name eth0 netns far",
                "ip address add 192.0.2.1/24 dev eth0",
                "ip link set eth0 up",
                "ip -n far address add 192.0.2.2/24 dev eth0",
                "ip -n far link set eth0 up",
                "ip -n far link set lo up",
            ):
                running.run(line.split())
            for unit in (LAPTOP, PHONE):
                place = f"/etc/systemd/system/{unit}.d/elsewhere.conf"
                debian.write(place, "[Service]\nNetworkNamespacePath=/run/netns/far\n", mode=0o644)
            running.run(["systemctl", "daemon-reload"])
            yield running


def write(machine: Booted, name: str, text: str) -> None:
    """As an operator does in /etc/tapotun: the file gets the directory's group."""
    machine.run(["sh", "-c", f"umask 027; cat >/etc/tapotun/{name}"], stdin=text)


def write_config(machine: Booted, name: str, config: Any) -> None:
    write(machine, f"{name}.json", json.dumps(config))


def refused(machine: Booted, unit: str) -> str:
    """What a service logs that does not start."""
    machine.run(["systemctl", "reset-failed", unit], check=False)
    known = len(machine.journal(unit))
    assert machine.run(["systemctl", "restart", unit], check=False).returncode != 0
    said = machine.journal(unit)[known:]
    assert "Traceback" not in said
    assert machine.out("systemctl", "show", "--property=ExecMainStatus", "--value", unit) == "1\n", said
    return said


def status(machine: Booted, pid: int) -> dict[str, str]:
    text = machine.out("cat", f"/proc/{pid}/status")
    return {key: " ".join(value.split()) for key, value in re.findall(r"(?m)^(\w+):\s*(.*)$", text)}


def far(machine: Booted, *command: str) -> bool:
    return machine.run(["ip", "netns", "exec", "far", *command], check=False).returncode == 0


def test_every_feature_under_the_unit(machine: Booted) -> None:
    assert machine.out("stat", "-c", "%a %U:%G", "/etc/tapotun") == "2750 root:tapotun\n"
    write_config(machine, "hub", hub_config())

    # The hardening forbids a Unix socket elsewhere, and the error names the drop-in that allows it.
    machine.run(["install", "-d", "-o", "tapotun", "-g", "www-data", "-m", "2750", "/srv/tapotun-proxy"])
    second = {**hub_config()["interfaces"][1], "listen": "unix:/srv/tapotun-proxy/hub.sock"}
    write_config(machine, "hub", [second])
    said = refused(machine, HUB)
    assert "tun1: cannot listen on unix:/srv/tapotun-proxy/hub.sock: Read-only file system; " in said
    assert (
        "copy its unix-socket.conf (/usr/share/tapotun/systemd) to /etc/systemd/system/tapotun@.service.d, "
        "and listen in /run/tapotun-proxy" in said
    )
    write_config(machine, "hub", hub_config())
    assert "unix-socket.conf" in refused(machine, HUB)
    machine.run(["mkdir", "-p", "/etc/systemd/system/tapotun@.service.d"])
    machine.run(["cp", "/usr/share/tapotun/systemd/unix-socket.conf", "/etc/systemd/system/tapotun@.service.d"])
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "restart", HUB])

    pid = machine.pid(HUB)
    it = status(machine, pid)
    uid = machine.out("id", "-u", "tapotun").strip()
    assert it["Uid"] == " ".join([uid] * 4)
    assert uid != "0"
    assert int(it["CapPrm"], 16) == int(it["CapEff"], 16) == NET_ADMIN | NET_BIND_SERVICE
    assert int(it["CapBnd"], 16) == NET_ADMIN | NET_BIND_SERVICE
    assert int(it["CapAmb"], 16) == 0
    assert it["NoNewPrivs"] == "1"
    assert it["Seccomp"] == "2"
    limits = re.search(r"(?m)^Max open files +(\d+) +(\d+) ", machine.out("cat", f"/proc/{pid}/limits"))
    assert limits is not None
    assert limits[1] == limits[2]
    assert machine.out("stat", "-c", "%U:%G %a", "/run/tapotun-proxy/hub.sock") == "tapotun:www-data 660\n"

    # One client over TLS through a proxy, with files of its own; one over a WebSocket, on the port of root's.
    authority = trustme.CA()
    write(machine, "ca.pem", authority.cert_pem.bytes().decode())
    client = authority.issue_cert("laptop@example.com")
    write(machine, "laptop.pem", client.private_key_and_cert_chain_pem.bytes().decode())
    authority.issue_cert("192.0.2.1").private_key_and_cert_chain_pem.write_to_path(
        machine.debian.root / "root" / "relay.pem"
    )
    machine.debian.write("/root/relay.py", _RELAY)
    machine.run(["systemd-run", "--unit=relay", "--property=Group=www-data", "/usr/bin/python3", "/root/relay.py"])
    write(machine, "laptop.token", "raw-token-of-laptop\n")
    laptop = {
        "name": "tun0",
        "server": "https://192.0.2.1/",
        "token_file": "laptop.token",
        "tls": {"ca_file": "ca.pem", "cert_file": "laptop.pem"},
        "transport_mark": 51,
    }
    write_config(machine, "laptop", [laptop])
    phone = {
        "name": "tun1",
        "server": "http://192.0.2.1/",
        "token": "raw-token-of-phone",
        "transport": "websocket",
        "mark": {"value": 8, "table": 8},
    }
    write_config(machine, "phone", {"interfaces": [phone], "user": "tapotun"})  # which it is already
    for unit in (LAPTOP, PHONE):
        machine.run(["systemctl", "start", unit])
        machine.run(["tapotun", "wait", "--name", unit[8:-8], "--timeout", str(PATIENCE_S)], timeout=2 * PATIENCE_S)
        assert status(machine, machine.pid(unit))["Uid"].split()[0] == uid
        assert int(status(machine, machine.pid(unit))["CapEff"], 16) == NET_ADMIN
    assert far(machine, "ping", "-c", "1", "-W", "10", "10.20.0.1")
    assert far(machine, "ping", "-c", "1", "-W", "10", "-I", "tun1", "-m", "8", "10.10.0.1")
    assert "198.51.100.0/24" in machine.out("ip", "-n", "far", "route", "show", "proto", "116")
    assert "10.60.0.0/24 dev tun0" in machine.out("ip", "route", "show", "proto", "116")
    assert "fwmark 0x7 lookup 7" in machine.out("ip", "rule")

    # What asks it: the verbs as root and as its user, metrics, a reload that changes what it can.
    assert all(name in machine.out("tapotun", "status") for name in ("hub, pid", "laptop, pid", "phone, pid"))
    as_user = ["setpriv", "--reuid=tapotun", "--regid=tapotun", "--clear-groups"]
    assert "hub, pid" in machine.run([*as_user, "tapotun", "status"]).stdout
    metrics = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9433/metrics').read().decode())"
    assert "tapotun_" in machine.out("python3", "-c", metrics)
    write_config(machine, "hub", hub_config(mtu=1400))
    machine.run(["systemctl", "reload", HUB])
    assert "tun0: mtu changed (1500 -> 1400)" in machine.journal(HUB)
    assert " mtu 1400 " in machine.out("ip", "link", "show", "tun0")
    machine.run(["tapotun", "disconnect", "--name", "hub", "phone"])
    assert "ok      user " in machine.run(["tapotun", "doctor", "/etc/tapotun/hub.json"], check=False).stdout

    # Killed, systemd starts it again, and the clients come back by themselves.
    machine.run(["sh", "-c", f"kill -9 {pid}"])  # the shell's own; minbase has no other
    wait_until(
        lambda: machine.is_active(HUB) and machine.pid(HUB) not in (0, pid),
        PATIENCE_S,
        "the service again",
        lambda: machine.journal(HUB),
    )
    wait_until(
        lambda: far(machine, "ping", "-c", "1", "-W", "2", "10.20.0.1"),
        PATIENCE_S,
        "the tunnel again",
        lambda: machine.journal(LAPTOP),
    )
    for unit in (HUB, LAPTOP, PHONE):
        said = machine.journal(unit)
        assert "Traceback" not in said
        for never in ("Operation not permitted", "CAP_", "cannot drop privileges", "no control socket", "raw-token-of"):
            assert never not in said, said
        machine.run(["systemctl", "stop", unit])
        assert machine.out("systemctl", "show", "--property=Result", "--value", unit) == "success\n"
    assert "tun" not in machine.out("ip", "link").replace("tunl0", "")
    assert "lookup 7" not in machine.out("ip", "rule")
    assert machine.out("find", "/run/tapotun", "/run/tapotun-proxy", "-type", "s") == ""


def test_what_it_cannot_read_and_whom_it_cannot_become(machine: Booted) -> None:
    """Each is one line that says what to do, and systemd does not try again."""
    config = [{**hub_config()["interfaces"][0], "listen": "127.0.0.1", "port": 8089}]
    write_config(machine, "hub", config)
    machine.run(["chmod", "600", "/etc/tapotun/hub.json"])
    remedy = "let group tapotun read it: chgrp tapotun /etc/tapotun/hub.json; chmod g+r /etc/tapotun/hub.json"
    assert f"/etc/tapotun/hub.json: cannot be read: Permission denied; run it as root, or {remedy}" in refused(
        machine, HUB
    )
    doctor = machine.run(["tapotun", "doctor", "/etc/tapotun/hub.json"], check=False)
    assert doctor.returncode == 1
    assert f'FAILURE user         user "tapotun" cannot read /etc/tapotun/hub.json; {remedy}' in doctor.stdout
    write_config(machine, "hub", {"interfaces": config, "user": "daemon"})
    machine.run(["chmod", "640", "/etc/tapotun/hub.json"])
    said = refused(machine, HUB)
    assert 'cannot become user "daemon": this process was started as "tapotun", and only root can' in said
    # And mended, it runs.
    write_config(machine, "hub", config)
    machine.run(["systemctl", "restart", HUB])
    assert machine.is_active(HUB)
    machine.run(["systemctl", "stop", HUB])
