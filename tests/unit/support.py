"""Interfaces of ours on loopback, with the host in memory."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import cycle
from pathlib import Path
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
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import Record

from ..fakes import MemoryHost


def _ports_not_given_out() -> Iterator[int]:
    """Ports below those that the kernel gives to outgoing connections and to bind(0), again and again."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    ports = range(10_000, max(lowest, 20_000))  # 32768 on most machines
    return cycle(random.Random().sample(ports, len(ports)))  # another order in each process that runs tests


_PORTS: Final = _ports_not_given_out()


def free_port() -> int:
    """A port of 127.0.0.1 at which nothing listens, and which nothing else gets before the test listens there: neither
    the kernel nor a later call gives it out."""
    for port in _PORTS:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # something listens there
                sock.bind(("127.0.0.1", port))
                return port
    raise AssertionError("the ports never end")


def allowed(name: str, ip: str, routes: tuple[str, ...] = (), sources: tuple[str, ...] = ()) -> AllowedClient:
    """A client whose token is its name."""
    return AllowedClient(
        name=name,
        token=TokenHash("sha1", hashlib.sha1(name.encode()).hexdigest()),
        ip=IPv4Address(ip),
        routes=tuple(map(IPv4Network, routes)),
        sources=tuple(map(IPv4Address, sources)),
    )


def server_config(port: int, *clients: AllowedClient, mtu: int = 1500, mark: Mark | None = None) -> ServerConfig:
    return ServerConfig(
        name="hub",
        net=IPv4Interface("10.10.0.1/24"),
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

    Args:
        records: gets the record of each interface, by the interface's name.
    """
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
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
