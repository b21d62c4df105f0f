"""Interfaces of ours on loopback, with the host in memory."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from ipaddress import ip_address, ip_interface, ip_network
from itertools import cycle
from typing import Final

import trio

from tapotun_trio.config.model import (
    AllowedClient,
    ClientConfig,
    Mark,
    Secret,
    ServerConfig,
    TcpAddress,
    TokenHash,
    Url,
)
from tapotun_trio.datapath.plane import VARIABLE, current_steps, open_plane
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.log import process_logger

from ..fakes import MemoryHost
from ..twins import twin

# More than one test uses at a time. After so many calls the first port comes again.
_RESERVED: Final = 64


def _reserve() -> list[int]:
    """Ports of sockets that are bound and do not listen.

    The kernel gives such a port to nobody else: neither to bind(0) nor to an outgoing connection, of any process. But
    another socket may be bound to it and listen, if it has SO_REUSEADDR as well: inet_csk_bind_conflict in
    net/ipv4/inet_connection_sock.c.
    """
    ports = []
    for _ in range(_RESERVED):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        ports.append(sock.getsockname()[1])
        sock.detach()  # open until the process ends
    return ports


# Reserved at the import, and not by the first test that needs one: tests count the descriptors that they open.
_PORTS: Final = cycle(_reserve())


def free_port() -> int:
    """A port of 127.0.0.1 at which nothing listens, and which no other process gets before the test listens there.

    For a port that has to be known before its server runs: it stands in a config, where 0 is not allowed, or in that of
    nginx, which does not tell what it got for 0. A server that the test itself opens listens at port 0 and says where.
    """
    return next(_PORTS)


def allowed(
    name: str, ip: str | tuple[str, ...], routes: tuple[str, ...] = (), sources: tuple[str, ...] = ()
) -> AllowedClient:
    """A client whose token is its name. ``ip``: its address, or one of each family."""
    return AllowedClient(
        name=name,
        token=TokenHash("sha1", hashlib.sha1(name.encode()).hexdigest()),
        addresses=tuple(map(ip_address, (ip,) if isinstance(ip, str) else ip)),
        routes=tuple(map(ip_network, routes)),
        sources=tuple(map(ip_address, sources)),
    )


def server_config(port: int, *clients: AllowedClient, mtu: int = 1500, mark: Mark | None = None) -> ServerConfig:
    """A server with 10.10.0.1, or the twin of that, or both: the families of its clients' addresses."""
    versions = {address.version for client in clients for address in client.addresses} or {4}
    return ServerConfig(
        name="hub",
        nets=tuple(ip_interface(twin("10.10.0.1/24", version)) for version in sorted(versions)),
        listen=(TcpAddress("127.0.0.1", port),),
        mtu=mtu,
        clients=clients,
        mark=mark,
    )


def client_config(name: str, port: int, mark: Mark | None = None) -> ClientConfig:
    return ClientConfig(name=name, server=Url("http", "127.0.0.1", port, "/ip"), token=Secret(name), mark=mark)


@asynccontextmanager
async def running(
    host: MemoryHost, *configs: ServerConfig | ClientConfig, records: dict[str, Record] | None = None
) -> AsyncIterator[trio.Nursery]:
    """Run the interfaces. At the end cancel them and check that they left nothing on the host.

    They have a plane if TAPOTUN_PLANE names one: ``python``, or ``auto`` for a native one.

    Args:
        records: gets the record of each interface, by the interface's name.
    """
    wanted = os.environ.get(VARIABLE) is not None and current_steps() is None
    async with (
        open_plane(process_logger()) if wanted else nullcontext(),
        open_listeners() as listeners,
        trio.open_nursery() as nursery,
    ):
        for config in configs:
            record = Record(config)
            if records is not None:
                records[config.name] = record
            await nursery.start(run_interface, config, host, listeners, record)
        yield nursery
        nursery.cancel_scope.cancel()
    assert host.left_over == []
    assert host.devices == {}


@contextmanager
def counting_streams() -> Iterator[Counter[str]]:
    """How many streams of each kind (download, upload, WebSocket) the servers in this process begin meanwhile.

    They are counted by the debug log. No log record is kept: the objects in it would live longer than they should.
    """
    begun: Counter[str] = Counter()

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.match(r"(download|upload|WebSocket) from \S+ begins$", record.getMessage()):
                begun[match[1]] += 1

    root, handler = logging.getLogger("tapotun"), Count()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield begun
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
