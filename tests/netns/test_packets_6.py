"""As `test_packets`, of IPv6: every kind of packet crosses as it is. With the plane and without it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from bench.offload import switched
from tapotun_trio.datapath import plane
from tests.harness import (
    Host,
    Lab,
    Packet,
    Payload,
    Process,
    capture,
    download,
    iperf3,
    ping,
    upload,
    wait_until,
)
from tests.packets import ipv6

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
from .dual import (
    BEHIND,
    HUB,
    LAPTOP,
    PLANES,
    THIRD,
    drops,
    dual_cable,
    dual_client,
    dual_config,
    forwards,
    send_raw,
    status,
)
from .topologies import UPLOADING, client_config, mtu, running

pytestmark = pytest.mark.netns

ICMP: Final = 58
FRAGMENT: Final = 44
HEADER: Final = 40
SERVER, CLIENT, BEHIND_CLIENT = HUB[1], LAPTOP[1], THIRD[1]


def _length(packet: Packet) -> int:
    """By its own header, for a packet of which only the head was captured."""
    return HEADER + int.from_bytes(packet.data[4:6], "big")


@dataclass(frozen=True)
class Joined:
    """A server and a client, connected; one part of the tests has Python move the packets."""

    server: Host
    client: Host
    server_daemon: Process
    client_daemon: Process

    @property
    def ways(self) -> tuple[tuple[Host, Host, str], ...]:
        """Each direction: from whom, to whom, at which address."""
        return (self.client, self.server, SERVER), (self.server, self.client, CLIENT)


@pytest.fixture(params=PLANES)
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of the daemons."""
    return PLANES[request.param]


@pytest.fixture
def joined(lab: Lab, env: dict[str, str]) -> Iterator[Joined]:
    """Connected over IPv4, which matters to none of these tests."""
    yield from _joined(lab, env)


def _joined(lab: Lab, env: dict[str, str], **server_fields: object) -> Iterator[Joined]:
    server, client = dual_cable(lab)
    config = dual_config(dual_client(routes=BEHIND), **server_fields)
    with (
        running(server, config, env=env) as server_daemon,
        running(client, client_config(), until=UPLOADING, env=env) as client_daemon,
    ):
        yield Joined(server, client, server_daemon, client_daemon)


# Bulk


def test_super_packets_cross_whole(joined: Joined, env: dict[str, str]) -> None:
    """TCP segments of up to 64 KiB: as the receiving interface sees them they are many times its MTU. The plane moves
    them, where it may."""
    with Payload(30_000_000) as payload:
        for source, sink, address in joined.ways:
            with capture(sink, "tun0", f"ip6 proto 6 and dst {address}", snap_bytes=HEADS) as packets:
                upload(source, sink, address, payload)
                whole = packets.wait_for(20, lambda packet: _length(packet) > 10_000)
            assert max(map(_length, whole)) > 60_000
    for host in (joined.client, joined.server):
        (peer,) = status(host)["peers"]
        by_plane = peer["plane_packets"] / (peer["rx_packets"] + peer["tx_packets"])
        assert by_plane > 0.5 if env == PLANES["plane"] and plane.BUILT else by_plane == 0


def test_over_a_websocket(lab: Lab, env: dict[str, str]) -> None:
    """Super-packets cross it, too."""
    server, client = dual_cable(lab)
    config = client_config(transport="websocket")
    with (
        running(server, dual_config(), env=env),
        running(client, config, until="WebSocket from", env=env),
    ):
        for source, sink, address in ((client, server, SERVER), (server, client, CLIENT)):
            with capture(sink, "tun0", f"ip6 proto 6 and dst {address}", snap_bytes=HEADS) as packets:
                upload(source, sink, address, 10_000_000)
                packets.wait_for(10, lambda packet: _length(packet) > 10_000)


