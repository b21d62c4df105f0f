"""The bench itself: machines, rounds, steps."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.harness import HarnessError, Lab

from . import load, offload
from .accounts import memory_mb
from .native import UDPFLOOD, compiled
from .plan import SEARCH_HIGH, SEARCH_LOW, Budget, DesiredState, Step
from .results import Results
from .stats import percentile
from .variants import NextHop, Relay, Tapotun, TapotunTls

Tell = Callable[[str], None]


class Bench:
    """Four ways and what is measured on them. `run` does everything."""

    def __init__(self, lab: Lab, plan: DesiredState, directory: Path, crelay: Path, tell: Tell) -> None:
        """`directory` takes the compiled programs. Raises BenchError, HarnessError."""
        self._plan, self._tell = plan, tell
        self._budget = Budget(plan, time.monotonic)
        self.results = Results(machine=machine())
        relay = compiled(crelay, directory)
        self._flood = compiled(UDPFLOOD, directory)
        self._tls = TapotunTls(lab)
        ways = (NextHop(lab), Relay(lab, relay), Tapotun(lab), self._tls)
        self._ways: dict[str, NextHop] = {way.name: way for way in ways}

    def run(self) -> Results:
        """Rounds, as long as there is time. Raises HarnessError only before the first of them."""
        with ExitStack() as stack:
            for way in self._ways.values():
                stack.callback(way.close)
                way.prepare()
                way.start()
                stack.enter_context(load.iperf_server(way))
            self.results.cipher = load.negotiated_cipher(self._tls)
            self.results.openssl_s_per_gb = load.openssl_s_per_gb(self.results.cipher)
            self._tell(f"set up in {self._budget.spent_s:.0f} s")
            for number in itertools.count():
                self._tell(f"round {number + 1}, {self._budget.spent_s:.0f} s")
                for step in self._plan.steps:
                    if not self._budget.allows(step.total_s):
                        self._tell(f"  no time for {step.name}; {self._budget.spent_s:.0f} s")
                        return self.results
                    self._step(step, number)
        return self.results  # never reached: the budget ends the rounds

    def _step(self, step: Step, number: int) -> None:
        """One measurement on each of its ways, beginning with another way each round."""
        first = number % len(step.ways)
        for name in (*step.ways[first:], *step.ways[:first]):
            way = self._ways[name]
            try:
                values = self._measure(step.name, way)
                way.check()
            except HarnessError as exc:
                self.results.failures.append(f"round {number + 1}, {step.name} of {name}: {exc}")
                self._tell(f"  {step.name} of {name} FAILED: {exc}")
                continue
            for metric, value in values.items():
                self.results.add(metric, name, number, value)
            self._tell(f"  {step.name:14} {name:6} " + "  ".join(f"{it} {values[it]:.4g}" for it in values))

    def _measure(self, step: str, way: NextHop) -> dict[str, float]:
        """The metrics of a step. Raises HarnessError."""
        plan = self._plan
        match step:
            case "start":
                return self._restart(way)
            case "ping_idle":
                return trips("ping_idle", load.pings_us(way, plan.pings, plan.ping_every_s))
            case "ping_up" | "ping_down":
                options = ["-R"] if step == "ping_down" else []
                found = load.pings_under_load_us(way, *options, seconds=plan.loaded_s, every_s=plan.ping_every_s)
                return trips(step, found)
            case "tcp_up" | "tcp_down":
                return self._tcp(step, way)
            case "tcp_8":
                return {step: load.tcp(way, "-P", "8", seconds=plan.tcp_s).gbit_s}
            case "forward_gro" | "forward_plain":
                return {step: self._forward(way, gro=step == "forward_gro")}
            case "curl":
                assert isinstance(way, TapotunTls)
                return {step: load.curl_gbit_s(way, plan.tcp_s)}
        size = 1400 if "1400" in step else 64
        flows = 8 if "_8" in step else 1
        if step.endswith("blast"):
            return {step: load.udp(self._flood, way, size, 0, plan.blast_s, flows).steady / 1000}
        bounds = (SEARCH_LOW, SEARCH_HIGH)
        found_rate = load.search(
            self._flood, way, size, bounds=bounds, probes=plan.probes, seconds=plan.probe_s, flows=flows
        )
        if found_rate.sender_bound:
            note = f"{step} of {way.name}: nothing was lost at the fastest that the sender can; the way may do better"
            if note not in self.results.notes:
                self.results.notes.append(note)
        return {step: found_rate.rate / 1000}

    def _restart(self, way: NextHop) -> dict[str, float]:
        """The client's end anew; and before it goes, what the ends' memory came to."""
        assert way.client_end is not None
        assert way.server_end is not None
        way.check()
        values = {"rss_client": memory_mb(way.client_end.pid), "rss_server": memory_mb(way.server_end.pid)}
        way.stop()
        return {**values, "start": way.start()}

    def _tcp(self, step: str, way: NextHop) -> dict[str, float]:
        run = load.tcp(way, *(["-R"] if step == "tcp_down" else []), seconds=self._plan.tcp_s)
        cost = step.replace("tcp", "cpu")
        values = {step: run.gbit_s, f"{cost}_machine": run.machine_cpu_s / run.gb}
        if run.cpu_s:
            values[cost] = sum(run.cpu_s[:2]) / run.gb
            values[f"{cost}_client"] = run.cpu_s[0] / run.gb
        return values

    def _forward(self, way: NextHop, *, gro: bool) -> float:
        """TCP from the machine behind, whose frames have 1500 bytes; the client's machine merges them, or not."""
        with (
            offload.switched(way.behind, "eth0", tso=False, gso=False),
            offload.switched(way.client, "eth1", gro=gro),
        ):
            return load.tcp(way, seconds=self._plan.forward_s, source=way.behind).gbit_s


def trips(name: str, found_us: list[float]) -> dict[str, float]:
    """Mean and 99 %."""
    return {name: statistics.fmean(found_us), f"{name}_p99": percentile(found_us, 99)}


def machine() -> dict[str, object]:
    """On what, and when."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def stay_on(cores: int) -> None:
    """Everything from here on, whatever it starts, shares the first so many of the cores that we may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def bench(plan: DesiredState, crelay: Path, tell: Tell) -> Results:
    """Everything, from namespaces to numbers. Raises BenchError, HarnessError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, Lab() as lab:
        return Bench(lab, plan, Path(directory), crelay, tell).run()
