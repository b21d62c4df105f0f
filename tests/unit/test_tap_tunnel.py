"""Ethernet frames through the tunnel, with whole interfaces of ours: a server and its clients, joined by real sockets
on loopback and by devices in memory."""

from __future__ import annotations

import logging
import re
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from typing import Any, Final, Literal

import pytest
import trio

from tapotun_trio.client import carrier
from tapotun_trio.client.backoff import Backoff
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.config.model import AllowedClient, Bridge, ClientConfig, DeviceKind, Mark, ServerConfig
from tapotun_trio.cooperative import run_cooperatively
from tapotun_trio.errors import HostError
from tapotun_trio.host.items import Address, BridgeAddress, BridgePort, Item, OwnBridge
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle import restart
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.lifecycle.snapshot import snapshot_in_steps
from tapotun_trio.macs import BROADCAST, is_station, parse_mac
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire import control
from tests.basepeer import BaseClient, BaseServer, ClientSpec
from tests.basepeer.pair import FAST

from ..fakes import MemoryDevice, MemoryHost
from ..packets import frame, ip, ipv4
from ..tables import table
from .hostile import Raw, assert_quiet, chunk, hostile_host, logged, until
from .support import allowed, client_config, free_port, running, server_config
from .test_hostile_server import CONF, Answer, ok, says
from .test_hostile_server import facing as facing_tun
from .test_hostile_server import params as params_frame
from .test_interop_base import elsewhere

pytestmark = [pytest.mark.usefixtures("each_plane"), pytest.mark.usefixtures("nothing_dropped_on_purpose")]

HUB_MAC: Final = parse_mac("02:00:00:00:00:01")
Transport = Literal["http", "websocket"]
transports: Final = pytest.mark.parametrize("transport", ["http", "websocket"])


def station(name: str) -> bytes:
    """A machine behind the interface of that name."""
    return b"\x02\xbb\0\0\0" + {"hub": b"\1", "a": b"\2", "b": b"\3"}[name]


def ether(source: str, destination: str | bytes, payload: bytes = b"", kind: int = 0x88B5) -> bytes:
    """An Ethernet frame; type 0x88B5 is for experiments (IEEE 802)."""
    to = destination if isinstance(destination, bytes) else station(destination)
    return to + station(source) + kind.to_bytes(2, "big") + payload


def tap(port: int, *clients: AllowedClient, **options: Any) -> ServerConfig:
    return replace(server_config(port, *clients), device="tap", mac=HUB_MAC, **options)


def plain(name: str) -> AllowedClient:
    """A client without an address."""
    return replace(allowed(name, "10.10.0.2"), addresses=())


@dataclass
class World:
    """
    Attributes:
        devices: by the name of the interface.
    """

    port: int
    host: MemoryHost
    records: dict[str, Record]
    log: list[logging.LogRecord]
    devices: dict[str, MemoryDevice]

    @property
    def server(self) -> TunnelServer:
        tunnel = self.records["hub"].tunnel
        assert isinstance(tunnel, TunnelServer)
        return tunnel

    def client(self, name: str) -> TunnelClient:
        tunnel = self.records[name].tunnel
        assert isinstance(tunnel, TunnelClient)
        return tunnel

    async def connected(self, *names: str) -> None:
        """Both streams of these clients work."""
        for name in names:
            sessions = {it.client.name: it for it in self.server.sessions}
            await until(lambda: sessions[name].state == "connected", f"{name} at the server")  # noqa: B023
            await until(lambda: self.client(name).sender.streaming, f"{name}'s upload")  # noqa: B023
            self.devices[name] = await self.host.device(name)

    async def carries(self, packet: bytes, of: str, *to: str, vnet: bytes = bytes(12)) -> None:
        """A frame of one device reaches these others, and comes back to none."""
        self.devices[of].send(packet, vnet)
        for name in to:
            assert await self.devices[name].receive() == vnet + packet
        assert {name: device.take() for name, device in self.devices.items()} == {name: [] for name in self.devices}

    async def reload(self, config: ServerConfig | ClientConfig) -> None:
        record = self.records[config.name]
        assert record.reconfigure is not None
        record.config = config
        await record.reconfigure(config)

    def lines(self, words: str) -> list[str]:
        return [it.getMessage() for it in self.log if words in it.getMessage()]

    async def told(self, words: str) -> None:
        await until(lambda: self.lines(words), words)


