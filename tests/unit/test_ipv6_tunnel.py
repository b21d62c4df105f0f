"""IPv6 inside the tunnel: who gets it, who does not, and what never passes, with whole interfaces of ours."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from typing import Any, Final, Literal

import pytest
import trio

from tapotun_trio.client import requests
from tapotun_trio.client.backoff import Backoff
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.client.parameters import _first_controls
from tapotun_trio.client.requests import Answer, Requests
from tapotun_trio.config.model import AllowedClient, ClientConfig, DeviceKind, Mark, ServerConfig
from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.datapath.tx_queue import TxQueue
from tapotun_trio.errors import PeerError
from tapotun_trio.host.items import Address, Route
from tapotun_trio.http.server import Exchange
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.server.session import Session
from tapotun_trio.wire import control, params
from tapotun_trio.wire.body import ChunkedBody
from tapotun_trio.wire.frames import BASE_PING, BUFFER_BYTES, FrameReader, each

from ..fakes import MemoryDevice, MemoryHost
from ..packets import frame, ip, ipv4, ipv6
from ..streams import memory_pair
from ..tables import table
from . import test_hostile_server
from .hostile import CHUNKED, Raw, assert_quiet, chunk, extended, logged, request, until
from .support import allowed, client_config, free_port, running, server_config
from .test_hostile_server import CONF, facing, ok, says
from .test_hostile_server import params as params_frame

HUB4, A4, B4 = "10.10.0.1", "10.10.0.2", "10.10.0.3"
HUB, A, B = "2001:db8::1", "2001:db8::2", "2001:db8::3"
NET4, NET = IPv4Interface(f"{HUB4}/24"), IPv6Interface(f"{HUB}/64")
OFFERS: Final = "x-tun-features: ctl, inet6"


def dual(name: str, ip4: str | None, ip6: str | None, routes: tuple[str, ...] = ()) -> AllowedClient:
    """A client with an address of each family, or of one."""
    client = allowed(name, ip4 or A4)
    addresses = (*(client.addresses if ip4 else ()), *((IPv6Address(ip6),) if ip6 else ()))
    return replace(client, addresses=addresses, routes=tuple(map(ip_network, routes)))


def dual_server(port: int, *clients: AllowedClient, ipv4: bool = True) -> ServerConfig:
    return replace(server_config(port, *clients), nets=(*((NET4,) if ipv4 else ()), NET))


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
    raws: list[Raw] = field(default_factory=list)

    @property
    def server(self) -> TunnelServer:
        tunnel = self.records["hub"].tunnel
        assert isinstance(tunnel, TunnelServer)
        return tunnel

    def session(self, name: str) -> Session:
        return next(it for it in self.server.sessions if it.client.name == name)

    def client(self, name: str) -> TunnelClient:
        tunnel = self.records[name].tunnel
        assert isinstance(tunnel, TunnelClient)
        return tunnel

    async def connected(self, *names: str, ipv6: bool = True) -> None:
        """Both streams of these clients work, and carry IPv6 or not."""
        for name in names:
            await until(lambda name=name: self.session(name).state == "connected", f"{name} at the server")  # type: ignore[misc]
            await until(lambda name=name: self.client(name).sender.streaming, f"{name}'s upload")  # type: ignore[misc]
            await until(lambda name=name: self.client(name).sender.ipv6 == ipv6, f"IPv6 {ipv6} to the server")  # type: ignore[misc]
            await until(lambda name=name: self.session(name).sender.ipv6 == ipv6, f"IPv6 {ipv6} from the server")  # type: ignore[misc]
            self.devices[name] = await self.host.device(name)

    async def carries(self, source: str, destination: str, of: str, to: str) -> None:
        packet = ip(source, destination, b"from " + of.encode())
        self.devices[of].send(packet)
        assert await self.devices[to].receive_packet() == packet

    def items(self, name: str, kind: type) -> list[str]:
        return [str(it) for it in self.host.standing.get(name, []) if isinstance(it, kind)]

    async def has_addresses(self, name: str, *addresses: str) -> None:
        wanted = sorted(addresses)
        await until(
            lambda: (
                sorted(str(it.interface) for it in self.host.standing.get(name, []) if isinstance(it, Address))
                == wanted
            ),
            f"{addresses} on {name}",
        )

    async def raw(self, *parts: bytes) -> Raw:
        raw = Raw(await trio.open_tcp_stream("127.0.0.1", self.port))
        self.raws.append(raw)
        await raw.send(*parts)
        return raw

    async def reload(self, config: ServerConfig) -> None:
        reconfigure = self.records["hub"].reconfigure
        assert reconfigure is not None
        await reconfigure(config)

    def lines(self, words: str) -> list[str]:
        return [it.getMessage() for it in self.log if words in it.getMessage()]


@asynccontextmanager
async def world(
    *clients: str,
    config: Callable[[int], ServerConfig] = lambda port: dual_server(port, dual("a", A4, A), dual("b", B4, B)),
    change: Callable[[ClientConfig], ClientConfig] = lambda it: it,
    has_ipv6: bool = True,
) -> AsyncIterator[World]:
    """A server, and clients of these names."""
    port, host, records = free_port(), MemoryHost(), dict[str, Record]()
    host.ipv6 = has_ipv6
    configs = [change(client_config(name, port)) for name in clients]
    with logged() as log:
        async with running(host, config(port), *configs, records=records):
            made = World(port, host, records, log, {"hub": await host.device("hub")})
            try:
                yield made
            finally:
                for raw in made.raws:
                    raw.close()
    assert_quiet(log)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda *args, **kwargs: 0.0)


# ------------------------------------------------------------------ both families


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_both_families_pass_both_ways(transport: Literal["http", "websocket"]) -> None:
    async with world("a", "b", change=lambda it: replace(it, transport=transport)) as it:
        await it.connected("a", "b")
        await it.has_addresses("a", f"{A4}/24", f"{A}/64")
        for hub, a, b in ((HUB4, A4, B4), (HUB, A, B)):
            await it.carries(a, hub, "a", "hub")
            await it.carries(hub, a, "hub", "a")
            await it.carries(a, b, "a", "b")
            await it.carries(b, a, "b", "a")
        await it.carries("2001:db8:7::9", HUB, "a", "hub")  # nobody's address: source_check is loose
        assert it.session("a").counters.drops == it.client("a").counters.drops == it.server.device_drops == Counter()


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_ipv6_only(transport: Literal["http", "websocket"]) -> None:
    """The answer has no x-tun-conf, so the device is made of what PARAMS say."""

    def config(port: int) -> ServerConfig:
        pushed = (IPv6Network("2001:db8:1::/48"),)
        return replace(dual_server(port, dual("a", None, A), ipv4=False), push_routes=pushed, mtu=1280)

    async with world("a", config=config, change=lambda it: replace(it, transport=transport)) as it:
        await it.connected("a")
        await it.has_addresses("a", f"{A}/64")
        assert it.items("a", Route) == [str(Route(IPv6Network("2001:db8:1::/48")))]
        assert it.host.mtus["a"] == 1280
        await it.carries(A, HUB, "a", "hub")
        await it.carries(HUB, A, "hub", "a")
        it.client("a").path_changed("the test")  # later answers have none either
        before = it.client("a").download
        await until(lambda: it.client("a").download is not before, "the next stream")
        await it.connected("a")
        await it.carries(A, HUB, "a", "hub")
        assert it.session("a").counters.ends == it.client("a").counters.ends == Counter()


@pytest.mark.parametrize("size", [40, 41, 1280, 65_000, 65_535])
async def test_every_size(size: int) -> None:
    async with world("a", "b") as it:
        await it.connected("a", "b")
        for source, destination, of, to in ((A, HUB, "a", "hub"), (HUB, A, "hub", "a"), (A, B, "a", "b")):
            packet = ipv6(source, destination, bytes(size - 40), 59)
            it.devices[of].send(packet)
            assert await it.devices[to].receive_packet() == packet


@table(
    "next_header payload",
    ("a fragment", 44, bytes([17, 0, 0, 1]) + bytes(28)),
    ("a later fragment", 44, bytes([17, 0, 5, 0xA8]) + bytes(28)),
    ("hop-by-hop options", 0, bytes([58, 0, 5, 2, 0, 0, 1, 0]) + bytes(8)),
    ("a routing header", 43, bytes([59, 2, 4, 0]) + bytes(20)),
    ("no next header", 59, b""),
    ("ICMPv6, packet too big", 58, bytes([2, 0]) + bytes(50)),
    ("ICMPv6, time exceeded", 58, bytes([3, 0]) + bytes(50)),
    ("ICMPv6, unreachable", 58, bytes([1, 4]) + bytes(50)),
    ("ESP", 50, bytes(20)),
)
async def test_what_passes(next_header: int, payload: bytes) -> None:
    async with world("a", "b") as it:
        await it.connected("a", "b")
        for source, destination, of, to in ((A, HUB, "a", "hub"), (HUB, A, "hub", "a"), (A, B, "a", "b")):
            packet = ipv6(source, destination, payload, next_header)
            it.devices[of].send(packet)
            assert await it.devices[to].receive_packet() == packet


# ------------------------------------------------------------------ what never passes

ON_LINK: Final = [
    ipv6("fe80::1", "ff02::1", bytes([134]) + bytes(15), 58),  # router advertisement
    ipv6("fe80::1", "ff02::16", bytes([0] * 8), 0),  # MLD
    ipv6("::", "ff02::1:ff00:1", bytes([135]) + bytes(23), 58),  # duplicate address detection
    ipv6(A, "ff0e::101"),
    ipv6(A, "fe80::1"),
    ipv6(A, "febf:ffff::1"),
]


async def test_link_local_and_multicast_do_not_leave_a_client() -> None:
    async with world("a") as it:
        await it.connected("a")
        for packet in ON_LINK:
            it.devices["a"].send(packet)
        await it.carries(A, HUB, "a", "hub")
        await it.carries(A, "fec0::1", "a", "hub")  # beside it
        assert it.client("a").counters.drops == {"link-local": len(ON_LINK)}
        assert it.session("a").counters.rx_packets == 2
        assert not it.lines("link-local")


@pytest.mark.parametrize("check", ["loose", "off"])
async def test_link_local_and_multicast_pass_no_server(check: Literal["loose", "off"]) -> None:
    """From a client that is none of ours, and from the server's own kernel to a client with a default route."""

    def config(port: int) -> ServerConfig:
        return replace(dual_server(port, dual("a", A4, A), dual("b", B4, B, ("::/0",))), source_check=check)

    async with world("b", config=config) as it:
        await it.connected("b")
        raw = await it.raw(request("GET", "a", OFFERS, extended("a")[1]))
        assert await raw.status() == 200
        await until(lambda: it.session("a").sender.ipv6, "the download")
        put = await it.raw(request("PUT", "a", CHUNKED, extended("a")[1]))
        sent = [*ON_LINK, ipv6("fe80::2", HUB), ipv6("fe80::2", B)]
        await put.send(*(chunk(frame(packet)) for packet in sent), chunk(frame(ipv6(A, HUB, b"at last"))))
        assert await it.devices["b"].receive_packet() == ipv6(A, HUB, b"at last")  # by the default route
        assert it.session("a").counters.drops == {"link-local": len(sent)}
        for packet in ON_LINK:
            it.devices["hub"].send(packet)
        await it.carries(HUB, "2001:db8:9::1", "hub", "b")
        assert it.server.device_drops == {"link-local": len(ON_LINK)}


