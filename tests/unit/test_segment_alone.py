"""A server's segment without streams: what it sends, its carrier, and what it forgets."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import accumulate, pairwise

import pytest
import trio
import trio.testing

from tapotun_trio.config.model import Bridge
from tapotun_trio.cooperative import run_now
from tapotun_trio.families import IPAddress
from tapotun_trio.host.interfaces import AddressedLink
from tapotun_trio.macs import BROADCAST, mac_text
from tapotun_trio.routing.switch import AGE_S
from tapotun_trio.server import segment as module
from tapotun_trio.server.machine_addresses import CHECK_S, watch_addressed
from tapotun_trio.server.segment import Segment
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire.frames import each

from ..fakes import MemoryHost
from ..packets import frame, ipv6
from .hostile import until
from .test_segment import CLIENTS, LAN, OWN, A, B, C, arp, ether, tap, world


class Writer:
    """A device that takes everything."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.outlet = None

    def write_all(self, view: memoryview, frames: list[tuple[int, int, int]], drops: Counter[str]) -> None:
        self.written += [bytes(view[start + 14 : stop]) for start, stop in each(frames)]


async def test_one_send_for_each_receiver_of_many_flooded_frames() -> None:
    """A burst that is flooded is sent once to each client, not frame by frame."""
    server = TunnelServer(tap(1, *CLIENTS), logging.LoggerAdapter(logging.getLogger("tapotun"), {}), mac=OWN)
    segment = server.segment
    assert segment is not None
    sends: dict[str, list[int]] = {}

    class Sender:
        streaming = True

        def __init__(self, name: str) -> None:
            self.name = name

        def send(self, frames: memoryview, packets: int) -> None:
            sends.setdefault(self.name, []).append(packets)

    for session in server.sessions:
        session.sender = Sender(session.client.name)  # type: ignore[assignment]
        segment.began(session)
    burst = b"".join(frame(ether(BROADCAST, A, b"%d" % n)) for n in range(50))
    size, ranges, at = len(burst), [], 0
    while at < size:
        stop = at + 14 + int.from_bytes(burst[at : at + 2], "little")
        ranges.append((at, stop, 1))
        at = stop
    writer = Writer()
    segment.from_client(server.sessions[0], memoryview(burst), ranges, writer)  # type: ignore[arg-type]
    assert sends == {"b": [50], "c": [50]}
    assert len(writer.written) == 50
    sends.clear()
    segment.from_device(memoryview(burst.replace(A, LAN)), ranges)
    assert sends == {"a": [50], "b": [50], "c": [50]}


class MemorySender:
    """Writes down what it is sent."""

    streaming = True

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def send(self, frames: memoryview | bytes, packets: int) -> None:
        data = memoryview(frames)
        for _ in range(packets):
            stop = 14 + int.from_bytes(data[:2], "little")
            self.got.append(bytes(data[14:stop]))
            data = data[stop:]
        assert not data

    def release(self) -> None:
        self.streaming = False


def _alone(**options: object) -> tuple[TunnelServer, Segment]:
    """A server whose senders write down what they are sent."""
    config = replace(tap(1, *CLIENTS), **options)  # type: ignore[arg-type]
    server = TunnelServer(config, logging.LoggerAdapter(logging.getLogger("tapotun"), {}), mac=OWN)
    assert server.segment is not None
    for session in server.sessions:
        session.sender = MemorySender()  # type: ignore[assignment]
        server.segment.began(session)
    return server, server.segment


def _ranges(*frames: bytes) -> tuple[memoryview, list[tuple[int, int, int]]]:
    ends = [0, *accumulate(map(len, frames))]
    return memoryview(b"".join(frames)), [(at, stop, 1) for at, stop in pairwise(ends)]


