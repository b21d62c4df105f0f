"""What the plane needs to know of a client: everything from the device goes to the server, everything from there goes
into the device."""

from __future__ import annotations

from ..datapath.counters import Counters
from ..datapath.plane import ALL_ALIKE, DeliverNow, Flows, Lane, Plane, Verdict, current_plane
from ..datapath.receiver import deliver_to_device
from ..datapath.sender import Sender
from ..datapath.tun_io import DeviceWriter
from ..wire.frames import HEADER_BYTES, FrameRange, FrameReader


class ClientFlows:
    """A `tun_io.FrameJudge` for the device, and the lane for a download."""

    def __init__(self, sender: Sender, counters: Counters) -> None:
        self._sender = sender
        self._counters = counters
        self._inward: Flows | None = None
        self._outward: Flows | None = None

    def flows(self, plane: Plane) -> Flows:
        """See `tun_io.FrameJudge`."""
        if self._outward is None:
            self._outward = Flows(plane, ALL_ALIKE, self._counters.drops)
        return self._outward

    def judge(self, view: memoryview, at: int) -> Verdict:
        """See `tun_io.FrameJudge`."""
        plane = current_plane()
        return None if plane is None or view[at + HEADER_BYTES] >> 4 != 4 else self._sender.port(plane)

    def lane(self, writer: DeviceWriter) -> Lane | DeliverNow:
        """Where the plane puts the frames of a download: as `deliver_to_device`."""

        def deliver(reader: FrameReader, frames: list[FrameRange]) -> None:
            deliver_to_device(reader.view, frames, writer, self._counters, self._sender.send_control)

        plane = current_plane()
        if plane is None or writer.outlet is None:
            return deliver
        if self._inward is None:
            self._inward = Flows(plane, ALL_ALIKE, self._counters.drops)

        def judge(view: memoryview, at: int) -> Verdict:
            return True if view[at + HEADER_BYTES] >> 4 == 4 else None

        return Lane(self._inward, writer.outlet, deliver, judge, self._counters)
