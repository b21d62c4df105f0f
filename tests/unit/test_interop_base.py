"""Our interfaces against the independent base peer (tests.basepeer), in both roles and generations: traffic
crosses, streams come and go, and the peer has nothing to complain of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeVar

import pytest
import trio

from tests.basepeer import BaseClient, BaseServer, Chunking, ClientSpec
from tests.basepeer.pair import FAST

from ..fakes import MemoryDevice, MemoryHost
from ..packets import ipv4
from .support import allowed, client_config, free_port, running, server_config

pytestmark = pytest.mark.usefixtures("nothing_dropped_on_purpose")

T = TypeVar("T")
UP = ("10.10.0.2", "10.10.0.1")
DOWN = ("10.10.0.1", "10.10.0.2")


async def elsewhere(call: Callable[[], T]) -> T:
    """The peer is blocking code."""
    with trio.fail_after(15):
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


async def exchange_with_client(hub: MemoryDevice, client: BaseClient, mark: bytes) -> None:
    up, down = ipv4(*UP, b"up" + mark), ipv4(*DOWN, b"down" + mark)
    client.send_packet(up)
    assert await hub.receive_packet() == up
    hub.send(down)
    assert (await elsewhere(client.recv)).packet == down


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("chunking", [Chunking(), Chunking(next_size=lambda: 1, segment=1)], ids=["plain", "bytewise"])
async def test_our_server_and_a_base_client(generation: Literal[1, 2], chunking: Chunking) -> None:
    port = free_port()
    host = MemoryHost()
    config = replace(server_config(port, allowed("test", "10.10.0.2")), peers=generation)
    async with running(host, config):
        hub = await host.device("hub")
        client = BaseClient(
            f"http://127.0.0.1:{port}/ip", "test", generation=generation, timers=FAST, chunking=chunking
        )
        try:
            await elsewhere(client.start)
            await elsewhere(client.wait_connected)
            await exchange_with_client(hub, client, b"0")
            for turn in range(1, 4):
                await elsewhere(client.rotate_get)
                await elsewhere(lambda: client.wait("get-open", turn + 1))  # noqa: B023 - awaited in this turn
                await exchange_with_client(hub, client, b"g%d" % turn)
                await elsewhere(client.rotate_put)
                await elsewhere(lambda: client.wait("put-open", turn + 1))  # noqa: B023
                await exchange_with_client(hub, client, b"p%d" % turn)
        finally:
            await elsewhere(client.stop)
        assert client.violations == []


async def test_our_server_ends_streams_on_a_frame_boundary_when_it_stops() -> None:
    """Not cleanly, see test_generation_2; the client is not deaf when it comes back."""
    port = free_port()
    host = MemoryHost()
    client = BaseClient(f"http://127.0.0.1:{port}/ip", "test", timers=FAST)
    try:
        async with running(host, server_config(port, allowed("test", "10.10.0.2"))):
            hub = await host.device("hub")
            await elsewhere(client.start)
            await elsewhere(client.wait_connected)
            await exchange_with_client(hub, client, b"")
            for n in range(100):
                hub.send(ipv4(*DOWN, bytes([n]) * 30_000))
        await elsewhere(lambda: client.wait("get-broken"))
    finally:
        await elsewhere(client.stop)
    assert client.violations == []
    assert "GET broke off on a frame boundary, without its last chunk" in " ".join(client.remarks)
    assert not client.deaf


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("http10", [False, True], ids=["http/1.1", "http/1.0"])
async def test_our_client_and_a_base_server(generation: Literal[1, 2], http10: bool) -> None:
    host = MemoryHost()
    spec = ClientSpec.of("a", "10.10.0.2", pushed=("192.168.7.0/24",))
    server = BaseServer([spec], port=0, generation=generation, http10=http10, timers=FAST, max_age_s=None)
    await elsewhere(server.start)
    try:
        port = int(server.url.split(":")[2].split("/")[0])
        async with running(host, replace(client_config("a", port), rotate_s=(0.3, 0.6))):
            a = await host.device("a")
            seat = server["a"]
            await elsewhere(lambda: server.wait("put-open"))
            with trio.fail_after(20):
                for turn in range(40):
                    up, down = ipv4(*UP, b"up%d" % turn), ipv4(*DOWN, b"down%d" % turn)
                    a.send(up)
                    assert (await elsewhere(seat.recv)).packet == up
                    seat.send_packet(down)
                    assert await a.receive_packet() == down
                    await trio.sleep(0.05)
            # 2 s of it: each stream was replaced every 0.3 to 0.6 s.
            await elsewhere(lambda: server.wait("get-open", 3))
            await elsewhere(lambda: server.wait("put-open", 3))
            if generation == 2:
                echo = seat.ping()
                assert echo
                await elsewhere(lambda: server.wait("echo"))
    finally:
        await elsewhere(server.stop)
    assert server.violations == []


async def test_our_client_comes_back_after_a_break_in_the_middle_of_a_frame() -> None:
    host = MemoryHost()
    server = BaseServer([ClientSpec.of("a", "10.10.0.2")], port=0, timers=FAST, max_age_s=None)
    await elsewhere(server.start)
    try:
        port = int(server.url.split(":")[2].split("/")[0])
        async with running(host, client_config("a", port)):
            a = await host.device("a")
            await elsewhere(lambda: server.wait("put-open"))
            server["a"].send_packet(ipv4(*DOWN, bytes(1000)))
            await a.receive_packet()
            server["a"].drop_get(mid_frame=True)
            await elsewhere(lambda: server.wait("get-open", 2))
            down = ipv4(*DOWN, b"whole again")
            server["a"].send_packet(down)
            assert await a.receive_packet() == down
    finally:
        await elsewhere(server.stop)
    assert server.violations == []
