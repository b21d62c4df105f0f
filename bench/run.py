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

from tests.harness import CommandError, HarnessError, Lab

from . import load, offload, plane
from .accounts import memory_mb
from .congestion import look, machine_default, of_the_tunnel
from .native import UDPFLOOD, compiled
from .plan import PLANE_OFF, SEARCH_HIGH, SEARCH_LOW, Budget, Plan, Step
from .results import LOAD, Results
from .scaling import fair
from .stats import jain, percentile
from .variants import TUNNEL_SERVER_6, WITHOUT_PLANE, Relay, Tapotun, TapotunTap, TapotunTls, Variant

Tell = Callable[[str], None]


class Bench:
    """The variants and what is measured on them. `run` does everything."""

    def __init__(
        self, lab: Lab, plan: Plan, directory: Path, crelay: Path, tell: Tell, load_congestion: str | None = None
    ) -> None:
        """`directory` takes the compiled programs; `load_congestion` is what iperf3 uses, if not the machine's default.

        Raises BenchError, HarnessError.
        """
        self.plan, self._tell = plan, tell
        self._budget = Budget(plan, time.monotonic)
        self._load_options = load.congestion_options(load_congestion)
        self.results = Results(machine=machine())
        relay = compiled(crelay, directory)
        self._flood = compiled(UDPFLOOD, directory)
        self._tls = TapotunTls(lab)
        self._http = Tapotun(lab)
        self._relay, self._default_relay = Relay(lab, relay), Relay(lab, relay, name="relay-default")
        # In this order they are set up: the relay has to be told what the tunnel uses.
        made: list[Variant] = [Variant(lab), self._http, self._relay, self._default_relay, self._tls, TapotunTap(lab)]
        if PLANE_OFF["http"] in plan.variants:
            made.append(Tapotun(lab, name=PLANE_OFF["http"], env=WITHOUT_PLANE))
            made.append(TapotunTls(lab, name=PLANE_OFF["https"], env=WITHOUT_PLANE))
        self._variants: dict[str, Variant] = {variant.name: variant for variant in made}
        self._eight: dict[str, fair.World] = {}

    def run(self) -> Results:
        """Rounds, as long as there is time. Raises HarnessError only before the first of them."""
        with ExitStack() as stack:
            self._set_up(stack)
            self._tell(f"set up in {self._budget.spent_s:.0f} s")
            for number in itertools.count():
                self._tell(f"round {number + 1}, {self._budget.spent_s:.0f} s")
                for step in self.plan.steps_of(number):
                    if not self._budget.allows(step.total_s):
                        self._tell(f"  no time for {step.name}; {self._budget.spent_s:.0f} s")
                        return self.results
                    self._step(step, number)
        return self.results  # never reached: the budget ends the rounds

    def _set_up(self, stack: ExitStack) -> None:
        """Everything runs and is connected afterwards. Raises HarnessError."""
        default = self.results.default_congestion = machine_default(self._http.client)
        for name, variant in self._variants.items():
            if name not in self.plan.variants:
                continue
            stack.callback(variant.close)
            variant.prepare()
            variant.start()
            stack.enter_context(load.iperf_server(variant))
            if variant is self._http:
                self._relay.congestion = self._chosen_by_the_tunnel()
                self._tell(f"the tunnel uses {self._relay.congestion}, the machines' default is {default}")
                if self._relay.congestion == default:
                    self.plan = self.plan.without(self._default_relay.name)
                    self._tell("so one relay is enough")
        self.results.cipher = load.negotiated_cipher(self._tls)
        for step in self.plan.steps:
            if step.name == "fair":
                for name in step.variants:
                    env = WITHOUT_PLANE if name in PLANE_OFF.values() else {}
                    self._eight[name] = stack.enter_context(fair.world(env))

    def _chosen_by_the_tunnel(self) -> str:
        """The congestion control of its streams, as seen after a moment of traffic each way. Raises HarnessError."""
        for options in ([], ["-R"]):
            load.tcp(self._http, *options, *self._load_options, seconds=1)
        used = of_the_tunnel(look(self._http))
        if not used:
            raise CommandError(f"ss -ti shows no socket of the tunnel\n{self._http.client.run(['ss', '-tin']).stdout}")
        return used.most_common(1)[0][0]

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
            shown = "  ".join(f"{metric} {values[metric]:.4g}" for metric in values)
            self._tell(f"  {step.name:14} {name:13} {shown}")

    def _measure(self, step: str, variant: Variant) -> dict[str, float]:
        """The metrics of a step. Raises HarnessError."""
        plan = self.plan
        match step:
            case "start":
                return self._restart(variant)
            case "ping_idle":
                return trips("ping_idle", load.pings_us(variant, plan.pings, plan.ping_every_s))
            case "ping_up" | "ping_down":
                options = [*(["-R"] if step == "ping_down" else []), *self._load_options]
                found = load.pings_under_load_us(variant, *options, seconds=plan.loaded_s, every_s=plan.ping_every_s)
                return trips(step, found)
            case "tcp_up" | "tcp_down":
                return self._tcp(step, variant)
            case "tcp_up_6" | "tcp_down_6" | "tcp_8_6":
                options = {"tcp_up_6": [], "tcp_down_6": ["-R"], "tcp_8_6": ["-P", "8"]}[step]
                options += self._load_options
                run = load.tcp(variant, *options, seconds=plan.tcp_s, address=TUNNEL_SERVER_6)
                return {step: run.gbit_s}
            case "udp64_blast_6":
                run_6 = load.udp(self._flood, variant, 64, 0, plan.blast_s, address=TUNNEL_SERVER_6)
                return {step: run_6.steady / 1000}
            case "tcp_8":
                return {step: load.tcp(variant, "-P", "8", *self._load_options, seconds=plan.tcp_s).gbit_s}
            case "forward_gro" | "forward_plain":
                return {step: self._forward(variant, gro=step == "forward_gro")}
            case "curl":
                assert isinstance(variant, TapotunTls)
                return {step: load.curl_gbit_s(variant, plan.tcp_s)}
            case "openssl":
                return {step: load.openssl_s_per_gb(self.results.cipher)}
            case "fair":
                return self._fair(self._eight[variant.name])
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
        if isinstance(variant, Tapotun):
            self.results.planes[variant.name] = plane.ask(variant)
        variant.stop()
        return {**values, "start": variant.start()}

    def _tcp(self, step: str, variant: Variant) -> dict[str, float]:
        run = load.tcp(variant, *(["-R"] if step == "tcp_down" else []), *self._load_options, seconds=self.plan.tcp_s)
        self.results.saw_congestion(LOAD, "iperf3", run.congestion)
        for who, names in look(variant).items():
            self.results.saw_congestion(variant.name, who, names.most_common(1)[0][0])
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
            return load.tcp(variant, *self._load_options, seconds=self.plan.forward_s, source=variant.behind).gbit_s

    def _fair(self, eight: fair.World) -> dict[str, float]:
        """Eight clients at once, up and down, and down beside a ninth that is sent UDP."""
        seconds = self.plan.fair_s
        up = fair.shares_gbit_s(eight, seconds, *self._load_options)
        down, fast, slow = (
            fair.shares_beside(eight, self._flood, seconds, beside, *self._load_options)
            for beside in ("nobody", "fast", "slow")
        )
        return {
            "jain_up": jain(up),
            "jain_down": jain(down),
            "eight_alone": sum(down),
            "eight_fast": sum(fast),
            "eight_slow": sum(slow),
        }


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


def bench(plan: Plan, crelay: Path, tell: Tell, load_congestion: str | None = None) -> tuple[Results, Plan]:
    """Everything, from namespaces to numbers, and the plan as it was carried out.

    `load_congestion` is what iperf3 uses, if not the machine's default. Raises BenchError, HarnessError.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, Lab() as lab:
        made = Bench(lab, plan, Path(directory), crelay, tell, load_congestion)
        return made.run(), made.plan
