"""One line for each session of a client that is over: why, how long, what it carried."""

from __future__ import annotations

import logging
import re
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from tapotun_trio.client.failure_log import FailureLog
from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.rtt import RoundTrip
from tapotun_trio.errors import PeerError
from tapotun_trio.log import FLAPPING_BURST, interface_logger
from tapotun_trio.peer.session_log import SessionLog
from tapotun_trio.wire import control

from ..fakes import MemoryHost
from ..packets import ipv4
from .hostile import until
from .support import allowed, client_config, free_port, running, server_config


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
            assert re.match(r"session ended after \d+ s: ", ends(caplog)[-1])
    assert len(ends(caplog)) == 2


async def test_the_client_s_end_has_the_same_line(caplog: pytest.LogCaptureFixture) -> None:
    """Why as its server said it, what it carried, and once."""
    caplog.set_level(logging.INFO, "tapotun")
    server_host, client_host, port = MemoryHost(), MemoryHost(), free_port()
    ours = client_config("tun0", port)
    config = server_config(port, allowed("tun0", "10.10.0.2"))

    def told() -> list[str]:
        """The client's, not the server's own."""
        return [line for line in ends(caplog) if "this server stops" not in line]

    async with running(client_host, ours):
        for number in (1, 2):
            async with running(server_host, config):
                await until(lambda number=number: caplog.text.count("upload to") == number, "the session")  # type: ignore[misc]
                (await client_host.device("tun0")).send(ipv4("10.10.0.2", "10.10.0.1", b"x" * 10))
                await (await server_host.device("hub")).receive_packet()
            await until(lambda number=number: len(told()) == number, "the line")  # type: ignore[misc]
        first, second = told()
        for line in (first, second):  # each counts its own
            said = r"session ended after \d+ s: the server ended it: the server is shutting down; "
            assert re.match(said, line)
            assert "received 0 packets, 0 bytes; sent 1 packets, 30 bytes; round trip " in line
        async with running(server_host, config):
            await until(lambda: caplog.text.count("download from") == 3, "the session")
    # While there was no session nothing ended.
    assert len(told()) == 3


async def test_a_client_that_stops_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tapotun")
    port = free_port()
    async with running(MemoryHost(), server_config(port, allowed("tun0", "10.10.0.2"))):
        async with running(MemoryHost(), client_config("tun0", port)):
            await until(lambda: "upload to" in caplog.text, "the session")
        assert [line for line in ends(caplog) if ": this client stops; " in line]


async def test_a_client_that_comes_and_goes_for_hours_has_a_bounded_log(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever is at the other end: the failures differ, and each attempt seems to work for a moment."""
    caplog.set_level(logging.INFO, "tapotun")
    failure_log = FailureLog(interface_logger("tun0"))
    summary = SessionLog(Counters(), RoundTrip())
    for attempt in range(3600):
        summary.begin()
        failure_log.clear()
        failure_log.note("download", logging.INFO, "download from 192.0.2.1:8080")
        failure_log.log("download", PeerError(f"connection {attempt} broke"), 1.0)
        summary.end(interface_logger("tun0"), "it broke")
        await trio.sleep(1)
    assert len(caplog.records) <= 3 * 6 * FLAPPING_BURST
    assert "more since the last such line)" in caplog.text


async def test_a_server_that_is_down_for_an_hour_is_two_lines(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.INFO, "tapotun")
    failure_log = FailureLog(interface_logger("tun0"))
    for attempt in range(720):  # its name has two addresses, which fail each in its way
        failure_log.log("download", PeerError(("refused", "no route to host")[attempt % 2]), 5.0)
        await trio.sleep(5)
    assert len(caplog.records) == 2


async def test_a_server_that_stops_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tapotun")
    port = free_port()
    async with AsyncExitStack() as stack:
        async with running(MemoryHost(), server_config(port, allowed("laptop", "10.10.0.2"))):
            await stack.enter_async_context(await begin(port))
            await until(lambda: "connected" in caplog.text, "the session")
    [line] = ends(caplog)
    assert ": this server stops; " in line


async def test_a_client_that_has_left_has_no_download_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """Its BYE comes on the upload. A proxy that does not notice that the client has closed its download keeps it."""
    caplog.set_level(logging.INFO, "tapotun")
    port = free_port()
    fields = "HTTP/1.1\r\nHost: x\r\nx-api-key: laptop\r\nx-tun-features: ctl\r\nx-tun-session: {}\r\n"
    ours, other = (fields.format(digit * 32) for digit in "12")
    bye = control.bye("the client is shutting down")
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(bye), bye)
    async with running(MemoryHost(), server_config(port, allowed("laptop", "10.10.0.2"))):
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(3)]
            download, upload, second = streams
            with trio.fail_after(30):
                await download.send_all(f"GET /ip {ours}\r\n".encode())
                assert b" 200 " in await download.receive_some()
                head = f"PUT /ip {ours}x-tun-upload: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
                await upload.send_all(head.encode() + chunk)
                received = b""
                while not received.endswith(b"0\r\n\r\n"):
                    received += await download.receive_some()
                await second.send_all(f"GET /ip {other}x-tun-yield: 1\r\n\r\n".encode())
                assert b" 200 " in await second.receive_some()
            assert "the client ends the session: the client is shutting down" in caplog.text
