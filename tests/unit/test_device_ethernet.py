"""Ethernet frames out of a TAP device, and into a client's: `read_device` and `deliver_ethernet`."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.plane import ALL_FRAMES, BY_MACS, BY_MACS_GUARDED
from tapotun_trio.datapath.receiver import deliver_ethernet
from tapotun_trio.datapath.rules import Rule
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.datapath.tun_io import BURST_BYTES, DeviceWriter, read_device
from tapotun_trio.routing.address_guard import is_ordinary
from tapotun_trio.wire.frames import HEADER_BYTES, MAX_PACKET_BYTES, FrameRange, each
from tapotun_trio.wire.vnet import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM

from ..fakes import MemoryDevice
from ..packets import frame, ipv4, ipv6
from ..tap_frames import ARP, IPV4, IPV6, MAC_A, MAC_B, SERVICE_VLAN, VLAN, behind_ethernet, ethernet, tag
from .test_wire_ethernet import received
from .test_wire_merge import laid, udp6
from .test_wire_merge_tcp import stream
from .test_wire_vnet import packet, vnet

settle = trio.testing.wait_all_tasks_blocked


class Taken:
    """What a burst has brought: each frame, and how many frames each range had."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.counts: list[int] = []
        self.bursts = 0

    def take(self, view: memoryview, frames: list[FrameRange]) -> None:
        self.bursts += 1
        self.frames += [bytes(view[start:stop]) for start, stop in each(frames)]
        self.counts += [count for _, _, count in frames]

    def classify(self, view: memoryview, at: int) -> Sender | None:
        raise AssertionError("it is not asked")


def nobody() -> None:
    """No sender is the only one."""


async def read_all(device: MemoryDevice) -> Taken:
    taken = Taken()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: read_device(device, taken.classify, nobody, ethernet=taken.take))
        while device.inbound:
            await settle()
        await settle()
        nursery.cancel_scope.cancel()
    return taken


# ------------------------------------------------------------------ out of the device

sizes = st.sampled_from([14, 15, 19, 20, 33, 60, 1514]) | st.integers(14, 100)
crowds = st.lists(st.tuples(sizes, st.integers(1, 20), st.sampled_from([0, 4, 6])), max_size=6)


def crowd(size: int, count: int, version: int) -> list[bytes]:
    """Frames without a length: anything, or UDP of one version of IP, whose payload differs."""
    if version == 4:
        return [ethernet(ipv4("10.9.0.1", "10.9.0.2", bytes([n]) * size, 17))[2:] for n in range(count)]
    if version == 6:
        return [ethernet(ipv6("2001:db8::1", "2001:db8::2", bytes([n]) * size, 17), IPV6)[2:] for n in range(count)]
    return [bytes(12) + bytes([n]) * size for n in range(count)]


@settings(max_examples=60, deadline=None)
@given(crowds)
async def test_every_frame_is_passed_on_in_order_in_wire_format(parts: list[tuple[int, int, int]]) -> None:
    device = MemoryDevice("tap0")
    inside = [one for part in parts for one in crowd(*part)]
    for number, one in enumerate(inside):
        device.send(one[12:], one[:10] + bytes([number & 0xFF, 0xEE]))  # what the kernel left in num_buffers
    taken = await read_all(device)
    assert taken.frames == [frame(one[12:], one[:10] + b"\0\0") for one in inside]
    assert sum(taken.counts) == len(inside)
    if any(count >= 8 and version for _, count, version in parts):
        assert max(taken.counts) >= 8


@pytest.mark.parametrize("size", [0, 1, 13])
async def test_a_runt_is_passed_over(size: int) -> None:
    device, good = MemoryDevice("tap0"), ethernet(bytes(46), ARP)
    for payload in (good[14:], bytes(size), good[14:]):
        device.send(payload)
    assert (await read_all(device)).frames == [good, good]


async def test_what_is_short_for_ip_passes() -> None:
    """Nobody looks into it: neither IPv4 of 19 bytes, nor IPv6 of 39."""
    device = MemoryDevice("tap0")
    frames = [ethernet(b"\x45" * 19), ethernet(b"\x60" * 39, IPV6), ethernet(b""), ethernet(b"", IPV6)]
    for one in frames:
        device.send(one[14:])
    assert (await read_all(device)).frames == frames


