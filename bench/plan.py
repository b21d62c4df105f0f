"""What is measured, for how long, and why that ends in time. Pure.

Every step has a planned length that includes its overhead (processes to start, queues to drain). Before each step the
clock is asked whether the step still fits for all its variants; the first one that does not fit ends the run. So a
machine that is slower than planned gets fewer samples and not more time. The last round usually ends after its first
steps, so what matters most comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

VARIANTS: Final = ("veth", "relay", "http", "https")

# Seconds on top of the traffic itself, as seen on two busy cores.
_IPERF_OVERHEAD_S: Final = 0.35
_UDP_OVERHEAD_S: Final = 0.2
_PING_OVERHEAD_S: Final = 0.15
_RESTART_S: Final = 1.6

# Packets per second between which a lossless rate is looked for.
SEARCH_LOW: Final = 10_000.0
SEARCH_HIGH: Final = 640_000.0


@dataclass(frozen=True)
class Step:
    """One measurement of a round, made for each variant in turn. `seconds` is for one variant."""

    name: str
    seconds: float
    variants: tuple[str, ...] = VARIANTS

    @property
    def total_s(self) -> float:
        """For all its variants."""
        return self.seconds * len(self.variants)


@dataclass(frozen=True)
class Plan:
    """How long everything takes."""

    name: str
    budget_s: float  # from the start of the program to the end of the last step
    setup_s: float  # compiling, namespaces, daemons, `openssl speed`
    tcp_s: int
    forward_s: int
    probe_s: float
    probes: int
    blast_s: float
    pings: int
    ping_every_s: float
    loaded_s: int

    @property
    def steps(self) -> list[Step]:
        """One round."""
        tcp_s = self.tcp_s + _IPERF_OVERHEAD_S
        search_s = (self.probes + 1) * (self.probe_s + _UDP_OVERHEAD_S)
        blast_s = self.blast_s + _UDP_OVERHEAD_S
        loaded_s = self.loaded_s + _IPERF_OVERHEAD_S
        forward_s = self.forward_s + _IPERF_OVERHEAD_S
        idle_s = self.pings * self.ping_every_s + _PING_OVERHEAD_S
        return [
            Step("tcp_up", tcp_s),
            Step("tcp_down", tcp_s),
            Step("curl", self.tcp_s + _PING_OVERHEAD_S, ("https",)),
            Step("tcp_8", tcp_s),
            Step("ping_idle", idle_s),
            Step("udp64", search_s),
            Step("udp64_blast", blast_s),
            Step("udp64_8", search_s),
            Step("ping_up", loaded_s),
            Step("ping_down", loaded_s),
            Step("udp1400", search_s),
            Step("udp1400_blast", blast_s),
            Step("udp64_8_blast", blast_s),
            Step("forward_gro", forward_s),
            Step("forward_plain", forward_s),
            # Last: before the clients' ends go, it is asked how much memory the round took at most.
            Step("start", _RESTART_S, VARIANTS[1:]),
        ]

    @property
    def round_s(self) -> float:
        """One round, as planned."""
        return sum(step.total_s for step in self.steps)

    @property
    def rounds(self) -> float:
        """As many as fit."""
        return (self.budget_s - self.setup_s) / self.round_s

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.setup_s:.0f} s to set up, then each round"]
        lines += [
            f"  {step.name:14} {len(step.variants)} x {step.seconds:4.1f} s = {step.total_s:5.1f} s"
            for step in self.steps
        ]
        lines.append(f"  {'a round':14} {'':10} = {self.round_s:5.1f} s")
        lines.append(f"in {self.budget_s:.0f} s: {self.rounds:.1f} rounds; more if steps take less than planned")
        return "\n".join(lines)


FULL: Final = Plan(
    name="full",
    budget_s=570.0,
    setup_s=20.0,
    tcp_s=2,
    forward_s=1,
    probe_s=0.3,
    probes=8,
    blast_s=0.6,
    pings=500,
    ping_every_s=0.002,
    loaded_s=2,
)
QUICK: Final = Plan(
    name="quick",
    budget_s=100.0,
    setup_s=8.0,
    tcp_s=1,
    forward_s=1,
    probe_s=0.15,
    probes=5,
    blast_s=0.3,
    pings=250,
    ping_every_s=0.002,
    loaded_s=1,
)
PLANS: Final = {plan.name: plan for plan in (FULL, QUICK)}


class Budget:
    """What is left of the time."""

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        """`clock` returns seconds; its zero does not matter."""
        self._clock = clock
        self._begun = clock()
        self._budget_s = plan.budget_s

    @property
    def spent_s(self) -> float:
        """Since the start."""
        return self._clock() - self._begun

    def allows(self, seconds: float) -> bool:
        """There is so much time left."""
        return self.spent_s + seconds <= self._budget_s
