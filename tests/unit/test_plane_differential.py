"""One behaviour, three speeds: the same bytes go through every path, and everything that comes of them is compared.

A scenario is a list of steps: bytes arrive on a stream, cut anywhere; the host sends packets; a peer reads, or does
not; the config is loaded anew; a stream ends, or breaks. It is played by the tasks alone, by the plane in Python, and
by the native one, in a real `trio.run`, between real sockets and a TUN device that is a pair of sockets
(tests/planes.py). After each step all come to rest, so all see the same bytes in the same pieces.

Compared are: the frames that the device got; the frames on each stream to a peer, out of their chunks; how each stream
ended; the control frames that were handed on; the counters and the drops by reason; and what each parser holds in the
end, to the byte.

What is not the same, by design: where the chunks of a stream begin, which packets are merged into one super-packet
(they are cut again here), and the order of packets of different flows.
"""

from __future__ import annotations

import fcntl
import itertools
import select
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from ipaddress import IPv6Address, IPv6Interface
from typing import Any, Final, NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapotun_trio.client.client import TunnelClient
from tapotun_trio.datapath.codel import CoDel
from tapotun_trio.datapath.plane import BUILT, VARIABLE, PlaneKind, current_steps, open_plane, running_plane
from tapotun_trio.datapath.receiver import Receiver
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.datapath.steps import StepPlane
from tapotun_trio.datapath.tun_io import Classify, DeviceWriter, FrameJudge, read_device
from tapotun_trio.datapath.tx_queue import TxQueue
from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.host.tun_queues import TunQueues
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.log import interface_logger
from tapotun_trio.server.handlers import Upload
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.server.session import Session
from tapotun_trio.wire import control
from tapotun_trio.wire.body import LAST_CHUNK, ChunkedBody
from tapotun_trio.wire.frames import BASE_PING, FrameReader, each, encode_echo

from ..chunkings import cut, cuts
from ..fakes import HANG_S
from ..packets import frame, ip, ipv4, ipv6
from ..planes import Tun
from .support import allowed, client_config, server_config
from .test_wire_merge import fold, udp
from .test_wire_merge_tcp import tcp

CLIENTS: Final = ("10.10.0.2", "10.10.0.3", "10.10.0.4")
HUB: Final = "10.10.0.1"
# Of a client, of the server, behind the device, without a client, foreign.
ADDRESSES: Final = (*CLIENTS, HUB, "198.51.100.1", "10.10.0.77", "192.0.2.9")
CLIENTS6: Final = ("2001:db8::2", "2001:db8::3", "2001:db8::4")
HUB6: Final = "2001:db8::1"
# The same, and what does not leave its link.
ADDRESSES6: Final = (
    *CLIENTS6,
    HUB6,
    "2606:4700::1",
    "2001:db8::77",
    "2001:db8:9::9",
    "fe80::1",
    "ff02::1",
    "ff0e::1",
    "::1",
)
# What a socket takes while nobody reads, where the scenario wants it to be full soon; the kernel doubles it.
SMALL_SOCKET_BYTES: Final = 4096
SMALL_DEVICE_BYTES: Final = 8192


PLANES: Final[tuple[PlaneKind, ...]] = ("python", "native") if BUILT else ("python",)


# ------------------------------------------------------------------ scenarios


class Bytes(NamedTuple):
    """Bytes arrive on the stream of a client, one piece after the other."""

    client: int
    pieces: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Bytes({self.client}, {_shortened(self.pieces)})"


class Packets(NamedTuple):
    """The host sends packets into a queue of the device, each with its vnet header."""

    queue: int
    frames: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Packets({self.queue}, {_shortened(self.frames)})"


def _shortened(pieces: tuple[bytes, ...]) -> str:
    """For the report of a failure, which says how to play it again."""
    return f"{len(pieces)} pieces, {sum(map(len, pieces))} bytes: {[piece[:40] for piece in pieces[:5]]}"


class Take(NamedTuple):
    """The host takes frames from the device."""

    most: int


class Read(NamedTuple):
    """A client reads what it was sent, up to so many bytes."""

    client: int
    most: int


class End(NamedTuple):
    """A stream of bytes ends, or is reset."""

    client: int
    reset: bool


class Break(NamedTuple):
    """A client no longer reads, and its connection is closed."""

    client: int


class Rotate(NamedTuple):
    """A client opens a new stream to be sent to."""

    client: int


class Agree(NamedTuple):
    """A client opens a new stream to be sent to, and agrees to IPv6 there, or does not."""

    client: int
    ipv6: bool


class Reload(NamedTuple):
    """All verdicts are forgotten: the config was loaded anew, and maybe has fewer clients."""

    clients: int


Step = Bytes | Packets | Take | Read | End | Break | Rotate | Agree | Reload


@dataclass(frozen=True)
class Scenario:
    """
    Attributes:
        server: the program is the server; otherwise it is a client, and "client 0" is its server.
        control: control frames were agreed on.
        queues: of the device.
        ipv6: which clients have agreed to IPv6 at first.
        small_sockets, small_device: full soon.
        tcp: the streams are TCP on the loopback interface; otherwise Unix sockets, which carry everything at once.
        guarded: of Ethernet frames: what clients claim by ARP and neighbour discovery is looked at.
    """

    steps: tuple[Step, ...]
    server: bool = True
    control: bool = True
    ipv6: tuple[bool, bool, bool] = (True, True, True)
    queues: int = 1
    small_sockets: bool = False
    small_device: bool = False
    tcp: bool = False
    guarded: bool = False


# ------------------------------------------------------------------ what is compared


