"""A bug in one interface: that one starts again, with a pause that grows, and the other one knows nothing of it.

The bug comes in through a sitecustomize module (see `injection`): the clock of the interface called ``sick`` raises
after a second of life, the first `BUGS` times.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness import Lab, no_leaks, wait_for_ping
from tests.integrity import CheckedUdp

from .injection import injected
from .topologies import SERVER, STOP_S, UPLOADING, Config, cable, client_config, server_config

pytestmark = pytest.mark.netns

BUGS: Final = 2
PAUSES_S: Final = (1, 2)
START_S: Final = 10.0

_SICK: Final = f"""\
import trio
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.server.server import TunnelServer

left = {BUGS}


def infect(kind):
    healthy = kind.run_clock

    async def run_clock(self):
        global left
        if self._config.name == "sick" and left > 0:
            left -= 1
            await trio.sleep(1)
            raise RuntimeError("a bug that a test made")
        await healthy(self)

    kind.run_clock = run_clock


for kind in (TunnelClient, TunnelServer):
    infect(kind)
"""


def _configs(side: str) -> list[Config]:
    """Two tunnels, called sick and well, of one process on each side."""
    found = []
    for at, name in enumerate(("sick", "well")):
        config = (
            server_config(name=name, port=8080 + at, net=f"10.{10 + at}.0.1/24")
            if side == "server"
            else client_config(name=name, server=f"http://{SERVER}:{8080 + at}/ip")
        )
        if side == "server":
            config["clients"][0]["ip"] = f"10.{10 + at}.0.2"
        found.append(config)
    return found


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_bug_in_one_interface(lab: Lab, side: str) -> None:
    server, client = cable(lab)
    hosts = {"server": server, "client": client}
    with no_leaks(server, client), ExitStack() as stack:
        daemons = {}
        for name, host in hosts.items():
            source, called = (_SICK, "sick-daemon") if name == side else ("", "tapotun")
            daemons[name] = stack.enter_context(injected(host, _configs(name), source, name=called))
            daemons[name].wait_for_log("started: ")
        sick = daemons[side]
        daemons["client"].wait_for_log(f"well: {UPLOADING}")
        with CheckedUdp(client, "10.11.0.2", server, "10.11.0.1", rate=300) as udp:
            for process in lab.processes:  # what waits for 100 ms is dropped, and this machine may be busy
                os.setpriority(os.PRIO_PROCESS, process.pid, -10)
            udp.wait_for_flow()
            begun = time.monotonic()
            for pause_s in PAUSES_S:
                sick.wait_for_log(f"WARNING sick: restarting in {pause_s} s", START_S)
            # After its last start it is as good as any other.
            took_s = wait_for_ping(client, "10.10.0.1", timeout=PAUSES_S[-1] + START_S)
            print(f"\n{BUGS} bugs at the {side}: well again after {time.monotonic() - begun:.1f} s ({took_s})")
            ways = udp.finish()
        for way in ways:
            print(f"  {way}")
            assert way.faultless, way
        assert sick.log.count("ERROR   sick: internal error, interface stopped") == BUGS
        assert sick.log.count("RuntimeError: a bug that a test made") == BUGS
        assert "well: restarting in" not in sick.log
        assert daemons["client"].log.count(f"well: {UPLOADING}") == 1
        for daemon in daemons.values():
            assert daemon.stop(STOP_S) == 0, daemon.tail()