async def test_a_frame_longer_than_its_length_field_says_is_passed_over() -> None:
    """The largest IP packet behind an Ethernet header and a tag, as a bridge may pass it on."""
    device, good = MemoryDevice("tap0"), ethernet(bytes(46), ARP)
    for size in (MAX_PACKET_BYTES, MAX_PACKET_BYTES + 1, MAX_PACKET_BYTES + 18):
        device.send(bytes(size))
        device.send(good[14:])
    taken = await read_all(device)
    assert taken.frames == [frame(bytes(MAX_PACKET_BYTES)), good, good, good]


async def test_a_burst_is_bounded() -> None:
    device = MemoryDevice("tap0")
    large = ethernet(bytes(60_000), 0x88B5)
    for _ in range(50):
        device.send(large[14:])
    taken = await read_all(device)
    assert taken.frames == [large] * 50
    assert taken.bursts >= 50 * len(large) // (BURST_BYTES + HEADER_BYTES + MAX_PACKET_BYTES)


# ------------------------------------------------------------------ into a client's device


@pytest.mark.parametrize("blocks", [True, False])
def test_a_client_writes_everything_and_counts_it(blocks: bool) -> None:
    frames = [behind_ethernet(one) for one in (*stream(65), *[udp6(b"x" * 64)] * 65)]
    frames += [ethernet(bytes(28), ARP), ethernet(b""), ethernet(bytes(28), 39), *[ethernet(b"", IPV6)] * 20]
    view, spans = received(frames) if blocks else laid(frames)
    device, counters = MemoryDevice("tap0"), Counters()
    deliver_ethernet(view, spans, DeviceWriter(device, counters.drops, ethernet=True), counters)
    assert counters.rx_packets == len(frames)
    assert counters.rx_bytes == sum(len(one) - HEADER_BYTES for one in frames)
    assert not counters.drops
    assert list(device.outbound)[-23:] == [one[2:] for one in frames[-23:]]
    assert len(device.outbound) < len(frames)


@pytest.mark.parametrize("gso", [GSO_TCPV4, GSO_TCPV6])
def test_a_super_packet_of_tiny_packets_is_a_drop(gso: int) -> None:
    """It does not end the stream: a virtual machine may have made it up (tests/netns/test_tap_frames.py)."""
    good = ethernet(bytes(46), ARP)
    absurd = behind_ethernet(frame(packet(9000), vnet(NEEDS_CSUM, gso, 40, 7, 20, 16)))
    frames = [good, good, absurd, good, absurd, good]
    view, spans = laid(frames)
    device, counters = MemoryDevice("tap0"), Counters()
    deliver_ethernet(view, spans, DeviceWriter(device, counters.drops, ethernet=True), counters)
    assert list(device.outbound) == [good[2:]] * 4
    assert (counters.rx_packets, counters.rx_bytes) == (6, sum(map(len, frames)) - 6 * HEADER_BYTES)
    assert counters.drops == {"device-refused": 2}


# ------------------------------------------------------------------ rules of the plane


def key_of(rules: tuple[Rule, ...], whole: bytes) -> tuple[int, bytes] | None:
    """The number of the rule for a frame, and its key: as `rules` says."""
    for number, (guards, pieces) in enumerate(rules):
        if all(at < len(whole) and whole[at] & mask == value for at, mask, value in guards) and all(
            at + size <= len(whole) for at, size in pieces
        ):
            return number, b"".join(whole[at : at + size] for at, size in pieces)
    return None


