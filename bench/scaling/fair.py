"""Equal clients under load, each a program of its own on a machine of its own, together with a slow one."""

from __future__ import annotations

import hashlib
import json
import socket
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.harness import CommandError, Host, Lab, Process, wait_for_ping

from ..stats import jain
from ..variants import installed

EQUAL: Final = 8
SLOW: Final = EQUAL  # the number of the ninth client
TUNNEL: Final = "10.10.0.1"
# What it is sent, and what its cable carries when it is slow: a fifth of that.
SLOW_PPS: Final = 2000
SLOW_BYTES: Final = 1400
SLOW_CABLE: Final = "5mbit"
_PORT: Final = 8080
_GRACE_S: Final = 20.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class World:
    """A server, and nine clients connected to it."""

    server: Host
    clients: list[Host]


@contextmanager
def world(env: Mapping[str, str] | None = None) -> Iterator[World]:
    """Each client has a cable of its own to the server, eth0 to eth8 there. Raises HarnessError.

    `env` is added to every daemon's environment.
    """
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        server = lab.host("server")
        clients = [lab.host(f"client{number}") for number in range(EQUAL + 1)]
        entries = []
        for number, client in enumerate(clients):
            lab.link(server, f"198.18.{number}.1/24", client, f"198.18.{number}.2/24")
            digest = hashlib.sha1(_token(number).encode()).hexdigest()
            entries.append({"name": client.name, "token": digest, "ip": _ip(number)})
        definition = {"name": "tun0", "listen": "0.0.0.0", "port": _PORT, "net": f"{TUNNEL}/24", "clients": entries}
        daemon = stack.enter_context(_daemon(server, definition, env))
        server.wait_for_listener(_PORT, by=daemon)
        for number, client in enumerate(clients):
            url = f"http://198.18.{number}.1:{_PORT}/ip"
            stack.enter_context(_daemon(client, {"name": "tun0", "server": url, "token": _token(number)}, env))
            stack.enter_context(server.start(["iperf3", "-s", "-p", str(5201 + number)]))
        for client in clients:
            wait_for_ping(client, TUNNEL, 20)
        yield World(server, clients)


def _daemon(host: Host, definition: dict[str, Any], env: Mapping[str, str] | None) -> Process:
    file = host.tmp / "tapotun.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([definition]), encoding="utf-8")
    return host.start([installed(), file], env=env)


def _token(number: int) -> str:
    return f"of-client-{number}"


def _ip(number: int) -> str:
    return f"10.10.0.{10 + number}"


def shares_gbit_s(setup: World, seconds: int, *options: str) -> list[float]:
    """What each of the equal clients got, all at once over one TCP stream each. Raises HarnessError."""
    running = []
    for number, client in enumerate(setup.clients[:EQUAL]):
        argv = ["iperf3", "-J", "-c", TUNNEL, "-p", str(5201 + number), "-t", str(seconds), *options]
        running.append(client.start(argv, name=f"iperf3-{number}"))
    shares = []
    for process in running:
        process.wait(seconds + _GRACE_S)
        answer = json.loads(process.log or "{}")
        if "error" in answer or "end" not in answer:
            raise CommandError(f"{process.name}: {answer.get('error', process.log)}")
        shares.append(answer["end"]["sum_received"]["bits_per_second"] / 1e9)
    return shares


@contextmanager
def _sending_to_the_ninth(setup: World, flood: Path, seconds: float) -> Iterator[None]:
    """UDP from the server, for so long, while the body runs."""
    targets = setup.server.tmp / "ninth"
    targets.write_text(f"{_ip(SLOW)}\n", encoding="ascii")
    with setup.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as tx:
        argv = [str(flood), str(tx.fileno()), f"@{targets}", str(SLOW_BYTES), str(SLOW_PPS), f"{seconds:g}"]
        with subprocess.Popen(argv, pass_fds=[tx.fileno()], stdout=subprocess.DEVNULL) as sender:
            try:
                yield
            finally:
                sender.kill()


@contextmanager
def _slow_cable(setup: World) -> Iterator[None]:
    """The way to the ninth client is narrow while the body runs."""
    interface = f"eth{SLOW}"
    setup.server.run(f"tc qdisc add dev {interface} root tbf rate {SLOW_CABLE} burst 8kb limit 64kb".split())
    try:
        yield
    finally:
        setup.server.run(f"tc qdisc del dev {interface} root".split())


def shares_beside(setup: World, flood: Path, seconds: int, beside: str, *options: str) -> list[float]:
    """What each of eight downloads got, in Gbit/s, while the ninth client is sent UDP.

    `beside`: ``nobody`` (it is sent nothing), ``fast``, or ``slow`` (its cable does not carry it). The options are
    iperf3's. Raises HarnessError.
    """
    with ExitStack() as stack:
        if beside == "slow":
            stack.enter_context(_slow_cable(setup))
        if beside != "nobody":
            stack.enter_context(_sending_to_the_ninth(setup, flood, seconds + _GRACE_S))
        return shares_gbit_s(setup, seconds, "-R", *options)


@dataclass
class Fairness:
    """Jain's index of each round, and what the eight got together (Gbit/s) by what the ninth did meanwhile."""

    up: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)
    beside: dict[str, list[float]] = field(default_factory=dict)
    beside_jain: dict[str, list[float]] = field(default_factory=dict)

    def kept(self, base: str) -> float:
        """The throughput of the eight together with a slow ninth, over theirs with `base`, in the same rounds."""
        pairs = zip(self.beside["slow"], self.beside[base], strict=True)
        return statistics.median(slow / other for slow, other in pairs)


def fairness(flood: Path, rounds: int, seconds: int, tell: Tell) -> Fairness:
    """All of it. Raises HarnessError."""
    found = Fairness()
    with world() as setup:
        tell("  nine clients are connected")
        for number in range(rounds):
            for way, options, into in (("up", [], found.up), ("down", ["-R"], found.down)):
                shares = shares_gbit_s(setup, seconds, *options)
                into.append(jain(shares))
                each = " ".join(f"{share:.2f}" for share in shares)
                tell(f"  round {number + 1}: {way:5} {each} Gbit/s, Jain {into[-1]:.3f}")
            for beside in ("nobody", "fast", "slow"):
                shares = shares_beside(setup, flood, seconds, beside)
                found.beside.setdefault(beside, []).append(sum(shares))
                found.beside_jain.setdefault(beside, []).append(jain(shares))
                tell(f"  round {number + 1}: down beside {beside:6} {sum(shares):.2f} Gbit/s, Jain {jain(shares):.3f}")
    return found
