"""A TAP interface's life as a port of a bridge: it follows the session, and goes with the process, however it ends."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import ExitStack
from functools import partial
from typing import Final

import pytest

from tests.harness import ROOT, Lab, no_leaks, ping, tapotun, wait_for_ping, wait_until

from .segments import BRIDGE, HUB, INTERFACE, LAN, PATIENCE_S, Segment, Site, has_carrier, member, write_config
from .topologies import TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, addresses, has_interface, running, token

pytestmark = pytest.mark.netns

NET: Final = ["10.30.0.254/24", "fd00:30::fe/64"]
OWN_BRIDGE: Final = {"name": BRIDGE, "create": True}


def has_port(site: Site) -> bool:
    """Whether the interface is a port of the site's bridge."""
    return INTERFACE in site.ports()


def has_no_port(site: Site) -> bool:
    """The opposite."""
    return not has_port(site)


@pytest.mark.parametrize("create", [False, True], ids=["another-programs", "our-own"])
def test_kill_9_leaves_no_bridge_port_behind(lab: Lab, create: bool) -> None:
    """Nor anything else, once it has run again. A bridge of ours is taken over with its other ports."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    fields = {"bridge": OWN_BRIDGE if create else BRIDGE, "net": NET}
    if create:
        for site in segment.sites:
            site.gateway.ip(f"link del {BRIDGE}")

    def plug_in() -> None:
        """As an operator's machine does, by a rule of its own."""
        for site in segment.sites if create else ():
            site.gateway.ip(f"link set {LAN} master {BRIDGE}")

    with no_leaks(hub.gateway, branch.gateway):
        for killed in (True, False):
            with ExitStack() as stack:
                clients = {"branch": {"bridge": fields["bridge"]}}
                daemons = stack.enter_context(segment.connected(clients=clients, **fields))
                plug_in()
                for address in branch.addresses:
                    assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
                assert addresses(hub.gateway, BRIDGE) == [NET[0]]
                assert NET[1] in addresses(hub.gateway, BRIDGE, 6)
                if not killed:
                    continue
                for daemon in daemons.values():
                    daemon.kill()
                for site in segment.sites:
                    wait_until(partial(has_no_port, site), PATIENCE_S, "the port to be gone")
                    assert not has_interface(site.gateway, INTERFACE)
                    assert site.ports() == {LAN: "forwarding"}, "what is not ours stays where it was"


def test_ipv6_that_is_switched_off_on_the_port_alone(lab: Lab) -> None:
    """As operators do it with ports of bridges. The addresses are the bridge's, whose setting counts."""
    segment = Segment(lab, "branch")
    branch = segment.branches["branch"].gateway
    own = ["10.30.0.66/24", "fd00:30::66/64"]
    entry = member("branch", ip=[each.partition("/")[0] for each in own])
    with segment.connected(entry, net=NET, clients={"branch": {"rotate_s": [0.5, 1]}}) as daemons:
        wait_until(lambda: own[1] in addresses(branch, BRIDGE, 6), PATIENCE_S, "the addresses")
        branch.sysctl(f"net.ipv6.conf.{INTERFACE}.disable_ipv6", 1)
        for _ in range(2):
            before = segment.status()["peers"][0]["endpoint"]
            wait_until(lambda: segment.status()["peers"][0]["endpoint"] != before, PATIENCE_S, "a rotation")  # noqa: B023
        assert addresses(branch, BRIDGE) == own[:1]
        assert own[1] in addresses(branch, BRIDGE, 6)
        assert "no IPv6" not in daemons["branch"].log
        branch.sysctl(f"net.ipv6.conf.{BRIDGE}.disable_ipv6", 1)
        daemons["branch"].wait_for_log("this machine has no IPv6", PATIENCE_S)
        branch.sysctl(f"net.ipv6.conf.{BRIDGE}.disable_ipv6", 0)
        wait_until(lambda: own[1] in addresses(branch, BRIDGE, 6), PATIENCE_S, "the address again")


def test_ipv6_that_is_switched_off_whenever_our_own_bridge_appears(lab: Lab) -> None:
    """As systemd-sysctl does it. Where an attempt failed, the bridge is gone, and its setting with it."""
    segment = Segment(lab, "branch")
    hub, branch = segment.hub.gateway, segment.branches["branch"].gateway
    entry = member("branch", ip=["10.30.0.66", "fd00:30::66"])
    switch = "/proc/sys/net/ipv6/conf/br9/disable_ipv6"
    config = segment.client("branch", bridge={"name": "br9", "create": True})
    with (
        running(hub, write_config(hub, segment.server(entry, net=["10.30.0.1/24", "fd00:30::1/64"])), name="hub"),
        branch.start(["sh", "-c", f"while :; do {{ echo 1 >{switch}; }} 2>/dev/null; sleep 0.001; done"]) as switcher,
        running(branch, write_config(branch, config), until=UPLOADING, name="client") as daemon,
    ):
        daemon.wait_for_log("this machine has no IPv6", PATIENCE_S)
        alone = ["10.30.0.66/24"], False
        wait_until(
            lambda: (addresses(branch, "br9"), "fd00:30::66/64" in addresses(branch, "br9", 6)) == alone,
            PATIENCE_S,
            "IPv4 alone",
            daemon.tail,
        )
        switcher.kill()
        branch.sysctl("net.ipv6.conf.br9.disable_ipv6", 0)
        wait_until(lambda: "fd00:30::66/64" in addresses(branch, "br9", 6), PATIENCE_S, "IPv6", daemon.tail)
        assert addresses(branch, "br9") == ["10.30.0.66/24"]


