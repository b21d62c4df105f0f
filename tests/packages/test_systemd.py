"""The unit as the Debian package installs it, under the real systemd: every feature, with all of its hardening.

Debian 12 has systemd 252, before notify-reload; Debian 13 has 257. What depends on the version is tested under both.

The clients are in a network namespace of their own, as another machine would be; everything else is the unit as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tapotun_trio import __version__
from tests.harness import ROOT, wait_until
from tests.harness.updates import Repository
from tests.netns.howtos import read_page
from tests.pyz_files import derive

from .booted import Booted, booted
from .chroot import Chroot
from .test_apt import HERE, publishing
from .test_deb import newer

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 60.0
NET_ADMIN: Final = 1 << 12
NET_BIND_SERVICE: Final = 1 << 10
HUB: Final = "tapotun@hub.service"
LAPTOP: Final = "tapotun@laptop.service"
PHONE: Final = "tapotun@phone.service"
OFFICE: Final = "tapotun@office.service"
APT_PORT: Final = 8100

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


@contextmanager
def set_up(base: Path, install: Callable[[Booted], None]) -> Iterator[Booted]:
    """A machine on which the program was installed, and a second network namespace, "far", at the end of a cable."""
    with tempfile.TemporaryDirectory(prefix="systemd-") as directory:
        debian = Chroot.copy_of(base, Path(directory, "root"))
        (debian.root / "usr/sbin/policy-rc.d").unlink()  # from here on it is a machine like any other
        with booted(debian) as running:
            install(running)
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


@pytest.fixture(scope="module")
def machine(deb: Path, bookworm_with_systemd: Path) -> Iterator[Booted]:
    """Debian 12, systemd 252."""
    with set_up(bookworm_with_systemd, lambda machine: install(machine, deb)) as running:
        yield running


@pytest.fixture(scope="module")
def newer_machine(deb: Path, trixie_with_systemd: Path) -> Iterator[Booted]:
    """Debian 13, systemd 257. The commands of docs/packages.md have installed the package, as they are written but for
    the repository's URL.

    The machine has no network. So the two packages of Debian that the commands want are in the base already, and
    Debian's archive is no source.
    """

    def install_from_repository(machine: Booted) -> None:
        publisher.serve(machine.debian)
        assert serve(machine, HERE, APT_PORT) == url
        machine.run(["sh", "-c", "rm -r /etc/apt/sources.list* && mkdir /etc/apt/sources.list.d"])
        type_in(machine, "packages", "The apt repository", {"https://example.org/apt": url})
        assert f"500 {url} stable/main" in machine.out("apt-cache", "policy", "tapotun")

    url = f"http://127.0.0.1:{APT_PORT}"
    with publishing(deb, url) as publisher, set_up(trixie_with_systemd, install_from_repository) as running:
        yield running


@pytest.fixture(params=["machine", "newer_machine"])
def any_machine(request: pytest.FixtureRequest) -> Booted:
    """Each of them."""
    found: Booted = request.getfixturevalue(request.param)
    return found


def serve(machine: Booted, directory: str, port: int) -> str:
    """A web server in there. Returns its URL, without a slash at its end."""
    command = f"/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory {directory} {port}"
    machine.run(["systemd-run", f"--unit=web-{port}", "--", *command.split()])
    wait_until(lambda: f"127.0.0.1:{port} " in machine.out("ss", "-Hltn"), PATIENCE_S, "the web server")
    return f"http://127.0.0.1:{port}"


def type_in(machine: Booted, page: str, section: str, instead: Mapping[str, str] | None = None) -> None:
    """Type the commands of a section of docs/, in order, in root's home. `instead`: other words for some of its own.

    Raises CommandError at the first block with a command that fails.
    """
    blocks = [step.text for step in read_page(f"../{page}") if (step.section, step.language) == (section, "sh")]
    text = "\n".join(blocks)
    for old, new in (instead or {}).items():
        assert old in text
        text = text.replace(old, new)
    machine.run(["sh", "-e", "-c", f"cd\n{text}"], timeout=2 * PATIENCE_S)


def install(machine: Booted, deb: Path) -> None:
    """As `apt-get install ./tapotun.deb` does."""
    shutil.copy(deb, machine.debian.root / "root")
    machine.run(["dpkg", "-i", f"/root/{deb.name}"])


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
    assert machine.show(unit, "ExecMainStatus") == "1", said
    assert machine.show(unit, "NRestarts") == "0"
    return said


def status(machine: Booted, pid: int) -> dict[str, str]:
    text = machine.out("cat", f"/proc/{pid}/status")
    return {key: " ".join(value.split()) for key, value in re.findall(r"(?m)^(\w+):\s*(.*)$", text)}


def far(machine: Booted, *command: str) -> bool:
    return machine.run(["ip", "netns", "exec", "far", *command], check=False).returncode == 0


def drop_in(machine: Booted, unit: str, text: str) -> None:
    machine.debian.write(f"/etc/systemd/system/{unit}.d/of-the-test.conf", text, mode=0o644)


def state(machine: Booted, unit: str) -> str:
    return machine.show(unit, "ActiveState")


def small_hub() -> dict[str, Any]:
    """With one client, the phone."""
    return {**hub_config()["interfaces"][0], "listen": "192.0.2.1"}


def phone_config() -> dict[str, Any]:
    return {"name": "tun1", "server": "http://192.0.2.1/", "token": "raw-token-of-phone"}


def test_it_is_enabled_and_ready_when_it_is_up(any_machine: Booted) -> None:
    machine = any_machine
    said_of_it = ["journalctl", "--no-pager", "--output=cat", "--grep=tapotun@", "_PID=1"]
    warnings = machine.run([*said_of_it, "--priority=warning"], check=False).stdout
    assert warnings == ""
    assert machine.out("systemctl", "list-units", "--all", "--plain", "--no-legend", "tapotun@*") == ""

    # A client is not ready before its server answers.
    write_config(machine, "phone", [phone_config()])
    machine.run(["systemctl", "start", "--no-block", PHONE])
    wait_until(
        lambda: machine.show(PHONE, "StatusText") == "tun1 connecting",
        PATIENCE_S,
        "the client",
        lambda: machine.journal(PHONE),
    )
    assert state(machine, PHONE) == "activating"
    # A server is, as soon as it listens.
    write_config(machine, "hub", [small_hub()])
    machine.run(["systemctl", "enable", "--now", HUB])
    assert state(machine, HUB) == "active"
    assert "192.0.2.1:80 " in machine.out("ss", "-Hltn")
    wait_until(lambda: state(machine, PHONE) == "active", PATIENCE_S, "the client", lambda: machine.journal(PHONE))
    assert far(machine, "ping", "-c", "1", "-W", "10", "10.10.0.1")
    wait_until(
        lambda: machine.show(HUB, "StatusText") == "tun0 up, 1 of 2 clients",
        PATIENCE_S,
        "the status line",
        lambda: machine.show(HUB, "StatusText"),
    )

    # A reload that is refused fails, and nothing has changed.
    pid = machine.pid(HUB)
    write_config(machine, "hub", [{**small_hub(), "mtu": 1}])
    assert machine.run(["systemctl", "reload", HUB], check=False).returncode == 1
    assert (state(machine, HUB), machine.pid(HUB)) == ("active", pid)
    wait_until(
        lambda: "the last reload was refused" in machine.show(HUB, "StatusText"),
        PATIENCE_S,
        "the status line",
        lambda: machine.journal(HUB),
    )

    # Each line has its priority.
    ours = ["journalctl", "--no-pager", "--output=cat", f"_PID={pid}"]
    assert "started: tun0" in machine.out(*ours, "--priority=info..info")
    failures = machine.out(*ours, "--priority=err")
    assert "reload: " in failures
    assert "started: tun0" not in failures

    # Enabled, it starts with the machine.
    for unit in (PHONE, HUB):
        machine.run(["systemctl", "stop", unit])
    machine.run(["systemctl", "start", "multi-user.target"])
    wait_until(lambda: state(machine, HUB) == "failed", PATIENCE_S, "the start", lambda: machine.journal(HUB))
    assert state(machine, PHONE) == "inactive"
    machine.run(["systemctl", "disable", HUB])


# Tells that it is ready, until systemd has heard it, and ends with the code in its instance's name.
_EXIT: Final = """[Service]
ExecStart=
ExecStart=/usr/bin/python3 -I /usr/local/lib/exit.py %i
"""
_EXIT_SCRIPT: Final = """
import os, socket, sys
heard, ours = os.pipe()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.connect(os.environ["NOTIFY_SOCKET"])
    manager.send(b"READY=1")
    socket.send_fds(manager, [b"BARRIER=1"], [ours])
