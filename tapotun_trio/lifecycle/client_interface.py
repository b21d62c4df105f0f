"""A client, as `run_interface` runs it."""

from __future__ import annotations

from contextlib import ExitStack

import trio

from ..client.client import TunnelClient
from ..config.model import ClientConfig, InterfaceConfig
from ..datapath.tun_io import DeviceWriter, read_device
from ..host.interfaces import Host, OwnedName
from ..host.net.tls import open_tls
from ..log import interface_logger
from ..netconf.reconciler import Reconciler
from .registry import Record


async def run_client(
    config: ClientConfig, host: Host, owned: OwnedName, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    """Connection first, then the device: the server's answer has the device's address."""
    log = interface_logger(config.name)
    tls = await open_tls(config.tls) if config.server.scheme == "https" else None
    client = record.tunnel = TunnelClient(
        config, log, require_free=owned.require_free, resolver=record.resolver, tls=tls
    )
    client.restore_last_seen(record.last_seen)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run_download)
        nursery.start_soon(client.watch_path, host)
        task_status.started()
        desired = await client.wait_for_parameters()

        with ExitStack() as stack:
            device = stack.enter_context(host.open_device(config.name))
            (queue,) = device.queues
            writer = DeviceWriter(queue, client.counters.drops)
            reconciler = Reconciler(host, device.name, log, client.guard, record.health)
            stack.enter_context(client.guard.rechecking(reconciler.recheck))
            async with trio.open_nursery() as device_nursery:
                await device_nursery.start(reconciler.run, desired)
                device_nursery.start_soon(client.guard.run)
                device_nursery.start_soon(writer.run)
                device_nursery.start_soon(read_device, device, client.classify, lambda: client.sender, log)
                device_nursery.start_soon(client.run_upload)
                device_nursery.start_soon(client.run_clock)
                client.attach(writer, reconciler)

                async def reconfigure(newer: InterfaceConfig) -> None:
                    assert isinstance(newer, ClientConfig), "an interface of another kind is restarted"
                    await client.reconfigure(newer)

                record.reconfigure, record.repair = reconfigure, reconciler.repair
