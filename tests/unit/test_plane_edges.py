"""Unusual and extreme streams, each by name: both planes do with them what the tasks alone do.

test_plane_differential plays scenarios at random, and those of the ordinary case. Here are the cases that a random
stream meets seldom: spellings of a size line, sizes near the limits of a parser, the largest frames, an end while the
device is full. The second part takes the native decoder and Python's in turn, wherever a stream may be handed over.
"""

from __future__ import annotations

import random
import socket
from contextlib import closing
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath import plane
from tapotun_trio.errors import PeerError
from tapotun_trio.wire import control
from tapotun_trio.wire.body import LAST_CHUNK, ChunkedBody
from tapotun_trio.wire.frames import BASE_PING, FrameReader, each, receive_buffer

from ..chunkings import cut, cuts
from ..packets import frame, ip
from ..planes import needs_pump
from .test_plane_differential import (
    A6,
    B6,
    HUB,
    HUB6,
    A,
    B,
    Bytes,
    End,
    Packets,
    Read,
    Scenario,
    Step,
    Take,
    bodies_of,
    chunked,
    compare,
    from_host,
    items,
    parser_state,
    plain,
    tso,
)
from .test_plane_differential import _nothing_too_old as _nothing_too_old

if plane.BUILT:
    from tapotun_trio.datapath import _pump

KNOWN: Final = Bytes(0, (chunked(plain(A, HUB, 60, 3) + plain(A, B, 60, 3)),) * 2)
FRAMES: Final = plain(A, HUB, 30, 2) + plain(A, B, 30)
MAX_PACKET_BYTES: Final = 65535
FAMILIES: Final = [pytest.param((A, HUB, B), id="ipv4"), pytest.param((A6, HUB6, B6), id="ipv6")]


def one_chunk(data: bytes, line: bytes) -> bytes:
    """``line``: a format of the size."""
    return (line % len(data)) + b"\r\n" + data + b"\r\n"


# ------------------------------------------------------------------ size lines

SIZE_LINES: Final = [
    b"%X",
    b"%x",
    b"0%x",
    b"%015x",
    b"%016x",
    b"%016X",
    b"%017x",
    b"%x;",
    b"%x;name",
    b"%X;name=value",
    b'%x;name="quo;ted"',
    b"%x ",
    b"%x \t;x",
    b" %x",
    b"0x%x",
    b"+%x",
    b"%x\r",
    b"%x" + b";y" * 511,
    b"%x" + b";y" * 512,
]


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("line", SIZE_LINES, ids=lambda line: repr(line[:20]))
def test_a_spelling_of_a_size_line(line: bytes, server: bool) -> None:
    """Whole, and one byte at a time; what is refused is refused alike."""
    body = one_chunk(FRAMES, line) + chunked(FRAMES, 11)
    at_once = Scenario((KNOWN, Bytes(0, (body,)), Bytes(0, (chunked(FRAMES),))), server=server)
    compare(at_once)
    if len(line) < 100:
        compare(Scenario((KNOWN, Bytes(0, tuple(body[at : at + 1] for at in range(len(body))))), server=server))


@pytest.mark.parametrize("size", [1, 2, 0x7FFF_FFFF, 0xFFFF_FFFF, 2**32, 2**60 - 1, 2**60, 2**63, 2**64 - 1])
def test_a_chunk_of_any_size_that_does_not_end(size: int) -> None:
    """The plane goes on within a chunk whose size line it leaves to Python, too: of 16 digits."""
    data = FRAMES * 40
    for line in (b"%x", b"%016x"):
        body = line % size + b"\r\n" + data[:size]
        steps: list[Step] = [KNOWN, Bytes(0, (body,))]
        if size > len(data):
            steps += [Bytes(0, (data,)) for _ in range(4)]
        else:
            steps.append(Bytes(0, (b"\r\n" + chunked(data[size:]),)))
        compare(Scenario(tuple(steps)))


# ------------------------------------------------------------------ frames


@pytest.mark.parametrize("addresses", FAMILIES)
@pytest.mark.parametrize("server", [True, False])
def test_the_largest_frames(server: bool, addresses: tuple[str, str, str]) -> None:
    """In one chunk, in chunks that are cut within their headers, to the device, to a peer and from the host."""
    ours, hub, other = addresses
    head = 20 if "." in ours else 40
    largest = [frame(ip(ours, to, bytes(MAX_PACKET_BYTES - head - more))) for to in (hub, other) for more in (0, 1)]
    data = b"".join(largest)
    outside = "198.51.100.1" if "." in ours else "2606:4700::1"
    host = tuple(bytes(12) + ip(outside, ours, bytes(MAX_PACKET_BYTES - head - n)) for n in range(3))
    steps: tuple[Step, ...] = (
        Bytes(0, (chunked(plain(ours, hub, 60, 3) + plain(ours, other, 60, 3)),) * 2),
        *[Bytes(0, (chunked(data, size),)) for size in (1 << 20, 65_549, 65_535, 65_550, 4096)],
        Bytes(0, tuple(cut(chunked(data, 65_549), (1, 7, 8, 9, 65_555, 65_556, 65_557, 65_558, 65_570)))),
        Read(1, 1 << 30),
        Packets(0, from_host(ours, 60, 3, outside)),
        Packets(0, host),
        Packets(0, host + from_host(ours, 60, 3, outside)),
    )
    compare(Scenario(steps, server=server))


