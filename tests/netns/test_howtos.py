"""Each page of docs/howto, followed by a reader who starts with nothing but what the page says that it needs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

import pytest

from tests.basepeer import sha1
from tests.harness import ROOT, Host, Lab, Process, capture, ping, wait_for_ping
from tests.harness.recipes import CERTIFICATES, NAME

from .howtos import AUTHORITY, PAGE, Machine, certify, read_page, reader, serve_site, serve_tunnel
from .topologies import CLIENT, SERVER, SERVER_6, cable, has_interface

pytestmark = pytest.mark.netns

BACK_S: Final = 30.0


def fetch_site(machine: Machine) -> str:
    """What somebody sees who visits the website."""
    return machine.shell(f"curl -sS --fail --cacert {AUTHORITY} https://{NAME}/\n")


# ------------------------------------------------------------------ behind a proxy


def test_behind_nginx(lab: Lab) -> None:
    server, client = cable(lab)
    with reader({"server": server, "client": client}) as somebody:
        machines = somebody.machines
        certify(*machines.values())
        serve_site(machines["server"])
        assert fetch_site(machines["client"]) == PAGE
        somebody.follow(read_page("behind-nginx"))
        assert f"{CLIENT}:" not in machines["server"].output  # nginx passes the address on, without a port
        assert CLIENT in machines["server"].output
        assert fetch_site(machines["client"]) == PAGE


def test_behind_caddy(lab: Lab) -> None:
    """The certificate is the only thing that the page does not have: Caddy would get one by itself."""
    server, client = cable(lab)
    with reader({"server": server, "client": client}) as somebody:
        machines = somebody.machines
        certify(*machines.values())
        with_certificate = f"{NAME} {{\n\ttls {CERTIFICATES}/fullchain.pem {CERTIFICATES}/privkey.pem\n}}\n"
        machines["server"].write("/etc/caddy/Caddyfile", with_certificate)
        machines["server"].write("/var/www/html/index.html", PAGE)
        machines["server"].shell("systemctl enable --now caddy\n")
        steps = read_page("behind-caddy")
        (file,) = (number for number, step in enumerate(steps) if step.language == "caddy")
        somebody.follow(steps[: file + 1])
        (line,) = re.findall(r"(?m)^\ttls .*\n", with_certificate)
        machines["server"].insert("/etc/caddy/Caddyfile", f"{NAME} {{", line)
        somebody.follow(steps[file + 1 :])
        assert CLIENT in machines["server"].output
        assert fetch_site(machines["client"]) == PAGE
        assert "X-Api-Key" not in machines["server"].log("caddy")


# ------------------------------------------------------------------ networks


def test_site_to_site(lab: Lab) -> None:
    office, branch = cable(lab)
    behind_office, behind_branch = lab.host("behind_office"), lab.host("behind_branch")
    for router, machine, network in ((office, behind_office, "10.1.0"), (branch, behind_branch, "10.2.0")):
        lab.link(router, f"{network}.1/24", machine, f"{network}.10/24")
        machine.ip(f"route add default via {network}.1")
    hosts = {
        "office": office,
        "branch": branch,
        "machine behind the office": behind_office,
        "machine behind the branch": behind_branch,
    }
    with reader(hosts) as somebody:
        serve_tunnel(somebody.machines["office"], somebody.machines["branch"])
        somebody.follow(read_page("site-to-site"))


def test_hub_and_branches(lab: Lab) -> None:
    hub = lab.host("hub")
    names = ("branch-1", "branch-2", "laptop")
    hosts = {name: lab.host(name) for name in names}
    behind = {name: lab.host(f"behind-{name}") for name in names[:2]}
    office = lab.host("office")
    lab.link(hub, ["10.0.0.1/24", "fd00:1::1/64"], office, ["10.0.0.10/24", "fd00:1::10/64"])
    for gateway in ("10.0.0.1", "fd00:1::1"):
        office.ip(f"route add default via {gateway}")
    for number, (name, host) in enumerate(hosts.items(), 1):
        lab.link(hub, f"192.0.{number}.1/24", host, f"192.0.{number}.2/24")
        host.hosts({NAME: f"192.0.{number}.1"})
        if name in behind:
            here, there = ([f"10.0.{number}.{n}/24", f"fd00:1:0:{number}::{n}/64"] for n in (1, 10))
            lab.link(host, here, behind[name], there)
            for gateway in here:
                behind[name].ip(f"route add default via {gateway.partition('/')[0]}")
    with reader({"hub": hub, **hosts}) as somebody:
        machines = somebody.machines
        serve_tunnel(machines["hub"], *(machines[name] for name in names))
        steps = read_page("hub-and-branches")
        somebody.follow(steps)
        assert "session ended" not in machines["hub"].log("tapotun@corp")
        # "Set up as branch-1 was, with its own token."
        for step in steps:
            if step.machines == ["branch-1"]:
                text = step.text.replace('"test-a"', '"test-b"')
                if step.language == "sh":
                    machines["branch-2"].shell(text)
                else:
                    machines["branch-2"].write(step.path, text)
        for one, number in ((behind["branch-1"], 2), (behind["branch-2"], 1), (office, 2)):
            for other in (f"10.0.{number}.10", f"fd00:1:0:{number}::10"):
                assert wait_for_ping(one, other).ok
        for nowhere in ("10.0.99.1", "fd00:1:0:99::1"):
            answer = ping(behind["branch-1"], nowhere, count=1)
            assert "unreachable" in answer.output.lower(), answer.output


def test_one_segment(lab: Lab) -> None:
    """What the page has no line for is what the office has already: a router that gives addresses of both families."""
    office, branch = cable(lab)
    behind_office, behind_branch = lab.host("behind_office"), lab.host("behind_branch")
    lab.link(office, [], behind_office, ["10.3.0.1/24", "fd00:3::1/64"])
    lab.link(branch, [], behind_branch, [])
    hosts = {"office": office, "branch": branch, "machine behind the branch": behind_branch}
    dhcp = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--interface=eth0"]
    dhcp += ["--dhcp-range=10.3.0.100,10.3.0.150", "--dhcp-range=fd00:3::,slaac", "--enable-ra"]
    dhcp += [f"--dhcp-leasefile={behind_office.tmp / 'leases'}"]
    behind_branch.sysctl("net.ipv6.conf.eth0.accept_ra", 1)
    with reader(hosts) as somebody, behind_office.start([*dhcp, "--log-facility=-"]) as server:
        server.wait_for_log("DHCP, IP range", BACK_S)
        serve_tunnel(somebody.machines["office"], somebody.machines["branch"])
        steps = read_page("one-segment")
        somebody.follow(steps)
        wait_for_ping(behind_branch, "fd00:3::1", BACK_S)
        # Without the tunnel each site is by itself.
        somebody.machines["branch"].stop("tapotun@")
        for address in ("10.3.0.1", "fd00:3::1"):
            assert not ping(behind_branch, address, count=1).ok


# ------------------------------------------------------------------ an exit


def test_exit_with_nat(lab: Lab) -> None:
    """The laptop has default routes of the best metrics that there are."""
    server, laptop = cable(lab)
    internet = lab.host("internet")
    lab.link(server, ["203.0.113.1/24", "2001:db8:113::1/64"], internet, ["203.0.113.2/24", "2001:db8:113::2/64"])
    for address in ("9.9.9.9/32", "2620:fe::fe/128"):
        internet.ip(f"address add {address} dev lo")
    server.ip("route add default via 203.0.113.2")
    server.ip("-6 route add default via 2001:db8:113::2")
    server.ip(f"address add {SERVER_6}/64 dev eth0")
    laptop.ip("address add 2001:db8::2/64 dev eth0")
    laptop.ip(f"route add default via {SERVER}")
    laptop.ip(f"-6 route add default via {SERVER_6} metric 1")
    before = [laptop.ip(f"{family} route show default") for family in ("-4", "-6")]
    with reader({"server": server, "laptop": laptop}) as somebody:
        serve_tunnel(*somebody.machines.values())
        with capture(internet, "eth0", "icmp or icmp6") as arriving:
            somebody.follow(read_page("exit-with-nat"))
        assert {str(it.source) for it in arriving.packets if str(it.destination) in ("9.9.9.9", "2620:fe::fe")} == {
            "203.0.113.1",
            "2001:db8:113::1",
        }
        log = somebody.machines["laptop"].log("tapotun@exit")
        assert "WARNING" not in log, log
        somebody.machines["laptop"].stop()
        assert [laptop.ip(f"{family} route show default") for family in ("-4", "-6")] == before


# ------------------------------------------------------------------ tokens


def test_rotate_a_token(lab: Lab) -> None:
    server, client = cable(lab)
    with reader({"server": server, "client": client}) as somebody:
        machines = somebody.machines
        serve_tunnel(*machines.values())
        steps = read_page("rotate-a-token")
        (new,) = (number for number, step in enumerate(steps) if "--write" in step.text)
        somebody.follow(steps[:new])
        wait_for_ping(client, "10.10.0.1")
        somebody.follow(steps[new : new + 2])
        (line,) = re.findall(r'"token": "sha256:\w+"', machines["client"].output)
        path = "/etc/tapotun/office.json"
        machines["server"].write(path, re.sub(r'"token": ".*"', line, machines["server"].read(path)))
        assert ping(client, "10.10.0.1").ok  # "goes on with the old token"
        somebody.follow(steps[new + 2 :])
        assert "refused: unknown or missing token" in machines["server"].log("tapotun@office")
        assert client.run(["stat", "-c", "%a", "/etc/tapotun/office.token"]).stdout == "640\n"


# ------------------------------------------------------------------ the original


@contextmanager
def original(host: Host, role: str, *arguments: str) -> Iterator[Process]:
    """The deployed program: here the strict peer of the interoperability tests, which complains of deviations."""
    argv = [sys.executable, "-m", "tests.basepeer", role, *arguments]
    with host.start(argv, name=f"original-{role}", cwd=ROOT) as peer:
        peer.wait_for_log("READY", BACK_S)
        yield peer
        peer.stop(10)
        assert "VIOLATION" not in peer.log, peer.tail()


def test_from_the_original_and_back(lab: Lab) -> None:
    """The server is replaced while both clients are the original, then one client; and all the way back."""
    server, hosts = lab.host("server"), [lab.host(f"client-{number}") for number in (1, 2)]
    for number, host in enumerate(hosts, 1):
        lab.link(server, f"192.0.{number}.1/24", host, f"192.0.{number}.2/24")
        host.hosts({NAME: f"192.0.{number}.1"})
    raw = ("test-a", "test-b")
    of_server = ["--host", "127.0.0.1", "--net", "10.10.0.1/24", "--tun", "corp0", "--mtu", "1400", "--proxied"]
    for number, token in enumerate(raw, 2):
        of_server += ["--client", f"{sha1(token)}:10.10.0.{number}"]
    with reader({"server": server, "client-1": hosts[0]}) as somebody:
        machines = somebody.machines
        serve_tunnel(machines["server"], machines["client-1"])
        authority = hosts[1].tmp / "authority.pem"
        authority.write_text(machines["server"].read(AUTHORITY), encoding="utf-8")
        of_client = ["--tun", "corp0", "--proxied", "--retry", "0.5", "1", "--ca-file", str(authority)]

        def client(number: int) -> AbstractContextManager[Process]:
            return original(hosts[number], "client", f"https://{NAME}/ip", raw[number], *of_client)

        def all_answer() -> None:
            for host in hosts:
                wait_for_ping(host, "10.10.0.1", BACK_S)

        steps = read_page("from-the-original")

        def follow(section: str, part: slice = slice(None)) -> None:
            somebody.follow([step for step in steps if step.section == section][part])

        follow("The config")
        with ExitStack() as first, ExitStack() as second:
            with original(server, "server", *of_server):
                first.enter_context(client(0))
                second.enter_context(client(1))
                all_answer()
            follow("The server", slice(1))
            all_answer()  # "within ten seconds"
            follow("The server", slice(1, None))
            first.close()
            follow("A client")
            assert "tapotun-trio" in machines["server"].shell("tapotun status\n")
            all_answer()
            follow("Back")
            assert not has_interface(hosts[0], "corp0")
            with original(server, "server", *of_server), client(0):
                all_answer()