KINDS = {
    "IPv4": ethernet(ipv4("10.9.0.1", "10.9.0.2")),
    "IPv6": ethernet(ipv6("2001:db8::1", "2001:db8::2", bytes(8), 17), IPV6),
    "TCP over IPv6": ethernet(ipv6("2001:db8::1", "2001:db8::2", bytes(20), 6), IPV6),
    "ICMPv6": ethernet(ipv6("2001:db8::1", "2001:db8::2", bytes(8), 58), IPV6),
    "options before ICMPv6": ethernet(ipv6("2001:db8::1", "2001:db8::2", bytes(16), 0), IPV6),
    "the beginning of IPv6": ethernet(b"\x60" + bytes(5), IPV6),
    "ARP": ethernet(bytes(28), ARP),
    "nothing": ethernet(b""),
    "tagged IPv4": ethernet(ipv4("10.9.0.1", "10.9.0.2"), tags=tag()),
    "of another VLAN": ethernet(ipv4("10.9.0.1", "10.9.0.2"), tags=tag(2)),
    "tagged IPv6": ethernet(ipv6("2001:db8::1", "2001:db8::2", bytes(8), 17), IPV6, tags=tag()),
    "tagged ICMPv6": ethernet(ipv6("2001:db8::1", "2001:db8::2", bytes(8), 58), IPV6, tags=tag()),
    "tagged ARP": ethernet(bytes(28), ARP, tags=tag()),
    "a tag and nothing": ethernet(b"", tags=tag()),
    "half a tag": ethernet(b"\0", VLAN),
    "two tags": ethernet(bytes(28), ARP, tags=tag(1, SERVICE_VLAN) + tag()),
}


def test_by_macs_is_by_both_and_nothing_else() -> None:
    assert {key_of(BY_MACS, one) for one in KINDS.values()} == {(0, MAC_B + MAC_A)}
    assert {key_of(ALL_FRAMES, one) for one in KINDS.values()} == {(0, b"")}


def test_guarded_rules_tell_apart_what_has_to_be_looked_at() -> None:
    """No two of these share a verdict, so one for IPv4 lets no ARP pass, nor one for UDP any ICMPv6."""
    keys = {name: key_of(BY_MACS_GUARDED, one) for name, one in KINDS.items() if "nothing" not in name}
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys)
    assert all(key is not None and key[1].startswith(MAC_B + MAC_A) for key in keys.values())
    same = ethernet(ipv6("2001:db8::7", "2001:db8::8", bytes(90), 17), IPV6)
    assert key_of(BY_MACS_GUARDED, same) == keys["IPv6"]
    assert key_of(BY_MACS_GUARDED, ethernet(ipv4("10.9.0.7", "10.9.0.8", bytes(90)), IPV4)) == keys["IPv4"]


_HEADS = st.builds(
    lambda tags, kind, header, rest: ethernet(b"\x60" + bytes(5) + header + rest, kind, tags=b"".join(tags)),
    st.lists(st.sampled_from([tag(), tag(2), tag(1, SERVICE_VLAN)]), max_size=3),
    st.sampled_from([IPV4, ARP, IPV6]),
    st.sampled_from([bytes([header]) for header in (0, 6, 17, 44, 58)]),
    st.binary(max_size=40),
)


@given(_HEADS, _HEADS, st.integers(28, 90), st.integers(28, 90))
def test_frames_with_one_guarded_key_are_alike(one: bytes, other: bytes, size: int, other_size: int) -> None:
    """Each needs a look, or none does. So what was decided for one may be kept for all."""
    one, other = one[:size], other[:other_size]
    for second in (other, one[:32] + other[32:], one[:39] + other[39:]):
        if key_of(BY_MACS_GUARDED, one) == key_of(BY_MACS_GUARDED, second):
            found = [is_ordinary(memoryview(each + b"\x06" * 20), 14, len(each)) for each in (one, second)]
            assert found[0] == found[1]


@pytest.mark.parametrize("rules", [BY_MACS, BY_MACS_GUARDED, ALL_FRAMES])
def test_the_native_plane_takes_the_rules(rules: tuple[Rule, ...]) -> None:
    """Within its limits of rules, guards, pieces and bytes of a key; and finds the same keys."""
    pump_module = pytest.importorskip("tapotun_trio.datapath._pump")
    pump = pump_module.Pump(-1)
    table = pump.table(rules)
    for one in KINDS.values():
        assert pump.learn(table, one, pump_module.DROP, 0)
    found = Counter((rule, key) for rule, key, *_ in pump.verdicts(table))
    wanted = {key_of(rules, one) for one in KINDS.values()}
    assert found == Counter({(found_key[0], found_key[1].ljust(40, b"\0")): 1 for found_key in wanted if found_key})