@asynccontextmanager
async def world(
    *clients: str | ClientConfig, server: ServerConfig | None = None, has_ipv6: bool = True, **options: Any
) -> AsyncIterator[World]:
    """A server and clients of these names, or with these configs. ``server``: its config, but for the port."""
    port, host, records = free_port(), hostile_host(), dict[str, Record]()
    host.ipv6 = has_ipv6
    listen = tap(port).listen
    hub = replace(server, listen=listen) if server is not None else tap(port, plain("a"), plain("b"), **options)
    configs = [
        client_config(it, port) if isinstance(it, str) else replace(it, server=client_config("x", port).server)
        for it in clients
    ]
    with logged() as log:
        async with running(host, hub, *configs, records=records):
            yield World(port, host, records, log, {"hub": await host.device("hub")})
    assert_quiet(log)


def client(name: str = "a", **options: Any) -> ClientConfig:
    return replace(client_config(name, 1), **options)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda *args, **kwargs: 0.0)
    monkeypatch.setattr(restart, "RESTART_S", (0.0, 0.0))
    monkeypatch.setattr(carrier, "LOST_S", 0.0)


# ------------------------------------------------------------------ frames


@transports
async def test_frames_cross_the_tunnel(transport: Transport) -> None:
    async with world(client(transport=transport), client("b", transport=transport)) as it:
        await it.connected("a", "b")
        await it.carries(ether("a", BROADCAST), "a", "hub", "b")
        await it.carries(ether("b", BROADCAST), "b", "hub", "a")
        await it.carries(ether("hub", BROADCAST), "hub", "a", "b")
        for of, to in (("a", "b"), ("b", "a"), ("a", "hub"), ("hub", "a"), ("b", "hub"), ("hub", "b")):
            await it.carries(ether(of, to, b"from " + of.encode()), of, to)
        counters = [it.client("a").counters, it.client("b").counters, *(each.counters for each in it.server.sessions)]
        assert [each.drops for each in counters] == [Counter()] * 4
        assert it.server.device_drops == Counter()
        assert [(each.rx_packets, each.tx_packets) for each in counters[:2]] == [(4, 3), (4, 3)]


@table(
    "packet",
    ("the smallest", ether("a", "hub")),
    ("of 15 to 19 bytes", ether("a", "hub", b"12345")),
    ("as large as the length can say", ether("a", "hub", bytes(65_535 - 14))),
    ("IPv4", ether("a", "hub", ipv4("10.0.0.1", "10.0.0.2", bytes(100)), 0x0800)),
    ("an IPv4 address of nobody", ether("a", "hub", ipv4("127.0.0.1", "224.0.0.1"), 0x0800)),
    ("IPv6", ether("a", "hub", ip("2001:db8::1", "2001:db8::2", bytes(100)), 0x86DD)),
    ("IPv6 that stays on its link", ether("a", "hub", ip("fe80::1", "ff02::1", bytes(8)), 0x86DD)),
    ("IPv6 of one byte", ether("a", "hub", b"\x60", 0x86DD)),
    ("802.1Q", ether("a", "hub", b"\0\7\x08\0" + ipv4("10.0.0.1", "10.0.0.2"), 0x8100)),
    ("two tags", ether("a", "hub", b"\0\7\x81\0\0\x08\x08\0" + ipv4("10.0.0.1", "10.0.0.2"), 0x88A8)),
    ("ARP", ether("a", "hub", bytes(28), 0x0806)),
    ("802.3 with a length", ether("a", "hub", bytes(38), 38)),
    ("what looks like a control frame", ether("a", "hub", b"\1\0\1\0\0\0\0" * 10)),
    ("what looks like a ping of a base peer", ether("a", "hub", b"\x10" + bytes(47))),
)
@transports
async def test_every_kind_of_frame_both_ways(packet: bytes, transport: Transport) -> None:
    async with world(client(transport=transport)) as it:
        await it.connected("a")
        await it.carries(packet, "a", "hub")
        back = packet[6:12] + packet[:6] + packet[12:]
        await it.carries(back, "hub", "a")


