"""Two tunnels between the same two bridges are a loop. A spanning tree breaks it; without one the storm limit holds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest

from tests.harness import Lab, Process, tapotun, wait_for_ping, wait_until

from .segments import (
    BROADCAST,
    EXPERIMENT,
    LAN,
    PATIENCE_S,
    Segment,
    ports,
    process_status,
    raw_socket,
)
from .topologies import UPLOADING, Config, running

pytestmark = pytest.mark.netns

TUNNELS: Final = ("seg0", "seg1")
# Quick, in hundredths of a second: a port forwards after twice the delay.
STP: Final = "type bridge stp_state 1 forward_delay 400 hello_time 100 max_age 600"
LIMIT: Final = 50


@contextmanager
def two_tunnels(segment: Segment, **fields: Any) -> Iterator[tuple[Process, dict[str, Process]]]:
    """Two interfaces of the hub, each with a client of its own at the branch, all in the bridges there. The daemon of
    the hub, and those of the branch by their interfaces. They carry frames as soon as they are connected."""
    (branch,) = segment.branches
    gateway = segment.branches[branch].gateway
    servers: list[Config] = []
    for number, name in enumerate(TUNNELS):
        servers.append(segment.server(**fields) | {"name": name, "port": 8080 + number})
    with ExitStack() as stack:
        hub = stack.enter_context(running(segment.hub.gateway, servers, name="tapotun-hub"))
        clients: dict[str, Process] = {}
        for number, name in enumerate(TUNNELS):
            config = segment.client(branch) | {"name": name, "server": segment.url(branch, 8080 + number)}
            clients[name] = stack.enter_context(tapotun(gateway, [config], name=f"tapotun-{name}"))
            clients[name].wait_for_log(UPLOADING)
        yield hub, clients


def states(segment: Segment) -> dict[tuple[str, str], str]:
    """What the bridges do at each end of each tunnel that has one."""
    found: dict[tuple[str, str], str] = {}
    for site in segment.sites:
        found |= {(site.name, port): state for port, state in ports(site.gateway).items() if port in TUNNELS}
    return found


def storms(segment: Segment) -> tuple[int, int]:
    """How many frames the hub has flooded for its clients, and how many it has dropped as too many."""
    peers = [it["peers"][0] for it in process_status(segment.hub.gateway)["interfaces"]]
    return sum(it["flooded_packets"] for it in peers), sum(it["drops"].get("storm", 0) for it in peers)


def test_a_spanning_tree_blocks_one_of_two_tunnels_and_uses_it_when_the_other_fails(lab: Lab) -> None:
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    for site in segment.sites:
        site.gateway.ip(f"link set br0 {STP}")
    with two_tunnels(segment, bpdu="forward") as (daemon, clients):

        def settled() -> bool:
            return Counter(states(segment).values()) == {"forwarding": 3, "blocking": 1}

        wait_until(settled, PATIENCE_S, "one port of four to block", lambda: str(states(segment)))
        for address in branch.addresses:
            assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
        for _ in range(3):  # it stays so, and what is sent to everybody comes once
            with raw_socket(hub.machine) as sock, raw_socket(branch.machine, kind=EXPERIMENT) as ears:
                sock.send(BROADCAST + hub.mac + EXPERIMENT + bytes(46))
                ears.settimeout(PATIENCE_S)
                assert ears.recv(100)
                ears.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    ears.recv(100)
        assert settled()
        assert storms(segment)[1] == 0
        assert "frames a second to everybody" not in daemon.log
        ((_, blocked),) = (end for end, state in states(segment).items() if state == "blocking")
        (other,) = (name for name in TUNNELS if name != blocked)
        clients[other].kill()

        def has_switched() -> bool:
            now = states(segment)
            return {now[site.name, blocked] for site in segment.sites} == {"forwarding"}

        wait_until(has_switched, PATIENCE_S, "the other tunnel to be used", lambda: str(states(segment)))
        for address in branch.addresses:
            assert wait_for_ping(hub.machine, address, PATIENCE_S).ok


@pytest.mark.usefixtures("each_plane")
def test_without_a_spanning_tree_the_storm_limit_holds_and_says_so(lab: Lab) -> None:
    """Broadcasts go round and round, until the limit ends them. It bounds how often, the log names the client and what
    to do, the daemon still answers; and when the loop is cut, everything works again."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    broadcast = BROADCAST + hub.mac + EXPERIMENT + bytes(46)
    with two_tunnels(segment, storm_limit=LIMIT) as (daemon, clients), raw_socket(hub.machine) as sock:
        sock.send(broadcast)
        text = rf'branch: sends more than {LIMIT} frames a second to everybody.*"bpdu": "forward".*storm_limit'
        told = daemon.wait_for_log(text, PATIENCE_S)
        assert " WARNING " in daemon.log[: told.start()].rpartition("\n")[2]
        # A bound that holds on any machine: a bucket of each client lets through its limit per second, and a burst.
        begun = time.monotonic()
        flooded, dropped = storms(segment)

        def goes_on() -> bool:
            for _ in range(LIMIT):
                sock.send(broadcast)
            return storms(segment)[1] > dropped + 10 * LIMIT

        wait_until(goes_on, PATIENCE_S, "more frames than the limit", daemon.tail)
        flooded_since = storms(segment)[0] - flooded
        assert flooded_since <= len(TUNNELS) * LIMIT * (time.monotonic() - begun + 1)
        assert daemon.log.count("frames a second to everybody") <= 2 * len(TUNNELS), "a storm is told once"
        assert "restarting in" not in daemon.log
        clients[TUNNELS[1]].stop()
        for address in branch.addresses:
            assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
        assert ports(branch.gateway) == {LAN: "forwarding", TUNNELS[0]: "forwarding"}
