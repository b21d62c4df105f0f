"""client.path_mtu: what the streams of one client say together about large packets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import trio
from trio.testing import MockClock

from tapotun_trio.client.client import TunnelClient
from tapotun_trio.client.path_mtu import PathMtu
from tapotun_trio.client.streams import Download, Upload
from tapotun_trio.client.transport_choice import UPLOAD_SEEN_S
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.segments import SegmentLimits, SegmentState, SegmentWatch
from tapotun_trio.log import interface_logger

from .support import client_config

IDLE = SegmentState(1448, 0, 0, 1000, 1000, gap=False, ack_age_s=0.0, rtt_s=0.02)
STUCK = replace(IDLE, retransmits=3, flying_bytes=3000, ack_age_s=100.0)


@dataclass
class Connection:
    remote_address: str
    state: SegmentState

    def segments(self) -> SegmentState:
        return self.state

    def keepalive_after(self, seconds: int) -> None:
        pass


@dataclass(eq=False)
class Stream:
    connection: Connection
    segments: SegmentWatch = field(default_factory=SegmentWatch)
    failure: PeerError | None = None

    def abandon(self, because: PeerError) -> None:
        self.failure = because


@dataclass
class Open:
    segments: SegmentWatch
    over: bool = False


def ended(*streams: Stream) -> list[Stream]:
    """Those that end while nothing changes for a few looks, except that the kernel sends again."""
    path_mtu = PathMtu(SegmentLimits())
    for second in range(4):
        for stream in streams:
            if (state := stream.connection.state).retransmits:
                stream.connection.state = replace(state, retransmits=state.retransmits + 1)
        if found := path_mtu.look(float(second), streams):  # type: ignore[type-var]
            return found
    return []


def test_another_connection_to_the_same_machine_shows_that_small_packets_pass() -> None:
    stuck, other = Stream(Connection("192.0.2.1", STUCK)), Stream(Connection("192.0.2.1", IDLE))
    assert ended(stuck, other) == [stuck]


def test_a_connection_to_another_machine_shows_nothing() -> None:
    """The server has several addresses, and one of them cannot be reached: that is no matter of size."""
    stuck, other = Stream(Connection("192.0.2.1", STUCK)), Stream(Connection("2001:db8::1", IDLE))
    assert ended(stuck, other) == []


async def test_an_upload_whose_segments_are_missing_is_not_held_back(autojump_clock: MockClock) -> None:
    """They are lost, or the path is down. A WebSocket would have them lost as well."""
    client = TunnelClient(client_config("a", 1), interface_logger("a"))
    selector, watch = client.selector, SegmentWatch()
    client._download = cast(Download, Open(SegmentWatch()))
    client._upload = cast(Upload, Open(watch))
    selector.offered = True
    selector.upload_began(selector.next_upload_number(), trio.current_time())
    watch.look(0.0, replace(STUCK, acked_bytes=0))
    watch.look(1.0, replace(STUCK, acked_bytes=0))
    await trio.sleep(UPLOAD_SEEN_S)
    client._select_transport()
    assert not selector.websocket
    watch.look(2.0, IDLE)
    client._select_transport()
    assert selector.websocket
