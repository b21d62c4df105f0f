"""A slow, long link between two hosts, and what a ping feels while TCP fills it.

::

    client 198.51.100.2 --- 198.51.100.1 road 192.0.2.254 --- 192.0.2.1 server

The road delays every packet (delay.py: this needs no netem) and then queues it in front of its way out, a token
bucket with a plain tail-drop queue, as most modems and routers have. The queue is the road's, not the hosts' own:
a TCP notices when it fills the queue of its own interface (TCP small queues), but not that of a router.
"""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import Host, Lab, iperf3, wait_for_ping, wait_until

from .topologies import SERVER, TUNNEL_CLIENT, TUNNEL_SERVER

_HERE: Final = Path(__file__).parent
# Slow start, and what it leaves behind, is not the load that is meant: its overshoot makes CoDel drop, and cubic was
# seen not to fill the link again before its fifth second.
_WARM_UP_S: Final = 5.0
_PING_EVERY_S: Final = 0.02

# Of a full Ethernet frame of 1514 bytes (which is what the bucket counts), 1448 are TCP's payload.
PAYLOAD_SHARE: Final = 1448 / 1514


def slow_link(
    lab: Lab, *, mbit_s: int = 20, one_way_ms: int = 20, queue_bytes: int = 128 * 1024, congestion: str = "cubic"
) -> tuple[Host, Host]:
    """The server and the client. ``congestion``: what their TCP uses unless a program chooses for itself."""
    server, road, client = (lab.host(name) for name in ("server", "road", "client"))
    lab.link(client, "198.51.100.2/24", road, "198.51.100.1/24")
    lab.link(road, "192.0.2.254/24", server, f"{SERVER}/24")
    # By route: a namespace may set its sysctl only to what the machine allows to everybody.
    client.ip(f"route add default via 198.51.100.1 congctl {congestion}")
    server.ip(f"route add default via 192.0.2.254 congctl {congestion}")
    for host in (server, client):
        host.sysctl("net.ipv4.tcp_no_metrics_save", 1)
    road.sysctl("net.ipv4.ip_forward", 1)
    delay = road.start([sys.executable, _HERE / "delay.py", "delay0", str(one_way_ms)], name="delay")
    delay.wait_for_log("ready")
    road.ip("route add default dev delay0 table 100")
    for interface in ("eth0", "eth1"):
        road.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
        road.ip(f"rule add iif {interface} lookup 100")
        shaper = f"tc qdisc add dev {interface} root tbf rate {mbit_s}mbit burst 8kb limit {queue_bytes}"
        road.run(shaper.split())
    road.sysctl("net.ipv4.conf.all.rp_filter", 0)
    wait_for_ping(client, SERVER)
    return server, client


@contextmanager
def plain_relay(server: Host, client: Host, congestion: str = "cubic") -> Iterator[None]:
    """The same tunnel by crelay.c: frames over plain TCP, without any care for queues. Needs a C compiler."""
    program = server.tmp / "crelay"
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, _HERE / "crelay.c"], check=True)
    options = ["-i", "tun0", "-C", congestion]
    with server.start([program, *options, "-l", f"{SERVER}:7000"]) as listening:
        server.wait_for_listener(7000, by=listening)
        with client.start([program, *options, "-c", f"{SERVER}:7000"]) as calling:
            for host, address in ((server, TUNNEL_SERVER), (client, TUNNEL_CLIENT)):
                wait_until(lambda: "tun0" in {link["ifname"] for link in host.ip("link show")}, 5, "tun0")  # noqa: B023
                host.ip(f"address add {address}/24 dev tun0")
                host.ip("link set tun0 up")
            yield
            for process in (listening, calling):  # the end of one is the other's
                process.signal(signal.SIGTERM)


@dataclass(frozen=True)
class UnderLoad:
    """What a ping felt, in milliseconds more than before the load, and what TCP got through meanwhile."""

    median_ms: float
    p95_ms: float
    max_ms: float
    lost_percent: float
    mbit_s: float

    def __str__(self) -> str:
        return (
            f"{self.median_ms:7.1f} {self.p95_ms:7.1f} {self.max_ms:7.1f} ms  {self.lost_percent:4.1f} %"
            f"  {self.mbit_s:6.2f} Mbit/s"
        )


def under_load(server: Host, client: Host, *, down: bool, seconds: float = 6.0) -> UnderLoad:
    """One TCP stream through the tunnel for that long, with pings through it meanwhile."""
    address = TUNNEL_SERVER
    wait_for_ping(client, address)
    idle_ms = statistics.median(_round_trips_ms(client, address, 15))
    count = int(seconds / _PING_EVERY_S)
    options = ["-C", "cubic", "-O", str(int(_WARM_UP_S)), *(["-R"] if down else [])]
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(iperf3, client, server, address, *options, seconds=int(seconds) + 1)
        client.run(["sleep", str(_WARM_UP_S + 0.5)])
        under_load_ms = sorted(_round_trips_ms(client, address, count))
        mbit_s = load.result().received_gbit_s * 1000
    if not under_load_ms:
        raise AssertionError("no ping came through under load")
    return UnderLoad(
        median_ms=statistics.median(under_load_ms) - idle_ms,
        p95_ms=under_load_ms[int(0.95 * len(under_load_ms))] - idle_ms,
        max_ms=under_load_ms[-1] - idle_ms,
        lost_percent=100 * (1 - len(under_load_ms) / count),
        mbit_s=mbit_s,
    )


def _round_trips_ms(host: Host, address: str, count: int) -> list[float]:
    argv = ["ping", "-n", "-c", str(count), "-i", str(_PING_EVERY_S), "-W", "1", address]
    done = host.run(argv, check=False, timeout=count * _PING_EVERY_S + 15)
    return [float(ms) for ms in re.findall(r"time=([\d.]+)", done.stdout)]
