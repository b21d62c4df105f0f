"""The inbound path of both ends: what a `Receiver` hands on, what it answers itself, and how it ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tapotun_trio.datapath.receiver import Receiver
from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.wire import control
from tapotun_trio.wire.body import CloseBody
from tapotun_trio.wire.frames import FrameRange, FrameReader

from ..packets import frame, ipv4
from ..streams import memory_pair

PACKET = ipv4("10.10.0.2", "10.10.0.1", b"data")


class Peer:
    """The other end of a stream, and everything that the receiver hands on."""

    def __init__(self) -> None:
        connection, self.far = memory_pair()
        self.packets: list[bytes] = []
        self.controls: list[tuple[int, bytes]] = []
        self.sent: list[bytes] = []
        self.steps = 0
        self.reader = FrameReader(CloseBody(), control=True)
        self.receiver = Receiver(connection, self.reader, self._deliver, self._on_control, self.sent.append)

    async def _deliver(self, reader: FrameReader, frames: list[FrameRange]) -> None:
        self.packets += [bytes(reader.view[start:stop]) for start, stop, _ in frames]

    async def _on_control(self, kind: int, payload: bytes) -> None:
        self.controls.append((kind, payload))

    def count(self) -> None:
        self.steps += 1


async def test_frames_and_control_frames_are_handed_on_until_the_end() -> None:
    peer = Peer()
    await peer.far.send_all(frame(PACKET) + control.encode(control.AGENT, b"x/1") + frame(PACKET))
    peer.far.close()
    with peer.receiver.running():
        await peer.receiver.run(peer.reader.prime(frame(PACKET)), peer.count)
    assert peer.packets == [frame(PACKET)] * 3
    assert peer.controls == [(control.AGENT, b"x/1")]
    assert peer.steps >= 2
    assert peer.receiver.ended.is_set()


async def test_the_last_ping_of_a_step_is_answered_and_handed_on() -> None:
    peer = Peer()
    pings = b"".join(control.encode(control.PING, bytes([number])) for number in (1, 2, 3))
    await peer.far.send_all(pings + control.encode(control.AGENT, b"x/1"))
    peer.far.close()
    with peer.receiver.running():
        await peer.receiver.run([])
    assert peer.sent == [control.encode(control.PONG, b"\x03")]
    assert peer.controls == [(control.AGENT, b"x/1"), (control.PING, b"\x03")]


async def test_end_is_raised_by_the_streams_own_task(autojump_clock: trio.testing.MockClock) -> None:
    peer = Peer()

    async def end_later() -> None:
        await trio.sleep(1)
        peer.receiver.end(PeerError("another machine", reason=EndReason.REPLACED))
        assert not peer.receiver.ended.is_set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_later)
        with pytest.raises(PeerError, match="another machine"), peer.receiver.running():
            await peer.receiver.run([])
    assert peer.receiver.was_ended
    assert peer.receiver.ended.is_set()


async def test_silence_ends_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    peer = Peer()
    heard: list[bool] = []

    async def tick() -> None:
        while not peer.receiver.was_ended:
            heard.append(peer.receiver.tick(trio.current_time(), 5.0))
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await peer.far.send_all(frame(PACKET))
        with pytest.raises(PeerError, match="nothing came for 5 s") as caught, peer.receiver.running():
            await peer.receiver.run([])
    assert caught.value.reason == EndReason.SILENT
    assert heard[-5:] == [False] * 5