@pytest.mark.parametrize("options", [(), ("-R",), ("-P", "8"), ("-P", "8", "-R")])
def test_iperf3(joined: Joined, options: tuple[str, ...]) -> None:
    """One stream and eight, both ways; super-packets among them."""
    sink, to = (joined.client, CLIENT) if "-R" in options else (joined.server, SERVER)
    with capture(sink, "tun0", f"ip6 proto 6 and dst {to}", snap_bytes=HEADS) as packets:
        result = iperf3(joined.client, joined.server, SERVER, "-6", *options, seconds=1)
        packets.wait_for(10, lambda packet: _length(packet) > 10_000)
    assert result.received_gbit_s > 0
    streams = result.raw["end"]["streams"]
    assert len(streams) == (8 if "-P" in options else 1)
    assert all(stream["receiver"]["bytes"] > 0 for stream in streams)


def test_explicit_congestion_notification(joined: Joined) -> None:
    """Segments of a connection that negotiated ECN are another kind of super-packet (gso_type with the ECN bit)."""
    for host in (joined.client, joined.server):
        host.sysctl("net.ipv4.tcp_ecn", 1)  # of both families
    with capture(joined.server, "tun0", "ip6 proto 6", snap_bytes=HEADS) as packets:
        for move in (upload, download):
            move(joined.client, joined.server, SERVER, 5_000_000)
        packets.wait_for(10, lambda packet: packet.data[1] & 0x30 != 0)  # the low two bits of the traffic class


def test_udp_segmented_by_the_kernel(joined: Joined) -> None:
    for way in joined.ways:
        send_segmented(*way)


def test_a_conversation_in_small_pieces(joined: Joined) -> None:
    converse(joined.client, joined.server, SERVER)


# Sizes


def test_udp_of_every_size(joined: Joined) -> None:
    """From nothing on."""
    send_every_size(joined.client, joined.server, SERVER, HEADER + 8, _length, smallest=0)


@pytest.mark.parametrize("size", [1280, 1500, 9000, 65535])
def test_packets_of_exactly_the_mtu(lab: Lab, env: dict[str, str], size: int) -> None:
    """One byte more is refused where it starts, and nothing that fits is."""
    for it in _joined(lab, env, mtu=size):
        assert mtu(it.client, "tun0") == size
        with capture(it.server, "tun0", "icmp6 or ip6 proto 44", snap_bytes=HEADS) as packets:
            for host, address in ((it.client, SERVER), (it.server, CLIENT)):
                assert ping(host, address, count=2, size=size - HEADER - 8, dont_fragment=True).ok
                if size < 65535:
                    too_long = ping(host, address, count=1, size=size - HEADER - 7, dont_fragment=True, wait=0.1)
                    assert "message too long" in too_long.output.lower()
            found = packets.wait_for(8)
        assert {(_length(packet), packet.protocol) for packet in found} == {(size, ICMP)}


def test_fragments(joined: Joined) -> None:
    """Cut by the sender, they cross as they are and are put together by the receiver."""
    with capture(joined.server, "tun0", "ip6 proto 44", snap_bytes=HEADS) as packets:
        assert ping(joined.client, SERVER, count=2, size=3000).ok
        assert ping(joined.server, CLIENT, count=2, size=3000).ok
        found = packets.wait_for(2 * 2 * 2 * 3)
    assert {packet.protocol for packet in found} == {FRAGMENT}
    # Of 3008 bytes 1448 in each: the largest multiple of 8 behind a header of 40 and a fragment header of 8 bytes.
    assert {_length(packet) for packet in found} == {HEADER + 8 + 1448, HEADER + 8 + 3008 - 2 * 1448}
    assert ping(joined.client, SERVER, count=1, size=65000).ok


def test_fragments_of_udp_in_any_order(joined: Joined) -> None:
    send_in_fragments(joined.client, joined.server, SERVER, (1453, 8000, 30_000, 65487))


