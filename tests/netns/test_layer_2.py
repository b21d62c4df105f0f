"""Two offices and more in one Ethernet segment: what an operator puts through it, with real bridges at each site."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import pytest

from tests.harness import Host, Lab, Packet, Process, capture, no_leaks, ping, wait_for_ping, wait_until

from .segments import (
    BRIDGE,
    BROADCAST,
    EXPERIMENT,
    INTERFACE,
    LAN,
    PATIENCE_S,
    Segment,
    Site,
    leased,
    neighbour,
    raw_socket,
)
from .topologies import mtu

pytestmark = pytest.mark.netns

GROUPS: Final = ("224.0.0.251", "ff02::fb")  # of mDNS
MDNS: Final = 5353
PXE: Final = b"PXEClient:Arch:00007:UNDI:003016"


def all_answer(one: Site, other: Site) -> None:
    """Each machine reaches the other one, in both families."""
    for here, there in ((one, other), (other, one)):
        for address in there.addresses:
            assert wait_for_ping(here.machine, address, PATIENCE_S).ok


def is_echo(packet: Packet) -> bool:
    """An echo request or its reply."""
    return packet.data[packet.header_bytes] in ((8, 0) if packet.version == 4 else (128, 129))


def cross(frames: list[bytes], one: Site, other: Site) -> None:
    """What one machine sends arrives at the other one, byte for byte, and what it sends to one address in order.

    More no switch promises (IEEE 802.1Q section 6.5.3): a frame to everybody may be overtaken by one to a station.
    """
    with capture(other.machine, LAN) as seen, raw_socket(one.machine) as sock:
        for frame in frames:
            sock.send(frame)
        arrived = seen.wait_for_frames(lambda frame: frame in frames, len(frames), PATIENCE_S)
    for to in {frame[:6] for frame in frames}:
        assert [frame for frame in arrived if frame[:6] == to] == [frame for frame in frames if frame[:6] == to]


@pytest.mark.usefixtures("each_plane")
def test_two_offices_are_one_segment(lab: Lab) -> None:
    """ARP, neighbour discovery and pings cross, and nobody is a hop: whatever arrives has the TTL it left with."""
    segment = Segment(lab, "branch")
    hub, branch = segment.hub, segment.branches["branch"]
    with no_leaks(hub.gateway, branch.gateway), segment.connected():
        all_answer(hub, branch)
        for here, there in ((hub, branch), (branch, hub)):
            for address in there.addresses:
                assert neighbour(here.machine, address) == there.mac
        with capture(branch.machine, LAN, "icmp or icmp6") as seen:
            for address in branch.addresses:
                assert ping(hub.machine, address).ok
            wait_until(
                lambda: len({it.version for it in seen.packets if is_echo(it)}) == 2, PATIENCE_S, "both families"
            )
            assert {it.data[8 if it.version == 4 else 7] for it in seen.packets if is_echo(it)} == {64}
        segment.wait_for_mac(branch.mac, "branch")
        segment.wait_for_mac(hub.mac, None)
        assert hub.ports() == branch.ports() == {LAN: "forwarding", INTERFACE: "forwarding"}


@pytest.mark.usefixtures("each_plane")
def test_branches_reach_each_other_beside_the_hubs_interface(lab: Lab) -> None:
    segment = Segment(lab, "one", "other")
    one, other = segment.branches.values()
    with segment.connected():
        all_answer(one, other)
        with capture(segment.hub.gateway, INTERFACE, "icmp or icmp6") as at_the_hub:
            for address in other.addresses:
                assert ping(one.machine, address, size=99).ok
            # What is for the hub shows there, so the capture has not missed the rest.
            all_answer(one, segment.hub)
            at_the_hub.wait_for(1, lambda packet: str(packet.destination) == segment.hub.addresses[0], PATIENCE_S)
        assert not at_the_hub.count(lambda packet: packet.length in (20 + 8 + 99, 40 + 8 + 99))


def tag(number: int, kind: int = 0x8100) -> bytes:
    """A VLAN tag: of 802.1Q, or of 802.1ad with 0x88A8."""
    return struct.pack("!HH", kind, number)


@pytest.mark.usefixtures("each_plane")
def test_vlan_tagged_frames_cross_unchanged(lab: Lab) -> None:
    """One tag with a priority, two as a provider's network has them, and more than anybody looks behind."""
    segment = Segment(lab, "branch")
    hub, branch = segment.hub, segment.branches["branch"]
    with segment.connected():
        all_answer(hub, branch)
        for one, other in ((hub, branch), (branch, hub)):
            frames = []
            stacks = (b"", tag(0xA007), tag(100, 0x88A8) + tag(7), tag(1) + tag(2) + tag(3), 9 * tag(4))
            for number, tags in enumerate(stacks):
                full = 1500 - len(tags) + 4 * tags.startswith(b"\x81\0")  # packet(7) allows 802.1Q's beside the MTU
                for to in (other.mac, BROADCAST):
                    frames += [to + one.mac + tags + EXPERIMENT + bytes([number]) * size for size in (46, full)]
            cross(frames, one, other)


