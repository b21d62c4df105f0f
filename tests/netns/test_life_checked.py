"""The checked streams themselves: what they must see, they see."""

from __future__ import annotations

import random
import socket
import time

import pytest

from tests.harness import Lab, WaitError
from tests.integrity import CheckedTcp, CheckedUdp
from tests.integrity.__main__ import packet
from tests.integrity.arrivals import Arrivals

from .topologies import CLIENT, SERVER, cable


def test_arrivals_against_the_definition() -> None:
    """RFC 4737 by its own words, quadratic, beside the quick way."""
    rng = random.Random(3)
    for _ in range(200):
        numbers = [rng.randrange(12) for _ in range(rng.randrange(1, 15))]
        if rng.random() < 0.3:
            numbers.sort()
        arrivals = Arrivals()
        for at, number in enumerate(numbers):
            arrivals.take(number, 1000 + at)
        first_time = [n for i, n in enumerate(numbers) if n not in numbers[:i]]
        extents = []
        for i, number in enumerate(first_time):
            earlier = [j for j in range(i) if first_time[j] > number]
            if earlier:
                extents.append(i - earlier[0])
        assert arrivals.received == len(first_time)
        assert arrivals.duplicated == len(numbers) - len(first_time)
        assert (arrivals.reordered, arrivals.extent) == (len(extents), max(extents, default=0))


@pytest.mark.netns
def test_udp_over_a_plain_cable(lab: Lab) -> None:
    server, client = cable(lab)
    with CheckedUdp(client, CLIENT, server, SERVER, rate=2000) as udp:
        assert udp.wait_for_flow() < 5
        time.sleep(1)
        ways = udp.finish()
    for way in ways:
        assert way.faultless, way
        assert (way.reordered, way.losses()) == (0, [])


@pytest.mark.netns
def test_udp_sees_every_fault(lab: Lab) -> None:
    """Packets of the very stream, sent by hand: twice, late, changed; and a cable that is unplugged."""
    server, client = cable(lab)
    with CheckedUdp(client, CLIENT, server, SERVER, rate=100) as udp, client.socket(kind=socket.SOCK_DGRAM) as sock:
        udp.wait_for_flow()
        forged = [packet(number, time.monotonic_ns(), 1000) for number in (900_002, 900_001, 900_001)]
        damaged = bytearray(packet(900_003, time.monotonic_ns(), 1000))
        damaged[500] ^= 1
        for data in (*forged, bytes(damaged)):
            sock.sendto(data, (SERVER, 7000))
        cut_ns = time.monotonic_ns()
        # The other end of the cable sees no carrier, and goes on sending: that is lost, and not unsent.
        server.ip("link set eth0 down")
        with pytest.raises(WaitError):
            udp.wait_for_flow(timeout=0.5)
        server.ip("link set eth0 up")
        mended_ns = time.monotonic_ns()
        udp.wait_for_flow()
        there, back = udp.finish()
    assert (there.duplicated, there.corrupted) == (1, 1)
    assert there.reordered >= 1
    assert there.lost_between(cut_ns, mended_ns) > 0
    assert there.losses()[0][0] >= cut_ns - 50_000_000
    assert (back.duplicated, back.corrupted) == (0, 0)


@pytest.mark.netns
def test_tcp_over_a_plain_cable(lab: Lab) -> None:
    server, client = cable(lab)
    with CheckedTcp(client, server, SERVER) as tcp:
        tcp.wait_for_flow()
        assert tcp.throughput(0.5) > 0
        assert all(count > 0 for count in tcp.finish())
    with CheckedTcp(client, server, SERVER, rate=1e6, both_ways=False) as tcp:
        tcp.wait_for_flow()
        there, back = tcp.finish()
        assert there > 0
        assert back == 0
