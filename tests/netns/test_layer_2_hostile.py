"""Frames that no honest client sends, from one with a token: each costs itself, or its own stream, and nobody else
anything."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest

from tests.harness import Lab, Process, capture, wait_for_ping

from .segments import BROADCAST, EXPERIMENT, HUB, LAN, PATIENCE_S, Segment, checksum, member
from .test_hostile import impossible_headers, vnet
from .topologies import token

pytestmark = pytest.mark.netns

MALLORY: Final = bytes.fromhex("0266006600aa")
KEY: Final = f"Host: h\r\nx-api-key: {token('mallory')}\r\nx-tun-features: ctl, tap\r\nx-tun-session: {'6' * 32}\r\n"
GET: Final = f"GET /ip HTTP/1.1\r\n{KEY}\r\n".encode()
PUT: Final = f"PUT /ip HTTP/1.1\r\n{KEY}Transfer-Encoding: chunked\r\n\r\n".encode()
RESERVED: Final = bytes.fromhex("0180c2000003")
VLAN: Final = b"\x81\x00\x00\x07"
OF_MALLORY: Final = f"ether src {MALLORY.hex(':')}"


def wire(frame: bytes, header: bytes = bytes(12)) -> bytes:
    """A frame in the stream (docs/protocol.md): length, vnet header, Ethernet frame."""
    return struct.pack("<H", len(frame)) + header + frame


def ipv4_frame(to: bytes, transport: bytes = bytes(40), tags: bytes = b"") -> bytes:
    """UDP over IPv4 of the tests' addresses, with a right header, which bridges may look at, and nothing behind it."""
    head = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(transport), 0, 64, 17, 0) + bytes.fromhex("0a1e00630a1e0001")
    return to + MALLORY + tags + b"\x08\0" + head[:10] + checksum(head) + head[12:] + transport


def ipv6_frame(to: bytes, transport: bytes = bytes(40), tags: bytes = b"") -> bytes:
    """The same over IPv6."""
    ends = bytes.fromhex("fd003000000000000000000000000063fd003000000000000000000000000001")
    return to + MALLORY + tags + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(transport), 17, 64) + ends + transport


@dataclass
class Siege:
    """A hub with an honest branch, and mallory, of whom only the token is known here."""

    segment: Segment
    daemon: Process

    def others_go_on(self) -> None:
        """The branch and the hub's site reach each other, and the interface has not been started anew."""
        hub, branch = self.segment.sites
        for address in branch.addresses:
            assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
        assert "restarting in" not in self.daemon.log
        assert " ERROR " not in self.daemon.log

    @contextmanager
    def connection(self, head: bytes) -> Iterator[socket.socket]:
        """A connection of mallory's, on which this was sent. It is made where the hub is: no site is in between."""
        with self.segment.hub.gateway.socket() as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(("127.0.0.1", 8080))
            sock.sendall(head)
            yield sock

    @contextmanager
    def session(self) -> Iterator[socket.socket]:
        """Mallory's download, which the server has agreed to."""
        with self.connection(GET) as sock:
            head = sock.recv(4096)
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert b"tap" in head
            yield sock

    def survives(self, *frames: bytes) -> None:
        """An upload with these frames goes on: what is sent after them arrives at the hub's machine."""
        machine = self.segment.hub.machine
        mark = BROADCAST + MALLORY + EXPERIMENT + b"still there" + bytes(40)
        with capture(machine, LAN) as seen, self.connection(PUT) as sock:
            for frame in (*frames, wire(mark)):
                send(sock, frame)
            seen.wait_for_frames(mark.__eq__, 1, PATIENCE_S)

    def ends(self, frame: bytes) -> None:
        """An upload with this frame is ended by the server."""
        with self.connection(PUT) as sock:
            send(sock, frame)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass

    def ended_uploads(self) -> dict[str, int]:
        """How many streams of mallory's have ended, by reason."""
        (peer,) = (peer for peer in self.segment.status()["peers"] if peer["name"] == "mallory")
        return dict(peer["stream_ends"])


def send(sock: socket.socket, data: bytes) -> None:
    """As a chunk of its own."""
    sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))


@contextmanager
def siege(lab: Lab, **fields: Any) -> Iterator[Siege]:
    segment = Segment(lab, "branch")
    with segment.connected(member("branch"), member("mallory"), storm_limit=100_000, **fields) as daemons:
        it = Siege(segment, daemons[HUB])
        it.others_go_on()
        with it.session():
            yield it
            it.others_go_on()


@pytest.mark.usefixtures("each_plane")
def test_frames_that_are_too_short_end_the_upload(lab: Lab) -> None:
    """A length of 1 to 13: there is no Ethernet header. 14 bytes are a frame, of which nobody makes anything."""
    with siege(lab) as it:
        for size in (1, 12, 13):
            it.ends(wire((BROADCAST + MALLORY + EXPERIMENT)[:size]))
        it.survives(wire(BROADCAST + MALLORY + EXPERIMENT))