@pytest.mark.usefixtures("each_plane")
def test_jumbo_frames(lab: Lab) -> None:
    """Of 9,000 bytes, between machines whose networks have them, over an internet that has not."""
    segment = Segment(lab, "branch", site_mtu=9000)
    hub, branch = segment.hub, segment.branches["branch"]
    with segment.connected(mtu=9000):
        all_answer(hub, branch)
        for site in segment.sites:
            assert mtu(site.gateway, INTERFACE) == mtu(site.gateway, BRIDGE) == 9000
        for one, other in ((hub, branch), (branch, hub)):
            for address, header_bytes in zip(other.addresses, (20 + 8, 40 + 8), strict=True):
                assert ping(one.machine, address, size=9000 - header_bytes, dont_fragment=True).ok
            cross([other.mac + one.mac + EXPERIMENT + bytes(9000)], one, other)


def test_multicast_reaches_everybody(lab: Lab) -> None:
    """As of mDNS: from the hub to both branches, and from a branch to the hub and to the other branch."""
    segment = Segment(lab, "one", "other")
    with segment.connected():
        for site in segment.branches.values():
            all_answer(segment.hub, site)
        for sender in segment.sites[:2]:
            for group in GROUPS:
                others = [site.machine for site in segment.sites if site is not sender]
                with member_of(group, others[0]) as first, member_of(group, others[1]) as second:
                    text = f"{group} from {sender.name}".encode()
                    send_to_group(sender.machine, group, text)
                    assert [sock.recv(100) for sock in (first, second)] == [text, text]


@contextmanager
def member_of(group: str, host: Host) -> Iterator[socket.socket]:
    """A socket of a machine that hears that group."""
    is_6 = ":" in group
    family = socket.AF_INET6 if is_6 else socket.AF_INET
    index = host.ip(f"link show {LAN}")[0]["ifindex"]
    with host.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        if is_6:
            sock.bind((group, MDNS, 0, index))
            request = IPv6Address(group).packed + struct.pack("=I", index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        else:
            sock.bind((group, MDNS))
            request = IPv4Address(group).packed + struct.pack("=4si", bytes(4), index)  # struct ip_mreqn
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        yield sock


def send_to_group(host: Host, group: str, data: bytes) -> None:
    is_6 = ":" in group
    index = host.ip(f"link show {LAN}")[0]["ifindex"]
    with host.socket(socket.AF_INET6 if is_6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if is_6:
            sock.sendto(data, (group, MDNS, 0, index))
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), index))
            sock.sendto(data, (group, MDNS))


# ------------------------------------------------------------------ DHCP


@contextmanager
def dnsmasq(host: Host, subnet: str, subnet_6: str) -> Iterator[Process]:
    """Gives addresses by DHCP in both families, and says so to routers' clients; a file to those that boot by it."""
    files = host.tmp / "tftp"
    files.mkdir()
    (files / "loader.efi").write_bytes(b"boots by way of the tunnel")
    argv = [
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--log-facility=-"),
        *(f"--interface={LAN}", "--bind-interfaces", "--log-dhcp", "--dhcp-authoritative"),
        *(f"--dhcp-range={subnet}100,{subnet}150,255.255.255.0,1h", "--enable-ra"),
        f"--dhcp-range={subnet_6}100,{subnet_6}150,slaac,64,1h",
        *(f"--dhcp-leasefile={host.tmp / 'leases'}", "--dhcp-boot=loader.efi", "--enable-tftp"),
        f"--tftp-root={files}",
    ]
    with host.start(argv) as daemon:
        daemon.wait_for_log("DHCP, IP range")
        yield daemon


