"""The machines of a soak, and what can be done to them."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, TypeAlias

from tests.harness import ROOT, Host, Process, nginx_proxy, tapotun
from tests.netns.worlds import CLIENT, SERVER, client_config, server_config

from .relay import ANSWERS

MTUS: Final = (1500, 1400, 1300)
ROTATE_S: Final = [3.0, 8.0]  # short enough to be in the way of faults, long enough for a silence to be noticed
KEEPALIVE_S: Final = 1
STOP_S: Final = 5.0
SOON_S: Final = 15.0  # for what must happen some time, and is not what is measured
PAUSE_S: Final = (0.5, 3.0)
HURRIED_PAUSE_S: Final = (0.5, 0.9)  # where the faults so far took longer than they may


class World:
    """Server and client, the daemons on them, and the proxies between. See the package for a picture."""

    def __init__(self, server: Host, client: Host) -> None:
        """Starts everything. Use `world`, which also ends it."""
        self.server, self.client = server, client
        self.mtu = MTUS[0]
        self.pause_s = PAUSE_S
        self._address = CLIENT
        self._nginx = ExitStack()
        self._orders = server.tmp / "orders"
        os.mkfifo(self._orders)
        self._held = os.open(self._orders, os.O_RDWR)
        argv = [sys.executable, "-m", "tests.soak.relay", f"{SERVER}:80", "127.0.0.1:8081", str(self._orders)]
        self._relay = server.start(argv, name="relay", cwd=ROOT)
        self._relay.wait_for_log("^ready$")
        self.start_nginx()
        self.server_daemon = self.start_server()
        self.client_daemon = self.start_client()

    def close(self) -> None:
        """Stop everything; the daemons must end cleanly. The client gets its first address back."""
        for daemon in (self.client_daemon, self.server_daemon):
            assert daemon.stop(STOP_S) == 0, daemon.tail()
        self._nginx.close()
        self._relay.close()
        os.close(self._held)
        self.move_client(CLIENT)

    def start_server(self) -> Process:
        config = server_config(listen="127.0.0.1", mtu=self.mtu, keepalive=KEEPALIVE_S)
        return tapotun(self.server, [config], "--log-level", "debug", name="tapotun-server")

    def start_client(self) -> Process:
        config = client_config(server=f"http://{SERVER}/ip", rotate_s=ROTATE_S)
        return tapotun(self.client, [config], "--log-level", "debug", name="tapotun-client")

    def start_nginx(self) -> None:
        self._nginx.enter_context(nginx_proxy(self.server, "127.0.0.1:8080", listen=8081, log_level="crit"))

    def stop_nginx(self) -> None:
        self._nginx.close()

    def order(self, text: str) -> None:
        """Tell the relay, and wait until it has understood."""
        mark = self._relay.log_end
        os.write(self._held, text.encode() + b"\n")
        self._relay.wait_for_log(f"^ordered: {text}$", after=mark)

    def wait_for_wrong(self, mark: int) -> None:
        """Until the relay has answered wrongly."""
        self._relay.wait_for_log("^answered ", SOON_S, after=mark)

    @property
    def relay_mark(self) -> int:
        """Where the relay's log ends now."""
        return self._relay.log_end

    def move_client(self, address: str) -> None:
        """The client's machine loses its address and gets another one, as when it changes networks."""
        if address != self._address:
            self.client.ip(f"address del {self._address}/24 dev eth0")
            self.client.ip(f"address add {address}/24 dev eth0")
            self._address = address


@contextmanager
def world(server: Host, client: Host) -> Iterator[World]:
    """Everything on the two machines, stopped at the end if nothing went wrong."""
    it = World(server, client)
    yield it
    it.close()


# The faults. Each returns, in ns of the monotonic clock, from when on traffic could flow again, and what it did.

Outcome: TypeAlias = tuple[int, str]
Fault: TypeAlias = Callable[[World, random.Random], Outcome]


def _now(detail: str) -> Outcome:
    return time.monotonic_ns(), detail


def _kill_server(it: World, rng: random.Random) -> Outcome:
    it.server_daemon.kill()
    gap_s = _gap(rng)
    it.server_daemon = it.start_server()
    return _now(gap_s)


def _kill_client(it: World, rng: random.Random) -> Outcome:
    it.client_daemon.kill()
    gap_s = _gap(rng)
    it.client_daemon = it.start_client()
    return _now(gap_s)


def _gap(rng: random.Random) -> str:
    seconds = rng.choice((0.0, rng.uniform(0, 1.0)))
    time.sleep(seconds)
    return f"gone for {seconds:.1f} s"


def _restart_server(it: World, rng: random.Random) -> Outcome:
    assert it.server_daemon.stop(STOP_S) == 0, it.server_daemon.tail()
    it.mtu = rng.choice([mtu for mtu in MTUS if mtu != it.mtu])
    it.server_daemon = it.start_server()
    return _now(f"MTU {it.mtu}")


def _pause_server(it: World, rng: random.Random) -> Outcome:
    return _pause(it, it.server_daemon, rng)


def _pause_client(it: World, rng: random.Random) -> Outcome:
    return _pause(it, it.client_daemon, rng)


def _pause(it: World, process: Process, rng: random.Random) -> Outcome:
    seconds = rng.uniform(*it.pause_s)
    process.pause()
    time.sleep(seconds)
    process.resume()
    return _now(f"for {seconds:.1f} s")


def _unplug(it: World, rng: random.Random) -> Outcome:
    host, seconds = rng.choice((it.server, it.client)), rng.uniform(*it.pause_s)
    host.ip("link set eth0 down")
    time.sleep(seconds)
    host.ip("link set eth0 up")
    return _now(f"at the {host.name} for {seconds:.1f} s")


def _change_address(it: World, rng: random.Random) -> Outcome:
    address = f"192.0.2.{rng.randrange(10, 250)}"
    it.move_client(address)
    return _now(address)


def _restart_nginx(it: World, rng: random.Random) -> Outcome:
    it.stop_nginx()
    gap_s = _gap(rng)
    it.start_nginx()
    return _now(gap_s)


def _cut(it: World, rng: random.Random) -> Outcome:
    it.order("cut")
    return _now("by the relay")


def _lie(it: World, rng: random.Random) -> Outcome:
    method, kind, cut = rng.choice(("GET", "PUT")), rng.choice(sorted(ANSWERS)), rng.random() < 0.5
    mark = it.relay_mark
    it.order(f"wrong {method} {kind}")
    begun_ns = time.monotonic_ns()
    if cut:
        it.order("cut")
    else:  # a rotation runs into it, sooner or later, and the stream that is there goes on
        it.wait_for_wrong(mark)
        begun_ns = time.monotonic_ns()
    return begun_ns, f"{kind} to {method}{', connections cut' if cut else ''}"


def _rotate(it: World, rng: random.Random) -> Outcome:
    """No fault at all: what happens every few seconds, looked at."""
    found = it.client_daemon.wait_for_log("tun0: (download|upload) (from|to)", SOON_S, after=it.client_daemon.log_end)
    return _now(found[1])


FAULTS: Final[dict[str, Fault]] = {
    "kill -9 server": _kill_server,
    "server restart, other MTU": _restart_server,
    "kill -9 client": _kill_client,
    "server paused": _pause_server,
    "client paused": _pause_client,
    "cable unplugged": _unplug,
    "client address changed": _change_address,
    "nginx restart": _restart_nginx,
    "connections cut": _cut,
    "wrong answer": _lie,
    "rotation": _rotate,
}