@dataclass
class Outcome:
    """Everything that came of a scenario."""

    device: dict[bytes, list[bytes]] = field(default_factory=dict)
    streams: list[dict[bytes, list[bytes]]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    serve_ends: list[str] = field(default_factory=list)
    controls: list[list[tuple[int, bytes]]] = field(default_factory=list)
    counters: list[tuple[int, ...]] = field(default_factory=list)
    drops: list[dict[str, int]] = field(default_factory=list)
    parsers: list[object] = field(default_factory=list)


def flow_of(data: bytes) -> bytes:
    """What packets have in common that must keep their order. ``data``: a frame from its vnet header on."""
    packet = data[12:]
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return packet[8:40]
    if len(packet) < 24 or packet[0] >> 4 != 4:
        return b"other"
    return packet[9:10] + (packet[12:24] if packet[9] in (6, 17) else packet[12:20])


def by_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    """``frames``: each from its vnet header on."""
    flows: dict[bytes, list[bytes]] = {}
    for data in frames:
        flows.setdefault(flow_of(data), []).append(data)
    return flows


def unmerged(frames: list[bytes]) -> list[bytes]:
    """What the device got, with super-packets of UDP and TCP cut as the kernel cuts them."""
    return [without_id(one) for data in frames for one in (cut_again(data) if data[1] in (1, 5) else [data])]


def without_id(data: bytes) -> bytes:
    """Nobody needs the ID where DF is set. The checksum must be as right as it was."""
    if len(data) < 32 or data[12] != 0x45 or not data[18] & 0x40:
        return data
    return data[:16] + data[18:22] + bytes([fold(data[12:32]) == 0xFFFF]) + data[24:]


def cut_again(data: bytes) -> list[bytes]:
    header, size = int.from_bytes(data[2:4], "little"), int.from_bytes(data[4:6], "little")
    if not size or len(data) <= 12 + header or header < 28:
        return [data]  # from a peer
    ip, above, payload = data[12:32], data[32 : 12 + header], data[12 + header :]
    if data[1] == 5:
        ident, addresses, port = int.from_bytes(ip[4:6], "big"), ip[12:], int.from_bytes(above[:2], "big")
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        return [udp(one, port=port, ident=ident + n, addresses=addresses)[2:] for n, one in enumerate(pieces)]
    out = []
    for at in range(0, len(payload), size):
        one = payload[at : at + size]
        flags = above[13] & ~(8 if at + size < len(payload) else 0)  # PSH
        sequence = (int.from_bytes(above[4:8], "big") + at & 0xFFFFFFFF).to_bytes(4, "big")
        head = ip[:2] + (header + len(one)).to_bytes(2, "big") + ip[4:10] + b"\0\0" + ip[12:]
        head = head[:10] + (fold(head) ^ 0xFFFF).to_bytes(2, "big") + head[12:]
        pseudo = fold(ip[12:] + struct.pack("!HH", 6, header - 20 + len(one))).to_bytes(2, "big")
        rest = above[:4] + sequence + above[8:13] + bytes([flags]) + above[14:16] + pseudo + above[18:]
        out.append(struct.pack("<BBHHHHH", 1, 0, 0, 0, 20, 16, 0) + head + rest + one)
    return out


def decode(body: bytes, *, ethernet: bool = False) -> list[bytes]:
    """The frames of a stream to a peer, each from its vnet header on; control frames whole. It must be well-formed, and
    end at a frame's end."""
    reader = FrameReader(ChunkedBody(), control=True, ethernet=ethernet)
    frames: list[bytes] = []
    for at in range(0, len(body), 50_000):
        piece = body[at : at + 50_000]
        reader.space()[: len(piece)] = piece
        received = len(piece)
        while received or reader.pending:
            frames += [bytes(reader.view[start + 2 : stop]) for start, stop in each(reader.feed(received))]
            received = 0
    assert reader._head == reader._tail, "the stream stops within a frame"
    assert not reader._body.lend()[0], "the stream stops within a chunk"  # type: ignore[attr-defined]
    return frames + [control.encode(*one) for one in reader.controls]


def parser_state(reader: FrameReader) -> object:
    """Everything that determines what a reader does with what comes next."""
    body = reader._body
    assert isinstance(body, ChunkedBody)
    if reader._failure is not None:
        return str(reader._failure)
    if reader.ended:
        return reader.leftover
    return (
        bytes(reader.view[reader._head : reader._tail]),
        bytes(reader.view[reader._pos : reader._end]) if reader.pending else b"",
        (body._left, body._line, body._state, body._trailer_bytes, body.ended),
    )


# ------------------------------------------------------------------ the world


class RecordingUpload(Upload):
    """Takes notes of control frames before the session gets them."""

    def __init__(self, session: Session, notes: list[tuple[int, bytes]]) -> None:
        super().__init__(session)
        self._notes = notes

    async def _on_control(self, kind: int, payload: bytes) -> None:
        self._notes.append((kind, payload))


class Peer:
    """The far ends of one client's streams."""

    def __init__(
        self,
        world: World,
        sender: Sender,
        make: Callable[[Connection, list[tuple[int, bytes]]], Receiver],
        accept: Callable[[bool], None],
        ipv6: bool,
    ):
        """``accept``: called with whether IPv6 is taken of this peer, with each change. ``ipv6``: whether it has agreed
        to IPv6."""
        self._world = world
        self.sender = sender
        self._accept = accept
        self._ipv6 = ipv6
        accept(ipv6)
        self.controls: list[tuple[int, bytes]] = []
        self.end = "runs"
        self.serve_ends: list[str] = []
        ours, self.up = world.pair()
        self.connection = Connection(ours, "peer")
        self.receiver = make(self.connection, self.controls)
        self.reader = self.receiver._reader
        self.bodies: list[bytearray] = []
        self.downs: list[socket.socket] = []

    def agree(self, ipv6: bool) -> None:
        self._accept(ipv6)
        self._ipv6 = ipv6
        self.attach()

    def attach(self) -> None:
        """A new stream to this peer."""
        ours, down = self._world.pair()
        if self._world.scenario.small_sockets:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_SOCKET_BYTES)
        self.downs.append(down)
        self.bodies.append(bytearray())
        number = len(self.serve_ends)
        self.serve_ends.append("runs")
        self._world.nursery.start_soon(self._serve, number, BodyWriter(Connection(ours, "peer")), self._ipv6)

    async def _serve(self, number: int, writer: BodyWriter, ipv6: bool) -> None:
        self.serve_ends[number] = await self._end_of(lambda: self.sender.serve(writer, ipv6=ipv6))
        if not writer.broken:  # as the handlers do
            with trio.CancelScope(shield=True):
                await writer.try_break_off()
        writer.connection.close()

    async def receive(self) -> None:
        async def run() -> None:
            with self.receiver.running():
                await self.receiver.run(self.reader.prime(b""))

        self.end = await self._end_of(run)
        self.connection.close()

    @staticmethod
    async def _end_of(run: Callable[[], Any]) -> str:
        try:
            await run()
        except PeerError as exc:
            return str(exc.reason)
        return "ended"

    def read(self, most: int) -> int:
        """Read from all streams. Returns how much came."""
        got = 0
        for down, body in zip(self.downs, self.bodies, strict=True):
            while most > 0 and down.fileno() >= 0:
                try:
                    piece = down.recv(min(most, 1 << 16))
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    break
                if not piece:
                    break
                body += piece
                most -= len(piece)
                got += len(piece)
        return got


