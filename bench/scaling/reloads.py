"""How long a server holds a bystander up while its config changes by thousands of clients, and while it is scraped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tests.harness import ROOT, CommandError, Host, Lab, Process, wait_for_ping

from ..variants import SERVER, installed
from .crowd import PORT, TUNNEL, Point, Tell, token_of

FEW: Final = 200
MANY: Final = 5000
ROUTES_EACH: Final = 2
IDLE: Final = "idle"
INTERVAL_S: Final = 0.005
_TOKEN: Final = "of-the-bystander"
_IDLE_S: Final = 2.0
_BEFORE_S: Final = 0.3
_AFTER_S: Final = 0.7  # what an action leaves to be done is part of it
_START_S: Final = 60.0
_ACTION_S: Final = 60.0
_ADMIN: Final = 9433
_REPLY: Final = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from ", re.MULTILINE)
_COUNTS: Final = re.compile(r"(\d+) packets transmitted, (\d+) received")


@dataclass
class Gaps:
    """By what was done meanwhile, a sample a round: the largest gap between two answers to a bystander's pings in ms,
    and how long it took in s. ``lost``: pings, of all rounds."""

    few: int = FEW
    many: int = MANY
    interval_ms: float = 1e3 * INTERVAL_S
    largest_ms: dict[str, list[float]] = field(default_factory=dict)
    took_s: dict[str, list[float]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


def largest_gap_ms(output: str) -> float:
    """Between two answers, as `ping -D` printed them. Raises CommandError if there are not even two."""
    times = [float(match[1]) for match in _REPLY.finditer(output)]
    if len(times) < 2:
        raise CommandError(f"the bystander's pings had {len(times)} answers: {output[-500:]}")
    return 1e3 * max(later - earlier for earlier, later in pairwise(times))


def config_of(count: int, *more_routes: str) -> str:
    """The server's file, with ``count`` clients besides the bystander. ``more_routes``: of the first of them."""
    point, base = Point("reloads", count, 0), int(IPv4Address("100.64.0.0"))
    digest = hashlib.sha1(_TOKEN.encode()).hexdigest()
    entries: list[dict[str, Any]] = [{"name": "bystander", "token": digest, "ip": "10.10.0.2"}]
    for number in range(count):
        first = base + 16 * ROUTES_EACH * number
        networks = [f"{IPv4Address(first + 16 * index)}/28" for index in range(ROUTES_EACH)]
        entries.append({**point.client(number), "routes": networks + (list(more_routes) if number == 0 else [])})
    server = {"name": "tun0", "listen": SERVER, "port": PORT, "net": f"{TUNNEL}/16", "clients": entries}
    return json.dumps({"interfaces": [server], "admin": {"listen": _ADMIN}})


@dataclass(frozen=True)
class World:
    """A server with 200 clients that are connected and idle, and a bystander that pings it."""

    server: Host
    bystander: Host
    daemon: Process
    config: Path

    def reload(self, content: str) -> None:
        """Raises CommandError if it is refused."""
        self.config.write_text(content, encoding="utf-8")
        self.server.run([str(installed()), "reload"], timeout=_ACTION_S)

    def scrape(self) -> None:
        """Raises CommandError."""
        argv = ["curl", "--fail", "--silent", "--show-error", "-o", "/dev/null", f"http://127.0.0.1:{_ADMIN}/metrics"]
        self.server.run(argv, timeout=_ACTION_S)


@contextmanager
def world() -> Iterator[World]:
    """Everything connected. Raises HarnessError."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        server, crowd, bystander = lab.host("server"), lab.host("crowd"), lab.host("bystander")
        lab.link(server, f"{SERVER}/24", crowd, "192.0.2.2/24")
        lab.link(server, "198.18.0.1/24", bystander, "198.18.0.2/24")
        bystander.run(f"ip route add {SERVER} via 198.18.0.1".split())
        config = server.tmp / "tapotun.json"
        config.touch(mode=0o600)
        config.write_text(config_of(FEW), encoding="utf-8")
        daemon = stack.enter_context(server.start([installed(), config]))
        daemon.wait_for_log("started: ", _START_S)
        settings = {
            "server": SERVER,
            "port": PORT,
            "destination": TUNNEL,
            "keepalive_s": 10.0,
            "clients": [{"token": token_of(number), "sources": []} for number in range(FEW)],
        }
        crowd_config, fifo = crowd.tmp / "crowd.json", crowd.tmp / "orders"
        crowd_config.write_text(json.dumps(settings), encoding="utf-8")
        os.mkfifo(fifo)
        argv = [sys.executable, "-m", "bench.scaling.fakeclients", str(crowd_config), str(fifo)]
        stack.enter_context(crowd.start(argv, name="crowd", cwd=ROOT)).wait_for_log("^ready$", _START_S)
        client = bystander.tmp / "tapotun.json"
        client.touch(mode=0o600)
        definition = {"name": "tun0", "server": f"http://{SERVER}:{PORT}/ip", "token": _TOKEN}
        client.write_text(json.dumps([definition]), encoding="utf-8")
        stack.enter_context(bystander.start([installed(), client]))
        wait_for_ping(bystander, TUNNEL, 20)
        yield World(server, bystander, daemon, config)


def _measure(setup: World, name: str, action: Callable[[], None], found: Gaps, tell: Tell) -> None:
    argv = ["ping", "-n", "-D", "-i", f"{INTERVAL_S:g}", TUNNEL]
    with setup.bystander.start(argv, name="ping") as pings:
        time.sleep(_BEFORE_S)
        begun = time.monotonic()
        action()
        took_s = time.monotonic() - begun
        time.sleep(_AFTER_S)
        pings.stop(with_signal=signal.SIGINT)
        output = pings.log
    counts = _COUNTS.search(output)
    if counts is None:
        raise CommandError(f"ping does not say how many answers it had: {output[-500:]}")
    lost = int(counts[1]) - int(counts[2])
    gap_ms = largest_gap_ms(output)
    found.largest_ms.setdefault(name, []).append(gap_ms)
    found.took_s.setdefault(name, []).append(took_s)
    found.lost[name] = found.lost.get(name, 0) + lost
    tell(f"  {name:32} took {took_s:5.2f} s, largest gap {gap_ms:7.1f} ms, {lost} lost")


def reloads(rounds: int, tell: Tell) -> Gaps:
    """Each round goes from few clients to many and back. Raises HarnessError."""
    few, many, changed = config_of(FEW), config_of(MANY), config_of(MANY, "192.168.77.0/24")
    found = Gaps()
    with world() as setup:
        actions: dict[str, Callable[[], None]] = {
            IDLE: lambda: time.sleep(_IDLE_S),
            f"{FEW:,} to {MANY:,} clients": lambda: setup.reload(many),
            f"one route of {MANY:,} clients": lambda: setup.reload(changed),
            f"a scrape of {MANY:,} clients": setup.scrape,
            f"{MANY:,} to {FEW:,} clients": lambda: setup.reload(few),
        }
        for _ in range(rounds):
            for name, action in actions.items():
                _measure(setup, name, action, found, tell)
            setup.daemon.check_running()
    return found