def test_headers_of_every_kind(joined: Joined) -> None:
    """A header and nothing else, which is the shortest packet; extension headers; a first fragment that is the only
    one. What claims to be a jumbogram is refused where it starts, and counted."""
    hop_by_hop = bytes([253, 0, 1, 4, 0, 0, 0, 0])  # next header, length, PadN
    destination_options = bytes([253, 0, 1, 4, 0, 0, 0, 0])
    routing = bytes([253, 0, 253, 0, 0, 0, 0, 0])  # an experimental type with no segments left
    atomic = bytes([253, 0, 0, 0, 1, 2, 3, 4])
    kinds = {
        59: b"",  # no next header
        0: hop_by_hop,
        60: destination_options,
        43: routing,
        FRAGMENT: atomic,
        135: bytes(8),
    }
    jumbogram = ipv6(CLIENT, SERVER, hop_by_hop, 0)
    jumbogram = jumbogram[:4] + bytes(2) + jumbogram[6:]
    last = ipv6(CLIENT, SERVER, b"the last")
    with capture(joined.server, "tun0", "ip6") as packets:
        sent = [ipv6(CLIENT, SERVER, payload, kind) for kind, payload in kinds.items()]
        send_raw(joined.client, *sent, jumbogram, last)
        packets.wait_for(1, lambda packet: packet.data == last)
        arrived = [packet.data for packet in packets.packets if str(packet.source) == CLIENT]
    assert [data for data in arrived if data in sent] == sent
    assert jumbogram not in arrived
    assert drops(joined.client)["jumbogram"] == 1


# Errors


@dataclass(frozen=True)
class Forwarding:
    """A third machine behind the client, whose cable takes 9000 bytes at a time and computes nothing itself."""

    tunnel: Joined
    third: Host


@pytest.fixture
def forwarding(lab: Lab, joined: Joined) -> Forwarding:
    """The client as a router between the tunnel and another machine."""
    third = lab.host("third")
    link = lab.link(joined.client, "fd00:60::1/64", third, f"{BEHIND_CLIENT}/64", mtu=9000)
    third.ip("-6 route add default via fd00:60::1")
    forwards(joined.client)
    compute_everything(joined.client, link.a_interface)
    compute_everything(third, link.b_interface)
    return Forwarding(joined, third)


def test_errors_come_back(forwarding: Forwarding) -> None:
    """Port, hop limit, size: each ICMPv6 error reaches who caused it, through the tunnel."""
    server, third = forwarding.tunnel.server, forwarding.third
    assert_port_unreachable(server, BEHIND_CLIENT)
    one_hop = server.run(["ping", "-n", "-c", "1", "-t", "1", BEHIND_CLIENT], check=False)
    assert f"From {CLIENT} icmp_seq=1 Time exceeded: Hop limit" in one_hop.stdout
    too_large = third.run(["ping", "-n", "-c", "1", "-M", "do", "-s", "4000", SERVER], check=False)
    assert "From fd00:60::1 icmp_seq=1 Packet too big: mtu=1500" in too_large.stdout


def test_every_hop_is_seen(forwarding: Forwarding) -> None:
    """As traceroute does it: with hop limits of 1, 2 ..., and UDP to a port where nobody listens."""
    for source, target, hops in (
        (forwarding.tunnel.server, BEHIND_CLIENT, [CLIENT, BEHIND_CLIENT]),
        (forwarding.third, SERVER, ["fd00:60::1", SERVER]),
    ):
        assert _trace(source, target, len(hops)) == hops


