"""One run: TCP flows through the tunnel, and beside them small requests of flows of their own."""

from __future__ import annotations

import json
import math
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from tests.harness import CommandError, Host

from ..stats import percentile
from .plan import Load, Plan
from .world import World, ends

IPERF_PORT: Final = 5201
ECHO_PORT: Final = 7
# Requests: flows, and how often each sends one. 80 small packets a second are little beside the TCP flows, and give
# 640 samples in 8 s. An answer that takes longer than this counts as lost.
REQUEST_FLOWS: Final = 8
REQUEST_EVERY_S: Final = 0.1
REQUEST_BYTES: Final = 64
LOST_AFTER_S: Final = 2.0
_FIRST_PORT: Final = 40000
_GRACE_S: Final = 15.0
_REQUEST: Final = struct.Struct("!d")


@dataclass(frozen=True)
class Delays:
    """Round trips of requests in ms: 50, 95 and 99 %; infinite where so many were lost."""

    median: float
    p95: float
    p99: float
    lost_percent: float
    count: int

    @classmethod
    def of(cls, found_ms: Sequence[float]) -> Delays:
        """Of these round trips, infinite for a request that was not answered. Raises ValueError if there are none."""
        lost = sum(math.isinf(it) for it in found_ms)
        median, p95, p99 = (percentile(found_ms, percent) for percent in (50, 95, 99))
        return cls(median, p95, p99, 100 * lost / len(found_ms), len(found_ms))


@dataclass(frozen=True)
class Run:
    """What one run has shown.

    Attributes:
        mbit_s: payload received of all TCP flows together.
        cores: how many cores both daemons together kept busy, the warm-up included.
        every: round trips of the requests of all flows.
        beside: of the flows through pairs that no TCP flow uses in the direction of the load; None: there were none.
        used: how many pairs the TCP flows used.
    """

    mbit_s: float
    cores: float
    every: Delays
    beside: Delays | None
    used: int


def measure(world: World, load: Load, plan: Plan, number: int) -> Run:
    """One run. `number` makes its ports differ from those of the run before. Raises HarnessError."""
    server, client = ends(load.pairs)
    seconds = plan.warm_up_s + plan.measured_s
    port = _FIRST_PORT + number * 16 % 16000
    congestion = world.cell.congestion if load.pairs == 0 else "cubic"
    argv = ["iperf3", "-J", "-c", server, "-B", client, "--cport", str(port), "-P", str(load.flows)]
    argv += ["-C", congestion, "-O", str(plan.warm_up_s), "-t", str(plan.measured_s), *(["-R"] if load.down else [])]
    with world.server.start(["iperf3", "-s", "-1", "-p", str(IPERF_PORT), "-B", server], name="iperf3-s") as listener:
        world.server.wait_for_listener(IPERF_PORT, by=listener)
        begun, cpu_s = time.monotonic(), world.cpu_s()
        iperf = world.client.start(argv, name="iperf3")
        with Requests(world.client, world.server, client, server, port) as requests:
            requests.exchange(plan.warm_up_s)
            requests.forget()
            requests.exchange(plan.measured_s)
            found_ms = requests.finish()
        iperf.wait(seconds + _GRACE_S)
        cores = (world.cpu_s() - cpu_s) / (time.monotonic() - begun)
        answer: dict[str, Any] = json.loads(iperf.log or "{}")
        if "error" in answer or "end" not in answer:
            raise CommandError(f"`{' '.join(argv)}`: {answer.get('error', iperf.log)}")
        listener.wait(_GRACE_S)
    world.check()
    flows = [(it["local_port"], it["remote_port"]) for it in answer["start"]["connected"]]
    tcp_pairs = {_pair(world, load, "tcp", client, own, server, other) for own, other in flows}
    beside = [
        trip
        for own, trips in found_ms.items()
        if _pair(world, load, "udp", client, own, server, ECHO_PORT) not in tcp_pairs
        for trip in trips
    ]
    return Run(
        mbit_s=answer["end"]["sum_received"]["bits_per_second"] / 1e6,
        cores=cores,
        every=Delays.of([trip for trips in found_ms.values() for trip in trips]),
        beside=Delays.of(beside) if beside else None,
        used=len(tcp_pairs),
    )


def _pair(world: World, load: Load, protocol: str, client: str, own: int, server: str, other: int) -> str:
    """Through which pair the flow goes in the direction of the load."""
    if load.down:
        return world.pair_of(world.server, protocol, (server, other), (client, own))
    return world.pair_of(world.client, protocol, (client, own), (server, other))


class Requests:
    """Small requests over UDP, of several flows, each answered at once. A context manager.

    Client and server are sockets of this one thread: it does little else, and a round trip is its own clock's.
    """

    def __init__(self, client: Host, server: Host, address: str, target: str, first_port: int) -> None:
        self._sockets = ExitStack()
        self._by_fd: dict[int, tuple[int, socket.socket]] = {}
        self._poll = select.poll()
        self._sent: dict[int, int] = {}
        self._trips: dict[int, list[float]] = {}
        with ExitStack() as undo:
            self._echo = undo.enter_context(server.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._echo.bind((target, ECHO_PORT))
            self._echo.setblocking(False)
            self._poll.register(self._echo, select.POLLIN)
            for port in range(first_port, first_port + REQUEST_FLOWS):
                sock = undo.enter_context(client.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((address, port))
                sock.connect((target, ECHO_PORT))
                sock.setblocking(False)
                self._by_fd[sock.fileno()] = port, sock
                self._poll.register(sock, select.POLLIN)
            self._sockets = undo.pop_all()
        self._begun = 0.0
        self.forget()

    def __enter__(self) -> Requests:
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()

    def forget(self) -> None:
        """Requests sent before this do not count."""
        self._begun = time.monotonic()
        self._sent = {port: 0 for port, _ in self._by_fd.values()}
        self._trips = {port: [] for port, _ in self._by_fd.values()}

    def exchange(self, seconds: float) -> None:
        """Send and answer for that long. The flows send in turn, evenly spread."""
        pause = REQUEST_EVERY_S / REQUEST_FLOWS
        flows = list(self._by_fd.values())
        begun = time.monotonic()
        for number in range(int(seconds / pause)):
            port, sock = flows[number % len(flows)]
            with suppress(BlockingIOError):  # its queue is full: as good as lost, since it is counted as sent
                sock.send(_REQUEST.pack(time.monotonic()) + bytes(REQUEST_BYTES - _REQUEST.size))
            self._sent[port] += 1
            self._serve(begun + (number + 1) * pause)

    def finish(self) -> dict[int, list[float]]:
        """Wait for the last answers. The round trips in ms by port; infinite for each request without an answer."""
        self._serve(time.monotonic() + LOST_AFTER_S)
        return {port: trips + [math.inf] * (self._sent[port] - len(trips)) for port, trips in self._trips.items()}

    def _serve(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(left * 1000):
                if fd == self._echo.fileno():
                    data, sender = self._echo.recvfrom(2048)
                    self._echo.sendto(data, sender)
                else:
                    port, sock = self._by_fd[fd]
                    (sent_at,) = _REQUEST.unpack_from(sock.recv(2048))
                    trip = time.monotonic() - sent_at
                    if sent_at >= self._begun and trip <= LOST_AFTER_S:
                        self._trips[port].append(trip * 1000)
