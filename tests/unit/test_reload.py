"""A config that is read again: all of it or nothing, whatever goes wrong, and what the service manager hears of it."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_interface
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.admin.manager import AdminManager
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.config.model import (
    AllowedClient,
    Config,
    InterfaceConfig,
    Mark,
    Secret,
    ServerConfig,
    TcpAddress,
    TokenHash,
)
from tapotun_trio.control.handlers import Process
from tapotun_trio.cooperative import run_now
from tapotun_trio.errors import ConfigError, HostError
from tapotun_trio.families import IPNetwork, is_within
from tapotun_trio.host.items import Item, ItemsRefused, Route, Rule
from tapotun_trio.host.process.sd_notify import ServiceManager
from tapotun_trio.lifecycle.registry import Record, Registry
from tapotun_trio.lifecycle.snapshot import snapshot_in_steps, state_of
from tapotun_trio.lifecycle.supervisor import run_interfaces
from tapotun_trio.log import process_logger
from tapotun_trio.netconf.desired import pushed_routes
from tapotun_trio.peer.boottime import boottime
from tapotun_trio.reload import Read, RefusedError, Reloader
from tapotun_trio.server.server import TunnelServer

from ..fakes import HANG_S, MemoryDevice, MemoryHost, MemoryNetwork
from ..packets import ipv4
from .hostile import until
from .support import allowed, client_config, free_port, server_config

NETWORKS = {
    4: st.builds(
        lambda bits, length: IPv4Network((bits << 24, length), strict=False), st.integers(0, 3), st.integers(0, 9)
    ),
    6: st.builds(
        lambda bits, length: IPv6Network((bits << 120, length), strict=False), st.integers(0, 3), st.integers(0, 9)
    ),
}
BOTH_FAMILIES = NETWORKS[4] | NETWORKS[6]
BEHIND = IPv4Network("10.60.0.0/24")


class StrictNetwork(MemoryNetwork):
    """As the kernel: a route that another interface has is refused."""

    def __init__(self, host: StrictHost) -> None:
        super().__init__(host)
        self._strict = host

    async def link_up(self, name: str, mtu: int) -> None:
        if (fault := self._strict.mtu_faults.pop(mtu, None)) is not None:
            raise fault
        await super().link_up(name, mtu)

    async def add(self, name: str, items: Sequence[Item]) -> None:
        for other, standing in self._strict.standing.items():
            for item in items:
                if other != name and isinstance(item, Route) and item in standing:
                    raise ItemsRefused({item: f"{item}: {other} has it"})
        await super().add(name, items)

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        self._strict.removed += map(str, items)
        await super().remove(name, items)


class StrictHost(MemoryHost):
    """Attributes:
    mtu_faults: raised once when a link is to get this MTU.
    device_faults: raised once when a device is to be opened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mtu_faults: dict[int, Exception] = {}
        self.device_faults: dict[str, list[Exception]] = {}
        self.removed: list[str] = []  # from the kernel, so far

    @contextmanager
    def open_device(
        self, name: str, queues: int = 1, mac: bytes | None = None, *, is_port: bool = False
    ) -> Iterator[MemoryDevice]:
        if faults := self.device_faults.get(name):
            raise faults.pop(0)
        with super().open_device(name, queues, mac, is_port=is_port) as device:
            yield device

    @asynccontextmanager
    async def open_network(self) -> AsyncIterator[MemoryNetwork]:
        yield StrictNetwork(self)


@dataclass
class World:
    """A process without signals and sockets. ``file``: what the config says; an exception: reading it raises that."""

    host: StrictHost
    registry: Registry
    reloader: Reloader
    manager: ServiceManager
    systemd: socket.socket
    file: Sequence[InterfaceConfig] | Exception = field(default_factory=list)

    def read(self) -> Config:
        if isinstance(self.file, Exception):
            raise self.file
        return Config(tuple(self.file))

    async def reload(self, *configs: InterfaceConfig) -> list[str]:
        self.file = configs
        with trio.fail_after(HANG_S):
            return await self.reloader.reload()

    async def refused(self, *configs: InterfaceConfig) -> str:
        with pytest.raises(RefusedError) as caught:
            await self.reload(*configs)
        assert self.registry.last_reload is not None
        assert self.registry.last_reload.error is not None
        return str(caught.value)

    @property
    def running(self) -> list[InterfaceConfig]:
        """What is up, as it is configured."""
        return [record.config for record in self.registry if state_of(record) == "up"]

    def told(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.systemd.recv(4096).decode().partition("\n")[0])
            except BlockingIOError:
                return found