def jumbogram(source: str, destination: str) -> bytes:
    """As RFC 2675 has it: payload length 0, and a hop-by-hop option with the length."""
    whole = ipv6(source, destination, bytes([59, 0, 0xC2, 4, 0, 1, 0, 0]) + bytes(100), 0)
    return whole[:4] + bytes(2) + whole[6:]


async def test_jumbograms_and_short_packets_are_not_sent() -> None:
    async with world("a") as it:
        await it.connected("a")
        for source, destination, of, to in ((A, HUB, "a", "hub"), (HUB, A, "hub", "a")):
            it.devices[of].send(jumbogram(source, destination))
            it.devices[of].send(ipv6(source, destination)[:39])
            await it.carries(source, destination, of, to)
        # Short ones are not counted, as those of IPv4 are not.
        assert it.client("a").counters.drops == it.server.device_drops == {"jumbogram": 1}
        assert it.session("a").counters.rx_packets == it.client("a").counters.rx_packets == 1


async def test_what_a_hostile_client_sends() -> None:
    async with world("b") as it:
        await it.connected("b")
        raw = await it.raw(request("GET", "a", OFFERS, extended("a")[1]))
        assert await raw.status() == 200
        await until(lambda: it.session("a").sender.ipv6, "the download")
        put = await it.raw(request("PUT", "a", CHUNKED, extended("a")[1]))
        for source in (B, HUB, "::", "::1", "::ffff:10.10.0.2", "ff02::1"):
            await put.send(chunk(frame(ipv6(source, HUB))))
        await put.send(chunk(frame(jumbogram(A, B))), chunk(frame(ipv6(A, B, b"to b"))))
        assert await it.devices["b"].receive_packet() == ipv6(A, B, b"to b")
        assert it.session("a").counters.drops == {"bad-source": 6, "jumbogram": 1}
        await put.send(chunk(frame(ipv6(A, HUB)[:39])))
        await put.rest()
        assert it.session("a").counters.ends == {"bad-frame": 1}
        assert it.lines("frame with an IPv6 packet of 39 bytes")
        bad = ipv6(A, B, bytes(20), 6)
        put = await it.raw(request("PUT", "a", CHUNKED, extended("a")[1]))
        await put.send(chunk(frame(bad, bytes([1, 4]) + bytes(10))))  # a super-packet without a size
        await put.rest()
        assert it.session("a").counters.ends == {"bad-frame": 1, "bad-vnet": 1}
        # Of a source that nobody owns, the length shows that a client has resumed in the middle of a frame.
        put = await it.raw(request("PUT", "a", CHUNKED, extended("a")[1]))
        await put.send(chunk(frame(ipv6("2001:db8:5::5", B) + bytes(1))))
        await put.rest()
        assert it.session("a").counters.ends == {"bad-frame": 2, "bad-vnet": 1}
        raw.close()