@pytest.mark.usefixtures("each_plane")
def test_what_a_frame_carries_is_nobodys_business(lab: Lab) -> None:
    """Types that are lengths, and wrong ones; IP that lies; tags upon tags, and tags with nothing behind them."""
    with siege(lab) as it:
        hub, branch = it.segment.sites
        for to in (BROADCAST, branch.mac, hub.mac, bytes.fromhex("0266000000ee")):
            odd = [
                *(to + MALLORY + struct.pack("!H", length) + bytes(46) for length in (0, 1, 46, 47, 1500, 1501, 1535)),
                to + MALLORY + b"\x08\0" + bytes(46),
                to + MALLORY + b"\x86\xdd" + b"\x4f" * 46,
                to + MALLORY + b"\x08\x06" + b"\xff" * 3,
                to + MALLORY + 400 * VLAN + EXPERIMENT,
                to + MALLORY + VLAN,
                to + MALLORY + VLAN[:2],
                to + MALLORY + EXPERIMENT + bytes(1500),
            ]
            it.survives(*map(wire, odd))


@pytest.mark.usefixtures("each_plane")
def test_a_stack_of_tags_crosses_from_a_client_to_all_others(lab: Lab) -> None:
    with siege(lab) as it:
        hub, branch = it.segment.sites
        frame = BROADCAST + MALLORY + 8 * VLAN + EXPERIMENT + bytes(46)
        with capture(branch.machine, LAN) as there, capture(hub.machine, LAN) as here:
            it.survives(wire(frame))
            for seen in (there, here):
                seen.wait_for_frames(frame.__eq__, 1, PATIENCE_S)


@pytest.mark.usefixtures("each_plane")
def test_addresses_that_no_station_has(lab: Lab) -> None:
    """Such a frame is dropped and counted: from many, from nobody, from the hub itself, and to what bridges keep."""
    with siege(lab) as it:
        hub, branch = it.segment.sites
        own = it.segment.hub.gateway.ip("link show seg0")[0]["address"]
        bad = [BROADCAST, bytes(6), bytes.fromhex("01005e0000fb"), bytes.fromhex("3333000000fb")]
        bad.append(bytes.fromhex(own.replace(":", "")))
        with capture(branch.machine, LAN) as there, capture(hub.machine, LAN) as here:
            lies = [to + source + EXPERIMENT + b"a lie" + bytes(46) for source in bad for to in (BROADCAST, branch.mac)]
            reserved = RESERVED + MALLORY + EXPERIMENT + b"a lie" + bytes(46)
            it.survives(*map(wire, lies), wire(reserved))
        it.segment.wait_for_drops("mallory", "bad-mac", len(lies))
        it.segment.wait_for_drops("mallory", "reserved-mac", 1)
        assert not [frame for seen in (there, here) for frame in seen.frames if b"a lie" in frame]
        it.daemon.wait_for_log(
            f"mallory: frames from {own} are dropped, which is the address of this server's interface"
        )


@pytest.mark.usefixtures("each_plane")
@pytest.mark.parametrize("make", [ipv4_frame, ipv6_frame], ids=["ipv4", "ipv6"])
def test_a_checksum_inside_of_the_ethernet_header_reaches_nobody(lab: Lab, make: Callable[..., bytes]) -> None:
    """csum_start counts from the Ethernet header, and must point behind the header of IP. Such a frame is dropped and
    counted, and its stream goes on: a virtual machine at the client's bridge may have made it up."""
    with siege(lab) as it:
        hub, branch = it.segment.sites
        lies, honest = list[bytes](), list[bytes]()
        for tags in (b"", VLAN, VLAN + VLAN):
            begin = len(make(BROADCAST, b"", tags))
            for to in (BROADCAST, branch.mac):
                starts = {1, 6, 12, 13, 14, 14 + len(tags), begin - 1}
                lies += [wire(make(to, tags=tags), vnet(flags=1, start=start, offset=6)) for start in sorted(starts)]
            honest.append(make(BROADCAST, tags=tags))
        with capture(branch.machine, LAN, OF_MALLORY) as there, capture(hub.machine, LAN, OF_MALLORY) as here:
            it.survives(*lies)
            assert not [frame for seen in (there, here) for frame in seen.frames if b"still there" not in frame]
            it.segment.wait_for_drops("mallory", "device-refused", len(lies))
            for frame in honest:
                start = len(frame) - 40
                it.survives(wire(frame, vnet(flags=1, start=start, offset=6)))
                for seen in (there, here):
                    seen.wait_for_frames(partial(begins_with, frame[:start]), 1, PATIENCE_S)
        assert "bad-vnet" not in it.ended_uploads()


def begins_with(start: bytes, frame: bytes) -> bool:
    """Whether the frame does."""
    return frame.startswith(start)


@pytest.mark.usefixtures("each_plane")
@pytest.mark.parametrize("to", ["everybody", "a client", "the hub"])
@pytest.mark.parametrize("make", [ipv4_frame, ipv6_frame], ids=["ipv4", "ipv6"])
def test_impossible_headers(lab: Lab, to: str, make: Callable[..., bytes]) -> None:
    """Whatever a header says, it costs its frame at most: neither the client's stream, nor that of the branch, to which
    some of them go; and no kernel's refusal ends an interface."""
    with siege(lab) as it:
        hub, branch = it.segment.sites
        target = {"everybody": BROADCAST, "a client": branch.mac, "the hub": hub.mac}[to]
        ip_end = len(make(target, b""))
        headers = list(impossible_headers(ip_end))
        for size in (0, 100, 3000):
            it.survives(*(wire(make(target, bytes(size)), header) for header in headers))
        assert it.segment.drops("mallory")["device-refused"] > len(headers)
        assert "bad-vnet" not in it.ended_uploads()
        for name in ("branch", "mallory"):
            assert it.daemon.log.count(f"{name}: connected from") == 1
