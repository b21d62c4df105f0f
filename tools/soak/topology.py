"""The machines of a soak, and what can be done to them."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from tests.harness import ROOT, Host, Lab, Process, WaitError, nginx_proxy, tapotun, wait_for_ping, wait_until
from tests.netns.dual import dual_client, dual_config, rules_6
from tests.netns.topologies import (
    CLIENT,
    PROTOCOL,
    SERVER,
    TUNNEL_SERVER,
    Config,
    allowed,
    cable,
    client_config,
    device_to,
    has_interface,
    mark_rules,
    routes,
    token,
)

from . import AGE_S, BOUNDS_S
from .relay import ANSWERS
from .streams import Streams

NAME: Final = "vpn.example.com"  # `cable` makes this name known to the client's machine
MTUS: Final = (1500, 1400, 1300)
ROTATE_S: Final = [3.0, 8.0]  # short enough to overlap with faults, long enough for a silence to be noticed
KEEPALIVE_S: Final = 1
STOP_S: Final = 5.0
SOON_S: Final = 15.0  # limit for steps that must succeed but are not measured
PAUSE_S: Final = (0.5, 3.0)
HURRIED_PAUSE_S: Final = (0.5, 0.9)  # used when the faults so far took longer than planned
SERVER_AT_OLD: Final = "198.51.100.1"  # the server's address on its cable to the deployed peer
OLD: Final = "198.51.100.2"
TUNNEL_OLD: Final = "10.10.0.3"
MARK: Final = {"value": 100, "mask": "0xff", "table": 100}
RULES: Final = [(100, "100", PROTOCOL)]
# The client's machine reaches the server at this address, through a gateway, which is the server's machine itself.
FAR: Final = "203.0.113.10"
FAR_ROUTE: Final = f"203.0.113.0/24 via {SERVER}"
# This network contains that address, and is narrower than the route to it. (If the client's machine were attached to
# it, the pushed route would be left out, and cover nothing.)
COVERING: Final = "203.0.113.0/25"
OFFICE: Final = "10.60.0.0/24"
AT_OFFICE: Final = "10.60.0.7"  # the client's machine, while it is in the office
IN_OFFICE: Final = "10.60.0.9"  # some other machine
STEADY_S: Final = 0.4  # if traffic stops again within this time, it does not count as back
FRESH_S: Final = 0.25  # traffic "flows" if a packet that was sent this recently has arrived
# If no request was ended for this many times the age limit, the client has learned that limit.
LEARNED: Final = 1.5
SILENCE_S: Final = 1.0  # a longer silence counts as an interruption
LATE_S: Final = 30.0  # how long to wait beyond a bound, so that the table shows how late the traffic was


class World:
    """Server and client, their daemons, the proxies between them, and a machine with a deployed peer. Faults that need
    the deployed peer start it. The package's docstring has a picture."""

    def __init__(self, server: Host, client: Host, old: Host) -> None:
        """Starts everything. Use `world` instead, which also stops everything."""
        self.server, self.client, self.old = server, client, old
        self.mtu = MTUS[0]
        self.pushed: tuple[str, ...] = ()
        self.pause_s = PAUSE_S
        self._address = CLIENT
        self._nginx = ExitStack()
        self._orders = server.tmp / "orders"
        os.mkfifo(self._orders)
        self._held = os.open(self._orders, os.O_RDWR)
        self._server_file, self.client_file = (host.tmp / "tapotun.json" for host in (server, client))
        argv = [sys.executable, "-m", "tools.soak.relay", "0.0.0.0:80", "127.0.0.1:8081", str(self._orders)]
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
        self._write_server()
        return tapotun(self.server, self._server_file, "--log-level", "debug", name="tapotun-server")

    def start_client(self, name: str = "tapotun-client") -> Process:
        config = client_config(server=f"http://{NAME}/ip", rotate_s=ROTATE_S, mark=MARK)
        _write(self.client_file, config)
        return tapotun(self.client, self.client_file, "--log-level", "debug", name=name)

    def push(self, *networks: str) -> None:
        """Have the server push these networks, by a reload."""
        self.pushed = networks
        self._write_server()
        self.reload(self.server_daemon)

    def reload(self, daemon: Process) -> None:
        """Have a daemon read its config again."""
        mark = daemon.log_end
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("reload: (done|the config has not changed)", SOON_S, after=mark)

    def _write_server(self) -> None:
        listen = ["127.0.0.1", SERVER_AT_OLD]
        clients = (dual_client(), allowed("old", TUNNEL_OLD))
        fields = {"mtu": self.mtu, "keepalive": KEEPALIVE_S, "peers": 2, "push_routes": list(self.pushed)}
        _write(self._server_file, dual_config(*clients, listen=listen, **fields))

    @contextmanager
    def old_client(self) -> Iterator[Process]:
        """Run a connected generation 2 client, which has a cable of its own to the server. At the end, its log must
        have no complaint."""
        arguments = ["client", f"http://{SERVER_AT_OLD}:8080/ip", token("old"), "--tun", "tun0", "--generation", "2"]
        argv = [sys.executable, "-m", "tests.basepeer", *arguments]
        with self.old.start(argv, name="generation-2", cwd=ROOT) as peer:
            peer.wait_for_log("READY", SOON_S)
            wait_for_ping(self.old, TUNNEL_SERVER, SOON_S)
            yield peer
            peer.stop(STOP_S)
            assert "VIOLATION" not in peer.log, peer.tail()
            assert "EXIT" not in peer.log, peer.tail()

    def start_nginx(self) -> None:
        self._nginx.enter_context(nginx_proxy(self.server, "127.0.0.1:8080", listen=8081, log_level="crit"))

    def stop_nginx(self) -> None:
        self._nginx.close()

    def order(self, text: str) -> None:
        """Send an order to the relay, and wait until the relay has acknowledged it."""
        mark = self._relay.log_end
        os.write(self._held, text.encode() + b"\n")
        self._relay.wait_for_log(f"^ordered: {text}$", after=mark)

    def wait_for_wrong(self, mark: int) -> None:
        """Wait until the relay has sent a wrong answer."""
        self._relay.wait_for_log("^answered ", SOON_S, after=mark)

    def ended_by_age(self) -> int:
        """How many connections the relay has ended because of their age since it started."""
        return self._relay.log.count("ended at an age of ")

    def is_excepted(self) -> bool:
        """Whether a host route leads the client's own connections past its tunnel."""
        return (FAR, "eth0", PROTOCOL) in routes(self.client)

    @property
    def relay_mark(self) -> int:
        """The current end of the relay's log."""
        return self._relay.log_end

    def move_client(self, address: str) -> None:
        """Replace the address of the client's machine, as when it changes networks."""
        if address != self._address:
            self.client.ip(f"address del {self._address}/24 dev eth0")
            self.client.ip(f"address add {address}/24 dev eth0")
            self._address = address
            self.restore_route()

    def restore_route(self) -> None:
        """Give the client's machine its route to the server back, as a DHCP client does. The kernel removes it with the
        link or the last address."""
        self.client.ip(f"route replace {FAR_ROUTE}")


