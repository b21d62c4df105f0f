"""Several interfaces behind one port: each answers at its path, and each ends for itself."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Interface

import pytest
import trio
import trio.testing

from tapotun_trio.config.load import check_content
from tapotun_trio.config.model import ListenAddress, ServerConfig, TcpAddress
from tapotun_trio.cooperative import run_now
from tapotun_trio.errors import HostError, leaves
from tapotun_trio.http import virtual_hosts
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.lifecycle.snapshot import snapshot_in_steps
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.status.model import InterfaceStatus, ProcessStatus
from tapotun_trio.status.render import render

from ..fakes import MemoryHost
from .support import allowed, free_port, running, server_config


def servers(port: int, *paths: str | None) -> list[ServerConfig]:
    """tun0, tun1, ... at these paths, whose one client has the interface's name as its token."""
    return [
        replace(
            server_config(port, allowed(f"tun{i}", f"10.10.{i}.2")),
            name=f"tun{i}",
            nets=(IPv4Interface(f"10.10.{i}.1/24"),),
            path=path,
        )
        for i, path in enumerate(paths)
    ]


async def ask(stream: trio.SocketStream, method: str, target: str, token: str = "") -> bytes:
    """The status line and head of the answer. A PUT has a whole, empty body."""
    key = f"x-api-key: {token}\r\n" if token else ""
    length = "Content-Length: 0\r\n" if method != "GET" else ""
    await stream.send_all(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{key}{length}\r\n".encode())
    answer = b""
    with trio.fail_after(5):
        while b"\r\n\r\n" not in answer:
            piece = await stream.receive_some()
            assert piece, answer
            answer += piece
    return answer


async def status(port: int, method: str, target: str, token: str = "") -> int:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return int((await ask(stream, method, target, token)).split()[1])


async def test_each_interface_answers_at_its_path_only() -> None:
    port = free_port()
    async with running(MemoryHost(), *servers(port, "/a", "/b")):
        assert await status(port, "GET", "/a", "tun0") == 200
        assert await status(port, "GET", "/b?x=/a", "tun1") == 200
        assert await status(port, "GET", "/a", "tun1") == 403
        assert await status(port, "GET", "/b") == 403
        for target in ("/", "/a/", "/A", "/%61", "/./a", "//a", "/a%3Fx"):
            for method in ("GET", "PUT", "POST", "DELETE"):
                assert await status(port, method, target, "tun0") == 404
                assert await status(port, method, target) == 404


async def test_an_interface_without_a_path_has_the_rest() -> None:
    port = free_port()
    async with running(MemoryHost(), *servers(port, "/a", None)):
        assert await status(port, "GET", "/a", "tun0") == 200
        assert await status(port, "GET", "/a", "tun1") == 403
        assert await status(port, "GET", "/else", "tun1") == 200


async def test_one_connection_serves_both() -> None:
    port = free_port()
    async with running(MemoryHost(), *servers(port, "/a", "/b")):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            for target, token in (("/a", "tun0"), ("/b", "tun1"), ("/a", "tun0")):
                assert (await ask(stream, "PUT", target, token)).startswith(b"HTTP/1.1 200")


async def test_the_end_of_one_is_not_the_others_and_the_last_closes_the_port() -> None:
    port, host = free_port(), MemoryHost()
    first, second = servers(port, "/a", "/b")

    async def run(config: ServerConfig, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_interface, config, host, listeners)
                task_status.started(scope)

    async with open_listeners() as listeners, trio.open_nursery() as outer:
        one = await outer.start(run, first)
        two = await outer.start(run, second)
        a = await trio.open_tcp_stream("127.0.0.1", port)
        b = await trio.open_tcp_stream("127.0.0.1", port)
        await ask(a, "GET", "/a", "tun0")
        await ask(b, "GET", "/b", "tun1")
        two.cancel()
        with trio.fail_after(5):
            while await b.receive_some():
                pass
        with trio.move_on_after(0.2) as still:
            while await a.receive_some():
                pass
        assert still.cancelled_caught
        assert await status(port, "GET", "/b", "tun1") == 404
        again = await outer.start(run, second)  # as the supervisor does after a failure
        assert await status(port, "GET", "/b", "tun1") == 200
        one.cancel()
        again.cancel()
        await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", port)
    await a.aclose()
    await b.aclose()


async def test_a_path_is_had_once() -> None:
    port = free_port()
    with pytest.raises(ExceptionGroup) as caught:
        async with running(MemoryHost(), *servers(port, "/a", "/a")):
            pass
    assert any(isinstance(exc, HostError) and "same path" in str(exc) for exc in leaves(caught.value))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"path": "/a"}, {"path": "/b"}, None),
        ({"path": "/a"}, {}, None),
        ({}, {}, "[1].port: 8080 clashes with [0].port on port 8080; choose another port"),
        ({"path": "/a"}, {"path": "/a"}, 'or give each a "path" of its own'),
        ({"path": "/a"}, {"path": "b"}, "does not start with /"),
        ({"path": "/a"}, {"path": "/b?c"}, 'has "?" in it'),
        ({"path": "/a", "listen": "0.0.0.0"}, {"path": "/b"}, "clashes with"),
        ({"path": "/a", "listen": "unix:/x"}, {"path": "/b", "listen": "unix:/x"}, None),
        ({"listen": "unix:/x"}, {"listen": "unix://x"}, 'or give each a "path" of its own'),
        ({"path": "/a", "trusted_proxies": ["::1"]}, {"path": "/b"}, "differs from [0].trusted_proxies"),
        (
            {"path": "/a", "trusted_proxies": ["::1", "10.0.0.1"]},
            {"path": "/b", "trusted_proxies": ["10.0.0.1/32", "::1"]},
            None,
        ),
        ({"path": "/a", "listen": ["unix:/x", "::1"], "listen_mode": "0666"}, {"path": "/b"}, None),
    ],
)
def test_config(first: dict[str, object], second: dict[str, object], said: str | None) -> None:
    entries = [
        {"name": f"tun{i}", "port": 8080, "net": f"10.10.{i}.1/24", **given} for i, given in enumerate((first, second))
    ]
    config, findings = check_content(json.dumps(entries).encode(), "x.json")
    texts = [finding.text("x.json") for finding in findings if finding.severity == "error"]
    if said is None:
        assert config is not None, texts
    else:
        assert any(said in text for text in texts), texts


