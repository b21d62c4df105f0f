"""Super-packets that a kernel refuses, though it takes them in pieces: merging pauses, and never ends for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tapotun_trio.datapath.counters import DropReason
from tapotun_trio.datapath.tun_io import AdaptiveSkip, DeviceWriter
from tapotun_trio.wire.frames import FrameRange
from tests.fakes import MemoryDevice

from .test_wire_merge import laid, received, udp
from .test_wire_merge_tcp import tcp

Laid = Callable[[list[bytes]], tuple[memoryview, list[FrameRange]]]

PACKETS = 20
UDP = [udp(b"good" * 20)] * PACKETS
ODD = [udp(b"oddly" * 16, port=8)] * PACKETS
TCP = [tcp(b"good" * 250, n * 1000) for n in range(PACKETS)]
MERGED = 2  # a block may be cut in two

as_blocks_and_single = pytest.mark.parametrize("lay", [received, laid])


class PickyKernel(MemoryDevice):
    """Refuses every super-packet with this in it."""

    def __init__(self, refused: bytes) -> None:
        super().__init__("tun0")
        self.refused: bytes | None = refused
        self.offered = 0

    def write_parts(self, parts: Sequence[memoryview | bytes], /) -> bool | None:
        self.offered += 1
        if self.refused is not None and self.refused in b"".join(parts):
            return False
        return super().write_parts(parts)


class Writing:
    """A writer and its device."""

    def __init__(self, device: MemoryDevice, lay: Laid = received) -> None:
        self.device = device
        self.lay = lay
        self.drops: Counter[str] = Counter()
        self.writer = DeviceWriter(device, self.drops)

    def writes(self, frames: list[bytes]) -> int:
        """So many for these."""
        self.device.outbound.clear()
        self.writer.write_all(*self.lay(frames), self.drops)
        return len(self.device.outbound)


def test_what_is_in_vain_is_tried_ever_less_often() -> None:
    attempts = AdaptiveSkip(7)
    tried = []
    for occasion in range(40):
        if attempts.should_try():
            tried.append(occasion)
            attempts.failed()
    assert tried == [0, 2, 6, 14, 22, 30, 38]
    attempts = AdaptiveSkip(7)
    attempts.succeeded()
    assert [attempts.should_try() for _ in range(9)] == [True] * 9
    attempts.failed()
    assert [attempts.should_try() for _ in range(3)] == [False, True, True]


@as_blocks_and_single
async def test_a_kernel_before_6_2_is_asked_next_to_nothing(lay: Laid) -> None:
    device = PickyKernel(b"")
    it = Writing(device, lay)
    for _ in range(5_000):
        assert it.writes(UDP) == PACKETS
    assert 5 < device.offered < 18
    assert not it.drops


async def test_that_is_asked_again_for_ever() -> None:
    device = PickyKernel(b"")
    it = Writing(device)
    for _ in range(5_000):
        it.writes(UDP)
    device.refused = None
    assert min([it.writes(UDP) for _ in range(1_024)]) <= MERGED
    assert max([it.writes(UDP) for _ in range(100)]) <= MERGED


@as_blocks_and_single
async def test_odd_packets_cost_others_nothing(lay: Laid) -> None:
    it = Writing(PickyKernel(b"oddly"), lay)
    assert it.writes(UDP) <= MERGED
    for _ in range(100):
        assert it.writes(ODD) == PACKETS
    for _ in range(64):  # single ones are not looked at for a while, but that ends
        it.writes(UDP)
    assert max([it.writes(UDP) for _ in range(100)]) <= MERGED
    assert not it.drops


async def test_nor_do_they_if_they_come_first() -> None:
    it = Writing(PickyKernel(b"oddly"))
    for _ in range(10_000):
        assert it.writes(ODD) == PACKETS
    assert it.writes(TCP) <= MERGED
    for number in range(10_000):  # half of all
        it.writes(ODD if number % 2 else UDP)
    assert [it.writes(ODD if number % 2 else UDP) <= MERGED for number in range(100)] == [True, False] * 50
    assert not it.drops


async def test_while_the_link_is_down_nothing_is_learned() -> None:
    device = MemoryDevice("tun0")
    it = Writing(device)
    device.refuses = True
    assert it.writes(UDP) == 0
    assert it.drops == {DropReason.DEVICE_REFUSED: PACKETS}
    device.refuses = False
    assert it.writes(UDP) <= MERGED
