"""The native part alone: every call, wrong calls, its limits, its keys and verdicts, and what it does with a frame.

What it does for two whole ends is in test_plane_differential.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import IPv6Address
from mmap import mmap
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath import plane
from tapotun_trio.datapath.tun_io import SLAB_START
from tapotun_trio.wire.body import chunk_head
from tapotun_trio.wire.frames import BUFFER_BYTES, HEADER_BYTES, MAX_FRAME_BYTES, MIN_PACKET_BYTES, each
from tapotun_trio.wire.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, MIN_GSO_BYTES, validate_vnet_header

from ..packets import frame, ip, ipv4
from ..planes import Tun, needs_pump
from ..twins import FAMILIES
from . import test_wire_merge, test_wire_merge_tcp

if plane.BUILT:
    from tapotun_trio.datapath import _pump

pytestmark = needs_pump

KEY_BYTES: Final = 40
SMALL_DEVICE_BYTES: Final = 8192
MAX_VERDICTS: Final = 4096
DROP_REASONS: Final = 16
# Long enough for whatever is ready; nothing here waits for it in vain.
SOON_NS: Final = 30_000_000_000

Rule = tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int], ...]]

IS_IPV4: Final = (HEADER_BYTES, 0xF0, 0x40)
IS_IPV6: Final = (HEADER_BYTES, 0xF0, 0x60)
# Layer 2 would have an Ethernet header where IP packets begin.
ETHERNET: Final[Rule] = ((), ((HEADER_BYTES, 12),))
IPV6: Final[Rule] = ((IS_IPV6,), ((HEADER_BYTES + 8, 32),))
# TCP over IPv4 without options, no fragment (offset, more fragments), and none of SYN, FIN and RST: those are Python's.
TCP_FLOW: Final[Rule] = (
    (
        (HEADER_BYTES, 0xFF, 0x45),
        (HEADER_BYTES + 6, 0x3F, 0),
        (HEADER_BYTES + 7, 0xFF, 0),
        (HEADER_BYTES + 9, 0xFF, 6),
        (HEADER_BYTES + 33, 0x07, 0),
    ),
    ((HEADER_BYTES + 9, 1), (HEADER_BYTES + 12, 8), (HEADER_BYTES + 20, 4)),
)
UDP_FLOW: Final[Rule] = (
    (
        (HEADER_BYTES, 0xFF, 0x45),
        (HEADER_BYTES + 6, 0x3F, 0),
        (HEADER_BYTES + 7, 0xFF, 0),
        (HEADER_BYTES + 9, 0xFF, 17),
    ),
    ((HEADER_BYTES + 9, 1), (HEADER_BYTES + 12, 8), (HEADER_BYTES + 20, 4)),
)


class World:
    """A pump with descriptors to work on; all of them are closed at the end."""

    def __init__(self) -> None:
        self.pump = _pump.Pump(-1)
        self._stack = ExitStack()

    def pair(self, *, sndbuf: int | None = None) -> tuple[socket.socket, socket.socket]:
        """A stream: what the program has, and the far end."""
        ours, far = socket.socketpair()
        for end in (ours, far):
            end.setblocking(False)
            self._stack.enter_context(end)
        if sndbuf is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        return ours, far

    def tun(self, buffer_bytes: int | None = None) -> Tun:
        tun = Tun("tun0", buffer_bytes)
        self._stack.callback(tun.close)
        return tun

    def device(self, buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
        """A device for writing (see `Tun`), and where the host reads what was written."""
        ours, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, host):
            self._stack.enter_context(end)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes or 4 << 20)
        return ours, host

    def wait(self, *, most_ns: int = 0) -> tuple[list[tuple[int, int, object]], int]:
        return self.pump.wait(time.monotonic_ns() + most_ns)

    def close(self) -> None:
        del self.pump
        self._stack.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def packet(source: int, destination: int, size: int = 40) -> bytes:
    return ipv4(address(source), address(destination), bytes(size - 20))


def chunk(data: bytes) -> bytes:
    return chunk_head(len(data)) + data + b"\r\n"


def drops_of(numbers: dict[int, int]) -> tuple[int, ...]:
    """What `Pump.counts` says of drops, by the number of their reason."""
    return tuple(numbers.get(reason, 0) for reason in range(DROP_REASONS))


def drain(sock: socket.socket) -> bytes:
    data = b""
    try:
        while piece := sock.recv(1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data


def slab() -> mmap:
    return mmap(-1, plane.SLAB_BYTES)


def inlet_of(world: World, outlet: int, table: int) -> tuple[int, socket.socket, mmap]:
    """An inlet, the far end of its socket, and its buffer."""
    ours, far = world.pair()
    buffer = mmap(-1, BUFFER_BYTES)
    return world.pump.inlet(ours.fileno(), outlet, table, buffer, 0, 0, 0, False), far, buffer


# ------------------------------------------------------------------ wrong calls


def test_what_the_program_relies_on() -> None:
    assert _pump.ABI == plane.ABI
    assert plane.SLAB_BYTES >= plane.BURST_BYTES + _pump.MAX_FRAME_BYTES
    assert len(plane._DROPS) <= DROP_REASONS


WRONG_IDS: Final = (0, 1, 2 << 32, (1 << 64) - 1, 0xFFFFFFFF, 1 << 32 | 999_999, 7 << 24)


@pytest.mark.parametrize("wrong", WRONG_IDS)
def test_an_unknown_number_is_an_error(world: World, wrong: int) -> None:
    pump, ours = world.pump, world.pair()[0]
    table, outlet = pump.table(plane.ALL_ALIKE), pump.outlet(0)
    calls: list[Callable[[], object]] = [
        lambda: pump.halt(wrong),
        lambda: pump.free(wrong),
        lambda: pump.learn(wrong, frame(packet(1, 2)), _pump.DEVICE, 0),
        lambda: pump.verdicts(wrong),
        lambda: pump.forget(wrong),
        lambda: pump.attach(wrong, ours.fileno(), 1),
        lambda: pump.detach(wrong),
        lambda: pump.failure(wrong),
        lambda: pump.waiting(wrong),
        lambda: pump.busy(wrong, True),
        lambda: pump.reader((ours.fileno(),), wrong, slab(), 1000, 0),
        lambda: pump.inlet(ours.fileno(), outlet, wrong, mmap(-1, BUFFER_BYTES), 0, 0, 0, False),
        lambda: pump.inlet(ours.fileno(), wrong, table, mmap(-1, BUFFER_BYTES), 0, 0, 0, False),
        lambda: pump.state(wrong),
    ]
    for call in calls:
        with pytest.raises(LookupError):
            call()


def test_a_number_of_another_kind_is_an_error(world: World) -> None:
    pump, ours = world.pump, world.pair()[0]
    table, outlet, port = pump.table(plane.ALL_ALIKE), pump.outlet(0), pump.port()
    for call in (
        lambda: pump.learn(port, frame(packet(1, 2)), _pump.DEVICE, 0),
        lambda: pump.verdicts(outlet),
        lambda: pump.forget(port),
        lambda: pump.attach(table, ours.fileno(), 1),
        lambda: pump.detach(outlet),
        lambda: pump.failure(outlet),
        lambda: pump.waiting(table),
        lambda: pump.busy(table, True),
        lambda: pump.reader((ours.fileno(),), port, slab(), 1000, 0),
        lambda: pump.inlet(ours.fileno(), table, outlet, mmap(-1, BUFFER_BYTES), 0, 0, 0, False),
        lambda: pump.state(port),
    ):
        with pytest.raises(LookupError):
            call()


def test_a_freed_number_never_comes_back(world: World) -> None:
    pump = world.pump
    seen: set[int] = set()
    for _ in range(100):
        number = pump.port()
        assert number not in seen
        seen.add(number)
        pump.free(number)
        with pytest.raises(LookupError):
            pump.waiting(number)


def test_wrong_types_are_errors(world: World) -> None:
    pump = world.pump
    table = pump.table(plane.ALL_ALIKE)
    for name in dir(pump):
        if name.startswith("_"):
            continue
        method = getattr(pump, name)
        calls: list[tuple[object, ...]] = [("x",), (None, None), (table, "x", None, 1.5), (1.5,), (object(),) * 8]
        if name not in ("wait", "outlet"):  # which take any number
            calls += [(-1,), (1 << 64,)]
        for arguments in calls:
            with pytest.raises((TypeError, ValueError, LookupError, OverflowError)):
                method(*arguments)


@pytest.mark.parametrize(
    "rules",
    [
        [],
        (1,),
        ((),),
        (((), (), ()),),
        (([], ()),),
        (((1,), ()),),
        ((((1, 2),), ()),),
        ((((1, 256, 0),), ()),),
        (((), ((1,),)),),
        (((), (("a", 1),)),),
    ],
)
def test_rules_of_a_wrong_shape(world: World, rules: object) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError, SystemError)):
        world.pump.table(rules)  # type: ignore[arg-type]
    assert world.pump.port() & 0xFFFFFFFF == 0, "the table is there all the same"


@pytest.mark.parametrize(
    "rules",
    [
        (((), ()),) * 9,
        ((((0, 0, 0),) * 9, ()),),
        (((), ((0, 1),) * 5),),
        (((), ((0, KEY_BYTES + 1),)),),
        (((), ((0, 20), (0, 20), (0, 1))),),
        (((), ((0, 65535),) * 4),),
    ],
)
def test_too_many_rules_guards_pieces_or_bytes(world: World, rules: tuple[Rule, ...]) -> None:
    with pytest.raises(ValueError, match="too many"):
        world.pump.table(rules)


def test_as_many_as_there_may_be(world: World) -> None:
    rule: Rule = (((HEADER_BYTES, 0, 0),) * 8, ((HEADER_BYTES, 10),) * 4)
    table = world.pump.table((rule,) * 8)
    assert world.pump.learn(table, frame(packet(1, 2)), _pump.DEVICE, 0)
    [(number, key, *_)] = world.pump.verdicts(table)
    assert (number, key) == (0, packet(1, 2)[:10] * 4)


def test_a_buffer_that_is_too_small(world: World) -> None:
    pump, ours = world.pump, world.pair()[0]
    table, outlet = pump.table(plane.ALL_ALIKE), pump.outlet(0)
    for size, head, tail in [
        (3 * MAX_FRAME_BYTES - 1, 0, 0),
        (BUFFER_BYTES, -1, 0),
        (BUFFER_BYTES, 5, 4),
        (BUFFER_BYTES, 0, BUFFER_BYTES + 1),
        (BUFFER_BYTES, 0, MAX_FRAME_BYTES),
    ]:
        with pytest.raises(ValueError, match="no state"):
            pump.inlet(ours.fileno(), outlet, table, mmap(-1, size), head, tail, 0, False)
    for size, burst in [(1000, 0), (_pump.MAX_FRAME_BYTES + 999, 1000), (1 << 20, 1 << 31)]:
        with pytest.raises(ValueError, match="too small a slab"):
            pump.reader((ours.fileno(),), table, mmap(-1, size), burst, 0)
    with pytest.raises(ValueError, match="too many queues"):
        pump.reader((), table, slab(), 1000, 0)
    with pytest.raises(ValueError, match="too many queues"):
        pump.reader((ours.fileno(),) * (_pump.MAX_QUEUES + 1), table, slab(), 1000, 0)
    for wrong in (bytes(BUFFER_BYTES), None, 5):
        with pytest.raises((TypeError, BufferError)):
            pump.inlet(ours.fileno(), outlet, table, wrong, 0, 0, 0, False)  # type: ignore[arg-type]
        with pytest.raises((TypeError, BufferError)):
            pump.reader((ours.fileno(),), table, wrong, 1000, 0)  # type: ignore[arg-type]
    world.pump.inlet(ours.fileno(), outlet, table, mmap(-1, BUFFER_BYTES), 0, 0, 0, False)  # nothing is watched yet


def test_a_buffer_cannot_go_while_it_is_lent(world: World) -> None:
    outlet, table = world.pump.outlet(0), world.pump.table(plane.ALL_ALIKE)
    inlet, _, buffer = inlet_of(world, outlet, table)
    with pytest.raises(BufferError):
        buffer.close()
    world.pump.free(inlet)
    buffer.close()


def test_descriptors_that_cannot_be_watched(world: World) -> None:
    pump, ours = world.pump, world.pair()[0]
    table, outlet, port = pump.table(plane.ALL_ALIKE), pump.outlet(0), pump.port()
    with pytest.raises(OSError):
        pump.attach(port, 999_999, 1)
    with pytest.raises(ValueError):
        pump.attach(port, -1, 1)
    with pytest.raises(OSError):
        pump.inlet(999_999, outlet, table, mmap(-1, BUFFER_BYTES), 0, 0, 0, False)
    with pytest.raises(OSError):
        pump.reader((ours.fileno(), 999_999), table, slab(), 1000, 0)
    reader = pump.reader((ours.fileno(),), table, slab(), 1000, 0)  # it was given back
    pump.free(reader)
    pump.attach(port, ours.fileno(), 1)
    with pytest.raises(ValueError, match="attached already"):
        pump.attach(port, ours.fileno(), 1)


def test_a_second_reader_of_a_queue_does_not_disturb_the_first(world: World) -> None:
    """It is refused, and leaves the first one's descriptors watched."""
    pump, tun = world.pump, world.tun()
    table, fd = pump.table(plane.ALL_ALIKE), tun.device.fileno()
    pump.reader((fd,), table, slab(), 1000, 0)
    other = world.tun().device.fileno()
    with pytest.raises(FileExistsError):
        pump.reader((other, fd), table, slab(), 1000, 0)
    tun.send(bytes(12) + packet(1, 2))
    events, _ = world.wait(most_ns=SOON_NS)
    assert [what for what, *_ in events] == [_pump.FRAMES]


