"""A server's TAP interface: who is let in, where frames go, and what hostile clients cannot do. The clients are raw
connections; the host is in memory."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
import trio

from tapotun_trio.config.model import AllowedClient, ServerConfig
from tapotun_trio.cooperative import run_now
from tapotun_trio.datapath.plane import current_plane
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.macs import BROADCAST, mac_text, parse_mac
from tapotun_trio.routing.switch import AGE_S, MAX_CLIENT_MACS
from tapotun_trio.server import segment as module
from tapotun_trio.server.segment import Segment
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.server.session import Session
from tapotun_trio.wire import control
from tapotun_trio.wire.body import ChunkedBody
from tapotun_trio.wire.frames import FrameReader, each

from ..fakes import MemoryDevice, MemoryHost
from ..packets import frame, ipv4
from .hostile import CHUNKED, Raw, assert_quiet, chunk, hostile_host, logged, request, session_id, until
from .support import allowed, free_port, running, server_config

pytestmark = pytest.mark.usefixtures("each_plane")

OWN: Final = parse_mac("02:00:00:00:00:01")
STP: Final = parse_mac("01:80:c2:00:00:00")
SOMEBODY: Final = parse_mac("02:ff:00:00:00:01")
OFFER: Final = "x-tun-features: ctl, tap"


def mac(number: int) -> bytes:
    return b"\x02\xaa" + number.to_bytes(4, "big")


A, B, C, LAN = map(mac, (10, 11, 12, 99))


def ether(destination: bytes, source: bytes, text: bytes = b"", kind: int = 0x88B5) -> bytes:
    """An Ethernet frame; type 0x88B5 is for experiments (IEEE 802)."""
    return destination + source + kind.to_bytes(2, "big") + text


def arp(source: bytes, sender: str, destination: bytes = BROADCAST) -> bytes:
    from ipaddress import IPv4Address

    packet = b"\0\1\x08\0\6\4\0\1" + source + IPv4Address(sender).packed + bytes(6) + bytes(4)
    return ether(destination, source, packet, 0x0806)


def tap(port: int, *clients: AllowedClient, **options: Any) -> ServerConfig:
    return replace(server_config(port, *clients), device="tap", mac=OWN, **options)


@dataclass
class Peer:
    """A client on raw connections. ``frames``: what came, without headers."""

    name: str
    get: Raw
    put: Raw | None = None
    head: bytes = b""
    frames: list[bytes] = field(default_factory=list)
    controls: list[tuple[int, bytes]] = field(default_factory=list)
    ended: bool = False

    async def receive(self) -> None:
        reader, rest = FrameReader(ChunkedBody(), control=True, ethernet=True), self.get._read
        found = reader.prime(rest)
        while True:
            self.frames += [bytes(reader.view[start + 14 : stop]) for start, stop in each(found)]
            self.controls += reader.controls
            reader.controls = []
            if reader.pending:
                found = reader.feed(0)
                continue
            if reader.ended:
                self.ended = True
                return
            try:
                data = await self.get.receive()
            except trio.ClosedResourceError:  # by the test
                data = b""
            if not data:
                self.ended = True
                return
            reader.space()[: len(data)] = data
            found = reader.feed(len(data))

    async def send(self, *frames: bytes, vnet: bytes = bytes(12)) -> None:
        assert self.put is not None
        await self.put.send(chunk(b"".join(frame(each, vnet) for each in frames)))

    async def has(self, *frames: bytes) -> None:
        """Exactly these frames came since the last call."""
        await until(lambda: len(self.frames) >= len(frames), f"{len(frames)} frames at {self.name}: {self.frames}")
        got, self.frames = self.frames, []
        assert got == list(frames)


@dataclass
class World:
    port: int
    host: MemoryHost
    hub: MemoryDevice
    record: Record
    log: list[logging.LogRecord]
    nursery: trio.Nursery
    raws: list[Raw] = field(default_factory=list)

    @property
    def server(self) -> TunnelServer:
        tunnel = self.record.tunnel
        assert isinstance(tunnel, TunnelServer)
        return tunnel

    @property
    def segment(self) -> Segment:
        assert self.server.segment is not None
        return self.server.segment

    def session(self, name: str) -> Session:
        return next(it for it in self.server.sessions if it.client.name == name)

    async def raw(self, *parts: bytes) -> Raw:
        raw = Raw(await trio.open_tcp_stream("127.0.0.1", self.port))
        self.raws.append(raw)
        await raw.send(*parts)
        return raw

    async def join(self, name: str) -> Peer:
        """An extended client, with both streams."""
        peer = Peer(name, await self.raw(request("GET", name, OFFER, f"x-tun-session: {session_id(name)}")))
        peer.head = await peer.get.head()
        assert b" 200 " in peer.head
        self.nursery.start_soon(peer.receive)
        await until(lambda: self.session(name).sender.streaming, f"{name}'s download")
        await self.upload(peer)
        return peer

    async def upload(self, peer: Peer) -> None:
        peer.put = await self.raw(request("PUT", peer.name, CHUNKED, OFFER, f"x-tun-session: {session_id(peer.name)}"))
        await until(lambda: self.session(peer.name).state == "connected", f"{peer.name}'s upload")

    async def has(self, *frames: bytes) -> None:
        """Exactly these frames were written into the device since the last call."""
        got = [await self.hub.receive_packet() for _ in frames]
        assert got == list(frames)
        assert self.hub.take() == []

    async def reload(self, change: Callable[[ServerConfig], ServerConfig]) -> None:
        config, reconfigure = self.record.config, self.record.reconfigure
        assert isinstance(config, ServerConfig)
        assert reconfigure is not None
        self.record.config = change(config)
        await reconfigure(self.record.config)

    def lines(self, words: str) -> list[str]:
        return [it.getMessage() for it in self.log if words in it.getMessage()]

    def table(self) -> dict[str, str | None]:
        return {row.mac: row.client for row in run_now(self.segment.table_in_steps(1000)).rows}


CLIENTS: Final = (allowed("a", "10.10.0.2"), allowed("b", "10.10.0.3"), allowed("c", "10.10.0.4"))


@asynccontextmanager
async def world(*clients: AllowedClient, **options: Any) -> AsyncIterator[World]:
    port, host, records = free_port(), hostile_host(), dict[str, Record]()
    with logged() as log:
        async with running(host, tap(port, *(clients or CLIENTS), **options), records=records) as nursery:
            made = World(port, host, await host.device("hub"), records["hub"], log, nursery)
            try:
                yield made
            finally:
                for raw in made.raws:
                    raw.close()
    assert_quiet(log)


# ------------------------------------------------------------------ who is let in


async def test_a_base_client_is_refused_and_told() -> None:
    async with world() as it:
        assert it.hub.mac == OWN
        for method in ("GET", "PUT"):
            raw = await it.raw(request(method, "a", *([CHUNKED] if method == "PUT" else [])))
            assert await raw.status() == 406
        for offer in ("ctl", "tap", "ctl, ws, inet6"):
            raw = await it.raw(request("GET", "a", f"x-tun-features: {offer}", f"x-tun-session: {session_id('a')}"))
            assert await raw.status() == 406
        assert it.server.refusals == {"no-tap": 5}
        assert "this interface carries Ethernet, and the peer does not offer it" in it.lines(" refused: ")[0]
        # An upload without a session is a base client's, whatever it offers.
        raw = await it.raw(request("PUT", "a", CHUNKED, OFFER))
        assert await raw.status() == 406
        raw = await it.raw(request("PUT", "a", CHUNKED, OFFER, f"x-tun-session: {session_id('x')}"))
        assert await raw.status() == 409


async def test_an_upload_that_was_held_while_the_kind_changed_is_refused() -> None:
    """The head and the frames are those of a client whose download carried packets of IP; see the next test for the
    other direction."""
    async with world() as it:
        a = await it.join("a")
        for offer in ((), ("x-tun-features: ctl, inet6",)):
            raw = await it.raw(request("PUT", "a", CHUNKED, *offer, f"x-tun-session: {session_id('a')}"))
            await raw.send(chunk(frame(bytes(20))))
            assert await raw.status() == 409
        assert it.server.refusals == {"other-session": 2}
        assert it.session("a").counters.rx_packets == 0
        await a.send(ask := arp(A, "10.10.0.2"))  # its own upload goes on
        await it.has(ask)


async def test_an_upload_of_ethernet_is_refused_where_packets_of_ip_go() -> None:
    port, records = free_port(), dict[str, Record]()
    async with running(MemoryHost(), server_config(port, *CLIENTS), records=records):
        [record] = records.values()
        tunnel = record.tunnel
        assert isinstance(tunnel, TunnelServer)
        session = f"x-tun-session: {session_id('a')}"
        raws = [Raw(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(3)]
        await raws[0].send(request("GET", "a", OFFER, session))
        assert b" 200 " in await raws[0].head()
        await raws[1].send(request("PUT", "a", CHUNKED, "x-tun-features: tap", session))
        await raws[1].send(chunk(frame(arp(A, "10.10.0.2"))))
        assert await raws[1].status() == 409
        assert tunnel.refusals == {"other-session": 1}
        await raws[2].send(request("PUT", "a", CHUNKED, session))
        await until(lambda: tunnel.sessions[0].uploads, "an upload of its own kind")
        for raw in raws:
            raw.close()


async def test_what_a_client_is_told() -> None:
    plain = replace(CLIENTS[1], addresses=())
    async with world(CLIENTS[0], plain) as it:
        a, b = await it.join("a"), await it.join("b")
        for peer, addresses in ((a, ["10.10.0.2/24"]), (b, [])):
            assert b"x-tun-conf" not in peer.head.lower()
            assert b"x-tun-features: ctl, tap\r\n" in peer.head.lower()
            await until(lambda peer=peer: peer.controls, "PARAMS")  # type: ignore[misc]
            kind, payload = peer.controls[0]
            assert kind == control.PARAMS
            told = json.loads(payload)
            assert (told["device"], told["addresses"], told["mtu"]) == ("tap", addresses, 1500)


async def test_a_tun_interface_does_not_agree_on_ethernet() -> None:
    port = free_port()
    async with running(MemoryHost(), server_config(port, *CLIENTS)):
        raw = Raw(await trio.open_tcp_stream("127.0.0.1", port))
        await raw.send(request("GET", "a", OFFER, f"x-tun-session: {session_id('a')}"))
        head = (await raw.head()).lower()
        assert b"x-tun-features: ctl\r\n" in head
        assert b"x-tun-conf" in head
        raw.close()


# ------------------------------------------------------------------ where frames go


async def test_unknown_broadcast_and_known() -> None:
    async with world() as it:
        a, b, c = [await it.join(name) for name in "abc"]
        hello = ether(BROADCAST, A, b"hello")
        await a.send(hello)
        await it.has(hello)
        await b.has(hello)
        await c.has(hello)
        answer = ether(A, B, b"answer")
        await b.send(answer)
        await a.has(answer)
        back = ether(B, A, b"back")
        await a.send(back)
        await b.has(back)
        unknown = ether(SOMEBODY, A, b"anybody?")
        await a.send(unknown)
        await it.has(unknown)
        await b.has(unknown)
        await c.has(unknown)
        # From the device: unknown to all; known to one; to the server's own interface from a client.
        for sent, to in ((ether(BROADCAST, LAN, b"lan"), (a, b, c)), (ether(A, LAN, b"to a"), (a,))):
            it.hub.send(sent)
            for peer in to:
                await peer.has(sent)
        mine = ether(OWN, A, b"to the server")
        await a.send(mine)
        await it.has(mine)
        own = ether(B, OWN, b"from the server")
        it.hub.send(own)
        await b.has(own)
        assert [a.frames, b.frames, c.frames, it.hub.take()] == [[], [], [], []]
        counters = it.session("a").counters
        assert (counters.rx_packets, counters.drops) == (4, Counter())
        assert counters.rx_bytes == sum(map(len, (hello, back, unknown, mine)))
        assert it.segment.flooded == 1
        assert it.segment.flooded_by(it.session("a")) == 2
        assert it.table() == {
            mac_text(OWN): None, mac_text(LAN): None, mac_text(A): "a", mac_text(B): "b",
        }  # fmt: skip


async def test_many_frames_of_many_kinds_in_one_receive_keep_their_order() -> None:
    async with world() as it:
        a, b, c = [await it.join(name) for name in "abc"]
        for peer, one in ((b, B), (c, C)):
            await peer.send(ether(OWN, one))
        await it.hub.receive()
        await it.hub.receive()
        sent = []
        for number in range(300):
            destination = (B, C, OWN, BROADCAST, SOMEBODY)[number % 5]
            sent.append(ether(destination, A, b"%d" % number))
        await a.send(*sent)
        everybody = (BROADCAST, SOMEBODY)
        await it.has(*(one for one in sent if one[:6] in (OWN, *everybody)))
        for peer, own in ((b, B), (c, C)):
            await until(lambda peer=peer: len(peer.frames) == 180, "all frames")  # type: ignore[misc]
            for destinations in ((own,), everybody):  # what is flooded may overtake what is not
                wanted = [one for one in sent if one[:6] in destinations]
                assert [one for one in peer.frames if one[:6] in destinations] == wanted


async def test_a_block_is_flooded_as_one() -> None:
    """Many equal frames of UDP are one range; each receiver gets all of them."""
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        packets = [ether(BROADCAST, A, ipv4("10.10.0.2", "10.10.0.255", b"%04d" % n, 17), 0x0800) for n in range(100)]
        await a.send(*packets)
        await b.has(*packets)
        await it.has(*packets)
        assert it.session("a").counters.rx_packets == 100


async def test_who_has_no_stream_gets_no_flooded_frames() -> None:
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        b.get.close()
        assert b.put is not None
        b.put.close()
        await until(lambda: it.session("b").state == "offline", "b to be gone")
        hello = ether(BROADCAST, A)
        await a.send(hello)
        await it.has(hello)
        assert not it.session("b").sender.tx_queue
        assert not it.session("c").sender.tx_queue


async def test_isolated_clients_reach_the_server_only() -> None:
    async with world(isolate=True) as it:
        a, b = await it.join("a"), await it.join("b")
        for peer, one in ((a, A), (b, B)):
            await peer.send(hello := ether(BROADCAST, one, b"x" * one[-1]))
            await it.has(hello)
        await a.send(ether(B, A, b"to b"), ether(SOMEBODY, A, b"who?"))
        await it.has(ether(SOMEBODY, A, b"who?"))
        it.hub.send(answer := ether(BROADCAST, LAN, b"all"))
        await a.has(answer)
        await b.has(answer)
        assert it.session("a").counters.drops == {"isolated": 1}


@pytest.mark.parametrize("bpdu", ["drop", "forward"])
async def test_spanning_trees(bpdu: str) -> None:
    async with world(bpdu=bpdu) as it:
        a, b = await it.join("a"), await it.join("b")
        await a.send(stp := ether(STP, A, bytes(38), 38), last := ether(BROADCAST, A, b"last"))
        it.hub.send(ether(STP, LAN, bytes(38), 38))
        it.hub.send(end := ether(BROADCAST, LAN, b"end"))
        passing = [stp] if bpdu == "forward" else []
        await it.has(*passing, last)
        dropped = {} if passing else {"reserved-mac": 1}
        await until(lambda: end in b.frames and last in b.frames, "the frames at b")
        assert len(b.frames) == 2 + 2 * len(passing)
        assert it.session("a").counters.drops == it.server.device_drops == dropped


# ------------------------------------------------------------------ the vnet header

TCP4: Final = 1


def super_packet(destination: bytes, source: bytes, size: int = 3000) -> bytes:
    tcp = bytes(12) + b"\x50\x10" + bytes(6)
    return ether(destination, source, ipv4("10.10.0.2", "10.10.0.3", tcp + bytes(size), 6), 0x0800)


def offload(gso: int = 1400, start: int = 34, header: int = 54) -> bytes:
    numbers = (header, gso, start, 16, 0)
    return bytes([1, TCP4]) + b"".join(number.to_bytes(2, "little") for number in numbers)


@pytest.mark.parametrize("destination", [BROADCAST, B], ids=["flooded", "known"])
async def test_super_packets_cross_whole(destination: bytes) -> None:
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        await b.send(ether(OWN, B))
        await it.hub.receive()
        await a.send(super_packet(destination, A), vnet=offload())
        await b.has(super_packet(destination, A))


@pytest.mark.parametrize("destination", [BROADCAST, B, OWN], ids=["flooded", "known", "server"])
async def test_an_impossible_vnet_header_costs_one_frame(destination: bytes) -> None:
    """A virtual machine behind the client's bridge may have made it up, so the upload goes on."""
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        await b.send(ether(OWN, B))
        await it.hub.receive()
        good = ether(destination, A, b"good")
        assert a.put is not None
        bad = frame(super_packet(destination, A), offload(gso=1))
        await a.put.send(chunk(frame(good) + bad + frame(after := ether(destination, A, b"after"))))
        if destination != OWN:
            await b.has(good, after)
        if destination != B:
            await it.has(good, after)
        assert b.frames == []
        assert it.session("a").counters.drops == {"device-refused": 1}
        assert not it.session("a").counters.ends


