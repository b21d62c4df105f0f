"""What is measured, for how long, and why that ends in time. Pure.

Every step has a planned length that includes its overhead (processes to start, queues to drain). Before each step the
clock is asked whether the step still fits for all its variants; the first one that does not fit ends the run. So a
machine that is slower than planned gets fewer samples and not more time. The last round usually ends after its first
steps, so what the targets need comes first; what has no target is measured in every second round only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

# The relay is measured twice: with the congestion control that the tunnel is seen to use, which is what the targets are
# for, and with the machine's default.
TUNNELS: Final = ("veth", "relay", "relay-default", "http", "https")
# The tunnel over http once more, carrying Ethernet frames. Only TCP is measured of it, beside the same over IP.
TAP: Final = "tap"
VARIANTS: Final = (*TUNNELS, TAP)
# The same program without its native data path, in the same rounds (`--plane both`).
PLANE_OFF: Final = {"http": "http-off", "https": "https-off"}
ALL: Final = (*VARIANTS, *PLANE_OFF.values())
# What is measured over IPv6, too, beside itself over IPv4.
IPV6: Final = ("http", PLANE_OFF["http"])

# Seconds on top of the traffic itself, as seen on two busy cores.
_IPERF_OVERHEAD_S: Final = 0.35
_UDP_OVERHEAD_S: Final = 0.2
_PING_OVERHEAD_S: Final = 0.15
_RESTART_S: Final = 1.6
_ASK_S: Final = 0.5  # four commands that ask the daemons what they run on
_OPENSSL_S: Final = 1.2
_FAIR_OVERHEAD_S: Final = 0.7  # eight iperf3 start together
_FAIR_RUNS: Final = 4
# Measuring without the plane takes this much longer, so that as many rounds fit.
_BOTH_TIMES: Final = 1.35
_BOTH_SETUP_S: Final = 8.0

# Packets per second between which a lossless rate is looked for.
SEARCH_LOW: Final = 10_000.0
SEARCH_HIGH: Final = 640_000.0


@dataclass(frozen=True)
class Step:
    """One measurement of a round, made for each variant in turn. `seconds` is for one variant.

    `every`: it is made in each so many rounds, beginning with the first.
    """

    name: str
    seconds: float
    variants: tuple[str, ...]
    every: int = 1

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
    fair_s: int
    extras_every: int  # rounds from one with the measurements that have no line among the targets to the next
    variants: tuple[str, ...] = VARIANTS

    def with_plane_off(self) -> Plan:
        """The same, with each tunnel a second time without its plane, and the time for that."""
        return replace(self, variants=ALL, budget_s=self.budget_s * _BOTH_TIMES, setup_s=self.setup_s + _BOTH_SETUP_S)

    def without(self, variant: str) -> Plan:
        """The same, but for one variant."""
        return replace(self, variants=tuple(name for name in self.variants if name != variant))

    @property
    def steps(self) -> list[Step]:
        """The first round, which has every step."""
        tcp_s = self.tcp_s + _IPERF_OVERHEAD_S
        search_s = (self.probes + 1) * (self.probe_s + _UDP_OVERHEAD_S)
        blast_s = self.blast_s + _UDP_OVERHEAD_S
        loaded_s = self.loaded_s + _IPERF_OVERHEAD_S
        forward_s = self.forward_s + _IPERF_OVERHEAD_S
        idle_s = self.pings * self.ping_every_s + _PING_OVERHEAD_S
        extra = self.extras_every
        steps = [
            Step("tcp_up", tcp_s, ALL),
            Step("tcp_down", tcp_s, ALL),
            Step("curl", self.tcp_s + _PING_OVERHEAD_S, ("https",)),
            Step("openssl", _OPENSSL_S, ("https",)),
            Step("tcp_8", tcp_s, (*TUNNELS, "http-off")),
            Step("tcp_up_6", tcp_s, IPV6),
            Step("tcp_down_6", tcp_s, IPV6),
            Step("tcp_8_6", tcp_s, IPV6),
            Step("ping_idle", idle_s, (*TUNNELS, "http-off")),
            Step("ping_up", loaded_s, (*TUNNELS, "http-off")),
            Step("udp64", search_s, ("veth", "relay", "http", "https", "http-off")),
            Step("udp64_blast", blast_s, ("veth", "relay", "http", "https", "http-off")),
            Step("udp64_blast_6", blast_s, IPV6),
            Step("fair", _FAIR_RUNS * (self.fair_s + _FAIR_OVERHEAD_S), ("http", "http-off")),
            Step("ping_down", loaded_s, ("veth", "relay", "http", "https"), extra),
            Step("udp64_8", search_s, ("veth", "relay", "http", "https"), extra),
            Step("udp1400", search_s, ("veth", "relay", "http", "https"), extra),
            Step("udp1400_blast", blast_s, ("veth", "relay", "http", "https"), extra),
            Step("udp64_8_blast", blast_s, ("veth", "relay", "http", "https"), extra),
            Step("forward_gro", forward_s, ("veth", "relay", "http", "https"), extra),
            Step("forward_plain", forward_s, ("veth", "relay", "http", "https"), extra),
            # Last: before the clients' ends go, they are asked how much memory the round took at most.
            Step("start", _RESTART_S + _ASK_S, ("relay", "http", "https", "http-off")),
        ]
        here = [replace(step, variants=tuple(way for way in step.variants if way in self.variants)) for step in steps]
        return [step for step in here if step.variants]

    def steps_of(self, number: int) -> list[Step]:
        """The round with that number, the first being 0."""
        return [step for step in self.steps if number % step.every == 0]

    @property
    def round_s(self) -> float:
        """The first round, as planned."""
        return sum(step.total_s for step in self.steps)

    @property
    def rounds(self) -> float:
        """As many as fit."""
        left_s, number = self.budget_s - self.setup_s, 0
        while True:
            round_s = sum(step.total_s for step in self.steps_of(number))
            if round_s > left_s:
                return number + left_s / round_s
            left_s, number = left_s - round_s, number + 1

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.setup_s:.0f} s to set up, then each round"]
        lines += [
            f"  {step.name:14} {len(step.variants)} x {step.seconds:4.1f} s = {step.total_s:5.1f} s"
            + (f", every {step.every} rounds" if step.every > 1 else "")
            for step in self.steps
        ]
        lines.append(f"  {'all of them':14} {'':10} = {self.round_s:5.1f} s")
        lines.append(f"in {self.budget_s:.0f} s: {self.rounds:.1f} rounds; more if steps take less than planned")
        return "\n".join(lines)


FULL: Final = Plan(
    name="full",
    budget_s=570.0,
    setup_s=27.0,
    tcp_s=2,
    forward_s=1,
    probe_s=0.3,
    probes=8,
    blast_s=0.6,
    pings=500,
    ping_every_s=0.002,
    loaded_s=2,
    fair_s=2,
    extras_every=2,
)
QUICK: Final = Plan(
    name="quick",
    budget_s=115.0,
    setup_s=16.0,
    tcp_s=1,
    forward_s=1,
    probe_s=0.15,
    probes=4,
    blast_s=0.3,
    pings=250,
    ping_every_s=0.002,
    loaded_s=1,
    fair_s=1,
    extras_every=2,
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
