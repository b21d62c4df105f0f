"""Frames out of a body, whole, wherever the body was cut.

::

    0        2             14                14+L
    +--------+-------------+------------------+
    | L: u16 | vnet hdr 12 | IP packet, L byte |        20 <= L <= 65535, little-endian
    +--------+-------------+------------------+
    | 0: u16 |                                           ping: ignored
    +--------+
    | 1: u16 | ...                                       control frame, where agreed: see `control`
    +--------+

Untrusted input; raises PeerError only.
"""

from __future__ import annotations

from mmap import mmap
from struct import Struct
from typing import Final

from ..errors import PeerError
from .body import Body
from .control import CONTROL, CONTROL_LENGTH, MAX_PAYLOAD_BYTES
from .vnet import VNET_BYTES

LENGTH_BYTES: Final = 2
HEADER_BYTES: Final = LENGTH_BYTES + VNET_BYTES
MIN_PACKET_BYTES: Final = 20  # an IPv4 header
MAX_PACKET_BYTES: Final = 65535
MAX_FRAME_BYTES: Final = HEADER_BYTES + MAX_PACKET_BYTES
PING: Final = b"\0\0"

# Generation 2: a packet of 48 bytes whose first byte says IP version 1, then a u64 timestamp.
ECHO_PACKET_BYTES: Final = 48
ECHO_FIRST_BYTE: Final = 0x10
_ECHO: Final = Struct(f"<H{VNET_BYTES}xBQ{ECHO_PACKET_BYTES - 9}x")


def encode_echo(clock_ns: int) -> bytes:
    """A generation 2 ping with the server's clock."""
    return _ECHO.pack(ECHO_PACKET_BYTES, ECHO_FIRST_BYTE, clock_ns)


def echoed_clock(frame: memoryview) -> int:
    """The clock that an echoed generation 2 ping brings back, in ns."""
    clock: int = _ECHO.unpack(frame)[2]
    return clock


# Room for three of the largest frames: a receive finds space for at least one beside a straddling one.
BUFFER_BYTES: Final = 256 * 1024


class FrameReader:
    """The receive buffer of one stream, and the frames in it.

    ::

        while not reader.ended:
            n = recv_into(reader.space())
            for start, stop in reader.feed(n):
                use(reader.view[start:stop])       # before the next space()

    A frame is returned where it was received. Only one that straddles the buffer's end, or the framing of a
    chunk, is moved, and of its two parts the shorter one.
    """

    __slots__ = ("_body", "_head", "_memory", "_tail", "control", "controls", "leftover", "pings", "view")

    def __init__(self, body: Body, *, control: bool = False) -> None:
        """``control``: control frames were agreed; without that one is malformed, as everything of length 1 is."""
        # mmap and not bytearray: pages that an idle stream never touches never become resident.
        self._memory = mmap(-1, BUFFER_BYTES)
        self.view = memoryview(self._memory)
        self._body = body
        self._head = 0  # where the first incomplete frame begins
        self._tail = 0  # where the body bytes that we have of it end
        self.pings = 0
        self.control = control
        self.controls: list[tuple[int, bytes]] = []  # kind and payload of each that came; the reader's to clear
        self.leftover = b""

    @property
    def ended(self) -> bool:
        """The body ended, on a frame boundary. `leftover` has what came behind it on the connection."""
        return self._body.ended

    def space(self) -> memoryview:
        """Where to receive next, at least one largest frame long. Ends the life of returned frames."""
        if self._head == self._tail:
            self._head = self._tail = 0
        elif BUFFER_BYTES - self._tail < MAX_FRAME_BYTES:
            straddling = self._tail - self._head
            self.view[:straddling] = self.view[self._head : self._tail]
            self._head, self._tail = 0, straddling
        return self.view[self._tail :]

    def prime(self, data: bytes) -> list[tuple[int, int]]:
        """`feed` for the few bytes that came together with the head, before anything else was received."""
        self.space()[: len(data)] = data
        return self.feed(len(data))

    def feed(self, received_bytes: int) -> list[tuple[int, int]]:
        """Take note of bytes received into `space`. Returns ``(start, stop)`` of each frame now complete, its
        length field included, in order; pings are only counted. Raises PeerError at a malformed frame, and
        if the body ends within one.
        """
        body, view = self._body, self.view
        frames: list[tuple[int, int]] = []
        head = self._head
        tail = pos = self._tail
        end = pos + received_bytes
        while True:
            start, stop = body.span(self._memory, pos, end)
            pos = stop
            if start == stop:
                break
            if start != tail:  # chunk framing lies between
                have, more = tail - head, stop - start
                if have <= more:
                    view[start - have : start] = view[head:tail]
                    head = start - have
                else:
                    view[tail : tail + more] = view[start:stop]
                    stop = tail + more
            tail = stop
            while tail - head >= LENGTH_BYTES:
                length = view[head] | view[head + 1] << 8
                if length < MIN_PACKET_BYTES:
                    if length == 0:
                        self.pings += 1
                        head += LENGTH_BYTES
                        continue
                    after = self._take_control(length, head, tail)
                    if after > tail:
                        break
                    head = after
                    continue
                after = head + HEADER_BYTES + length
                if after > tail:
                    break
                frames.append((head, after))
                head = after
        if body.ended:
            if head != tail:
                raise PeerError("the stream ended within a frame", reason="bad-frame")
            self.leftover = bytes(view[pos:end])
        self._head, self._tail = head, tail
        return frames

    def _take_control(self, length: int, head: int, tail: int) -> int:
        """Take the control frame at ``head`` if it is complete. Returns where it ends, or would end."""
        if length != CONTROL_LENGTH or not self.control:
            raise PeerError(f"frame with a packet of {length} bytes", reason="bad-frame")
        body = head + CONTROL.size
        if body > tail:
            return body
        _, kind, size = CONTROL.unpack_from(self.view, head)
        if size > MAX_PAYLOAD_BYTES:
            raise PeerError(f"control frame of {size} bytes", reason="bad-frame")
        if body + size <= tail:
            self.controls.append((kind, bytes(self.view[body : body + size])))
        return int(body + size)

    def eof(self) -> None:
        """The connection ended. Raises PeerError unless the body may end here and no frame is half read."""
        self._body.eof()
        if self._head != self._tail:
            raise PeerError("the connection closed within a frame", reason="closed")