async def test_a_checksum_that_begins_in_the_ethernet_header_reaches_no_client() -> None:
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        await a.send(super_packet(BROADCAST, A), vnet=offload(start=10))
        await a.send(last := ether(BROADCAST, A, b"last"))
        await b.has(last)
        await it.has(last)
        assert (b.frames, it.hub.take()) == ([], [])
        assert it.session("a").counters.drops == {"device-refused": 1}


async def test_a_runt_ends_the_upload() -> None:
    async with world() as it:
        a = await it.join("a")
        await a.send(ether(BROADCAST, A)[:13])
        await until(lambda: it.session("a").counters.ends == {"bad-frame": 1}, "the end")
        assert it.hub.take() == []


# ------------------------------------------------------------------ what hostile clients try


async def test_sources_that_it_may_not_use() -> None:
    pinned = replace(CLIENTS[1], macs=(B,)), CLIENTS[2]
    async with world(CLIENTS[0], *pinned) as it:
        a, b = await it.join("a"), await it.join("b")
        for source in (BROADCAST, STP, bytes(6), OWN, B):
            await a.send(ether(LAN, source, b"spoofed"))
        await b.send(ether(LAN, C, b"not among its macs"))
        await a.send(last := ether(BROADCAST, A))
        await it.has(last)
        await b.has(last)
        await b.send(last := ether(BROADCAST, B))
        await it.has(last)
        it.hub.send(ether(BROADCAST, B, b"spoofed by the LAN"))
        it.hub.send(last := ether(BROADCAST, LAN))
        await b.has(last)
        assert it.session("a").counters.drops == {"bad-mac": 5}
        assert it.session("b").counters.drops == {"bad-mac": 1}
        assert it.server.device_drops == {"bad-mac": 1}
        lines = it.lines("are dropped")
        assert len(lines) == 4
        assert "02:00:00:00:00:01 are dropped, which is the address of this server's interface" in lines[0]
        assert f"{mac_text(B)} are dropped, which is among the macs of client b" in lines[1]
        assert f"{mac_text(C)} are dropped, which is not among its macs" in lines[2]
        assert f"{mac_text(B)} on the server's side are dropped, which is among the macs of client b" in lines[3]


