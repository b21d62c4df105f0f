"""The admin listener of a process, from one config to the next: over the kernel's sockets."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio

from tapotun_trio.admin import history, manager
from tapotun_trio.admin.manager import AdminManager
from tapotun_trio.config.model import AdminConfig, Config, LogConfig, Secret, TcpAddress, UnixAddress
from tapotun_trio.control.handlers import Process
from tapotun_trio.errors import ConfigError, HostError
from tapotun_trio.host.process.sd_notify import ServiceManager
from tapotun_trio.lifecycle.registry import Registry
from tapotun_trio.lifecycle.supervisor import run_interfaces
from tapotun_trio.log import process_logger
from tapotun_trio.peer.boottime import boottime
from tapotun_trio.reload import RefusedError, Reloader

from ..fakes import MemoryHost
from .support import allowed, free_port, server_config

pytestmark = pytest.mark.usefixtures("logging_as_before", "informed")

TOKEN: Final = Secret("the-admin-token")


@pytest.fixture
def informed() -> None:
    logging.getLogger("tapotun").setLevel(logging.INFO)


def at(port: int, token: Secret | None = TOKEN, address: str = "127.0.0.1") -> AdminConfig:
    return AdminConfig(TcpAddress(address, port), token)


@asynccontextmanager
async def managed(config: AdminConfig | None) -> AsyncIterator[tuple[AdminManager, Registry]]:
    registry = Registry()
    async with trio.open_nursery() as nursery:
        admin_manager = AdminManager(Process("hub", "/x", boottime()), registry, nursery)
        with admin_manager.changing(config):
            pass
        yield admin_manager, registry
        nursery.cancel_scope.cancel()


async def ask(place: int | Path, path: str = "/healthz", method: str = "GET", token: str = TOKEN.reveal()) -> bytes:
    """The answer, whole; raises OSError."""
    if isinstance(place, Path):
        stream: trio.SocketStream = await trio.open_unix_socket(place)
    else:
        stream = await trio.open_tcp_stream("127.0.0.1", place)
    async with stream:
        head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nx-api-key: {token}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        return b"".join([piece async for piece in stream])


def handlers() -> int:
    return len(logging.getLogger("tapotun").handlers)


async def test_it_comes_moves_and_goes() -> None:
    first, second, before = free_port(), free_port(), handlers()
    async with managed(None) as (admin_manager, _):
        with admin_manager.changing(at(first)):
            with pytest.raises(OSError):
                await ask(second)
        assert (await ask(first)).startswith(b"HTTP/1.1 200 ")
        assert handlers() == before + 1
        with admin_manager.changing(at(second)):
            assert (await ask(first)).startswith(b"HTTP/1.1 200 ")  # until it is certain
        assert (await ask(second)).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(OSError):
            await ask(first)
        assert b"listening on" in await ask(second, "/api/events")  # what was logged before, too
        with admin_manager.changing(None):
            pass
        with pytest.raises(OSError):
            await ask(second)
        assert handlers() == before


async def test_the_history_outlives_a_changed_listener_and_ends_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "STEP_S", 0.01)
    first, second = free_port(), free_port()

    async def oldest(port: int) -> int:
        """The time of the oldest of several samples, in ms."""
        while True:
            answer = await ask(port, "/api/history")
            times = json.loads(answer.partition(b"\r\n\r\n")[2])["times_ms"]
            if len(times) > 3:
                return int(times[0])
            await trio.sleep(0.01)

    async with managed(at(first)) as (admin_manager, _):
        begun = await oldest(first)
        with admin_manager.changing(at(second, TOKEN, "127.0.0.2")):
            pass
        with admin_manager.changing(at(second)):
            pass
        assert abs(await oldest(second) - begun) < 5
        with admin_manager.changing(None):
            pass
        await trio.sleep(0.05)
        with admin_manager.changing(at(second)):
            pass
        assert await oldest(second) - begun > 40


async def test_a_new_token_ends_what_the_old_one_opened() -> None:
    port = free_port()
    async with managed(at(port)) as (admin_manager, _):
        kept = await trio.open_tcp_stream("127.0.0.1", port)
        request = f"GET /api/session HTTP/1.1\r\nHost: h\r\nx-api-key: {TOKEN.reveal()}\r\n\r\n".encode()
        await kept.send_all(request)
        assert (await kept.receive_some()).startswith(b"HTTP/1.1 200 ")
        with admin_manager.changing(at(port, Secret("another"))):
            pass
        assert (await ask(port, "/api/session")).startswith(b"HTTP/1.1 401 ")
        assert (await ask(port, "/api/session", token="another")).startswith(b"HTTP/1.1 200 ")
        with trio.fail_after(30):
            assert await kept.receive_some() == b""
        await kept.aclose()


async def test_where_it_cannot_listen_nothing_changes() -> None:
    port, before = free_port(), handlers()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other = taken.getsockname()[1]
        async with managed(None) as (admin_manager, _):
            with (
                pytest.raises(HostError, match=r"admin: cannot listen on .*the port is in use"),
                admin_manager.changing(at(other)),
            ):
                pytest.fail("it has not begun")
            assert handlers() == before
            with admin_manager.changing(at(port)):
                pass
            with pytest.raises(HostError, match="in use"), admin_manager.changing(at(other)):
                pytest.fail("it has not begun")
            assert (await ask(port)).startswith(b"HTTP/1.1 200 ")


async def test_an_address_that_is_still_to_come(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    elsewhere = replace(at(port), listen=TcpAddress("192.0.2.77", port))
    async with managed(elsewhere) as (admin_manager, _):
        [line] = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
        assert line.startswith(f"admin: 192.0.2.77:{port}: this machine does not have that address yet")
        with admin_manager.changing(at(port)):
            pass
        assert (await ask(port)).startswith(b"HTTP/1.1 200 ")


async def test_a_family_that_the_kernel_does_not_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process starts without the listener, and the next reload has it, though its config is the same."""
    port, before = free_port(), handlers()
    loopback = replace(at(port), listen=TcpAddress("::1", port))
    async with managed(None) as (admin_manager, _):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "AF_INET6", 99)  # no kernel has that
            with admin_manager.changing(loopback):
                pass
            assert handlers() == before
            [line] = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
            assert line.startswith(f"admin: cannot listen on [::1]:{port}: this machine has no IPv6")
            with admin_manager.changing(at(port)):
                pass
            assert (await ask(port)).startswith(b"HTTP/1.1 200 ")
            with pytest.raises(HostError, match="no IPv6"), admin_manager.changing(loopback):
                pytest.fail("it has not begun")
            assert (await ask(port)).startswith(b"HTTP/1.1 200 ")
        with admin_manager.changing(loopback):
            pass
        with pytest.raises(OSError):
            await ask(port)