async def test_no_memory_to_flood_many_frames_at_once_costs_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames apart from each other are copied into one piece. Without memory for that, each is sent by itself."""
    server, segment = _alone()

    def no_memory(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(module, "_joined", no_memory)
    a, b, c = server.sessions
    flooded = [ether(BROADCAST, A, b"one"), ether(BROADCAST, A, b"two")]
    known = ether(B, A, b"known")
    view, ranges = _ranges(frame(ether(BROADCAST, B)))
    segment.from_client(b, view, ranges, Writer())  # type: ignore[arg-type]
    view, ranges = _ranges(frame(flooded[0]), frame(known), frame(flooded[1]))
    writer = Writer()
    segment.from_client(a, view, ranges, writer)  # type: ignore[arg-type]
    assert writer.written == flooded
    assert b.sender.got == [known, *flooded]  # type: ignore[attr-defined]
    assert c.sender.got == [ether(BROADCAST, B), *flooded]  # type: ignore[attr-defined]
    segment.from_device(*_ranges(frame(ether(BROADCAST, LAN)), frame(ether(B, LAN)), frame(ether(BROADCAST, LAN))))
    assert len(c.sender.got) == 5  # type: ignore[attr-defined]


# ------------------------------------------------------------------ link-local addresses, with arp_guard

LOCAL = IPv6Address("fe80::a:b:c:1").packed


def claims(source: bytes, address: bytes = LOCAL, kind: int = 136) -> bytes:
    """A frame that claims a link-local address."""
    chain = bytes([kind, 0, 0, 0]) + bytes(4) + address
    packet = ipv6(str(IPv6Address(address)), "ff02::1", chain, 58)
    return ether(BROADCAST, source, packet, 0x86DD)


def passes(server: TunnelServer, index: int, packet: bytes) -> bool:
    """Whether the frame of this client passes; if not, it is counted once."""
    assert server.segment is not None
    session, writer = server.sessions[index], Writer()
    before = session.counters.drops.total()
    server.segment.from_client(session, *_ranges(frame(packet)), writer)  # type: ignore[arg-type]
    assert session.counters.drops.total() == before + (not writer.written)
    return bool(writer.written)


async def test_a_link_local_address_is_its_first_ones_through_reloads() -> None:
    server, segment = _alone(arp_guard=True)
    assert passes(server, 0, claims(A))
    assert not passes(server, 1, claims(B))
    assert passes(server, 2, claims(B, IPv6Address("fe80::2").packed))
    server.reconfigure(replace(server._config, storm_limit=7))
    assert not passes(server, 1, claims(B))
    assert server.sessions[1].counters.drops == {"arp-guard": 2}
    # A client that is removed leaves it to others. Without the guard nobody notes who has what.
    server.reconfigure(replace(server._config, clients=server._config.clients[1:]))
    assert passes(server, 0, claims(B))
    server.reconfigure(replace(server._config, arp_guard=False))
    assert passes(server, 1, claims(A))
    assert not len(segment._link_local)


async def test_who_may_not_use_a_mac_address_cannot_claim_what_belongs_to_it() -> None:
    """Such a frame is dropped, and must not make anything its sender's."""
    clients = [replace(CLIENTS[0], macs=(A,)), *CLIENTS[1:]]
    server, _ = _alone(arp_guard=True, clients=tuple(clients))
    assert passes(server, 0, claims(A))
    assert not passes(server, 1, claims(A))
    assert server.sessions[1].counters.drops == {"bad-mac": 1}
    assert not passes(server, 1, claims(B))
    assert passes(server, 0, claims(A))
    made_from_a = bytes.fromhex("fe80000000000000") + bytes([A[0] ^ 2]) + A[1:3] + b"\xff\xfe" + A[3:]
    assert not passes(server, 1, claims(B, made_from_a)), "it is pinned, though it has not spoken yet"