TCP: Final = struct.pack("!HHIIBBHHH", 80, 80, 1, 1, 0x50, 0x10, 1000, 0, 0) + bytes(60_000)


@table(
    "header packet gso",
    ("TCP over IPv4", b"\x08\0", ipv4("10.0.0.1", "10.0.0.2", TCP, 6), 1),
    ("TCP over IPv6", b"\x86\xdd", ip("2001:db8::1", "2001:db8::2", TCP, 6), 4),
    ("TCP behind a tag", b"\x81\0\0\7\x08\0", ipv4("10.0.0.1", "10.0.0.2", TCP, 6), 1),
)
@transports
async def test_a_super_packet_crosses_whole(header: bytes, packet: bytes, gso: int, transport: Transport) -> None:
    """Offsets count from the Ethernet header. From client to client, too."""
    start = 12 + len(header) + len(packet) - len(TCP)
    vnet = struct.pack("<BBHHHHH", 1, gso, start + 20, 1400, start, 16, 0)
    async with world(client(transport=transport), client("b", transport=transport)) as it:
        await it.connected("a", "b")
        await it.carries(ether("b", BROADCAST), "b", "hub", "a")
        await it.carries(station("hub") + station("a") + header + packet, "a", "hub", "b", vnet=vnet)
        await it.carries(station("b") + station("a") + header + packet, "a", "b", vnet=vnet)
        await it.carries(station("a") + station("hub") + header + packet, "hub", "a", vnet=vnet)


@transports
async def test_many_frames_keep_their_order_through_rotations(transport: Transport) -> None:
    async with world(client(transport=transport)) as it:
        await it.connected("a")
        device, hub = it.devices["a"], it.devices["hub"]
        for turn in range(6):
            up = [ether("a", "hub", bytes([turn, number]) * (1 + 40 * (number % 7))) for number in range(200)]
            down = [ether("hub", "a", packet[14:]) for packet in up]
            before = it.client("a").download
            it.client("a").path_changed("the test")
            for one, other in zip(up, down, strict=True):
                device.send(one)
                hub.send(other)
                await trio.lowlevel.checkpoint()
            assert [await hub.receive_packet() for _ in up] == up
            assert [await device.receive_packet() for _ in down] == down
            await until(lambda: it.client("a").download is not before, "the next download")  # noqa: B023
            await it.connected("a")
        assert it.client("a").counters.drops == Counter()


# ------------------------------------------------------------------ the client's interface


async def test_a_client_without_an_address() -> None:
    async with world("a", mtu=1400) as it:
        await it.connected("a")
        device = it.devices["a"]
        assert device.mac is not None
        assert is_station(device.mac)
        assert device.mac[0] & 2  # administered locally
        assert device.mac != it.devices["hub"].mac == HUB_MAC
        assert it.host.mtus["a"] == 1400
        assert it.host.standing.get("a", []) == []
        (line,) = it.lines("download from 127.0.0.1:" + str(it.port))
        assert "(extended, Ethernet): no address, MTU 1400" in line
        assert it.client("a").device == "tap"


@table(
    "options kind",
    ("on the interface", {}, None),
    ("on a bridge", {"bridge": Bridge("br0"), "device": "tap"}, BridgePort("br0")),
    (
        "on a bridge of ours",
        {"bridge": Bridge("br0", create=True, isolated=True, bpdu_guard=True), "device": "tap"},
        BridgePort("br0", isolated=True, bpdu_guard=True),
    ),
)
async def test_addresses(options: dict[str, Any], kind: BridgePort | None) -> None:
    addresses = IPv4Interface("10.10.0.2/24"), IPv6Interface("fd00::a0a:2/120")
    server = tap(1, allowed("a", ("10.10.0.2", "fd00::a0a:2")))
    bridge: Bridge | None = options.get("bridge")
    async with world(client(**options), server=server) as it:
        await it.connected("a")
        expected: list[Item] = []
        if bridge is None or kind is None:
            expected += [Address(address) for address in addresses]
        else:
            expected += [OwnBridge("br0")] if bridge.create else []
            expected += [kind, *(BridgeAddress("br0", address) for address in addresses)]
        await until(lambda: it.host.standing.get("a", []) == expected, f"{expected}")
        assert it.host.devices["a"].is_port == (bridge is not None)
        (status,) = await run_cooperatively(snapshot_in_steps([it.records["a"]]))
        assert status.device == "tap"
        assert status.addresses == list(map(str, addresses))


