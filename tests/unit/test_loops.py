"""A packet that a client sends for a network of its own comes back through the server's device, and goes no further."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import IPv4Interface

import pytest
import trio

from tapotun_trio.config.model import ClientConfig, ServerConfig
from tapotun_trio.server import server as server_module
from tapotun_trio.server import session as session_module

from ..fakes import HANG_S, MemoryDevice
from ..packets import ipv4
from .support import allowed, client_config, free_port, server_config
from .test_status import HUB, ME, World, world

OWN = "10.60.0.9"
OFFICE = "172.20.0.9"


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops are not forgotten while a test waits."""
    monkeypatch.setattr(server_module, "LOOP_S", 3600.0)


def pair(*routes: str) -> tuple[ServerConfig, ClientConfig]:
    port = free_port()
    return server_config(port, allowed("a", ME, routes=routes)), client_config("a", port)


async def devices(it: World) -> tuple[MemoryDevice, MemoryDevice]:
    await it.connected()
    return await it.host.device("hub"), await it.host.device("a")


async def comes_back(hub: MemoryDevice, a: MemoryDevice, packet: bytes) -> None:
    """The client sends it, and the server's kernel routes it back into the device."""
    a.send(packet)
    assert await hub.receive_packet() == packet
    hub.send(packet)


@pytest.mark.parametrize("routes", [["10.60.0.0/24"], ["0.0.0.0/0"]])
async def test_it_is_dropped_and_counted(
    routes: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tapotun_trio"), "propagate", True)
    async with world(*pair(*routes)) as it:
        hub, a = await devices(it)
        for _ in range(3):
            await comes_back(hub, a, ipv4(ME, OWN, b"round and round"))
        await comes_back(hub, a, ipv4(ME, ME))  # its own address
        # A source that nobody owns makes no difference, and neither does one of its own network.
        await comes_back(hub, a, ipv4("203.0.113.77", OWN))
        await comes_back(hub, a, ipv4("10.60.0.8", OWN))
        await it.until(lambda: it.interface("hub").device_drops == {"loop": 6})
        # What comes from elsewhere goes to the client, and what it sends elsewhere into the device.
        good = [ipv4(OFFICE, OWN), ipv4(HUB, OWN), ipv4(OFFICE, ME)]
        for packet in good:
            hub.send(packet)
            assert await a.receive_packet() == packet
        for packet in (ipv4(ME, OFFICE), ipv4(ME, HUB)):
            a.send(packet)
            assert await hub.receive_packet() == packet
        assert it.interface("hub").device_drops == {"loop": 6}
    lines = [record.getMessage() for record in caplog.records if "go round in circles" in record.getMessage()]
    assert f"client a sends packets for {OWN}, which is in its own networks" in lines[0]


async def test_a_client_that_was_sent_such_packets_before() -> None:
    """The verdict for the device is remembered, and must not stay."""
    async with world(*pair("10.60.0.0/24")) as it:
        hub, a = await devices(it)
        packet = ipv4("203.0.113.77", OWN)
        hub.send(packet)
        assert await a.receive_packet() == packet
        await comes_back(hub, a, packet)
        await it.until(lambda: it.interface("hub").device_drops == {"loop": 1})


async def test_caches_that_are_emptied_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "CACHE_ENTRIES", 2)
    monkeypatch.setattr(server_module, "CACHE_ENTRIES", 2)
    async with world(*pair("10.60.0.0/24")) as it:
        hub, a = await devices(it)
        for number in range(20):
            await comes_back(hub, a, ipv4(ME, f"10.60.0.{number % 5}"))
        await it.until(lambda: it.interface("hub").device_drops == {"loop": 20})


async def test_addresses_of_the_machine_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other interfaces of ours too, of which the kernel's notifications are not reported."""
    monkeypatch.setattr("tapotun_trio.server.machine_addresses.CHECK_S", 0.05)
    async with world(*pair()) as it:
        hub, a = await devices(it)
        spoofed = ipv4("203.0.113.77", HUB)
        a.send(spoofed)
        assert await hub.receive_packet() == spoofed
        it.host.machine.add(IPv4Interface("203.0.113.77/24"))
        it.host.change("eth0: address 203.0.113.77 added", "127.0.0.1")
        await until_dropped(it, spoofed, True)
        it.host.machine.clear()  # without a notification
        await until_dropped(it, spoofed, False)


async def until_dropped(it: World, spoofed: bytes, drops: bool) -> None:
    """The client sends this packet until the server drops it, and counts it; or until it does not any more."""
    hub, a = await devices(it)
    with trio.fail_after(HANG_S):
        while True:
            before = it.peer("hub").drops.get("bad-source", 0)
            a.send(spoofed)
            a.send(good := ipv4(ME, HUB))
            received = await hub.receive_packet()
            if received == spoofed:
                assert await hub.receive_packet() == good
            assert it.peer("hub").drops.get("bad-source", 0) == before + (received == good)
            if drops == (received == good):
                return


async def test_a_reload_keeps_the_addresses_of_the_machine() -> None:
    server, client = pair()
    async with world(server, client) as it:
        hub, a = await devices(it)
        it.host.machine.add(IPv4Interface("203.0.113.77/24"))
        it.host.change("eth0: address 203.0.113.77 added", "127.0.0.1")
        await until_dropped(it, ipv4("203.0.113.77", HUB), True)
        before = it.peer("hub").drops["bad-source"]
        [record] = it.registry.select(["hub"])
        assert record.reconfigure is not None
        await record.reconfigure(replace(server, mtu=1400))
        a.send(ipv4("203.0.113.77", HUB))
        a.send(good := ipv4(ME, HUB))
        assert await hub.receive_packet() == good
        assert it.peer("hub").drops == {"bad-source": before + 1}


async def test_a_loop_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's route to its own network was gone for a moment. What the server's side sends there arrives again."""
    monkeypatch.setattr(server_module, "LOOP_S", 0.2)
    async with world(*pair("10.60.0.0/24")) as it:
        hub, a = await devices(it)
        packet = ipv4("203.0.113.77", OWN)
        hub.send(packet)
        assert await a.receive_packet() == packet
        await comes_back(hub, a, packet)  # the client has sent it back
        await it.until(lambda: it.interface("hub").device_drops.get("loop") == 1)
        arrived = trio.Event()

        async def receive() -> None:
            assert await a.receive_packet() == packet
            arrived.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with trio.fail_after(HANG_S):
                while not arrived.is_set():
                    hub.send(packet)
                    await trio.sleep(0.05)
