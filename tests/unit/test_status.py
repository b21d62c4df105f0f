"""Snapshots of running interfaces: every number from where it is counted, and what a disconnect does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio import AGENT
from tapotun_trio.config.model import ClientConfig, ServerConfig, TcpAddress, TransportChoice
from tapotun_trio.cooperative import run_now
from tapotun_trio.datapath.counters import Counters
from tapotun_trio.lifecycle.registry import DISCONNECTED, NoSuchPeerError, Registry
from tapotun_trio.lifecycle.snapshot import snapshot_in_steps
from tapotun_trio.lifecycle.supervisor import run_interfaces
from tapotun_trio.peer.info import RATE_TICKS, PeerInfo
from tapotun_trio.status.model import InterfaceStatus, PeerStatus
from tapotun_trio.wire import control

from ..fakes import HANG_S, MemoryHost
from ..packets import ipv4, ipv6
from ..twins import twin
from .support import allowed, client_config, free_port, server_config
from .test_supervisor import FaultyHost

ME: Final = "10.10.0.2"
HUB: Final = "10.10.0.1"


class World:
    """A hub and a client in one process, and what they tell."""

    def __init__(self, host: MemoryHost, registry: Registry) -> None:
        self.host, self.registry = host, registry

    def interface(self, name: str) -> InterfaceStatus:
        (found,) = run_now(snapshot_in_steps(self.registry.select([name])))
        return found

    def peer(self, name: str) -> PeerStatus:
        (found,) = self.interface(name).peers
        return found

    async def until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(HANG_S):
            while not holds():  # noqa: ASYNC110 - it may come by the kernel's sockets
                await trio.sleep(0.01)

    async def connected(self) -> None:
        await self.until(lambda: self.peer("a").state == self.peer("hub").state == "connected")


@asynccontextmanager
async def world(*configs: ServerConfig | ClientConfig) -> AsyncIterator[World]:
    host, registry = MemoryHost(), Registry()
    async with trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, configs, host, registry)
        yield World(host, registry)
        nursery.cancel_scope.cancel()


def pair(transport: TransportChoice = "http") -> tuple[ServerConfig, ClientConfig]:
    port = free_port()
    laptop = allowed("a", (ME, twin(ME)), routes=("10.60.0.0/24", "fd60::/64"), sources=("192.168.7.7", "fd77::7"))
    pushed = IPv4Network("10.99.0.0/16"), IPv6Network("fd99::/64")
    hub = replace(server_config(port, laptop, mtu=1400), push_routes=pushed, keepalive_s=1.0)
    return hub, replace(client_config("a", port), transport=transport)


def of_both(address: str) -> list[str]:
    """An address of the tunnel with its prefix, and its twin."""
    return [f"{address}/24", f"{twin(address)}/120"]


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_both_ends_of_a_tunnel(transport: TransportChoice) -> None:
    async with world(*pair(transport)) as it:
        await it.connected()
        hub, a = await it.host.device("hub"), await it.host.device("a")
        up, down = ipv4(ME, HUB, b"up" * 50), ipv4(HUB, ME, b"down" * 50)
        for _ in range(3):
            a.send(up)
            assert await hub.receive_packet() == up
        hub.send(down)
        assert await a.receive_packet() == down
        hub.send(ipv4(HUB, "10.99.9.9"))  # nobody's
        a.send(ipv4("10.10.0.1", HUB))  # the server's own address: not the client's to use
        up6, down6 = ipv6(twin(ME), twin(HUB), b"up" * 50), ipv6(twin(HUB), twin(ME), b"down" * 50)
        a.send(up6)
        assert await hub.receive_packet() == up6
        hub.send(down6)
        assert await a.receive_packet() == down6
        hub.send(ipv6(twin(HUB), "fd99::9"))
        a.send(ipv6(twin(HUB), twin(HUB)))
        await it.until(lambda: it.interface("hub").device_drops == {"no-route": 2})
        await it.until(lambda: it.peer("hub").drops == {"bad-source": 2})
        await it.until(lambda: it.peer("hub").rtt.last_ms is not None and it.peer("a").rtt.last_ms is not None)
        await it.until(lambda: it.peer("hub").agent is not None)

        server, client = it.interface("hub"), it.interface("a")
        assert (server.kind, server.state, server.addresses, server.mtu_bytes) == ("server", "up", of_both(HUB), 1400)
        assert (client.kind, client.state, client.addresses, client.mtu_bytes) == ("client", "up", of_both(ME), 1400)
        assert [re.fullmatch(r"127\.0\.0\.1:\d+", at.address) is not None for at in server.listen] == [True]
        assert server.restarts == client.restarts == 0
        assert server.last_error is client.last_error is None

        ours, theirs = it.peer("hub"), it.peer("a")
        assert (ours.name, ours.addresses, ours.sources) == ("a", [ME, twin(ME)], ["192.168.7.7", "fd77::7"])
        assert ours.routes == ["10.60.0.0/24", "fd60::/64"]
        assert theirs.name == theirs.endpoint == server.listen[0].address
        assert theirs.routes == ["10.99.0.0/16", "fd99::/64"]
        assert ours.endpoint is not None
        assert re.fullmatch(r"127\.0\.0\.1:\d+", ours.endpoint)
        assert ours.transport == theirs.transport == transport
        assert ours.extended is theirs.extended is True
        assert ours.ipv6 is theirs.ipv6 is True
        assert ours.agent == theirs.agent == AGENT
        assert (ours.rx_packets, ours.rx_bytes) == (6, 3 * len(up) + 20 + len(up6) + 40)
        assert (ours.tx_packets, ours.tx_bytes) == (2, len(down) + len(down6))
        assert (theirs.rx_packets, theirs.rx_bytes) == (2, len(down) + len(down6))
        assert theirs.tx_packets == 6
        assert ours.connected_since is not None
        assert ours.last_frame_at is not None
        assert ours.last_frame_at >= ours.connected_since
        assert (ours.outbox.bytes, ours.outbox.packets) == (0, 0)
        assert ours.reconnects == theirs.reconnects == 0

        said = msgspec.json.encode(run_now(snapshot_in_steps(it.registry))).decode()
        secrets = "a", hashlib.sha1(b"a").hexdigest()
        assert f'"{secrets[0]}"' not in said.replace('"name":"a"', "")
        assert secrets[1] not in said
        assert msgspec.json.decode(said, type=list[InterfaceStatus], strict=True) == run_now(
            snapshot_in_steps(it.registry)
        )


@pytest.mark.parametrize("agent", ["", "curl/8.1\x80 " + 100 * "x"])
async def test_a_base_client(agent: str) -> None:
    """It gets nothing that it does not know; what it calls itself is cut to one short line."""
    hub, _ = pair()
    (endpoint,) = hub.listen
    assert isinstance(endpoint, TcpAddress)
    fields = f"User-Agent: {agent}\r\n" if agent else ""
    async with world(hub) as it, await trio.open_tcp_stream("127.0.0.1", endpoint.port) as stream:
        await stream.send_all(f"GET /ip HTTP/1.1\r\nHost: x\r\nx-api-key:a\r\n{fields}\r\n".encode("latin-1"))
        head = (await stream.receive_some(4096)).decode()
        assert "x-tun-conf" in head
        assert "x-tun-agent" not in head
        await it.until(lambda: it.peer("hub").endpoint is not None)
        peer = it.peer("hub")
        assert (peer.state, peer.extended, peer.transport) == ("connecting", False, "http")  # it has no upload
        assert peer.ipv6 is False  # although it has an address of IPv6
        assert peer.agent == (f"curl/8.1\\u0080 {'x' * 48}…" if agent else None)
        await stream.aclose()
        await it.until(lambda: it.peer("hub").state == "offline")
        assert it.peer("hub").connected_since is None


async def test_a_client_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with world(client_config("a", free_port())) as it:
        await it.until(lambda: bool(it.peer("a").stream_ends))
        client = it.interface("a")
        assert (client.state, client.addresses, client.mtu_bytes) == ("connecting", [], None)
        peer = it.peer("a")
        assert (peer.state, peer.endpoint, peer.connected_since, peer.agent) == ("connecting", None, None, None)
        assert peer.stream_ends.keys() == {"connect"} or peer.stream_ends.keys() == {"refused"}


async def test_an_interface_that_fails_says_why(autojump_clock: trio.testing.MockClock) -> None:
    host, registry = FaultyHost("hub", RuntimeError("boom\nbang")), Registry()
    it = World(host, registry)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, [server_config(free_port())], host, registry)
        await it.until(lambda: it.interface("hub").state == "failed")
        hub = it.interface("hub")
        assert (hub.state, hub.restarts) == ("failed", 1)
        assert hub.last_error == "internal error: RuntimeError('boom\\nbang')"
        host.fault = None
        await it.until(lambda: it.interface("hub").state == "up")
        hub = it.interface("hub")
        assert (hub.state, hub.restarts) == ("up", 1)
        assert hub.last_error is not None, "it stays until somebody has seen it"
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ disconnect


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_a_disconnected_client_hears_why_and_comes_back(
    transport: TransportChoice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tapotun")
    async with world(*pair(transport)) as it:
        await it.connected()
        assert it.registry.disconnect(None, "a") == 1
        await it.until(lambda: f"the server ends the session: {DISCONNECTED}" in caplog.text)
        await it.until(lambda: it.peer("hub").reconnects == it.peer("a").reconnects == 1)
        await it.connected()
        hub, a = await it.host.device("hub"), await it.host.device("a")
        up = ipv4(ME, HUB, b"again")
        a.send(up)
        assert await hub.receive_packet() == up
        assert it.peer("hub").transport == transport
        assert "bug" not in caplog.text


async def test_disconnect_names_what_there_is() -> None:
    async with world(*pair()) as it:
        await it.connected()
        for interface, client, said in (
            (None, "b", "there is no client b here; the servers have a"),
            ("hub", "b", "there is no client b at hub; the servers have a"),
            ("nub", "a", "there is no interface nub here; running: hub, a"),
            ("a", "a", "there is no client a at a; the servers have none"),
        ):
            with pytest.raises(NoSuchPeerError) as caught:
                it.registry.disconnect(interface, client)
            assert str(caught.value) == said
        assert it.peer("hub").reconnects == 0


async def test_nobody_to_disconnect() -> None:
    async with world(server_config(free_port(), allowed("a", ME))) as it:
        assert it.peer("hub").state == "offline"
        assert it.registry.disconnect("hub", "a") == 0


# ------------------------------------------------------------------ presence


def test_rates_are_of_the_last_ticks() -> None:
    peer_info, counters = PeerInfo(), Counters()
    peer_info.tick(0.0, counters, heard=False)
    assert peer_info.rates == (0.0, 0.0)
    for second in range(1, 21):
        if second <= 10:
            counters.rx_bytes += 1000
            counters.tx_bytes += 250
        peer_info.tick(float(second), counters, heard=True)
        if RATE_TICKS <= second <= 10:
            assert peer_info.rates == (8000.0, 2000.0)
    assert peer_info.rates == (0.0, 0.0)


def test_a_rotation_is_no_reconnect() -> None:
    peer_info = PeerInfo()
    peer_info.mark_connected("x:1", None, extended=True, continues=False)
    since = peer_info.connected_since
    peer_info.mark_connected("x:2", "v2", extended=True, continues=True)
    assert (peer_info.connected_since, peer_info.reconnects, peer_info.endpoint, peer_info.agent) == (
        since,
        0,
        "x:2",
        "v2",
    )
    peer_info.mark_disconnected()
    assert peer_info.connected_since is None
    assert since is not None
    assert peer_info.state_since >= since
    peer_info.mark_connected("x:3", None, extended=False, continues=True)
    assert peer_info.reconnects == 1
    peer_info.mark_connected("y:1", None, extended=False, continues=False)
    assert peer_info.reconnects == 2


@given(st.text())
def test_what_a_peer_calls_itself_is_one_short_line(value: str) -> None:
    agent = control.agent(value)
    if agent is None:
        assert not value.strip()
    else:
        assert agent.isprintable()
        assert len(agent) <= control.AGENT_CHARS


@given(st.binary() | st.binary(min_size=990, max_size=1100))
def test_and_so_it_is_in_a_frame(payload: bytes) -> None:
    agent = control.agent_payload(payload)
    assert agent is None or (agent.isprintable() and 0 < len(agent) <= control.AGENT_CHARS)