async def test_a_machine_without_ipv6_gets_no_ipv6_address() -> None:
    server = tap(1, allowed("a", ("10.10.0.2", "fd00::a0a:2")))
    async with world("a", server=server, has_ipv6=False) as it:
        await it.connected("a")
        assert it.host.standing["a"] == [Address(IPv4Interface("10.10.0.2/24"))]
        assert it.lines("this machine has no IPv6")[0].endswith("it gets no IPv6 address here")
        packet = ether("a", "hub", ip("fe80::1", "ff02::1"), 0x86DD)  # which concerns the address, not the frames
        await it.carries(packet, "a", "hub")


async def test_changed_addresses_reach_the_client_without_a_reconnect() -> None:
    async with world("a") as it:
        await it.connected("a")
        (session,) = (each for each in it.server.sessions if each.client.name == "a")
        config = it.records["hub"].config
        assert isinstance(config, ServerConfig)
        for addresses in ("10.10.0.7",), ("10.10.0.8",), ():
            newer = allowed("a", addresses) if addresses else plain("a")
            await it.reload(replace(config, clients=(newer, plain("b"))))
            expected = [Address(IPv4Interface(f"{ip}/24")) for ip in addresses]
            await until(lambda: it.host.standing.get("a", []) == expected, f"{expected}")  # noqa: B023
        assert session.counters.ends == it.client("a").counters.ends == Counter()
        await it.carries(ether("a", BROADCAST), "a", "hub")


@transports
async def test_what_is_agreed_on_ipv6_concerns_addresses_only(transport: Transport) -> None:
    """An end that may not send IPv6 packets drops what looks like one from its queue. A MAC address may look so."""
    both = allowed("a", ("10.10.0.2", "fd00::a0a:2"))
    async with world(client(transport=transport), server=tap(1, both)) as it:
        await it.connected("a")
        config = it.records["hub"].config
        assert isinstance(config, ServerConfig)
        (session,) = it.server.sessions
        await it.reload(replace(config, clients=(allowed("a", "10.10.0.2"),)))
        await until(lambda: it.host.standing["a"] == [Address(IPv4Interface("10.10.0.2/24"))], "the address to go")
        await it.connected("a")
        assert not it.client("a").peer_info.ipv6
        assert it.client("a").sender.ipv6
        assert session.sender.ipv6
        looks_so = b"\x62" + bytes(5) + station("a") + b"\x88\xb5"
        await it.carries(looks_so, "a", "hub")
        await it.carries(looks_so, "hub", "a")


async def test_the_mac_address_stays() -> None:
    """The same for the same name and token; another one for another token; the config's, if it has one."""
    found = []
    mine = parse_mac("02:12:34:56:78:9a")
    for config in (client(), client(), client(device="tap", mac=mine)):
        async with world(config) as it:
            found.append((await it.host.device("a")).mac)
    assert found[0] == found[1]
    assert found[2] == mine
    async with world("b") as it:
        assert (await it.host.device("b")).mac != found[0]


@asynccontextmanager
async def serving(config: ServerConfig, host: MemoryHost) -> AsyncIterator[TunnelServer]:
    """A server, which may come and go while a client runs."""
    record = Record(config)
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        await nursery.start(run_interface, config, host, listeners, record)
        assert isinstance(record.tunnel, TunnelServer)
        yield record.tunnel
        nursery.cancel_scope.cancel()


async def is_connected(server: TunnelServer) -> None:
    (session,) = server.sessions
    await until(lambda: session.state == "connected", "both streams")


