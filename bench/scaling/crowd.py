"""A server with many clients that are one process: what a packet costs it, and what their mere presence does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from tests.harness import ROOT, CommandError, Host, Lab, Process

from ..accounts import fine_cpu_s, memory_mb
from ..variants import SERVER, installed

TUNNEL: Final = "10.10.0.1"
PORT: Final = 8080
_START_S: Final = 60.0

# Of each client that sends or is sent to, so many addresses take part where it has networks: what differs between the
# points of a curve is the size of the tables and nothing else.
_ADDRESSES: Final = 800
_PACKET_BYTES: Final = 64

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """One server: how many clients it has, and how many routes in all, spread evenly over the clients.

    Without routes (0) the clients have only their own addresses.
    """

    name: str
    clients: int
    routes: int

    def client(self, number: int) -> dict[str, Any]:
        """An entry of the server's config."""
        digest = hashlib.sha1(token_of(number).encode()).hexdigest()
        entry: dict[str, Any] = {"name": f"c{number}", "token": digest, "ip": _ip(number)}
        if self.routes:
            entry["routes"] = self.networks(number)
        return entry

    def networks(self, number: int) -> list[str]:
        """A client's: one /16, or as many /26 within it as there must be (800 to 1024). Raises ValueError."""
        each = self.routes // self.clients
        if each != 1 and not _ADDRESSES <= each <= 1024:
            raise ValueError(f"{each} routes a client: one, or {_ADDRESSES} to 1024")
        if each == 1:
            return [f"10.{128 + number}.0.0/16"]
        base = int(IPv4Address(f"10.{128 + number}.0.0"))
        return [f"{IPv4Address(base + 64 * index)}/26" for index in range(each)]

    def addresses(self, number: int) -> list[str]:
        """What takes part of a client's: its own address, or the first of each /26 that it has or would have."""
        if not self.routes:
            return [_ip(number)]
        base = int(IPv4Address(f"10.{128 + number}.0.1"))
        return [str(IPv4Address(base + 64 * index)) for index in range(_ADDRESSES)]


POINTS: Final = (
    Point("10 clients", 10, 0),
    Point("100 clients", 100, 0),
    Point("1,000 clients", 1000, 0),
    Point("10 routes", 10, 10),
    Point("10,000 routes", 10, 10_000),
)


def token_of(number: int) -> str:
    return f"of-fake-client-{number}"


def _ip(number: int) -> str:
    return str(IPv4Address("10.10.1.0") + number)