async def test_frames_to_itself_go_nowhere() -> None:
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        await a.send(ether(A, A), ether(BROADCAST, A), ether(A, C))
        await b.has(ether(BROADCAST, A))
        await it.has(ether(BROADCAST, A))
        await until(lambda: it.session("a").counters.drops == {"same-side": 2}, "the drops")


async def test_ten_thousand_addresses_of_one_client() -> None:
    async with world(storm_limit=1_000_000) as it:
        a, b = await it.join("a"), await it.join("b")
        await b.send(ether(OWN, B))
        await it.hub.receive()
        for part in range(10):
            await a.send(*(ether(OWN, mac(1000 * (part + 1) + n)) for n in range(1000)))
        await until(lambda: it.session("a").counters.rx_packets == 10_000, "all frames")
        assert it.segment.switch.size(it.session("a").port) == MAX_CLIENT_MACS
        assert it.table()[mac_text(B)] == "b"
        port = it.segment._ports[it.session("a").port]
        assert len(port.verdicts) <= module.CACHE_ENTRIES
        rows, total = run_now(it.segment.table_in_steps(100))
        assert len(rows) <= 100
        assert total == MAX_CLIENT_MACS + 2
        assert {row.client for row in rows} == {None, "a", "b"}, "each port has its share"


async def test_a_storm_is_cut_and_told_once() -> None:
    async with world(storm_limit=100) as it:
        a, b = await it.join("a"), await it.join("b")
        await b.send(ether(OWN, B))
        await it.hub.receive()
        for _ in range(5):
            await a.send(*(ether(BROADCAST, A) for _ in range(200)))
        await a.send(last := ether(B, A, b"unicast passes"))
        drops = it.session("a").counters.drops
        await until(lambda: last in b.frames and len(b.frames) - 1 + drops["storm"] == 1000, "all frames")
        flooded = len(b.frames) - 1
        assert flooded == it.segment.flooded_by(it.session("a")) == len(it.hub.take())
        assert 100 <= flooded < 1000
        [line] = it.lines("frames a second to everybody")
        assert "more than 100 frames" in line
        # Another one floods as before.
        b.frames.clear()
        await b.send(hello := ether(BROADCAST, B))
        await a.has(hello)