async def test_the_carrier_follows_the_session() -> None:
    port, host = free_port(), hostile_host()
    with logged() as log:
        async with running(host, client_config("a", port)):
            async with serving(tap(port, plain("a")), host):
                device = await host.device("a")
                await device.wait_carrier(up=True)
            for _ in range(2):
                await device.wait_carrier(up=False)
                assert host.devices["a"] is device
                async with serving(tap(port, plain("a")), host):
                    await device.wait_carrier(up=True)
            await device.wait_carrier(up=False)
    assert_quiet(log)


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_the_carrier_stays_while_streams_are_replaced(transport: Transport) -> None:
    async with world(client(transport=transport)) as it:
        await it.connected("a")
        changes: list[bool] = []
        device = it.devices["a"]
        set_carrier = device.set_carrier

        def noting(*, up: bool) -> None:
            changes.append(up)
            set_carrier(up=up)

        it.client("a")._carrier.attach(noting)
        for _ in range(3):
            before = it.client("a").download
            it.client("a").path_changed("the test")
            await until(lambda: it.client("a").download is not before, "the next download")  # noqa: B023
        assert device.carrier
        assert changes == []


def test_a_short_interruption_does_not_take_the_carrier_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    changes: list[bool] = []
    tested = carrier.Carrier()
    tested.attach(lambda *, up: changes.append(up))
    tested.tick(0.0, connected=False)
    tested.session_began()
    tested.tick(1.0, connected=True)
    tested.tick(2.0, connected=False)
    tested.tick(4.9, connected=False)
    tested.tick(5.0, connected=True)
    tested.tick(6.0, connected=False)
    tested.tick(8.9, connected=False)
    assert changes == [True]
    tested.tick(9.0, connected=False)
    tested.tick(20.0, connected=False)
    assert changes == [True, False]
    tested.session_began()
    tested.session_began()
    assert changes == [True, False, True]


# ------------------------------------------------------------------ ends that do not fit


async def has_device(host: MemoryHost, kind: DeviceKind) -> None:
    """Wait until the client has a device of this kind."""
    is_tap = kind == "tap"
    await until(lambda: "a" in host.devices and (host.devices["a"].mac is not None) == is_tap, f"a {kind} device")


@transports
async def test_a_server_that_turns_into_another_kind(transport: Transport) -> None:
    """The client's interface is made anew, without an error: from TUN to TAP and back."""
    port, host, records = free_port(), hostile_host(), dict[str, Record]()
    config = replace(client_config("a", port), transport=transport)
    packets = {"tun": ipv4("10.10.0.2", "10.10.0.1", b"up"), "tap": ether("a", "hub", b"up")}
    older: MemoryDevice | None = None
    kinds: list[DeviceKind] = ["tun", "tap", "tap", "tun", "tap"]
    with logged() as log:
        async with running(host, config, records=records):
            for number, kind in enumerate(kinds):
                hub = tap(port, allowed("a", "10.10.0.2"))
                hub = hub if kind == "tap" else replace(hub, device="tun", mac=None)
                async with serving(hub, host) as server:
                    await has_device(host, kind)
                    await is_connected(server)
                    device = host.devices["a"]
                    assert (device is older) == (number == 2)  # the only turn in which the kind stays
                    assert (device.mac is not None) == (kind == "tap")
                    tunnel = records["a"].tunnel
                    assert isinstance(tunnel, TunnelClient)
                    await until(lambda: tunnel.sender.streaming, "the upload")  # noqa: B023
                    device.send(packets[kind])
                    assert await host.devices["hub"].receive_packet() == packets[kind]
                    assert records["a"].reconfigure is not None
                    older = device
            assert (records["a"].restarts, records["a"].last_error) == (0, None)
    assert_quiet(log)
    lines = [it.getMessage() for it in log if it.levelno > logging.DEBUG]
    changed = ["TAP instead of TUN", "TUN instead of TAP", "TAP instead of TUN"]
    expected = [f"the server's interface is now {each}; this one becomes the same in 0 s" for each in changed]
    assert [line for line in lines if "the server's interface" in line] == expected