@asynccontextmanager
async def world(tmp_path: Path, *configs: InterfaceConfig) -> AsyncIterator[World]:
    """Ready at first; cancelled at the end, with nothing left."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        with ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}, None, process_logger()) as manager:
            registry = Registry()
            host = StrictHost()
            async with trio.open_nursery() as nursery:
                reloader = reloading(lambda: it.read(), configs, registry, manager, nursery)
                it = World(host, registry, reloader, manager, systemd, configs)
                reloader.start(await nursery.start(run_interfaces, configs, host, registry))
                manager.ready()
                it.told()
                yield it
                nursery.cancel_scope.cancel()
            assert host.left_over == []
            assert host.devices == {}


def reloading(
    read: Read, configs: Sequence[InterfaceConfig], registry: Registry, manager: ServiceManager, nursery: trio.Nursery
) -> Reloader:
    """Without an admin listener."""
    admin = AdminManager(Process("test", "test.json", boottime()), registry, nursery)
    return Reloader(Config(tuple(configs)), read, registry, admin, manager, process_logger())


def two() -> tuple[ServerConfig, ServerConfig]:
    first = replace(server_config(free_port(), allowed("a", "10.10.0.2")), name="tun0")
    return first, replace(server_config(free_port(), allowed("b", "10.10.0.2")), name="tun1")


@pytest.mark.parametrize("fault", [ConfigError("[0].net: bad"), RuntimeError("boom"), RecursionError("deep")])
async def test_whatever_reading_raises_changes_nothing(fault: Exception, tmp_path: Path) -> None:
    before = two()
    async with world(tmp_path, *before) as it:
        it.file = fault
        with pytest.raises(RefusedError, match="nothing was changed"):
            await it.reloader.reload()
        assert it.told() == ["RELOADING=1", "READY=1"]  # or systemd waits for the second until its patience is over
        await it.reloader.reload_for_a_signal()  # which has nobody to raise it to
        assert it.running == list(before)
        assert await it.reload(*before) == []


def seen(it: World) -> list[tuple[str, str, bool]]:
    """Interface and name of each peer, and whether it was ever seen, as the status has it."""
    found = run_now(snapshot_in_steps(it.registry))
    return [(each.name, peer.name, peer.last_seen_at is not None) for each in found for peer in each.peers]


async def test_when_a_peer_was_last_seen_outlives_what_a_reload_replaces(tmp_path: Path) -> None:
    port = free_port()
    server = replace(server_config(port, allowed("a", "10.10.0.2"), allowed("b", "10.10.0.3")), name="tun0")
    client = replace(client_config("tun1", port), token=Secret("a"))
    fresh = AllowedClient("a", TokenHash("sha256", "0" * 64), (IPv4Address("10.10.0.2"),))
    async with world(tmp_path, server, client) as it:
        await until(lambda: seen(it)[0][2] and seen(it)[2][2], "the client at both ends")
        name = client.server.authority
        both = [("tun0", "a", True), ("tun0", "b", False), ("tun1", name, True)]
        assert seen(it) == both
        # Another port starts both ends again, and nobody is there to connect to.
        moved = replace(server, listen=(TcpAddress("127.0.0.1", free_port()),))
        await it.reload(moved, replace(client, transport="http"))
        assert it.registry.get("tun0") is not None
        assert seen(it) == both
        # A new token for the same client.
        await it.reload(replace(moved, clients=(fresh, moved.clients[1])), client)
        assert seen(it)[0] == ("tun0", "a", True)
        # An interface that was removed is another one when it comes back.
        await it.reload(client)
        await it.reload(moved, client)
        assert seen(it)[:2] == [("tun0", "a", False), ("tun0", "b", False)]


async def test_an_interface_that_fails_knows_its_peers_again(tmp_path: Path) -> None:
    port = free_port()
    server = replace(server_config(port, allowed("a", "10.10.0.2")), name="tun0")
    client = replace(client_config("tun1", port), token=Secret("a"))
    async with world(tmp_path, server, client) as it:
        await until(lambda: seen(it)[0][2], "the client")
        it.host.mtu_faults = {1400: HostError("tun0 is gone"), 1500: HostError("tun0 is gone for good")}
        await it.refused(replace(server, mtu=1400), client)
        await until(lambda: it.running == [server, client], "both")
        assert seen(it)[0] == ("tun0", "a", True)


async def test_a_bug_on_the_way_is_undone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = two()
    async with world(tmp_path, first, second) as it:
        it.host.device_faults["tun1"] = [RuntimeError("boom")]
        moved = replace(second, listen=(TcpAddress("127.0.0.1", free_port()),))
        assert "internal error" in await it.refused(replace(first, mtu=1400), moved)
        assert "boom" in caplog.text
        assert it.running == [first, second]  # at once: who is told that nothing was changed may look
        assert it.host.mtus["tun0"] == 1500


async def test_an_interface_that_dies_of_a_change_does_not_hold_the_reload_up(tmp_path: Path) -> None:
    """The kernel takes neither the new nor the old: the interface ends and starts again, as it was."""
    first, second = two()
    async with world(tmp_path, first, second) as it:
        it.host.mtu_faults = {1400: HostError("tun0 is gone"), 1500: HostError("tun0 is gone for good")}
        assert "tun0 is gone" in await it.refused(replace(first, mtu=1400), second)
        await until(lambda: it.running == [first, second], "both")
        assert await it.reload(replace(first, mtu=1400), second) == ["tun0: mtu changed (1500 -> 1400)"]
        assert it.host.mtus["tun0"] == 1400


async def test_a_bug_in_the_middle_of_a_change_neither(tmp_path: Path) -> None:
    first, second = two()
    async with world(tmp_path, first, second) as it:
        it.host.mtu_faults = {1400: RuntimeError("boom")}
        await it.refused(replace(first, mtu=1400), second)
        await until(lambda: it.running == [first, second], "both")


async def test_what_cannot_come_back_at_once_is_tried_again(tmp_path: Path) -> None:
    """Its name was somebody else's for a moment, just then."""
    first, second = two()
    async with world(tmp_path, first, second) as it:
        it.host.device_faults["tun1"] = [HostError("taken"), HostError("still taken")]
        text = await it.refused(first, replace(second, listen=(TcpAddress("127.0.0.1", free_port()),)))
        assert "taken" in text
        assert [record.config for record in it.registry] == [first, second]
        await until(lambda: [state_of(record) for record in it.registry] == ["up", "up"], "both")


