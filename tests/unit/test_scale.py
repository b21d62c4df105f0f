"""Thousands of clients: twice as many cost about twice as much, and never hold the event loop up for all of it.

Nothing here looks at a clock. What is counted is calls of Python functions, those of `__eq__` and `__hash__` included,
and what one step of the event loop makes of them.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha1
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import FrameType
from typing import Any, Final

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.admin.manager import AdminManager
from tapotun_trio.admin.metrics import render_in_parts
from tapotun_trio.config.diff import changes
from tapotun_trio.config.load import check_content
from tapotun_trio.config.model import AllowedClient, Config, ServerConfig, TokenHash
from tapotun_trio.control.handlers import Process, process_status
from tapotun_trio.control.protocol import encode_result
from tapotun_trio.cooperative import run_now
from tapotun_trio.doctor.checks import Routes, judge
from tapotun_trio.doctor.machine import Machine
from tapotun_trio.doctor.machine import Route as MachineRoute
from tapotun_trio.errors import ConfigError
from tapotun_trio.host.items import Item
from tapotun_trio.host.process.interpreter import collecting_later, switching_often
from tapotun_trio.host.process.sd_notify import ServiceManager
from tapotun_trio.lifecycle.registry import Registry
from tapotun_trio.lifecycle.snapshot import snapshot_in_steps
from tapotun_trio.lifecycle.supervisor import run_interfaces
from tapotun_trio.log import interface_logger, process_logger
from tapotun_trio.netconf.desired import desired_for_server_in_steps
from tapotun_trio.netconf.reconciler import Reconciler
from tapotun_trio.peer.boottime import boottime
from tapotun_trio.reload import RefusedError, Reloader
from tapotun_trio.routing.router import ClientNetworks, Router
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.status.model import ProcessStatus

from ..fakes import MemoryHost, MemoryNetwork
from .support import free_port, server_config

N: Final = 300
GROWTH: Final = 2.2  # at most, for twice as many


class SetNetwork(MemoryNetwork):
    """Takes notes in a dict, piece by piece, as the tests count what the program does and not its kernel."""

    def __init__(self, host: SetHost) -> None:
        super().__init__(host)
        self._sets = host

    async def add(self, name: str, items: Sequence[Item]) -> None:
        for number, item in enumerate(items):
            if number % 50 == 0:
                await trio.lowlevel.checkpoint()
            self._sets.items[item] = None

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        for number, item in enumerate(items):
            if number % 50 == 0:
                await trio.lowlevel.checkpoint()
            self._sets.items.pop(item, None)

    async def missing(self, name: str, items: Sequence[Item]) -> list[Item]:
        found: list[Item] = []
        for number, item in enumerate(items):
            if number % 50 == 0:
                await trio.lowlevel.checkpoint()
            if item not in self._sets.items:
                found.append(item)
        return found


class SetHost(MemoryHost):
    def __init__(self) -> None:
        super().__init__()
        self.items: dict[Item, None] = {}

    @asynccontextmanager
    async def open_network(self) -> AsyncIterator[MemoryNetwork]:
        yield SetNetwork(self)


class Counter:
    """Calls of Python functions in this thread while it is on."""

    def __init__(self) -> None:
        self.calls = 0

    def _count(self, at: FrameType, event: str, _: Any) -> None:
        self.calls += event == "call"

    @contextmanager
    def on(self) -> Iterator[None]:
        before = sys.getprofile()
        gc.disable()
        sys.setprofile(self._count)
        try:
            yield
        finally:
            sys.setprofile(before)
            gc.enable()


def calls(work: Callable[[], object]) -> int:
    work()  # what is cached or imported at the first time
    counter = Counter()
    with counter.on():
        work()
    return counter.calls


def client(number: int) -> AllowedClient:
    """With an address of its own and two networks behind it."""
    networks = [IPv4Network((int(IPv4Address("100.64.0.0")) + 16 * (2 * number + it), 28)) for it in range(2)]
    digest = sha1(str(number).encode()).hexdigest()
    ip = IPv4Address("10.10.1.0") + number
    return AllowedClient(f"client-{number}", TokenHash("sha1", digest), (ip,), tuple(networks))


def server(count: int, *, first: int = 0) -> ServerConfig:
    clients = map(client, range(first, first + count))
    return replace(server_config(1, *clients), nets=(IPv4Interface("10.10.0.1/16"),))


def one_changed(config: ServerConfig) -> ServerConfig:
    routes = (*config.clients[7].routes, IPv4Network("192.168.77.0/24"))
    return replace(
        config, clients=(*config.clients[:7], replace(config.clients[7], routes=routes), *config.clients[8:])
    )


def content(config: ServerConfig) -> bytes:
    clients = [
        {"name": it.name, "token": it.token.digest, "ip": str(it.ipv4), "routes": [str(net) for net in it.routes]}
        for it in config.clients
    ]
    # A warning, so that lines and columns are looked for, too.
    trusted = ["0.0.0.0/0"]
    return json.dumps(
        [{"name": "hub", "port": 8080, "net": "10.10.0.1/16", "trusted_proxies": trusted, "clients": clients}]
    ).encode()


# What is done with so many clients; each returns the work that is to be counted.


def checking(count: int) -> Callable[[], object]:
    data = content(server(count))

    def work() -> None:
        config, found = check_content(data, "test.json")
        assert config is not None
        assert len(found) == 1

    return work


def checking_what_is_wrong(count: int) -> Callable[[], object]:
    """Each client has the token and the route of the one before."""
    clients = [
        {"token": "a" * 40, "ip": f"10.10.{it >> 8}.{it & 255}", "routes": ["10.9.0.0/24"]} for it in range(count)
    ]
    data = json.dumps([{"name": "hub", "port": 8080, "net": "10.10.0.1/16", "clients": clients}]).encode()

    def work() -> None:
        config, found = check_content(data, "test.json")
        assert config is None
        assert len(found) >= count

    return work


def comparing(before: Callable[[int], ServerConfig], after: Callable[[int], ServerConfig], count: int) -> Any:
    old, new = before(count), after(count)
    return lambda: changes([old], [new])


def few(count: int) -> ServerConfig:
    return server(count // 10)


def others(count: int) -> ServerConfig:
    """The same addresses with other tokens and names."""
    return replace(
        server(count), clients=tuple(replace(it, name=f"new-{it.name}") for it in server(count, first=count).clients)
    )


def routing(count: int) -> Callable[[], object]:
    config = server(count)
    networks = [ClientNetworks(it.addresses, it.routes, it.sources) for it in config.clients]
    return lambda: Router(config.own_addresses, config.routes, networks)


def routing_one_network(count: int) -> Callable[[], object]:
    """One client that names the same network again and again, which is no more than a warning."""
    network = IPv4Network("10.60.0.0/24")
    return lambda: Router((), (), [ClientNetworks((IPv4Address("10.10.0.2"),), (network,) * count)])


def planning(count: int) -> Callable[[], object]:
    config = server(count)
    return lambda: run_now(desired_for_server_in_steps(config))


def reconfiguring(count: int) -> Callable[[], object]:
    tunnel, many, less = TunnelServer(server(count), interface_logger("hub")), server(count), few(count)

    def work() -> None:
        for config in (less, many, one_changed(many), replace(many, mtu=1400)):
            tunnel.reconfigure(config)

    return work


def ticking(count: int) -> Callable[[], object]:
    tunnel = TunnelServer(server(count), interface_logger("hub"))

    async def main() -> None:
        with trio.move_on_after(2.5):
            await tunnel.run_clock()

    return lambda: trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def programming(count: int) -> Callable[[], object]:
    """What a reload makes of it: most go, come again, and one comes alone."""
    plans = [
        run_now(desired_for_server_in_steps(it))
        for it in (server(count), few(count), server(count), one_changed(server(count)))
    ]

    async def main() -> None:
        host = SetHost()
        reconciler = Reconciler(host, "hub", interface_logger("hub"))
        async with trio.open_nursery() as nursery:
            await nursery.start(reconciler.run, plans[0])
            for plan in plans[1:]:
                await reconciler.apply(plan)
                assert list(host.items) == list(dict.fromkeys((*host.items, *plan.items)))
                assert host.items.keys() == set(plan.items)
            nursery.cancel_scope.cancel()
        assert not host.items

    return lambda: trio.run(main)


def registered(count: int) -> Registry:
    registry = Registry()
    record = registry.add(server(count))
    record.tunnel = TunnelServer(server(count), interface_logger("hub"))
    record.started()
    return registry


def taking_a_snapshot(count: int) -> Callable[[], object]:
    registry = registered(count)
    return lambda: run_now(snapshot_in_steps(registry))


def whole_status(registry: Registry) -> ProcessStatus:
    return trio.run(process_status, Process("test", "test.json", boottime()), registry, [])


def answering_with_a_status(count: int) -> Callable[[], object]:
    registry = registered(count)
    return lambda: encode_result(whole_status(registry))


def rendering_metrics(count: int) -> Callable[[], object]:
    status = whole_status(registered(count))
    return lambda: b"".join(render_in_parts(status)[0])


def disconnecting(count: int) -> Callable[[], object]:
    registry = registered(count)
    return lambda: registry.disconnect("hub", f"client-{count - 1}")


def examining(count: int) -> Callable[[], object]:
    """A machine that has as many routes as the config; those of its tunnel are there, too."""
    config = server(count)
    behind = [net for it in config.clients for net in it.routes]
    elsewhere = [IPv4Network((int(IPv4Address("172.16.0.0")) + 16 * it, 28)) for it in range(2 * count)]
    routes = [MachineRoute(net, "hub") for net in behind] + [MachineRoute(net, "eth0") for net in elsewhere]
    machine = Machine(routes=tuple(routes))
    return lambda: judge(machine, [config])


WORK: Final[dict[str, Callable[[int], Callable[[], object]]]] = {
    "check a config": checking,
    "check a config of errors": checking_what_is_wrong,
    "compare, most go": partial(comparing, server, few),
    "compare, most come": partial(comparing, few, server),
    "compare, one changes": partial(comparing, server, lambda count: one_changed(server(count))),
    "compare, all are others": partial(comparing, server, others),
    "make a router": routing,
    "make a router of one network": routing_one_network,
    "make a plan": planning,
    "reconfigure": reconfiguring,
    "tick": ticking,
    "program": programming,
    "take a snapshot": taking_a_snapshot,
    "answer with a status": answering_with_a_status,
    "render metrics": rendering_metrics,
    "disconnect": disconnecting,
    "examine the machine": examining,
}


@pytest.mark.parametrize("name", WORK)
def test_twice_the_clients_cost_twice_as_much(name: str) -> None:
    once, twice = calls(WORK[name](N)), calls(WORK[name](2 * N))
    print(f"{name}: {once} calls, {twice} for twice as many, x {twice / once:.2f}")
    assert once > 0
    assert twice <= GROWTH * once + 100


# What one step of the event loop does


class Steps(trio.abc.Instrument):
    """Counts the calls of each step of a task. Attributes: largest: the most; number: of steps."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._before = 0
        self.largest = self.number = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._before = self._counter.calls

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.number += 1
        self.largest = max(self.largest, self._counter.calls - self._before)