async def test_what_was_missing_of_the_old_device_is_not_missed_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the interface waits to be replaced, it has no device."""
    monkeypatch.setattr(restart, "RESTART_S", (600.0, 600.0))
    port, host, records = free_port(), hostile_host(), dict[str, Record]()
    hub = tap(port, allowed("a", "10.10.0.2"))
    with logged() as log:
        async with running(host, client_config("a", port), records=records):
            async with serving(hub, host) as server:
                await has_device(host, "tap")
                await is_connected(server)
                records["a"].health.set_degraded("there is no bridge br0")
            async with serving(replace(hub, device="tun", mac=None), host):
                await until(lambda: any("becomes the same" in it.getMessage() for it in log), "the wait")
                assert records["a"].health.degraded is None
                assert (records["a"].repair, records["a"].mac) == (None, None)


async def test_a_client_that_insists_on_ethernet() -> None:
    server = server_config(1, allowed("a", "10.10.0.2"))
    async with world(client(device="tap"), server=server) as it:
        await it.told('the server\'s interface carries IP packets, and this client\'s config says "device": "tap"')
        assert it.client("a").counters.ends["other-device"] >= 1
        assert "a" not in it.host.devices


@pytest.mark.parametrize("generation", [1, 2])
async def test_a_client_that_insists_on_ethernet_and_a_base_server(generation: Literal[1, 2]) -> None:
    """It fails with a line, and the server gets nothing that it does not know."""
    server = BaseServer([ClientSpec.of("a", "10.10.0.2")], port=0, generation=generation, timers=FAST, max_age_s=None)
    await elsewhere(server.start)
    host, records = hostile_host(), dict[str, Record]()
    try:
        port = int(server.url.split(":")[2].split("/")[0])
        with logged() as log:
            async with running(host, replace(client_config("a", port), device="tap"), records=records):
                words = 'carries IP packets, and this client\'s config says "device": "tap"; correct one of the two'
                await until(lambda: any(words in each.getMessage() for each in log), words)
                assert host.devices == {}
    finally:
        await elsewhere(server.stop)
    assert server.violations == []
    assert_quiet(log)


async def test_a_client_whose_config_says_tun() -> None:
    async with world(client(device="tun")) as it:
        await it.told("this interface carries Ethernet, and the peer does not offer it")  # at the server
        line = 'its interface carries Ethernet frames, and this client\'s config says "device": "tun"'
        await it.told(f"answered 406 Not Acceptable: {line}")
        assert it.client("a").counters.ends["http-406"] >= 1
        assert it.server.refusals["no-tap"] >= 1
        assert "a" not in it.host.devices


async def test_a_client_whose_config_says_tun_on_a_machine_without_ipv6() -> None:
    """Either may be the cause."""
    async with world(client(device="tun"), has_ipv6=False) as it:
        await it.told("answered 406 Not Acceptable: either its interface carries Ethernet frames, and this client's")
        assert it.lines("or it has only IPv6 addresses for this client, and this machine has no IPv6")


@pytest.mark.parametrize("device", ["tun", None])
async def test_a_client_of_a_tun_interface(device: DeviceKind | None) -> None:
    async with world(client(device=device), server=server_config(1, allowed("a", "10.10.0.2"))) as it:
        await it.connected("a")
        assert it.devices["a"].mac is None
        assert it.devices["a"].carrier
        packet = ipv4("10.10.0.2", "10.10.0.1")
        await it.carries(packet, "a", "hub")
        assert it.client("a").device == "tun"


async def test_a_mark_cannot_route_into_ethernet() -> None:
    async with world(client(mark=Mark(100, 200))) as it:
        await it.told('into which "mark" cannot route packets; remove "mark" from this client\'s config')
        assert it.client("a").counters.ends["other-device"] >= 1
        assert "a" not in it.host.devices
        config = it.records["a"].config
        assert isinstance(config, ClientConfig)
        await it.client("a").reconfigure(replace(config, mark=None))
        await it.connected("a")
        with pytest.raises(HostError, match='remove "mark"'):
            await it.reload(replace(config, mark=Mark(100, 200)))
        assert it.client("a").desired is not None
        await it.carries(ether("a", "hub"), "a", "hub")
        await it.client("a").reconfigure(replace(config, mark=None))


# ------------------------------------------------------------------ base peers


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("path", ["/ip", "/"])
async def test_a_base_client_gets_a_406_and_not_a_byte_more(method: str, path: str) -> None:
    async with world() as it:
        raw = Raw(await trio.open_tcp_stream("127.0.0.1", it.port))
        lines = [f"{method} {path} HTTP/1.1", "Host: vpn.example.com", "Accept: */*", "x-api-key:a"]
        if method == "PUT":
            lines += ["Transfer-Encoding: chunked", "Expect: 100-continue"]
        await raw.send("\r\n".join([*lines, "", ""]).encode())
        answer = await raw.rest()
        raw.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split(b"\r\n")[0] == b"HTTP/1.1 406 Not Acceptable"
        assert {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]} == {
            b"content-type",
            b"content-length",
            b"connection",
        }
        assert body == b"406\n"
        assert it.devices["hub"].take() == []
        assert not it.devices["hub"].carrier


async def test_a_base_client_is_never_given_a_frame() -> None:
    async with world("b") as it:
        await it.connected("b")
        peer = BaseClient(f"http://127.0.0.1:{it.port}/ip", "a", timers=FAST)
        try:
            await elsewhere(peer.start)
            await it.told("this interface carries Ethernet, and the peer does not offer it")
            for _ in range(3):
                await it.carries(ether("hub", BROADCAST), "hub", "b")
        finally:
            await elsewhere(peer.stop)
        assert all("answered with 'HTTP/1.1 406 Not Acceptable'" in each for each in peer.violations), peer.violations
        (session,) = (each for each in it.server.sessions if each.client.name == "a")
        assert session.counters.tx_packets == 0


# ------------------------------------------------------------------ servers that mean no good

ETHERNET: Final = "x-tun-features: ctl, tap"
PARAMS: Final = params_frame(device="tap", addresses=[])


def no_conf(*fields: str) -> bytes:
    return ok(CONF, *fields).replace(b"x-tun-conf: " + CONF.encode() + b"\r\n", b"")


@table(
    "answer words",
    ("no PARAMS", says(no_conf(ETHERNET), then="closes"), "closed"),
    (
        "a frame before PARAMS",
        says(no_conf(ETHERNET), chunk(frame(bytes(14)))),
        "did not begin with the param",
    ),
    ("PARAMS of TUN", says(no_conf(ETHERNET), chunk(params_frame())), "agreed on tap only"),
    ("PARAMS that are none", says(no_conf(ETHERNET), chunk(control.encode(control.PARAMS, b"{"))), "cannot be read"),
    ("a bad address", says(no_conf(ETHERNET), chunk(params_frame(device="tap", addresses=["0.0.0.0/0"]))), "unusable"),
    ("control frames were not agreed on", says(no_conf("x-tun-features: tap")), "without x-tun-conf"),
    ("TAP was not agreed on", says(ok(CONF, "x-tun-features: ctl"), chunk(PARAMS)), "agreed on tun only|no address"),
    ("an end within PARAMS", says(no_conf(ETHERNET), chunk(PARAMS[:20]) + b"0\r\n\r\n"), "within a frame"),
)
async def test_a_bad_answer_is_told_and_the_next_one_taken(
    answer: Answer, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with facing_tun(answer):
        warnings = [it.getMessage() for it in caplog.records if it.levelname == "WARNING"]
        assert [line for line in warnings if re.search(words, line)], warnings


class Hub:
    """A server in raw bytes: the answers to GETs, one after the other, and what came with PUTs."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.heads: list[bytes] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            raw = Raw(stream)
            head = await raw.head()
            self.heads.append(head)
            if head.startswith(b"GET"):
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                await answer(raw)
            else:
                while await raw.receive():
                    pass


