"""The hub as a switch, with real bridges behind every port: what it learns, what it believes, and whom it protects."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

import pytest

from tests.harness import Lab, capture, ping, wait_for_ping, wait_until

from .segments import (
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
    neighbour,
    raw_socket,
)

pytestmark = pytest.mark.netns

MAX_CLIENT_MACS: Final = 1024
CROWD: Final = 10_000
CHUNK: Final = 100


def reach(one: Site, other: Site) -> None:
    """The first machine reaches the other one, in both families, and so it gets answers."""
    for address in other.addresses:
        assert wait_for_ping(one.machine, address, PATIENCE_S).ok


# ------------------------------------------------------------------ learning


def test_a_machine_that_moves_to_another_site_is_found_there(lab: Lab) -> None:
    """It takes its addresses along. Nobody at the hub has to ask again where it is."""
    segment = Segment(lab, "here", "there")
    hub, here, there = segment.sites
    with segment.connected() as daemons:
        reach(here, hub)
        roaming = here.mac
        segment.wait_for_mac(roaming, "here")
        here.machine.ip(f"link set {LAN} down")
        machine = there.machine
        machine.ip(f"link set {LAN} down")
        machine.ip(f"link set {LAN} address {roaming.hex(':')}")
        machine.ip(f"link set {LAN} up")
        for address, length in zip(here.addresses, (24, 64), strict=True):
            machine.ip(f"address add {address}/{length} dev {LAN}")
        for address in hub.addresses:
            assert wait_for_ping(machine, address, PATIENCE_S).ok
        segment.wait_for_mac(roaming, "there")
        assert neighbour(hub.machine, here.addresses[0]) == roaming
        for address in here.addresses:
            assert ping(hub.machine, address).ok
        daemons[HUB].wait_for_log(
            f"{roaming.hex(':')} is behind client there now, and was behind client here", PATIENCE_S
        )


def crowd(number: int) -> bytes:
    """A MAC address of one station among many."""
    return b"\x02\x99" + number.to_bytes(4, "big")


def pour(sock: socket.socket, ears: socket.socket, to: bytes, numbers: Sequence[int]) -> None:
    """Send a frame from each of these stations, until the last one has arrived. What a queue drops does not matter."""
    last = numbers[-1].to_bytes(4, "big")

    def arrived() -> bool:
        for number in numbers:
            sock.send(to + crowd(number) + EXPERIMENT + number.to_bytes(4, "big") + bytes(42))
        try:
            while ears.recv(2000)[14:18] != last:
                pass
        except TimeoutError:
            return False
        return True

    wait_until(arrived, PATIENCE_S, f"station {numbers[-1]} to be heard")


@pytest.mark.usefixtures("each_plane")
def test_ten_thousand_stations_behind_one_client(lab: Lab) -> None:
    """The table keeps 1,024 of them, those that were seen last, and all of everybody else."""
    segment = Segment(lab, "crowded", "quiet")
    hub, crowded, quiet = segment.sites
    with segment.connected():
        reach(quiet, hub)
        to = hub.mac
        with raw_socket(crowded.machine) as sock, raw_socket(hub.machine, kind=EXPERIMENT) as ears:
            for first in range(0, CROWD, CHUNK):
                pour(sock, ears, to, range(first, first + CHUNK))
                if first % 2000 == 0:
                    reach(quiet, hub)
        table = segment.macs()
        assert list(table.values()).count("crowded") == MAX_CLIENT_MACS
        assert table[crowd(CROWD - 1).hex(":")] == "crowded"
        assert crowd(0).hex(":") not in table
        assert table[quiet.mac.hex(":")] == "quiet"
        assert table[to.hex(":")] is None
        sizes = {peer["name"]: peer["macs"] for peer in segment.status()["peers"]}
        assert sizes["crowded"] == MAX_CLIENT_MACS
        assert 1 <= sizes["quiet"] < 10
        reach(quiet, hub)


def test_a_client_that_goes_is_forgotten(lab: Lab) -> None:
    segment = Segment(lab, "branch", "other")
    hub, branch, other = segment.sites
    with segment.connected() as daemons:
        for site in (branch, other):
            reach(site, hub)
        segment.wait_for_mac(branch.mac, "branch")
        daemons["branch"].stop()
        wait_until(lambda: "branch" not in segment.macs().values(), PATIENCE_S, "the table without them")
        assert segment.macs()[other.mac.hex(":")] == "other"


# ------------------------------------------------------------------ who may what


def test_isolated_clients_reach_the_hub_only(lab: Lab) -> None:
    """Neither by a broadcast, nor where a machine knows the other one's address. A reload lifts it."""
    segment = Segment(lab, "one", "other")
    hub, one, other = segment.sites
    with segment.connected(isolate=True) as daemons:
        for site in (one, other):
            reach(site, hub)
        with capture(other.machine, LAN) as seen:
            for address, to in zip(other.addresses, (BROADCAST, other.mac), strict=True):
                assert not ping(one.machine, address, count=1).ok
                one.machine.ip(f"neigh replace {address} lladdr {other.mac.hex(':')} dev {LAN}")
                assert not ping(one.machine, address, count=1).ok
                with raw_socket(one.machine) as sock:
                    sock.send(to + one.mac + EXPERIMENT + bytes(46))
            reach(other, hub)  # what would have come is there by now
        assert not [frame for frame in seen.frames if frame[6:12] == one.mac]
        assert segment.drops("one")["isolated"] >= 3
        segment.reload(daemons[HUB], isolate=False)
        reach(one, other)
        assert daemons[HUB].log.count("connected from") == len(segment.branches)
        assert "session ended" not in daemons[HUB].log


