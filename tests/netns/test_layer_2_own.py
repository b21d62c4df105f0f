"""What is the hub's own in a segment: the addresses of its bridge or interface, and of machines on its side."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.harness import Lab, capture, wait_for_ping, wait_until

from .families import BOTH, Family
from .segments import (
    BRIDGE,
    BROADCAST,
    EXPERIMENT,
    HUB,
    INTERFACE,
    LAN,
    PATIENCE_S,
    Segment,
    Site,
    advertisement,
    arp_reply,
    mac_of,
    member,
    raw_socket,
)

pytestmark = pytest.mark.netns

BRIDGES_NEW: Final = bytes.fromhex("029900000077")


def spoof(site: Site, mac: bytes, to: bytes = BROADCAST) -> None:
    """The machine of the site sends a frame from this address."""
    with raw_socket(site.machine) as sock:
        sock.send(to + mac + EXPERIMENT + bytes(46))


def refuses(segment: Segment, site: Site, mac: bytes) -> bool:
    """Whether the hub drops one frame from this address as one that the site may not use."""
    before = segment.drops(site.name).get("bad-mac", 0)
    with capture(segment.hub.machine, LAN) as seen:
        spoof(site, mac)
        wait_until(
            lambda: (
                segment.drops(site.name).get("bad-mac", 0) > before
                or any(frame[6:14] == mac + EXPERIMENT for frame in seen.frames)
            ),
            PATIENCE_S,
            "the frame",
        )
    return segment.drops(site.name).get("bad-mac", 0) > before


@pytest.mark.usefixtures("each_plane")
def test_no_client_uses_the_address_of_a_machine_on_the_hubs_side(lab: Lab) -> None:
    """Without `macs` it would get what the others send there. A reload pins the address, and sets it free."""
    segment = Segment(lab, "one", "other")
    hub, one, other = segment.sites
    with segment.connected(macs=[hub.mac.hex(":")]) as daemons:
        for site in (one, other):
            for address in hub.addresses:
                assert wait_for_ping(site.machine, address, PATIENCE_S).ok
        assert refuses(segment, one, hub.mac)
        daemons[HUB].wait_for_log(
            f"one: frames from {hub.mac.hex(':')} are dropped, which is among the macs of this server"
        )
        assert segment.macs()[hub.mac.hex(":")] is None
        for address in hub.addresses:
            assert wait_for_ping(other.machine, address, PATIENCE_S).ok
        segment.reload(daemons[HUB], macs=[])
        assert not refuses(segment, one, hub.mac)

        def is_behind_one() -> bool:
            """After each frame of the hub's machine itself, such as a probe of a neighbour, it is there again."""
            spoof(one, hub.mac)
            return segment.macs().get(hub.mac.hex(":")) == "one"

        wait_until(is_behind_one, PATIENCE_S, "the address to be behind the client")
        segment.reload(daemons[HUB], macs=[hub.mac.hex(":")])
        assert refuses(segment, one, hub.mac)
        assert segment.macs()[hub.mac.hex(":")] is None
        assert daemons[HUB].log.count("connected from") == len(segment.branches)


def test_the_address_of_a_renamed_bridge_stays_the_hubs_own(lab: Lab) -> None:
    """And another interface that has got the name of the bridge is not the hub's."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    with segment.connected():
        assert refuses(segment, branch, mac_of(hub.gateway, BRIDGE))
        hub.gateway.ip(f"link set {BRIDGE} down")
        hub.gateway.ip(f"link set {BRIDGE} name renamed")
        hub.gateway.ip(f"link set renamed address {BRIDGES_NEW.hex(':')}")
        hub.gateway.ip("link set renamed up")
        hub.gateway.ip(f"link add {BRIDGE} type bridge")
        foreign = mac_of(hub.gateway, BRIDGE)
        wait_until(lambda: refuses(segment, branch, BRIDGES_NEW), PATIENCE_S, "its new address to be known")
        assert not refuses(segment, branch, foreign)
        assert hub.ports()[INTERFACE] == "forwarding"
        assert segment.status()["state"] == "up"


@BOTH
def test_no_client_claims_an_address_that_the_hubs_interface_got_from_others(lab: Lab, family: Family) -> None:
    """As by DHCP on an interface that is no port of a bridge."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    address, own = family("10.30.0.254"), family("10.30.0.99")
    guarded: dict[str, Any] = {"bridge": None, "arp_guard": True, "net": family("10.40.0.1/24")}
    with segment.connected(member("branch"), **guarded):
        hub.gateway.ip(f"address add {address}/{24 if family.version == 4 else 64} dev {INTERFACE}")
        claim = (arp_reply if family.version == 4 else advertisement)(branch.mac, address)
        honest = (arp_reply if family.version == 4 else advertisement)(branch.mac, own)

        def is_refused() -> bool:
            before = segment.drops("branch").get("arp-guard", 0)
            with capture(hub.gateway, INTERFACE) as seen:
                with raw_socket(branch.machine) as sock:
                    sock.send(claim)
                    sock.send(honest)
                seen.wait_for_frames(honest.__eq__, 1, PATIENCE_S)
            return claim not in seen.frames and segment.drops("branch").get("arp-guard", 0) > before

        wait_until(is_refused, PATIENCE_S, "the claim to be refused")