async def test_if_the_rest_fails_nothing_changes() -> None:
    first, second = free_port(), free_port()
    async with managed(at(first)) as (admin_manager, _):
        with pytest.raises(HostError, match="the rest"), admin_manager.changing(at(second)):
            raise HostError("the rest")
        assert (await ask(first)).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(OSError):
            await ask(second)
        with pytest.raises(HostError, match="the rest"), admin_manager.changing(at(first, None)):
            raise HostError("the rest")
        assert (await ask(first, "/api/session")).startswith(b"HTTP/1.1 200 ")


async def test_from_all_addresses_to_one_on_the_same_port_and_back() -> None:
    port = free_port()
    async with managed(at(port, address="0.0.0.0")) as (admin_manager, _):
        with admin_manager.changing(at(port)):
            pass
        assert (await ask(port)).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(HostError, match="the rest"), admin_manager.changing(at(port, address="0.0.0.0")):
            raise HostError("the rest")
        assert (await ask(port)).startswith(b"HTTP/1.1 200 ")


async def test_a_unix_socket_and_its_file(tmp_path: Path) -> None:
    path, port = tmp_path / "admin.http", free_port()
    async with managed(AdminConfig(UnixAddress(str(path)), TOKEN)) as (admin_manager, _):
        assert (await ask(path)).startswith(b"HTTP/1.1 200 ")
        assert path.stat().st_mode & 0o777 == 0o660
        with admin_manager.changing(at(port)):
            pass
        assert not path.exists()
        with admin_manager.changing(AdminConfig(UnixAddress(str(path)), TOKEN)):
            pass
        assert (await ask(path)).startswith(b"HTTP/1.1 200 ")
    assert not path.exists()


# ------------------------------------------------------------------ with the reload around it


class Rig:
    """A server that runs with a host in memory, its admin listener, and a config to be changed."""

    def __init__(self) -> None:
        self.admin_port = free_port()
        self.server = server_config(free_port(), allowed("laptop", "10.10.0.2"))
        self.config = Config((self.server,), admin=at(self.admin_port))
        self.failure: Exception | None = None
        self.registry: Registry
        self.reloader: Reloader

    def read(self) -> Config:
        if self.failure is not None:
            raise self.failure
        return self.config

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with managed(self.config.admin) as (admin_manager, self.registry), trio.open_nursery() as nursery:
            with ServiceManager({}, None, process_logger()) as service_manager:
                self.reloader = Reloader(
                    self.config, self.read, self.registry, admin_manager, service_manager, process_logger()
                )
                admin_manager.reload = self.reloader.reload
                host = MemoryHost()
                self.reloader.start(await nursery.start(run_interfaces, self.config.interfaces, host, self.registry))
                yield
                nursery.cancel_scope.cancel()