def machines(lab: Lab) -> tuple[Host, Host, Host]:
    """Return the machines of the server, of the client and of a deployed peer, connected by cables only. The cable
    between client and deployed peer is a LAN without addresses."""
    server, client = cable(lab)
    old = lab.host("old")
    lab.link(server, f"{SERVER_AT_OLD}/24", old, f"{OLD}/24")
    lab.link(client, [], old, [])
    server.ip(f"address add {FAR}/32 dev lo")
    client.ip(f"route add {FAR_ROUTE}")
    client.hosts({NAME: FAR})
    return server, client, old


@contextmanager
def world(server: Host, client: Host, old: Host) -> Iterator[World]:
    """Run everything on the machines. At the end it is stopped, unless an error occurred."""
    setup = World(server, client, old)
    yield setup
    setup.close()


def _write(file: Path, *entries: Config) -> None:
    file.touch(mode=0o600)
    file.write_text(json.dumps(entries, indent=2), encoding="utf-8")


def recovery_s(udp: Streams, since_ns: int, timeout: float) -> float:
    """Return the seconds from ``since_ns`` until traffic flows steadily in both directions; infinite if it never
    does."""
    end_ns = since_ns + int(timeout * 1e9)
    start_ns = since_ns
    while start_ns < end_ns:
        try:
            took = udp.wait_for_flow(start_ns, timeout=(end_ns - start_ns) / 1e9)
        except WaitError:
            break
        time.sleep(STEADY_S)
        if all(udp.flows(time.monotonic_ns() - int(FRESH_S * 1e9))):
            return took + (start_ns - since_ns) / 1e9
        start_ns = time.monotonic_ns()
    return float("inf")


