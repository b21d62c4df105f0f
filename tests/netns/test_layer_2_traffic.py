"""Streams through one Ethernet segment: whole super-packets cross it, and every byte of them is right."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness import Capture, Lab, Packet, capture, download, iperf3, upload, wait_for_ping, wait_until

from .segments import INTERFACE, PATIENCE_S, Segment, process_status

pytestmark = pytest.mark.netns

IPERF: Final = "tcp port 5201"
SUPER_BYTES: Final = 9000  # six times what the network carries
HEADERS_BYTES: Final = 128  # of each packet in a capture


def whole_bytes(packet: Packet) -> int:
    """The length of an IP packet, as its own header says: a capture may have the first bytes only."""
    if packet.version == 4:
        return int.from_bytes(packet.data[2:4], "big")
    return packet.header_bytes + int.from_bytes(packet.data[4:6], "big")


def largest_from(seen: Capture, source: str) -> int:
    """The largest packet that a capture has of a sender."""
    return max((whole_bytes(it) for it in seen.packets if str(it.source) == source), default=0)


def wait_for_super_packet(seen: Capture, source: str) -> None:
    """Raises WaitError, with the size of the largest packet that came instead."""
    wait_until(
        lambda: largest_from(seen, source) > SUPER_BYTES,
        PATIENCE_S,
        f"a super-packet from {source}",
        lambda: f"the largest has {largest_from(seen, source)} bytes",
    )


@pytest.mark.usefixtures("each_plane")
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_iperf3_both_ways_as_super_packets(lab: Lab, family: int) -> None:
    """One packet of the sender's kernel is one frame at each TAP interface, as over a TUN: at the one where it enters
    the tunnel and at the one where it leaves. Its machines have networks of 1,500 bytes."""
    segment = Segment(lab, "branch")
    hub, branch = segment.hub, segment.branches["branch"]
    address = hub.addresses[family]
    with segment.connected():
        assert wait_for_ping(branch.machine, address, PATIENCE_S).ok
        for option, sender in (("--bidir", ""), ("-R", address), ("-4" if family == 0 else "-6", "")):
            with ExitStack() as stack:
                seen = [
                    stack.enter_context(capture(site.gateway, INTERFACE, IPERF, snap_bytes=HEADERS_BYTES))
                    for site in segment.sites
                ]
                # Not as fast as it goes: a capture that loses packets proves nothing.
                run = iperf3(branch.machine, hub.machine, address, option, "-b", "200M", seconds=1)
                assert run.received_gbit_s > 0
                senders = [address] if sender else [branch.addresses[family]]
                if option == "--bidir":
                    senders = [address, branch.addresses[family]]
                for source in senders:
                    for place in seen:
                        wait_for_super_packet(place, source)


@pytest.mark.usefixtures("each_plane")
def test_what_arrives_is_what_was_sent(lab: Lab) -> None:
    """Between sites and from branch to branch; and what the kernel and the tunnel computed of checksums is right, since
    every machine checks them. The bulk of it is moved by the plane, where there is one."""
    segment = Segment(lab, "one", "other")
    hub, one, other = segment.sites
    with segment.connected():
        for here, there in ((one, hub), (one, other)):
            for address in there.addresses:
                assert wait_for_ping(here.machine, address, PATIENCE_S).ok
                upload(here.machine, there.machine, address, 20_000_000)
                download(here.machine, there.machine, address, 20_000_000)
        found = process_status(hub.gateway)
        peers = {peer["name"]: peer for peer in found["interfaces"][0]["peers"]}
        assert set(peers) == {"one", "other"}
        for peer in peers.values():
            total = peer["rx_packets"] + peer["tx_packets"]
            assert (peer["plane_packets"] > total / 2) == (found["plane"]["kind"] == "native"), peer
