"""A peer that is gone without a word: no reset, no end, just silence. And its return."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.harness import Host, Lab, Process, wait_until
from tests.integrity import CheckedTcp, CheckedUdp

from .topologies import CLIENT, SERVER, TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, client_config, running, server_config

pytestmark = pytest.mark.netns

KEEPALIVE_S = 1
# A stream dies after 3 keepalives without a byte; the clock looks once a second. The rest is for a slow machine.
DEAD_S = 3 * KEEPALIVE_S + 1 + 3.0
# From the mending on. A cable that was cut for a few seconds: TCP asks for a connection after 1, 3 and 7 s.
# A peer that was only suspended needs no new connection at all, or gets one at once.
RECOVERY_S = {"cut": 8.0, "pause": 5.0}


@dataclass(frozen=True)
class World:
    """A client and a server with a switch between them, as in most places: who pulls a cable at the other
    machine takes nobody's carrier away."""

    server: Host
    client: Host
    switch: Host
    server_daemon: Process
    client_daemon: Process
    udp: CheckedUdp

    def cut(self) -> None:
        self.switch.ip("link set eth0 nomaster")

    def mend(self) -> None:
        self.switch.ip("link set eth0 master br0")


@contextmanager
def world(lab: Lab, *, load: bool) -> Iterator[World]:
    """A tunnel that is either as good as idle, or full. Its checked stream is there in both cases."""
    server, client, switch = lab.host("server"), lab.host("client"), lab.host("switch")
    switch.ip("link add br0 type bridge")
    switch.ip("link set br0 up")
    lab.link(switch, [], server, f"{SERVER}/24")
    lab.link(switch, [], client, f"{CLIENT}/24")
    for port in ("eth0", "eth1"):
        switch.ip(f"link set {port} master br0")
    with ExitStack() as stack:
        server_daemon = stack.enter_context(
            running(server, server_config(keepalive=KEEPALIVE_S), "--log-level", "debug")
        )
        client_daemon = stack.enter_context(running(client, client_config(), "--log-level", "debug", until=UPLOADING))
        udp = stack.enter_context(
            CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=500 if load else 5, size=500)
        )
        if load:
            tcp = stack.enter_context(CheckedTcp(client, server, TUNNEL_SERVER))
            tcp.wait_for_flow()
        udp.wait_for_flow()
        yield World(server, client, switch, server_daemon, client_daemon, udp)
        assert "(MTU)" not in client_daemon.log, client_daemon.tail()  # a path that is down loses small packets, too


DEATH = r"nothing came for|does not answer any more|broke|timed out"


def _deaths(daemon: Process, after: int) -> list[str]:
    return [line for line in daemon.log[after:].splitlines() if re.search(DEATH, line)]


@pytest.mark.parametrize(
    ("outage_s", "load"), [(1.0, True), (6.0, False), (6.0, True)], ids=["1s-loaded", "6s-idle", "6s-loaded"]
)
def test_a_cut_cable(lab: Lab, load: bool, outage_s: float) -> None:
    """No carrier is lost, no reset comes. After 6 s both ends have given their streams up; after 1 s nobody need."""
    with world(lab, load=load) as it:
        marks = {daemon: daemon.log_end for daemon in (it.client_daemon, it.server_daemon)}
        it.cut()
        begun = time.monotonic()
        died: dict[Process, float] = {}

        def probe() -> bool:
            for daemon, mark in marks.items():
                if daemon not in died and _deaths(daemon, mark):
                    died[daemon] = time.monotonic() - begun
            return len(died) == 2 or (outage_s < 3 and time.monotonic() - begun >= outage_s)

        wait_until(probe, DEAD_S, "both ends to give up", it.client_daemon.tail)
        time.sleep(max(0.0, outage_s - (time.monotonic() - begun)))
        if outage_s < 3 * KEEPALIVE_S:
            assert not died
        it.mend()
        back_s = it.udp.wait_for_flow(timeout=RECOVERY_S["cut"])
        told = {daemon.name: f"{seconds:.1f} s" for daemon, seconds in died.items()}
        print(f"\ncut for {outage_s:g} s, load {load}: given up after {told}, traffic {back_s:.2f} s after the mending")
        it.udp.finish()


def _paused(name: str) -> Callable[[World], Process]:
    return lambda it: {"server": it.server_daemon, "client": it.client_daemon}[name]


@pytest.mark.parametrize(("who", "load"), [("server", True), ("client", False)], ids=["server-loaded", "client-idle"])
def test_a_suspended_peer(lab: Lab, load: bool, who: str) -> None:
    """It answers nothing, though its kernel goes on acknowledging: only a keepalive notices."""
    with world(lab, load=load) as it:
        deaf = _paused(who)(it)
        other = it.client_daemon if deaf is it.server_daemon else it.server_daemon
        mark = other.log_end
        deaf.pause()
        begun = time.monotonic()
        other.wait_for_log(DEATH, DEAD_S, after=mark)
        noticed_s = time.monotonic() - begun
        time.sleep(1)
        deaf.resume()
        back_s = it.udp.wait_for_flow(timeout=RECOVERY_S["pause"])
        print(
            f"\n{who} suspended, load {load}: noticed after {noticed_s:.1f} s, traffic {back_s:.2f} s after its return"
        )
        it.udp.finish()
