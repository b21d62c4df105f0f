"""Where a client's packets go: everything from the device goes to the server, everything from there goes into the
device. So it is with Ethernet frames; of IP there are packets that do not pass."""

from __future__ import annotations

from ..datapath.counters import Counters, DropReason
from ..datapath.plane import ALL_ALIKE, ALL_FRAMES, DeliverNow, Flows, Lane, Plane, Verdict, current_plane
from ..datapath.receiver import deliver_ethernet, deliver_to_device, refused_ipv6
from ..datapath.sender import Sender
from ..datapath.tun_io import DeviceWriter
from ..families import stays_on_link
from ..wire.frames import (
    HEADER_BYTES,
    IPV6_DESTINATION_AT,
    IPV6_SOURCE_AT,
    NEXT_HEADER_AT,
    FrameRange,
    FrameReader,
    flow_of,
)


class ClientFlows:
    """Where a client's packets go: `classify` or `from_device` and a `tun_io.FrameJudge` for the device, and the lane
    for a download.

    Attributes:
        ethernet: whether the frames carry Ethernet. Set once, before the device is read.
        ipv6: whether the server has agreed to send IPv6. `set_ipv6` changes it.
    """

    def __init__(self, sender: Sender, counters: Counters) -> None:
        self.ethernet = False
        self.ipv6 = False
        self._sender = sender
        self._counters = counters
        self._inward: Flows | None = None
        self._outward: Flows | None = None

    def set_ipv6(self, allowed: bool) -> None:
        """Change `ipv6`."""
        if allowed != self.ipv6:
            self.ipv6 = allowed
            if self._inward is not None:
                self._inward.forget()

    def flows(self, plane: Plane) -> Flows:
        """See `tun_io.FrameJudge`."""
        if self._outward is None:
            self._outward = self._new_flows(plane)
        return self._outward

    def _new_flows(self, plane: Plane) -> Flows:
        if self.ethernet:
            return Flows(plane, ALL_FRAMES, self._counters.drops, ethernet=True)
        return Flows(plane, ALL_ALIKE, self._counters.drops)

    def judge(self, view: memoryview, at: int) -> Verdict:
        """See `tun_io.FrameJudge`."""
        plane = current_plane()
        if plane is None:
            return None
        port = self._sender.port(plane)
        return port if self.ethernet else _judge(view, at, port, ipv6=self._sender.ipv6)

    def from_device(self, view: memoryview, frames: list[FrameRange]) -> None:
        """See `tun_io.EthernetDispatch`. Every frame goes to the server; those that are adjacent, together."""
        first = stop = packets = 0
        for frame in frames:
            if frame[0] != stop:
                if packets:
                    self._sender.send(view[first:stop], packets)
                first, packets = frame[0], 0
            stop = frame[1]
            packets += frame[2]
        if packets:
            self._sender.send(view[first:stop], packets)

    def classify(self, view: memoryview, at: int) -> Sender | None:
        """See `tun_io.Classify`. All of IPv4 goes to the server; so does IPv6 if that is agreed on, except what must
        not leave its link."""
        version = view[at + HEADER_BYTES] >> 4
        if version == 4:
            return self._sender
        if version != 6 or not self._sender.ipv6:
            self._counters.drops[DropReason.NOT_IPV4] += 1
            return None
        if (
            view[at + NEXT_HEADER_AT] == 0
            or view[at + IPV6_SOURCE_AT] >= 0xFE
            or view[at + IPV6_DESTINATION_AT] >= 0xFE
        ) and (reason := refused_ipv6(view, at)) is not None:
            self._counters.drops[reason] += 1
            return None
        return self._sender

    def lane(self, writer: DeviceWriter) -> Lane | DeliverNow:
        """Where the plane puts the frames of a download: as `deliver_to_device` or `deliver_ethernet`."""

        def deliver(reader: FrameReader, frames: list[FrameRange]) -> None:
            if self.ethernet:
                deliver_ethernet(reader.view, frames, writer, self._counters)
                return
            deliver_to_device(reader.view, frames, writer, self._counters, self._sender.send_control, ipv6=self.ipv6)

        plane = current_plane()
        if plane is None or writer.outlet is None:
            return deliver
        if self._inward is None:
            self._inward = self._new_flows(plane)

        def judge(view: memoryview, at: int) -> Verdict:
            return True if self.ethernet else _judge(view, at, True, ipv6=self.ipv6)

        return Lane(self._inward, writer.outlet, deliver, judge, self._counters)


def _judge(view: memoryview, at: int, passes: Verdict, *, ipv6: bool) -> Verdict:
    """``passes``, unless the packet does not pass, or no verdict on it may be kept."""
    flow = flow_of(view, at)
    if flow is None or (flow[0] == 6 and not ipv6):
        return None
    return DropReason.LINK_LOCAL if stays_on_link(flow[1]) else passes
