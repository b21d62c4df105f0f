"""A client's certificates are on a disk that stops answering, or are replaced by a pipe, while the process runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trustme

from tests.harness import Host, Lab, Process, command, ping, wait_for_ping

from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

DISK: Final = Path(__file__).with_name("dead_disk.py")
PATIENCE_S: Final = 60.0


@contextmanager
def disk(host: Host) -> Iterator[tuple[Path, Path]]:
    """Yields the directory that backs the disk, and the one where the host sees it."""
    source, there = host.tmp / "source", host.tmp / "disk"
    source.mkdir()
    there.mkdir()
    with host.start([sys.executable, str(DISK), str(source), str(there)], name="disk") as process:
        process.wait_for_log("mounted")
        yield source, there


@contextmanager
def two_clients(lab: Lab, client: Host, server: Host, ca_file: Path) -> Iterator[Process]:
    """A process on ``client`` with tun0, which carries packets, and tun1 over https, whose server does not answer."""
    secure = client_config(name="tun1", server=f"https://{SERVER}:9/ip", tls={"ca_file": str(ca_file)})
    with (
        running(server, server_config()),
        running(client, [client_config(), secure], until=UPLOADING) as daemon,
    ):
        wait_for_ping(client, TUNNEL_SERVER)
        yield daemon


@contextmanager
def stopped_tun1(client: Host, daemon: Process) -> Iterator[None]:
    """Within the block tun1 has failed, because its name is taken. Afterwards it restarts."""
    client.ip("link add tun1 type veth peer name other")
    daemon.wait_for_log("tun1: restarting in", PATIENCE_S)
    yield
    client.ip("link delete tun1")


def test_a_dead_disk_holds_nobody_up(lab: Lab) -> None:
    server, client = cable(lab)
    with disk(client) as (source, there):
        trustme.CA().cert_pem.write_to_path(source / "ca.pem")
        with two_clients(lab, client, server, there / "ca.pem") as daemon:
            with stopped_tun1(client, daemon):
                (source / "dead").touch()
            error = f"tun1: tls.ca_file {there / 'ca.pem'} could not be read within 10 s; is it on a disk that answers"
            daemon.wait_for_log(error, PATIENCE_S)
            assert ping(client, TUNNEL_SERVER).ok
            assert "could not be read" in client.run([*command(), "status"]).stdout
            # No thread is left behind for each restart.
            daemon.wait_for_log("tun1: 2 earlier attempts still wait for the disk", PATIENCE_S)
            assert ping(client, TUNNEL_SERVER).ok


def test_a_pipe_in_the_place_of_a_file_is_named(lab: Lab) -> None:
    server, client = cable(lab)
    ca_file = client.tmp / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca_file)
    with two_clients(lab, client, server, ca_file) as daemon:
        with stopped_tun1(client, daemon):
            ca_file.unlink()
            os.mkfifo(ca_file)
        daemon.wait_for_log(f"tun1: tls.ca_file {ca_file} cannot be read: it is not a regular file", PATIENCE_S)
        assert ping(client, TUNNEL_SERVER).ok
