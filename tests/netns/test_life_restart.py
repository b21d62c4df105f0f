"""A server goes, and comes back, with twenty clients that wait for it."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from datetime import datetime

import pytest

from tests.harness import Lab, Process, no_leaks, ping, tapotun, wait_until

from .topologies import STOP_S, TUNNEL_SERVER, allowed, cable, client_config, server_config

pytestmark = pytest.mark.netns

CLIENTS = 20
# Promised from the return of the server on, which is when it says that it is ready. The rest is for a slow machine.
RETURN_S = 5.0 + 2.0


@pytest.mark.parametrize(("processes", "outage_s", "killed"), [(5, 1.0, False), (1, 6.0, True)])
def test_twenty_clients_find_their_server_again(lab: Lab, processes: int, outage_s: float, killed: bool) -> None:
    """All are back within seconds, and they did not all ask at the same moment."""
    server, client = cable(lab)
    names = [f"c{number}" for number in range(CLIENTS)]
    config = server_config(*(allowed(name, f"10.10.0.{10 + at}") for at, name in enumerate(names)))
    entries = [client_config(name, name=name) for name in names]
    with no_leaks(server, client), ExitStack() as stack:
        first = stack.enter_context(tapotun(server, [config]))
        first.wait_for_log("started: ")
        share = CLIENTS // processes
        daemons = [
            stack.enter_context(tapotun(client, entries[at : at + share], "--log-level", "debug", name="tapotun-c"))
            for at in range(0, CLIENTS, share)
        ]
        wait_until(lambda: len(_back(daemons, 0)) == CLIENTS, 20, "all of them", daemons[0].tail)
        assert first.kill() == -9 if killed else first.stop(STOP_S) == 0
        gone = time.time()
        time.sleep(outage_s)
        second = stack.enter_context(tapotun(server, [config]))
        ready = _time(second.wait_for_log(r"(\S+Z) .*listening on ")[1])

        def missing() -> str:
            return f"missing: {set(names) - _back(daemons, ready).keys()}\n{daemons[0].tail()}"

        wait_until(lambda: len(_back(daemons, ready)) == CLIENTS, RETURN_S, "all of them to be back", missing)
        back = sorted(_back(daemons, ready).values())
        for name in names:
            answer = ping(client, TUNNEL_SERVER, source=name, count=1)
            assert answer.ok, f"{name}: {answer.output}"

        def told() -> bool:
            return all(any(f"{name}: connected again after " in daemon.log for daemon in daemons) for name in names)

        wait_until(told, 20, "a line from each that it is connected again", daemons[0].tail)
        tries = sorted(at for _, at in _events(daemons, "download: cannot connect") if at > gone)
        print(
            f"\n{processes} processes, away for {ready - gone:.1f} s: "
            f"back {back[0] - ready:.2f} to {back[-1] - ready:.2f} s after its return; {len(tries)} failed tries"
        )
        print(f"  tries per 250 ms since its end: {_histogram(tries, gone)}")
        print(f"  returns per 250 ms:             {_histogram(back, ready)}")
        # What was asked at the same moment is bounded by what jitter leaves together, not by the crowd: the first
        # retry is at once, by all; afterwards no 100 ms see nearly all of them.
        later = [at for at in [*tries, *back] if at > gone + 1.0]
        assert max((sum(at <= it < at + 0.1 for it in later) for at in later), default=0) <= 0.8 * CLIENTS


def _events(daemons: list[Process], pattern: str) -> list[tuple[str, float]]:
    """Interface and time of each log line that matches."""
    line = re.compile(rf"^(\S+Z) \S+ +(c\d+): {pattern}", re.MULTILINE)
    return [(name, _time(stamp)) for daemon in daemons for stamp, name in line.findall(daemon.log)]


def _time(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _back(daemons: list[Process], since: float) -> dict[str, float]:
    """Which clients have had both streams since then, and from when on."""
    return {name: at for name, at in _events(daemons, "upload to ") if at >= since}


def _histogram(times: list[float], start: float) -> str:
    counts: dict[int, int] = {}
    for at in times:
        slot = int((at - start) / 0.25)
        counts[slot] = counts.get(slot, 0) + 1
    return " ".join(str(counts.get(slot, 0)) for slot in range(max(counts, default=0) + 1))
