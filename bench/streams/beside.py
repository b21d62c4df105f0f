"""`python -m bench.streams.beside`: what a TCP flow of the host's own gets next to a tunnel, on one link.

The host's flow runs cubic. The tunnel carries one flow, and its streams are measured three times: with cubic and with
BBR, which their route forces upon them, and as they choose for themselves on a host that prefers cubic. Each run has
fresh daemons, so all that they try first is in it. docs/streams-measured.md has the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.harness import CommandError, HarnessError, Lab, Process, tapotun, wait_for_ping

from ..errors import BenchError
from ..native import compiled
from ..report import columns
from ..run import stay_on
from .cell import ROAD
from .plan import Cell
from .world import CLIENT, SERVER, wire

_PORT: Final = 8080
_TOKEN: Final = "beside"
_HEAD_START_S: Final = 5  # of the tunnel's flow
_UNCOUNTED_S: Final = 5  # of both
_COUNTED_S: Final = 30

WAYS: Final = ("cubic", "rule", "bbr")
CELLS: Final = (
    *(Cell(40, 0.0, "cubic", proxy=False, mbit_s=20, queue_ms=queue_ms) for queue_ms in (2, 4, 10, 50)),
    Cell(40, 0.0, "cubic", proxy=False, queue_ms=4),
    Cell(40, 0.1, "cubic", proxy=False),
)


@dataclass(frozen=True)
class Shares:
    """Mbit/s of the tunnel's flow, and of the host's."""

    tunnel: float
    host: float


def measure(cell: Cell, way: str, program: Path, seed: int) -> Shares:
    """One run. `program` is the compiled road. Raises HarnessError."""
    with Lab() as lab, ExitStack() as undo:
        server, road, client = (lab.host(name) for name in ("server", "road", "client"))
        wire(lab, cell, program, seed, server, road, client)
        if way != "rule":
            for host, via, port in ((client, "198.51.100.1", "dport"), (server, "192.0.2.254", "sport")):
                host.ip(f"route add default via {via} table 101 congctl lock {way}")
                host.ip(f"rule add ipproto tcp {port} {_PORT} lookup 101")
        entry = {"token": hashlib.sha1(_TOKEN.encode()).hexdigest(), "ip": "10.98.0.2"}
        definition = {"name": "tun0", "listen": SERVER, "port": _PORT, "net": "10.98.0.1/24", "clients": [entry]}
        daemon = undo.enter_context(tapotun(server, [definition]))
        server.wait_for_listener(_PORT, by=daemon)
        undo.enter_context(tapotun(client, [{"name": "tun0", "server": f"http://{SERVER}:{_PORT}", "token": _TOKEN}]))
        wait_for_ping(client, "10.98.0.1", 30)

        def flow(address: str, source: str, port: int, uncounted_s: int) -> tuple[Process, Process]:
            listening = undo.enter_context(
                server.start(["iperf3", "-s", "-1", "-p", str(port), "-B", address], name="iperf3-s")
            )
            server.wait_for_listener(port, by=listening)
            argv = ["iperf3", "-J", "-c", address, "-B", source, "-p", str(port), "-C", "cubic"]
            argv += ["-O", str(uncounted_s), "-t", str(_COUNTED_S)]
            return undo.enter_context(client.start(argv, name="iperf3")), listening

        tunnel = flow("10.98.0.1", "10.98.0.2", 5201, _HEAD_START_S + _UNCOUNTED_S)
        time.sleep(_HEAD_START_S)
        own = flow(SERVER, CLIENT, 5301, _UNCOUNTED_S)
        return Shares(_mbit_s(*tunnel), _mbit_s(*own))


def _mbit_s(sending: Process, listening: Process) -> float:
    sending.wait(_HEAD_START_S + _UNCOUNTED_S + _COUNTED_S + 20)
    listening.wait(20)
    answer: dict[str, Any] = json.loads(sending.log or "{}")
    if "error" in answer or "end" not in answer:
        raise CommandError(f"iperf3: {answer.get('error', sending.log)}")
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e6


def _measure_cell(cell: Cell, rounds: int, program: Path) -> dict[str, list[Shares]]:
    return {way: [measure(cell, way, program, turn) for turn in range(rounds)] for way in WAYS}


def text(found: dict[Cell, dict[str, list[Shares]]]) -> str:
    """The table: medians of the rounds, and the host's of each."""
    rows = [["Mbit/s: tunnel / host's flow (the host's, by round)", *WAYS]]
    for cell, ways in found.items():
        row = [str(cell)]
        for way in WAYS:
            tunnel, host = (statistics.median(getattr(it, name) for it in ways[way]) for name in ("tunnel", "host"))
            row.append(f"{tunnel:.1f} / {host:.1f} ({', '.join(f'{it.host:.1f}' for it in ways[way])})")
        rows.append(row)
    return "\n".join(columns(rows))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.streams.beside", description="a host's flow beside a tunnel")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--jobs", type=int, default=3, help="cells measured at a time (default 3)")
    args = parser.parse_args()
    stay_on(2)
    with suppress(PermissionError):
        os.nice(-10)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        try:
            program = compiled(ROAD, Path(directory))
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(args.jobs, mp_context=context, max_tasks_per_child=1) as pool:
                cells = [pool.submit(_measure_cell, cell, args.rounds, program) for cell in CELLS]
                found = {cell: future.result() for cell, future in zip(CELLS, cells, strict=True)}
        except (BenchError, HarnessError) as exc:
            print(f"beside: {exc}", file=sys.stderr)
            return 1
    print(text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