# ------------------------------------------------------------------ without the feature


async def frames_of(raw: Raw, body: bytearray, until_bytes: bytes) -> list[bytes]:
    """The packets of a download, up to one that ends with these bytes."""
    reader = FrameReader(ChunkedBody(), control=True)
    found: list[bytes] = []
    with trio.fail_after(10):
        while not any(it.endswith(until_bytes) for it in found):
            body += await raw.receive()
            reader = FrameReader(ChunkedBody(), control=True)
            spans = reader.prime(bytes(body))
            found = [bytes(reader.view[start + 14 : stop]) for start, stop in each(spans)]
    return found


async def test_a_client_that_takes_over_without_ipv6_gets_none() -> None:
    """What waited for the machine before it is dropped, too. Whatever the two are."""
    async with world() as it:
        session, hub = it.session("a"), it.devices["hub"]
        for fields, sees_ipv6 in (
            ((OFFERS, extended("one")[1]), True),
            ((), False),
            ((OFFERS, extended("two")[1]), True),
            (("x-tun-features: ctl", extended("three")[1]), False),
            ((OFFERS, extended("two")[1]), True),
        ):
            raw = await it.raw(request("GET", "a", *fields))
            head = await raw.head()
            assert (b"inet6" in head) == sees_ipv6
            assert b"x-tun-conf: " in head
            await until(lambda sees=sees_ipv6: session.sender.ipv6 == sees and session.sender.streaming, "it")  # type: ignore[misc]
            hub.send(ipv6(HUB, A, b"six"))
            hub.send(ipv4(HUB4, A4, b"four"))
            got = await frames_of(raw, bytearray(), b"four")
            assert (ipv6(HUB, A, b"six") in got) == sees_ipv6
            raw.close()
            await until(lambda: not session.sender.streaming, "the end of the stream")
            # Nobody is there: both wait for the next stream.
            hub.send(ipv6(HUB, A, b"waits"))
            hub.send(ipv4(HUB4, A4, b"waits"))
            await until(lambda: len(hub.inbound) == 0, "the device to be read")
        assert session.counters.drops["not-ipv4"] + it.server.device_drops["not-ipv4"] >= 4


async def test_another_client_sends_none_to_a_client_without_ipv6() -> None:
    async with world("b") as it:
        await it.connected("b")
        raw = await it.raw(request("GET", "a"))
        await raw.head()
        await until(lambda: it.session("a").sender.streaming, "the base client")
        for packet in (ipv6(B, A, b"six"), ipv4(B4, A4, b"four"), ipv6(B, A, b"six"), ipv4(B4, A4, b"last")):
            it.devices["b"].send(packet)
        assert await frames_of(raw, bytearray(), b"last") == [ipv4(B4, A4, b"four"), ipv4(B4, A4, b"last")]
        assert it.session("b").counters.drops == {"not-ipv4": 2}
        assert it.session("b").counters.rx_packets == 4