def process_of(interface: InterfaceStatus) -> ProcessStatus:
    now = datetime.now(UTC)
    return ProcessStatus(version="1", pid=1, name="office", config_file="x", started_at=now, interfaces=[interface])


def listening_at(port: int, *endpoints: ListenAddress) -> ServerConfig:
    return replace(servers(port, None)[0], listen=endpoints)


@pytest.fixture
def tries_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_hosts, "LISTEN_RETRY_S", (0.01, 0.02))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await trio.sleep(0.01)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]


@pytest.fixture
def caplog_of_ours(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("tapotun"), "propagate", True)
    return caplog


@pytest.mark.usefixtures("tries_again_at_once")
async def test_one_endpoint_that_is_refused_does_not_end_the_other(caplog_of_ours: pytest.LogCaptureFixture) -> None:
    """It is told, and had as soon as it can be; at the end it goes with the other."""
    taken, port = free_port(), free_port()
    blocker = socket.create_server(("127.0.0.1", taken))
    config = listening_at(port, TcpAddress("127.0.0.1", taken), TcpAddress("127.0.0.1", port))
    record = Record(config)
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        with blocker:
            await nursery.start(run_interface, config, MemoryHost(), listeners, record)
            assert await status(port, "GET", "/", "tun0") == 200
            [line] = told(caplog_of_ours)
            assert line.startswith(f"cannot listen on 127.0.0.1:{taken}: the port is in use; stop the other program")
            assert line.endswith("continuing without it, and trying again")
            listed = {it.address: it.problem for it in run_now(snapshot_in_steps([record]))[0].listen}
            assert listed[f"127.0.0.1:{port}"] is None
            assert "the port is in use" in (listed[f"127.0.0.1:{taken}"] or "")
        tunnel = record.tunnel
        assert isinstance(tunnel, TunnelServer)
        await until(lambda: len(tunnel.endpoints) == 2)
        assert await status(taken, "GET", "/", "tun0") == 200
        assert [it.problem for it in run_now(snapshot_in_steps([record]))[0].listen] == [None, None]
        nursery.cancel_scope.cancel()
    for number in (taken, port):
        socket.create_server(("127.0.0.1", number)).close()