@pytest.mark.parametrize("server", [True, False])
def test_control_frames_and_pings_between_super_packets(server: bool) -> None:
    big, to_b = tso(A, HUB, 20_000), tso(A, B, 60_000)
    parts = [
        big,
        control.ping(1),
        to_b,
        BASE_PING,
        big,
        control.encode(control.PADDING, bytes(900)),
        to_b,
        BASE_PING * 3,
    ]
    data = b"".join(parts)
    sizes = [len(data), 65_536, 20_066, 9000, 1001]
    for body in [chunked(data, size) for size in sizes] + [b"".join(map(chunked, parts))]:
        places = (5, len(body) // 3, len(body) // 2, len(body) - 3, len(body) - 1)
        steps = (KNOWN, Bytes(0, (body, body)), Bytes(0, tuple(cut(body, places))), Read(1, 1 << 30), Bytes(0, (body,)))
        compare(Scenario(steps, server=server))


def test_pings_that_chunks_cut() -> None:
    """A ping may end a chunk, begin the next, or fill one."""
    zeros = BASE_PING * 5
    bodies = [chunked(zeros + FRAMES, size) for size in (1, 2, 3, 10, 11, 12)] + [chunked(FRAMES + zeros, 7)]
    for control_agreed in (True, False):
        steps = (KNOWN, *[Bytes(0, (body,)) for body in bodies], *[Bytes(0, tuple(cut(it, (3, 9)))) for it in bodies])
        compare(Scenario(steps, control=control_agreed))


# ------------------------------------------------------------------ ends


@pytest.mark.parametrize("tcp", [True, False])
@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("small_device", [True, False])
def test_the_end_of_a_body_in_the_burst_that_it_ends(server: bool, small_device: bool, tcp: bool) -> None:
    """The last chunk, maybe a trailer, maybe bytes behind it, and the end of the connection, all at once, right behind
    more frames than the device takes. Then nobody takes anything for a while."""
    burst = chunked(plain(A, HUB, 1400, 60), 1 << 17)
    ends = [
        LAST_CHUNK,
        b"0\r\nA: b\r\n\r\n",
        b"000\r\n\r\nGET / HTTP/1.1\r\n",
        b"0;x\r\n\r\n",
        b"0\r\n",
        b"",
        b"0\r\nA b\r\n\r\n",
    ]
    for end in ends:
        for reset in (False, True):
            steps = (KNOWN, Bytes(0, (burst + end,)), End(0, reset), Take(3), Packets(0, from_host(A, 60, 3)))
            compare(Scenario(steps, server=server, small_device=small_device, tcp=tcp))


@pytest.mark.parametrize("server", [True, False])
def test_a_body_that_ends_within_something_while_the_device_is_full(server: bool) -> None:
    burst = chunked(plain(A, HUB, 1400, 40), 1 << 17)
    half = chunked(plain(A, HUB, 1400), 700)
    for rest in (half[:1], half[:4], half[:300], half[:705], half[:707], half[:-3], LAST_CHUNK[:2], LAST_CHUNK[:4]):
        compare(Scenario((KNOWN, Bytes(0, (burst, rest)), End(0, False)), server=server, small_device=True))
    body = chunked(plain(A, HUB, 1400)[:-1]) + LAST_CHUNK
    compare(Scenario((KNOWN, Bytes(0, (burst, body)), End(0, False)), server=server, small_device=True))


# ------------------------------------------------------------------ hand-back, wherever


class Relay:
    """Decodes a stream by the native part and by Python in turn, from one state."""

    def __init__(self, ethernet: bool = False) -> None:
        self.pump = _pump.Pump(-1)
        self._table = self.pump.table(plane.ALL_FRAMES if ethernet else plane.ALL_ALIKE, ethernet)
        self._outlet = self.pump.outlet(-1)
        self.ours, self.far = socket.socketpair()
        for end in (self.ours, self.far):
            end.setblocking(False)
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._memory = receive_buffer()
        self.reader = FrameReader(ChunkedBody(), control=True, memory=self._memory, ethernet=ethernet)
        self.frames: list[bytes] = []
        self.lent = 0

    def close(self) -> None:
        self.ours.close()
        self.far.close()

    def take(self, piece: bytes, native: bool) -> None:
        """Decode everything that there is. Raises PeerError."""
        assert self.far.send(piece) == len(piece)
        while True:
            if self.reader.ended:
                return
            if self.reader.pending:
                self._keep(self.reader.feed(0))
            elif native and self.reader.can_lend():
                if not self._lend():
                    self._decode_rest()
                    return
            else:
                try:
                    received = self.ours.recv_into(self.reader.space())
                except BlockingIOError:
                    return
                self._keep(self.reader.feed(received))

    def unread(self) -> bytes:
        """What nobody has taken from the socket."""
        try:
            return self.ours.recv(1 << 20)
        except BlockingIOError:
            return b""

    def _keep(self, ranges: list[tuple[int, int, int]]) -> None:
        self.frames += [bytes(self.reader.view[start:stop]) for start, stop in each(ranges)]

    def _decode_rest(self) -> None:
        while self.reader.pending:
            self._keep(self.reader.feed(0))

    def _lend(self) -> bool:
        """Lend until nothing more comes. Returns whether something is for Python."""
        self.lent += 1
        inlet = self.pump.inlet(self.ours.fileno(), self._outlet, self._table, *self.reader.lend())
        ended, quiet = False, 0
        while not ended and quiet < 2:
            events, _ = self.pump.wait(0)
            quiet = 0 if events else quiet + 1
            for what, _, detail in events:
                if what == _pump.FRAMES:
                    self._keep(detail)  # type: ignore[arg-type]
                else:
                    assert what == _pump.UNUSUAL
                    ended = True
        state = self.pump.state(inlet)
        self.pump.free(inlet)
        self.reader.take_back(*state[:6])
        return ended


def by_python(body: bytes, ethernet: bool = False) -> tuple[list[bytes], object]:
    with closing(Relay(ethernet)) as relay:
        return decoded(relay, [(body, False)])


def decoded(relay: Relay, pieces: list[tuple[bytes, bool]]) -> tuple[list[bytes], object]:
    """The frames, and the state in the end."""
    try:
        for piece, native in pieces:
            relay.take(piece, native)
    except PeerError as exc:
        return relay.frames, str(exc)
    state = parser_state(relay.reader)
    if relay.reader.ended:  # what came later is not read any more
        state = relay.reader.leftover + relay.unread()
    return relay.frames, (state, relay.reader.controls)


def stream(rng: random.Random) -> bytes:
    """Of everything that is ordinary, and some that is not."""
    parts: list[bytes] = []
    for _ in range(6):
        parts += [
            plain(A, HUB, rng.choice([24, 60, 61]), rng.randrange(1, 4)),
            rng.choice([BASE_PING, control.ping(3), b""]),
        ]
    data, out = b"".join(parts), b""
    while data:
        size = rng.choice([1, 2, 3, 15, 16, 17, 70, 200])
        piece, data = data[:size], data[size:]
        out += one_chunk(piece, rng.choice([b"%x", b"%X", b"%04x", b"%016x", b"%x;a=b"]))
    return out + rng.choice([LAST_CHUNK + b"next", b"0\r\nA: b\r\n\r\n", b"", b"zz\r\n"])


@needs_pump
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_that_changes_hands_at_any_byte(seed: int) -> None:
    """The native decoder has the beginning, Python the rest; the other way round; and each has every second byte."""
    body = stream(random.Random(seed))
    wanted = by_python(body)
    lent = 0
    for at in range(len(body) + 1):
        for first in (True, False):
            with closing(Relay()) as relay:
                assert decoded(relay, [(body[:at], first), (body[at:], not first)]) == wanted
                lent += relay.lent
    with closing(Relay()) as relay:
        assert decoded(relay, [(body[at : at + 1], at % 2 == 0) for at in range(len(body))]) == wanted
        lent += relay.lent
    assert lent > len(body)


@needs_pump
@settings(max_examples=200, deadline=None)
@example(b"0\r\n\r\nPUT / HTTP/1.1\r\n", [257], [False], False)
@given(bodies_of(items()), cuts, st.lists(st.booleans(), min_size=1, max_size=8), st.booleans())
def test_any_stream_that_changes_hands(body: bytes, places: list[int], native: list[bool], ethernet: bool) -> None:
    """As Ethernet, what is no frame is something else; the framing is the same."""
    wanted = by_python(body, ethernet)
    with closing(Relay(ethernet)) as relay:
        pieces = [(piece, native[n % len(native)]) for n, piece in enumerate(cut(body, places))]
        assert decoded(relay, pieces) == wanted
