"""kill -9, again and again, in the midst of anything: the next start works, and the end is clean."""

from __future__ import annotations

import os
import random
import statistics
import time
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from tests.harness import Host, Lab, Process, no_leaks, tapotun, wait_until
from tests.integrity import CheckedUdp

from .topologies import (
    PROTOCOL,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    Config,
    cable,
    client_config,
    mark_rules,
    routes,
    server_config,
)

pytestmark = pytest.mark.netns

SEED = int(os.environ.get("SEED", "1"))
KILLS_EACH = 25
# From the start of the next one: 0.3 s until it is up, and a client that was refused asks again within 4 s.
# The rest is for a slow machine.
RECOVERY_S = 12.0
# A start takes about as long as this, so that half of all kills hit a process that is still on its way.
START_S = 0.4

MARK = {"value": 100, "table": 100}


@dataclass
class End:
    """One end of the tunnel, whatever process it is at present."""

    host: Host
    config: Config
    process: Process = field(init=False)
    kills: int = 0

    def start(self) -> None:
        self.process = tapotun(self.host, [self.config])

    def kill(self) -> None:
        self.kills += 1
        self.process.kill()
        assert "Traceback" not in self.process.log
        self.process.close()


def test_killed_fifty_times(lab: Lab) -> None:
    """25 times each end, half of them while it starts, the moment drawn from a seed."""
    rng = random.Random(SEED)
    server, client = cable(lab)
    ends = {
        "server": End(server, server_config(mark=MARK)),
        "client": End(client, client_config(mark=MARK)),
    }
    took: dict[str, list[float]] = {name: [] for name in ends}
    with no_leaks(server, client):
        for end in ends.values():
            end.start()
        with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=500, size=600) as udp:
            udp.wait_for_flow(timeout=RECOVERY_S)
            # In turn: a client that is new has no failures behind it that make it wait.
            for name in cycle(ends):
                end = ends[name]
                if end.kills >= KILLS_EACH:
                    break
                time.sleep(rng.uniform(0, 0.1))
                end.kill()
                end.start()
                if end.kills < KILLS_EACH:
                    time.sleep(rng.uniform(0, START_S))
                    end.kill()
                    end.start()
                took[name].append(udp.wait_for_flow(timeout=RECOVERY_S))
                assert mark_rules(end.host) == [(100, "100", PROTOCOL)]
                assert routes(end.host, "100") == {("default", "tun0", PROTOCOL)}
            ways = udp.finish()
        for end in ends.values():
            assert end.process.stop(STOP_S) == 0, end.process.tail()
            wait_until(lambda: not mark_rules(end.host), STOP_S, "the rule to go")  # noqa: B023
    print(f"\nseed {SEED}; traffic again after the start that follows a kill -9:")
    for name, seconds in took.items():
        print(
            f"  {name}: {ends[name].kills} kills, median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s"
        )
    for way in ways:
        print(f"  {way}")
        assert (way.duplicated, way.corrupted) == (0, 0), way