class Outcome(NamedTuple):
    """The outcome of a fault.

    Attributes:
        since_ns: when traffic could flow again, on the monotonic clock.
        detail: what the fault did.
        measured_s: a time measured before ``since_ns``, which must be within the bound too.
    """

    since_ns: int
    detail: str
    measured_s: float = 0.0


Fault: TypeAlias = Callable[[World, random.Random, Streams], Outcome]


def _now(detail: str, measured_s: float = 0.0) -> Outcome:
    return Outcome(time.monotonic_ns(), detail, measured_s)


def _kill_server(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    setup.server_daemon.kill()
    gap_s = _gap(rng)
    setup.server_daemon = setup.start_server()
    return _now(gap_s)


def _kill_client(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    setup.client_daemon.kill()
    gap_s = _gap(rng)
    setup.client_daemon = setup.start_client()
    return _now(gap_s)


def _gap(rng: random.Random) -> str:
    seconds = rng.choice((0.0, rng.uniform(0, 1.0)))
    time.sleep(seconds)
    return f"gone for {seconds:.1f} s"


def _restart_server(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    assert setup.server_daemon.stop(STOP_S) == 0, setup.server_daemon.tail()
    setup.mtu = rng.choice([mtu for mtu in MTUS if mtu != setup.mtu])
    setup.server_daemon = setup.start_server()
    return _now(f"MTU {setup.mtu}")


def _pause_server(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    return _pause(setup, setup.server_daemon, rng)


def _pause_client(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    return _pause(setup, setup.client_daemon, rng)


def _pause(setup: World, process: Process, rng: random.Random) -> Outcome:
    seconds = rng.uniform(*setup.pause_s)
    process.pause()
    time.sleep(seconds)
    process.resume()
    return _now(f"for {seconds:.1f} s")


def _unplug(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    host, seconds = rng.choice((setup.server, setup.client)), rng.uniform(*setup.pause_s)
    host.ip("link set eth0 down")
    time.sleep(seconds)
    host.ip("link set eth0 up")
    setup.restore_route()
    return _now(f"at the {host.name} for {seconds:.1f} s")


def _change_address(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    address = f"192.0.2.{rng.randrange(10, 250)}"
    setup.move_client(address)
    return _now(address)


def _restart_nginx(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    setup.stop_nginx()
    gap_s = _gap(rng)
    setup.start_nginx()
    return _now(gap_s)


def _cut(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    setup.order("cut")
    return _now("by the relay")


def _answer_wrongly(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    method, kind, cut = rng.choice(("GET", "PUT")), rng.choice(sorted(ANSWERS)), rng.random() < 0.5
    mark = setup.relay_mark
    setup.order(f"wrong {method} {kind}")
    begun_ns = time.monotonic_ns()
    if cut:
        setup.order("cut")
        setup.wait_for_wrong(mark)
    else:  # sooner or later a rotation gets that answer, and the older stream continues
        setup.wait_for_wrong(mark)
        begun_ns = time.monotonic_ns()
    return Outcome(begun_ns, f"{kind} to {method}{', connections cut' if cut else ''}")


def _end_at_an_age(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """Every request is ended at the same age, until the client replaces its streams earlier. The client has learned
    this when no request is ended for longer than a request may last, while traffic flows all the time."""
    age_s = round(rng.uniform(*AGE_S), 1)
    before = ended = setup.ended_by_age()
    setup.order(f"age {age_s}")
    begun_s = good_since_s = time.monotonic()
    while time.monotonic() < good_since_s + LEARNED * age_s:
        time.sleep(0.05)
        if setup.ended_by_age() > ended or udp.silent_s() > SILENCE_S:
            ended, good_since_s = setup.ended_by_age(), time.monotonic()
        if good_since_s > begun_s + BOUNDS_S["fixed request age"] + LATE_S:
            return _now(f"{age_s} s, and it never learned that", float("inf"))
    setup.order("age inf")
    # The client would check only after minutes whether the limit is gone. A new client does not know of any limit.
    assert setup.client_daemon.stop(STOP_S) == 0, setup.client_daemon.tail()
    setup.client_daemon = setup.start_client()
    return _now(f"{age_s} s, {ended - before} were ended", good_since_s - begun_s)


def _rotate(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """Not a fault: watches one of the rotations that happen every few seconds."""
    found = setup.client_daemon.wait_for_log(
        "tun0: (download|upload) (from|to)", SOON_S, after=setup.client_daemon.log_end
    )
    return _now(found[1])


def _covering_push(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """The server pushes a network that contains its own address. Traffic flows while it is pushed and after it is
    withdrawn."""
    seconds = rng.uniform(*setup.pause_s)
    setup.push(COVERING)
    pushed_ns = time.monotonic_ns()
    try:
        wait_until(setup.is_excepted, LATE_S, "a host route past the tunnel", setup.client_daemon.tail)
    except WaitError:
        return _now("no host route", float("inf"))
    took_s = recovery_s(udp, pushed_ns, LATE_S)
    time.sleep(seconds)
    # Check again that traffic flows: by now, the streams that were open before are replaced or have fallen silent.
    took_s = max(took_s, recovery_s(udp, time.monotonic_ns(), LATE_S))
    setup.push()
    wait_until(lambda: not setup.is_excepted(), LATE_S, "the host route to go", setup.client_daemon.tail)
    return _now(f"{COVERING} for {(time.monotonic_ns() - pushed_ns) / 1e9:.1f} s", took_s)


def _roam(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """The client's machine gets an address in the pushed network, on the cable to the server or on another one, and
    loses it again. In between, that network is reached without the tunnel. The tunnel's traffic flows all the time.
    """
    device, seconds = rng.choice(("eth0", "eth1")), rng.uniform(*setup.pause_s)
    setup.push(OFFICE)
    _wait_for_device(setup, "tun0", SOON_S)
    took_s = 0.0
    for verb, reached_by in (("add", device), ("del", "tun0")):
        setup.client.ip(f"address {verb} {AT_OFFICE}/24 dev {device}")
        begun_s = time.monotonic()
        try:
            _wait_for_device(setup, reached_by, LATE_S)
        except WaitError:
            return _now(f"never reached by {reached_by}", float("inf"))
        took_s = max(took_s, time.monotonic() - begun_s, _silence_within_s(udp, seconds))
    setup.push()
    return _now(f"to {device} for {seconds:.1f} s", took_s)


def _wait_for_device(setup: World, device: str, timeout: float) -> None:
    """Wait until the client's machine reaches the pushed network through this device. Raises WaitError."""
    what = f"{IN_OFFICE} to be reached by {device}"
    wait_until(lambda: device_to(setup.client, IN_OFFICE) == device, timeout, what, setup.client_daemon.tail)


def _second_start(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """A second client starts with the same config. It reports that and exits, and the first client's traffic does not
    stop."""
    mark = setup.client_daemon.log_end
    second = setup.start_client("tapotun-second")
    silent_s = _longest_silence_s(udp, lambda: second.running)
    assert second.wait() == 1, second.tail()
    second.close()
    assert f"config {setup.client_file}" in second.log, second.tail()
    assert "another machine" not in setup.client_daemon.log.encode()[mark:].decode(errors="replace"), (
        setup.client_daemon.tail()
    )
    return _now("refused", silent_s)


def _silence_within_s(udp: Streams, seconds: float) -> float:
    """Return the longest silence within the next ``seconds``."""
    end_s = time.monotonic() + seconds
    return _longest_silence_s(udp, lambda: time.monotonic() < end_s)


def _longest_silence_s(udp: Streams, lasts: Callable[[], bool]) -> float:
    """Return the longest time without a packet in either direction, while ``lasts`` is true."""
    silent_s = 0.0
    while lasts():
        silent_s = max(silent_s, udp.silent_s())
        time.sleep(0.02)
    return silent_s


def _no_names(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """The server restarts while its name does not resolve."""
    setup.client.hosts({})
    assert setup.server_daemon.stop(STOP_S) == 0, setup.server_daemon.tail()
    setup.server_daemon = setup.start_server()
    begun_ns = time.monotonic_ns()
    took_s = recovery_s(udp, begun_ns, LATE_S)
    setup.client.hosts({NAME: FAR})
    return Outcome(begun_ns, f"it was back after {took_s:.1f} s", took_s)


def _restart_under_generation_2(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """The server restarts while a generation 2 client is connected. That client must be back within its bound."""
    with setup.old_client():
        assert setup.server_daemon.stop(STOP_S) == 0, setup.server_daemon.tail()
        setup.server_daemon = setup.start_server()
        begun_ns = time.monotonic_ns()
        try:
            wait_for_ping(setup.old, TUNNEL_SERVER, LATE_S)
        except WaitError:
            return Outcome(begun_ns, "it never came back", float("inf"))
        took_s = (time.monotonic_ns() - begun_ns) / 1e9
    return Outcome(begun_ns, f"it was back after {took_s:.1f} s", took_s)


def _remove_rule(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """A rule of the client, of one family, is removed, as systemd-networkd does when a link appears."""
    family = rng.choice(("-4", "-6"))

    def has_rules() -> bool:
        return mark_rules(setup.client) == rules_6(setup.client) == RULES

    setup.reload(setup.client_daemon)  # resets the pause between repairs, so earlier faults do not matter
    wait_until(has_rules, SOON_S, "the rules", setup.client_daemon.tail)
    setup.client.ip(f"{family} rule del fwmark {MARK['value']}/{MARK['mask']}")
    begun_ns = time.monotonic_ns()
    try:
        wait_until(has_rules, LATE_S, "the rule to be back", setup.client_daemon.tail)
    except WaitError:
        return Outcome(begun_ns, f"{family}: it never came back", float("inf"))
    return Outcome(begun_ns, f"{family} at the client", (time.monotonic_ns() - begun_ns) / 1e9)


def _flush(setup: World, rng: random.Random, udp: Streams) -> Outcome:
    """The addresses of an interface are flushed, and the kernel removes the routes with them."""
    host, daemon = rng.choice(((setup.server, setup.server_daemon), (setup.client, setup.client_daemon)))
    setup.reload(daemon)
    # Just after a restart the interface may not exist yet.
    wait_until(lambda: has_interface(host, "tun0"), SOON_S, "the interface", daemon.tail)
    host.ip("address flush dev tun0")
    return _now(f"at the {host.name}")


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
    "wrong answer": _answer_wrongly,
    "fixed request age": _end_at_an_age,
    "rotation": _rotate,
    "covering push": _covering_push,
    "roam into pushed network": _roam,
    "second start": _second_start,
    "rule removed": _remove_rule,
    "addresses flushed": _flush,
    "generation 2 restart": _restart_under_generation_2,
    "no names": _no_names,
}