@dataclass(frozen=True)
class World:
    """A server under test, and the process that is its clients."""

    point: Point
    server: Host
    daemon: Process
    crowd: Process
    targets: Path
    _fifo: int
    empty_mb: float  # resident set of the server before anybody had come

    def up_us(self, rate: float, seconds: float) -> float:
        """CPU microseconds of the server for one packet that comes from a client. Raises HarnessError."""
        before, mark = fine_cpu_s(self.daemon.pid), self.crowd.log_end
        os.write(self._fifo, f"send {rate:.0f} {seconds:g}\n".encode())
        sent = int(self.crowd.wait_for_log(r"^sent (\d+)$", seconds + 20, after=mark)[1])
        self._drain()
        return (fine_cpu_s(self.daemon.pid) - before) * 1e6 / sent

    def down_us(self, flood: Path, rate: float, seconds: float) -> float:
        """The same for one that goes to a client. Raises HarnessError."""
        before, begin = fine_cpu_s(self.daemon.pid), self._handed_out()
        with self.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as tx:
            argv = [str(flood), str(tx.fileno()), f"@{self.targets}", str(_PACKET_BYTES), f"{rate:.0f}", f"{seconds:g}"]
            done = subprocess.run(argv, pass_fds=[tx.fileno()], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CommandError(f"udpflood failed with {done.returncode}: {done.stderr.strip()}")
        self._drain()
        return (fine_cpu_s(self.daemon.pid) - before) * 1e6 / (self._handed_out() - begin)

    def _handed_out(self) -> int:
        """Packets that the kernel has given the server by its TUN: what it had to drop first is not among them."""
        (link,) = self.server.ip("-s link show tun0")
        return int(link["stats64"]["tx"]["packets"])

    def _drain(self) -> None:
        """Until the server sleeps: two looks between which it used less than a tenth of the time."""
        for _ in range(50):
            before = fine_cpu_s(self.daemon.pid)
            time.sleep(0.05)
            if fine_cpu_s(self.daemon.pid) - before < 0.005:
                return


@contextmanager
def world(lab: Lab, point: Point, *, keepalive_s: float | None = None) -> Iterator[World]:
    """Everything connected. `keepalive_s`: the clients are our own kind; otherwise they are deployed peers."""
    slug = re.sub(r"\W+", "-", point.name)
    server, host = lab.host(f"{slug}-server"), lab.host(f"{slug}-clients")
    lab.link(server, f"{SERVER}/24", host, "192.0.2.2/24")
    clients = range(point.clients)
    definition: dict[str, Any] = {
        "name": "tun0",
        "listen": SERVER,
        "port": PORT,
        "net": f"{TUNNEL}/16",
        "clients": [point.client(number) for number in clients],
    }
    if keepalive_s is not None:
        definition["keepalive"] = int(keepalive_s)
    config = server.tmp / "tapotun.json"
    config.write_text(json.dumps([definition]), encoding="utf-8")
    settings = {
        "server": SERVER,
        "port": PORT,
        "destination": TUNNEL,
        "keepalive_s": keepalive_s,
        "clients": [{"token": token_of(client), "sources": point.addresses(client)} for client in clients],
    }
    crowd_config = host.tmp / "crowd.json"
    crowd_config.write_text(json.dumps(settings), encoding="utf-8")
    targets = server.tmp / "targets"
    # A packet for each client in turn, so that no two for one client come together, for any number of clients.
    in_turn = zip(*(point.addresses(client) for client in clients), strict=True)
    targets.write_text("".join(f"{address}\n" for lap in in_turn for address in lap), encoding="ascii")
    fifo = host.tmp / "orders"
    os.mkfifo(fifo)
    with ExitStack() as stack:
        held = os.open(fifo, os.O_RDWR)
        stack.callback(os.close, held)
        daemon = stack.enter_context(server.start([installed(), config]))
        daemon.wait_for_log("started: ", _START_S)
        sink = stack.enter_context(server.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind((TUNNEL, 9))  # never read: what comes is dropped without an ICMP error
        empty_mb = memory_mb(daemon.pid, "VmRSS")
        argv = [sys.executable, "-m", "bench.scaling.fakeclients", str(crowd_config), str(fifo)]
        crowd = stack.enter_context(host.start(argv, name="crowd", cwd=ROOT))
        crowd.wait_for_log("^ready$", _START_S)
        yield World(point, server, daemon, crowd, targets, held, empty_mb)


@dataclass
class Cost:
    """CPU microseconds of a server for one packet, by point, a sample a round."""

    up: dict[str, list[float]] = field(default_factory=dict)
    down: dict[str, list[float]] = field(default_factory=dict)


def cost_curve(flood: Path, rounds: int, seconds: float, up_rate: float, down_rate: float, tell: Tell) -> Cost:
    """All points up at once, measured in turn. Raises HarnessError."""
    cost = Cost()
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        worlds = []
        for point in POINTS:
            begun = time.monotonic()
            worlds.append(stack.enter_context(world(lab, point)))
            tell(f"  {point.name}: up and connected in {time.monotonic() - begun:.1f} s")
        for number in range(rounds):
            for each in worlds:
                cost.up.setdefault(each.point.name, []).append(each.up_us(up_rate, seconds))
                cost.down.setdefault(each.point.name, []).append(each.down_us(flood, down_rate, seconds))
                up, down = cost.up[each.point.name][-1], cost.down[each.point.name][-1]
                tell(f"  round {number + 1}: {each.point.name:14} up {up:6.2f} us, down {down:6.2f} us a packet")
    return cost


@dataclass(frozen=True)
class Idle:
    """What idle clients cost a server: percent of a core, and the resident set for each of them."""

    clients: int
    keepalive_s: float
    cpu_percent: float
    empty_mb: float
    full_mb: float

    @property
    def mb_per_client(self) -> float:
        """In units of 10^6 bytes."""
        return (self.full_mb - self.empty_mb) / self.clients


def idle(clients: int, keepalive_s: float, seconds: float) -> Idle:
    """Clients of our own kind, which ping at the keepalive and are pinged. Raises HarnessError."""
    with Lab() as lab, world(lab, Point("idle", clients, 0), keepalive_s=keepalive_s) as it:
        time.sleep(2.0)  # what their coming has cost is not what is asked
        shares = []
        for _ in range(2):
            before, begun = fine_cpu_s(it.daemon.pid), time.monotonic()
            time.sleep(seconds / 2)
            shares.append((fine_cpu_s(it.daemon.pid) - before) / (time.monotonic() - begun))
            it.crowd.check_running()
        full_mb = memory_mb(it.daemon.pid, "VmRSS")
    return Idle(clients, keepalive_s, 100 * statistics.fmean(shares), it.empty_mb, full_mb)
