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
from .plan import SEARCH_HIGH, SEARCH_LOW, Budget, Plan, Step
from .results import Results
from .stats import percentile
from .variants import Relay, Tapotun, TapotunTls, Variant

Tell = Callable[[str], None]


class Bench:
    """Four variants and what is measured on them. `run` does everything."""

    def __init__(self, lab: Lab, plan: Plan, directory: Path, crelay: Path, tell: Tell) -> None:
        """`directory` takes the compiled programs. Raises BenchError, HarnessError."""
        self._plan, self._tell = plan, tell
        self._budget = Budget(plan, time.monotonic)
        self.results = Results(machine=machine())
        relay = compiled(crelay, directory)
        self._flood = compiled(UDPFLOOD, directory)
        self._tls = TapotunTls(lab)
        variants = (Variant(lab), Relay(lab, relay), Tapotun(lab), self._tls)
        self._variants: dict[str, Variant] = {variant.name: variant for variant in variants}

    def run(self) -> Results:
        """Rounds, as long as there is time. Raises HarnessError only before the first of them."""
        with ExitStack() as stack:
            for variant in self._variants.values():
                stack.callback(variant.close)
                variant.prepare()
                variant.start()
                stack.enter_context(load.iperf_server(variant))
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
        """One measurement on each of its variants, beginning with another variant each round."""
        first = number % len(step.variants)
        for name in (*step.variants[first:], *step.variants[:first]):
            variant = self._variants[name]
            try:
                values = self._measure(step.name, variant)
                variant.check()
            except HarnessError as exc:
                self.results.failures.append(f"round {number + 1}, {step.name} of {name}: {exc}")
                self._tell(f"  {step.name} of {name} FAILED: {exc}")
                continue
            for metric, value in values.items():
                self.results.add(metric, name, number, value)
            self._tell(f"  {step.name:14} {name:6} " + "  ".join(f"{metric} {values[metric]:.4g}" for metric in values))

    def _measure(self, step: str, variant: Variant) -> dict[str, float]:
        """The metrics of a step. Raises HarnessError."""
        plan = self._plan
        match step:
            case "start":
                return self._restart(variant)
            case "ping_idle":
                return trips("ping_idle", load.pings_us(variant, plan.pings, plan.ping_every_s))
            case "ping_up" | "ping_down":
                options = ["-R"] if step == "ping_down" else []
                found = load.pings_under_load_us(variant, *options, seconds=plan.loaded_s, every_s=plan.ping_every_s)
                return trips(step, found)
            case "tcp_up" | "tcp_down":
                return self._tcp(step, variant)
            case "tcp_8":
                return {step: load.tcp(variant, "-P", "8", seconds=plan.tcp_s).gbit_s}
            case "forward_gro" | "forward_plain":
                return {step: self._forward(variant, gro=step == "forward_gro")}
            case "curl":
                assert isinstance(variant, TapotunTls)
                return {step: load.curl_gbit_s(variant, plan.tcp_s)}
        size = 1400 if "1400" in step else 64
        flows = 8 if "_8" in step else 1
        if step.endswith("blast"):
            return {step: load.udp(self._flood, variant, size, 0, plan.blast_s, flows).steady / 1000}
        bounds = (SEARCH_LOW, SEARCH_HIGH)
        found_rate = load.search(
            self._flood, variant, size, bounds=bounds, probes=plan.probes, seconds=plan.probe_s, flows=flows
        )
        if found_rate.sender_bound:
            note = f"{step} of {variant.name}: nothing was lost at the sender's highest rate; the variant may do better"
            if note not in self.results.notes:
                self.results.notes.append(note)
        return {step: found_rate.rate / 1000}

    def _restart(self, variant: Variant) -> dict[str, float]:
        """The client's end anew; and before it goes, what the ends' memory came to."""
        assert variant.client_end is not None
        assert variant.server_end is not None
        variant.check()
        values = {"rss_client": memory_mb(variant.client_end.pid), "rss_server": memory_mb(variant.server_end.pid)}
        variant.stop()
        return {**values, "start": variant.start()}

    def _tcp(self, step: str, variant: Variant) -> dict[str, float]:
        run = load.tcp(variant, *(["-R"] if step == "tcp_down" else []), seconds=self._plan.tcp_s)
        cost = step.replace("tcp", "cpu")
        values = {step: run.gbit_s, f"{cost}_machine": run.machine_cpu_s / run.gb}
        if run.cpu_s:
            values[cost] = sum(run.cpu_s[:2]) / run.gb
            values[f"{cost}_client"] = run.cpu_s[0] / run.gb
        return values

    def _forward(self, variant: Variant, *, gro: bool) -> float:
        """TCP from the machine behind, whose frames have 1500 bytes; the client's machine merges them, or not."""
        with (
            offload.switched(variant.behind, "eth0", tso=False, gso=False),
            offload.switched(variant.client, "eth1", gro=gro),
        ):
            return load.tcp(variant, seconds=self._plan.forward_s, source=variant.behind).gbit_s


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
    """This process, and every process that it starts, shares the first ``cores`` of those that we may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def bench(plan: Plan, crelay: Path, tell: Tell) -> Results:
    """Everything, from namespaces to numbers. Raises BenchError, HarnessError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, Lab() as lab:
        return Bench(lab, plan, Path(directory), crelay, tell).run()
