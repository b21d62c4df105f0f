"""A packet that a client sends for a network of its own comes back through the server's device, and goes no further."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_interface

import pytest
import trio

from tapotun_trio.config.model import ClientConfig, ServerConfig
from tapotun_trio.server import server as server_module
from tapotun_trio.server import session as session_module

from ..fakes import HANG_S, MemoryDevice
from ..packets import ip
from ..twins import FAMILIES, twin
from .support import allowed, client_config, free_port, server_config
from .test_status import HUB, ME, World, world

OWN = "10.60.0.9"
OFFICE = "172.20.0.9"
STRANGER = "203.0.113.77"


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops are not forgotten while a test waits."""
    monkeypatch.setattr(server_module, "LOOP_S", 3600.0)


def pair(*routes: str, version: int = 4) -> tuple[ServerConfig, ClientConfig]:
    port = free_port()
    behind = tuple(twin(route, version) for route in routes)
    return server_config(port, allowed("a", twin(ME, version), routes=behind)), client_config("a", port)


def packets(version: int) -> Callable[..., bytes]:
    """Makes packets of this family from addresses of IPv4."""

    def make(source: str, destination: str, payload: bytes = b"") -> bytes:
        return ip(twin(source, version), twin(destination, version), payload)

    return make


async def devices(it: World) -> tuple[MemoryDevice, MemoryDevice]:
    await it.connected()
    return await it.host.device("hub"), await it.host.device("a")


async def comes_back(hub: MemoryDevice, a: MemoryDevice, packet: bytes) -> None:
    """The client sends it, and the server's kernel routes it back into the device."""
    a.send(packet)
    assert await hub.receive_packet() == packet
    hub.send(packet)


@pytest.mark.parametrize("routes", [["10.60.0.0/24"], ["0.0.0.0/0"]])
@pytest.mark.parametrize("version", FAMILIES)
async def test_it_is_dropped_and_counted(
    routes: list[str], version: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tapotun_trio"), "propagate", True)
    packet = packets(version)
    async with world(*pair(*routes, version=version)) as it:
        hub, a = await devices(it)
        for _ in range(3):
            await comes_back(hub, a, packet(ME, OWN, b"round and round"))
        await comes_back(hub, a, packet(ME, ME))  # its own address
        # A source that nobody owns makes no difference, and neither does one of its own network.
        await comes_back(hub, a, packet(STRANGER, OWN))
        await comes_back(hub, a, packet("10.60.0.8", OWN))
        await it.until(lambda: it.interface("hub").device_drops == {"loop": 6})
        # What comes from elsewhere goes to the client, and what it sends elsewhere into the device.
        for good in (packet(OFFICE, OWN), packet(HUB, OWN), packet(OFFICE, ME)):
            hub.send(good)
            assert await a.receive_packet() == good
        for good in (packet(ME, OFFICE), packet(ME, HUB)):
            a.send(good)
            assert await hub.receive_packet() == good
        assert it.interface("hub").device_drops == {"loop": 6}
    lines = [record.getMessage() for record in caplog.records if "go round in circles" in record.getMessage()]
    assert f"client a sends packets for {twin(OWN, version)}, which is in its own networks" in lines[0]


@pytest.mark.parametrize("version", FAMILIES)
async def test_a_client_that_was_sent_such_packets_before(version: int) -> None:
    """The verdict for the device is remembered, and must not stay."""
    async with world(*pair("10.60.0.0/24", version=version)) as it:
        hub, a = await devices(it)
        packet = packets(version)(STRANGER, OWN)
        hub.send(packet)
        assert await a.receive_packet() == packet
        await comes_back(hub, a, packet)
        await it.until(lambda: it.interface("hub").device_drops == {"loop": 1})


@pytest.mark.parametrize("version", FAMILIES)
async def test_caches_that_are_emptied_all_the_time(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(session_module, "CACHE_ENTRIES", 2)
    monkeypatch.setattr(server_module, "CACHE_ENTRIES", 2)
    async with world(*pair("10.60.0.0/24", version=version)) as it:
        hub, a = await devices(it)
        for number in range(20):
            await comes_back(hub, a, packets(version)(ME, f"10.60.0.{number % 5}"))
        await it.until(lambda: it.interface("hub").device_drops == {"loop": 20})


@pytest.mark.parametrize("version", FAMILIES)
async def test_addresses_of_the_machine_are_followed(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """Those of other interfaces of ours too, of which the kernel's notifications are not reported."""
    monkeypatch.setattr("tapotun_trio.server.machine_addresses.CHECK_S", 0.05)
    async with world(*pair(version=version)) as it:
        hub, a = await devices(it)
        spoofed = packets(version)(STRANGER, HUB)
        a.send(spoofed)
        assert await hub.receive_packet() == spoofed
        it.host.machine.add(ip_interface(twin(f"{STRANGER}/24", version)))
        it.host.change("eth0: address added", "127.0.0.1")
        await until_dropped(it, spoofed, True, version)
        it.host.machine.clear()  # without a notification
        await until_dropped(it, spoofed, False, version)


async def until_dropped(it: World, spoofed: bytes, drops: bool, version: int) -> None:
    """The client sends this packet until the server drops it, and counts it; or until it does not any more."""
    hub, a = await devices(it)
    with trio.fail_after(HANG_S):
        while True:
            before = it.peer("hub").drops.get("bad-source", 0)
            a.send(spoofed)
            a.send(good := packets(version)(ME, HUB))
            received = await hub.receive_packet()
            if received == spoofed:
                assert await hub.receive_packet() == good
            assert it.peer("hub").drops.get("bad-source", 0) == before + (received == good)
            if drops == (received == good):
                return


@pytest.mark.parametrize("version", FAMILIES)
async def test_a_reload_keeps_the_addresses_of_the_machine(version: int) -> None:
    server, client = pair(version=version)
    spoofed = packets(version)(STRANGER, HUB)
    async with world(server, client) as it:
        hub, a = await devices(it)
        it.host.machine.add(ip_interface(twin(f"{STRANGER}/24", version)))
        it.host.change("eth0: address added", "127.0.0.1")
        await until_dropped(it, spoofed, True, version)
        before = it.peer("hub").drops["bad-source"]
        [record] = it.registry.select(["hub"])
        assert record.reconfigure is not None
        await record.reconfigure(replace(server, mtu=1400))
        a.send(spoofed)
        a.send(good := packets(version)(ME, HUB))
        assert await hub.receive_packet() == good
        assert it.peer("hub").drops == {"bad-source": before + 1}


@pytest.mark.parametrize("version", FAMILIES)
async def test_a_loop_that_is_over(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """The client's route to its own network was gone for a moment. What the server's side sends there arrives again."""
    monkeypatch.setattr(server_module, "LOOP_S", 0.2)
    async with world(*pair("10.60.0.0/24", version=version)) as it:
        hub, a = await devices(it)
        packet = packets(version)(STRANGER, OWN)
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