@asynccontextmanager
async def facing(
    *answers: Answer, config: ClientConfig | None = None
) -> AsyncIterator[tuple[MemoryHost, Record, Hub, list[logging.LogRecord]]]:
    """A client of ours that gets these answers, and then the last of them again and again."""
    hub, host, records = Hub(*answers), hostile_host(), dict[str, Record]()
    with logged() as log:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, hub.serve, listeners)
            mine = replace(config or client(), server=client_config("x", port).server)
            async with running(host, mine, records=records):
                yield host, records["a"], hub, log
            nursery.cancel_scope.cancel()
    assert_quiet(log)


GOOD: Final = says(no_conf(ETHERNET), chunk(PARAMS), chunk(frame(ether("hub", "a", b"down"))))


async def good_frame(device: MemoryDevice, after: int = 0) -> None:
    """Frames arrive, of which this many come before the good one of GOOD."""
    for _ in range(after):
        await device.receive()
    assert await device.receive_packet() == ether("hub", "a", b"down")


@table(
    "sent reason words written",
    ("a runt", b"\x0d\0" + bytes(12 + 13), "bad-frame", "13 bytes", 0),
    (
        "one after good ones",
        frame(ether("hub", "a", b"1")) + frame(ether("hub", "a", b"2")) + b"\2\0",
        "bad-frame",
        "2 bytes",
        2,
    ),
)
async def test_malformed_frames_end_the_stream(sent: bytes, reason: str, words: str, written: int) -> None:
    async with facing(says(no_conf(ETHERNET), chunk(PARAMS), chunk(sent)), GOOD) as (host, record, _, log):
        device = await host.device("a")
        await good_frame(device, written)
        tunnel = record.tunnel
        assert isinstance(tunnel, TunnelClient)
        assert tunnel.counters.ends == {reason: 1}
        assert [each for each in log if words in each.getMessage()]