@pytest.mark.usefixtures("tries_again_at_once")
async def test_all_endpoints_are_refused() -> None:
    """Then it is the config's fault, and each is named."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [it.getsockname()[1] for it in (one, two)]
        config = listening_at(1, *(TcpAddress("127.0.0.1", port) for port in ports))
        with pytest.raises(BaseExceptionGroup) as caught:
            async with running(MemoryHost(), config):
                pass
    [error] = leaves(caught.value)
    assert isinstance(error, HostError)
    assert all(f"cannot listen on 127.0.0.1:{port}: the port is in use" in str(error) for port in ports)


async def test_one_of_the_default_s_sockets_is_refused() -> None:
    """Nobody asked for a server that is there for one family only."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        endpoints = TcpAddress("127.0.0.1", port, optional=True), TcpAddress("::1", port, optional=True)
        with pytest.raises(BaseExceptionGroup) as caught:
            async with running(MemoryHost(), listening_at(port, *endpoints)):
                pass
    assert "the port is in use" in str(next(leaves(caught.value)))


@pytest.mark.usefixtures("tries_again_at_once")
@pytest.mark.parametrize("alone", [False, True])
async def test_a_family_that_comes_later(
    alone: bool, monkeypatch: pytest.MonkeyPatch, caplog_of_ours: pytest.LogCaptureFixture
) -> None:
    """The kernel's module may be loaded after the start."""
    port = free_port()
    others = () if alone else (TcpAddress("127.0.0.1", port),)
    config = listening_at(port, TcpAddress("::1", port), *others)
    record = Record(config)
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "AF_INET6", 99)  # no kernel has that
            await nursery.start(run_interface, config, MemoryHost(), listeners, record)
            [line] = told(caplog_of_ours)
            assert line.startswith(f"cannot listen on [::1]:{port}: this machine has no IPv6")
            if not alone:
                assert await status(port, "GET", "/", "tun0") == 200
        tunnel = record.tunnel
        assert isinstance(tunnel, TunnelServer)
        await until(lambda: f"[::1]:{port}" in [it.listener.name for it in tunnel.endpoints])
        assert tunnel.registration.refused == {}
        nursery.cancel_scope.cancel()


async def test_an_address_that_is_not_there_is_told(caplog_of_ours: pytest.LogCaptureFixture) -> None:
    port = free_port()
    config = listening_at(port, TcpAddress("192.0.2.77", port), TcpAddress("127.0.0.1", port))
    record = Record(config)
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        await nursery.start(run_interface, config, MemoryHost(), listeners, record)
        assert await status(port, "GET", "/", "tun0") == 200
        [line] = told(caplog_of_ours)
        assert line.startswith(f"192.0.2.77:{port}: this machine does not have that address yet")
        shown = run_now(snapshot_in_steps([record]))[0]
        assert [it.problem for it in shown.listen] == ["this machine does not have that address yet", None]
        page = render([process_of(shown)], datetime.now(UTC), width=200)
        assert re.search(rf"problem: +192\.0\.2\.77:{port}: this machine does not have that address yet\n", page)
        nursery.cancel_scope.cancel()


async def test_an_interface_that_ends_while_an_endpoint_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very step in which the endpoint would be had: nothing listens afterwards."""
    taken, port = free_port(), free_port()
    monkeypatch.setattr(virtual_hosts, "LISTEN_RETRY_S", (0.0, 0.0))
    blocker = socket.create_server(("127.0.0.1", taken))
    config = listening_at(port, TcpAddress("127.0.0.1", taken), TcpAddress("127.0.0.1", port))
    for steps in range(8):
        async with open_listeners() as listeners, trio.open_nursery() as nursery:
            blocked = steps == 0 or blocker.fileno() >= 0
            await nursery.start(run_interface, config, MemoryHost(), listeners)
            if blocked:
                blocker.close()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        blocker = socket.create_server(("127.0.0.1", taken))
        socket.create_server(("127.0.0.1", port)).close()
    blocker.close()