async def test_a_name_that_another_process_has_stops_nothing(tmp_path: Path) -> None:
    """The reload is refused before an interface is stopped for it."""
    first, second = two()
    async with world(tmp_path, first) as it:
        device = it.host.devices["tun0"]
        it.host.taken["tun1"] = "the name is taken: process 7 runs an interface tun1"
        moved = replace(first, listen=(TcpAddress("127.0.0.1", free_port()),))
        assert "tun1: the name is taken: process 7" in await it.refused(moved, second)
        assert it.running == [first]
        assert it.host.devices["tun0"] is device
        assert not device.closed
        it.host.taken.clear()
        await it.reload(moved, second)
        assert it.running == [moved, second]
        renamed = replace(second, name="tun2")
        it.host.taken["tun2"] = "taken"
        assert "tun2: taken" in await it.refused(moved, renamed)
        it.host.taken.clear()
        await it.reload(moved, renamed)
        assert it.host.owned == {"tun0", "tun2"}


async def test_two_servers_change_their_ports(tmp_path: Path) -> None:
    first, second = two()
    async with world(tmp_path, first, second) as it:
        first, second = replace(first, listen=second.listen), replace(second, listen=first.listen)
        await it.reload(first, second)
        assert it.running == [first, second]


@pytest.mark.parametrize("way", [1, -1])
async def test_a_route_moves_from_one_interface_to_the_other(way: int, tmp_path: Path) -> None:
    """In whichever order they stand in the file."""
    first, second = two()

    def routed(config: ServerConfig) -> ServerConfig:
        return replace(config, clients=tuple(replace(client, routes=(BEHIND,)) for client in config.clients))

    async with world(tmp_path, *(routed(first), second)[::way]) as it:
        await it.reload(*(first, routed(second))[::way])
        assert [isinstance(item, Route) and item.network == BEHIND for item in it.host.standing["tun1"]].count(True)
        assert not any(isinstance(item, Route) and item.network == BEHIND for item in it.host.standing["tun0"])