class World:
    """A server or a client of ours, its device, and its peers.

    Attributes:
        removed: clients that a reload has left out.
    """

    removed: frozenset[int] = frozenset()

    def __init__(self, scenario: Scenario, nursery: trio.Nursery, stack: ExitStack) -> None:
        self.scenario = scenario
        self.nursery = nursery
        self._stack = stack
        log = interface_logger("hub")
        self.tuns = [Tun("hub", SMALL_DEVICE_BYTES if scenario.small_device else None) for _ in range(scenario.queues)]
        for tun in self.tuns:
            stack.callback(tun.close)
        devices = [tun.device for tun in self.tuns]
        device = devices[0]
        if scenario.queues > 1:
            device = TunQueues(devices, select.epoll())  # type: ignore[assignment]
            stack.callback(device.close)
        self.device_drops: Counter[str] = Counter()
        self.writers = [DeviceWriter(queue, self.device_drops) for queue in devices]
        self.host_got: list[bytes] = []
        clients = [
            replace(client, addresses=(*client.addresses, IPv6Address(six)))
            for client, six in zip(map(allowed, "abc", CLIENTS), CLIENTS6, strict=True)
        ]
        config = server_config(1, *clients)
        self._config = replace(config, nets=(config.nets[0], IPv6Interface(f"{HUB6}/64")))
        if scenario.server:
            self.server = TunnelServer(self._config, log, self.writers, self.device_drops)
            stack.callback(self.server.close)
            classify: Classify = self.server.classify
            judge: FrameJudge = self.server
            self.counters = [session.counters for session in self.server.sessions]
            only: Callable[[], Sender | None] = self.server.only_sender
            self.peers = [
                Peer(self, session.sender, partial(self._upload, session), session._set_ipv6, ipv6)
                for session, ipv6 in zip(self.server.sessions, scenario.ipv6, strict=True)
            ]
        else:
            client = TunnelClient(client_config("a", 1), log)
            classify = client.flows.classify
            judge = client.flows
            self.counters = [client.counters]
            only = lambda: client.sender  # noqa: E731
            self.peers = [
                Peer(self, client.sender, partial(self._download, client), client.flows.set_ipv6, scenario.ipv6[0])
            ]
        for writer in self.writers:
            nursery.start_soon(writer.run)
        nursery.start_soon(read_device, device, classify, only, log, judge)
        for peer in self.peers:
            peer.attach()
            nursery.start_soon(peer.receive)

    def _upload(self, session: Session, connection: Connection, notes: list[tuple[int, bytes]]) -> Receiver:
        reader = FrameReader(ChunkedBody(), control=self.scenario.control)
        return RecordingUpload(session, notes).receiver(connection, reader)

    def _download(self, client: TunnelClient, connection: Connection, notes: list[tuple[int, bytes]]) -> Receiver:
        async def on_control(kind: int, payload: bytes) -> None:
            notes.append((kind, payload))

        reader = FrameReader(ChunkedBody(), control=self.scenario.control)
        writer = self.writers[0]
        lane = partial(client.flows.lane, writer)
        return Receiver(
            connection, reader, partial(client._deliver, writer), on_control, client.sender.send_control, lane
        )

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, far = _tcp_pair() if self.scenario.tcp else socket.socketpair()
        for end in (ours, far):
            end.setblocking(False)
            self._stack.callback(end.close)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        return ours, far

    # -- steps

    async def play(self, step: Step) -> None:
        match step:
            case Bytes(client, pieces):
                peer = self.peers[client % len(self.peers)]
                for piece in pieces:
                    if peer.up.fileno() < 0 or peer.end != "runs":
                        return
                    peer.up.send(piece)
                    await self.settle()
            case Packets(queue, frames):
                for data in frames:
                    self.tuns[queue % len(self.tuns)].send(data)
            case Take(most):
                self.take(most)
            case Read(client, most):
                self.peers[client % len(self.peers)].read(most)
            case End(client, reset):
                peer = self.peers[client % len(self.peers)]
                if reset and self.scenario.tcp and peer.up.fileno() >= 0:
                    peer.up.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif reset and peer.connection.fileno() >= 0 and peer.up.fileno() >= 0:
                    peer.connection.try_send([b"not read, so the close is a reset"])
                peer.up.close()
            case Break(client):
                self.peers[client % len(self.peers)].downs[-1].close()
            case Rotate(client):
                self.peers[client % len(self.peers)].attach()
            case Agree(client, ipv6):
                self.peers[client % len(self.peers)].agree(ipv6)
            case Reload(clients):
                self.reload(max(1, clients))
        await self.settle()

    def reload(self, clients: int) -> None:
        if self.scenario.server:
            self.server.reconfigure(replace(self._config, clients=self._config.clients[:clients]))
            self.removed |= frozenset(range(clients, len(self.peers)))

    def take(self, most: int = 1 << 30) -> int:
        got = 0
        for tun in self.tuns:
            frames = tun.take(most)
            self.host_got += frames
            got += len(frames)
        return got

    async def settle(self) -> None:
        """Until nothing moves any more: three times in a row all that can be seen stays the same."""
        before, same = None, 0
        while same < 3:
            await trio.testing.wait_all_tasks_blocked()
            now = self._moved()
            same = same + 1 if now == before else 0
            before = now

    def _moved(self) -> object:
        descriptors = [it.fileno() for peer in self.peers for it in peer.downs]
        descriptors += [peer.connection.fileno() for peer in self.peers]
        return (
            [_readable_bytes(fd) for fd in descriptors if fd >= 0],
            [_unsent_bytes(peer.up) for peer in self.peers],
            [_readable_bytes(tun.device.fileno()) for tun in self.tuns],
            [_readable_bytes(tun._host.fileno()) for tun in self.tuns],
            [replace(counters) for counters in self.counters],
            [(peer.end, list(peer.serve_ends), len(peer.controls)) for peer in self.peers],
        )

    async def finish(self) -> None:
        """The host takes everything, all peers read, until nothing waits anywhere."""
        with trio.fail_after(HANG_S) as scope:
            idle = 0
            while idle < 3:
                await self.settle()
                got = self.take() + sum(peer.read(1 << 30) for peer in self.peers)
                idle = 0 if got or self._waiting() else idle + 1
                if got:
                    scope.deadline = trio.current_time() + HANG_S
                else:
                    await trio.sleep(0.001)

    def _waiting(self) -> bool:
        """Whether something waits that can still go."""
        for peer in self.peers:
            sender = peer.sender
            if sender._port is not None and sender._port.waiting_bytes:
                return True
            if sender.stream is not None and (sender.stream.writer.pending or sender.tx_queue):
                return True
            if peer.end == "runs" and _unsent_bytes(peer.up):
                return True
        return any(writer._queue for writer in self.writers) or any(
            _readable_bytes(tun.device.fileno()) for tun in self.tuns
        )

    def device_frames(self) -> dict[bytes, list[bytes]]:
        """What the host got."""
        return by_flow(unmerged(self.host_got))

    def stream_frames(self, body: bytes) -> dict[bytes, list[bytes]]:
        """What a peer got with its streams."""
        return by_flow(decode(body))

    def outcome(self) -> Outcome:
        # What was sent into a connection that was closed by then is no more than a race.
        broken = {n for n, peer in enumerate(self.peers) if any(down.fileno() < 0 for down in peer.downs)}
        # A TCP stream that the peer has broken notices it with the send after the first one, or if something waits for
        # its socket. Both depend on the pieces that are sent: a frame of the device that is dropped divides what Python
        # sends.
        unsure = broken if self.scenario.tcp else set[int]()
        # What waits in Python for a client is lost when the client is removed. The plane keeps a part of it behind the
        # full socket, and that has been sent, as far as the counters know.
        if self.scenario.small_sockets:
            broken = broken | self.removed
        # Of a block that is refused all frames are counted, and where blocks begin depends on the receives.
        refused = {n for n, peer in enumerate(self.peers) if peer.end == EndReason.BAD_VNET}
        return Outcome(
            device=self.device_frames(),
            streams=[
                self.stream_frames(bytes(b"".join(peer.bodies))) if n not in broken else {}
                for n, peer in enumerate(self.peers)
            ],
            ends=[peer.end for peer in self.peers],
            serve_ends=[end for n, peer in enumerate(self.peers) if n not in unsure for end in peer.serve_ends],
            controls=[peer.controls for peer in self.peers],
            counters=[
                (
                    *((0, 0) if n in refused else (c.rx_packets, c.rx_bytes)),
                    *((0, 0) if n in broken else (c.tx_packets, c.tx_bytes)),
                )
                for n, c in enumerate(self.counters)
            ],
            drops=[dict(it) for it in (self.device_drops, *(counters.drops for counters in self.counters))],
        )


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, far


