"""What fails ends where it belongs: a bug at its interface, a start at the process, a peer at its stream."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from tapotun_trio.config.diff import changes
from tapotun_trio.config.model import Bridge, ServerConfig, TcpAddress
from tapotun_trio.errors import HostError, MissingBridgeError, leaves
from tapotun_trio.host.items import BridgePort, Item, OwnBridge
from tapotun_trio.lifecycle.registry import Registry
from tapotun_trio.lifecycle.supervisor import run_interfaces

from ..fakes import MemoryDevice, MemoryHost
from .hostile import until
from .support import allowed, client_config, free_port, server_config


class FaultyHost(MemoryHost):
    """The device of one interface raises when it is waited for, as long as `fault` is set."""

    def __init__(self, name: str, fault: Exception | None) -> None:
        super().__init__()
        self.name = name
        self.fault = fault
        self.opened = 0

    @contextmanager
    def open_device(
        self, name: str, queues: int = 1, mac: bytes | None = None, *, is_port: bool = False
    ) -> Iterator[MemoryDevice]:
        with super().open_device(name, queues, mac, is_port=is_port) as device:
            if name == self.name:
                self.opened += 1
                if self.fault is not None:
                    device.fault = self.fault
            yield device


def two_servers() -> tuple[ServerConfig, ServerConfig]:
    first = replace(server_config(free_port(), allowed("a", "10.10.0.2")), name="good")
    return first, replace(server_config(free_port(), allowed("b", "10.10.0.2")), name="bad")


@pytest.mark.parametrize(
    ("fault", "said"),
    [(RuntimeError("boom"), "internal error, interface stopped"), (HostError("bad is gone"), "bad is gone")],
)
async def test_one_interface_fails_and_comes_back_while_the_other_runs(
    fault: Exception, said: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = FaultyHost("bad", fault)
    logging.getLogger("tapotun").propagate = True
    async with trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, two_servers(), host)
        good = host.devices["good"]
        await trio.sleep(2)
        assert host.opened == 2
        await trio.sleep(60)
        assert host.opened == 7  # at 0, 1, 3, 7, 15, 31 and 61 s
        host.fault = None
        await trio.sleep(35)
        assert host.opened == 8
        assert "bad" in host.devices
        assert host.devices["good"] is good
        nursery.cancel_scope.cancel()
    assert host.left_over == []
    records = [record for record in caplog.records if record.getMessage() == said]
    assert len(records) == 7
    assert {getattr(record, "interface", None) for record in records} == {"bad"}
    is_bug = isinstance(fault, RuntimeError)
    assert all(bool(record.exc_info) is is_bug for record in records)


async def test_what_cannot_start_ends_the_start(autojump_clock: trio.testing.MockClock) -> None:
    good, bad = two_servers()
    host = MemoryHost()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        clash = replace(bad, listen=(TcpAddress("127.0.0.1", other.getsockname()[1]),))
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_interfaces, (good, clash), host)
    (error,) = leaves(caught.value)
    assert isinstance(error, HostError)
    assert "the port is in use" in str(error)
    assert host.left_over == []
    assert host.devices == {}


class WithoutBridges(MemoryHost):
    """Whatever becomes a port of a bridge is refused while no interface here has made the bridge."""

    def __init__(self) -> None:
        super().__init__()
        standing = self.standing

        class Refused(set[Item]):
            def __contains__(self, item: object) -> bool:
                made = {each.name for items in standing.values() for each in items if isinstance(each, OwnBridge)}
                return isinstance(item, BridgePort) and item.bridge not in made

        self.refused = Refused()


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("reload", [False, True], ids=["start", "reload"])
async def test_two_interfaces_in_a_bridge_that_one_of_them_makes(
    swapped: bool, reload: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """In whatever order they are in the config."""
    first, second = two_servers()
    both = [
        replace(first, device="tap", bridge=Bridge("br0", create=True)),
        replace(second, device="tap", bridge=Bridge("br0")),
    ]
    if swapped:
        both.reverse()
    host = WithoutBridges()
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [] if reload else both, host)
        if reload:
            await interfaces.change(changes([], both))
        await until(lambda: BridgePort("br0") in host.standing.get("bad", []), "the port of the second interface")
        nursery.cancel_scope.cancel()
    assert host.left_over == []


class LateBridgeHost(MemoryHost):
    """The bridge is made as soon as the first start has failed for want of it."""

    @contextmanager
    def open_device(
        self, name: str, queues: int = 1, mac: bytes | None = None, *, is_port: bool = False
    ) -> Iterator[MemoryDevice]:
        try:
            with super().open_device(name, queues, mac, is_port=is_port) as device:
                yield device
        finally:
            self.missing_bridges.clear()


async def test_a_bridge_that_comes_while_the_start_without_it_is_undone(autojump_clock: trio.testing.MockClock) -> None:
    _, config = two_servers()
    host = LateBridgeHost()
    host.missing_bridges.add("br0")
    async with trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, [replace(config, device="tap", bridge=Bridge("br0"))], host)
        await until(lambda: BridgePort("br0") in host.standing.get("bad", []), "the port")
        nursery.cancel_scope.cancel()
    assert host.left_over == []


async def test_a_start_that_fails_for_another_reason_while_there_is_no_bridge(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It would fail with the bridge, too, so the process ends and says why."""
    _, config = two_servers()
    config = replace(config, device="tap", bridge=Bridge("br0"))
    host = MemoryHost()
    host.missing_bridges.add("br0")
    host.taken["bad"] = "the name is taken"
    with trio.fail_after(30), pytest.raises(ExceptionGroup) as caught:
        await run_interfaces([config], host)
    (error,) = leaves(caught.value)
    assert (type(error), str(error)) == (HostError, "bad: the name is taken")


