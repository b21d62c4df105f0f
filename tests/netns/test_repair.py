"""What others take from our interfaces: noticed, told, put back; and shown while it is missing."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tapotun_trio.host.items import Item
from tapotun_trio.host.netlink.network import open_netlink
from tapotun_trio.host.tun import open_tun
from tests.harness import Host, Lab, Process, command, ping, wait_for_ping, wait_until

from ..twins import FAMILIES, as_ipv6, twin
from .dual import HUB, dual_cable, dual_config, status
from .families import BOTH, Family
from .fresh_namespace import in_fresh_namespace
from .test_admin import ADMIN, URL, admin, curl, write
from .topologies import (
    PROTOCOL,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    addresses,
    allowed,
    cable,
    client_config,
    has_interface,
    index,
    mark_rules,
    mtu,
    routes,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
BEHIND: Final = "10.60.0.0/24"  # the client
PUSHED: Final = "10.61.0.0/24"  # behind the server
MARK: Final = {"value": 100, "table": 100}
KERNEL: Final = "2"  # RTPROT_KERNEL: the routes that it makes itself for addresses


@dataclass(frozen=True)
class End:
    """One end of a tunnel, and what it has on its machine."""

    host: Host
    daemon: Process
    other: str
    network: str
    """Where it has a route to."""
    version: int = 4

    def status(self) -> dict[str, Any]:
        answer = self.host.run([*command(), "status", "--json"], timeout=PATIENCE_S + 30).stdout
        [process] = json.loads(answer)["processes"]
        [interface] = process["interfaces"]
        assert isinstance(interface, dict)
        return interface

    def until(self, what: str, holds: Callable[[], object]) -> None:
        wait_until(holds, PATIENCE_S, what, self.daemon.tail)

    def until_state(self, state: str) -> dict[str, Any]:
        self.until(f"state {state}", lambda: self.status()["state"] == state)
        return self.status()

    def kernel(self) -> list[object]:
        """All that we have in the kernel, by the interface's name."""
        addresses = [
            (entry["local"], entry["prefixlen"])
            for link in self.host.ip(f"-{self.version} address show")
            if link["ifname"].startswith("tun")
            for entry in link["addr_info"]
        ]
        ours = {
            route
            for table in ("main", "100")
            for route in routes(self.host, table, self.version)
            if route[2] == PROTOCOL or (route[1].startswith("tun") and route[2] == KERNEL)
        }
        return [addresses, ours, mark_rules(self.host, self.version)]

    def reload(self) -> str:
        return self.host.run([*command(), "reload"], timeout=PATIENCE_S + 30).stdout


@contextmanager
def ends(lab: Lab, version: int = 4) -> Iterator[tuple[End, End]]:
    """A server and a client that are connected, each with an address, a route, and a mark. ``version``: of these; the
    cable has IPv4."""
    server, client = cable(lab)
    hub = server_config(allowed("laptop", routes=[BEHIND]), push_routes=[PUSHED], mark=MARK, ips=["10.10.0.254"])
    if version == 6:
        hub |= as_ipv6({name: hub[name] for name in ("net", "clients", "push_routes", "ips")})
    server_inside, client_inside = twin(TUNNEL_SERVER, version), twin(TUNNEL_CLIENT, version)
    with (
        running(server, write(server, hub, admin=admin())) as one,
        running(client, write(client, client_config(mark=MARK), admin=admin()), until=UPLOADING) as other,
    ):
        wait_for_ping(client, server_inside)
        yield (
            End(server, one, client_inside, twin(BEHIND, version), version),
            End(client, other, server_inside, twin(PUSHED, version), version),
        )