def _unsent_bytes(sock: socket.socket) -> int:
    """What has not arrived at the other end."""
    if sock.fileno() < 0:
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _readable_bytes(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


class CountedSteps:
    """Stands in for `StepPlane._call`, and counts its calls."""

    def __init__(self, plane: StepPlane) -> None:
        self.number = 0
        self._call = plane._call
        plane._call = self  # type: ignore[method-assign]

    def __call__(self, loan: Any) -> None:
        self.number += 1
        self._call(loan)


async def play(scenario: Scenario, kind: PlaneKind, make: type[World] = World) -> tuple[Outcome, int]:
    """What comes of a scenario, and how many packets the native plane has moved, or how many steps that in Python has
    called."""
    moved = 0
    with ExitStack() as stack:
        async with AsyncExitStack() as planes:
            if kind != "off":
                await planes.enter_async_context(open_plane(interface_logger("hub")))
            steps = current_steps()
            counted = CountedSteps(steps) if kind == "python" and steps is not None else None
            async with trio.open_nursery() as nursery:
                world = make(scenario, nursery, stack)
                await world.settle()
                for step in scenario.steps:
                    await world.play(step)
                await world.finish()
                assert running_plane()[0] == kind
                moved = (
                    sum(counters.plane_packets for counters in world.counters) if counted is None else counted.number
                )
                outcome = world.outcome()
                nursery.cancel_scope.cancel()
            # Only now has each reader its state back. What the plane has received and not decoded goes through.
            for peer in world.peers:
                if peer.end not in ("runs", "ended"):
                    outcome.parsers.append(None)  # nothing uses it after an error
                    continue
                while peer.reader.pending and peer.reader._failure is None and not peer.reader.ended:
                    assert peer.reader.feed(0) == []
                outcome.parsers.append(parser_state(peer.reader))
    return outcome, moved


@pytest.fixture(autouse=True)
def _nothing_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop nothing only because the machine is busy: the paths take different times."""
    monkeypatch.setattr(TxQueue, "expire", lambda *_: None)
    monkeypatch.setattr(CoDel, "should_drop", lambda *_: False)


def compare(scenario: Scenario, make: type[World] = World) -> dict[PlaneKind, int]:
    """Play a scenario on all paths. Returns how much each plane has moved: see `play`."""
    pure, _ = trio.run(play, scenario, "off", make)
    found: dict[PlaneKind, int] = {}
    for kind in PLANES:
        with pytest.MonkeyPatch.context() as patch:
            if kind == "python":
                patch.setenv(VARIABLE, kind)
            outcome, found[kind] = trio.run(play, scenario, kind, make)
        for one in fields(Outcome):
            assert getattr(outcome, one.name) == getattr(pure, one.name), (kind, one.name)
    return found


# ------------------------------------------------------------------ chosen scenarios


def tso(source: str, destination: str, size: int, mss: int = 1400, extensions: int = 0) -> bytes:
    """A TCP super-packet of an honest kernel. ``extensions``: how many extension headers of IPv6 precede TCP."""
    header = struct.pack("!HHIIBBHHH", 443, 51000, 1, 2, 5 << 4, 0x10, 1000, 0, 0)
    if ":" not in source:
        packet = ipv4(source, destination, header + bytes(size), 6)
        return frame(packet, struct.pack("<BBHHHHH", 1, 1, 40, mss, 20, 16, 0))
    options = b"".join(bytes([60 if n + 1 < extensions else 6, 0]) + bytes(6) for n in range(extensions))
    packet = ipv6(source, destination, options + header + bytes(size), 60 if extensions else 6)
    return frame(packet, struct.pack("<BBHHHHH", 1, 4, 60 + len(options), mss, 40 + len(options), 16, 0))


def chunked(data: bytes, size: int = 3000) -> bytes:
    return b"".join(
        b"%x\r\n%b\r\n" % (len(it), it) for it in (data[at : at + size] for at in range(0, len(data), size))
    )


_HEAD: Final = {False: 24, True: 44}  # IPv4 or IPv6, and a number


def plain(source: str, destination: str, size: int = 60, count: int = 1) -> bytes:
    """Frames that differ in their last bytes only."""
    return b"".join(
        frame(ip(source, destination, bytes(size - _HEAD[":" in source]) + number.to_bytes(4, "big")))
        for number in range(count)
    )


def from_host(destination: str, size: int = 60, count: int = 1, source: str = "198.51.100.1") -> tuple[bytes, ...]:
    return tuple(
        bytes(12) + ip(source, destination, bytes(size - _HEAD[":" in source]) + number.to_bytes(4, "big"))
        for number in range(count)
    )


A, B, C = CLIENTS
A6, B6, C6 = CLIENTS6
OUTSIDE6: Final = "2606:4700::1"
EVERYONE_READS: Final[tuple[Step, ...]] = tuple(Read(number, 1 << 30) for number in range(3))
ORDINARY: Final[tuple[Step, ...]] = (
    Bytes(0, (chunked(plain(A, HUB, 1400, 5)), *(chunked(plain(A, HUB, 1400, 8)) for _ in range(10)))),
    Bytes(0, (chunked(plain(A, HUB, 9000, 20)),) * 2),
    Bytes(1, (chunked(plain(B, A, 1400, 5) + plain(B, C, 1400, 5)), chunked(plain(B, A, 9000, 10)))),
    *EVERYONE_READS,
    Packets(0, from_host(A, 1400, 30) + from_host(B, 1400, 30) + from_host(C, 1400, 1)),
    *EVERYONE_READS,
    Packets(0, from_host(A, 1400, 60) + from_host("10.10.0.77") + from_host(A)),
    Packets(1, from_host(B, 1400, 60) + from_host(A)),
)


@pytest.mark.parametrize(
    ("scenario", "least"),
    [
        (Scenario(ORDINARY), 100),
        (Scenario(ORDINARY, queues=2), 100),
        (Scenario(ORDINARY, server=False), 100),
        (Scenario(ORDINARY, small_sockets=True), 50),
        (Scenario(ORDINARY, small_device=True), 50),
        (Scenario(ORDINARY, small_device=True, server=False), 50),
        (Scenario(ORDINARY, tcp=True), 100),
        (Scenario(ORDINARY, tcp=True, small_sockets=True, server=False), 20),
    ],
)
def test_the_ordinary_case_is_the_planes(scenario: Scenario, least: int) -> None:
    """So that none of the comparisons here is one of the pure path with itself."""
    moved = compare(scenario)
    assert moved.get("native", least) >= least
    assert moved["python"] >= 20


ORDINARY6: Final[tuple[Step, ...]] = (
    Bytes(0, (chunked(plain(A6, HUB6, 1400, 5)), *(chunked(plain(A6, HUB6, 1400, 8)) for _ in range(10)))),
    Bytes(0, (chunked(plain(A6, HUB6, 9000, 20)), chunked(plain(A6, HUB6, 9000, 10) + plain(A, HUB, 1400, 10)))),
    Bytes(0, (chunked(tso(A6, HUB6, 5000)), chunked(tso(A6, B6, 5000) + tso(A6, B6, 60_000, extensions=2)))),
    Bytes(0, (chunked(tso(A6, B6, 5000) + tso(A6, B6, 60_000, extensions=1)),)),
    Bytes(1, (chunked(plain(B6, A6, 1400, 5) + plain(B6, C6, 1400, 5)), chunked(plain(B6, A6, 9000, 10)))),
    *EVERYONE_READS,
    Packets(0, from_host(A6, 1400, 30, OUTSIDE6) + from_host(B6, 1400, 30, OUTSIDE6) + from_host(C, 1400, 1)),
    *EVERYONE_READS,
    Packets(0, from_host(A6, 1400, 60, OUTSIDE6) + from_host("2001:db8::77", source=OUTSIDE6) + from_host(A)),
    Packets(1, from_host(B6, 1400, 60, OUTSIDE6) + from_host(A6, source=OUTSIDE6)),
)


@pytest.mark.parametrize(
    ("scenario", "least"),
    [
        (Scenario(ORDINARY6), 100),
        (Scenario(ORDINARY6, queues=2), 100),
        (Scenario(ORDINARY6, server=False), 100),
        (Scenario(ORDINARY6, small_sockets=True), 50),
        (Scenario(ORDINARY6, small_device=True), 50),
        (Scenario(ORDINARY6, tcp=True, small_sockets=True, server=False), 20),
        (Scenario(ORDINARY6, ipv6=(True, False, True)), 50),
    ],
)
def test_the_ordinary_case_of_ipv6_is_the_planes(scenario: Scenario, least: int) -> None:
    moved = compare(scenario)
    assert moved.get("native", least) >= least
    assert moved["python"] >= 20


def jumbogram(source: str, destination: str) -> bytes:
    whole = ipv6(source, destination, bytes(60), 0)
    return whole[:4] + bytes(2) + whole[6:]


@pytest.mark.parametrize("server", [True, False])
def test_what_does_not_pass_of_ipv6(server: bool) -> None:
    """Again and again, since the plane learns. Hop-by-hop options are never the plane's: some are jumbograms."""
    good, options = plain(A6, HUB6, 100, 9), frame(ipv6(A6, HUB6, bytes(60), 0))
    to_link = [plain(A6, "ff02::1", 60, 9), plain(A6, "fe80::9", 60), plain("fe80::9", HUB6, 60, 2)]
    mixed = b"".join([good, *to_link, plain(B6, HUB6), options, frame(jumbogram(A6, HUB6)), good])
    host = [
        *from_host("ff02::1", count=9, source=HUB6),
        *from_host(A6, count=9, source=HUB6),
        *from_host("fe80::1", count=3, source=HUB6),
        bytes(12) + jumbogram(HUB6, A6),
        bytes(12) + ipv6(HUB6, A6)[:39],
        bytes(12) + ipv6(HUB6, A6, bytes(60), 0),
    ]
    steps: list[Step] = [*[Bytes(0, (chunked(mixed),))] * 6, *[Packets(0, tuple(host))] * 4]
    least = 60
    assert compare(Scenario(tuple(steps), server=server)).get("native", least) >= least
    beside = Bytes(0, (chunked(plain(A6, "fec0::9", 60, 3) + plain("fec0::9", HUB6, 60, 3) + good),))
    compare(Scenario((*steps[:4], *[beside] * 2), server=server))
    short = Bytes(0, (chunked(plain(A6, HUB6, 1400, 3) + frame(ipv6(A6, HUB6)[:39]) + plain(A6, HUB6)),))
    for agreed in (True, False):
        known = [Bytes(0, (chunked(plain(A6, HUB6, 1400, 3)),))] * 2
        compare(Scenario((*known, short, *ORDINARY[4:]), server=server, ipv6=(agreed, True, True)))


@pytest.mark.parametrize("server", [True, False])
def test_ipv6_ends_and_begins_with_a_new_stream(server: bool) -> None:
    """The plane has verdicts on IPv6 to this client, of the device and of another client. They are void at once."""
    outside = A6 if server else HUB6
    packets = Packets(0, from_host(outside, 300, 20, OUTSIDE6) + from_host(A if server else HUB, 300, 20))
    arrives = Bytes(1, (chunked(plain(B6, A6, 300, 20) + plain(B, A, 300, 20)),))
    comes = Bytes(0, (chunked(plain(A6, HUB6, 300, 20) + plain(A, HUB, 300, 20)),))
    one: tuple[Step, ...] = (packets, arrives, comes, Read(0, 1 << 30)) * 2
    for before, after in ((True, False), (False, True)):
        steps = (*one, Agree(0, after), *one, Agree(0, before), *one)
        assert compare(Scenario(steps, server=server, ipv6=(before, True, True))).get("native", 100) >= 100


UNKNOWN: Final[tuple[Step, ...]] = (
    Bytes(
        0, (chunked(plain(A, HUB)), *[chunked(plain("192.0.2.9", HUB, count=8))] * 3, chunked(plain(A, "10.10.0.77")))
    ),
    Bytes(0, (chunked(plain("192.0.2.9", HUB, count=8) + plain(A, B) + plain("192.0.2.9", HUB, count=2)),)),
    Packets(0, from_host("10.10.0.77", count=20)),
    Packets(0, from_host("10.10.0.77", count=20) + from_host(A, count=3) + from_host("10.10.0.77") + from_host(A)),
)


def test_drops_are_counted_by_reason() -> None:
    assert compare(Scenario(UNKNOWN)).get("native", 20) >= 20


@pytest.mark.parametrize("tcp", [True, False])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("server", [True, False])
def test_the_end_of_a_stream_wherever_it_comes(server: bool, reset: bool, tcp: bool) -> None:
    """A reset is told as a reset, and an end as what it is there: of the body, within a frame, within a chunk."""
    whole = chunked(plain(A, HUB, 100, 4), 60)
    for rest in (b"", whole[:1], whole[:3], whole[:30], whole[:-2], whole + b"0\r\n\r\n", whole + b"0\r\n"):
        pieces = Bytes(0, (whole, whole, rest) if rest else (whole, whole))
        compare(Scenario((pieces, End(0, reset), *ORDINARY[4:]), server=server, tcp=tcp))


def test_the_end_of_an_older_stream_leaves_the_newer_one_to_the_plane() -> None:
    """The older one's socket is full at the rotation; its task ends after the newer one's was lent. What the newer one
    has not taken then goes on at once, and not when the next packet comes."""
    burst = Packets(0, from_host(HUB, 1400, 130))  # two bursts of the plane
    for _ in range(3):
        scenario = Scenario((Packets(0, from_host(HUB)), burst, Rotate(0), burst), server=False, small_sockets=True)
        compare(scenario)
        compare(replace(scenario, steps=scenario.steps[:-1]))


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("size", [60, 61, 1400])
def test_merging(server: bool, size: int) -> None:
    addresses = bytes([10, 10, 0, 2, 10, 10, 0, 1])
    one = [udp(bytes(size) + bytes([n]) * 8, ident=n, addresses=addresses) for n in range(50)]
    two = [udp(bytes(size) + bytes([n]) * 8, ident=n, port=8, addresses=addresses) for n in range(50)]
    mixed = [it for pair in zip(one, two, strict=True) for it in pair]
    bursts = [Bytes(0, (chunked(b"".join(frames), 1 << 16),)) for frames in (one, mixed, one[:20], two, mixed, one)]
    steps = tuple(step for burst in bursts for step in (burst, Take(1 << 30)))
    # All but what came before the loan, what there was no verdict on, and what the device had no room for.
    assert compare(Scenario(steps, server=server))["native"] >= (220 if size < 1000 else 50)


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("small_device", [True, False])
def test_merging_segments_and_packets_of_many_kinds(server: bool, small_device: bool) -> None:
    """Also where the device is full in between, so that Python writes the rest."""
    key = bytes([10, 10, 0, 2, 10, 10, 0, 1])
    one, two = ([tcp(bytes([n]) * 1000, n * 1000, port=port, addresses=key) for n in range(60)] for port in (1, 2))
    dgrams = [udp(bytes([n]) * (1000 if n % 9 else 7), ident=n, addresses=key) for n in range(60)]
    plains = [plain(A, HUB)] * 60
    for flows in ((one,), (one, two), (one, two, dgrams), (dgrams, plains), (one, dgrams, plains[:3])):
        mixed = b"".join(it for group in itertools.zip_longest(*flows, fillvalue=b"") for it in group)
        steps = (Bytes(0, (chunked(plain(A, HUB)),)), *(Bytes(0, (chunked(mixed, 1 << 17),)),) * 2, Take(5)) * 2
        compare(Scenario(steps, server=server, small_device=small_device))


def test_thousands_of_frames_in_one_receive() -> None:
    """More than one turn of either path takes; some of them Python's. And more comes meanwhile."""
    many = plain(A, HUB, 24, 2500)
    steps = (
        Bytes(0, (chunked(plain(A, HUB) + plain(A, B)),)),
        Bytes(0, (chunked(many + plain(A, C, 24, 40) + plain(A, B, 24, 40) + many, 1 << 17),)),
        Bytes(0, (chunked((plain(A, B, 24) + BASE_PING) * 3000, 1 << 17),)),
        Bytes(0, (chunked(many + control.ping(7) + many, 1 << 17),)),
    )
    compare(Scenario(steps))
    compare(Scenario(steps, server=False))


@pytest.mark.parametrize("server", [True, False])
def test_every_cut_of_a_stream(server: bool) -> None:
    """Whole frames, pings, a control frame, an echo, an extension, a trailer and the end, one byte at a time."""
    body = (
        chunked(plain(A, HUB, 24, 3), 20)
        + chunked(BASE_PING + control.ping(1) + plain(A, HUB, 24), 7)
        + b"1;x=y\r\n\0\r\n0002\r\n\0\x18\r\n"
        + chunked(b"\0" + frame(ipv4(A, HUB, bytes(4)))[2:] + encode_echo(5), 13)
        + b"0\r\nName: value\r\n\r\nGET / HTTP/1.1\r\n"
    )
    steps: tuple[Step, ...] = (
        Bytes(0, (chunked(plain(A, HUB, 60, 2)),)),
        Bytes(0, tuple(body[at : at + 1] for at in range(len(body)))),
    )
    compare(Scenario(steps, server=server))


# ------------------------------------------------------------------ any scenario

vnet_headers = st.one_of(
    st.just(bytes(12)),
    st.sampled_from(
        [
            struct.pack("<BBHHHHH", 1, 0, 0, 0, 20, 6, 0),
            struct.pack("<BBHHHHH", 0x80, 0, 0, 0, 0, 0, 0),
            struct.pack("<BBHHHHH", 1, 1, 40, 1, 20, 16, 0),
            struct.pack("<BBHHHHH", 1, 1, 40, 1400, 20, 16, 0),
            struct.pack("<BBHHHHH", 1, 5, 0, 100, 20, 6, 0),
            struct.pack("<BBHHHHH", 1, 0, 0, 0, 40_000, 6, 0xFFFF),
            struct.pack("<BBHHHHH", 1, 0, 0, 0, 40, 6, 0),
            struct.pack("<BBHHHHH", 1, 4, 60, 1400, 40, 16, 0),
            struct.pack("<BBHHHHH", 1, 4, 60, 1, 40, 16, 0),
        ]
    ),
)
sizes = st.sampled_from([20, 24, 41, 60, 576, 1400, 1500, 9000])
addresses = st.sampled_from(ADDRESSES)
addresses6 = st.sampled_from([*ADDRESSES6, *CLIENTS6, HUB6])


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    size = draw(sizes)
    if draw(st.booleans()):
        return ipv4(draw(addresses), draw(addresses), draw(st.binary(max_size=4)).ljust(max(0, size - 20), b"\7"), 253)
    payload = draw(st.binary(max_size=4)).ljust(max(0, size - 40), b"\7")
    whole = ipv6(draw(addresses6), draw(addresses6), payload, draw(st.sampled_from([253, 253, 6, 17, 0, 44, 60])))
    cut = draw(st.sampled_from([*["whole"] * 12, "jumbogram", "short"]))
    return whole[:4] + bytes(2) + whole[6:] if cut == "jumbogram" else whole[:39] if cut == "short" else whole


def udp_packet(key: bytes, port: int, number: int, size: int) -> bytes:
    return udp(bytes([number]) * size, ident=number, port=port, addresses=key)


def tcp_segment(key: bytes, port: int, number: int, size: int) -> bytes:
    return tcp(bytes([number]) * size, number * 64, port=port, ident=number, addresses=key)


@st.composite
def items(draw: st.DrawFn) -> bytes:
    """Something that stands in the body of a stream; mostly frames."""
    kind = draw(st.integers(0, 19))
    if kind < 9:
        return frame(draw(packets()), draw(vnet_headers)) * draw(st.sampled_from([1, 1, 2, 7, 8, 9, 30]))
    if kind < 11:
        source, destination = draw(addresses), draw(addresses)
        key = bytes(map(int, f"{source}.{destination}".split(".")))
        count, size, flows = (
            draw(st.integers(1, 30)),
            draw(st.sampled_from([16, 17, 64, 1200])),
            draw(st.integers(1, 3)),
        )
        last = draw(st.sampled_from([size, size, 9]))
        make = udp_packet if draw(st.booleans()) else tcp_segment
        frames = [make(key, n % flows, n // flows, size if n < count - 1 else last) for n in range(count)]
        damage = draw(st.sampled_from([None, None, 24, 33, 40, 50]))  # checksums and others
        if damage is not None:
            victim = frames[count // 2]
            frames[count // 2] = victim[:damage] + bytes([victim[damage] ^ 1]) + victim[damage + 1 :]
        return b"".join(frames)
    match kind:
        case 11:
            ends = draw(st.sampled_from([addresses, addresses6]))
            size = draw(st.sampled_from([1, 1400, 5000, 60_000]))
            return tso(draw(ends), draw(ends), size, extensions=draw(st.integers(0, 2)))
        case 12:
            return BASE_PING * draw(st.integers(1, 20))
        case 13:
            return encode_echo(draw(st.integers(0, 9)))
        case 14:
            return control.ping(draw(st.integers(0, 9)))
        case 15:
            kinds = st.sampled_from([control.AGENT, control.PADDING, control.UPLOAD_SEEN, 77])
            return control.encode(draw(kinds), draw(st.binary(max_size=30)))
        case 16:
            return frame(b"\x60" + bytes(draw(st.sampled_from([19, 39, 80]))))
        case 17 | 18:
            return frame(ipv4(draw(addresses), draw(addresses)))
        case _:  # malformed, perhaps
            return draw(st.one_of(st.binary(max_size=40), st.just(frame(bytes(20))), st.just(b"\5\0xxxxx")))


@st.composite
def bodies_of(draw: st.DrawFn, items: st.SearchStrategy[bytes]) -> bytes:
    """A chunked body of these, or what looks like one."""
    data = b"".join(draw(st.lists(items, max_size=6)))
    out = bytearray()
    for piece in cut(data, draw(cuts)):
        style = draw(st.integers(0, 40))
        line = b"%x" % len(piece)
        if style == 0:
            line = line.upper().rjust(draw(st.integers(1, 17)), b"0")
        elif style == 1:
            line += draw(st.sampled_from([b";a=b", b" ;x", b"\t", b";" * 100]))
        end = b"\r\n"
        if style == 2:
            end = draw(st.sampled_from([b"\n", b"\r", b"x\r\n", b"", b"\r\r\n"]))
        out += line + b"\r\n" + piece + end
    match draw(st.integers(0, 9)):
        case 0:
            out += LAST_CHUNK + draw(st.sampled_from([b"", b"PUT / HTTP/1.1\r\n"]))
        case 1:
            out += b"0\r\nA: b\r\n" + draw(st.sampled_from([b"\r\n", b"", b" bad\r\n"]))
        case 2:
            out += draw(
                st.sampled_from([b"fffffffffffffff\r\n", b"10000000000000000\r\n", b"g\r\n", b"\r\n", b"-1\r\n"])
            )
    return bytes(out)


@st.composite
def arrivals(draw: st.DrawFn) -> Bytes:
    return Bytes(draw(st.integers(0, 2)), tuple(cut(draw(bodies_of(items())), draw(cuts))))


host_frames = st.one_of(
    st.builds(lambda packet, count: (bytes(12) + packet,) * count, packets(), st.sampled_from([1, 2, 8, 40])),
    st.builds(lambda a, size: (tso("198.51.100.1", a, size)[2:],), addresses, st.sampled_from([100, 9000, 60_000])),
    st.builds(lambda a, size: (tso(OUTSIDE6, a, size)[2:],), addresses6, st.sampled_from([100, 9000, 60_000])),
    st.sampled_from([(bytes(12) + b"\x60" + bytes(39),), (bytes(12),), (bytes(31),), (b"\1" * 12 + bytes(20),)]),
)
deliveries = st.builds(
    lambda queue, groups: Packets(queue, tuple(itertools.chain(*groups))),
    st.integers(0, 1),
    st.lists(host_frames, max_size=6),
)
steps = st.one_of(
    arrivals(),
    arrivals(),
    deliveries,
    st.builds(Take, st.sampled_from([1, 5, 1 << 30])),
    st.builds(Read, st.integers(0, 2), st.sampled_from([1, 1000, 1 << 20])),
    st.builds(End, st.integers(0, 2), st.booleans()),
    st.builds(Break, st.integers(0, 2)),
    st.builds(Rotate, st.integers(0, 2)),
    st.builds(Reload, st.sampled_from([1, 2, 3, 3, 3])),
)
scenarios = st.builds(
    Scenario,
    steps=st.lists(steps, min_size=1, max_size=8).map(tuple),
    server=st.sampled_from([True, True, False]),
    control=st.booleans(),
    ipv6=st.tuples(*[st.sampled_from([True, True, False])] * 3),
    queues=st.sampled_from([1, 2]),
    small_sockets=st.booleans(),
    small_device=st.booleans(),
    tcp=st.booleans(),
)


@settings(
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(scenarios)
def test_all_paths_do_the_same(scenario: Scenario) -> None:
    compare(scenario)