os.close(ours)
os.read(heard, 1)
sys.exit(int(sys.argv[1]))
"""
LEFT_DOWN: Final = {"0": "inactive", "1": "failed", "2": "failed"}
STARTED_AGAIN: Final = ("3", "75", "143")


def test_when_it_is_started_again(any_machine: Booted) -> None:
    machine = any_machine
    write_config(machine, "hub", [small_hub()])
    drop_in(machine, HUB, "[Service]\nWatchdogSec=2\n")
    machine.debian.write("/usr/local/lib/exit.py", _EXIT_SCRIPT, mode=0o644)
    exits = {code: f"tapotun@{code}.service" for code in (*LEFT_DOWN, *STARTED_AGAIN)}
    for unit in exits.values():
        drop_in(machine, unit, _EXIT)
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "start", HUB])
    pid = machine.pid(HUB)

    # By its exit code.
    machine.run(["systemctl", "start", *exits.values()])
    for code in STARTED_AGAIN:
        wait_until(
            lambda: int(machine.show(exits[code], "NRestarts")) > 0,  # noqa: B023
            PATIENCE_S,
            f"the start after exit code {code}",
            lambda: machine.journal(exits[code]),  # noqa: B023
        )
    # One that is to be started again would be "activating" from its end on.
    assert {code: state(machine, exits[code]) for code in LEFT_DOWN} == LEFT_DOWN
    assert {machine.show(exits[code], "NRestarts") for code in LEFT_DOWN} == {"0"}
    machine.run(["systemctl", "stop", *exits.values()])

    # By the watchdog: not while it works, and when it hangs.
    wait_until(
        lambda: (
            float(machine.out("cat", "/proc/uptime").split()[0])
            > int(machine.show(HUB, "ActiveEnterTimestampMonotonic")) / 1e6 + 6
        ),
        PATIENCE_S,
        "time to pass",
    )
    assert (state(machine, HUB), machine.pid(HUB)) == ("active", pid)
    machine.run(["sh", "-c", f"kill -STOP {pid}"])
    wait_until(
        lambda: machine.show(HUB, "NRestarts") == "1" and machine.is_active(HUB),
        PATIENCE_S,
        "another start",
        lambda: machine.journal(HUB),
    )
    assert machine.pid(HUB) != pid
    assert "Watchdog timeout (limit 2s)!" in machine.journal(HUB)
    machine.run(["systemctl", "stop", HUB])
    machine.run(["rm", "-r", f"/etc/systemd/system/{HUB}.d"])
    machine.run(["systemctl", "daemon-reload"])


ATTEMPTS: Final = "tapotun@attempts.service"
_ATTEMPTS: Final = """[Service]
Type=oneshot
Restart=no
RestartForceExitStatus=
ExecStart=
ExecStart=/usr/bin/python3 -I /usr/local/lib/attempts.py
StandardOutput=truncate:/run/inside.json
"""
INSIDE: Final = {
    "write in /etc": "EROFS",
    "write in /usr": "EROFS",
    "write in /var": "EROFS",
    "write in /home": "EROFS",
    "read another's /tmp": "ENOENT",
    "list the kernel's modules": "EACCES",
    "change a sysctl": "EROFS",
    "see other processes": "ENOENT",
    "open a device": "EPERM",
    "make a file setuid": "EPERM",
    "become root by a setuid file": "EPERM",
    "set the user": "EPERM",
    "set a file's owner": "EPERM",
    "make a user namespace": "EPERM",
    "trace a process": "EPERM",
    "change the nice value": "EPERM",
    "change the personality": "EPERM",
    "open a packet socket": "EAFNOSUPPORT",
    "open /dev/net/tun": "ok",
    "open a netlink socket": "ok",
}


def test_the_sandbox_holds(any_machine: Booted) -> None:
    """What it forbids is tried by a process that the unit starts, and by one outside of it, where it works: nothing
    fails for another reason."""
    machine = any_machine
    for directory in ("/etc/open", "/usr/open", "/var/open", "/home/open", "/tmp/open"):
        machine.run(["install", "-d", "-m", "1777", directory])
    machine.run(["touch", "/tmp/open/x"])  # from inside: its /tmp is not that of its root directory
    machine.run(["mkdir", "-p", "/usr/lib/modules"])
    machine.run(["install", "-m", "4755", "/usr/bin/id", "/usr/local/bin/setuid-id"])
    attempts = Path(__file__).with_name("attempts.py").read_text(encoding="utf-8")
    machine.debian.write("/usr/local/lib/attempts.py", attempts, mode=0o644)
    drop_in(machine, ATTEMPTS, _ATTEMPTS)
    machine.run(["systemctl", "daemon-reload"])
    properties = ["Type=oneshot", "User=tapotun", "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE"]
    properties += ["RuntimeDirectory=outside", "StandardOutput=truncate:/run/outside.json"]
    options = [f"--property={it}" for it in properties]
    machine.run(["systemd-run", *options, "/usr/bin/python3", "-I", "/usr/local/lib/attempts.py"])
    machine.run(["systemctl", "start", ATTEMPTS])
    found = {where: json.loads(machine.out("cat", f"/run/{where}.json")) for where in ("inside", "outside")}
    # By a filter of system calls, or, from systemd 256 on, by prctl(PR_SET_MDWE).
    assert found["inside"].pop("write and execute memory") in ("EPERM", "EACCES")
    assert found["inside"] == INSIDE
    outside = dict.fromkeys([*INSIDE, "write and execute memory"], "ok")
    assert found["outside"] == {**outside, "trace a process": "ESRCH", "open a packet socket": "EPERM"}


def test_a_reload_by_signal(newer_machine: Booted) -> None:
    """With the drop-in for systemd 253 and newer."""
    machine = newer_machine
    write_config(machine, "hub", [small_hub()])
    machine.run(["mkdir", "-p", f"/etc/systemd/system/{HUB}.d"])
    machine.run(["cp", "/usr/share/tapotun/systemd/notify-reload.conf", f"/etc/systemd/system/{HUB}.d"])
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "restart", HUB])
    assert machine.show(HUB, "Type") == "notify-reload"
    write_config(machine, "hub", [{**small_hub(), "mtu": 1400}])
    machine.run(["systemctl", "reload", HUB])
    # It is done when systemctl is.
    assert " mtu 1400 " in machine.out("ip", "link", "show", "tun0")
    assert machine.journal(HUB).count("tun0: mtu changed (1500 -> 1400)") == 1
    write_config(machine, "hub", [{**small_hub(), "mtu": 1}])
    machine.run(["systemctl", "reload", HUB])
    assert "[0].mtu" in machine.journal(HUB)
    assert state(machine, HUB) == "active"
    machine.run(["systemctl", "stop", HUB])
    assert machine.show(HUB, "Result") == "success"


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
        assert machine.show(unit, "Result") == "success"
    assert "tun" not in machine.out("ip", "link").replace("tunl0", "")
    assert "lookup 7" not in machine.out("ip", "rule")
    assert machine.out("find", "/run/tapotun", "/run/tapotun-proxy", "-type", "s") == ""


def test_one_segment_under_the_unit(machine: Booted) -> None:
    """TAP interfaces in bridges: the hub's own one, and one of the far machine. The hardening prevents nothing."""
    hub: dict[str, Any] = {
        "name": "seg0",
        "device": "tap",
        "listen": "192.0.2.1",
        "port": 8080,
        "net": ["10.30.0.1/24", "fd00:30::1/64"],
        "bridge": {"name": "br0", "create": True},
        "clients": [{**allowed("laptop", ""), "ip": ["10.30.0.2", "fd00:30::2"]}],
    }
    laptop: dict[str, Any] = {
        "name": "seg0",
        "server": "http://192.0.2.1:8080/",
        "token": "raw-token-of-laptop",
        "device": "tap",
    }
    laptop["bridge"] = {"name": "br1", "isolated": True, "learning": False, "bpdu_guard": True}
    far_ip = ["ip", "netns", "exec", "far", "ip"]
    machine.run([*far_ip, "link", "add", "br1", "up", "type", "bridge"])
    try:
        write_config(machine, "hub", [hub])
        write_config(machine, "laptop", [laptop])
        for unit in (HUB, LAPTOP):
            machine.run(["systemctl", "start", unit])
            machine.run(["tapotun", "wait", "--name", unit[8:-8], "--timeout", str(PATIENCE_S)], timeout=2 * PATIENCE_S)
        assert far(machine, "ping", "-c", "1", "-W", "10", "10.30.0.1")
        assert far(machine, "ping", "-c", "1", "-W", "10", "fd00:30::1")
        assert " master br0 " in machine.out("ip", "link", "show", "seg0")
        port = machine.out(*far_ip, "-d", "link", "show", "seg0")
        for option in ("master br1 ", "isolated on ", "learning off ", "guard on "):
            assert option in port, port
        for where, name in ((["cat"], "seg0"), (["cat"], "br0"), (["ip", "netns", "exec", "far", "cat"], "seg0")):
            assert machine.out(*where, f"/proc/sys/net/ipv6/conf/{name}/accept_ra") == "0\n"
        assert "(the server's side)" in machine.out("tapotun", "status", "--macs")
        for unit in (HUB, LAPTOP):
            said = machine.journal(unit)
            for never in ("Traceback", "Operation not permitted", "Permission denied", "cannot write", "degraded"):
                assert never not in said, said
            machine.run(["systemctl", "stop", unit])
        for left in ("seg0", "br0"):
            assert machine.run(["ip", "link", "show", left], check=False).returncode != 0
        assert machine.run([*far_ip, "link", "show", "br1"], check=False).returncode == 0
    finally:
        for unit in (HUB, LAPTOP):
            machine.run(["systemctl", "stop", unit], check=False)
        machine.run([*far_ip, "link", "delete", "br1"])


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