@pytest.mark.parametrize("version", FAMILIES)
def test_what_others_remove_is_put_back_and_told(lab: Lab, version: int) -> None:
    with ends(lab, version) as both:
        for end in both:
            before, number = end.kernel(), index(end.host, "tun0")
            own = {both[0].other: both[1].other, both[1].other: both[0].other}[end.other]
            own, net = f"{own}/{24 if version == 4 else 120}", twin("10.10.0.0/24", version)
            everything = twin("0.0.0.0/0", version)
            assert all(before)
            for words, told in (
                (f"route del {end.network} dev tun0", rf"another program took away route {end.network}: put back"),
                ("rule del fwmark 100", r"took away (IPv6 )?rule fwmark 100 lookup 100: put back"),
                ("route flush table 100", rf"took away route {everything} in table 100: put back"),
                ("address flush dev tun0", rf"took away address {own}.*: put back"),
                (f"address del {own} dev tun0", rf"took away address {own}.*: put back"),
                (f"route del {net} dev tun0", rf"took away route {net}: put back"),
                ("route flush dev tun0", rf"took away route {net}, route .*: put back"),
                ("link set tun0 mtu 1280", r"took away MTU 1500 \(it was set to 1280\): put back"),
            ):
                until_now = end.daemon.log_end
                end.host.ip(f"-{version} {words}")
                end.daemon.wait_for_log(f" WARNING .*{told}", PATIENCE_S, after=until_now)
                end.until(f"all that {words!r} took", lambda: (end.kernel(), mtu(end.host, "tun0")) == (before, 1500))  # noqa: B023
                end.daemon.signal(signal.SIGHUP)  # which also ends the pauses between repairs
                end.daemon.wait_for_log("reload: the config has not changed", PATIENCE_S, after=until_now)
            wait_for_ping(end.host, end.other)
            assert end.until_state("up")["repairs"] >= 6
            assert index(end.host, "tun0") == number
            assert end.status()["restarts"] == 0


def test_ipv6_that_is_switched_off_on_a_running_interface(lab: Lab) -> None:
    """That takes addresses and routes. What is shown as missing is missing, and IPv4 goes on. A client asks for IPv4
    alone then; a server cannot."""
    server, client = dual_cable(lab)
    with (
        running(server, dual_config(push_routes=["fd00:61::/64"], mark=MARK)) as server_daemon,
        running(client, client_config(mark=MARK), until=UPLOADING) as daemon,
    ):
        wait_for_ping(client, HUB[1])
        server.sysctl("net.ipv6.conf.tun0.disable_ipv6", 1)
        server_daemon.wait_for_log(" WARNING .*stays missing for now", PATIENCE_S)
        [line] = [line for line in server_daemon.log.splitlines() if "stays missing for now" in line]
        assert f"address {HUB[1]}/64, route ::/0 in table 100 stays missing for now: " in line
        assert "sysctl -w net.ipv6.conf.tun0.disable_ipv6=0" in line
        assert "rule" not in line
        assert (mark_rules(server), mark_rules(server, 6)) == ([(100, "100", PROTOCOL)], [(100, "100", PROTOCOL)])
        assert status(server)["state"] == "degraded"
        client.sysctl("net.ipv6.conf.tun0.disable_ipv6", 1)
        # Whether it tells what is missing depends on which of its tasks sees it first.
        wait_until(
            lambda: status(client)["state"] == "up" and not mark_rules(client, 6),
            PATIENCE_S,
            "IPv4 alone",
            daemon.tail,
        )
        assert addresses(client, "tun0", 6) == []
        assert mark_rules(client) == [(100, "100", PROTOCOL)]
        assert ping(client, HUB[0]).ok
        for host in (server, client):
            host.sysctl("net.ipv6.conf.tun0.disable_ipv6", 0)
        server_daemon.wait_for_log("everything of this interface is in place again", PATIENCE_S)
        wait_for_ping(client, HUB[1], PATIENCE_S)
        wait_until(lambda: len(mark_rules(client, 6)) == 1, PATIENCE_S, "the rule", daemon.tail)


