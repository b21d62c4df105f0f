"""A TUN interface with several queues: who gets what through which, in turn, and that they end together."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError
from tapotun_trio.host import tun_queues
from tapotun_trio.host.interfaces import Device
from tapotun_trio.host.linux import QUEUE_PART, RealHost
from tapotun_trio.host.tun import MAX_FRAME_BYTES, VNET_HEADER_BYTES, add_queue, open_tun
from tapotun_trio.host.tun_queues import TunQueues, open_tun_queues

from ..descriptors import descriptors_left, limit_of_files
from .fresh_namespace import in_fresh_namespace, ip
from .test_host_tun import HERE, THERE, open_fds, udp_frame

pytestmark = pytest.mark.netns

COUNT: Final = 3
BURST_BYTES: Final = 64 * 1024
MOST: Final = 100
# Local ports of flows, one for each queue. Whatever the kernel's hash makes of them, what is written decides.
PORTS: Final = (7000, 7001, 7002)


@contextmanager
def configured() -> Iterator[TunQueues]:
    """tun0 with HERE on it, up. Says nothing of its own."""
    with open_tun_queues("tun0", COUNT) as device:
        ip("link", "set", "tun0", "addrgenmode", "none")
        ip("link", "set", "tun0", "up")
        ip("addr", "add", f"{HERE}/24", "dev", "tun0")
        yield device


@contextmanager
def flows(device: TunQueues) -> Iterator[list[socket.socket]]:
    """A UDP socket at each of PORTS, which has just heard from THERE through the queue of its own."""
    with ExitStack() as stack:
        sockets = []
        for port, queue in zip(PORTS, device.queues, strict=True):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((HERE, port))
            sock.connect((THERE, 9))
            sock.settimeout(2)
            assert queue.write(udp_frame(9, port, b"hello"))
            assert sock.recv(9) == b"hello"
            sockets.append(sock)
        yield sockets


def bursts(device: Device, most: int = MOST) -> Iterator[list[int]]:
    """From which local ports the packets of each read are, until nothing is left."""
    into = memoryview(bytearray(BURST_BYTES + MAX_FRAME_BYTES))
    more = True
    while more:
        lengths, more = device.read_burst(into, BURST_BYTES, most)
        ports, at = [], 2
        for length in lengths:
            ports.append(int.from_bytes(into[at + VNET_HEADER_BYTES + 20 :][:2], "big"))
            at += length + 2
        yield ports


def queues_of_tun0() -> int:
    """As the kernel counts them."""
    (link,) = ip("link", "show", "tun0")
    info = link["linkinfo"]["info_data"]
    return int(info["numqueues"]) if info["multi_queue"] else 1


@in_fresh_namespace
async def test_a_flow_comes_back_through_the_queue_that_it_is_written_to() -> None:
    with configured() as device, flows(device) as sockets:
        for _ in range(10):
            for sock in sockets:
                sock.send(b"x")
        for queue, port in zip(device.queues, PORTS, strict=True):
            assert [ports for ports in bursts(queue) if ports] == [[port] * 10]


@in_fresh_namespace
async def test_one_reader_gets_everything_of_all() -> None:
    with configured() as device, flows(device) as sockets:
        assert list(bursts(device)) == [[]]
        for sock in (*sockets, *sockets):
            sock.send(b"x")
        with trio.fail_after(2):
            await device.wait_readable()
        found = list(bursts(device))
        assert sorted(found) == [[port] * 2 for port in PORTS]
        with trio.move_on_after(0.05) as scope:
            await device.wait_readable()
        assert scope.cancelled_caught


@in_fresh_namespace
async def test_nobody_waits_longer_than_the_others_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two flood and one does not: it comes in the round after the present one, and a turn is bounded both ways."""
    monkeypatch.setattr(tun_queues, "BURSTS_PER_TURN", 2)
    for packets_per_turn, turn in ((1000, 2), (15, 1)):
        monkeypatch.setattr(tun_queues, "PACKETS_PER_TURN", packets_per_turn)
        with configured() as device, flows(device) as (one, quiet, two):
            for _ in range(200):
                one.send(b"x")
                two.send(b"x")
            reader = bursts(device, most=20)
            found = [next(reader) for _ in range(5)]
            quiet.send(b"x")
            found += reader
            at = found.index([PORTS[1]])
            assert at <= 5 + 4 * turn
            assert sum(map(len, found)) == 401
            turns = [ports[0] for ports in found[: 2 * turn]]
            assert turns == [turns[0]] * turn + [turns[-1]] * turn != turns[:1] * len(turns)