async def test_one_that_is_just_starting_again_gets_the_new_config(tmp_path: Path) -> None:
    first, second = two()
    async with world(tmp_path, first, second) as it:
        [record, _] = it.registry
        record.reconfigure = None  # as before it has started
        await it.reload(replace(first, mtu=1400), second)
        assert it.host.mtus["tun0"] == 1400


async def test_a_failed_one_that_is_changed_starts_at_once(tmp_path: Path) -> None:
    first, second = two()
    async with world(tmp_path, first, second) as it:
        it.host.devices["tun0"].fault = HostError("gone")
        it.host.devices["tun0"].send(ipv4("10.10.0.1", "10.10.0.2", b"x"))  # wakes its reader

        def record() -> Record:
            return next(iter(it.registry))

        await until(lambda: state_of(record()) == "failed", "the failure")
        await it.reload(replace(first, mtu=1400), second)
        assert it.running == [replace(first, mtu=1400), second]


async def test_a_reload_before_all_is_ready_does_not_say_ready(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        with ServiceManager(environ, writable, process_logger()) as manager:
            manager.reloading()
            manager.reloaded()
            with pytest.raises(BlockingIOError):
                systemd.recv(100)
            with pytest.raises(BlockingIOError):
                os.read(readable, 100)
            manager.ready()
            assert systemd.recv(100) == b"READY=1"
            assert os.read(readable, 100) == b"\n"
        os.close(readable)


async def test_a_signal_that_comes_during_the_start_is_not_lost(tmp_path: Path) -> None:
    registry, reads = Registry(), list[int]()
    first, _ = two()

    def read() -> Config:
        reads.append(1)
        return Config((first,))

    with ServiceManager({}, None, process_logger()) as manager:
        async with trio.open_nursery() as nursery:
            reloader = reloading(read, [first], registry, manager, nursery)
            nursery.start_soon(reloader.reload_for_a_signal)
            await trio.testing.wait_all_tasks_blocked()
            assert reads == []
            reloader.start(await nursery.start(run_interfaces, [first], MemoryHost(), registry))
            await until(lambda: registry.last_reload, "the reload")
            assert registry.last_reload is not None
            assert registry.last_reload.error is None
            nursery.cancel_scope.cancel()
    assert reads == [1]


async def test_a_dry_run_leaves_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tapotun")
    first, second = two()
    async with world(tmp_path, first, second) as it:
        caplog.clear()
        it.file = [replace(first, mtu=1400)]
        assert await it.reloader.reload(dry_run=True) == ["tun1: removed", "tun0: mtu changed (1500 -> 1400)"]
        it.file = ConfigError("[0].net: bad")
        with pytest.raises(RefusedError, match="a reload would be refused: "):
            await it.reloader.reload(dry_run=True)
        assert it.registry.last_reload is None
        assert it.told() == []
        assert caplog.records == []


async def test_rights_that_were_given_up_come_back_with_a_restart(tmp_path: Path) -> None:
    first, second = two()
    async with world(tmp_path, first, second) as it:
        denied = HostError("cannot listen on 0.0.0.0:80: permission denied")
        denied.__cause__ = PermissionError(errno.EACCES, "Permission denied")
        it.host.device_faults["tun2"] = [denied]
        third = replace(second, name="tun2", listen=(TcpAddress("127.0.0.1", free_port()),))
        assert (await it.refused(first, second, third)).endswith(
            "permission denied; restart this process: at its start it dropped the capabilities that it did not need"
        )
        it.file = ConfigError("hub.json: cannot be read")
        it.file.__cause__ = PermissionError(errno.EACCES, "Permission denied")
        with pytest.raises(RefusedError, match=r"cannot be read$"):
            await it.reloader.reload()


async def test_a_client_is_who_has_its_token(tmp_path: Path) -> None:
    """Its name is for people, and one without a name gets another one with its address."""
    first, second = two()
    async with world(tmp_path, first, second) as it:
        server = next(iter(it.registry)).tunnel
        assert isinstance(server, TunnelServer)
        [session] = server.sessions
        renamed = replace(first.clients[0], name="10.10.0.7", addresses=(IPv4Address("10.10.0.7"),))
        assert await it.reload(replace(first, clients=(renamed,)), second) == [
            "tun0 a: name, ip changed (name a -> 10.10.0.7, ip 10.10.0.2 -> 10.10.0.7)"
        ]
        assert server.sessions == [session]
        assert (session.client, session.removed) == (renamed, False)
        assert (session.log.extra or {})["client"] == "10.10.0.7"
        stranger = replace(first.clients[0], token=second.clients[0].token)
        assert await it.reload(replace(first, clients=(stranger,)), second) == [
            "tun0 10.10.0.7: removed",
            "tun0 a: added",
        ]
        assert server.sessions != [session]
        assert [session.removed for session in (session, *server.sessions)] == [True, False]


async def test_a_file_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody writes to."""
    monkeypatch.setattr("tapotun_trio.reload.READ_S", 0.1)
    first, second = two()
    async with world(tmp_path, first, second) as it:
        os.mkfifo(tmp_path / "config")
        reads = iter(["config", None])

        def read() -> Config:
            if (name := next(reads)) is not None:
                (tmp_path / name).read_text()
            return Config((first, second))

        async with trio.open_nursery() as nursery:
            it.reloader = reloading(read, [first, second], it.registry, it.manager, nursery)
            it.reloader.start(await nursery.start(run_interfaces, [], it.host))
            nursery.cancel_scope.cancel()
        with pytest.raises(RefusedError, match="could not be read within"):
            await it.reloader.reload()
        assert await it.reloader.reload(dry_run=True) == []
        (tmp_path / "config").write_text("so that the thread ends")


async def test_forty_reloads_from_a_dead_disk_leave_two_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapotun_trio.reload.READ_S", 0.05)
    first, second = two()
    disk_answers, reading = threading.Event(), 0

    def read() -> Config:
        nonlocal reading
        reading += 1
        disk_answers.wait()
        reading -= 1
        return Config((first, second))

    async with world(tmp_path, first, second) as it:
        async with trio.open_nursery() as nursery:
            it.reloader = reloading(read, [first, second], it.registry, it.manager, nursery)
            it.reloader.start(await nursery.start(run_interfaces, [], it.host))
            nursery.cancel_scope.cancel()
        try:
            for _ in range(40):
                with pytest.raises(RefusedError, match="config"):
                    await it.reloader.reload()
            await until(lambda: reading == 2, "both threads")
            # So names still resolve.
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            with pytest.raises(RefusedError, match="2 earlier reloads still wait for the config's disk"):
                await it.reloader.reload()
        finally:
            disk_answers.set()
        await until(lambda: reading == 0, "the threads to end")
        monkeypatch.setattr("tapotun_trio.reload.READ_S", 30.0)
        with trio.fail_after(30):
            while True:
                with suppress(RefusedError):  # until trio has seen that both threads ended
                    assert await it.reloader.reload() == []
                    break
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("ips", "less", "removed"),
    [
        (("10.10.0.9",), (), ["10.10.0.9/24"]),
        (("10.10.0.9", "10.20.0.1"), ("10.10.0.9",), ["10.20.0.1/32"]),
    ],
)
async def test_an_address_that_takes_nothing_along_goes_alone(
    ips: tuple[str, ...], less: tuple[str, ...], removed: list[str], tmp_path: Path
) -> None:
    """While all are away and come again, packets are lost."""
    first, second = two()
    with_them = replace(first, ips=tuple(map(IPv4Address, ips)))
    async with world(tmp_path, with_them, second) as it:
        await it.reload(replace(first, ips=tuple(map(IPv4Address, less))), second)
        assert len(it.host.removed) == 1
        assert removed[0] in it.host.removed[0]
        # The first of a network takes those after it along.
        await it.reload(replace(first, nets=(IPv4Interface("10.10.0.3/24"),), ips=()), second)
        assert len(it.host.removed) > 1


async def test_a_client_gets_another_mark_on_its_streams(tmp_path: Path) -> None:
    server = server_config(port := free_port(), allowed("tun0", "10.10.0.2"))
    client = client_config("tun0", port)
    async with world(tmp_path, server, client) as it:
        await until(lambda: it.running == [server, client], "the tunnel")
        tunnel = it.registry.select(["tun0"])[0].tunnel

        def rules() -> list[Item]:
            return [item for item in it.host.standing["tun0"] if isinstance(item, Rule)]

        marked = replace(client, mark=Mark(7, 8))
        assert await it.reload(server, marked) == ["tun0: mark changed (none -> 7 in table 8)"]
        assert rules() == [Rule(7, 8)]
        it.host.refused.add(Rule(9, 9))
        assert "refused" in await it.refused(server, replace(client, mark=Mark(9, 9)))
        assert rules() == [Rule(7, 8)]
        assert it.running == [server, marked]
        # What the server says later goes with the mark that holds.
        await it.reload(replace(server, mtu=1400), marked)
        await until(lambda: it.host.mtus["tun0"] == 1400, "the new MTU")
        assert rules() == [Rule(7, 8)]
        await it.reload(replace(server, mtu=1400), client)
        assert rules() == []
        assert it.registry.select(["tun0"])[0].tunnel is tunnel
        assert isinstance(tunnel, TunnelClient)
        assert tunnel.peer_info.reconnects == 0


async def test_a_client_that_is_not_connected_has_its_new_mark_when_it_is(tmp_path: Path) -> None:
    client = client_config("tun0", port := free_port())
    async with world(tmp_path, client) as it:
        await it.reload(replace(client, mark=Mark(7, 8)))
        await it.reload(replace(client, mark=Mark(7, 8)), server_config(port, allowed("tun0", "10.10.0.2")))
        await until(lambda: Rule(7, 8) in it.host.standing.get("tun0", []), "the rule")


async def test_what_is_changed_costs_no_client_that_is_not_concerned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be ten thousand, and while their answers are made anew nobody's packets are carried."""
    asked: list[str] = []

    def pushed(config: ServerConfig, client: AllowedClient) -> tuple[IPNetwork, ...]:
        asked.append(client.name)
        return config.push_routes

    monkeypatch.setattr("tapotun_trio.server.session.pushed_routes", pushed)
    clients = tuple(allowed(str(number), f"10.10.0.{number}") for number in range(2, 100))
    server = server_config(free_port(), *clients)
    async with world(tmp_path, server) as it:
        asked.clear()
        fewer = replace(server, clients=(replace(clients[0], routes=(BEHIND,)), *clients[1:-1]))
        await it.reload(fewer)
        assert asked == ["2"]
        asked.clear()
        await it.reload(replace(fewer, push_routes=(IPv4Network("10.99.0.0/16"),)))
        assert len(asked) == len(fewer.clients)


@given(
    st.lists(BOTH_FAMILIES),
    st.lists(BOTH_FAMILIES),
    st.tuples(NETWORKS[4], NETWORKS[6]),
    st.sampled_from([("10.10.0.2",), ("fd00::2",), ("10.10.0.2", "fd00::2")]),
)
def test_pushed_routes_by_definition(
    pushed: list[IPNetwork], own: list[IPNetwork], nets: tuple[IPNetwork, IPNetwork], ips: tuple[str, ...]
) -> None:
    interfaces = tuple(ip_interface((net[1], net.prefixlen)) for net in nets)
    config = replace(server_config(8080), nets=interfaces, push_routes=tuple(pushed))
    client = replace(allowed("a", ips), routes=tuple(own))
    versions = {address.version for address in client.addresses}
    wanted = tuple(
        it for it in pushed if it.version in versions and not any(is_within(it, mine) for mine in (*nets, *own))
    )
    assert pushed_routes(config, client) == wanted