def test_a_burst_is_where_the_kernel_copies_it_fast(world: World) -> None:
    """Further into a page than the head of a chunk, or of a WebSocket frame (RFC 6455 section 5.2), is long."""
    assert max(len(chunk_head(1 << 24)), 14) <= SLAB_START
    pump, tun = world.pump, world.tun()
    pump.reader((tun.device.fileno(),), pump.table(plane.ALL_ALIKE), slab(), plane.BURST_BYTES, 0)
    tun.send(bytes(12) + packet(1, 2))
    [(_, _, frames)], _ = world.wait(most_ns=SOON_NS)
    assert isinstance(frames, list)
    assert frames[0][0] == SLAB_START


def test_a_buffer_is_used_from_its_start_again_after_a_whole_chunk(world: World) -> None:
    pump, tun = world.pump, world.tun()
    table, outlet = pump.table(plane.ALL_ALIKE), pump.outlet(tun.device.fileno())
    inlet, far, _ = inlet_of(world, outlet, table)
    data = chunk(frame(packet(1, 2)))
    for _ in range(3):
        far.send(data)
        world.wait(most_ns=SOON_NS)
        head, tail, pos, end, left, after_payload, *_ = pump.state(inlet)
        assert (head, left, after_payload) == (tail, 0, 0)
        assert pos == end == len(data)


