"""What a client does with each frame that came: into the device, back to the server, or away."""

from __future__ import annotations

from ..errors import EndReason, PeerError
from ..wire.frames import ECHO_FIRST_BYTE, ECHO_PACKET_BYTES, HEAD, FrameRange
from ..wire.vnet import is_bounded
from .counters import Counters, DropReason
from .sender import MAX_CONTROLS


def deliver(
    view: memoryview, frames: list[FrameRange], counters: Counters, inward: list[FrameRange], echoes: list[bytes]
) -> None:
    """Append the packets for the device to ``inward``, and what the server wants back to ``echoes``; count all.

    Raises PeerError at a frame that no honest server sends; what stood before it was appended.
    """
    unpack = HEAD.unpack_from
    packets = packets_bytes = 0
    try:
        for frame in frames:
            start, stop, count = frame
            length, gso_type, gso_size, first = unpack(view, start)
            if first >> 4 != 4:
                if first == ECHO_FIRST_BYTE and length == ECHO_PACKET_BYTES:
                    if len(echoes) < MAX_CONTROLS:  # each goes back (docs/protocol.md#base-pings), but not a flood
                        echoes.append(bytes(view[start:stop]))
                elif first >> 4 == 6:
                    counters.drops[DropReason.NOT_IPV4] += 1
                else:
                    raise PeerError("frame without an IP packet", reason=EndReason.BAD_FRAME)
                continue
            if gso_type and not is_bounded(length, gso_size):
                raise PeerError("super-packet of absurdly small packets", reason=EndReason.BAD_VNET)
            packets += count
            packets_bytes += count * length
            inward.append(frame)
    finally:
        counters.rx_packets += packets
        counters.rx_bytes += packets_bytes