def test_the_carrier_follows_the_session(lab: Lab) -> None:
    """At the client: whether there is one. At the hub: whether there is any. So a bridge sees a dead tunnel."""
    segment = Segment(lab, "one", "other")
    hub, one, other = (site.gateway for site in segment.sites)
    with ExitStack() as stack:
        first = stack.enter_context(running(hub, segment.server(), name="tapotun-hub"))
        assert not has_carrier(hub)
        clients = {
            name: stack.enter_context(
                running(segment.branches[name].gateway, segment.client(name), until=UPLOADING, name=f"tapotun-{name}")
            )
            for name in segment.branches
        }
        for host in (hub, one, other):
            wait_until(partial(has_carrier, host), PATIENCE_S, f"a carrier at {host.name}")
        clients["one"].stop()
        assert not has_interface(one, INTERFACE)
        for address in segment.hub.addresses:
            assert wait_for_ping(segment.branches["other"].machine, address, PATIENCE_S).ok
        assert has_carrier(hub)
        first.kill()
        wait_until(lambda: not has_carrier(other), PATIENCE_S, "no carrier without a server", clients["other"].tail)
        wait_until(
            lambda: segment.branches["other"].ports()[INTERFACE] == "disabled", PATIENCE_S, "the bridge to see it"
        )
        stack.enter_context(running(hub, segment.server(), name="tapotun-hub"))
        for host in (hub, other):
            wait_until(partial(has_carrier, host), PATIENCE_S, f"a carrier at {host.name}")
        clients["other"].stop()
        wait_until(lambda: not has_carrier(hub), PATIENCE_S, "no carrier without a client")
        assert hub.ip(f"link show {INTERFACE}")[0]["operstate"] == "DOWN"


def test_a_port_that_somebody_takes_out_of_the_bridge_is_put_back(lab: Lab) -> None:
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    with segment.connected() as daemons:
        for site in segment.sites:
            site.gateway.ip(f"link set {INTERFACE} nomaster")
        for site in segment.sites:
            wait_until(partial(has_port, site), PATIENCE_S, "the port to be back")
        for address in branch.addresses:
            assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
        assert "restarting in" not in "".join(daemon.log for daemon in daemons.values())


