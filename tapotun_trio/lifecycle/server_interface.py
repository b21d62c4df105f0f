"""A server, as `run_interface` runs it."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import trio

from ..config.model import InterfaceConfig, ServerConfig
from ..cooperative import run_cooperatively
from ..datapath.tun_io import MAX_QUEUES, DeviceWriter, read_device
from ..host.interfaces import Host
from ..http.virtual_hosts import ListenerManager
from ..log import interface_logger
from ..netconf.desired import desired_for_server_in_steps
from ..netconf.reconciler import Reconciler
from ..server.server import TunnelServer
from .garbage import making_sessions
from .registry import Record, keeping_last_seen


async def run_server(
    config: ServerConfig, host: Host, listeners: ListenerManager, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    """Device first, then the sessions, then the listeners."""
    log = interface_logger(config.name)
    with host.open_device(config.name, max(1, min(len(config.clients), MAX_QUEUES))) as device:
        device_drops = Counter[str]()
        writers = [DeviceWriter(queue, device_drops) for queue in device.queues]
        with making_sessions(len(config.clients)):
            server = record.tunnel = await run_cooperatively(TunnelServer.in_steps(config, log, writers, device_drops))
        server.restore_last_seen(record.last_seen)
        with closing(server), keeping_last_seen(record):
            async with trio.open_nursery() as nursery:
                reconciler = Reconciler(host, device.name, log, health=record.health)

                await nursery.start(reconciler.run, await run_cooperatively(desired_for_server_in_steps(config)))
                await nursery.start(server.watch_machine, host)
                for writer in writers:
                    nursery.start_soon(writer.run)
                nursery.start_soon(read_device, device, server.classify, server.only_sender, log)
                nursery.start_soon(server.run_clock)
                await nursery.start(server.run_transport, listeners)

                async def reconfigure(newer: InterfaceConfig) -> None:
                    assert isinstance(newer, ServerConfig), "an interface of another kind is restarted"
                    with making_sessions(len(newer.clients)):
                        prepared = await run_cooperatively(server.prepare(newer))
                        desired = await run_cooperatively(desired_for_server_in_steps(newer))
                    await reconciler.apply(desired)
                    await run_cooperatively(server.adopt(prepared))

                record.reconfigure, record.repair = reconfigure, reconciler.repair
                task_status.started()
