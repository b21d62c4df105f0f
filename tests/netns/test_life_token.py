"""One token, two machines: the newest wins, the other one waits, and nobody fights.

A client of ours that was told to wait asks again after 20 to 40 s. No config changes that, and no test wants to wait
for it: the daemons here run with a sitecustomize module (see `injection`) that makes it `TAKEOVER_RETRY_S`.
"""

from __future__ import annotations

import re
import sys
import time
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, Process, no_leaks, wait_for_ping
from tests.integrity import CheckedUdp

from .injection import injected
from .topologies import (
    CLIENT,
    OTHER,
    RETRY_S,
    SERVER,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    client_config,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

QUIET_S: Final = 15.0
TAKEOVER_RETRY_S: Final = (3.0, 5.0)
# One wait, one attempt, and the rest for a slow machine.
BACK_S: Final = TAKEOVER_RETRY_S[1] + 5.0
TOLD: Final = "another machine uses this token; waiting until it is gone"
TOLD_SERVER: Final = "another machine uses this client's token"

_IMPATIENT: Final = f"""\
from tapotun_trio.client import client
client.TAKEOVER_RETRY_S = {TAKEOVER_RETRY_S}
"""


def _two_machines(lab: Lab) -> tuple[Host, Host, Host]:
    """A server, and two clients at a switch that is its own bridge."""
    server, one, two = lab.host("server"), lab.host("one"), lab.host("two")
    server.ip("link add br0 type bridge")
    server.ip(f"address add {SERVER}/24 dev br0")
    server.ip("link set br0 up")
    for host, address in ((one, CLIENT), (two, OTHER)):
        link = lab.link(server, [], host, f"{address}/24")
        server.ip(f"link set {link.a_interface} master br0")
    return server, one, two


def _impatient(host: Host) -> Process:
    """Our client, with both streams up."""
    daemon = injected(host, [client_config()], _IMPATIENT, name="tapotun")
    daemon.wait_for_log(UPLOADING)
    return daemon


def _base(host: Host) -> Process:
    """A base client with the same token, with a 200 for its GET."""
    argv = [sys.executable, "-m", "tests.basepeer", "client", f"http://{SERVER}:8080/ip", token("laptop")]
    peer = host.start([*argv, "--tun", "tun0"], name="base-client", cwd=ROOT)
    peer.wait_for_log("READY", RETRY_S)
    return peer


def _requests(server_daemon: Process, address: str, after: int) -> int:
    """How many requests came from a machine since then."""
    log = server_daemon.log.encode()[after:].decode()
    return len(re.findall(rf"(?:download|upload) from {re.escape(address)}:\d+ begins", log))


def test_the_newest_machine_wins(lab: Lab) -> None:
    """The older one is told, says so once, asks now and then without taking anything away, and comes back."""
    server, old, new = _two_machines(lab)
    with (
        no_leaks(server, old, new),
        running(server, server_config(), "--log-level", "debug") as server_daemon,
        _impatient(old) as old_daemon,
    ):
        wait_for_ping(old, TUNNEL_SERVER)
        with _impatient(new) as new_daemon:
            old_daemon.wait_for_log(TOLD)
            mark = server_daemon.log_end
            with CheckedUdp(new, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=100) as udp:
                udp.wait_for_flow()
                time.sleep(QUIET_S)  # the absence of a fight has no end to wait for
                ways = udp.finish()
            asked = _requests(server_daemon, CLIENT, mark)
            assert 1 <= asked <= QUIET_S / TAKEOVER_RETRY_S[0] + 1
            assert _requests(server_daemon, OTHER, mark) == 0
            assert old_daemon.log.count(TOLD) == 1
            assert server_daemon.log.count(TOLD_SERVER) == 1
            assert TOLD not in new_daemon.log
            for way in ways:
                assert way.faultless, way
            mark = old_daemon.log_end
            assert new_daemon.stop(STOP_S) == 0
            begun = time.monotonic()
        old_daemon.wait_for_log(UPLOADING, BACK_S, after=mark)
        back_s = time.monotonic() - begun
        wait_for_ping(old, TUNNEL_SERVER)
        assert old_daemon.log.count(TOLD) == 1
    print(
        f"\nthe older machine asked {asked} times in {QUIET_S:.0f} s, and was back {back_s:.1f} s after the newer's end"
    )


@pytest.mark.parametrize("first", ["ours", "base"])
def test_a_base_client_with_the_same_token(lab: Lab, first: str) -> None:
    """It knows of no BYE and always comes back at once; ours gives way, and comes back when it is gone."""
    server, one, two = _two_machines(lab)
    begin = {"ours": lambda: _impatient(one), "base": lambda: _base(two)}
    with running(server, server_config(), "--log-level", "debug") as server_daemon:
        names = ["ours", "base"] if first == "ours" else ["base", "ours"]
        processes = {name: begin[name]() for name in names}
        ours, base = processes["ours"], processes["base"]
        with ours:
            ours.wait_for_log(TOLD)
            mark, watch_s = server_daemon.log_end, QUIET_S / 2
            time.sleep(watch_s)
            asked = {
                name: _requests(server_daemon, address, mark) for name, address in (("ours", CLIENT), ("base", OTHER))
            }
            wait_for_ping(two, TUNNEL_SERVER)
            assert asked["ours"] <= watch_s / TAKEOVER_RETRY_S[0] + 1
            assert asked["base"] <= 2
            mark = ours.log_end
            base.stop()
            begun = time.monotonic()
            ours.wait_for_log(UPLOADING, BACK_S, after=mark)
            wait_for_ping(one, TUNNEL_SERVER)
            assert "VIOLATION" not in base.log, base.tail()
            back_s = time.monotonic() - begun
            print(f"\n{first} first: {asked} requests in {watch_s:.0f} s; back {back_s:.1f} s after its end")
