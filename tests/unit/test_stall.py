"""An upload that does not send while everything else is well: it must not last, and it must be told."""

from __future__ import annotations

import logging
from functools import partial
from ipaddress import IPv4Interface

import pytest
import trio

from tapotun_trio.client.backoff import Backoff
from tapotun_trio.client.stall import STALLED_S, Stall
from tapotun_trio.datapath.tx_queue import MAX_AGE_S
from tapotun_trio.wire.tunconf import encode_generation_1

from ..fakes import MemoryHost
from ..packets import ipv4
from .hostile import until
from .support import client_config, running

CONF = encode_generation_1(1500, IPv4Interface("10.10.0.2/24"))
ANSWER = f"HTTP/1.1 200 OK\r\nx-tun-conf: {CONF}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


class Server:
    """A base server that takes as many uploads as the test says, and closes the others at once.

    Attributes:
        taken: uploads that were taken. refused: that were closed. takes: whether the next one is taken.
    """

    def __init__(self) -> None:
        self.takes = True
        self.taken = self.refused = self.downloads = 0
        self._download = trio.CancelScope()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                received = await stream.receive_some(4096)
                if not received:
                    return
                head += received
            if head.startswith(b"GET "):
                await stream.send_all(ANSWER)
                self.downloads += 1
                with trio.CancelScope() as self._download:
                    await trio.sleep_forever()
            elif not self.takes:
                self.refused += 1
            else:
                self.taken += 1
                while await stream.receive_some(65536):
                    pass

    def end_the_download(self) -> None:
        self._download.cancel()


@pytest.fixture
def patient_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second failure in a row makes a stream wait for longer than any test."""

    def next_s(self: Backoff, *, lived_s: float = 0.0, near: bool = False) -> float:
        self._failures += 1
        return 0.0 if self._failures == 1 else 3600.0

    monkeypatch.setattr(Backoff, "next_s", next_s)


@pytest.mark.usefixtures("patient_for_ever")
async def test_an_upload_that_has_failed_does_not_wait_when_the_server_is_back() -> None:
    """A server that stops may refuse uploads for seconds before its download ends."""
    server, host = Server(), MemoryHost()
    server.takes = False
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with running(host, client_config("a", port)):
            await until(lambda: server.refused == 2, "two uploads have failed")
            await trio.sleep(0.1)
            assert server.refused == 2
            server.takes = True
            server.end_the_download()
            await until(lambda: server.downloads == 2, "another download")
            await until(lambda: server.taken == 1, "an upload")
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("patient_for_ever")
async def test_an_upload_that_stalls_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server, host = Server(), MemoryHost()
    server.takes = False

    def lines() -> list[str]:
        return [text for text in caplog.messages if "grew too old" in text or "grown too old" in text]

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with running(host, client_config("a", port)):
            device = await host.device("a")

            async def traffic() -> None:
                while True:
                    device.send(ipv4("10.10.0.2", "10.10.0.1", b"hello"))
                    await trio.sleep(MAX_AGE_S / 2)

            async with trio.open_nursery() as sending:
                sending.start_soon(traffic)
                await until(lambda: len(lines()) == 1, "the line")
                assert "there is no upload" in lines()[0]
                await trio.sleep(1.5)
                assert len(lines()) == 1
                server.takes = True
                server.end_the_download()
                await until(lambda: len(lines()) == 2, "the line of its end")
                assert "the upload goes on after" in lines()[1]
                sending.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


def test_a_stall_by_its_ticks() -> None:
    stall = Stall()
    assert not stall.tick(0, 10, 0)
    assert not stall.tick(1, 20, 5)  # drops beside what is sent are a queue's business
    assert not stall.tick(2, 20, 9)
    assert not stall.tick(3, 20, 12)
    assert stall.tick(2 + STALLED_S, 20, 15)
    assert (stall.lasted_s, stall.dropped, stall.over) == (STALLED_S, 10, False)
    assert not stall.tick(5, 20, 18)
    assert stall.tick(6, 21, 18)
    assert (stall.dropped, stall.over) == (13, True)
    assert not stall.tick(7, 21, 20)
    assert not stall.tick(8, 25, 20)  # over before it was worth a word


def test_a_stall_that_is_not_to_be_told_has_no_end_either() -> None:
    stall = Stall()
    assert not any(stall.tick(now, 0, 5 * now, tell=False) for now in range(1, 10))
    assert not stall.tick(10, 1, 50)
    assert stall.over


def test_silence_is_no_stall() -> None:
    stall = Stall()
    assert not any(stall.tick(now, 5, 7) for now in range(1, 20))
