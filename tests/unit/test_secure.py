"""http.client.secure: TLS handshakes with smaller and smaller segments next to one that brings nothing."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest
import trio

from tapotun_trio.config.model import TlsConfig, Url
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.segments import SIZES, SegmentLimits
from tapotun_trio.host.net.tls import TlsClient
from tapotun_trio.http import client as module
from tapotun_trio.http.client import open_connection

from .test_host_tls import CA, NAME, Serve, answer, server_context, serving


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLER_S", 0.1)


@pytest.fixture
def tls(tmp_path: Path) -> TlsClient:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return TlsClient(TlsConfig(ca_file=str(tmp_path / "ca.pem")))


def passing(size: int, sizes: list[int]) -> Serve:
    """A server of which nothing arrives on connections with segments above ``size``."""
    context = server_context()

    async def serve(stream: trio.SocketStream) -> None:
        mss = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        sizes.append(mss)
        if mss <= size:
            await answer(context, stream)
            return
        async with stream:
            while await stream.receive_some():
                pass

    return serve


@pytest.mark.parametrize("size", SIZES)
async def test_the_size_that_passes_is_found(tls: TlsClient, size: int) -> None:
    told: list[str] = []
    limits, sizes = SegmentLimits(told.append), list[int]()
    async with serving(passing(size, sizes)) as port:
        for _ in range(2):
            (await open_connection(Url("https", NAME, port, "/"), tls, limits=limits)).close()
    found = limits.limit("127.0.0.1")
    assert found in SIZES
    assert found <= size, "a smaller one, if this machine is busy for longer than the next one waits"
    assert len(told) == 1
    assert f"segments of at most {found} bytes" in told[0]
    assert sizes[-1] <= size, "the second connection begins with it"
    assert len(sizes) >= SIZES.index(size) + 3


async def test_a_server_that_is_slow_has_no_small_path(tls: TlsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """All connections are answered at once, when it is up to it: the first has its answer, too."""
    monkeypatch.setattr(module, "SETTLE_S", 1.0)
    limits, waiting, context = SegmentLimits(), list[trio.SocketStream](), server_context()
    awake = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        waiting.append(stream)
        if len(waiting) == 3:
            awake.set()
        await awake.wait()
        await answer(context, stream)

    async with serving(serve) as port:
        (await open_connection(Url("https", NAME, port, "/"), tls, limits=limits)).close()
    assert limits.problem("127.0.0.1") is None


async def test_a_failure_of_the_first_is_the_failure(tls: TlsClient) -> None:
    limits = SegmentLimits()
    async with serving(partial(answer, server_context("somebody.else"))) as port:
        with pytest.raises(PeerError, match=r"somebody\.else"):
            await open_connection(Url("https", NAME, port, "/"), tls, limits=limits)
    assert limits.problem("127.0.0.1") is None