async def test_a_block_is_cut_by_the_storm_limit() -> None:
    async with world(storm_limit=10) as it:
        a, b = await it.join("a"), await it.join("b")
        packets = [ether(BROADCAST, A, ipv4("10.10.0.2", "10.10.0.255", b"%04d" % n, 17), 0x0800) for n in range(64)]
        await a.send(*packets)
        await until(lambda: it.session("a").counters.drops["storm"] + len(b.frames) == 64, "all of them")
        assert it.session("a").counters.drops["storm"] >= 50
        assert b.frames[:10] == packets[:10]


async def test_a_flapping_address_does_not_empty_everybodys_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = 0
    forget = Segment._forget_verdicts

    def counted(self: Segment, now: float) -> None:
        nonlocal emptied
        emptied += 1
        forget(self, now)

    monkeypatch.setattr(Segment, "_forget_verdicts", counted)
    monkeypatch.setattr("tapotun_trio.routing.switch.MOVE_S", 0.0)  # each move is believed: the worst case
    monkeypatch.setattr(Segment, "tick", lambda *_: None)
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        for _ in range(500):
            await a.send(ether(OWN, C))
            await it.hub.receive()
            await b.send(ether(OWN, C))
            await it.hub.receive()
        assert emptied <= 2 * (8 + 60), "a burst each, and one a second"
        assert it.segment.switch.stale_soon
        assert len(it.lines("is behind client")) <= 2 * 20