async def test_what_arrives_of_ipv6_is_dropped_and_counted() -> None:
    async with world() as it:
        session = it.session("a")
        raw = await it.raw(request("GET", "a", *extended("a")))
        assert await raw.status() == 200
        await until(lambda: session.sender.streaming, "the download")
        put = await it.raw(request("PUT", "a", CHUNKED, extended("a")[1]))
        six = frame(ipv6(A, HUB, bytes(20)))
        await put.send(chunk(six), chunk(six * 50), chunk(frame(b"\x60" + bytes(30))), chunk(frame(ipv4(A4, HUB4))))
        assert await it.devices["hub"].receive_packet() == ipv4(A4, HUB4)
        assert session.counters.drops == {"not-ipv4": 52}
        assert session.counters.rx_packets == 1


@table(
    "fields status",
    ("a base client", (), 406),
    ("an extended client that does not offer IPv6", ("x-tun-features: ctl, ws",), 406),
    ("one that offers it without control frames, in which the addresses come", ("x-tun-features: inet6, ws",), 406),
    ("one that offers it", (OFFERS,), 200),
)
async def test_406(fields: tuple[str, ...], status: int) -> None:
    async with world(config=lambda port: dual_server(port, dual("a", A4, A), dual("b", None, B))) as it:
        for method, more in (("GET", ()), ("PUT", (CHUNKED,))):
            raw = await it.raw(request(method, "b", *fields, *more))
            if method == "PUT" and status == 200:
                break
            assert await raw.status() == status
            if status == 406:
                assert await raw.exactly(4) == b"406\n"
            raw.close()
        if status == 406:
            assert it.server.refusals == {"no-address": 2}
            assert len(it.lines("refused: this client has addresses of IPv6 only")) == 1
        else:
            raw.close()
        base = await it.raw(request("GET", "a"))  # beside it, a client with both
        assert await base.status() == 200
        base.close()


async def test_an_answer_without_ipv4_has_parameters_first() -> None:
    async with world(config=lambda port: dual_server(port, dual("a", None, A))) as it:
        raw = await it.raw(request("GET", "a", OFFERS, extended("a")[1]))
        head = (await raw.head()).lower()
        assert b"x-tun-conf" not in head
        assert b"x-tun-features: ctl, inet6\r\n" in head
        line = b""
        while not line.endswith(b"\r\n"):
            line += await raw.exactly(1)
        _, kind, size = control.CONTROL.unpack(await raw.exactly(7))
        assert kind == control.PARAMS
        assert params.decode(await raw.exactly(size)).addresses == (IPv6Interface(f"{A}/64"),)
        raw.close()


async def test_a_base_client_sees_nothing_of_ipv6() -> None:
    """Byte for byte: the head of a server with IPv6 is that of one without."""
    heads = []
    pushed = (IPv4Network("10.60.0.0/24"), IPv6Network("2001:db8:1::/48"))
    for config in (
        lambda port: replace(server_config(port, allowed("a", A4)), push_routes=pushed[:1], peers=2),
        lambda port: replace(dual_server(port, dual("a", A4, A)), push_routes=pushed, peers=2),
    ):
        async with world(config=config) as it:
            raw = await it.raw(request("GET", "a"))
            heads.append(await raw.head())
            raw.close()
    assert heads[0] == heads[1]


async def test_a_machine_without_ipv6_does_not_ask_and_says_so_once() -> None:
    async with world("a", has_ipv6=False) as it:
        await it.connected("a", ipv6=False)
        await it.has_addresses("a", f"{A4}/24")
        it.devices["a"].send(ipv6(A, HUB))
        it.devices["hub"].send(ipv6(HUB, A))
        await it.carries(A4, HUB4, "a", "hub")
        await it.carries(HUB4, A4, "hub", "a")
        assert it.client("a").counters.drops == it.server.device_drops == {"not-ipv4": 1}
        it.client("a").path_changed("the test")
        before = it.client("a").download
        await until(lambda: it.client("a").download is not before, "the next stream")
        assert len(it.lines("this machine has no IPv6")) == 1
        # Somebody switches it on: the next download asks.
        it.host.ipv6 = True
        it.client("a").path_changed("the test")
        await it.connected("a")
        await it.has_addresses("a", f"{A4}/24", f"{A}/64")


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_ipv6_that_is_switched_off_and_on_while_there_is_a_session(
    monkeypatch: pytest.MonkeyPatch, transport: Literal["http", "websocket"]
) -> None:
    """The client asks again at once, and loses nothing by it: the older stream goes on until the next is there."""
    async with world("a", change=lambda it: replace(it, transport=transport)) as it:
        monkeypatch.setattr(requests, "FOLLOW_S", 0.0)
        for has_ipv6 in (True, False, True, False):
            it.host.ipv6 = has_ipv6
            await it.connected("a", ipv6=has_ipv6)
            await it.has_addresses("a", f"{A4}/24", *([f"{A}/64"] if has_ipv6 else []))
            await it.carries(A4, HUB4, "a", "hub")
            await it.carries(HUB4, A4, "hub", "a")
        assert it.session("a").counters.ends == it.client("a").counters.ends == Counter()
        assert len(it.lines("this machine has no IPv6")) == 1


async def test_a_machine_without_ipv6_learns_why_it_gets_406() -> None:
    async with world("a", has_ipv6=False, config=lambda port: dual_server(port, dual("a", None, A))) as it:
        await until(lambda: it.lines("has only IPv6 addresses for this client"), "the line")
        assert it.client("a").counters.ends["http-406"] >= 1