def spoof(site: Site, mac: bytes, to: bytes) -> None:
    """The machine of the site sends a frame that claims to be from somebody else."""
    with raw_socket(site.machine) as sock:
        sock.send(to + mac + EXPERIMENT + bytes(46))


@pytest.mark.usefixtures("each_plane")
def test_a_pinned_address_is_behind_its_client_only_and_a_reload_changes_that(lab: Lab) -> None:
    """The session goes on while the config changes, to other addresses and back."""
    segment = Segment(lab, "pinned", "other")
    hub, pinned, other = segment.sites
    mac, foreign = pinned.mac, bytes.fromhex("029900000001")
    pins = member("pinned", macs=[mac.hex(":")]), member("other")
    with segment.connected(*pins) as daemons:
        daemon = daemons[HUB]
        reach(pinned, hub)
        reach(other, hub)
        before = segment.drops("other").get("bad-mac", 0)
        with capture(hub.machine, LAN) as seen:
            spoof(other, mac, hub.mac)
            segment.wait_for_drops("other", "bad-mac", before + 1)
            daemon.wait_for_log(
                f"other: frames from {mac.hex(':')} are dropped, which is among the macs of client pinned"
            )
            # And the client that has pins may use no other address; its bridge's own noise is dropped too.
            spoof(pinned, foreign, hub.mac)
            text = f"pinned: frames from {foreign.hex(':')} are dropped, which is not among its macs"
            daemon.wait_for_log(text, PATIENCE_S)
            reach(pinned, hub)
        assert not [frame for frame in seen.frames if frame[12:14] == EXPERIMENT]
        assert segment.macs()[mac.hex(":")] == "pinned"
        (row,) = (row for row in segment.mac_rows() if row["mac"] == mac.hex(":"))
        assert row["pinned"]
        segment.reload(daemon, member("pinned", macs=[foreign.hex(":")]), member("other"))
        assert not ping(pinned.machine, hub.addresses[0], count=1).ok
        assert not ping(pinned.machine, hub.addresses[1], count=1).ok
        reach(other, hub)
        segment.reload(daemon, *pins)
        reach(pinned, hub)
        segment.reload(daemon, member("pinned"), member("other"))
        with capture(hub.machine, LAN) as seen:
            spoof(pinned, foreign, hub.mac)
            seen.wait_for_frames(lambda frame: frame[6:14] == foreign + EXPERIMENT, 1, PATIENCE_S)
        assert "session ended" not in daemon.log
        assert daemon.log.count("connected from") == len(segment.branches)


@pytest.mark.usefixtures("each_plane")
def test_a_client_with_an_ip_claims_no_other_address(lab: Lab) -> None:
    """By ARP and by neighbour discovery, also behind a VLAN tag and an extension header. A client without one does not
    claim that of the first, nor the hub's. What each of them may say passes."""
    segment = Segment(lab, "laptop", "site")
    hub, laptop, site = segment.sites
    servers, own = ("10.30.0.254", "fd00:30::fe"), ("10.30.0.66", "fd00:30::66")
    guarded = {
        "net": [f"{servers[0]}/24", f"{servers[1]}/64"],
        "arp_guard": True,
        "bridge": "br0",
    }
    alone = {"laptop": {"bridge": None}}  # its addresses are on its TAP interface
    with segment.connected(member("laptop", ip=list(own)), member("site"), clients=alone, **guarded):
        for machine in (hub.machine, site.machine):
            for address in own:
                assert wait_for_ping(machine, address, PATIENCE_S).ok
        for address in (*servers, *hub.addresses, *site.addresses):
            assert wait_for_ping(laptop.gateway, address, PATIENCE_S).ok
        mac, victim = mac_of(laptop.gateway, INTERFACE), hub.addresses
        tag = b"\x81\0\0\7"
        lies = [
            *(arp_reply(mac, address) for address in (victim[0], servers[0])),
            arp_reply(mac, victim[0], site.mac),
            arp_reply(mac, victim[0], tags=tag),
            *(advertisement(mac, address) for address in (victim[1], servers[1])),
            advertisement(mac, victim[1], options=bytes([0, 1, 4, 0, 0, 0, 0])),
        ]
        before = segment.drops("laptop").get("arp-guard", 0)
        with capture(site.machine, LAN) as seen:
            with raw_socket(laptop.gateway, INTERFACE) as sock:
                for lie in lies:
                    sock.send(lie)
                sock.send(arp_reply(mac, own[0]))
                sock.send(advertisement(mac, own[1]))
            honest = [arp_reply(mac, own[0]), advertisement(mac, own[1])]
            for frame in honest:
                seen.wait_for_frames(frame.__eq__, 1, PATIENCE_S)
        assert not [frame for frame in seen.frames if frame in lies]
        segment.wait_for_drops("laptop", "arp-guard", before + len(lies))
        with raw_socket(site.machine) as sock:
            for lie in (arp_reply(site.mac, own[0]), advertisement(site.mac, own[1]), arp_reply(site.mac, servers[0])):
                sock.send(lie)
        segment.wait_for_drops("site", "arp-guard", 3)
        for address in victim:
            found = neighbour(site.machine, address)
            assert found in (None, hub.mac)
        assert neighbour(hub.machine, own[0]) == mac