@asynccontextmanager
async def counted_steps() -> AsyncIterator[Steps]:
    counter = Counter()
    steps = Steps(counter)
    with counter.on():
        trio.lowlevel.add_instrument(steps)
        try:
            yield steps
        finally:
            trio.lowlevel.remove_instrument(steps)


class World:
    """A process with one server, without a control socket.

    Attributes:
        file: what its config says; an exception is raised.
        before_reading: called in the thread that reads the file.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.file: ServerConfig | Exception = config
        self.registry = Registry()
        self.host = SetHost()
        self.seen: list[tuple[float, bool]] = []
        self.before_reading: Callable[[], object] = lambda: None
        self.reloader: Reloader

    def read(self) -> Config:
        self.before_reading()
        self.seen.append((sys.getswitchinterval(), gc.isenabled()))
        if isinstance(self.file, Exception):
            raise self.file
        return Config((self.file,))


@asynccontextmanager
async def world(config: ServerConfig) -> AsyncIterator[World]:
    it = World(config)
    with ServiceManager({}, None, process_logger()) as manager:
        async with trio.open_nursery() as nursery:
            admin = AdminManager(Process("test", "test.json", boottime()), it.registry, nursery)
            it.reloader = Reloader(Config((config,)), it.read, it.registry, admin, manager, process_logger())
            it.reloader.start(await nursery.start(run_interfaces, [config], it.host, it.registry))
            yield it
            nursery.cancel_scope.cancel()
    assert not it.host.items


def listening(config: ServerConfig, port: int) -> ServerConfig:
    return replace(config, listen=server_config(port).listen)


async def largest_steps(count: int) -> dict[str, int]:
    """Calls in the largest step of each kind of reload, and of the start."""
    port, found = free_port(), {}
    many = listening(server(count), port)
    async with world(listening(few(count), port)) as it:
        for name, config in (
            ("most come", many),
            ("one changes", one_changed(many)),
            ("everybody is told", replace(many, mtu=1400)),
            ("most go", listening(few(count), port)),
        ):
            it.file = config
            async with counted_steps() as steps:
                lines = await it.reloader.reload()
            assert lines
            assert it.host.items.keys() == set(run_now(desired_for_server_in_steps(config)).items)
            [record] = it.registry
            assert isinstance(record.tunnel, TunnelServer)
            assert [session.client for session in record.tunnel.sessions] == list(config.clients)
            found[name] = steps.largest
    async with counted_steps() as steps, world(many):
        await trio.testing.wait_all_tasks_blocked()
    found["start"] = steps.largest
    return found


async def test_no_step_of_a_reload_is_as_long_as_all_of_it() -> None:
    """The one in which the change is made has a few calls for each client; all others are bounded."""
    logging_was = process_logger().logger.level
    few_clients, many_clients = await largest_steps(N), await largest_steps(4 * N)
    assert process_logger().logger.level == logging_was
    for name, most in many_clients.items():
        print(f"{name}: the largest step has {few_clients[name]} calls with {N} clients, {most} with {4 * N}")
    for name, most in many_clients.items():
        assert most <= few_clients[name] + 5 * 3 * N, (name, few_clients, many_clients)


async def test_no_step_of_a_clocks_tick_is_as_long_as_all_of_it(autojump_clock: trio.testing.MockClock) -> None:
    largest = []
    for count in (N, 4 * N):
        tunnel = TunnelServer(server(count), interface_logger("hub"))
        async with counted_steps() as steps:
            with trio.move_on_after(2.5):
                await tunnel.run_clock()
        largest.append(steps.largest)
    assert largest[1] <= 1.2 * largest[0], largest


# What the reading thread shares with everybody


async def test_the_event_loop_gets_the_interpreter_while_a_config_is_read() -> None:
    before = sys.getswitchinterval(), gc.isenabled()
    config = listening(server(3), free_port())
    async with world(config) as it:
        await it.reloader.reload()
        await it.reloader.reload(dry_run=True)
        it.file = ConfigError("bad")
        with pytest.raises(RefusedError):
            await it.reloader.reload()
        assert (sys.getswitchinterval(), gc.isenabled()) == before
    assert len(it.seen) == 3
    for interval_s, collects in it.seen:
        assert interval_s <= 0.001
        assert not collects


async def test_a_config_that_cannot_be_read_in_time_leaves_the_interpreter_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that reads it may stay for ever."""
    import threading

    monkeypatch.setattr("tapotun_trio.reload.READ_S", 0.2)
    before = sys.getswitchinterval(), gc.isenabled()
    stays = threading.Event()
    config = listening(server(3), free_port())
    try:
        async with world(config) as it:
            monkeypatch.setattr(it, "before_reading", stays.wait)
            with pytest.raises(RefusedError, match="could not be read within"):
                await it.reloader.reload()
            assert (sys.getswitchinterval(), gc.isenabled()) == before
    finally:
        stays.set()


def test_holders_may_be_nested() -> None:
    before = sys.getswitchinterval(), gc.isenabled()
    with switching_often(), collecting_later():
        with switching_often(), collecting_later():
            pass
        assert sys.getswitchinterval() < before[0]
        assert not gc.isenabled()
    assert (sys.getswitchinterval(), gc.isenabled()) == before


# What is found is what a look at each would find


NETWORKS = st.builds(
    lambda bits, length: IPv4Network((bits << 22, length), strict=False), st.integers(0, 8), st.integers(0, 12)
)


@given(st.lists(NETWORKS, max_size=12), NETWORKS)
def test_overlapping_routes_by_definition(networks: list[IPv4Network], wanted: IPv4Network) -> None:
    routes = [MachineRoute(net, f"eth{number}") for number, net in enumerate(networks)]
    assert Routes(routes).overlapping(wanted) == [it for it in routes if it.network.overlaps(wanted)]
