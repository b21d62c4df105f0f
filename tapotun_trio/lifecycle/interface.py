"""One interface, whole: everything it has stands in one nursery. Cancel that, and the interface is gone.
Around it, the name of the interface is owned: from before its first connection until its device is gone.

::

    server                                        client
    ├─ device reader    TUN -> senders            ├─ upload      PUT after PUT
    ├─ device writers   slow path of writes       ├─ clock
    ├─ programmer       addresses, routes, rules  ├─ path watch  what happens to this machine's addresses and routes
    ├─ transport        requests, from the door   └─ download    GET after GET; the first answer makes
    └─ clock            pings, ageing                  ├─ device reader
                                                       ├─ device writer
                                                       ├─ programmer
                                                       └─ transport guard   keeps our connections out of the tunnel
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Final

import trio

from ..client.client import TunnelClient
from ..config.model import ClientConfig, InterfaceConfig, ServerConfig
from ..cooperative import run_cooperatively
from ..datapath.tun_io import MAX_QUEUES, DeviceWriter, read_device
from ..errors import HostError
from ..host.interfaces import Host, OwnedName
from ..host.process.interpreter import collecting_later, settle
from ..http.virtual_hosts import ListenerManager
from ..log import Log, interface_logger
from ..netconf.desired import desired_for_server_in_steps
from ..netconf.reconciler import Reconciler
from ..server.server import TunnelServer
from .registry import Record

MANY_CLIENTS: Final = 1000  # of a server: a look at all of their sessions takes 15 ms


async def run_interface(
    config: InterfaceConfig,
    host: Host,
    listeners: ListenerManager,
    record: Record | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run one interface until cancelled; then nothing of it is left on the host.

    Reports started when it is usable (server) or on its way (client: its streams come up when they can).
    ``record``: where it can be found while it runs, and changed in so far as `config.changes` calls that live.
    Raises HostError if this machine refuses something it needs; a peer's failures stay inside.
    """
    record = record or Record(config)
    # Before anything else: a client that connects takes the token, and the tunnel of one that runs already with it.
    async with host.own_name(config.name) as owned:
        _tell_of_doubt(owned, record)
        await _remove_left_over(host, interface_logger(config.name))
        if isinstance(config, ServerConfig):
            await run_server(config, host, listeners, record, task_status)
        else:
            await run_client(config, host, owned, record, task_status)


def _tell_of_doubt(owned: OwnedName, record: Record) -> None:
    """Once, however often the interface starts again."""
    if owned.doubt is not None and owned.doubt != record.doubt:
        text = "%s; the interface runs all the same, but a second start of it is noticed only once it is up"
        interface_logger(record.config.name).warning(text, owned.doubt)
    record.doubt = owned.doubt


async def _remove_left_over(host: Host, log: Log) -> None:
    """Before the first connection: a host route of a killed run may lead it to a gateway that is no more."""
    try:
        async with host.open_network() as network:
            for address in await network.remove_left_over():
                log.info("removed host route %s, left over from a run that was killed", address)
    except HostError as exc:
        log.warning("cannot look for host routes that a killed run left over: %s", exc)


async def run_server(
    config: ServerConfig, host: Host, listeners: ListenerManager, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    log = interface_logger(config.name)
    with host.open_device(config.name, max(1, min(len(config.clients), MAX_QUEUES))) as device:
        device_drops = Counter[str]()
        writers = [DeviceWriter(queue, device_drops) for queue in device.queues]
        server = record.tunnel = await _make_server(config, log, writers, device_drops)
        with closing(server):
            async with trio.open_nursery() as nursery:
                reconciler = Reconciler(host, device.name, log)

                await nursery.start(reconciler.run, await run_cooperatively(desired_for_server_in_steps(config)))
                for writer in writers:
                    nursery.start_soon(writer.run)
                nursery.start_soon(read_device, device, server.classify, server.only_sender, log)
                nursery.start_soon(server.run_clock)
                await nursery.start(server.run_transport, listeners)

                async def reconfigure(newer: InterfaceConfig) -> None:
                    assert isinstance(newer, ServerConfig), "another kind is another interface"
                    with collecting_later():
                        prepared = await run_cooperatively(server.prepare(newer))
                        desired = await run_cooperatively(desired_for_server_in_steps(newer))
                        _settle_many(newer)
                    await reconciler.apply(desired)
                    await run_cooperatively(server.adopt(prepared))

                record.reconfigure = reconfigure
                task_status.started()


async def _make_server(
    config: ServerConfig, log: Log, writers: Sequence[DeviceWriter], device_drops: Counter[str]
) -> TunnelServer:
    with collecting_later():
        server = await run_cooperatively(TunnelServer.in_steps(config, log, writers, device_drops))
        _settle_many(config)
    return server


def _settle_many(config: ServerConfig) -> None:
    """Keep the garbage collector from stopping everything for a tenth of a second to look at thousands of sessions."""
    if len(config.clients) >= MANY_CLIENTS:
        settle()


async def run_client(
    config: ClientConfig, host: Host, owned: OwnedName, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    log = interface_logger(config.name)
    client = record.tunnel = TunnelClient(config, log, require_free=owned.require_free)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run_download)
        nursery.start_soon(client.watch_path, host)
        task_status.started()
        desired = await client.wait_for_parameters()  # the server's first answer: only now an interface makes sense

        with host.open_device(config.name) as device:
            async with trio.open_nursery() as inner:
                (queue,) = device.queues
                writer = DeviceWriter(queue, client.counters.drops)
                reconciler = Reconciler(host, device.name, log, client.guard)
                client.guard.look = reconciler.recheck

                await inner.start(reconciler.run, desired)
                inner.start_soon(client.guard.run)
                inner.start_soon(writer.run)
                inner.start_soon(read_device, device, client.classify, lambda: client.sender, log)
                inner.start_soon(client.run_upload)
                inner.start_soon(client.run_clock)
                client.attach(writer, reconciler)

                async def reconfigure(newer: InterfaceConfig) -> None:
                    assert isinstance(newer, ClientConfig), "another kind is another interface"
                    await client.reconfigure(newer)

                record.reconfigure = reconfigure