async def test_the_servers_link_local_addresses() -> None:
    """Those of its MAC address, at any time, and those that its side has told everybody."""
    server, segment = _alone(arp_guard=True)
    own = bytes.fromhex("fe80000000000000") + bytes([OWN[0] ^ 2]) + OWN[1:3] + b"\xff\xfe" + OWN[3:]
    assert not passes(server, 0, claims(A, own))
    assert passes(server, 0, claims(A))
    for packet in (ether(BROADCAST, LAN), ether(BROADCAST, LAN, b"\x60", 0x86DD), claims(LAN)):
        segment.from_device(*_ranges(frame(packet)))
        assert server.sessions[2].sender.got[-1] == packet  # type: ignore[attr-defined]
    assert not passes(server, 0, claims(A)), "the router of the server's network has it"


async def test_no_client_claims_an_address_of_the_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an existing bridge, to which somebody else gave it. Clients without an address may claim any other one."""
    monkeypatch.setattr("tapotun_trio.server.machine_addresses.CHECK_S", 0.01)
    clients = [replace(each, addresses=()) for each in CLIENTS]
    ours, local = IPv4Address("192.168.7.1"), IPv6Address("fe80::dead:1")
    async with world(*clients, arp_guard=True, bridge=Bridge("br0")) as it:
        assert it.hub.is_port
        ask = arp(A, str(ours)), claims(A, local.packed), claims(A, IPv6Address("2001:db8::7").packed)
        assert [passes(it.server, 0, each) for each in ask] == [True, True, True]
        it.host.addresses["br0"] = {ours, local}
        await until(lambda: not passes(it.server, 0, ask[0]), "the bridge's addresses")
        assert [passes(it.server, index, each) for index in (0, 1) for each in ask] == [False, False, True] * 2
        await it.reload(lambda config: replace(config, storm_limit=7))
        assert not passes(it.server, 0, ask[0])
        it.host.addresses["br0"] = set()
        await until(lambda: passes(it.server, 0, ask[0]), "that it has none")


async def test_the_addresses_of_a_bridge_that_is_gone_stay(autojump_clock: trio.testing.MockClock) -> None:
    """It may come back with them, and the next look is some seconds away."""
    host, got, log = MemoryHost(), list[AddressedLink](), logging.LoggerAdapter(logging.getLogger("tapotun"), {})
    ours: set[IPAddress] = {IPv4Address("192.168.7.1"), IPv6Address("fd07::1")}
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_addressed, host, log, "hub", "br0", got.append)
        for addresses in (ours, None, ours, set[IPAddress]()):
            host.addresses = {} if addresses is None else {"br0": addresses}
            await trio.sleep(CHECK_S + 1)
        nursery.cancel_scope.cancel()
    assert [each.addresses for each in got] == [ours, set()]


async def test_another_mac_address_of_the_bridge_is_noticed_soon(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing tells of it. Until then a client may use the address."""
    host, got, log = MemoryHost(), list[AddressedLink](), logging.LoggerAdapter(logging.getLogger("tapotun"), {})
    host.addresses["br0"] = set()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_addressed, host, log, "hub", "br0", got.append)
        host.bridge_mac = B
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()
    assert [each.mac for each in got] == [MemoryHost().bridge_mac, B]


async def test_a_watch_that_finds_the_same_addresses_costs_no_verdict() -> None:
    """It reports them each time it has been opened again."""
    link = AddressedLink(B, frozenset({IPv4Address("192.168.7.1"), IPv6Address("fd07::1")}))
    for guarded in (True, False):
        _, segment = _alone(arp_guard=guarded)
        segment.set_addressed(link)
        assert segment.switch.stale
        segment.switch.stale = False
        segment.set_addressed(link)
        assert not segment.switch.stale


