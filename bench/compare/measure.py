"""The rounds of a comparison."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import CommandError, HarnessError, Lab, tcp_echo

from .. import load
from ..accounts import Account
from ..congestion import look, machine_default
from ..errors import BenchError
from ..run import machine
from ..variants import Variant, installed
from .results import GO, Comparison, about
from .tools import ECHO_PORT, PORTS, TOOLS, WireGuard, find

Tell = Callable[[str], None]

_PING_EVERY_S: Final = 0.005
_REQUEST_BYTES: Final = 64
_REQUESTS: Final = 400
_ANSWER_S: Final = 5.0
# How each says its version.
_VERSION_OF: Final = {
    "wireguard": (GO, "--version"),
    "openvpn": ("openvpn", "--version"),
    "openconnect": ("openconnect", "--version"),
    "ssh-w": ("ssh", "-V"),
    "sshuttle": ("sshuttle", "--version"),
    "websocat": ("websocat", "--version"),
}
# npm's wstunnel has no such option; the Makefile installs this one.
_WSTUNNEL: Final = "wstunnel 1.4.0"


_STEPS: Final = ("tcp_up", "tcp_down", "ping", "request")


def compare(rounds: int, seconds: int, names: list[str], tell: Tell, load_congestion: str | None = None) -> Comparison:
    """Everything. `seconds` is the length of each run of TCP. A tool that does not come up is told and left out.

    `load_congestion` is what iperf3 uses, if not the machine's default. Raises HarnessError.
    """
    found = Comparison(machine=machine(), default_congestion=machine_default())
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        tools: dict[str, Variant] = {}
        for name in names:
            try:
                tools[name] = _set_up(stack, lab, name)
            except (BenchError, HarnessError) as exc:
                found.absent[name] = str(exc).splitlines()[0]
                tell(f"{name} is left out: {exc}")
                continue
            if name != "veth":
                found.versions[name] = _version(name, tools[name])
            tell(f"{name}: {found.versions.get(name, 'up')}")
        measure = _Measure(found, seconds, load.congestion_options(load_congestion), tell)
        order = list(tools)
        for number in range(rounds):
            tell(f"round {number + 1}")
            first = number % max(len(order), 1)
            for step in _STEPS:
                for name in (*order[first:], *order[:first]):
                    measure(step, name, tools[name], number)
    return found


def _set_up(stack: ExitStack, lab: Lab, name: str) -> Variant:
    """A tool that carries something, with what its server's machine has to answer."""
    with ExitStack() as undo:
        variant = TOOLS[name][0](lab)
        undo.callback(variant.close)
        variant.prepare()
        variant.start()
        undo.enter_context(load.iperf_server(variant))
        undo.enter_context(tcp_echo(variant.server, "0.0.0.0", ECHO_PORT))
        stack.push(undo.pop_all())
    return variant


@dataclass(frozen=True)
class _Measure:
    """One measurement of one tool, which goes into what was found, or is told as failed."""

    found: Comparison
    seconds: int
    load_options: list[str]
    tell: Tell

    def __call__(self, step: str, name: str, variant: Variant, number: int) -> None:
        if step == "ping" and not about(name).packets:
            return
        try:
            values = self._values(step, variant)
            variant.check()
            if step == "tcp_down":
                for names in look(variant, PORTS).values():
                    self.found.congestion.setdefault(name, set()).add(names.most_common(1)[0][0])
        except HarnessError as exc:
            self.found.failures.append(f"round {number + 1}, {step} of {name}: {exc}")
            self.tell(f"  {step} of {name} FAILED: {exc}")
            return
        self.found.add(name, values)
        self.tell(f"  {step:9} {name:13} " + "  ".join(f"{key} {sample:.4g}" for key, sample in values.items()))

    def _values(self, step: str, variant: Variant) -> dict[str, float]:
        """Raises HarnessError."""
        if step == "ping":
            return {step: statistics.median(load.pings_us(variant, 200, _PING_EVERY_S))}
        if step == "request":
            return {step: statistics.median(requests_us(variant))}
        way = step.removeprefix("tcp_")
        options = [*(["-R"] if way == "down" else []), *self.load_options]
        try:
            account = Account(tuple(pid for root in variant.pids for pid in tree(root)))
            run = load.tcp(variant, *options, seconds=self.seconds)
            used = account.used()
        except FileNotFoundError as exc:
            raise CommandError(f"a process of {variant.name} ended meanwhile: {exc}") from exc
        values = {step: run.gbit_s, f"machine_{way}": run.machine_cpu_s / run.gb}
        if variant.pids:
            values[f"cpu_{way}"] = sum(used.processes) / run.gb
        return values


def tree(pid: int) -> list[int]:
    """A process and all of its descendants: sshd and ocserv have a process for each session."""
    found = [pid]
    for process in found:  # grows meanwhile
        try:
            for thread in os.listdir(f"/proc/{process}/task"):
                children = Path(f"/proc/{process}/task/{thread}/children").read_text("ascii")
                found += [int(child) for child in children.split()]
        except FileNotFoundError:  # it has ended since it was listed
            continue
    return found


def requests_us(variant: Variant) -> list[float]:
    """Round trips of a small request over a TCP connection that stands, in microseconds. Raises CommandError.

    What does not carry a ping can be compared by this. What asks and what answers is Python, which costs each tool
    the same 50 us or so; the row without a tunnel has it.
    """
    data, found = bytes(_REQUEST_BYTES), []
    with variant.client.socket() as caller:
        caller.settimeout(_ANSWER_S)
        try:
            caller.connect((variant.address, ECHO_PORT))
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(_REQUESTS):
                begun = time.perf_counter_ns()
                caller.sendall(data)
                wanted = _REQUEST_BYTES
                while wanted:
                    piece = caller.recv(wanted)
                    if not piece:
                        raise CommandError(f"{variant.name} ended the connection of the requests")
                    wanted -= len(piece)
                found.append((time.perf_counter_ns() - begun) / 1e3)
        except OSError as exc:
            raise CommandError(f"a request through {variant.name}: {exc}") from exc
    return found


def _version(name: str, variant: Variant) -> str:
    """One line. Raises nothing: a version that cannot be had is told as that."""
    if isinstance(variant, WireGuard) and variant.in_kernel:
        return "the kernel's"
    if name == "wstunnel-npm":
        return _WSTUNNEL
    argv = [str(installed()), "--version"] if name in ("http", "https") else list(_VERSION_OF[name])
    try:
        done = subprocess.run([find(argv[0], ""), *argv[1:]], capture_output=True, text=True, check=False, timeout=20)
    except (BenchError, subprocess.TimeoutExpired):
        return "version unknown"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip().split(" [")[0] if lines else "version unknown"