def test_a_pump_never_leaks_its_epoll() -> None:
    """There is none without one."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    pump = _pump.Pump(-1)
    with pytest.raises(TypeError):
        _pump.Pump.__new__(_pump.Pump)
    with pytest.raises(OSError):
        _pump.Pump(999_999)
    with pytest.raises(TypeError):
        _pump.Pump()  # type: ignore[call-arg]
    del pump
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_thousands_of_objects_and_then_none(world: World) -> None:
    pump = world.pump
    for _ in range(3):
        numbers = [pump.port() for _ in range(3000)] + [pump.table(plane.BY_ADDRESSES) for _ in range(1000)]
        assert len(set(numbers)) == len(numbers)
        for number in numbers:
            pump.free(number)


def test_a_pump_goes_with_everything_in_it() -> None:
    """Whatever is lent, attached, blocked or waiting."""
    world = World()
    pump, tun = world.pump, world.tun()
    port, table, outlet = pump.port(), pump.table(plane.ALL_ALIKE), pump.outlet(tun.device.fileno())
    ours, _ = world.pair(sndbuf=4096)
    pump.attach(port, ours.fileno(), 1000)
    pump.learn(table, frame(packet(1, 2)), _pump.TO_PORT, port)
    pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, port)
    _, far, _ = inlet_of(world, outlet, table)
    for _ in range(100):
        tun.send(bytes(12) + packet(1, 2, 1400))
    far.send(chunk(frame(packet(1, 2)) * 2000)[:100_000])
    world.wait()
    assert pump.waiting(port)
    del pump
    world.close()


def test_a_closed_pump_has_no_descriptor_and_answers_for_what_is_left(world: World) -> None:
    """Its objects may outlive it: a full port with the rest of a burst, an inlet within a frame, and their counts."""
    pump, tun = world.pump, world.tun()
    port, table, outlet = pump.port(), pump.table(plane.BY_ADDRESSES), pump.outlet(tun.device.fileno())
    ours, far = world.pair(sndbuf=4096)
    pump.attach(port, ours.fileno(), 1000)
    pump.learn(table, frame(packet(1, 2)), _pump.TO_PORT, port)
    reader = pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, port)
    inlet, sender, _ = inlet_of(world, outlet, table)
    for _ in range(60):
        tun.send(bytes(12) + packet(1, 2, 1400))
    sender.send(chunk(frame(packet(3, 4)))[:30])
    world.wait()
    waiting, state = pump.waiting(port), pump.state(inlet)
    assert waiting
    assert state[1] > state[0], "it is not within a frame"
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        pump.close()
        assert len(os.listdir("/proc/self/fd")) == before - 1

    with pytest.raises(OSError, match="Bad file descriptor"):
        world.wait()
    for call in (
        lambda: pump.attach(pump.port(), ours.fileno(), 1000),
        lambda: pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, 0),
        lambda: inlet_of(world, outlet, table),
    ):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()

    assert pump.state(inlet) == state
    assert pump.waiting(port) == waiting
    assert pump.failure(port) == 0
    [sent] = [packets for number, packets, *_ in pump.counts() if number == port]
    pump.halt(reader)
    pump.free(reader)
    whole = drain(far) + pump.detach(port)
    assert whole.count(packet(1, 2, 1400)) == sent
    assert whole.endswith(b"\r\n")
    assert pump.detach(port) == b""
    assert pump.learn(table, frame(packet(5, 6)), _pump.DROP, 0)
    assert len(pump.verdicts(table)) == 2
    pump.forget(table)
    pump.busy(outlet, True)
    for number in (port, table, outlet, inlet):
        pump.free(number)
        with pytest.raises(LookupError):
            pump.free(number)


# ------------------------------------------------------------------ keys


def learned(world: World, rules: tuple[Rule, ...], data: bytes) -> tuple[int, bytes] | None:
    """The rule and the key of a frame, as the pump says."""
    table = world.pump.table(rules)
    try:
        if not world.pump.learn(table, data, _pump.DEVICE, 0):
            assert world.pump.verdicts(table) == []
            return None
        [(rule, key, *_)] = world.pump.verdicts(table)
        return rule, key
    finally:
        world.pump.free(table)


def key_by_hand(rules: tuple[Rule, ...], data: bytes) -> tuple[int, bytes] | None:
    for number, (guards, pieces) in enumerate(rules):
        if all(at < len(data) and data[at] & mask == value for at, mask, value in guards) and all(
            at + size <= len(data) for at, size in pieces
        ):
            return number, b"".join(data[at : at + size] for at, size in pieces).ljust(KEY_BYTES, b"\0")
    return None


def test_ipv6_goes_by_32_bytes_of_addresses(world: World) -> None:
    six = struct.pack("!IHBB", 0x60000000, 8, 17, 64) + bytes(range(32)) + bytes(8)
    assert learned(world, (IPV6,), frame(six)) == (0, bytes(range(32)).ljust(KEY_BYTES, b"\0"))
    assert learned(world, (IPV6,), frame(packet(1, 2))) is None
    assert learned(world, (IPV6,), frame(six[:39])) is None, "its addresses are not all there"


def test_layer_2_goes_by_both_addresses_of_the_ethernet_header(world: World) -> None:
    ethernet = bytes(range(1, 13)) + b"\x08\x00" + packet(1, 2)
    assert learned(world, (ETHERNET,), frame(ethernet)) == (0, bytes(range(1, 13)).ljust(KEY_BYTES, b"\0"))


def tcp(flags: int, *, first: int = 0x45, fragment: int = 0, protocol: int = 6) -> bytes:
    header = struct.pack("!HHIIBBHHH", 443, 51000, 1, 2, 5 << 4, flags, 1000, 0, 0)
    data = bytearray(ipv4("10.0.0.1", "10.0.0.2", header, protocol))
    data[0], data[6:8] = first, fragment.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("flags", range(64))
def test_a_5_tuple_leaves_what_opens_and_ends_a_flow_to_python(world: World, flags: int) -> None:
    syn_fin_rst = flags & 0b111
    found = learned(world, (TCP_FLOW, UDP_FLOW), frame(tcp(flags)))
    if syn_fin_rst:
        assert found is None
    else:
        key = b"\x06" + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack("!HH", 443, 51000)
        assert found == (0, key.ljust(KEY_BYTES, b"\0"))


def test_a_5_tuple_is_for_whole_packets_without_options(world: World) -> None:
    rules = (TCP_FLOW, UDP_FLOW)
    assert learned(world, rules, frame(tcp(0x10, first=0x46))) is None
    assert learned(world, rules, frame(tcp(0x10, fragment=0x2000))) is None, "more fragments follow"
    assert learned(world, rules, frame(tcp(0x10, fragment=1))) is None, "a later fragment: no ports"
    assert learned(world, rules, frame(tcp(0x10, fragment=0x4000))) is not None, "must not be fragmented: it is whole"
    assert learned(world, rules, frame(tcp(0x10, protocol=17))) is not None, "the second rule"
    assert learned(world, rules, frame(tcp(0x10, protocol=1))) is None
    assert learned(world, rules, frame(tcp(0x10)[:33])) is None, "its flags are not there"


guards = st.tuples(st.integers(0, 60), st.sampled_from([0, 1, 0x0F, 0xF0, 0xFF]), st.sampled_from([0, 1, 0x40, 0x45]))
pieces = st.tuples(st.integers(0, 60), st.integers(0, 10))
rule_sets = st.lists(
    st.tuples(st.lists(guards, max_size=3).map(tuple), st.lists(pieces, max_size=4).map(tuple)), max_size=4
).map(tuple)


@given(
    rule_sets, st.one_of(st.binary(max_size=64), st.binary(max_size=40).map(lambda data: bytes(14) + b"\x45" + data))
)
def test_any_key_is_as_by_hand(rules: tuple[Rule, ...], data: bytes) -> None:
    world = World()
    assert learned(world, rules, data) == key_by_hand(rules, data)
    world.close()


# ------------------------------------------------------------------ verdicts


def test_a_verdict_is_replaced_and_forgotten(world: World) -> None:
    pump, table = world.pump, world.pump.table(plane.BY_ADDRESSES)
    data = frame(packet(1, 2))
    before_ns = time.monotonic_ns()
    for way, target in [(_pump.DEVICE, 0), (_pump.DROP, 3), (_pump.TO_PORT, 77)]:
        assert pump.learn(table, data, way, target)
        [(rule, key, kept, where, hits, used_ns)] = pump.verdicts(table)
        assert (rule, kept, where, hits) == (0, way, target, 0)
        assert key == packet(1, 2)[12:20].ljust(KEY_BYTES, b"\0")
        assert before_ns <= used_ns <= time.monotonic_ns()
    pump.forget(table)
    assert pump.verdicts(table) == []
    pump.forget(table)
    assert pump.learn(table, memoryview(data), _pump.DEVICE, 0)
    assert len(pump.verdicts(table)) == 1


@pytest.mark.parametrize("way", [-1, 0, 4, 1 << 20])
def test_no_such_verdict(world: World, way: int) -> None:
    table = world.pump.table(plane.BY_ADDRESSES)
    with pytest.raises(ValueError, match="no such verdict"):
        world.pump.learn(table, frame(packet(1, 2)), way, 0)
    with pytest.raises(ValueError, match="no such verdict"):
        world.pump.learn(table, frame(packet(1, 2)), _pump.DROP, DROP_REASONS)


@pytest.mark.parametrize("size", range(HEADER_BYTES + MIN_PACKET_BYTES))
def test_a_frame_that_is_too_short_has_no_key(world: World, size: int) -> None:
    """Nothing is read behind its end (under ASan, which the suite also runs under)."""
    data = frame(packet(1, 2))[:size]
    table = world.pump.table(plane.BY_ADDRESSES)
    assert not world.pump.learn(table, data, _pump.DEVICE, 0)


def test_a_table_grows_and_keeps_what_it_knows(world: World) -> None:
    """Up to half full it loses nothing but what has no place within eight slots of its own, which is rare."""
    pump, table, number = world.pump, world.pump.table(plane.BY_ADDRESSES), 1000
    for n in range(number):
        pump.learn(table, frame(packet(1, n)), _pump.DROP, n % 8)
    kept = {key[:8]: target for _, key, _, target, _, _ in pump.verdicts(table)}
    assert len(kept) > number * 0.95
    assert all(kept.get(packet(1, n)[12:20], n % 8) == n % 8 for n in range(number))


def test_a_table_has_a_limit_and_then_forgets_old_verdicts(world: World) -> None:
    pump, table = world.pump, world.pump.table(plane.BY_ADDRESSES)
    for n in range(5 * MAX_VERDICTS):
        data = frame(packet(2, n))
        assert pump.learn(table, data, _pump.DROP, n % 8)
        if n % 1000 == 0:
            assert len(pump.verdicts(table)) <= MAX_VERDICTS
    rows = pump.verdicts(table)
    assert MAX_VERDICTS * 0.9 < len(rows) <= MAX_VERDICTS
    keys = [row[1] for row in rows]
    assert len(set(keys)) == len(keys), "a key has two verdicts"
    assert packet(2, 5 * MAX_VERDICTS - 1)[12:20].ljust(KEY_BYTES, b"\0") in keys, "the newest is there"
    for _, key, _, target, _, _ in rows:
        assert target == int.from_bytes(key[5:8], "big") % 8


def test_what_was_learned_last_decides_in_a_full_table(world: World) -> None:
    """Also where other verdicts had to go for it."""
    pump, tun = world.pump, world.tun()
    table = pump.table(plane.BY_ADDRESSES)
    reader = pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, 0)
    for n in range(3 * MAX_VERDICTS):
        pump.learn(table, frame(packet(2, n)), _pump.DROP, 0)
    tun.send(bytes(12) + packet(2, 3 * MAX_VERDICTS - 1))
    assert world.wait()[0] == []
    assert pump.counts() == [(reader, 0, 0, 0, drops_of({0: 1}))]


def test_hits_and_last_use(world: World) -> None:
    """So that whoever ages verdicts can ask."""
    pump, tun = world.pump, world.tun()
    table = pump.table(plane.BY_ADDRESSES)
    reader = pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, 0)
    for n in (1, 2):
        pump.learn(table, frame(packet(1, n)), _pump.DROP, n)
    learned_ns = time.monotonic_ns()
    for _ in range(5):
        tun.send(bytes(12) + packet(1, 2))
    world.wait()
    rows = {target: (hits, used_ns) for _, _, _, target, hits, used_ns in pump.verdicts(table)}
    assert rows[1][0] == 0
    assert rows[2][0] == 5
    assert rows[1][1] <= learned_ns <= rows[2][1] <= time.monotonic_ns()
    assert pump.counts() == [(reader, 0, 0, 0, drops_of({2: 5}))]
    assert pump.counts() == []


def test_hits_stay_when_the_same_is_learned_again(world: World) -> None:
    """Python is shown known flows, too, and tells again what it has decided."""
    pump, tun = world.pump, world.tun()
    table = pump.table(plane.BY_ADDRESSES)
    pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, 0)
    pump.learn(table, frame(packet(1, 2)), _pump.DROP, 1)
    tun.send(bytes(12) + packet(1, 2))
    world.wait()
    pump.learn(table, frame(packet(1, 2)), _pump.DROP, 1)
    assert [hits for *_, hits, _ in pump.verdicts(table)] == [1]
    pump.learn(table, frame(packet(1, 2)), _pump.DROP, 2)
    assert [hits for *_, hits, _ in pump.verdicts(table)] == [0]


def test_a_table_may_go_while_its_verdicts_are_listed(world: World) -> None:
    """The garbage collector may run whatever it likes while the list grows; so may it free a table."""
    pump, table = world.pump, world.pump.table(plane.BY_ADDRESSES)
    for n in range(3000):
        pump.learn(table, frame(packet(1, n)), _pump.DROP, 0)
    runs = 0

    def free(phase: str, info: dict[str, int]) -> None:
        nonlocal runs
        runs += 1
        if runs == 20:
            pump.free(table)

    before = gc.get_threshold()
    gc.callbacks.append(free)
    try:
        gc.set_threshold(50)
        with pytest.raises(LookupError):
            pump.verdicts(table)
        assert runs >= 20
    finally:
        gc.callbacks.remove(free)
        gc.set_threshold(*before)


def test_ports_may_go_while_their_counts_are_listed(world: World) -> None:
    """As above: the owner of a port may be garbage."""
    pump, outlet, table = world.pump, world.pump.outlet(0), world.pump.table(plane.BY_ADDRESSES)
    ports = [pump.port() for _ in range(100)]
    far_ends = []
    for number, port in enumerate(ports):
        ours, far = world.pair()
        pump.attach(port, ours.fileno(), 1000)
        pump.learn(table, frame(packet(1, number)), _pump.TO_PORT, port)
        far_ends.append(far)
    _, sender, _ = inlet_of(world, outlet, table)
    for number in range(100):
        sender.send(chunk(frame(packet(1, number))))
        world.wait()
    sent = sum(map(bool, map(drain, far_ends)))
    assert sent > 60, "a table may lose a verdict or two"
    freed = False

    def free(phase: str, info: dict[str, int]) -> None:
        nonlocal freed
        if not freed:
            freed = True
            for port in ports:
                pump.free(port)

    before = gc.get_threshold()
    gc.collect()
    gc.callbacks.append(free)
    try:
        gc.set_threshold(50)
        rows = pump.counts()
    finally:
        gc.callbacks.remove(free)
        gc.set_threshold(*before)
    assert freed
    assert 0 < len(rows) < sent
    assert {packets for number, packets, *_ in rows if number in ports} == {1}
    assert pump.counts() == []


# ------------------------------------------------------------------ vnet headers


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Frames whose vnet headers are nearly right."""
    size = draw(st.sampled_from([20, 40, 41, 60, 1500, 16384, 65535]))
    ihl = draw(st.sampled_from([5, 5, 5, 6, 0, 4, 15]))
    mostly = st.one_of(
        st.sampled_from([0, 8, 16, 19, 20, 24, 40, 60, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, MIN_GSO_BYTES - 1, size]),
        st.integers(0, 0xFFFF),
    )
    flags = draw(st.sampled_from([0, 1, 1, 2, 3, 4, 0x80]))
    gso = draw(st.sampled_from([0, GSO_TCPV4, GSO_TCPV4, GSO_TCPV4 | GSO_ECN, 3, 4, 5, 0xFF]))
    hdr_len, gso_size, offset = draw(mostly), draw(mostly), draw(st.one_of(st.just(16), mostly))
    start = draw(st.one_of(st.just(ihl * 4), mostly))
    protocol = draw(st.sampled_from([6, 6, 17]))
    length = draw(st.one_of(st.just(size), st.integers(0, 0xFFFF)))
    head = struct.pack("<HBBHHHHH", length, flags, gso, hdr_len, gso_size, start, offset, 0)
    return head + bytes([0x40 | ihl]) + bytes(8) + bytes([protocol]) + bytes(size - 10)


