"""A whole segment, with all the verdicts that it keeps, against the slow oracle of the switch, which keeps none."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.macs import BROADCAST, NO_MAC
from tapotun_trio.routing import switch as switch_module
from tapotun_trio.routing.switch import (
    BAD_MAC,
    DEVICE,
    FLOOD,
    ISOLATED,
    MAX_CLIENT_MACS,
    RESERVED_MAC,
    SAME_SIDE,
    SwitchRules,
)
from tapotun_trio.server.segment import CACHE_ENTRIES
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire.frames import each

from ..packets import frame
from .support import allowed
from .test_segment import OWN, STP, ether, mac, tap
from .test_switch import Oracle

NAMES: Final = ("a", "b", "c")
# Few stations, so that the same pair comes again, from elsewhere too.
STATIONS: Final = [mac(0), mac(1), mac(2)]
DESTINATIONS: Final = [*STATIONS, *STATIONS, OWN, BROADCAST, STP]
SOURCES: Final = [*STATIONS, *STATIONS, OWN, mac(3), NO_MAC]
REASONS: Final = {
    BAD_MAC: "bad-mac",
    RESERVED_MAC: "reserved-mac",
    SAME_SIDE: "same-side",
    ISOLATED: "isolated",
}
STEPS: Final = st.tuples(
    st.sampled_from([DEVICE, 0, 1, 2]),
    st.sampled_from(DESTINATIONS),
    st.sampled_from(SOURCES),
    # A verdict that is kept does not renew the age of its addresses. The tick after a second does.
    st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0, 1.0, 2.0, 400.0]),
)


class Hub:
    """A server without streams: each sender and the device write down what they get."""

    def __init__(self, **options: Any) -> None:
        pins = options.pop("pins", {})
        clients = [
            replace(allowed(name, f"10.10.0.{2 + n}"), addresses=(), macs=pins.get(n, ()))
            for n, name in enumerate(NAMES)
        ]
        log = logging.LoggerAdapter(logging.getLogger("tapotun.test"), {})
        self.server = TunnelServer(tap(1, *clients, storm_limit=1_000_000, **options), log, mac=OWN)
        assert self.server.segment is not None
        self.segment = self.server.segment
        self.got: list[tuple[int, bytes]] = []
        self.outlet = None
        for index, session in enumerate(self.server.sessions):
            session.sender = Sender(self, index)  # type: ignore[assignment]
            self.segment.began(session)
        self.ports = {index: session.port for index, session in enumerate(self.server.sessions)}

    def write_all(self, view: memoryview, frames: list[tuple[int, int, int]], drops: Counter[str]) -> None:
        self.got += [(DEVICE, bytes(view[start:stop])) for start, stop in each(frames)]

    def sends(self, port: int, data: bytes) -> dict[int, bytes]:
        """Who gets what of it."""
        self.got.clear()
        view, ranges = memoryview(data), [(0, len(data), 1)]
        if port == DEVICE:
            self.segment.from_device(view, ranges)
        else:
            self.segment.from_client(self.server.sessions[port], view, ranges, self)  # type: ignore[arg-type]
        assert len(dict(self.got)) == len(self.got), "somebody got it twice"
        return dict(self.got)

    def drops(self, port: int) -> Counter[str]:
        return self.server.device_drops if port == DEVICE else self.server.sessions[port].counters.drops


class Sender:
    streaming = True

    def __init__(self, hub: Hub, index: int) -> None:
        self._hub, self._index = hub, index

    def send(self, frames: memoryview | bytes, packets: int) -> None:
        assert packets == 1
        self._hub.got.append((self._index, bytes(frames)))


@settings(max_examples=100)
@given(
    st.lists(STEPS, min_size=60, max_size=200),
    st.sampled_from([{}, {}, {0: (mac(0), mac(3))}, {1: (mac(2),), 2: (mac(3),)}]),
    st.booleans(),
    st.sampled_from(["drop", "forward"]),
)
def test_every_frame_goes_where_the_oracle_says(
    steps: list[tuple[int, bytes, bytes, float]], pins: dict[int, tuple[bytes, ...]], isolate: bool, bpdu: str
) -> None:
    clock = trio.testing.MockClock()

    async def play() -> None:
        hub = Hub(isolate=isolate, bpdu=bpdu, pins=pins)
        pinned = {one: index for index, macs in pins.items() for one in macs}
        oracle = Oracle(SwitchRules(OWN, pinned, pins, isolate, bpdu == "forward"), MAX_CLIENT_MACS)
        for number, (port, destination, source, pause) in enumerate(steps):
            clock.jump(pause)
            if pause >= 1:
                hub.segment.tick(trio.current_time())
            data = frame(ether(destination, source, b"%d" % number))
            verdict = oracle.decide(port, destination, source, trio.current_time())
            before = hub.drops(port).copy()
            if verdict == FLOOD:
                everybody = [DEVICE] if isolate and port != DEVICE else [DEVICE, 0, 1, 2]
                wanted = dict.fromkeys((each for each in everybody if each != port), data)
            else:
                wanted = {} if verdict in REASONS else {verdict: data}
            assert hub.sends(port, data) == wanted, number
            assert hub.drops(port) - before == ({REASONS[verdict]: 1} if verdict in REASONS else {}), number

    with pytest.MonkeyPatch.context() as patch:  # how often all may be forgotten is tested elsewhere
        patch.setattr(switch_module, "MOVES_BURST", 1e9)
        patch.setattr(switch_module, "ALL_MOVES_PER_S", 1e9)
        trio.run(play, clock=clock)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.binary(min_size=14, max_size=120)), max_size=20),
    st.booleans(),
)
def test_whatever_a_client_sends(frames: list[tuple[bytes, bytes]], arp_guard: bool) -> None:
    """Only PeerError leaves it, what is kept is bounded, and every frame is counted once."""

    async def play() -> None:
        hub = Hub(arp_guard=arp_guard)
        counters = hub.server.sessions[0].counters
        for vnet, packet in frames:
            before = counters.rx_packets
            with suppress(PeerError):
                hub.sends(0, frame(packet, vnet))
            assert counters.rx_packets == before + 1
            port = hub.segment._ports[hub.ports[0]]
            assert len(port.verdicts) <= CACHE_ENTRIES
            assert len(hub.segment.switch) <= 1 + MAX_CLIENT_MACS

    trio.run(play)


def test_a_verdict_is_not_kept_while_the_source_is_elsewhere() -> None:
    """Else the address would not be learned again, because what has a verdict teaches nothing."""
    clock = trio.testing.MockClock()

    async def play() -> None:
        hub, (wanderer, target) = Hub(), (mac(0), mac(1))
        for port, source in ((0, wanderer), (1, target), (1, wanderer)):
            hub.sends(port, frame(ether(BROADCAST, source)))
        data = frame(ether(target, wanderer))
        clock.jump(0.5)
        assert hub.sends(0, data) == {1: data}  # it moved a moment ago, so this is not believed
        clock.jump(0.5)
        assert hub.sends(0, data) == {1: data}
        back = frame(ether(wanderer, mac(9)))
        assert hub.sends(DEVICE, back) == {0: back}

    trio.run(play, clock=clock)