async def test_without_a_guard_the_addresses_of_the_bridge_change_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """They are known when a reload brings the guard."""
    four, six = IPv4Address("192.168.7.1"), IPv6Address("fd07::1")
    clients = tuple(replace(each, addresses=()) for each in CLIENTS)
    guarded = replace(tap(1, *clients), arp_guard=True)
    server, segment = _alone(clients=clients)
    host = MemoryHost()
    host.addresses["br0"] = {four}
    assert passes(server, 1, ether(OWN, B, bytes(40), 0x0800))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.watch_addressed, host, "br0")
        segment.switch.stale = False
        host.addresses["br0"].add(six)
        await trio.sleep(CHECK_S + 1)
        assert not segment.switch.stale, "the verdicts stay"
        server.reconfigure(guarded)
        assert not passes(server, 2, arp(C, str(four)))
        assert not passes(server, 2, claims(C, six.packed))
        nursery.cancel_scope.cancel()
    host.deaf = True
    async with trio.open_nursery() as nursery:
        await nursery.start(server.watch_addressed, host, "br0")
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    found = [each for each in caplog.records if "that br0 gets meanwhile" in each.getMessage()]
    assert len([each for each in found if each.levelno >= logging.WARNING]) == 1


async def test_a_bug_in_noting_what_a_frame_claims_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, segment = _alone(arp_guard=True)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "learn_from_device", fail)
    segment.from_device(*_ranges(frame(claims(LAN)), frame(ether(BROADCAST, LAN))))
    assert server.sessions[0].sender.got == [claims(LAN), ether(BROADCAST, LAN)]  # type: ignore[attr-defined]
    assert "internal error, what a frame from the device claims was not noted" in caplog.text


async def test_a_short_interruption_does_not_take_the_carrier_away() -> None:
    changes: list[bool] = []
    log = logging.LoggerAdapter(logging.getLogger("tapotun"), {})
    server = TunnelServer(tap(1, *CLIENTS), log, mac=OWN, set_carrier=changes.append)
    segment = server.segment
    assert segment is not None

    class Sender:
        streaming = True

    first, second, _ = server.sessions
    first.sender, second.sender = one, other = Sender(), Sender()  # type: ignore[assignment]
    segment.tick(0.0)
    segment.began(first)
    segment.tick(1.0)
    one.streaming = False
    segment.tick(2.0)
    segment.tick(4.9)
    segment.began(first)
    one.streaming = True
    segment.tick(5.9)
    segment.began(second)
    one.streaming = False
    segment.tick(7.0)
    segment.tick(20.0)
    other.streaming = False
    segment.tick(21.0)
    segment.tick(23.9)
    assert changes == [True]
    segment.tick(24.0)
    segment.tick(25.0)
    assert changes == [True, False]
    segment.began(first)
    assert changes == [True, False, True]