@st.composite
def headers6(draw: st.DrawFn) -> bytes:
    """The same of IPv6, maybe with extension headers, whole or not."""
    size = draw(st.sampled_from([1500, 1500, 65535, 20, 39, 40, 59, 60, 68, 100]))
    kinds = draw(st.lists(st.sampled_from([0, 43, 60, 60, 44]), max_size=3))
    units = [draw(st.sampled_from([0, 0, 1, 9, 255])) for _ in kinds]
    last = draw(st.sampled_from([6, 6, 6, 17]))
    following = zip([*kinds[1:], last], units, strict=False)
    extensions = b"".join(bytes([kind, long]) + bytes(6 + 8 * long) for kind, long in following)
    odd = st.sampled_from([0, 8, 20, 39, 40, 48, 60, 0x7FFF, 0x8000, 0xFFFF, MIN_GSO_BYTES - 1, size])
    wrong = draw(st.sampled_from([None, None, "flags", "gso", "hdr_len", "gso_size", "start", "offset", "length"]))

    def field(name: str, right: int, others: st.SearchStrategy[int] = odd) -> int:
        return draw(others) if wrong == name else right

    flags = field("flags", 1, st.sampled_from([0, 2, 3, 4]))
    gso = field("gso", GSO_TCPV6, st.sampled_from([0, GSO_TCPV6 | GSO_ECN, GSO_TCPV4, 5]))
    hdr_len, gso_size = field("hdr_len", 0), field("gso_size", 1400)
    start, offset = field("start", 40 + len(extensions)), field("offset", 16)
    length = field("length", size, st.integers(0, 0xFFFF))
    head = struct.pack("<HBBHHHHH", length, flags, gso, hdr_len, gso_size, start & 0xFFFF, offset, 0)
    ip_header = bytes([0x60 | draw(st.integers(0, 15))]) + bytes(5) + bytes([*kinds, last][:1]) + bytes(33)
    return head + (ip_header + extensions).ljust(size, b"\0")[:size]


