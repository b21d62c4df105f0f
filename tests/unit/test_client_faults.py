"""A bug in one stream of a client, or in an attempt at one, ends that stream: the interface stays, and the next attempt
is as good as any."""

from __future__ import annotations

import errno
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

import pytest

from tapotun_trio.client import client as client_module
from tapotun_trio.client import requests, streams
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.client.parameters import InterfaceParameters
from tapotun_trio.client.transport_choice import TransportSelector
from tapotun_trio.datapath.receiver import Receiver
from tapotun_trio.errors import SHORTAGES, HostError, leaves
from tapotun_trio.http import client as http_client
from tapotun_trio.http.heads import ResponseParser
from tapotun_trio.peer.info import PeerInfo
from tapotun_trio.wire import params, tunconf

from ..fakes import MemoryHost
from ..packets import ipv4
from .hostile import logged, open_fds, until
from .support import allowed, client_config, free_port, running, server_config

HUB: Final = "10.10.0.1"
ME: Final = "10.10.0.2"

STEPS: Final[tuple[tuple[Any, str], ...]] = (
    (TunnelClient, "_open_download"),
    (TunnelClient, "_open_get"),
    (TunnelClient, "_open_upload"),
    (TunnelClient, "_new_upload"),
    (TunnelClient, "_download_begins"),
    (InterfaceParameters, "configure"),
    (TunnelClient, "_deliver"),
    (TunnelClient, "_on_control"),
    (requests.Requests, "get"),
    (requests.Requests, "put"),
    (requests.Requests, "_connect"),
    (requests, "read_response"),
    (requests, "check_status"),
    (requests, "send_request"),
    (http_client, "connect"),
    (http_client, "encode_request"),
    (ResponseParser, "feed"),
    (tunconf, "decode"),
    (params, "decode"),
    (TransportSelector, "upload_began"),
    (TransportSelector, "upload_seen"),
    (Receiver, "run"),
    (streams.Upload, "_send"),
    (streams.Upload, "_read_answer"),
    (streams.Upload, "_watch_seen"),
)


def once(function: Callable[..., Any], exc: Exception, *, after: bool) -> tuple[Callable[..., Any], list[int]]:
    """The function, which raises the first time that it is called; and its calls."""
    calls: list[int] = []

    async def later(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        first = len(calls) == 1
        if first and not after:
            raise exc
        result = await function(*args, **kwargs)
        if first:
            raise exc
        return result

    def now(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        first = len(calls) == 1
        if first and not after:
            raise exc
        result = function(*args, **kwargs)
        if first:
            raise exc
        return result

    return (later if inspect.iscoroutinefunction(function) else now), calls


async def recovers(
    owner: Any, name: str, exc: Exception, *, after: bool
) -> tuple[TunnelClient, list[logging.LogRecord]]:
    """One step of a client raises once, and the tunnel carries packets all the same. Returns the client and the log."""
    host, port, fds = MemoryHost(), free_port(), open_fds()
    clients: list[TunnelClient] = []

    def client(*args: Any, **options: Any) -> TunnelClient:
        clients.append(TunnelClient(*args, **options))
        return clients[-1]

    broken, calls = once(getattr(owner, name), exc, after=after)
    with logged() as log, patch.object(client_module, "TunnelClient", client), patch.object(owner, name, broken):
        async with running(host, server_config(port, allowed("a", ME)), client_config("a", port)):
            again = not after and name != "upload_seen"  # which comes once an upload, and that goes on
            await until(lambda: len(calls) > again, f"{name} to be called{' again' * again}")
            await until(lambda: clients[0].counters.ends, "its end to be counted")
            await until(lambda: clients[0].state == "connected", "the client to be connected")
            hub, device = await host.device("hub"), await host.device("a")
            up, down = ipv4(ME, HUB, b"up"), ipv4(HUB, ME, b"down")
            device.send(up)
            assert await hub.receive_packet() == up
            hub.send(down)
            assert await device.receive_packet() == down
        assert len(clients) == 1
    await until(lambda: open_fds() <= fds, f"{open_fds()} descriptors to be {fds} again")
    return clients[0], log


@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
async def test_a_bug_ends_one_stream(owner: Any, name: str) -> None:
    client, log = await recovers(owner, name, RuntimeError("injected"), after=False)
    assert client.counters.ends["internal-error"] == 1
    told = [record for record in log if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in told] == ["internal error, stream ended"]
    assert told[0].exc_info
    assert any("internal error: " in it.getMessage() and "injected" in it.getMessage() for it in log if it not in told)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(TunnelClient, "_download_begins"), (TransportSelector, "upload_began"), (PeerInfo, "mark_connected")],
)
async def test_a_bug_behind_a_step_leaves_nothing_open(owner: Any, name: str) -> None:
    await recovers(owner, name, RuntimeError("injected"), after=True)


@pytest.mark.parametrize("lacking", [MemoryError(), OSError(errno.EMFILE, "Too many open files")], ids=repr)
async def test_a_shortage_is_no_bug(lacking: Exception) -> None:
    client, log = await recovers(Receiver, "run", lacking, after=False)
    assert sum(client.counters.ends[reason] for reason in SHORTAGES) == 1
    assert not [record for record in log if record.levelno >= logging.ERROR or record.exc_info]


async def test_a_device_that_is_gone_ends_the_interface() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await recovers(TunnelClient, "_deliver", HostError("a is gone"), after=False)
    assert {type(it) for it in leaves(caught.value)} == {HostError}