async def test_addresses_expire_although_others_move_all_the_time() -> None:
    server = TunnelServer(tap(1, *CLIENTS), logging.LoggerAdapter(logging.getLogger("tapotun"), {}), mac=OWN)
    segment = server.segment
    assert segment is not None
    segment.switch.decide(0, OWN, A, 0.0)
    for second in range(1, int(AGE_S) + 40, 2):
        segment.switch.decide(second % 4 // 2, OWN, B, float(second))
        segment.tick(float(second))
    assert segment.switch.size(0) + segment.switch.size(1) == 1


async def test_frames_that_are_flooded_and_not_by_turns_are_sent_once() -> None:
    """Else a client could keep the server busy: it would send each frame to each client by itself."""
    server = TunnelServer(tap(1, *CLIENTS), logging.LoggerAdapter(logging.getLogger("tapotun"), {}), mac=OWN)
    segment, sends = server.segment, Counter[str]()
    assert segment is not None

    class Sender:
        streaming = True

        def __init__(self, name: str) -> None:
            self.name = name

        def send(self, frames: memoryview | bytes, packets: int) -> None:
            sends[self.name] += 1
            assert packets == 100
            assert len(frames) == 100 * len(frame(ether(BROADCAST, A)))

    for session in server.sessions:
        session.sender = Sender(session.client.name)  # type: ignore[assignment]
        segment.began(session)
    burst = frame(ether(BROADCAST, A)) + frame(ether(OWN, A))
    size, data = len(burst) // 2, memoryview(burst * 100)
    ranges = [(at, at + size, 1) for at in range(0, len(data), size)]
    segment.from_client(server.sessions[0], data, ranges, Writer())  # type: ignore[arg-type]
    assert sends == {"b": 1, "c": 1}


async def test_the_address_of_the_bridge_is_the_servers_own(caplog: pytest.LogCaptureFixture) -> None:
    """What the server itself sends comes from the bridge, whose port the interface is. It may get another address."""
    log = logging.LoggerAdapter(logging.getLogger("tapotun"), {})
    config = tap(1, replace(CLIENTS[0], macs=(A, B)), *CLIENTS[1:])
    server = TunnelServer(config, log, mac=OWN)
    segment = server.segment
    assert segment is not None
    segment.set_addressed(AddressedLink(B, frozenset()))
    writer, session = Writer(), server.sessions[0]

    def claim(source: bytes) -> int:
        """Sends a frame with this source. Returns how many the device got."""
        whole = frame(ether(LAN, source))
        before = len(writer.written)
        segment.from_client(session, memoryview(whole), [(0, len(whole), 1)], writer)  # type: ignore[arg-type]
        return len(writer.written) - before

    assert (claim(A), claim(B)) == (1, 0)
    assert session.counters.drops == {"bad-mac": 1}
    assert f"{mac_text(B)} are dropped, which is the address of this server's bridge or interface" in caplog.text
    rows = {row.mac: row for row in run_now(segment.table_in_steps(100)).rows}
    assert rows[mac_text(B)].client is None
    segment.set_addressed(AddressedLink(A, frozenset()))  # another port has joined it
    segment.tick(1.0)
    assert (claim(A), claim(B)) == (0, 1)
    server.reconfigure(config)
    assert (claim(A), claim(B)) == (0, 1)
    segment.set_addressed(AddressedLink(B, frozenset()))
    segment.tick(2.0)
    assert (claim(A), claim(B)) == (1, 0)


async def test_no_client_uses_an_address_of_the_servers_side(caplog: pytest.LogCaptureFixture) -> None:
    """Such as that of the router there, also before it has said anything; a reload changes who is protected."""
    server, segment = _alone(macs=(LAN, OWN))
    assert not passes(server, 0, ether(BROADCAST, LAN))
    assert server.sessions[0].counters.drops == {"bad-mac": 1}
    assert f"frames from {mac_text(LAN)} are dropped, which is among the macs of this server" in caplog.text
    assert passes(server, 0, ether(LAN, A)), "it is known where it is"
    assert server.sessions[1].sender.got == []  # type: ignore[attr-defined]
    table = run_now(segment.table_in_steps(100))
    found = Counter((row.mac, row.client, row.pinned) for row in table.rows if row.mac != mac_text(A))
    assert found == {(mac_text(mac), None, True): 1 for mac in (LAN, OWN)}
    assert table.total == len(table.rows)
    other = ether(BROADCAST, bytes.fromhex("02000000bb01"))
    segment.from_device(*_ranges(frame(other)))
    assert server.sessions[0].sender.got[-1] == other, "others may be there, too"  # type: ignore[attr-defined]
    server.reconfigure(replace(server._config, macs=()))
    assert passes(server, 0, ether(BROADCAST, LAN))


async def test_an_address_of_a_client_on_the_servers_side_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Such as a laptop's that is plugged in there, and whose frames nobody gets."""
    server, segment = _alone(clients=(replace(CLIENTS[0], macs=(A,)), *CLIENTS[1:]))
    segment.from_device(*_ranges(frame(ether(BROADCAST, A)), frame(ether(BROADCAST, BROADCAST))))
    assert [session.sender.got for session in server.sessions] == [[], [], []]  # type: ignore[attr-defined]
    assert server.device_drops == {"bad-mac": 2}
    (record,) = caplog.records
    text = f"frames from {mac_text(A)} on the server's side are dropped, which is among the macs of client a; is that"
    assert record.getMessage().startswith(text)
    assert record.levelno == logging.WARNING