def test_vnet_headers_of_ipv6_are_judged_as_in_python() -> None:
    valid_ones = 0

    @settings(max_examples=600)
    @given(headers6())
    def check(data: bytes) -> None:
        nonlocal valid_ones
        valid = validate_vnet_header(memoryview(data))
        assert _pump.Pump.valid(data) == valid
        valid_ones += valid and data[3] != 0

    check()
    assert valid_ones >= 20  # so it compares more than refusals


@settings(max_examples=400)
@given(headers())
def test_vnet_headers_are_judged_as_in_python(data: bytes) -> None:
    assert _pump.Pump.valid(data) == validate_vnet_header(memoryview(data))


@settings(max_examples=100)
@given(st.binary(min_size=HEADER_BYTES + MIN_PACKET_BYTES, max_size=80))
def test_any_vnet_header_is_judged_as_in_python(data: bytes) -> None:
    assert _pump.Pump.valid(data) == validate_vnet_header(memoryview(data))


@pytest.mark.parametrize("size", range(HEADER_BYTES + MIN_PACKET_BYTES))
def test_no_vnet_header_of_a_short_frame_is_valid(size: int) -> None:
    assert not _pump.Pump.valid(bytes(size))


# ------------------------------------------------------------------ frames


def test_what_was_shown_stays_until_python_has_seen_it(world: World) -> None:
    """One receive brings more frames than one turn takes. The rest of them is found while more has come; what is shown
    of it must not be received over."""
    pump, tun = world.pump, world.tun()
    table, outlet = pump.table(plane.BY_ADDRESSES), pump.outlet(tun.device.fileno())
    known, unknown = frame(packet(1, 1, 20)), frame(packet(1, 2, 20))
    pump.learn(table, known, _pump.DROP, 0)
    inlet, far, buffer = inlet_of(world, outlet, table)
    # So much that the buffer has to be cleared for the next receive; in the last of six turns something is to be shown.
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert far.send(body := chunk(known * 5 * 1024 + unknown * 900)) == len(body) > BUFFER_BYTES - MAX_FRAME_BYTES
    for _ in range(5):
        assert world.wait()[0] == []
    far.send(chunk(b"\xee" * 200_000))
    [(what, number, detail)] = world.wait()[0]
    assert (what, number) == (_pump.FRAMES, inlet)
    assert b"".join(buffer[start:stop] for start, stop, _ in detail) == unknown * 900  # type: ignore[attr-defined]


def test_a_full_socket_holds_the_reader_of_its_only_sender(world: World) -> None:
    """Nothing is read meanwhile, nothing is lost, and Python is told after a while."""
    pump, tun = world.pump, world.tun()
    table, port = pump.table(plane.ALL_ALIKE), pump.port()
    ours, far = world.pair(sndbuf=4096)
    pump.attach(port, ours.fileno(), 1000)
    pump.learn(table, frame(packet(1, 2)), _pump.TO_PORT, port)
    reader = pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, port)
    sent = [packet(1, n, 1400) for n in range(100)]
    for data in sent:
        assert tun.send(bytes(12) + data)
    events, _ = world.wait(most_ns=SOON_NS)
    assert [event[:2] for event in events] == [(_pump.BLOCKED, port)]
    body = drain(far) + pump.detach(port)
    pump.free(reader)
    while tail := drain(far):
        body += tail
    frames = b"".join(map(frame, sent))
    taken = len(frames) - sum(len(frame(data)) for data in sent[body.count(sent[0][:4]) :])
    assert body == chunk(frames[:taken])
    [(number, packets, packets_bytes, _, _)] = [row for row in pump.counts() if row[0] == port]
    assert (number, packets, packets_bytes) == (port, taken // (1400 + HEADER_BYTES), taken // 1414 * 1400)


def test_a_break_is_told_as_a_break_however_late(world: World) -> None:
    """Also where the socket was full for so long that it would be time to tell that."""
    pump, tun = world.pump, world.tun()
    table, port = pump.table(plane.ALL_ALIKE), pump.port()
    ours, far = world.pair(sndbuf=4096)
    pump.attach(port, ours.fileno(), 1000)
    pump.learn(table, frame(packet(1, 2)), _pump.TO_PORT, port)
    pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, port)
    for n in range(60):
        tun.send(bytes(12) + packet(1, n, 1400))
    assert world.wait()[0] == []
    assert pump.waiting(port)
    far.close()
    time.sleep(0.05)  # longer than STALLED_NS, or this proves nothing
    events, _ = world.wait()
    assert [event[:2] for event in events] == [(_pump.FAILED, port)]