async def test_an_upload_of_a_base_server_never_gets_ipv6() -> None:
    """The server behind a proxy is replaced: the download comes from the new one, the upload still goes to the old."""
    answers = [
        [ok(CONF)],
        [ok(CONF, OFFERS), chunk(params_frame(addresses=["10.10.0.2/24", f"{A}/64"]))],
    ]
    uploads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            raw = Raw(stream)
            if (await raw.head()).startswith(b"GET"):
                await raw.send(*answers.pop(0))
                await raw.rest()
                return
            number = len(uploads)
            uploads.append(b"")
            while more := await raw.receive():
                uploads[number] += more

    host, records = MemoryHost(), dict[str, Record]()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        config = client_config("a", listeners[0].socket.getsockname()[1])
        async with running(host, config, records=records):
            device, client = await host.device("a"), records["a"].tunnel
            assert isinstance(client, TunnelClient)
            await until(lambda: uploads and client.sender.streaming, "the first upload")
            device.send(ipv6(A, HUB, b"none"))
            client._download_gate.rotate()
            await until(lambda: client.flows.ipv6, "the new server")
            device.send(ipv6(A, HUB, b"maybe"))
            await until(lambda: client.sender.ipv6, "the next upload")
            device.send(ipv6(A, HUB, b"six"))
            await until(lambda: len(uploads) == 2 and b"six" in uploads[1], "the packet")
        nursery.cancel_scope.cancel()
    assert not any(b"none" in body for body in uploads)
    assert ipv6(A, HUB)[8:] not in uploads[0]


async def test_an_upload_that_was_opened_before_the_server_became_an_extended_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may end at the older server. Nothing of IPv6 goes there, and the next upload does not wait for a rotation."""
    downloads = [[ok(CONF)], [ok(CONF, OFFERS), chunk(params_frame(addresses=["10.10.0.2/24", f"{A}/64"]))]]
    numbered, extended_now = list[str | None](), trio.Event()
    put = Requests.put

    async def slowly(self: Requests, number: int | None, remote: str | None, device: DeviceKind) -> Any:
        connection = await put(self, number, remote, device)
        if number is None:
            await extended_now.wait()
        return connection

    monkeypatch.setattr(Requests, "put", slowly)
    bodies: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            raw = Raw(stream)
            head = await raw.head()
            if head.startswith(b"GET"):
                await raw.send(*downloads.pop(0))
                await raw.rest()
                return
            number = len(bodies)
            bodies.append(b"")
            numbered.append("numbered" if b"x-tun-upload" in head.lower() else None)
            while more := await raw.receive():
                bodies[number] += more

    host, records = MemoryHost(), dict[str, Record]()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        config = client_config("a", listeners[0].socket.getsockname()[1])
        async with running(host, config, records=records):
            device, client = await host.device("a"), records["a"].tunnel
            assert isinstance(client, TunnelClient)
            await until(lambda: numbered == [None], "the first upload")
            client._download_gate.rotate()
            await until(lambda: client.flows.ipv6, "the new server")
            device.send(ipv6(A, HUB, b"six"))
            extended_now.set()
            await until(lambda: len(bodies) > 1 and b"six" in bodies[1], "the packet")
        nursery.cancel_scope.cancel()
    assert numbered == [None, "numbered"]
    assert ipv6(A, HUB)[8:] not in bodies[0]


@pytest.mark.parametrize("number", [None, 1])
async def test_an_upload_without_a_number_carries_no_ipv6_whatever_is_agreed_on_later(number: int | None) -> None:
    client = TunnelClient(client_config("a", 1), logging.getLogger("tapotun"))  # type: ignore[arg-type]
    client._agreement = replace(client._agreement, extended=True, features=frozenset({"ctl", "inet6"}))
    near, far = memory_pair()
    upload = client._new_upload(near, number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.run, None)
        await until(lambda: client.sender.streaming, "the upload")
        assert client.sender.ipv6 == (number is not None)
        nursery.cancel_scope.cancel()
    far.close()


# ------------------------------------------------------------------ reloads

RENEWAL: Final = "its versions of IP changed: the client has to reconnect for them"


async def test_a_reload_adds_a_family_and_takes_it_away() -> None:
    def config(port: int, families: str) -> ServerConfig:
        client = dual("a", A4 if "4" in families else None, A if "6" in families else None)
        return replace(dual_server(port, client), push_routes=(IPv6Network("2001:db8:1::/48"),))

    async with world("a", config=lambda port: config(port, "4")) as it:
        await it.connected("a", ipv6=False)
        await it.has_addresses("a", f"{A4}/24")
        assert it.items("a", Route) == []
        for families in ("46", "4", "46", "6", "46", "6", "46"):
            await it.reload(config(it.port, families))
            wanted = [*([f"{A4}/24"] if "4" in families else []), *([f"{A}/64"] if "6" in families else [])]
            await it.has_addresses("a", *wanted)
            await it.connected("a", ipv6="6" in families)
            assert len(it.items("a", Route)) == ("6" in families)
            if "4" in families:
                await it.carries(A4, HUB4, "a", "hub")
                await it.carries(HUB4, A4, "hub", "a")
            if "6" in families:
                await it.carries(A, HUB, "a", "hub")
                await it.carries(HUB, A, "hub", "a")
        # Only a change of what is agreed on takes a new download: IPv6 came or went.
        assert [text for text in it.lines("its versions of IP changed") if text.startswith("its")] == [RENEWAL] * 3


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_a_download_is_not_said_to_give_what_an_older_one_gave(transport: Literal["http", "websocket"]) -> None:
    """The addresses have changed while there was no session. PARAMS say which ones hold now, after the line."""
    change: Callable[[ClientConfig], ClientConfig] = lambda it: replace(it, transport=transport)  # noqa: E731
    async with world("a", config=lambda port: dual_server(port, dual("a", A4, A)), change=change) as it:
        await it.connected("a")
        (first,) = it.lines("from 127.0.0.1:" + str(it.port))
        assert first.endswith(f"(extended): address {A4}/24, {A}/64, MTU 1500")
        for old, new in ((A, B), (B, A)):
            it.session("a").disconnect("the test")
            await it.reload(dual_server(it.port, dual("a", A4, new)))
            await it.has_addresses("a", f"{A4}/24", f"{new}/64")
            await it.connected("a")
            again = [line for line in it.lines("from 127.0.0.1:" + str(it.port)) if line != first]
            assert not any(old in line for line in again)
        assert {line.partition("from")[2] for line in again} == {f" 127.0.0.1:{it.port} (extended)"}
        assert len(it.lines("the server changed this interface: address")) == 2


async def body_of(raw: Raw) -> bytes:
    """Everything up to the end of the body, or of the connection."""
    body = b""
    with trio.fail_after(10):
        while not body.endswith(b"0\r\n\r\n") and (more := await raw.receive()):
            body += more
    return body


async def test_a_reload_that_takes_ipv4_away_ends_who_has_nothing_else() -> None:
    async with world(config=lambda port: dual_server(port, dual("a", A4, A))) as it:
        for fields in ((), extended("a")):
            await it.reload(dual_server(it.port, dual("a", A4, A)))
            raw = await it.raw(request("GET", "a", *fields))
            assert await raw.status() == 200
            await until(lambda: it.session("a").sender.streaming, "the download")
            await it.reload(dual_server(it.port, dual("a", None, A)))
            await body_of(raw)
            raw = await it.raw(request("GET", "a", *fields))
            assert await raw.status() == 406


class Held:
    """Answers to downloads and WebSockets: the task of each waits behind its head until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent, self.go = trio.Event(), trio.Event()
        for name in ("start_download", "accept_websocket"):
            monkeypatch.setattr(Exchange, name, self._holding(getattr(Exchange, name)))

    def _holding(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        async def held(exchange: Exchange, headers: list[tuple[str, str]]) -> Any:
            answered = await answer(exchange, headers)
            self.sent.set()
            await self.go.wait()
            return answered

        return held


async def test_a_reload_while_an_answer_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head says what the config before had. Whoever got it learns of the new one, all the same."""
    async with world(config=lambda port: dual_server(port, dual("a", A4, None))) as it:
        for fields in ((OFFERS, extended("a")[1]), ()):
            with monkeypatch.context() as patch:
                held = Held(patch)
                raw = await it.raw(request("GET", "a", *fields))
                await held.sent.wait()
            await it.reload(dual_server(it.port, dual("a", B4, A)))
            held.go.set()
            body = await body_of(raw)  # it is ended, so that the client asks again
            assert (b"its versions of IP changed" in body) == bool(fields)
            await it.reload(dual_server(it.port, dual("a", A4, None)))


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_a_reload_that_takes_ipv4_away_while_an_answer_is_sent(
    transport: Literal["http", "websocket"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has agreed on IPv4 only. PARAMS without any address would be an error of the server's to it."""
    held = Held(monkeypatch)
    async with world(
        "a",
        config=lambda port: dual_server(port, dual("a", A4, None)),
        change=lambda it: replace(it, transport=transport),
    ) as it:
        await held.sent.wait()
        await it.reload(dual_server(it.port, dual("a", None, A)))
        held.go.set()
        await it.connected("a")
        await it.has_addresses("a", f"{A}/64")
        assert it.client("a").counters.ends["bad-params"] == 0
        assert len(it.lines("its versions of IP changed")) >= 1
        assert not it.lines("the server's parameters")


async def test_a_name_server_that_a_reload_adds_while_an_answer_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """PARAMS is as the head had it. What has changed since comes right after it."""
    held = Held(monkeypatch)
    async with world("a", config=lambda port: dual_server(port, dual("a", A4, A))) as it:
        await held.sent.wait()
        await it.reload(replace(dual_server(it.port, dual("a", A4, A)), push_dns=(IPv6Address("2001:db8::53"),)))
        held.go.set()
        await until(lambda: it.lines("the server offers DNS at 2001:db8::53"), "the name server")
        await it.connected("a")
        assert it.client("a").counters.ends == Counter()


# ------------------------------------------------------------------ hostile servers

INET6: Final = "x-tun-features: ctl, inet6"
NO_CONF: Final = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{INET6}\r\n\r\n".encode()
PARAMS6: Final = params_frame(addresses=[f"{A}/64"])


def without_conf(*features: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *features, "", ""]).encode()


