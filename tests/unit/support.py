"""Interfaces of ours on loopback, with the host in memory."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

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

from ..fakes import MemoryHost


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


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
async def running(host: MemoryHost, *configs: ServerConfig | ClientConfig) -> AsyncIterator[trio.Nursery]:
    """Run the interfaces; at the end cancel them, and see that nothing stands any more."""
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        for config in configs:
            await nursery.start(run_interface, config, host, listeners)
        yield nursery
        nursery.cancel_scope.cancel()
    assert host.left_over == []
    assert host.devices == {}
