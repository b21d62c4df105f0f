"""One line for each session of a client that is over: why, how long, what it carried."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import pytest
import trio

from ..fakes import MemoryHost
from ..packets import ipv4
from .hostile import until
from .support import allowed, free_port, running, server_config


def ends(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.getMessage().startswith("session ended")]


async def begin(port: int) -> trio.SocketStream:
    """A base client's download."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(b"GET /ip HTTP/1.1\r\nHost: x\r\nx-api-key: laptop\r\n\r\n")
    with trio.fail_after(30):
        assert b" 200 " in await stream.receive_some()
    return stream


async def test_each_session_is_summed_up_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tapotun")
    host, port = MemoryHost(), free_port()
    async with running(host, server_config(port, allowed("laptop", "10.10.0.2"))):
        for number in (1, 2):
            first = await begin(port)
            await until(lambda: "connected" in caplog.text, "the session")
            second = await begin(port)  # takes over: the same session
            await until(lambda: host.devices["hub"], "the device")
            for _ in range(number):
                host.devices["hub"].send(ipv4("10.10.0.1", "10.10.0.2", b"x" * 10))
            with trio.fail_after(30):
                received = b""
                while received.count(b"x" * 10) < number:
                    received += await second.receive_some()
            await first.aclose()
            assert len(ends(caplog)) == number - 1
            await second.aclose()
            await until(lambda number=number: len(ends(caplog)) == number, "the line")  # type: ignore[misc]
            # Counted from this session's beginning.
            assert f"; received 0 packets, 0 bytes; sent {number} packets, {30 * number} bytes; " in ends(caplog)[-1]
            assert ends(caplog)[-1].startswith("session ended after 0 s: ")
    assert len(ends(caplog)) == 2


async def test_a_server_that_stops_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tapotun")
    port = free_port()
    async with AsyncExitStack() as stack:
        async with running(MemoryHost(), server_config(port, allowed("laptop", "10.10.0.2"))):
            await stack.enter_async_context(await begin(port))
            await until(lambda: "connected" in caplog.text, "the session")
    [line] = ends(caplog)
    assert ": this server stops; " in line