def test_ipv6_that_is_switched_off_whenever_the_interface_appears(lab: Lab) -> None:
    """As systemd-sysctl does it, where a file of sysctl.d names the interface. The client has IPv4, and once it is not
    switched off any more, both."""
    server, client = dual_cable(lab)
    switch = "/proc/sys/net/ipv6/conf/tun0/disable_ipv6"
    with (
        running(server, dual_config()),
        client.start(["sh", "-c", f"while :; do {{ echo 1 >{switch}; }} 2>/dev/null; sleep 0.001; done"]) as switcher,
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        daemon.wait_for_log("this machine has no IPv6", PATIENCE_S)  # it may have had IPv6 for a moment
        wait_until(lambda: status(client)["state"] == "up", PATIENCE_S, "IPv4 alone", daemon.tail)
        wait_for_ping(client, HUB[0], PATIENCE_S)
        assert status(client)["restarts"] <= 1
        assert daemon.log.count("this machine has no IPv6") == 1
        switcher.kill()
        client.sysctl("net.ipv6.conf.tun0.disable_ipv6", 0)
        wait_for_ping(client, HUB[1], PATIENCE_S)
        assert ping(client, HUB[0]).ok


def test_our_own_changes_are_nobody_elses(lab: Lab) -> None:
    """A reload that takes away a thousand routes, and one that brings them back."""
    server, _ = cable(lab)
    nets = [f"10.{60 + number // 256}.{number % 256}.0/24" for number in range(1000)]

    def config(chosen: list[str], mark: int) -> Path:
        fields = {"mark": {"value": mark, "table": mark}}
        return write(server, server_config(allowed("laptop", routes=chosen), **fields))

    with running(server, config(nets, 100)) as daemon:
        end = End(server, daemon, TUNNEL_CLIENT, BEHIND)
        for chosen, mark in (([], 101), (nets, 101), (nets[:500], 100)):
            config(chosen, mark)
            end.reload()
            assert len([route for route in routes(server) if route[2] == PROTOCOL]) == len(chosen)
            assert mark_rules(server) == [(mark, str(mark), PROTOCOL)]
        status = end.until_state("up")
        assert status["repairs"] == 0
        assert " WARNING " not in daemon.log


def test_a_route_that_is_another_programs_now_stays_and_is_shown(lab: Lab) -> None:
    with ends(lab) as (hub, _):
        hub.host.ip(f"route replace {BEHIND} via {SERVER.replace('.1', '.2')} dev eth0")
        hub.daemon.wait_for_log(
            f" WARNING .*route {BEHIND} stays missing for now: .*through eth0 conflicts with it", PATIENCE_S
        )
        status = hub.until_state("degraded")
        assert f"route {BEHIND}" in status["degraded"]
        assert f"route {BEHIND}" in hub.host.run([*command(), "status"], timeout=PATIENCE_S + 30).stdout
        hub.host.ip(f"route del {BEHIND} dev eth0")
        hub.reload()  # which may find that it is back already
        assert hub.until_state("up")["degraded"] is None
        assert (BEHIND, "tun0", PROTOCOL) in routes(hub.host)
        hub.daemon.wait_for_log("everything of this interface is in place again", PATIENCE_S)


def test_a_link_that_was_set_down_stays_down_until_a_reload(lab: Lab) -> None:
    with ends(lab) as both:
        for end in both:
            before = end.kernel()
            end.host.ip("link set tun0 down")
            status = end.until_state("degraded")
            assert status["degraded"] == "another program set it down"
            answer = curl(end.host, f"{URL}/readyz")
            assert (answer.status, answer.body) == (503, "tun0: degraded: another program set it down\n")
            metrics = curl(end.host, f"{URL}/metrics", "-H", f"Authorization: Bearer {ADMIN}").body
            assert re.search(r"(?m)^tapotun_interface_degraded\{.*\} 1.0$", metrics)
            assert re.search(r"(?m)^tapotun_interface_up\{.*\} 1.0$", metrics)
            assert end.reload() == "tun0: set up again\n"
            end.until_state("up")
            assert end.kernel() == before
            assert curl(end.host, f"{URL}/readyz").body == "ready\n"
            wait_for_ping(end.host, end.other)


def test_a_new_name_is_followed_and_told(lab: Lab) -> None:
    with ends(lab) as both:
        for end in both:
            before, number = end.kernel(), index(end.host, "tun0")
            end.host.ip("link set tun0 name tun9")
            end.daemon.wait_for_log(" WARNING .*renamed it to tun9", PATIENCE_S)
            assert "tun9" in end.until_state("degraded")["degraded"]
            assert ping(end.host, end.other).ok
            end.host.ip(f"route del {end.network} dev tun9")
            end.until("the route", lambda: (end.network, "tun9", PROTOCOL) in routes(end.host))  # noqa: B023
            assert "renamed from tun9" in end.reload()
            end.until_state("up")
            assert index(end.host, "tun0") == number
            end.until("everything", lambda: end.kernel() == before)  # noqa: B023
            wait_for_ping(end.host, end.other)


def rp_filter(host: Host) -> str:
    return host.run(["cat", "/proc/sys/net/ipv4/conf/tun0/rp_filter"]).stdout.strip()


def test_a_strict_filter_that_comes_later_is_loosened_and_told(lab: Lab) -> None:
    with ends(lab) as both:
        for end in both:
            for name in ("all", "tun0"):
                assert rp_filter(end.host) != "1"
                until_now = end.daemon.log_end
                end.host.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
                end.daemon.wait_for_log(
                    r" WARNING .*took away the loose reverse path filter \(strict drops replies to marked packets\)"
                    ".*: put back.*/etc/sysctl.d",
                    PATIENCE_S,
                    after=until_now,
                )
                end.until("loose mode", lambda: rp_filter(end.host) == "2")  # noqa: B023
            assert end.until_state("up")["repairs"] == 2


@pytest.mark.parametrize("how", ["stops", "killed", "link set tun1 down", "link delete tun1"])
def test_a_route_that_another_process_of_ours_had_comes_back_without_blame(lab: Lab, how: str) -> None:
    """Two clients of one server on one machine want the same route; the newer one has it."""
    server, client = cable(lab)
    hub = server_config(allowed("laptop"), allowed("second", "10.10.0.3"), push_routes=[PUSHED])
    with (
        running(server, hub),
        running(client, client_config(), until=UPLOADING, name="first") as daemon,
        running(client, client_config("second", name="tun1"), until=UPLOADING, name="second") as second,
    ):
        first = End(client, daemon, TUNNEL_SERVER, PUSHED)
        first.until("the second one's route", lambda: (PUSHED, "tun1", PROTOCOL) in routes(client))
        if how == "stops":
            assert second.stop(5) == 0
        elif how == "killed":
            second.kill()
        else:
            client.ip(how)
        daemon.wait_for_log(f" INFO .*another interface of this program had route {PUSHED}", PATIENCE_S)
        if how != "link delete tun1":  # that is made again
            first.until("its route", lambda: (PUSHED, "tun0", PROTOCOL) in routes(client))
        assert "another program" not in daemon.log


def test_a_route_of_ours_that_another_program_made_its_own_is_shown_at_once(lab: Lab) -> None:
    with ends(lab) as (_, end):
        end.host.ip(f"route change {PUSHED} dev tun0 mtu 1000")
        assert f"route {PUSHED}" in end.until_state("degraded")["degraded"]
        end.host.ip(f"route del {PUSHED} dev tun0")
        end.until("it to be ours again", lambda: (PUSHED, "tun0", PROTOCOL) in routes(end.host))


def indexes(host: Host) -> list[int]:
    return [int(link["ifindex"]) for link in host.ip("link show")]


@pytest.mark.parametrize("words", ["link set tun0 netns", "link delete tun0"])
def test_an_interface_that_was_moved_or_deleted_is_made_again(lab: Lab, words: str) -> None:
    with ends(lab) as both:
        for end in both:
            before, number = end.kernel(), index(end.host, "tun0")
            if "netns" in words:
                other = end.host.tmp / "other"
                script = f"echo $$ >{other}.new; mv {other}.new {other}; exec sleep 99"
                end.host.start(["unshare", "-n", "sh", "-c", script])
                end.until("another namespace", other.exists)
                words = f"link set tun0 netns {other.read_text()}"
            end.host.ip(words)
            end.until("its end", lambda: number not in indexes(end.host))  # noqa: B023
            end.until("another one", lambda: has_interface(end.host, "tun0"))  # noqa: B023
            end.until("everything of it", lambda: end.kernel() == before)  # noqa: B023
            assert end.status()["restarts"] == 1
            if "netns" in words:
                assert "moved this interface to another network namespace" in end.status()["last_error"]
            wait_for_ping(end.host, end.other, PATIENCE_S)


@BOTH
@in_fresh_namespace
async def test_a_look_at_thousands_of_routes_lets_others_run(family: Family) -> None:
    """And so does putting them back."""
    nets = [family.route(f"10.{number >> 8}.{number & 255}.0/24") for number in range(1 << 12, (1 << 12) + 5000)]
    items: list[Item] = [family.address("192.168.0.1/24"), *nets, *family.marked()]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with open_tun("tun0"):
        async with open_netlink() as network, trio.open_nursery() as nursery:
            await network.link_up("tun0", 1400)
            await network.add("tun0", items)
            nursery.start_soon(others)
            for words, count in (
                ([], 0),
                (["route", "del", "10.16.7.0/24"], 1),
                (["route", "flush", "dev", "tun0"], 5000),
            ):
                if words:
                    family.ip(*words)
                before, turns = turns, 0
                missing = await network.missing("tun0", items)
                assert len(missing) >= count
                assert turns > len(items) / 200, before
                turns = 0
                await network.add("tun0", missing)
                assert turns > len(missing) / 200
                assert await network.missing("tun0", items) == []
            nursery.cancel_scope.cancel()


# The real systemd-networkd, without the rest of systemd: it needs neither a bus nor udev (where /sys is read-only)


NETWORKD: Final = "/lib/systemd/systemd-networkd"


LAN0: Final = """[Match]
Name=lan0
[Network]
Address=198.51.100.77/24
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


@contextmanager
def networkd(host: Host, settings: str = "") -> Iterator[Process]:
    """It runs on the host, with these lines in [Network] of its config, and configures lan0 as soon as that appears."""
    script = f"""set -e
        mount -o remount,bind,ro /sys
        mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/systemd/network
        mkdir -p /run/systemd/networkd.conf.d
        printf '[Network]\\n{settings}\\n' >/run/systemd/networkd.conf.d/test.conf
        cp {host.tmp}/lan0.network /run/systemd/network/10-lan0.network
        chown -R systemd-network: /run/systemd/netif
        SYSTEMD_LOG_LEVEL=debug exec {NETWORKD}"""
    (host.tmp / "lan0.network").write_text(LAN0, encoding="utf-8")
    with host.start(["sh", "-c", script], name="networkd") as process:
        process.wait_for_log("Enumeration completed", PATIENCE_S)
        yield process


def plug_in_lan0(host: Host, process: Process) -> None:
    """A link appears, and networkd configures it."""
    until_now = process.log_end
    host.ip("link add lan0 type veth peer name lan1")
    host.ip("link set lan1 up")
    process.wait_for_log("lan0: State changed: configuring -> configured", PATIENCE_S, after=until_now)


def test_networkd_takes_rules_and_is_named(lab: Lab) -> None:
    with ends(lab) as (_, end):
        before = end.kernel()
        with networkd(end.host) as process:
            until_now = end.daemon.log_end
            plug_in_lan0(end.host, process)
            assert "Removing foreign routing policy rule" in process.log
            end.daemon.wait_for_log(
                " WARNING .*took away rule fwmark 100 lookup 100.*: put back; systemd-networkd .*"
                "set ManageForeignRoutingPolicyRules=no.* in .*networkd.conf",
                PATIENCE_S,
                after=until_now,
            )
            end.until("the rule", lambda: end.kernel() == before)
            end.until_state("up")
        repairs = end.status()["repairs"]
        end.host.ip("link del lan0")
        with networkd(end.host, "ManageForeignRoutingPolicyRules=no\\nManageForeignRoutes=no") as process:
            plug_in_lan0(end.host, process)
            assert "Removing foreign routing policy rule" not in process.log
            assert end.kernel() == before
        assert end.status()["repairs"] == repairs