async def test_what_a_virtual_machine_has_made_up_is_dropped_and_the_stream_goes_on() -> None:
    """The kernel passes it on, so it is no fault of the server."""
    absurd = frame(ether("hub", "a", bytes(1000), 0x0800), b"\1\1" + bytes(2) + b"\1\0" + bytes(6))
    good = frame(ether("hub", "a", b"down"))
    async with facing(says(no_conf(ETHERNET), chunk(PARAMS), chunk(good + absurd + good))) as (host, record, hub, _):
        device = await host.device("a")
        await good_frame(device)
        await good_frame(device)
        tunnel = record.tunnel
        assert isinstance(tunnel, TunnelClient)
        assert tunnel.counters.drops == {"device-refused": 1}
        assert tunnel.counters.ends == {}
        assert len([head for head in hub.heads if head.startswith(b"GET")]) == 1


async def test_routes_of_a_server_that_has_no_say_in_them_are_not_applied() -> None:
    pushed = params_frame(device="tap", addresses=["10.10.0.2/24"], routes=["0.0.0.0/0"])
    async with facing(says(no_conf(ETHERNET), chunk(pushed))) as (host, _, _, _):
        await host.device("a")
        await until(lambda: host.standing.get("a"), "the address")
        assert host.standing["a"] == [Address(IPv4Interface("10.10.0.2/24"))]
        assert ip_network("0.0.0.0/0") not in host.standing["a"]


async def test_an_x_tun_conf_next_to_ethernet_is_not_looked_at() -> None:
    async with facing(says(ok(CONF, ETHERNET), chunk(PARAMS), chunk(frame(ether("hub", "a", b"down"))))) as (host, *_):
        await good_frame(await host.device("a"))
        assert host.standing.get("a", []) == []


async def test_ethernet_that_was_not_asked_for_is_none() -> None:
    """A client whose config says "device": "tun" takes the answer for one of IP packets."""
    answer = says(ok(CONF, ETHERNET), chunk(params_frame()), chunk(frame(ipv4("10.10.0.1", "10.10.0.2"))))
    async with facing(answer, config=client(device="tun")) as (host, _, hub, _):
        device = await host.device("a")
        assert device.mac is None
        assert await device.receive_packet() == ipv4("10.10.0.1", "10.10.0.2")
        assert b"x-tun-features: ctl, inet6, ws\r\n" in hub.heads[0]


async def test_a_server_that_changes_its_mind_costs_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the device is made anew, and each time after a longer pause."""
    monkeypatch.setattr(restart, "RESTART_S", (0.01, 0.04))
    tun = says(ok(CONF, "x-tun-features: ctl"), chunk(params_frame()), then="closes")
    ethernet = says(no_conf(ETHERNET), chunk(PARAMS), then="closes")
    async with facing(*[tun, ethernet] * 4, GOOD) as (host, record, _, log):
        await until(lambda: len([it for it in log if "becomes the same" in it.getMessage()]) >= 4, "four times")
        await has_device(host, "tap")
        device = host.devices["a"]
        await good_frame(device)
        assert record.restarts == 0