@table(
    "answer words",
    ("no feature", says(without_conf("x-tun-features: ctl"), chunk(PARAMS6)), "without x-tun-conf"),
    (
        "the feature without control frames",
        says(without_conf("x-tun-features: inet6"), chunk(PARAMS6)),
        "without x-tun-conf",
    ),
    ("no feature at all", says(without_conf(), chunk(PARAMS6)), "without x-tun-conf"),
    ("another control frame first", says(NO_CONF, chunk(control.ping(1) + PARAMS6)), "without x-tun-conf"),
    ("a packet first", says(NO_CONF, chunk(frame(ipv6(HUB, A)))), "without x-tun-conf"),
    ("the end first", says(NO_CONF, b"0\r\n\r\n"), "without x-tun-conf"),
    ("half a frame", says(NO_CONF, chunk(PARAMS6[:20]), then="closes"), "closed"),
    ("a bad frame", says(NO_CONF, chunk(b"\5\0" + bytes(40))), "5 bytes"),
    ("a bad chunk", says(NO_CONF, b"x\r\n"), "hexadecimal"),
    ("PARAMS that are none", says(NO_CONF, chunk(control.encode(control.PARAMS, b"{"))), "parameters"),
    ("PARAMS with a link-local address", says(NO_CONF, chunk(params_frame(addresses=["fe80::1/64"]))), "parameters"),
    ("PARAMS for Ethernet frames", says(NO_CONF, chunk(params_frame(addresses=[f"{A}/64"], device="tap"))), "tun only"),
    ("pings without end", says(NO_CONF, *[chunk(BASE_PING * 30_000)] * 4), "without x-tun-conf"),
    ("padding without end", says(NO_CONF, *[chunk(b"\0\0")] * 20_000), "without x-tun-conf"),
)
async def test_an_answer_without_x_tun_conf(answer: Any, words: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with facing(answer):
        assert any(words in it.getMessage() for it in caplog.records), caplog.text


async def test_a_server_that_says_nothing_after_the_head(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapotun_trio.client.parameters.FIRST_PARAMS_S", 0.05)
    async with facing(says(NO_CONF)):
        assert "without x-tun-conf" in caplog.text


async def test_params_that_come_late_complete_what_x_tun_conf_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy may hold back what follows the head. The client begins with IPv4, on the same stream."""
    monkeypatch.setattr("tapotun_trio.client.parameters.FIRST_PARAMS_S", 0.05)
    host, seen = MemoryHost(), list[bytes]()
    monkeypatch.setattr(test_hostile_server, "hostile_host", lambda: host)
    four, six = Address(IPv4Interface("10.10.0.2/24")), Address(IPv6Interface(f"{A}/64"))

    async def late(raw: Raw) -> None:
        await raw.send(ok(CONF, INET6))
        await until(lambda: host.standing.get("a") == [four], "the address of x-tun-conf")
        await raw.send(chunk(params_frame(addresses=["10.10.0.2/24", f"{A}/64"])))
        await raw.send(chunk(frame(ipv6(HUB, A, b"six")) + frame(test_hostile_server.DOWN)))
        await raw.rest()

    async with facing(late, seen=seen) as (server, _):
        assert server.gets == 1
        assert seen == [ipv6(HUB, A, b"six")]
        await until(lambda: host.standing["a"] == [four, six], "the address of PARAMS")


@pytest.mark.parametrize("framing_bytes", [1, 2, 64])
async def test_much_that_comes_before_the_first_frame_is_whole_fits_into_a_buffer(framing_bytes: int) -> None:
    """Of a body in tiny chunks little is left after decoding, so much more than a buffer would be received."""

    class Everything:
        """A connection on which as much is there as is asked for, after a little."""

        def __init__(self) -> None:
            body = control.encode(control.PARAMS, bytes(control.MAX_PAYLOAD_BYTES))
            pieces = [body[at : at + framing_bytes] for at in range(0, len(body), framing_bytes)]
            self.left = b"".join(map(chunk, pieces)) + bytes(BUFFER_BYTES)
            self.most = 90_000

        async def receive(self, into: memoryview) -> int:
            await trio.lowlevel.checkpoint()
            count = min(len(into), self.most, len(self.left))
            into[:count], self.left, self.most = self.left[:count], self.left[count:], BUFFER_BYTES
            return count

    answer = Answer(Everything(), None, b"", None, frozenset({"ctl", "inet6"}))  # type: ignore[arg-type]
    received, _ = await _first_controls(answer, ChunkedBody())
    assert len(received) <= BUFFER_BYTES
    with suppress(PeerError):
        FrameReader(ChunkedBody(), control=True).prime(received)


async def test_what_a_hostile_server_sends() -> None:
    """The kernel would believe a router advertisement, and change this machine's routes."""
    seen: list[bytes] = []
    rest = [*ON_LINK, ipv6("fe80::9", A), jumbogram(HUB, A)]
    answer = says(
        ok(CONF, INET6),
        chunk(params_frame(addresses=["10.10.0.2/24", f"{A}/64"])),
        *(chunk(frame(packet)) for packet in rest),
        chunk(frame(ipv6(HUB, A, b"good"))),
        chunk(frame(ipv6(HUB, A)[:39])),
    )
    ends: dict[str, int] = {}
    async with facing(answer, seen=seen, ends=ends):
        assert seen == [ipv6(HUB, A, b"good")]
        assert ends == {"bad-frame": 1}


async def test_ipv6_without_the_feature_is_ignored(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses, routes, name servers and packets, of a server that has not agreed to any, or agrees without being
    asked."""
    pushed = params_frame(
        addresses=["10.10.0.2/24", f"{A}/64"], routes=["10.60.0.0/24", "::/0"], dns=["2001:db8::53", "10.10.0.53"]
    )
    for features, has_ipv6 in (("x-tun-features: ctl", True), (INET6, False)):
        host, seen = MemoryHost(), list[bytes]()
        host.ipv6 = has_ipv6
        monkeypatch.setattr(test_hostile_server, "hostile_host", lambda host=host: host)
        packets = frame(ipv6(HUB, A, bytes(9))) + frame(test_hostile_server.DOWN)
        async with facing(says(ok(CONF, features), chunk(pushed), chunk(packets)), seen=seen):
            wanted = [Address(IPv4Interface("10.10.0.2/24")), Route(IPv4Network("10.60.0.0/24"))]
            await until(lambda host=host, wanted=wanted: host.standing["a"] == wanted, "what is of IPv4")  # type: ignore[misc]
        assert seen == []
        said = [record.getMessage() for record in caplog.records if "offers DNS" in record.getMessage()]
        assert said == ["the server offers DNS at 10.10.0.53; not set here"]
        caplog.clear()


# ------------------------------------------------------------------ the default route


@table(
    "routes ip6 has_ipv6 warns",
    ("a default route", ("0.0.0.0/0",), None, True, True),
    ("both halves", ("0.0.0.0/1", "128.0.0.0/1"), None, True, True),
    ("a half", ("0.0.0.0/1",), None, True, False),
    ("no route", (), None, True, False),
    ("with IPv6 inside, too", ("0.0.0.0/0", "::/0"), A, True, False),
    ("with both halves of IPv6", ("0.0.0.0/0", "::/1", "8000::/1"), A, True, False),
    ("with all global addresses", ("0.0.0.0/0", "2000::/3"), A, True, False),
    ("with an address of IPv6 inside", ("0.0.0.0/0",), A, True, True),
    ("with a network of IPv6", ("0.0.0.0/0", "fd60::/64"), A, True, True),
    ("with half of the global addresses", ("0.0.0.0/0", "2000::/4"), A, True, True),
    ("IPv6 alone", ("::/0",), A, True, False),
    ("a machine without IPv6", ("0.0.0.0/0",), None, False, False),
)
async def test_ipv6_that_goes_outside(routes: tuple[str, ...], ip6: str | None, has_ipv6: bool, warns: bool) -> None:
    def config(port: int) -> ServerConfig:
        pushed = tuple(map(ip_network, routes))
        return replace(dual_server(port, dual("a", A4, ip6)), push_routes=pushed)

    async with world("a", config=config, has_ipv6=has_ipv6) as it:
        await it.connected("a", ipv6=ip6 is not None)
        await until(lambda: len(it.items("a", Route)) == len(routes), "the routes")
        if ip6 is None:
            it.client("a").path_changed("the test")
        assert len(it.lines("other IPv6 traffic of this machine goes outside")) == warns


@pytest.mark.parametrize("transport", ["http", "websocket"])
@pytest.mark.parametrize(("ip6", "lines"), [(A, 0), (None, 1)])
async def test_a_mark_is_complete_only_with_params(
    ip6: str | None, lines: int, transport: Literal["http", "websocket"]
) -> None:
    """x-tun-conf has IPv4 only, and PARAMS the rest."""

    def marked(config: ClientConfig) -> ClientConfig:
        return replace(config, mark=Mark(100, 100), transport=transport)

    async with world("a", config=lambda port: dual_server(port, dual("a", A4, ip6)), change=marked) as it:
        await it.connected("a", ipv6=ip6 is not None)
        await it.has_addresses("a", f"{A4}/24", *((f"{A}/64",) if ip6 else ()))
        await until(lambda: len(it.lines("other IPv6 packets with that mark go outside")) >= lines, "the line")
        assert len(it.lines("other IPv6 packets with that mark go outside")) == lines


# ------------------------------------------------------------------ the queue


def test_a_queue_without_ipv6() -> None:
    drops: Counter[str] = Counter()
    queue = TxQueue(drops)
    four, six = frame(ipv4(HUB4, A4, b"four")), frame(ipv6(HUB, A, b"six"))
    for number, batch in enumerate(([four, six, four], [six, six], [six], [four], [six, four, four])):
        queue.put(b"".join(batch), len(batch), number / 1000)
    assert queue.take(0.0, len(four)) == (1, four)
    queue.drop_ipv6("not-ipv4")
    assert drops == {"not-ipv4": 5}
    assert queue.depth_packets == 4
    assert queue.depth_bytes == 4 * len(four)
    assert queue.take(0.0, 1 << 20) == (4, four * 4)
    queue.drop_ipv6("not-ipv4")
    assert not queue


def test_a_sender_drops_what_it_may_not_send_any_more() -> None:
    counters = Counters()
    sender = Sender(counters)
    sender.set_ipv6(True)
    sender.tx_queue.put(frame(ipv6(HUB, A)), 1, 0.0)
    sender.set_ipv6(True)
    assert sender.tx_queue
    sender.set_ipv6(False)
    assert not sender.tx_queue
    assert counters.drops == {"not-ipv4": 1}


def test_params_of_both_families_are_one_list() -> None:
    config = replace(
        dual_server(1, dual("a", A4, A)),
        push_routes=(IPv6Network("2001:db8:1::/48"), IPv4Network("10.60.0.0/24")),
        push_dns=(IPv6Address("2001:db8::53"), IPv4Address("10.10.0.53")),
    )
    [session] = TunnelServer(config, logging.getLogger("tapotun")).sessions  # type: ignore[arg-type]
    both, four = (json.loads(session.parameters.params(frozenset(it))) for it in ({"ctl", "inet6"}, {"ctl"}))
    assert both["addresses"] == [f"{A4}/24", f"{A}/64"]
    assert sorted(both["routes"]) == ["10.60.0.0/24", "2001:db8:1::/48"]
    assert both["dns"] == ["2001:db8::53", "10.10.0.53"]
    assert (four["addresses"], four["routes"], four["dns"]) == ([f"{A4}/24"], ["10.60.0.0/24"], ["10.10.0.53"])


def test_a_client_gets_no_route_and_no_name_server_of_a_family_of_which_it_has_no_address() -> None:
    pushed = IPv4Network("10.60.0.0/24"), IPv6Network("2001:db8:1::/48")
    servers = IPv4Address("10.10.0.53"), IPv6Address("2001:db8::53")
    config = replace(dual_server(1, dual("a", None, A), dual("b", B4, None)), push_routes=pushed, push_dns=servers)
    sessions = TunnelServer(config, logging.getLogger("tapotun")).sessions  # type: ignore[arg-type]
    told = [params.decode(it.parameters.params(frozenset({"ctl", "inet6"}))) for it in sessions]
    assert [it.routes for it in told] == [pushed[1:], pushed[:1]]
    assert [it.dns for it in told] == [servers[1:], servers[:1]]


@pytest.mark.parametrize("other", [f"{A}/128", f"{A4}/32"])
def test_an_address_with_two_prefix_lengths_is_refused(other: str) -> None:
    payload = {"mtu": 1400, "addresses": [f"{A4}/24", f"{A}/64", other]}
    with pytest.raises(PeerError, match="a repeated one"):
        params.decode(json.dumps(payload).encode())