async def test_a_reload_that_adds_an_interface_without_its_bridge_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The person who reloads is there to make it."""
    _, config = two_servers()
    host = MemoryHost()
    host.missing_bridges.add("br0")
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [], host)
        with pytest.raises(MissingBridgeError, match="bad: there is no bridge br0"):
            await interfaces.change(changes([], [replace(config, device="tap", bridge=Bridge("br0"))]))
        nursery.cancel_scope.cancel()
    assert host.left_over == []


@pytest.mark.parametrize("kind", ["server", "client"])
async def test_a_reload_to_a_bridge_that_is_missing_interrupts_nothing(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    server, client = replace(two_servers()[0], device="tap"), replace(client_config("b", 1), device="tap")
    before = server if kind == "server" else client
    host = MemoryHost()
    host.missing_bridges.add("br0")
    registry = Registry()
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [before, two_servers()[1]], host, registry)
        tunnels = [each.tunnel for each in registry]
        after = [replace(before, bridge=Bridge("br0"))]
        with pytest.raises(MissingBridgeError, match=f"{before.name}: there is no bridge br0"):
            await interfaces.change(changes([before, two_servers()[1]], after))
        assert [each.tunnel for each in registry] == tunnels, "neither was stopped"
        host.missing_bridges.clear()
        await interfaces.change(changes([before, two_servers()[1]], after))
        assert [each.config.bridge for each in registry] == [Bridge("br0")]
        nursery.cancel_scope.cancel()
    assert host.left_over == []


async def test_a_client_that_waits_for_its_bridge_may_change_otherwise(autojump_clock: trio.testing.MockClock) -> None:
    before = replace(client_config("b", 1), device="tap", bridge=Bridge("br0"))
    after = replace(before, mac=bytes.fromhex("02005e100001"))
    host = MemoryHost()
    host.missing_bridges.add("br0")
    registry = Registry()
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [before], host, registry)
        await interfaces.change(changes([before], [after]))
        assert [each.config for each in registry] == [after]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mac", [None, bytes.fromhex("02005e100001")], ids=["stays", "starts again"])
async def test_a_reload_takes_no_bridge_away_from_a_client(
    mac: bytes | None, autojump_clock: trio.testing.MockClock
) -> None:
    """A client waits for a missing bridge, but it has this one."""
    maker = replace(two_servers()[0], device="tap", bridge=Bridge("br0", create=True))
    user = replace(client_config("b", 1), device="tap", bridge=Bridge("br0"))
    host, registry = MemoryHost(), Registry()
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [maker, user], host, registry)
        with pytest.raises(MissingBridgeError, match=f"{user.name}: interface good made bridge br0"):
            await interfaces.change(changes([maker, user], [replace(user, mac=mac)]))
        assert [each.config for each in registry] == [maker, user]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["server", "client"])
@pytest.mark.parametrize("mac", [None, bytes.fromhex("02005e100001")], ids=["stays", "starts again"])
async def test_a_maker_that_has_not_made_its_bridge_may_go(
    kind: str, mac: bytes | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Such as a client whose server has never answered. The interface that waits for the bridge loses nothing."""
    maker = replace(client_config("b", 1), name="maker", device="tap", bridge=Bridge("br0", create=True))
    server, client = two_servers()[0], client_config("b", 1)
    user = replace(server if kind == "server" else client, device="tap", bridge=Bridge("br0"))
    host, registry = MemoryHost(), Registry()
    host.missing_bridges.add("br0")
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [maker, user], host, registry)
        await interfaces.change(changes([maker, user], [replace(user, mac=mac)]))
        assert [each.config for each in registry] == [replace(user, mac=mac)]
        nursery.cancel_scope.cancel()