async def test_a_move_is_followed_at_once_and_told() -> None:
    async with world() as it:
        a, b, c = [await it.join(name) for name in "abc"]
        await a.send(hello := ether(OWN, SOMEBODY))
        await it.has(hello)
        await c.send(first := ether(SOMEBODY, C, b"first"))
        await a.has(first)
        it.hub.send(lan := ether(SOMEBODY, LAN, b"lan"))
        await a.has(lan)
        await b.send(hello)
        await it.has(hello)
        await c.send(second := ether(SOMEBODY, C, b"second"))
        it.hub.send(lan)
        await until(lambda: len(b.frames) == 2, "the frames at b")
        assert sorted(b.frames) == sorted([second, lan])
        assert a.frames == []
        assert it.table()[mac_text(SOMEBODY)] == "b"
        [line] = it.lines(" is behind ")
        assert f"{mac_text(SOMEBODY)} is behind client b now, and was behind client a" in line


async def test_an_address_moves_to_the_servers_side_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapotun_trio.routing.switch.MOVE_S", 0.0)
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        await a.send(ether(OWN, SOMEBODY))
        await it.hub.receive()
        it.hub.send(hello := ether(BROADCAST, SOMEBODY))
        await a.has(hello)
        await b.has(hello)
        await b.send(to := ether(SOMEBODY, B, b"to the LAN"))
        await it.has(to)
        await a.send(hello)
        await b.has(hello)
        await it.has(hello)
        await b.send(to)
        await a.has(to)
        assert [f"is behind {where} now" in line for where, line in zip(
            ("the server's side", "client a"), it.lines(" is behind "), strict=True
        )] == [True, True]  # fmt: skip