def test_a_reader_that_goes_leaves_what_was_lent(world: World) -> None:
    """The slab belongs to whoever reads; what the socket has not taken of it is copied before it goes."""
    pump, tun = world.pump, world.tun()
    table, port, memory = pump.table(plane.ALL_ALIKE), pump.port(), slab()
    ours, far = world.pair(sndbuf=4096)
    pump.attach(port, ours.fileno(), 1000)
    pump.learn(table, frame(packet(1, 2)), _pump.TO_PORT, port)
    reader = pump.reader((tun.device.fileno(),), table, memory, plane.BURST_BYTES, port)
    for n in range(60):
        tun.send(bytes(12) + packet(1, n, 1400))
    world.wait()
    waiting = pump.waiting(port)
    assert waiting
    pump.free(reader)
    memory[:] = bytes(len(memory))
    memory.close()
    assert pump.waiting(port) == waiting
    body = b""
    while pump.waiting(port):
        body += drain(far)
        world.wait()
    body += drain(far)
    assert body == chunk(b"".join(frame(packet(1, n, 1400)) for n in range(60)))


def test_a_failure_is_known_after_the_socket_was_taken_back(world: World) -> None:
    """Python may take it back before it has seen the event. A chunk that was begun must not be followed by another."""
    pump, tun = world.pump, world.tun()
    table, port = pump.table(plane.ALL_ALIKE), pump.port()
    ours, far = world.pair()
    pump.attach(port, ours.fileno(), 1000)
    pump.learn(table, frame(packet(1, 2)), _pump.TO_PORT, port)
    pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, port)
    far.close()
    tun.send(bytes(12) + packet(1, 2))
    events, _ = world.wait()
    assert (_pump.FAILED, port, errno.EPIPE) in events
    pump.detach(port)
    assert pump.failure(port) == errno.EPIPE
    pump.attach(port, world.pair()[0].fileno(), 1000)
    assert pump.failure(port) == 0


def test_trio_is_woken_for(world: World) -> None:
    """What the other epoll holds ends the wait."""
    other, far = world.pair()
    with select.epoll() as epoll:
        epoll.register(other.fileno(), select.EPOLLIN)
        pump = _pump.Pump(epoll.fileno())
        assert pump.wait(0) == ([], _pump.EXPIRED)
        far.send(b"x")
        assert pump.wait(time.monotonic_ns() + SOON_NS) == ([], _pump.TRIO_READY)


def test_other_threads_run_while_it_waits(world: World) -> None:
    """Only another thread can end this wait, and only while this one does not hold the GIL: Python would not take it
    away before the wait is over."""
    pump = world.pump
    inlet, far, _ = inlet_of(world, pump.outlet(world.tun().device.fileno()), pump.table(plane.ALL_ALIKE))
    begun, go, ran = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        begun.set()
        go.wait()
        ran.set()
        far.close()

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    try:
        sys.setswitchinterval(1000)  # s; or this thread might be interrupted between these two lines
        thread.start()
        begun.wait()
        go.set()
        assert not ran.is_set()
        events, flags = world.wait(most_ns=SOON_NS)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert ([event[:2] for event in events], flags) == ([(_pump.ENDED, inlet)], 0)


# ------------------------------------------------------------------ there is no memory


def without_memory(call: Callable[[], object], number: int) -> tuple[object, bool]:
    """Call, where allocation ``number`` (from 1) of Python's memory fails. Returns the result, and whether it raised
    MemoryError."""
    _testcapi = importlib.import_module("_testcapi")  # of CPython's own tests; Debian has it in libpython3-stdlib
    failure: BaseException | None = None
    result: object = None
    # A tracer (coverage) must not be the one that finds no memory: it would never trace again, nor would a profiler.
    tracer = sys.gettrace()
    sys.settrace(None)
    _testcapi.set_nomemory(number, number + 1)
    try:
        result = call()
    except MemoryError as exc:
        failure = exc
    finally:
        _testcapi.remove_mem_hooks()
        sys.settrace(tracer)
    return result, failure is not None


def test_no_memory_for_an_event(world: World) -> None:
    """Wherever in a turn: what is not told is counted, nothing else is lost, and Python hears that something was."""
    met = 0
    for number in range(1, 60):
        pump, tun = world.pump, world.tun()
        table, port = pump.table(plane.ALL_ALIKE), pump.port()
        outlet = pump.outlet(tun.device.fileno())
        lost, far = world.pair()
        pump.attach(port, lost.fileno(), 1000)
        inlet, sender, memory = inlet_of(world, outlet, table)
        ended, closed, _ = inlet_of(world, outlet, table)
        source = world.tun()
        reader = pump.reader((source.device.fileno(),), table, slab(), plane.BURST_BYTES, 0)
        frames = [frame(packet(1, n)) for n in range(3)]
        sender.send(chunk(b"".join(frames)))
        closed.close()
        for n in range(2):
            source.send(bytes(12) + packet(9, n))
        deadline = time.monotonic_ns()
        wait = pump.wait
        outcome, failed = without_memory(lambda wait=wait, deadline=deadline: wait(deadline), number)  # type: ignore[misc]
        if failed:  # before it did anything
            outcome = wait(time.monotonic_ns())
        assert isinstance(outcome, tuple)
        events, flags = outcome
        short = bool(flags & _pump.SHORT)
        shown = {ident: sum(count for *_, count in detail) for what, ident, detail in events if what == _pump.FRAMES}
        drops = {ident: row[4] for ident, *_, row in pump.counts() if row is not None}
        assert shown.get(inlet, 0) + drops.get(inlet, 0) == 3
        assert shown.get(reader, 0) + drops.get(reader, 0) == 2
        whole = {inlet, reader} == set(shown) and (_pump.ENDED, ended) in [event[:2] for event in events]
        assert short == (not whole)
        met += short
        # Python ends all loans then, and the state of each is whole.
        for loan in (inlet, ended, reader):
            pump.halt(loan)
        assert pump.state(inlet)[:2] == (sum(map(len, frames)) + len(chunk_head(sum(map(len, frames)))),) * 2
        for loan in (inlet, ended, reader, outlet, port, table):
            pump.free(loan)
        del memory
        far.close()
    assert met >= 3


