"""The transport's own sockets. Connecting with them is tested with whole interfaces."""

from __future__ import annotations

import socket
import sys

import pytest

from tapotun_trio.errors import HostError
from tapotun_trio.host.net import dial

SO_MARK = 36


@pytest.mark.parametrize("mark", [1, 2**31, 2**32 - 1])
def test_every_mark_that_a_config_may_hold_can_be_set(mark: int) -> None:
    try:
        sock = dial.open_transport_socket(socket.AF_INET, mark)
    except HostError as exc:
        pytest.skip(str(exc))
    with sock:
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_MARK, 4), sys.byteorder) == mark


def test_without_a_mark() -> None:
    with dial.open_transport_socket(socket.AF_INET6, None) as sock:
        assert not sock.getblocking()