# What dhclient calls for each event (dhclient-script(8)): it sets the address, and keeps what it was told.
_SCRIPT: Final = """#!/bin/sh
env >>"$0.$reason"
case $reason in
BOUND) ip address add "$new_ip_address/24" dev "$interface" ;;
BOUND6) ip address add "$new_ip6_address/128" dev "$interface" ;;
esac
"""


# As a machine asks that boots from the network (dhclient.conf(5)).
_BOOTS: Final = f"""
send vendor-class-identifier "{PXE.decode()}";
request subnet-mask, routers, bootfile-name, tftp-server-name;
"""


def lease(host: Host, family: str) -> dict[str, str]:
    """Get an address by DHCP, as a machine that boots from the network. What the client was told. ``family``: -4 or
    -6."""
    script, config = host.tmp / "lease", host.tmp / "dhclient.conf"
    script.write_text(_SCRIPT, encoding="ascii")
    script.chmod(0o755)
    config.write_text(_BOOTS, encoding="ascii")
    lease_file, pid_file = (host.tmp / f"{name}{family}" for name in ("leases", "pid"))
    files = ("-sf", script, "-cf", config, "-lf", lease_file, "-pf", pid_file)
    host.run(["dhclient", family, "-1", "-v", *files, LAN], timeout=2 * PATIENCE_S)
    told = script.with_name("lease.BOUND6" if family == "-6" else "lease.BOUND").read_text(encoding="utf-8")
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def test_dhcp_of_one_site_serves_the_other(lab: Lab) -> None:
    """A machine at the branch gets addresses of both families from the hub's site, by router advertisements too, and
    boots from there: its request and the answers are broadcasts and multicasts."""
    segment = Segment(lab, "branch")
    hub, branch = segment.hub, segment.branches["branch"]
    machine = branch.machine
    for address, length in zip(branch.addresses, (24, 64), strict=True):
        machine.ip(f"address del {address}/{length} dev {LAN}")
    with segment.connected(), dnsmasq(hub.machine, "10.30.0.", "fd00:30::") as server:
        with capture(hub.machine, LAN, "udp port 67") as requests:
            told = lease(machine, "-4")
            discover = requests.wait_for_frames(lambda frame: PXE in frame, 1, PATIENCE_S)[0]
        assert discover[:12] == BROADCAST + branch.mac
        (address,) = leased(machine, "10.30.0.")
        assert IPv4Address("10.30.0.100") <= IPv4Address(address) <= IPv4Address("10.30.0.150")
        assert (told["new_ip_address"], told["new_dhcp_server_identifier"]) == (address, "10.30.0.1")
        assert "loader.efi" in (told.get("new_filename"), told.get("new_bootfile_name")), told
        fetched = machine.run(["curl", "-sS", "tftp://10.30.0.1/loader.efi"], timeout=PATIENCE_S)
        assert fetched.stdout == "boots by way of the tunnel"
        # IPv6: the advertisement gives the prefix and the router, DHCPv6 an address.
        machine.sysctl(f"net.ipv6.conf.{LAN}.accept_ra", 1)
        machine.ip(f"link set {LAN} down")
        machine.ip(f"link set {LAN} up")
        wait_until(lambda: leased(machine, "fd00:30:"), PATIENCE_S, "an address by its prefix", server.tail)
        (route,) = machine.ip("-6 route show default")
        assert route["protocol"] == "ra"
        assert lease(machine, "-6")["new_ip6_address"] in leased(machine, "fd00:30:")
        leases = [IPv6Address(each) for each in leased(machine, "fd00:30:")]
        assert any(IPv6Address("fd00:30::100") <= each <= IPv6Address("fd00:30::150") for each in leases), leases
        for target in hub.addresses:
            assert wait_for_ping(machine, target, PATIENCE_S).ok