@in_fresh_namespace
async def test_what_a_flood_loses_is_its_own() -> None:
    """One queue is full, and the packets of another flow come all the same."""
    with configured() as device, flows(device) as (flood, other, _):
        for number in range(5000):
            flood.send(b"x")
            if number % 500 == 0:
                other.send(b"y")
        counts = dict.fromkeys(PORTS, 0)
        for ports in bursts(device):
            for port in ports:
                counts[port] += 1
        assert counts == {PORTS[0]: 2000, PORTS[1]: 10, PORTS[2]: 0}


@in_fresh_namespace
async def test_the_interface_is_one_and_gone_with_the_last_queue() -> None:
    before = open_fds()
    with open_tun_queues("tun0", COUNT) as device:
        assert device.name == "tun0"
        assert queues_of_tun0() == len(device.queues) == COUNT
        with pytest.raises(HostError, match="taken"), open_tun("tun0"):
            pass
    assert [link["ifname"] for link in ip("link", "show")] == ["lo"]
    assert open_fds() == before
    device.close()  # again: nothing happens


@in_fresh_namespace
async def test_the_real_host_gives_as_many_as_are_wanted() -> None:
    for count in (1, 2, 16):
        with RealHost().open_device("tun0", count) as device:
            assert len(device.queues) == queues_of_tun0() == count


@in_fresh_namespace
async def test_queues_take_a_share_of_a_low_limit(caplog: pytest.LogCaptureFixture) -> None:
    """All interfaces together: the rest of the program needs descriptors too, and an interface always gets a queue."""
    host, share = RealHost(), 16  # a lower limit may not suffice for pytest itself
    caplog.set_level(logging.INFO, logger="tapotun")
    with limit_of_files(share * QUEUE_PART), ExitStack() as stack:
        with host.open_device("tun0", 20) as device:
            assert len(device.queues) == queues_of_tun0() == share
        counts = [
            len(stack.enter_context(host.open_device(f"tun{number}", wanted)).queues)
            for number, wanted in enumerate((2, 20, 20))
        ]
    assert counts == [2, 14, 1]
    assert "16 instead of 20 queues" in caplog.text


@in_fresh_namespace
async def test_an_interface_that_somebody_deletes_is_a_host_error() -> None:
    with configured() as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            ip("link", "delete", "tun0")
            nursery.cancel_scope.deadline = trio.current_time() + 2
        assert not nursery.cancel_scope.cancelled_caught, "whoever waits for a frame should have been woken"
        with pytest.raises(HostError, match="tun0 is gone"):
            list(bursts(device))


@in_fresh_namespace
async def test_no_queue_is_added_to_what_took_its_place() -> None:
    """Deleted while the queues are being opened: the interface that the kernel then makes goes at once."""
    before = open_fds()
    with open_tun("tun0", multi_queue=True) as first:
        ip("link", "delete", "tun0")
        with pytest.raises(HostError, match="cannot add a queue to TUN interface tun0"), add_queue(first):
            pass
        assert [link["ifname"] for link in ip("link", "show")] == ["lo"]
    assert open_fds() == before


@in_fresh_namespace
async def test_closing_wakes_the_task_that_waits() -> None:
    async def expect_closed(device: TunQueues) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await device.wait_readable()

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            with configured() as device:
                nursery.start_soon(expect_closed, device)
                await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.ClosedResourceError):
        await device.wait_readable()
    with pytest.raises(trio.ClosedResourceError):
        list(bursts(device))


@pytest.mark.parametrize("left", range(COUNT + 1))
@in_fresh_namespace
async def test_without_a_descriptor_left_nothing_stays(left: int) -> None:
    """One for each queue, and one more to watch them."""
    before = open_fds()
    with descriptors_left(left), pytest.raises(HostError, match="Too many open files"):
        with open_tun_queues("tun0", COUNT):
            pass
    assert open_fds() == before
    assert [link["ifname"] for link in ip("link", "show")] == ["lo"]