async def test_a_reload_over_the_listener_that_it_moves() -> None:
    rig = Rig()
    async with rig.running():
        old, rig.admin_port = rig.admin_port, free_port()
        rig.config = replace(rig.config, admin=at(rig.admin_port))
        answer = await ask(old, "/api/reload", "POST")
        assert answer.endswith(b'{"changes":["admin: listen changed"]}')
        assert (await ask(rig.admin_port)).startswith(b"HTTP/1.1 200 ")
        assert rig.registry.last_reload is not None
        assert rig.registry.last_reload.changes == ["admin: listen changed"]
        assert b'{"changes":[]}' in await ask(rig.admin_port, "/api/reload", "POST")


async def test_a_reload_that_is_refused() -> None:
    rig = Rig()
    async with rig.running():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            rig.config = Config((replace(rig.server, mtu=1400),), admin=at(taken.getsockname()[1]))
            with pytest.raises(RefusedError, match="admin: cannot listen"):
                await rig.reloader.reload()
            [record] = rig.registry
            assert record.config == rig.server
            assert (await ask(rig.admin_port)).startswith(b"HTTP/1.1 200 ")
            rig.failure = ConfigError("F: [0].mtu: wrong")
            answer = await ask(rig.admin_port, "/api/reload", "POST")
            assert answer.startswith(b"HTTP/1.1 409 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].endswith("F: [0].mtu: wrong")


async def test_a_bug_in_a_reload_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    async with rig.running():
        rig.failure = ZeroDivisionError("a bug")
        assert (await ask(rig.admin_port, "/api/reload", "POST")).startswith(b"HTTP/1.1 409 ")
        assert "ZeroDivisionError" in caplog.text
        rig.failure = None
        assert (await ask(rig.admin_port, "/api/reload", "POST")).startswith(b"HTTP/1.1 200 ")


async def test_the_logs_level_changes() -> None:
    rig = Rig()
    async with rig.running():
        rig.config = replace(rig.config, log=LogConfig("error"))
        assert await rig.reloader.reload(dry_run=True) == ["log: level changed"]
        assert logging.getLogger("tapotun").level != logging.ERROR
        assert await rig.reloader.reload() == ["log: level changed"]
        assert logging.getLogger("tapotun").level == logging.ERROR
        rig.config = replace(rig.config, log=LogConfig("info"))
        await rig.reloader.reload()
        process_logger().info("after it")
        assert b"after it" in await ask(rig.admin_port, "/api/events")  # who watches goes on


async def test_a_reload_that_adds_it_loads_it_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 0.1 s, for which no packet shall wait."""
    threads: list[int] = []
    load = manager.load_modules

    def note() -> None:
        threads.append(threading.get_ident())
        load()

    monkeypatch.setattr(manager, "load_modules", note)
    rig = Rig()
    rig.config = replace(rig.config, admin=None)
    async with rig.running():
        assert await rig.reloader.reload() == []
        assert threads == []
        rig.config = replace(rig.config, admin=at(rig.admin_port))
        assert await rig.reloader.reload() == ["admin: added"]
        assert (await ask(rig.admin_port)).startswith(b"HTTP/1.1 200 ")
        [thread] = threads
        assert thread != threading.get_ident()


def test_what_is_loaded_is_all_that_it_needs() -> None:
    script = f"""
import sys, trio
from tapotun_trio.admin import manager
from tapotun_trio.config.model import AdminConfig, Secret, TcpAddress
from tapotun_trio.control.handlers import Process
from tapotun_trio.peer.boottime import boottime
from tapotun_trio.lifecycle.registry import Registry

async def main():
    async with trio.open_nursery() as nursery:
        it = manager.AdminManager(Process("hub", "/x", boottime()), Registry(), nursery)
        config = AdminConfig(TcpAddress("127.0.0.1", {free_port()}), Secret("t"))
        await it.prepare(config)
        before = set(sys.modules)
        with it.changing(config):
            pass
        print(sorted(set(sys.modules) - before))
        nursery.cancel_scope.cancel()

trio.run(main)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
