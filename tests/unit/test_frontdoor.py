"""Several interfaces behind one port: each answers at its path, and each ends for itself."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Interface

import pytest
import trio
import trio.testing

from tapotun_trio.config.load import check_content
from tapotun_trio.config.model import ServerConfig
from tapotun_trio.errors import HostError, leaves
from tapotun_trio.tunnel.frontdoor import open_front_door
from tapotun_trio.tunnel.interface import run_interface

from ..fakes import MemoryHost
from .support import allowed, free_port, running, server_config


def servers(port: int, *paths: str | None) -> list[ServerConfig]:
    """tun0, tun1, ... at these paths, whose one client has the interface's name as its token."""
    return [
        replace(
            server_config(port, allowed(f"tun{i}", f"10.10.{i}.2")),
            name=f"tun{i}",
            net=IPv4Interface(f"10.10.{i}.1/24"),
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
                await nursery.start(run_interface, config, host, door)
                task_status.started(scope)

    async with open_front_door() as door, trio.open_nursery() as outer:
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