async def test_a_maker_whose_bridge_cannot_be_made_may_change_and_go(autojump_clock: trio.testing.MockClock) -> None:
    maker = replace(client_config("b", 1), name="maker", device="tap", bridge=Bridge("br0", create=True))
    user = replace(two_servers()[0], device="tap", bridge=Bridge("br0"))
    other = replace(maker, mac=bytes.fromhex("02005e100001"))
    host, registry = MemoryHost(), Registry()
    host.missing_bridges.add("br0")
    host.taken["br0"] = "br0 is an interface, and no bridge"
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [maker, user], host, registry)
        await interfaces.change(changes([maker, user], [other, user]))
        await interfaces.change(changes([other, user], [user]))
        assert [each.config for each in registry] == [user]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("field", ["storm_limit", "mac"])
async def test_a_server_that_waits_for_its_bridge_may_change_otherwise(
    field: str, autojump_clock: trio.testing.MockClock
) -> None:
    """While it runs, the one is changed at once, and the other starts it again."""
    one, two = two_servers()
    one = replace(one, device="tap", bridge=Bridge("br0"))
    after = replace(one, storm_limit=5) if field == "storm_limit" else replace(one, mac=bytes.fromhex("02005e100001"))
    host, registry = MemoryHost(), Registry()
    host.missing_bridges.add("br0")
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [one, two], host, registry)
        both = [after, replace(two, mtu=1400)]
        await interfaces.change(changes([one, two], both))
        assert sorted((each.config for each in registry), key=lambda each: each.name != "good") == both
        assert BridgePort("br0") not in host.standing.get("good", [])
        host.missing_bridges.clear()
        await until(lambda: BridgePort("br0") in host.standing.get("good", []), "the port")
        assert host.devices["good"].mac is not None
        nursery.cancel_scope.cancel()
    assert host.left_over == []


async def test_what_else_keeps_a_server_that_waits_from_starting_interrupts_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It waits for its bridge only. Here somebody has given that name to something else by now."""
    waiting, other = two_servers()
    waiting = replace(waiting, device="tap", bridge=Bridge("br0"))
    host, registry = MemoryHost(), Registry()
    host.missing_bridges.add("br0")
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [waiting, other], host, registry)
        host.taken["br0"] = "br0 is an interface, and no bridge"
        tunnel = registry.select([other.name])[0].tunnel
        after = [replace(waiting, mac=bytes.fromhex("02005e100001")), replace(other, path="/other")]
        with pytest.raises(HostError, match=f"{waiting.name}: br0 is an interface"):
            await interfaces.change(changes([waiting, other], after))
        assert registry.select([other.name])[0].tunnel is tunnel
        nursery.cancel_scope.cancel()


async def test_a_server_that_runs_without_its_bridge_is_not_started_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It could not start, and its clients are connected."""
    before = replace(two_servers()[0], device="tap", bridge=Bridge("br0"))
    host, registry = MemoryHost(), Registry()
    async with trio.open_nursery() as nursery:
        interfaces = await nursery.start(run_interfaces, [before], host, registry)
        tunnels = [each.tunnel for each in registry]
        host.missing_bridges.add("br0")
        with pytest.raises(MissingBridgeError, match="good: there is no bridge br0"):
            await interfaces.change(changes([before], [replace(before, mac=bytes.fromhex("02005e100001"))]))
        assert [each.tunnel for each in registry] == tunnels
        nursery.cancel_scope.cancel()