@pytest.mark.parametrize(
    ("bridge", "told"),
    [
        ("br1", "seg0: .*there is no bridge br1; make it"),
        ({"name": BRIDGE, "create": True}, 'seg0: bridge br0: another program made it; leave out "create"'),
        (LAN, "seg0: .*eth0 is an interface.*, and no bridge"),
    ],
)
def test_a_reload_to_a_bridge_that_cannot_be_used_interrupts_nobody(lab: Lab, bridge: object, told: str) -> None:
    """At either end. It is refused before anything is stopped."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    with segment.connected() as daemons:
        write_config(hub.gateway, segment.server(bridge=bridge))
        daemons[HUB].signal(signal.SIGHUP)
        daemons[HUB].wait_for_log(told, PATIENCE_S)
        daemons[HUB].wait_for_log("reload: nothing was changed", PATIENCE_S)
        config = next(branch.gateway.tmp.glob("tapotun-branch*.json"))
        config.write_text(json.dumps([segment.client("branch", bridge=bridge)]), encoding="utf-8")
        daemons["branch"].signal(signal.SIGHUP)
        daemons["branch"].wait_for_log(told, PATIENCE_S)
        daemons["branch"].wait_for_log("reload: nothing was changed", PATIENCE_S)
        for address in branch.addresses:
            assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
        for daemon in daemons.values():
            assert "session ended" not in daemon.log
        assert daemons[HUB].log.count("connected from") == 1


def test_the_mac_address_stays_across_restarts_and_differs_between_sites(lab: Lab) -> None:
    segment = Segment(lab, "one", "other")
    seen: list[list[str]] = []
    for _ in range(2):
        with segment.connected():
            links = [site.gateway.ip(f"link show {INTERFACE}")[0] for site in segment.sites]
        seen.append([link["address"] for link in links])
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == len(segment.sites)
    for text in seen[0]:
        assert int(text[:2], 16) & 3 == 2, "locally administered, and of one station"
    with segment.connected(mac="02:00:5e:10:00:01", clients={"one": {"mac": "02:00:5e:10:00:02"}}):
        for site, last in zip(segment.sites, ("01", "02"), strict=False):
            assert site.gateway.ip(f"link show {INTERFACE}")[0]["address"] == f"02:00:5e:10:00:{last}"


# ------------------------------------------------------------------ peers that know nothing of it


def test_a_base_client_is_refused_and_told_why(lab: Lab) -> None:
    """With 406, for either request; the log has a line for people. Everybody else's frames pass."""
    segment = Segment(lab, "branch", "old")
    hub, branch, old = segment.sites
    config = segment.server(member("branch"), member("old", ip="10.30.0.9"), net=NET[0])
    with ExitStack() as stack:
        daemon = stack.enter_context(running(hub.gateway, config, name="tapotun-hub"))
        stack.enter_context(running(branch.gateway, segment.client("branch"), until=UPLOADING, name="tapotun-branch"))
        for request in (
            f"GET /ip HTTP/1.1\r\nHost: hub\r\nx-api-key: {token('old')}\r\n\r\n",
            f"PUT /ip HTTP/1.1\r\nHost: hub\r\nx-api-key: {token('old')}\r\nTransfer-Encoding: chunked\r\n\r\n",
        ):
            with old.gateway.socket() as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect(("172.30.3.1", 8080))
                sock.sendall(request.encode())
                assert sock.recv(200).startswith(b"HTTP/1.1 406 ")
        text = r"old: \S+ refused: this interface carries Ethernet, and the peer does not offer it"
        daemon.wait_for_log(text, PATIENCE_S)
        argv = [
            sys.executable,
            "-m",
            "tests.basepeer",
            "client",
            "http://172.30.3.1:8080/ip",
            token("old"),
            "--tun",
            "tun0",
        ]
        before = segment.status()["refusals"]["no-tap"]
        with old.gateway.start([*argv, "--tun", "tun0"], name="base-client", cwd=ROOT) as peer:
            wait_until(lambda: segment.status()["refusals"]["no-tap"] > before, PATIENCE_S, "its GET", peer.tail)
            assert not has_interface(old.gateway, "tun0")
            peer.kill()
        for address in branch.addresses:
            assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
        # One of ours that wants IP packets is none the wiser, and says so.
        config = segment.client("old", device="tun", bridge=None)
        with tapotun(old.gateway, [config], name="tapotun-old") as ours:
            ours.wait_for_log('406.*"device": "tun"', PATIENCE_S)
            assert not has_interface(old.gateway, INTERFACE)


def test_a_base_server_is_no_switch(lab: Lab) -> None:
    """A client that insists on Ethernet ends the session with a line, and tries again later."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    client = member("branch", ip=TUNNEL_CLIENT)
    argv = [sys.executable, "-m", "tests.basepeer", "server", "--net", f"{TUNNEL_SERVER}/24", "--tun", "tun0"]
    argv += ["--client", f"{client['token']}:{TUNNEL_CLIENT}"]
    with hub.gateway.start(argv, name="base-server", cwd=ROOT) as peer:
        peer.wait_for_log("READY", PATIENCE_S)
        with tapotun(branch.gateway, [segment.client("branch")]) as daemon:
            text = 'the server\'s interface carries IP packets, and this client\'s config says "device": "tap"'
            daemon.wait_for_log(text, PATIENCE_S)
            daemon.wait_for_log("trying again", PATIENCE_S)
            assert not has_interface(branch.gateway, INTERFACE)
            assert branch.ports() == {LAN: "forwarding"}
        peer.stop(10)


def test_a_server_that_becomes_a_switch_and_back(lab: Lab) -> None:
    """A client that says nothing of the kind follows: its TUN interface is replaced by a TAP interface, and again."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    inside, kinds = ("10.31.0.1", "fd00:31::1"), ("tun", "tap", "tun")
    own = member("branch", ip=["10.31.0.2", "fd00:31::2"])
    common = {"net": ["10.31.0.1/24", "fd00:31::1/64"], "bridge": None}
    with ExitStack() as stack:
        client = stack.enter_context(
            tapotun(branch.gateway, [segment.client("branch", device=None, bridge=None)], name="tapotun-branch")
        )
        for kind in kinds:
            with running(hub.gateway, segment.server(own, device=kind, **common), name=f"tapotun-{HUB}"):
                for address in inside:
                    assert wait_for_ping(branch.gateway, address, PATIENCE_S).ok, client.tail()
                found = branch.gateway.ip(f"link show {INTERFACE}")[0]
                assert ("ether" in found["link_type"]) == (kind == "tap")
                assert ping(hub.gateway, own["ip"][0]).ok
                assert ping(hub.gateway, own["ip"][1]).ok
        client.stop()
