"""A client and a server, the road between them, and the daemons that emulate one pair of streams and several."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.harness import Host, Lab, Process, tapotun, wait_for_ping
from tests.harness.recipes import NAME, RECIPES

from .plan import PAIRS, Cell

SERVER: Final = "192.0.2.1"
CLIENT: Final = "198.51.100.2"
_START_S: Final = 30.0


def ends(pairs: int) -> tuple[str, str]:
    """The addresses of server and client between which flows use that many pairs; 0: no tunnel."""
    if pairs == 0:
        return SERVER, CLIENT
    return ("10.98.0.1", "10.98.0.2") if pairs == 1 else ("10.99.0.1", "10.99.0.2")


def interfaces(pairs: int) -> list[str]:
    """Those that the flows between these addresses are spread over."""
    return ["tun0"] if pairs == 1 else [f"tun{number}" for number in range(1, PAIRS + 1)]


def wire(lab: Lab, cell: Cell, program: Path, seed: int, server: Host, road: Host, client: Host) -> Process:
    """Lay the cell's road between client and server, on a host of its own. `program` is the compiled road, whose
    process is returned. Raises HarnessError."""
    lab.link(client, f"{CLIENT}/24", road, "198.51.100.1/24")
    lab.link(road, "192.0.2.254/24", server, f"{SERVER}/24")
    # By route: a namespace may set its sysctl only to what the machine allows to everybody.
    client.ip(f"route add default via 198.51.100.1 congctl {cell.congestion}")
    server.ip(f"route add default via 192.0.2.254 congctl {cell.congestion}")
    for host in (server, client):
        host.sysctl("net.ipv4.tcp_no_metrics_save", 1)
        host.sysctl("net.ipv4.fib_multipath_hash_policy", 1)  # addresses, protocol, ports
    for host in (server, road, client):  # the answers of a flow may use another pair, and all of the wire comes back
        for scope in ("all", "default"):
            host.sysctl(f"net.ipv4.conf.{scope}.rp_filter", 0)
    road.sysctl("net.ipv4.ip_forward", 1)
    options = [cell.rtt_ms / 2, cell.loss_percent, cell.burst, cell.mbit_s, cell.queue_bytes, seed]
    process = road.start([program, "wire0", SERVER, *(f"{option:g}" for option in options)], name="road")
    process.wait_for_log("ready")
    road.ip("route add default dev wire0 table 100")
    for interface in ("eth0", "eth1"):
        road.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
        road.ip(f"rule add iif {interface} lookup 100")
    wait_for_ping(client, SERVER)
    return process


def counts(road: Process) -> dict[str, dict[str, int]]:
    """Ends the road. What it has seen, ``up`` and ``down``: see road.c. Raises HarnessError."""
    road.stop()
    found: dict[str, dict[str, int]] = json.loads(road.log.splitlines()[-1])
    return found


class World:
    """Everything of one cell, as a context manager. `program` is the compiled road, `road` its process.

    Entering it waits until all pairs carry packets. Raises HarnessError.
    """

    def __init__(self, lab: Lab, cell: Cell, program: Path, seed: int) -> None:
        self.cell = cell
        self.server, self._between, self.client = (lab.host(name) for name in ("server", "road", "client"))
        self._lab, self._program, self._seed = lab, program, seed
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.road = wire(self._lab, self.cell, self._program, self._seed, self.server, self._between, self.client)
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _start(self, undo: ExitStack) -> None:
        """Daemons, and the proxy. One process has all interfaces of its end, as with the feature it would have all
        pairs."""
        self.client.hosts({NAME: SERVER})
        names = [*interfaces(1), *interfaces(PAIRS)]
        client_tunnel = [{"ip": ends(1 if name == "tun0" else PAIRS)[1]} for name in names]
        definitions: list[dict[str, Any]] = []
        connections: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            entry = {
                "token": hashlib.sha1(name.encode()).hexdigest(),
                "ip": f"10.10.{number}.2",
                "routes": [f"{client_tunnel[number]['ip']}/32"],
            }
            definitions.append(
                {
                    "name": name,
                    "listen": "127.0.0.1" if self.cell.proxy else SERVER,
                    "port": 8080,
                    "path": f"/ip/{name}",
                    "net": f"10.10.{number}.1/24",
                    "install_routes": False,
                    "clients": [entry],
                }
            )
            connections.append({"name": name, "server": f"http://{SERVER}:8080/ip/{name}", "token": name})
        server = undo.enter_context(tapotun(self.server, definitions))
        self.server.wait_for_listener(8080, by=server)
        if self.cell.proxy:
            # The recipe as it is shipped, but for a location that takes the paths of all interfaces.
            replaced = {"location = /ip {": "location /ip/ {"}
            proxy = undo.enter_context(RECIPES["nginx"](self.server, replace=replaced))
            for connection in connections:
                connection["server"] = f"https://{NAME}/ip/{connection['name']}"
                connection["tls"] = {"ca_file": str(proxy.ca_file)}
        client = undo.enter_context(tapotun(self.client, connections))
        for number in range(len(names)):
            wait_for_ping(self.client, f"10.10.{number}.1", _START_S)
        self.processes = (client, server)
        for host, own, other in ((self.server, 0, 1), (self.client, 1, 0)):
            for pairs in (1, PAIRS):
                address = ends(pairs)
                host.ip(f"address add {address[own]}/32 dev lo")
                hops = " ".join(f"nexthop dev {name}" for name in interfaces(pairs))
                host.ip(f"route add {address[other]} src {address[own]} {hops}")
        for pairs in (1, PAIRS):
            wait_for_ping(self.client, ends(pairs)[0], _START_S, source=ends(pairs)[1])

    def pair_of(self, host: Host, protocol: str, source: tuple[str, int], target: tuple[str, int]) -> str:
        """The interface through which the host sends this flow. Raises CommandError."""
        (route,) = host.ip(
            f"route get {target[0]} from {source[0]} ipproto {protocol} sport {source[1]} dport {target[1]}"
        )
        found: str = route["dev"]
        return found

    def check(self) -> None:
        """Raises ProcessError with the log of a process that has died."""
        for process in (*self.processes, self.road):
            process.check_running()

    def cpu_s(self) -> float:
        """CPU seconds that both daemons have used."""
        return sum(process.cpu_seconds() for process in self.processes)
