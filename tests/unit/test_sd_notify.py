"""`sd_notify` and readiness: what a service manager is told, when, and that it cannot hold us up."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError
from tapotun_trio.host.process.sd_notify import ServiceManager, encode, watchdog_s
from tapotun_trio.lifecycle.registry import Record, Registry
from tapotun_trio.log import process_logger
from tapotun_trio.readiness import describe, notify_service_manager

from .support import allowed, server_config

LOG = process_logger()
EVERYTHING = 4096


class Systemd:
    """The far end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind(address)

    def told(self) -> list[str]:
        """Everything since the last look."""
        found = []
        while True:
            try:
                found.append(self.sock.recv(EVERYTHING).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    it = Systemd(str(tmp_path / "notify"))
    with it.sock:
        yield it


def manager(systemd: Systemd, *, watchdog_usec: int | None = None, fd: int | None = None) -> ServiceManager:
    environ = {"NOTIFY_SOCKET": systemd.sock.getsockname()}
    if watchdog_usec is not None:
        environ |= {"WATCHDOG_USEC": str(watchdog_usec), "WATCHDOG_PID": str(os.getpid())}
    return ServiceManager(environ, fd, LOG)


def test_a_value_is_one_line() -> None:
    status, ready = encode(STATUS="tun0: a\nREADY=1", READY=1).split(b"\n")
    assert status.startswith(b"STATUS=tun0: a")
    assert ready == b"READY=1"


def test_each_message(systemd: Systemd) -> None:
    with manager(systemd) as it:
        it.ready()
        it.status("tun0 up")
        it.status("tun0 up")
        it.reloading()
        it.stopping()
        it.watchdog()
    ready, status, reloading, *rest = systemd.told()
    assert (ready, status, rest) == ("READY=1", "STATUS=tun0 up", ["STOPPING=1", "WATCHDOG=1"])
    first, _, moment = reloading.partition("\nMONOTONIC_USEC=")
    assert first == "RELOADING=1"
    assert int(moment) > 0


def test_an_abstract_socket() -> None:
    name = f"tapotun-test-{os.getpid()}"
    far = Systemd("\0" + name)
    with far.sock, ServiceManager({"NOTIFY_SOCKET": "@" + name}, None, LOG) as it:
        assert it.listens
        it.ready()
        assert far.told() == ["READY=1"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_nobody_listens(environ: dict[str, str]) -> None:
    with ServiceManager(environ | {"WATCHDOG_USEC": "1000000"}, None, LOG) as it:
        assert not it.listens
        assert it.watchdog_s is None
        it.ready()


def test_a_manager_that_is_gone_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none")}, None, LOG) as it:
        it.ready()
        it.stopping()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot notify the service manager" in record.getMessage()


def test_a_manager_that_does_not_read_holds_nobody_up(systemd: Systemd) -> None:
    with manager(systemd) as it:
        for _ in range(5000):
            it.watchdog()
    assert "WATCHDOG=1" in systemd.told()


def test_a_busy_manager_hears_in_the_end_what_it_waits_for(systemd: Systemd) -> None:
    with manager(systemd) as it:
        for _ in range(5000):
            it.watchdog()
        it.ready()
        it.reloading()
        it.reloaded()
        assert set(systemd.told()) == {"WATCHDOG=1"}
        it.status("tun0 up")
        ready, reloading, again, status = systemd.told()
        assert (ready, again, status) == ("READY=1", "READY=1", "STATUS=tun0 up")
        assert reloading.startswith("RELOADING=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("3000000", "", 3.0),
        ("3000000", "7", 3.0),
        ("3000000", "8", None),
        ("0", "", None),
        ("", "", None),
        ("-5", "", None),
        ("x", "", None),
        ("²", "", None),
    ],
)
def test_watchdog(usec: str, pid: str, seconds: float | None) -> None:
    assert watchdog_s({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}, 7) == seconds


def test_s6_gets_a_line_once_and_then_the_end() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reader, ServiceManager({}, theirs, LOG) as it:
        assert it.listens
        it.ready()
        assert reader.read() == b"\n"  # to the end: it was closed
        it.ready()


def test_a_descriptor_that_is_not_open() -> None:
    with pytest.raises(HostError, match=r"^--notify-fd 999: no such descriptor is open; under s6 the file notif"):
        ServiceManager({}, 999, LOG)


# -- readiness


def record(*, ready: bool) -> Record:
    it = Record(server_config(8080, allowed("laptop", "10.10.0.2")))
    it.ready = ready
    return it


class Known(Registry):
    """With such records in it."""

    def __init__(self, *records: Record) -> None:
        super().__init__()
        self._records = {f"tun{n}": it for n, it in enumerate(records)}


async def test_not_up_in_time_is_ready_with_a_warning(
    systemd: Systemd, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with manager(systemd) as it, trio.move_on_after(4):
        await notify_service_manager(it, Known(record(ready=False)), 5, LOG)
    assert "READY=1" not in systemd.told()
    with manager(systemd) as it, trio.move_on_after(6):
        await notify_service_manager(it, Known(record(ready=False)), 5, LOG)
    assert systemd.told() == ["STATUS=hub starting", "READY=1"]
    assert "not up within 5 s: hub is starting; reporting ready in any case" in caplog.text


async def test_the_watchdog_hears_of_us_twice_as_often_as_it_asks(
    systemd: Systemd, autojump_clock: trio.testing.MockClock
) -> None:
    with manager(systemd, watchdog_usec=1_000_000) as it, trio.move_on_after(3.2):  # the kernel keeps ten datagrams
        await notify_service_manager(it, Known(record(ready=False)), 0, LOG)
    told = systemd.told()
    assert told[0] == "READY=1"
    assert told.count("WATCHDOG=1") == 7


def test_many_interfaces_are_counted() -> None:
    assert describe([record(ready=False)] * 5) == "0 of 5 interfaces up"
    assert describe([record(ready=False)] * 2) == "hub starting; hub starting"