def test_a_pyz_that_updates_itself(bookworm_with_systemd: Path, pyz: Path, tmp_path: Path) -> None:
    """On a machine that has Python and the pyz, by the commands of docs/update.md as they are written, with all of the
    unit's hardening: what the drop-in allows is enough to install two versions, and to take a third one back."""
    first, second, bad = (f"{__version__}.post{number}" for number in (1, 2, 3))
    place = "/opt/tapotun/tapotun"
    server = {**hub_config()["interfaces"][0], "listen": "127.0.0.1", "port": 8088}
    update = {"url": "http://127.0.0.1:8099/", "root_file": "/etc/tapotun/update-root.json", "spread": "0s"}

    def config(every: str) -> dict[str, Any]:
        return {"interfaces": [server], "update": {**update, "mode": "apply", "every": every}}

    def install_by_hand(machine: Booted) -> None:
        assert machine.run(["id", "tapotun"], check=False).returncode == 1
        known = machine.out("find", "/etc", "/usr", "/opt", "/var/lib", "-name", "*tapotun*")
        assert known == ""
        root = machine.debian.root
        shutil.copy(pyz, root / "root")
        shutil.copy(repository.root_file, root / "root" / "update-root.json")
        machine.debian.write("/root/office.json", json.dumps(config("1d")))
        shutil.copytree(repository.directory, root / "srv" / "updates")
        assert f"{serve(machine, '/srv/updates', 8099)}/" == update["url"]
        type_in(machine, "update", "Updates that install themselves")

    repository = Repository(tmp_path / "updates")
    repository.add(first, derive(pyz, tmp_path / first, first))
    with set_up(bookworm_with_systemd, install_by_hand) as machine:

        def wait_for(text: str) -> None:
            def said() -> bool:
                return text in machine.journal(OFFICE)

            wait_until(said, 2 * PATIENCE_S, text, lambda: machine.journal(OFFICE))

        def publish(version: str, every: str, **changed: str) -> None:
            """And have the service look for it, since its interval changes."""
            repository.add(version, derive(pyz, tmp_path / version, version, **changed))
            shutil.copytree(repository.directory, machine.debian.root / "srv" / "updates", dirs_exist_ok=True)
            write_config(machine, "office", config(every))
            machine.run(["systemctl", "reload", OFFICE])

        def is_running(version: str) -> None:
            machine.run([place, "wait", "--name", "office", "--timeout", "30"])
            assert f"tapotun {version} office" in machine.out(place, "status", "--name", "office")

        for name in ("tapotun@.service", "tapotun@.service.d/pyz.conf"):
            unpacked = machine.out("cat", f"/etc/systemd/system/{name}")
            assert unpacked == (ROOT / "conf" / "systemd" / Path(name).name).read_text(encoding="utf-8")
        wait_for(f"update: version {first} has started, and stays")
        is_running(first)
        publish(second, "2d")
        wait_for(f"update: version {second} has started, and stays")
        is_running(second)
        assert "Failed with result" not in machine.journal(OFFICE)  # which OnFailure= would tell people
        assert machine.out("stat", "-c", "%U:%G %a", f"{place}.pyz") == "tapotun:tapotun 755\n"
        kept = sorted(machine.out("find", "/var/lib/tapotun", "-type", "f").split())
        assert kept == [f"/var/lib/tapotun/office/{name}" for name in ("update-metadata.json", "update.lock")]
        # By hand, as the document says it: root does not start what that user could replace.
        by_hand = ["runuser", "-u", "tapotun", "--"]
        assert f"tapotun {second} office" in machine.out(*by_hand, place, "status", "--name", "office")
        state = "STATE_DIRECTORY=/var/lib/tapotun/office"
        checked = machine.out(*by_hand, "env", state, place, "update", "--check", "/etc/tapotun/office.json")
        assert checked == f"tapotun {second}: nothing newer in channel stable\n"
        # Python ends with 1 for an exception, after which the unit would start nothing again.
        publish(bad, "3d", app="raise ZeroDivisionError\n")
        wait_for(f"version {bad} has not started 3 times: VERSION {second} IS BACK")
        wait_for(f"version {bad} did not start here; this version is back")
        wait_until(lambda: machine.is_active(OFFICE), PATIENCE_S, "the service", lambda: machine.journal(OFFICE))
        is_running(second)
        for never in ("Operation not permitted", "cannot drop privileges", "no control socket"):
            assert never not in machine.journal(OFFICE)
        machine.run(["systemctl", "stop", OFFICE])
        assert machine.out("systemctl", "show", "--property=Result", "--value", OFFICE) == "success\n"


