"""What a client does with each frame that came: into the device, back to the server, or away."""

from __future__ import annotations

from collections import Counter

from ..errors import PeerError
from ..wire.frames import ECHO_FIRST_BYTE, ECHO_PACKET_BYTES, GSO_TYPE_AT, HEADER_BYTES, Span
from ..wire.vnet import is_bounded
from . import counters as why
from .sender import MAX_CONTROLS


def sort_frames(
    view: memoryview, frames: list[Span], drops: Counter[str], inward: list[Span], echoes: list[bytes]
) -> None:
    """Append the packets for the device to ``inward``, and what the server wants back to ``echoes``; count the rest.

    Raises PeerError at a frame that no honest server sends; what stood before it was appended.
    """
    for frame in frames:
        start, stop, _ = frame
        if (first := view[start + HEADER_BYTES]) >> 4 != 4:
            if first == ECHO_FIRST_BYTE and stop - start == HEADER_BYTES + ECHO_PACKET_BYTES:
                if len(echoes) < MAX_CONTROLS:  # PROTOCOL wants each back; a flood is none of it
                    echoes.append(bytes(view[start:stop]))
            elif first >> 4 == 6:
                drops[why.NOT_IPV4] += 1
            else:
                raise PeerError("frame without an IP packet", reason="bad-frame")
            continue
        if view[start + GSO_TYPE_AT] and not is_bounded(view[start:stop]):
            raise PeerError("super-packet of absurdly small packets", reason="bad-vnet")
        inward.append(frame)