def _trace(host: Host, target: str, hops: int) -> list[str]:
    """Who answers to each hop limit, from the error queue of the socket (IPV6_RECVERR, ipv6(7))."""
    found = []
    recverr, errqueue = 25, socket.MSG_ERRQUEUE  # linux/in6.h
    for limit in range(1, hops + 1):
        with host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, recverr, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, limit)
            sock.sendto(bytes(20), (target, 33434 + limit))

            def error(sock: socket.socket = sock) -> tuple[bytes, list[tuple[int, int, bytes]]] | None:
                try:
                    data, control, _, _ = sock.recvmsg(512, 512, errqueue | socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return None
                return data, control

            _, control = wait_until(error, 10, f"an answer to hop limit {limit}")
            # struct sock_extended_err (16 bytes), then the sockaddr_in6 of who sent the ICMPv6 error
            (offender,) = (data[16:] for _, kind, data in control if kind == recverr)
            found.append(socket.inet_ntop(socket.AF_INET6, offender[8:24]))
    return found


def test_path_mtu_is_found(forwarding: Forwarding) -> None:
    """A transfer from a 9000 byte network through the 1500 byte tunnel."""
    transfer_both_ways(forwarding.third, forwarding.tunnel.server, SERVER)


def test_packet_too_big_crosses_the_tunnel(lab: Lab, forwarding: Forwarding) -> None:
    """A router behind the client has a smaller MTU than the tunnel: what it says of that reaches the server, which
    remembers it, and a transfer passes."""
    server, third = forwarding.tunnel.server, forwarding.third
    far = lab.host("far")
    lab.link(third, "fd00:60:0:0:8::1/80", far, "fd00:60:0:0:8::2/80", mtu=1300)
    far.ip("-6 route add default via fd00:60:0:0:8::1")
    forwarding.tunnel.client.ip(f"-6 route add fd00:60:0:0:8::/80 via {BEHIND_CLIENT}")
    forwards(third)
    address = "fd00:60:0:0:8::2"
    with capture(server, "tun0", "icmp6 and ip6[40] == 2") as packets:
        ping(server, address, count=1, size=1400, dont_fragment=True)
        (error, *_) = packets.wait_for()
    assert str(error.source) == BEHIND_CLIENT
    assert int.from_bytes(error.data[44:48], "big") == 1300
    assert server.ip(f"-6 route get {address}")[0]["metrics"][0]["mtu"] == 1300
    server.ip("-6 route flush cache")
    upload(server, far, address, 2_000_000)
    download(server, far, address, 2_000_000)


# Checksums


def test_checksums_are_right_where_they_are_looked_at(forwarding: Forwarding) -> None:
    """As the test of this name in `test_packets`."""
    server, third = forwarding.tunnel.server, forwarding.third
    seen = captured_behind(server, SERVER, third, BEHIND_CLIENT, {TCP, UDP, FRAGMENT}, largest=1452)
    assert [str(packet) for packet in seen if not _is_right(packet)] == []


def _is_right(packet: Packet) -> bool:
    """The checksum behind the header, unless this is a fragment (RFC 8200 section 8.1)."""
    header, body = packet.data[:HEADER], packet.data[HEADER:]
    if packet.protocol == FRAGMENT:
        return True
    return internet_sum(header[8:40] + struct.pack("!IxxxB", len(body), packet.protocol) + body) == 0xFFFF


# Merging


def test_segments_of_a_router_without_gro_are_merged(lab: Lab, env: dict[str, str]) -> None:
    """As `test_merge_tcp`, of IPv6."""
    filter_ = f"ip6 proto 6 and src {BEHIND_CLIENT} and greater 3000"
    for it in _joined(lab, env):
        behind = lab.host("behind")
        link = lab.link(it.client, "fd00:60::1/64", behind, f"{BEHIND_CLIENT}/64")
        behind.ip("-6 route add default via fd00:60::1")
        forwards(it.client)
        with (
            Payload(32 << 20) as payload,
            switched(behind, link.b_interface, tso=False, gso=False),
            switched(it.client, link.a_interface, gro=False),
            capture(it.server, "tun0", filter_, snap_bytes=96) as merged,
            capture(it.client, link.a_interface, filter_, snap_bytes=96) as before,
        ):
            there = upload(behind, it.server, SERVER, payload)
        assert there.sha256 == payload.sha256
        assert not before.packets
        assert len(merged.packets) > 20
