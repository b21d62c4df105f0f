"""The frames in a body. `FrameReader` returns them whole, however the body was cut into chunks and receives.

::

    0        2             14                14+L
    +--------+-------------+------------------+
    | L: u16 | vnet hdr 12 | IP packet, L byte |        20 <= L <= 65535, little-endian; 40 <= L for IPv6
    +--------+-------------+------------------+
    | 0: u16 |                                           ping: only counted
    +--------+
    | 1: u16 | ...                                       control frame, if agreed on: see `control`
    +--------+

The vnet header is described in `vnet`. On a TAP interface an Ethernet frame, described in `ethernet`, stands where the
packet is, and 14 <= L. Any other length is malformed. Untrusted input; raises PeerError only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from mmap import mmap
from struct import Struct
from typing import Final, TypeAlias

from ..errors import EndReason, PeerError, passing_shortages
from .body import Body, ChunkedBody
from .control import CONTROL, CONTROL_LENGTH, MAX_PAYLOAD_BYTES
from .ethernet import ETHERNET_BYTES
from .uniform import MIN_BLOCK_FRAMES, count_uniform, count_uniform_ethernet
from .vnet import GSO_NONE, VNET_BYTES

LENGTH_BYTES: Final = 2
HEADER_BYTES: Final = LENGTH_BYTES + VNET_BYTES
GSO_TYPE_AT: Final = LENGTH_BYTES + 1  # where gso_type of the vnet header is
MIN_PACKET_BYTES: Final = 20  # an IPv4 header
MIN_IPV6_BYTES: Final = 40  # an IPv6 header
MIN_ETHERNET_BYTES: Final = ETHERNET_BYTES  # destination, source, type
MAX_PACKET_BYTES: Final = 65535
MAX_FRAME_BYTES: Final = HEADER_BYTES + MAX_PACKET_BYTES
BASE_PING: Final = b"\0\0"

# The fields of a frame that are read: the packet's length, gso_type, gso_size, and the packet's first byte.
HEAD: Final = Struct("<HxB2xH6xB")
# The same of an Ethernet frame, without that byte.
ETHERNET_HEAD: Final = Struct("<HxB2xH")
# The same as HEAD, and an IPv4 packet's source and destination together, as a key for a table.
ROUTED_HEAD: Final = Struct("<HxB2xH6xB11x8s")
# The packet's first byte, and that key.
ADDRESSES: Final = Struct(f"<{HEADER_BYTES}xB11x8s")
# Payload length (in the wrong byte order), next header, and the key of an IPv6 packet of at least MIN_IPV6_BYTES. If
# the first two are both 0, it is a jumbogram (RFC 2675).
ROUTED_IPV6_HEAD: Final = Struct(f"<{HEADER_BYTES}x4xHBx32s")

# Offsets of fields of an IPv6 frame.
NEXT_HEADER_AT: Final = HEADER_BYTES + 6
# Destination and source of an Ethernet frame, 12 bytes: the key of a flow on a TAP interface.
MACS: Final = Struct(f"<{HEADER_BYTES}x12s")
IPV6_SOURCE_AT: Final = HEADER_BYTES + 8
IPV6_DESTINATION_AT: Final = HEADER_BYTES + 24

# Where frames are in a buffer, from the first one's length field on: start, stop, and number of frames. It is a single
# frame or a *block*: many adjacent frames of one length, none a super-packet, whose vnet headers and IP headers are the
# same: of IPv4 addresses, protocols, TTLs and types of service, of IPv6 the whole header. So all frames of a block are
# routed alike. On a TAP interface, a block has only TCP or UDP over IP, and the Ethernet headers are the same, too.
FrameRange: TypeAlias = tuple[int, int, int]
# The pieces of one frame, from the vnet header on, to be written with one call.
Parts: TypeAlias = list[bytes | memoryview]


def flow_of(view: memoryview, at: int) -> tuple[int, bytes] | None:
    """The version of IP and the key of the packet in the frame at this offset.

    None: no verdict on the packet may be kept. It is neither IPv4 nor IPv6, or shorter than an IPv6 header; or it may
    be a jumbogram, for which each packet needs a look. Untrusted input; never raises.
    """
    version = view[at + HEADER_BYTES] >> 4
    if version == 4:
        key: bytes
        _, key = ADDRESSES.unpack_from(view, at)
        return 4, key
    if version != 6 or (view[at + 1] == 0 and view[at] < MIN_IPV6_BYTES):
        return None
    _, next_header, key = ROUTED_IPV6_HEAD.unpack_from(view, at)
    return (6, key) if next_header else None


def each(ranges: Iterable[FrameRange]) -> Iterator[tuple[int, int]]:
    """Start and stop of every single frame."""
    for start, stop, count in ranges:
        size = (stop - start) // count
        for at in range(start, stop, size):
            yield at, at + size


# The ping of generation 2 is a frame, too. Its packet has 48 bytes:
#
#    0               1                9            48
#    +---------------+----------------+------------+
#    | 0x10: u8      | clock: u64, ns | zeros      |        little-endian; 0x10 would be IP version 1
#    +---------------+----------------+------------+
ECHO_PACKET_BYTES: Final = 48
ECHO_FIRST_BYTE: Final = 0x10
_ECHO: Final = Struct(f"<H{VNET_BYTES}xBQ{ECHO_PACKET_BYTES - 9}x")


def encode_echo(clock_ns: int) -> bytes:
    """A generation 2 ping that carries the server's clock."""
    return _ECHO.pack(ECHO_PACKET_BYTES, ECHO_FIRST_BYTE, clock_ns)


