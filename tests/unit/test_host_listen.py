"""host.listen: whose file a Unix socket may replace, and which address may still be to come."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from tapotun_trio.config.model import TcpAddress, UnixAddress
from tapotun_trio.errors import HostError
from tapotun_trio.host.net.listen import AbsentError, endpoint_name, listen

from .support import free_port

ELSEWHERE = "192.0.2.77"  # of no machine (RFC 5737)


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(HostError, match="not a socket"):
        listen(UnixAddress(str(path)))
    assert path.read_text() == "kept"


async def test_a_stale_socket_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    listener = listen(UnixAddress(str(path)))
    assert listener is not None
    with pytest.raises(HostError, match="another process listens there"):
        listen(UnixAddress(str(path)))
    listener.close()
    assert not path.exists()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_the_mode_is_as_it_was_asked_for(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        listener = listen(UnixAddress(str(tmp_path / "x.sock")), 0o606)
    finally:
        os.umask(before)
    assert listener is not None
    assert stat.S_IMODE((tmp_path / "x.sock").stat().st_mode) == 0o606
    listener.close()


async def test_a_socket_that_replaced_ours_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    first = listen(UnixAddress(str(path)))
    path.unlink()
    second = listen(UnixAddress(str(path)))
    assert first is not None
    assert second is not None
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


async def test_a_socket_file_that_is_gone_already(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    listener = listen(UnixAddress(str(path)))
    assert listener is not None
    path.unlink()
    listener.close()


async def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"there is no directory .*/none; make it"):
        listen(UnixAddress(str(tmp_path / "none" / "x.sock")))


@pytest.mark.parametrize("address", [ELSEWHERE, "2001:db8::77"])
@pytest.mark.parametrize("early", [False, True])
async def test_an_address_that_is_still_to_come(address: str, early: bool) -> None:
    port = free_port()
    listener = listen(TcpAddress(address, port, early=early))
    assert listener is not None
    assert (listener.waits, listener.name) == (True, endpoint_name(TcpAddress(address, port)))
    with pytest.raises(HostError, match="the port is in use"):
        listen(TcpAddress(address, port, early=early))
    listener.close()
    here = listen(TcpAddress("127.0.0.1", port, early=early))
    assert here is not None
    assert not here.waits
    here.close()


async def test_a_default_that_this_machine_does_not_have_is_passed_over() -> None:
    assert listen(TcpAddress(ELSEWHERE, free_port(), optional=True)) is None


async def test_a_family_that_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AF_INET6 is on some. Here it is another one that no kernel has."""
    monkeypatch.setattr(socket, "AF_INET6", 99)
    with pytest.raises(AbsentError, match=r"cannot listen on \[::1\]:1: this machine has no IPv6; switch it on"):
        listen(TcpAddress("::1", 1))
    assert listen(TcpAddress("::1", 1, optional=True)) is None


async def test_a_port_that_a_test_was_given_is_nobody_elses() -> None:
    """Until the test's own server listens there, and while it does."""
    port = free_port()
    for _ in range(2):
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        listener = listen(TcpAddress("127.0.0.1", port))
        assert listener is not None
        with pytest.raises(HostError, match="the port is in use"):
            listen(TcpAddress("127.0.0.1", port))
        listener.close()


async def test_a_closed_listener_accepts_nothing() -> None:
    """A task that has not begun to wait yet is told the same as one that waits; a cancelled one only that."""
    listener = listen(TcpAddress("127.0.0.1", free_port()))
    assert listener is not None
    listener.close()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with trio.CancelScope() as scope:
        scope.cancel()
        await listener.accept()
    assert scope.cancelled_caught
