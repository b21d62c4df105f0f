"""Every kind of IPv4 packet crosses as it is: large and small, whole and in pieces, with the right checksums.

In one part of the tests the native plane moves the packets, in the other Python.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from tests.harness import Host, Lab, Packet, Payload, capture, download, iperf3, ping, upload

from .crossing import (
    HEADS,
    TCP,
    UDP,
    assert_port_unreachable,
    captured_behind,
    compute_everything,
    converse,
    internet_sum,
    send_every_size,
    send_in_fragments,
    send_segmented,
    transfer_both_ways,
)
from .topologies import TUNNEL_CLIENT, TUNNEL_SERVER, Tunnel, allowed, tunnel

pytestmark = pytest.mark.netns

ICMP: Final = 1


def _length(packet: Packet) -> int:
    """By its own header, for a packet of which only the head was captured."""
    return int.from_bytes(packet.data[2:4], "big")


@pytest.fixture
def joined(each_plane: None, lab: Lab) -> Iterator[Tunnel]:
    """A server and a client, connected."""
    with tunnel(lab) as it:
        yield it


# Bulk


def test_100_mb_each_way(joined: Tunnel) -> None:
    with Payload(100_000_000) as payload:
        for move in (upload, download):
            move(joined.client, joined.server, TUNNEL_SERVER, payload)


@pytest.mark.parametrize("towards", ["server", "client"])
def test_super_packets_cross_whole(joined: Tunnel, towards: str) -> None:
    """TCP segments of up to 64 KiB: as the receiving interface sees them they are many times its MTU."""
    sink, address, source = {
        "server": (joined.server, TUNNEL_SERVER, joined.client),
        "client": (joined.client, TUNNEL_CLIENT, joined.server),
    }[towards]
    with capture(sink, "tun0", f"tcp and dst {address}", snap_bytes=HEADS) as packets:
        upload(source, sink, address, 20_000_000)
        whole = packets.wait_for(20, lambda packet: _length(packet) > 10_000)
    assert {packet.protocol for packet in whole} == {TCP}
    assert max(map(_length, whole)) > 60_000


def test_super_packets_of_the_smallest_path(lab: Lab) -> None:
    """MTU 88 is the least at which Linux sends any (below, it fragments): TCP_MIN_SND_MSS less timestamps makes
    segments of 36 bytes, hundreds in a super-packet. That is no attack; compare wire.vnet.MAX_SEGMENTS."""
    with tunnel(lab, mtu=88) as it:
        for sink, source, address in ((it.server, it.client, TUNNEL_SERVER), (it.client, it.server, TUNNEL_CLIENT)):
            with capture(sink, "tun0", f"tcp and dst {address}", snap_bytes=HEADS) as packets:
                upload(source, sink, address, 1_000_000)
                packets.wait_for(5, lambda packet: _length(packet) > 1500)
        for daemon in (it.server_daemon, it.client_daemon):
            assert "vnet" not in daemon.log


def test_many_connections_both_ways_at_once(joined: Tunnel) -> None:
    result = iperf3(joined.client, joined.server, TUNNEL_SERVER, "--bidir", "-P", "4", seconds=1)
    assert result.received_gbit_s > 0
    assert joined.client_daemon.running
    assert joined.server_daemon.running


def test_explicit_congestion_notification(joined: Tunnel) -> None:
    """Segments of a connection that negotiated ECN are another kind of super-packet (gso_type with the ECN bit)."""
    for host in (joined.client, joined.server):
        host.sysctl("net.ipv4.tcp_ecn", 1)
    with capture(joined.server, "tun0", "tcp", snap_bytes=HEADS) as packets:
        for move in (upload, download):
            move(joined.client, joined.server, TUNNEL_SERVER, 5_000_000)
        packets.wait_for(10, lambda packet: packet.data[1] & 3 != 0)


def test_udp_segmented_by_the_kernel(joined: Tunnel) -> None:
    send_segmented(joined.client, joined.server, TUNNEL_SERVER)
    send_segmented(joined.server, joined.client, TUNNEL_CLIENT)


def test_a_conversation_in_small_pieces(joined: Tunnel) -> None:
    converse(joined.client, joined.server, TUNNEL_SERVER)


# Sizes


def test_udp_of_every_size(joined: Tunnel) -> None:
    """From one byte on."""
    send_every_size(joined.client, joined.server, TUNNEL_SERVER, 28, _length, smallest=1)


@pytest.mark.parametrize("mtu", [68, 576, 1500, 9000, 65535])
def test_dont_fragment_at_exactly_the_mtu(lab: Lab, mtu: int) -> None:
    """One byte more is refused where it starts, and nothing that fits is."""
    with tunnel(lab, mtu=mtu) as it, capture(it.server, "tun0", "icmp") as packets:
        for host, address in ((it.client, TUNNEL_SERVER), (it.server, TUNNEL_CLIENT)):
            assert ping(host, address, count=2, size=mtu - 28, dont_fragment=True).ok
            if mtu < 65535:
                too_long = ping(host, address, count=1, size=mtu - 27, dont_fragment=True, wait=0.1)
                assert "message too long" in too_long.output.lower()
        found = packets.wait_for(8)
    assert {(packet.length, packet.is_fragment) for packet in found} == {(mtu, False)}


def test_fragments(joined: Tunnel) -> None:
    """Cut by the sender, they cross as they are and are put together by the receiver."""
    with capture(joined.server, "tun0", "icmp", snap_bytes=HEADS) as packets:
        assert ping(joined.client, TUNNEL_SERVER, count=2, size=3000).ok
        assert ping(joined.server, TUNNEL_CLIENT, count=2, size=3000).ok
        found = packets.wait_for(2 * 2 * 2 * 3)
    assert all(packet.is_fragment for packet in found)
    assert {_length(packet) for packet in found} == {1500, 20 + 3008 - 2 * 1480}
    # As large as IPv4 goes.
    assert ping(joined.client, TUNNEL_SERVER, count=1, size=65507).ok


def test_fragments_of_udp_in_any_order(joined: Tunnel) -> None:
    send_in_fragments(joined.client, joined.server, TUNNEL_SERVER, (1473, 8000, 30_000, 65507))


def test_a_header_and_nothing_else(joined: Tunnel) -> None:
    """20 bytes, the shortest packet that there is. The answer is ICMP: nobody here speaks protocol 253."""
    with (
        joined.client.socket(socket.AF_INET, socket.SOCK_RAW, 253) as raw,
        capture(joined.server, "tun0", "ip proto 253") as arrived,
        capture(joined.client, "tun0", "icmp") as answered,
    ):
        raw.sendto(b"", (TUNNEL_SERVER, 0))
        (packet,) = arrived.wait_for()
        assert (packet.length, packet.protocol, packet.header_bytes) == (20, 253, 20)
        (answer,) = answered.wait_for()
        assert answer.data[20:22] == bytes([3, 2])  # destination unreachable: protocol
        assert answer.data[28:48] == packet.data


def test_ip_options(joined: Tunnel) -> None:
    """A header longer than 20 bytes; nothing between the ends may count on 20."""
    with capture(joined.server, "tun0", "icmp") as packets:
        done = joined.client.run(["ping", "-n", "-c", "1", "-R", TUNNEL_SERVER])  # record route
        assert " 0% packet loss" in done.stdout
        assert packets.wait_for(2)[0].header_bytes == 60


# Errors


@dataclass(frozen=True)
class Forwarding:
    """A third machine behind the client, whose cable takes 9000 bytes at a time and computes nothing itself."""

    tunnel: Tunnel
    third: Host


THIRD: Final = "10.60.0.10"


@pytest.fixture
def forwarding(each_plane: None, lab: Lab) -> Iterator[Forwarding]:
    """The client as a router between the tunnel and another machine."""
    with tunnel(lab, clients=[allowed("laptop", routes=["10.60.0.0/24"])]) as it:
        third = lab.host("third")
        link = lab.link(it.client, "10.60.0.1/24", third, f"{THIRD}/24", mtu=9000)
        third.ip("route add default via 10.60.0.1")
        it.client.sysctl("net.ipv4.ip_forward", 1)
        compute_everything(it.client, link.a_interface)
        compute_everything(third, link.b_interface)
        yield Forwarding(it, third)


def test_errors_come_back(forwarding: Forwarding) -> None:
    """Port, time to live, size: each ICMP error reaches who caused it, through the tunnel."""
    server, third = forwarding.tunnel.server, forwarding.third
    assert_port_unreachable(server, THIRD)
    one_hop = server.run(["ping", "-n", "-c", "1", "-t", "1", THIRD], check=False)
    assert f"From {TUNNEL_CLIENT} icmp_seq=1 Time to live exceeded" in one_hop.stdout
    too_large = third.run(["ping", "-n", "-c", "1", "-M", "do", "-s", "4000", TUNNEL_SERVER], check=False)
    assert "From 10.60.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1500)" in too_large.stdout


def test_path_mtu_is_found(forwarding: Forwarding) -> None:
    """A transfer from a 9000 byte network through the 1500 byte tunnel."""
    transfer_both_ways(forwarding.third, forwarding.tunnel.server, TUNNEL_SERVER)


# Checksums


def test_checksums_are_right_where_they_are_looked_at(forwarding: Forwarding) -> None:
    """What a socket here sent has crossed the tunnel with a checksum yet to be computed, and segments yet to be
    cut. Behind the last machine that knows of that, on a cable without offloads, it must all have been done."""
    server, third = forwarding.tunnel.server, forwarding.third
    seen = captured_behind(server, TUNNEL_SERVER, third, THIRD, {TCP, UDP, ICMP}, largest=1472)
    assert [str(packet) for packet in seen if not _is_right(packet)] == []


def _is_right(packet: Packet) -> bool:
    """IPv4 header checksum and, unless this is a fragment, the checksum behind it (RFC 1071)."""
    header, body = packet.data[: packet.header_bytes], packet.data[packet.header_bytes :]
    if internet_sum(header) != 0xFFFF:
        return False
    if packet.is_fragment:
        return True
    pseudo = header[12:20] + bytes([0, packet.protocol]) + len(body).to_bytes(2, "big")
    return internet_sum(body if packet.protocol == ICMP else pseudo + body) == 0xFFFF
