"""host.listen: whose file a Unix socket may replace."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tapotun_trio.config.model import UnixEndpoint
from tapotun_trio.errors import HostError
from tapotun_trio.host.listen import listen


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(HostError, match="no socket"):
        listen(UnixEndpoint(str(path)))
    assert path.read_text() == "kept"


async def test_a_stale_socket_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    listener = listen(UnixEndpoint(str(path)))
    assert listener is not None
    with pytest.raises(HostError, match="another process listens there"):
        listen(UnixEndpoint(str(path)))
    listener.close()
    assert not path.exists()
