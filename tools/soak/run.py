"""Runs a seeded schedule of faults and reports on each."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from tests.harness import Lab, WaitError, no_leaks, wait_until
from tests.integrity import Direction
from tests.netns.topologies import mtu

from . import BOUNDS_S
from .streams import Streams
from .topology import FAULTS, HURRIED_PAUSE_S, LATE_S, PAUSE_S, SOON_S, World, machines, recovery_s, world

RATE: Final = 100.0
BETWEEN_S: Final = (0.0, 0.5)
ON_TIME: Final = 0.85  # of the time that a fault may take on average
# Faults that cost little time come more often, so that 200 of them fit into ten minutes. A new client has no history of
# failures that makes it wait.
WEIGHTS: Final = {
    "kill -9 client": 6,
    "rotation": 6,
    "cable unplugged": 2,
    "client paused": 2,
    "nginx restart": 2,
    "server paused": 2,
}


@dataclass(frozen=True)
class Recovery:
    """One fault, and the seconds until traffic flowed again; infinite if it never did."""

    number: int
    kind: str
    detail: str
    seconds: float

    @property
    def held(self) -> bool:
        """It was within the bound of its kind."""
        return self.seconds <= BOUNDS_S[self.kind]

    def __str__(self) -> str:
        return f"{self.number:4} {self.kind} ({self.detail}): {self.seconds:.2f} s{'' if self.held else ', TOO LATE'}"


@dataclass
class Report:
    """What a soak has shown."""

    seed: int
    planned: int
    recoveries: list[Recovery] = field(default_factory=list)
    ways: list[Direction] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        """What was not as it should be."""
        found = [f"fault {recovery}" for recovery in self.recoveries if not recovery.held]
        found += [f"{way}" for way in self.ways if way.duplicated or way.corrupted]
        if len(self.recoveries) < self.planned:
            found.append(f"only {len(self.recoveries)} of {self.planned} faults were tried")
        return found

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {len(self.recoveries)} faults in {self.seconds:.0f} s; seconds until traffic:"]
        lines.append(f"  {'':26} {'count':>5} {'median':>7} {'worst':>7} {'bound':>7}")
        for kind, bound_s in BOUNDS_S.items():
            took = [recovery.seconds for recovery in self.recoveries if recovery.kind == kind]
            if took:
                lines.append(
                    f"  {kind:26} {len(took):5} {statistics.median(took):7.2f} {max(took):7.2f} {bound_s:7.1f}"
                )
        lines += [f"  {way}" for way in self.ways]
        return "\n".join(lines)


def schedule(rng: random.Random, count: int, kinds: Collection[str] = FAULTS) -> list[str]:
    """As many kinds: every kind once, then in rounds in which each comes as often as its weight says."""
    plan: list[str] = []
    deck = sorted(kinds)
    while len(plan) < count:
        rng.shuffle(deck)
        plan += deck
        deck = sorted(kind for kind in kinds for _ in range(WEIGHTS.get(kind, 1)))
    return plan[:count]


def soak(
    lab: Lab,
    seed: int,
    count: int,
    limit_s: float,
    tell: Callable[[str], None] = lambda text: None,
    kinds: Collection[str] = FAULTS,
) -> Report:
    """Break `count` things of these kinds, for at most `limit_s`. Nothing may remain on the hosts at the end.

    Raises what the harness raises if the soak itself could not go on, and LeakError.
    """
    rng = random.Random(seed)
    report = Report(seed, count)
    begun = time.monotonic()
    server, client, old = machines(lab)
    with no_leaks(server, client, old, settle_s=5.0):
        with world(server, client, old) as setup:
            with Streams(client, server, RATE) as udp:
                udp.wait_for_flow(timeout=SOON_S)
                for number, kind in enumerate(schedule(rng, count, kinds)):
                    spent_s = time.monotonic() - begun
                    if spent_s > limit_s:
                        break
                    # The backoff is random, and a machine may be busy: all faults are to fit all the same.
                    hurried = spent_s > ON_TIME * limit_s * number / count
                    setup.pause_s = HURRIED_PAUSE_S if hurried else PAUSE_S
                    between_s = rng.uniform(*BETWEEN_S)
                    if not hurried:
                        time.sleep(between_s)
                    outcome = FAULTS[kind](setup, rng, udp)
                    seconds = recovery_s(udp, outcome.since_ns, BOUNDS_S[kind] + LATE_S)
                    recovery = Recovery(number, kind, outcome.detail, max(seconds, outcome.measured_s))
                    report.recoveries.append(recovery)
                    tell(str(recovery))
                    if recovery.seconds == float("inf"):
                        raise WaitError(f"traffic never came back after {recovery}\n{setup.client_daemon.tail(60)}")
                _check_mtu(setup)
                report.ways += udp.finish()
    for process in lab.processes:
        assert "Traceback" not in process.log, process.tail(60)
    report.seconds = time.monotonic() - begun
    return report


def _check_mtu(here: World) -> None:
    """The client has the server's newest MTU."""
    wait_until(lambda: mtu(here.client, "tun0") == here.mtu, SOON_S, f"MTU {here.mtu}", here.client_daemon.tail)