async def test_addresses_of_a_client_that_goes_offline_are_forgotten() -> None:
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        await a.send(ether(OWN, A))
        await it.hub.receive()
        await b.send(to := ether(A, B))
        await a.has(to)
        a.get.close()
        assert a.put is not None
        a.put.close()
        await until(lambda: mac_text(A) not in it.table(), "a's addresses to go")
        await b.send(to)
        await it.has(to)  # unknown now: to everybody


async def test_use_is_noticed_through_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached frames teach nothing; so the caches are emptied now and then, and what is used does not age."""
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    async with world() as it:
        a = await it.join("a")
        await a.send(ether(OWN, A))
        await it.hub.receive()
        port, switch = it.session("a").port, it.segment.switch
        before = next(row.age_s for row in switch.rows(trio.current_time()) if row.port == port)
        assert before is not None
        it.segment.tick(trio.current_time() + 1)
        assert not it.segment._ports[port].verdicts
        switch._where[A].seen_at -= AGE_S - 1
        await a.send(ether(OWN, A))
        await it.hub.receive()
        assert switch.port_of(A, trio.current_time() + 10) == port


# ------------------------------------------------------------------ ARP guard


async def test_a_client_may_claim_its_own_address_only() -> None:
    async with world(arp_guard=True) as it:
        a, b = await it.join("a"), await it.join("b")
        await a.send(own := arp(A, "10.10.0.2"))
        await b.has(own)
        await it.has(own)
        # Also to a destination for which there is a verdict.
        await b.send(ether(A, B, bytes(40), 0x0800))
        await a.send(ether(B, A, bytes(40), 0x0800))
        await until(lambda: len(b.frames) == 1, "the verdict")
        for sender in ("10.10.0.3", "10.10.0.1", "10.10.0.77"):
            await a.send(arp(A, sender), arp(A, sender, B))
        unclear = ether(B, A, bytes(40), 0x86DD)  # an extension header that is not whole
        await a.send(unclear, last := ether(B, A, b"x" * 50, 0x0800))
        await until(lambda: b.frames[-1:] == [last], "the last frame")
        assert len(b.frames) == 2
        assert it.session("a").counters.drops == {"arp-guard": 7}
        assert it.hub.take() == []
        it.hub.send(arp(LAN, "10.10.0.1"))  # the server's side is trusted
        await until(lambda: arp(LAN, "10.10.0.1") in b.frames, "the server's ARP")


async def test_the_guard_follows_a_reload() -> None:
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        spoof = arp(A, "10.10.0.3")
        await a.send(spoof)
        await b.has(spoof)
        await it.reload(lambda config: replace(config, arp_guard=True))
        await a.send(spoof, last := ether(BROADCAST, A))
        await b.has(last)
        await it.reload(lambda config: replace(config, arp_guard=False))
        await a.send(spoof)
        await b.has(spoof)
        assert it.session("a").counters.drops == {"arp-guard": 1}


@pytest.mark.parametrize(("size", "gso"), [(60_000, 1400), (300, 8)], ids=["large", "tiny pieces"])
async def test_a_super_packet_counts_as_many(size: int, gso: int) -> None:
    """Else super-packets would flood everybody's path within the limit, or everybody's kernel with tiny packets."""
    async with world(storm_limit=100) as it:
        a, b = await it.join("a"), await it.join("b")
        large, began = super_packet(BROADCAST, A, size), trio.current_time()
        for _ in range(10):
            await a.send(large, vnet=offload(gso))
        await until(lambda: it.session("a").counters.rx_packets == 10, "all frames")
        await until(lambda: len(b.frames) + it.session("a").counters.drops["storm"] == 10, "all of them")
        worth = -(-len(large) // min(gso, 1518))  # of each, about 40
        most = 100 * (1 + trio.current_time() - began) / worth  # with what was saved up in the meantime
        assert 2 <= len(b.frames) <= most


# ------------------------------------------------------------------ reloads, carrier


async def test_a_reload_pins_addresses_and_keeps_the_rest() -> None:
    async with world() as it:
        a, b = await it.join("a"), await it.join("b")
        for peer, one in ((a, SOMEBODY), (b, B)):
            await peer.send(ether(OWN, one))
            await it.hub.receive()

        def pin(config: ServerConfig) -> ServerConfig:
            first, second, third = config.clients
            return replace(config, clients=(third, replace(second, macs=(SOMEBODY, B)), first))  # in another order, too

        await it.reload(pin)
        assert it.table() == {mac_text(OWN): None, mac_text(SOMEBODY): "b", mac_text(B): "b"}
        await a.send(ether(OWN, SOMEBODY), ether(SOMEBODY, A, b"to b"))
        await b.has(ether(SOMEBODY, A, b"to b"))
        assert it.session("a").counters.drops == {"bad-mac": 1}
        await it.reload(lambda config: replace(config, clients=(*CLIENTS[:1], *CLIENTS[2:])))
        assert it.table() == {mac_text(OWN): None, mac_text(A): "a"}
        await until(lambda: b.ended, "b's streams to end")
        await a.send(hello := ether(B, A))
        await it.has(hello)


@pytest.mark.parametrize("each_plane", ["auto"], indirect=True)
async def test_the_plane_forwards_nothing_of_a_client_that_a_reload_has_removed() -> None:
    """Its loans end, as its streams may live on for a moment: the client has to answer their end."""
    async with world() as it:
        plane = current_plane()
        assert plane is not None
        a, b = await it.join("a"), await it.join("b")
        for peer, one in ((a, A), (b, B)):
            await peer.send(ether(OWN, one))
            await it.hub.receive()
        await b.send(ether(A, B))
        await a.has(ether(A, B))
        removed = it.session("b")
        lane = it.segment.lane(removed, 0, removed.deliver, plane)
        view = memoryview(frame(ether(A, B)))
        lane.flows.learn(view, [(0, len(view), 1)], lane.judge)
        assert lane.judge(view, 0) is not None
        ended: list[bool] = []
        lane.flows.borrowers.append(lambda: ended.append(True))
        await it.reload(lambda config: replace(config, clients=(*CLIENTS[:1], *CLIENTS[2:])))
        assert ended
        assert lane.judge(view, 0) is None
        assert it.segment.flooded_by(removed) == 0


async def test_the_carrier_says_whether_any_client_is_there() -> None:
    async with world() as it:
        await it.hub.wait_carrier(up=False)
        a, b = await it.join("a"), await it.join("b")
        await it.hub.wait_carrier(up=True)
        a.get.close()
        await until(lambda: not it.session("a").sender.streaming, "a to be gone")
        it.segment.tick(trio.current_time())
        assert it.hub.carrier
        b.get.close()
        await it.hub.wait_carrier(up=False)
        await it.join("a")
        await it.hub.wait_carrier(up=True)


async def test_a_bug_in_the_switch_costs_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as it:
        a = await it.join("a")
        decide, failures = it.segment.switch.decide, iter([ZeroDivisionError("a bug"), MemoryError()])

        def failing(*args: Any) -> int:
            failure = next(failures, None)
            if failure is not None:
                raise failure
            return decide(*args)

        monkeypatch.setattr(type(it.segment.switch), "decide", lambda self, *args: failing(*args))
        for _ in range(3):
            it.hub.send(hello := ether(BROADCAST, LAN))
        await a.has(hello)
        assert it.server.device_drops == {"internal-error": 1, "no-memory": 1}
        assert it.lines("internal error, frame from the device dropped")
        it.log[:] = [record for record in it.log if record.levelno < logging.WARNING]