def test_no_memory_for_counts(world: World) -> None:
    """What cannot be told now is told later, and nothing twice."""
    failures = 0
    for number in range(1, 30):
        pump, tun = world.pump, world.tun()
        table = pump.table(plane.ALL_ALIKE)
        outlet = pump.outlet(tun.device.fileno())
        pump.learn(table, frame(packet(1, 2)), _pump.DEVICE, 0)
        inlets = []
        for _ in range(3):
            inlet, far, _ = inlet_of(world, outlet, table)
            far.send(chunk(frame(packet(1, 2)) * 2))
            inlets.append(inlet)
        world.wait()
        counts = pump.counts
        outcome, failed = without_memory(lambda counts=counts: counts(), number)  # type: ignore[misc]
        rows = [] if failed else list(outcome)  # type: ignore[call-overload]
        failures += len(rows) < 3
        rows += counts()
        assert sorted(row[:4] for row in rows) == sorted((inlet, 2, 80, 1) for inlet in inlets)
        assert counts() == []
        for loan in (*inlets, outlet, table):
            pump.free(loan)
    assert failures >= 3


def test_no_memory_for_the_rest_of_a_port(world: World) -> None:
    """It is lost, the port says so, and the socket is free: the stream ends, and another can be lent."""
    lost = 0
    for number in range(30):
        pump, tun = world.pump, world.tun()
        table, port = pump.table(plane.ALL_ALIKE), pump.port()
        ours, _ = world.pair(sndbuf=4096)
        pump.attach(port, ours.fileno(), 1000)
        pump.learn(table, frame(packet(1, 2)), _pump.TO_PORT, port)
        reader = pump.reader((tun.device.fileno(),), table, slab(), plane.BURST_BYTES, port)
        for n in range(60):
            tun.send(bytes(12) + packet(1, n, 1400))
        world.wait()
        waiting, detach = pump.waiting(port), pump.detach
        assert waiting
        rest, failed = without_memory(lambda detach=detach, port=port: detach(port), number)  # type: ignore[misc]
        assert not failed
        assert isinstance(rest, bytes)
        assert (len(rest), pump.failure(port)) in ((waiting, 0), (0, errno.ENOMEM))
        lost += not rest
        assert pump.waiting(port) == 0
        pump.attach(port, ours.fileno(), 1000)
        assert pump.failure(port) == 0
        for loan in (reader, port, table):
            pump.free(loan)
    assert lost


# ------------------------------------------------------------------ merging


class Merging:
    """An inlet whose frames all go into the device, if it takes them.

    Attributes:
        shown: the frames that were passed to Python instead, from their vnet header on.
    """

    def __init__(
        self, world: World, device: tuple[socket.socket, socket.socket] | None = None, *, ethernet: bool = False
    ) -> None:
        """``device``: what the program writes to, and where that can be read."""
        self._world = world
        ours, self._host = device or world.device()
        rules = plane.ALL_FRAMES if ethernet else plane.ALL_ALIKE
        table, outlet = world.pump.table(rules, ethernet), world.pump.outlet(ours.fileno())
        world.pump.learn(table, frame(packet(1, 2)), _pump.DEVICE, 0)
        six = test_wire_merge.udp6(b"x"), test_wire_merge.udp6(b"x", extension=True)
        for one in (*six, test_wire_merge_tcp.tcp(b"x", ipv6=True)):
            world.pump.learn(table, one, _pump.DEVICE, 0)
        self._inlet, self._far, self._buffer = inlet_of(world, outlet, table)
        self._far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.shown: list[bytes] = []

    def writes(self, frames: list[bytes]) -> list[bytes]:
        """These come with one receive. Returns what the device got."""
        self.shown.clear()
        body = chunk(b"".join(frames))
        assert self._far.send(body) == len(body)
        for _ in range(2):  # more frames than one turn takes
            for what, number, detail in self._world.wait()[0]:
                assert (what, number) == (_pump.FRAMES, self._inlet)
                self.shown += [bytes(self._buffer[a + 2 : b]) for a, b in each(detail)]  # type: ignore[arg-type]
        [(_, packets, packets_bytes, _, _)] = self._world.pump.counts()
        written: list[bytes] = []
        with suppress(BlockingIOError):
            while True:
                written.append(self._host.recv(MAX_FRAME_BYTES, socket.MSG_DONTWAIT))
        assert packets == len(frames) - len(self.shown)
        assert packets_bytes == sum(map(len, frames)) - HEADER_BYTES * packets - sum(len(it) + 2 for it in self.shown)
        return written


def unmerged(written: list[bytes]) -> list[bytes]:
    """Whole frames, super-packets cut as the kernel cuts them."""
    out: list[bytes] = []
    for data in written:
        if data[1] == GSO_UDP_L4:
            out += test_wire_merge.cut(data)
        elif data[1] in (GSO_TCPV4, GSO_TCPV6):
            out += test_wire_merge_tcp.cut(data, partial=True)
        else:
            out.append(struct.pack("<H", len(data) - 12) + data)
    return out


