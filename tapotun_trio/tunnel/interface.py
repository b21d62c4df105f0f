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
                                                       └─ programmer
"""

from __future__ import annotations

import trio

from ..config.model import ClientConfig, InterfaceConfig, ServerConfig
from ..host.ports import Host, OwnedName
from ..log import interface_logger
from .client import TunnelClient
from .device import MAX_QUEUES, DeviceWriter, read_device
from .frontdoor import FrontDoor
from .plans import server_plan
from .programmer import Programmer
from .registry import Record
from .server import TunnelServer


async def run_interface(
    config: InterfaceConfig,
    host: Host,
    door: FrontDoor,
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
        if isinstance(config, ServerConfig):
            await run_server(config, host, door, record, task_status)
        else:
            await run_client(config, host, owned, record, task_status)


def _tell_of_doubt(owned: OwnedName, record: Record) -> None:
    """Once, however often the interface starts again."""
    if owned.doubt is not None and owned.doubt != record.doubt:
        text = "%s; the interface runs all the same, but a second start of it is noticed only once it is up"
        interface_logger(record.config.name).warning(text, owned.doubt)
    record.doubt = owned.doubt


async def run_server(
    config: ServerConfig, host: Host, door: FrontDoor, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    log = interface_logger(config.name)
    with host.open_device(config.name, max(1, min(len(config.clients), MAX_QUEUES))) as device:
        async with trio.open_nursery() as nursery:
            server = record.tunnel = TunnelServer(config, log)
            writers = [DeviceWriter(queue, server.device_drops) for queue in device.queues]
            programmer = Programmer(host, device.name, log)

            await nursery.start(programmer.run, server_plan(config))
            for writer in writers:
                nursery.start_soon(writer.run)
            nursery.start_soon(read_device, device, server.classify, server.sole)
            nursery.start_soon(server.run_clock)
            await nursery.start(server.run_transport, writers, door)

            async def reconfigure(newer: InterfaceConfig) -> None:
                assert isinstance(newer, ServerConfig), "another kind is another interface"
                await programmer.apply(server_plan(newer))
                server.reconfigure(newer)

            record.reconfigure = reconfigure
            task_status.started()


async def run_client(
    config: ClientConfig, host: Host, owned: OwnedName, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    log = interface_logger(config.name)
    client = record.tunnel = TunnelClient(config, log)
    client.require_free = owned.require_free
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run_download)
        nursery.start_soon(client.watch_path, host)
        task_status.started()
        plan = await client.wait_for_plan()  # the server's first answer: only now an interface makes sense

        with host.open_device(config.name) as device:
            async with trio.open_nursery() as inner:
                (queue,) = device.queues
                writer = DeviceWriter(queue, client.counters.drops)
                programmer = Programmer(host, device.name, log)

                await inner.start(programmer.run, plan)
                inner.start_soon(writer.run)
                inner.start_soon(read_device, device, client.classify, lambda: client.sender)
                inner.start_soon(client.run_upload)
                inner.start_soon(client.run_clock)
                client.attach(writer, programmer)

                async def reconfigure(newer: InterfaceConfig) -> None:
                    assert isinstance(newer, ClientConfig), "another kind is another interface"
                    await client.reconfigure(newer)

                record.reconfigure = reconfigure