def echoed_clock(frame: memoryview) -> int:
    """Our own clock, in ns, as the echo of a generation 2 ping brings it back. ``frame``: must have the right
    length."""
    clock: int = _ECHO.unpack(frame)[2]
    return clock


# Room for three of the largest frames, so that a receive finds space for at least one next to an incomplete one.
BUFFER_BYTES: Final = 256 * 1024

# Limit of one `feed`, in frames, pings and pieces of chunks. A buffer full of 1-byte chunks is 43,000 of these, which
# take 100 ms; this many take 2 or 3 ms, including what is then done with the frames. An honest receive has few: a
# buffer full of packets of 64 bytes, each in a chunk of its own, takes four steps.
STEP_ITEMS: Final = 1024
# The same for control frames, which cost more. An honest peer sends one in several seconds.
STEP_CONTROLS: Final = 64
# The most frames in a row at which no block is looked for: see `FrameReader._block`.
MAX_BLOCK_SKIPS: Final = 255


def receive_buffer() -> mmap:
    """Allocate the memory of a `FrameReader`. Raises ShortageError if there is none."""
    with passing_shortages("cannot get a buffer for a stream"):
        return mmap(-1, BUFFER_BYTES)


class FrameReader:
    """The receive buffer of one stream, and the frames in it.

    ::

        while not reader.ended:
            n = 0 if reader.pending else recv_into(reader.space())
            for start, stop, count in reader.feed(n):
                use(reader.view[start:stop])       # before the next space()
            let_others_run()

    A frame is returned where it was received. A frame is moved only if it straddles the end of the buffer or the
    framing of a chunk, and then only the shorter of its two parts.

    The work of one call of `feed` is bounded, no matter what was received. The rest is `pending`. If good frames came
    before a malformed one, they are returned first, and the error is pending too.

    Attributes:
        view: the buffer.
        ended: the body ended on a frame boundary, and every frame was returned.
        pending: call `feed(0)` next, which continues with the received bytes, and not `space`.
        control: control frames are agreed on.
        controls: kind and payload of each control frame that came; the caller clears it.
        pings: number of pings that came.
        leftover: once `ended`, the bytes that came after the body on the connection.
    """

    __slots__ = (
        "_body",
        "_end",
        "_ethernet",
        "_failure",
        "_head",
        "_memory",
        "_min_bytes",
        "_pos",
        "_skips",
        "_skips_left",
        "_tail",
        "control",
        "controls",
        "ended",
        "leftover",
        "pending",
        "pings",
        "view",
    )

    def __init__(
        self, body: Body, *, control: bool = False, memory: mmap | None = None, ethernet: bool = False
    ) -> None:
        """
        Args:
            body: decodes the framing around the frames.
            control: control frames are agreed on; otherwise a frame of length 1 is malformed.
            memory: a `receive_buffer`. If None, one is allocated, which may raise ShortageError.
            ethernet: the frames carry Ethernet frames instead of IP packets.
        """
        # An mmap rather than a bytearray: pages that an idle stream never touches never become resident.
        self._memory = receive_buffer() if memory is None else memory
        self.view = memoryview(self._memory)
        self._body = body
        self._ethernet = ethernet
        self._min_bytes = MIN_ETHERNET_BYTES if ethernet else MIN_PACKET_BYTES
        self.ended = False
        self._head = 0  # where the first incomplete frame begins
        self._tail = 0  # where the body bytes of that frame end, as far as they came
        # While pending: where the bytes are that came from the socket and were not decoded yet.
        self._pos = self._end = 0
        self.pending = False
        self._failure: PeerError | None = None
        # Frames to skip before the next look for a block, and how many they were after the last failure: see `_block`.
        self._skips_left = self._skips = 0
        self.control = control
        self.controls: list[tuple[int, bytes]] = []
        self.leftover = b""

    def space(self) -> memoryview:
        """Where to receive next: room for at least one frame of the largest size.

        Frames that were returned before are no longer valid. Not to be called while `pending`.
        """
        assert not self.pending, "received bytes would be lost"
        if self._head == self._tail:
            self._head = self._tail = 0
        elif BUFFER_BYTES - self._tail < MAX_FRAME_BYTES:
            straddling = self._tail - self._head
            self.view[:straddling] = self.view[self._head : self._tail]
            self._head, self._tail = 0, straddling
        return self.view[self._tail :]

    def prime(self, data: bytes) -> list[FrameRange]:
        """`feed` the few bytes that came together with the HTTP head. Only before anything else was received."""
        self.space()[: len(data)] = data
        return self.feed(len(data))

    def feed(self, received_bytes: int) -> list[FrameRange]:
        """Decode bytes that were received into `space`. Returns where the frames are that are now complete, in order.

        ``received_bytes``: 0 while `pending`.

        Raises PeerError at a malformed frame, and if the body ends within a frame. If this call has found good frames
        before it, they are returned, and the next call raises.
        """
        if self._failure is not None:
            raise self._failure.without_traceback()
        if not self.pending:
            self._pos = self._end = self._tail
        self._end += received_bytes
        frames: list[FrameRange] = []
        try:
            self.pending = not self._find(frames)
        except PeerError as exc:
            self.pending = True
            self._failure = exc.without_traceback()
            if not frames and not self.controls:
                raise
        return frames

    def _find(self, frames: list[FrameRange]) -> bool:
        """Add the next frames to ``frames``. Returns whether everything that was received is decoded."""
        body, view, add, min_bytes = self._body, self.view, frames.append, self._min_bytes
        head, tail, pos, end = self._head, self._tail, self._pos, self._end
        done = False
        items = last_length = 0
        while items < STEP_ITEMS:
            items += 1
            if tail - head >= LENGTH_BYTES:
                length = view[head] | view[head + 1] << 8
                if length >= min_bytes:
                    after = head + HEADER_BYTES + length
                    if after <= tail:
                        count = 1
                        # The second frame of this length in a row, and enough bytes for many more.
                        if length == last_length and tail - head >= MIN_BLOCK_FRAMES * (after - head):
                            count = self._block(head, after - head, tail, STEP_ITEMS - items + 1)
                            after = head + count * (after - head)
                            items += count - 1
                        last_length = length
                        add((head, after, count))
                        head = after
                        continue
                elif length == 0:
                    head += LENGTH_BYTES
                    continue
                else:
                    after = self._take_control(length, head, tail)
                    if after <= tail:
                        head = after
                        if len(self.controls) >= STEP_CONTROLS:
                            break
                        continue
            if pos == end:
                done = True
                break
            start, stop = body.span(self._memory, pos, end)
            pos = stop
            if start == stop:
                if pos < end and not body.ended:
                    continue
                done = True
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
        if done and body.ended:
            if head != tail:
                raise PeerError("the stream ended within a frame", reason=EndReason.BAD_FRAME)
            self.leftover = bytes(view[pos:end])
            self.ended = True
        self._head, self._tail, self._pos = head, tail, pos
        return done

    def _block(self, start: int, size: int, tail: int, limit: int) -> int:
        """How many frames of ``size`` bytes the block at ``start`` has, at most ``limit``; 1: there is no block.

        Looking for a block where there is none costs as much as many frames. So after such a look the next frame is
        skipped, then three, seven, and so on up to MAX_BLOCK_SKIPS.
        """
        if self._skips_left:
            self._skips_left -= 1
            return 1
        count = 0
        if self._ethernet:
            count = count_uniform_ethernet(self.view, start, size, min((tail - start) // size, limit))
        elif self.view[start + HEADER_BYTES] >> 4 in (4, 6) and self.view[start + GSO_TYPE_AT] == GSO_NONE:
            count = count_uniform(self.view, start, size, min((tail - start) // size, limit))
        if count:
            self._skips = 0
            return count
        self._skips = self._skips_left = min(2 * self._skips + 1, MAX_BLOCK_SKIPS)
        return 1

    def _take_control(self, length: int, head: int, tail: int) -> int:
        """Take the control frame at ``head`` if it is complete. Returns where it ends, or would end."""
        if length != CONTROL_LENGTH or not self.control:
            what = "an Ethernet frame" if self._ethernet else "a packet"
            raise PeerError(f"frame with {what} of {length} bytes", reason=EndReason.BAD_FRAME)
        body = head + CONTROL.size
        if body > tail:
            return body
        _, kind, size = CONTROL.unpack_from(self.view, head)
        if size > MAX_PAYLOAD_BYTES:
            raise PeerError(f"control frame of {size} bytes", reason=EndReason.BAD_FRAME)
        if body + size <= tail:
            self.controls.append((kind, bytes(self.view[body : body + size])))
        return int(body + size)

    def can_lend(self) -> bool:
        """Whether another decoder may continue; see `lend`."""
        return (
            not self.pending
            and not self.ended
            and isinstance(self._body, ChunkedBody)
            and self._body.lend() is not None
        )

    def lend(self) -> tuple[mmap, int, int, int, bool]:
        """The buffer, and the state of the decoder, for another decoder that continues in the same buffer. To be called
        if `can_lend`. Nothing else may be called before `take_back`.

        Returns:
            The buffer; where the first incomplete frame begins, and where it ends as far as it came; the state of the
            body, see `ChunkedBody.lend`.
        """
        assert isinstance(self._body, ChunkedBody)
        state = self._body.lend()
        assert state is not None
        return self._memory, self._head, self._tail, *state

    def take_back(self, head: int, tail: int, pos: int, end: int, left: int, after_payload: int) -> None:
        """Continue from the state of the other decoder. What it has received and not decoded, ``pos`` to ``end``, is
        `pending`."""
        assert isinstance(self._body, ChunkedBody)
        self._head, self._tail = head, tail
        self._body.take_back(left, after_payload)
        whole = tail - head >= LENGTH_BYTES  # there may be a frame that only this decoder takes
        if pos < end or whole:
            self._pos, self._end, self.pending = pos, end, True

    def eof(self) -> None:
        """The connection ended. Raises PeerError unless the body may end here and no frame is incomplete."""
        self._body.eof()
        if self._head != self._tail:
            raise PeerError("the connection closed within a frame", reason=EndReason.CLOSED)
