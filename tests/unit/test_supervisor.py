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

from tapotun_trio.config.model import ServerConfig, TcpAddress
from tapotun_trio.errors import HostError, leaves
from tapotun_trio.lifecycle.supervisor import run_interfaces

from ..fakes import MemoryDevice, MemoryHost
from .support import allowed, free_port, server_config


class FaultyHost(MemoryHost):
    """The device of one interface raises when it is waited for, as long as `fault` is set."""

    def __init__(self, name: str, fault: Exception | None) -> None:
        super().__init__()
        self.name = name
        self.fault = fault
        self.opened = 0

    @contextmanager
    def open_device(self, name: str, queues: int = 1) -> Iterator[MemoryDevice]:
        with super().open_device(name, queues) as device:
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