OF_THE_OPERATOR: Final = ("/etc/systemd/system/tapotun@", "/run/tapotun-proxy")


def test_upgrade_removal_and_purge(machine: Booted, deb: Path, tmp_path: Path) -> None:
    """The last test here: the package is gone."""
    write_config(machine, "hub", [small_hub()])
    write_config(machine, "phone", [phone_config()])
    machine.run(["systemctl", "enable", "--now", HUB, PHONE])
    pids = {unit: machine.pid(unit) for unit in (HUB, PHONE)}
    install(machine, newer(deb, tmp_path, f"{__version__}-2"))
    for unit, pid in pids.items():
        assert machine.is_active(unit)
        assert machine.pid(unit) != pid, "the modules of two versions would be loaded"
    assert far(machine, "ping", "-c", "3", "-W", "10", "10.10.0.1")
    machine.run(["dpkg", "-r", "tapotun"])
    assert machine.out("ip", "-br", "link", "show", "type", "tun") == ""
    assert (
        machine.out("systemctl", "list-units", "--all", "--plain", "--no-legend", "--state=active", "tapotun@*") == ""
    )
    assert machine.run(["test", "-e", "/etc/tapotun/hub.json"], check=False).returncode == 0
    machine.run(["dpkg", "-P", "tapotun"])
    left = machine.out("find", "/etc", "/run", "/usr", "/var/lib", "-name", "*tapotun*").split()
    assert [it for it in left if not it.startswith(OF_THE_OPERATOR)] == []