udp_crowds = test_wire_merge.crowds.map(lambda crowd: crowd.frames())
tcp_crowds = test_wire_merge_tcp.crowds.map(lambda crowd: crowd.frames(partial=True))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(udp_crowds | tcp_crowds, min_size=1, max_size=4),
    st.integers(1, 5),
    test_wire_merge_tcp.damages,
    st.sampled_from([None, None, SMALL_DEVICE_BYTES, 60_000]),
)
def test_merged_and_cut_again_they_are_what_they_were(
    parts: list[list[bytes]], mix: int, damaged: list[tuple[int, int, int]], buffer_bytes: int | None
) -> None:
    """All of them, each flow in order, damaged ones as they came; also where the device is full or refuses some."""
    frames = [it for part in parts for it in part]
    frames = [it for first in range(mix) for it in frames[first::mix]]
    frames = frames[: 200_000 // max(map(len, frames))]
    for number, at, flip in damaged:
        victim = bytearray(frames[number % len(frames)])
        if 2 <= at < len(victim) and at not in (HEADER_BYTES, 3):  # else it is for Python, or a super-packet already
            victim[at] ^= flip
        frames[number % len(frames)] = bytes(victim)
    world = World()
    try:
        merging = Merging(world, world.device(buffer_bytes))
        out = unmerged(merging.writes(frames)) + [struct.pack("<H", len(it) - 12) + it for it in merging.shown]
    finally:
        world.close()
    same = test_wire_merge_tcp.same
    assert Counter(map(same, out)) == Counter(map(same, frames))
    if not damaged:
        for flow in set(map(flow_of, frames)):
            mine, theirs = ([same(it) for it in some if flow_of(it) == flow] for some in (out, frames))
            assert mine == theirs


def flow_of(one: bytes) -> tuple[int, bytes, bytes]:
    """Version, protocol and ports."""
    return (6, one[20:21], one[54:58]) if one[14] >> 4 == 6 else (4, one[23:24], one[34:38])


def udps(count: int, *, size: int = 64, flows: int = 1, fragment: int = 0x4000, ipv6: bool = False) -> list[bytes]:
    if ipv6:
        return [test_wire_merge.udp6(bytes([n & 0xFF]) * size, port=n % flows) for n in range(count)]
    return [
        test_wire_merge.udp(bytes([n & 0xFF]) * size, port=n % flows, ident=n & 0xFFFF, fragment=fragment)
        for n in range(count)
    ]


def verified(frames: list[bytes]) -> list[bytes]:
    """The same segments, but the far kernel has verified their checksums."""
    return [it[:2] + struct.pack("<BBHHHHH", 2, 0, 0, 0, 0, 0, 0) + it[14:] for it in frames]


segments = test_wire_merge_tcp.stream


@pytest.mark.parametrize(
    ("frames", "writes"),
    [
        (udps(130), 3),
        (udps(64, flows=8), 8),
        (udps(1000, flows=8), 16),
        (udps(100, size=1400), 3),
        (udps(46, size=1400), 1),
        (udps(47, size=1400), 2),
        (udps(2), 1),
        (udps(3, flows=3), 3),
        (udps(64, fragment=0), 1),
        (udps(10, size=63) + udps(1, size=7) + udps(10, size=63), 2),
        (udps(1, size=7) + udps(10, size=63), 2),
        (segments(128), 2),
        (segments(90, size=1440), 2),
        (segments(100, psh=10), 10),
        ([*segments(20), test_wire_merge_tcp.tcp(b"the last", 20_000, flags=0x18)], 1),
        ([*segments(20), test_wire_merge_tcp.tcp(b"short", 20_000, flags=0x18)], 2),
        (verified(segments(128)), 2),
        ([it for pair in zip(segments(40, port=1), udps(40), segments(40, port=2), strict=True) for it in pair], 3),
        (udps(130, ipv6=True), 3),
        (udps(64, flows=8, ipv6=True), 8),
        (udps(46, size=1400, ipv6=True), 1),
        (udps(10, size=63, ipv6=True) + udps(1, size=7, ipv6=True) + udps(10, size=63, ipv6=True), 2),
        (segments(128, ipv6=True), 2),
        (segments(100, psh=10, ipv6=True), 10),
        (verified(segments(128, ipv6=True)), 2),
        (
            [
                it
                for pair in zip(segments(40), segments(40, ipv6=True), udps(40, ipv6=True), strict=True)
                for it in pair
            ],
            3,
        ),
    ],
    ids=range(26),
)
def test_how_many_writes(world: World, frames: list[bytes], writes: int) -> None:
    merging = Merging(world)
    got = merging.writes(frames)
    assert len(got) == writes
    assert not merging.shown


@pytest.mark.parametrize(
    "frames",
    [
        udps(3, size=0),
        [it[:2] + b"\0" + it[3:] for it in udps(3)],
        [it[:2] + b"\3" + it[3:] for it in udps(3)],
        [it[:40] + b"\0\0" + it[42:] for it in udps(3)],
        [it[:24] + b"\0\0" + it[26:] for it in udps(3)],
        [it[:38] + b"\0\x09" + it[40:] for it in udps(3)],
        [it[:14] + b"\x46" + it[15:] for it in udps(3)],
        [test_wire_merge.udp(b"x", ident=n * 2, fragment=0) for n in range(3)],
        udps(3, fragment=0x2000),
        udps(3, fragment=0x4001),
        [test_wire_merge.udp(bytes(64 + n)) for n in range(3)],
        [test_wire_merge.udp(bytes(64), tos=n) for n in range(3)],
        segments(3, size=0),
        segments(3, size=7),
        segments(3, fragment=0),
        segments(3, psh=1),
        [test_wire_merge_tcp.tcp(bytes(100), n * 101) for n in range(3)],
        [test_wire_merge_tcp.tcp(bytes(100), n * 100, ack=n) for n in range(3)],
        [test_wire_merge_tcp.tcp(bytes(100), n * 100, window=n) for n in range(3)],
        [test_wire_merge_tcp.tcp(bytes(100), n * 100, flags=0x11) for n in range(3)],
        [test_wire_merge_tcp.tcp(bytes(100), n * 100, flags=0x90) for n in range(3)],
        [test_wire_merge_tcp.tcp(bytes(100), n * 100, options=bytes([1, 1, 1, n])) for n in range(3)],
        [it[:50] + b"\0\0" + it[52:] for it in segments(3)],
        [it[:46] + b"\x40" + it[47:] for it in segments(3)],
        [it[:46] + b"\xf0" + it[47:] for it in segments(3, size=8)],
        udps(3, size=0, ipv6=True),
        [test_wire_merge.udp6(b"x" * 9, label=n) for n in range(3)],
        [test_wire_merge.udp6(b"x" * 9, traffic_class=n) for n in range(3)],
        [test_wire_merge.udp6(b"x" * 9, hops=n) for n in range(3)],
        [test_wire_merge.udp6(b"x" * 9, extension=True)] * 3,
        [it[:18] + b"\0\x09" + it[20:] for it in udps(3, ipv6=True)],
        [it[:58] + b"\0\x09" + it[60:] for it in udps(3, ipv6=True)],
        [it[:60] + b"\0\0" + it[62:] for it in udps(3, ipv6=True)],
        [it[:70] + b"\0\0" + it[72:] for it in segments(3, ipv6=True)],
        [it[:66] + b"\xf0" + it[67:] for it in segments(3, size=8, ipv6=True)],
    ],
    ids=range(35),
)
def test_what_is_not_merged(world: World, frames: list[bytes]) -> None:
    merging = Merging(world)
    assert merging.writes(frames) == [it[2:] for it in frames]


@pytest.mark.parametrize("size", range(MIN_PACKET_BYTES, 70))
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("version", FAMILIES)
def test_short_packets_are_passed_on(world: World, size: int, protocol: int, version: int) -> None:
    """Whatever their lengths say that follows."""
    six = test_wire_merge.IPV6_ADDRESSES
    ends = (address(1), address(2)) if version == 4 else (str(IPv6Address(six[:16])), str(IPv6Address(six[16:])))
    data = [frame(ip(*ends, b"\xff" * (size - 20), protocol))] * 3
    assert Merging(world).writes(data) == [it[2:] for it in data]


def test_packets_without_a_flow_are_not_overtaken(world: World) -> None:
    other = frame(packet(1, 2))
    frames = [*udps(5), other, *udps(5), other, other]
    assert [it[1] for it in Merging(world).writes(frames)] == [GSO_UDP_L4, 0, GSO_UDP_L4, 0, 0]


def test_more_flows_than_there_is_room_for(world: World) -> None:
    """Each keeps its order, though hardly anything can be merged."""
    frames = [
        it for n in range(5) for it in [test_wire_merge.udp(bytes([n]) * 16, port=m, ident=n) for m in range(200)]
    ]
    out = unmerged(Merging(world).writes(frames))
    for port in range(200):
        assert [it[42] for it in out if it[34:36] == port.to_bytes(2, "big")] == list(range(5))
    assert len(out) == len(frames)


def test_a_refused_super_packet_is_written_in_pieces_and_the_next_are_not_offered(world: World) -> None:
    """As before Linux 6.2, which knows none of UDP. After one was taken, a refusal is about that one.

    A UDP socket is a device here that takes no packet of more than 65,507 bytes.
    """
    with socket.socket(type=socket.SOCK_DGRAM) as device, socket.socket(type=socket.SOCK_DGRAM) as host:
        host.bind(("127.0.0.1", 0))
        device.connect(host.getsockname())
        merging = Merging(world, (device, host))
        refused, small, other = udps(64, size=1023), udps(8), segments(8, size=64)
        for skipped in (1, 3, 7):
            assert merging.writes(refused) == [it[2:] for it in refused]
            for _ in range(skipped):
                assert merging.writes(small) == [it[2:] for it in small]
                assert len(merging.writes(other)) == 1  # of TCP the kernel may well know them
        assert len(merging.writes(small)) == 1
        assert merging.writes(refused) == [it[2:] for it in refused]
        assert len(merging.writes(small)) == 1
    assert not merging.shown


def test_a_full_device_leaves_the_rest_to_python(world: World) -> None:
    """In order, and nothing twice, wherever it became full."""
    merging = Merging(world, world.device(SMALL_DEVICE_BYTES))
    flows = udps(300, size=600, flows=3)
    frames = [*flows[:100], frame(packet(1, 2, 60)), *flows[100:]]
    out = unmerged(merging.writes(frames))
    assert out
    assert merging.shown
    out += [struct.pack("<H", len(it) - 12) + it for it in merging.shown]
    assert sorted(out) == sorted(frames)
    for port in range(3):
        assert [it for it in out if it[23] == 17 and it[35] == port] == flows[port::3]
