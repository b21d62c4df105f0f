"""One interface: every task and resource of it lives in one nursery. Cancel the nursery, and the interface is gone.

::

    run_interface                 owns the interface's name from before the first connection until the device is gone
    ├─ run_server
    │  └─ device                  the TUN interface
    │     └─ nursery
    │        ├─ device reader     TUN -> the sender of the client that has the destination
    │        ├─ device writers    streams -> TUN, when the TUN was full; one for each queue
    │        ├─ reconciler        addresses, routes, rules: makes, watches and repairs them, undoes them at the end
    │        ├─ machine watch     this machine's addresses, from which no client may send; in a segment: its own there
    │        ├─ transport         listeners; one task for each connection
    │        └─ clock             keepalive, queue ageing, rates
    └─ run_client
       └─ nursery
          ├─ download             GET after GET, or a WebSocket
          ├─ path watch           replaces the streams when their address, their link or the route to the server changes
          └─ device               made when the server's first answer has given the address; if a later answer is that
             │                    of another kind of interface, the client and its device are replaced
             └─ nursery
                ├─ device reader, device writer, reconciler    as above
                ├─ transport guard    keeps the connections to the server out of the tunnel
                ├─ upload             PUT after PUT
                └─ clock              as above
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, closing
from functools import partial
from typing import Final

import trio

from ..config.model import ClientConfig, InterfaceConfig, ServerConfig, addressed
from ..cooperative import run_cooperatively
from ..datapath.tun_io import MAX_QUEUES, DeviceWriter, read_device
from ..host.interfaces import Host, OwnedName
from ..host.items import DesiredState, ItemsRefused, address_of, version_of
from ..http.virtual_hosts import ListenerManager
from ..log import interface_logger
from ..netconf.desired import desired_for_server_in_steps
from ..netconf.leftovers import remove_left_over_bridges, remove_left_over_routes
from ..netconf.reconciler import Reconciler
from .garbage import making_sessions
from .registry import Record, keeping_last_seen
from .restart import RestartPause

IPV4_ALONE_S: Final = 60.0  # for so long after a start IPv6 is not asked for, if it was refused at the one before


def load_modules(configs: Iterable[InterfaceConfig]) -> None:
    """Import what `run_interface` needs for these interfaces. The modules of servers and those of clients take 1 to
    2 MB, so a process loads only what its config has.

    `run_interface` loads them too, but meanwhile the packets of other interfaces wait. So a reload calls this first, in
    a thread.
    """
    for is_server in {isinstance(config, ServerConfig) for config in configs}:
        if is_server:
            from ..server import server  # noqa: F401
        else:
            from ..client import client  # noqa: F401


async def run_interface(
    config: InterfaceConfig,
    host: Host,
    listeners: ListenerManager,
    record: Record | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run one interface until cancelled. Afterwards nothing of it is left on the host.

    A server reports started when it can be reached; a client, as soon as it tries to connect.

    Args:
        record: gets the tunnel and the function that changes it while it runs; see `Record`.

    Raises:
        HostError: this machine refuses something that the interface needs. A peer's failures are handled inside.
    """
    record = record or Record(config)
    # Owned before the first connection: a client that connects takes its token over, and ends the tunnel of another
    # process that runs with it.
    async with host.own_name(config.name) as owned:
        record.note_doubt(owned.doubt)
        await remove_left_over_routes(host, interface_logger(config.name))
        await remove_left_over_bridges(host, config, interface_logger(config.name))
        if isinstance(config, ServerConfig):
            await run_server(config, host, listeners, record, task_status)
        else:
            await run_client(config, host, owned, record, task_status)


async def run_server(
    config: ServerConfig, host: Host, listeners: ListenerManager, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    """Device first, then the sessions, then the listeners."""
    from ..server.server import TunnelServer  # see `load_modules`

    log = interface_logger(config.name)
    is_tap, mac = config.device == "tap", mac_of_server(config)
    queues = max(1, min(len(config.clients), MAX_QUEUES))
    with host.open_device(config.name, queues, mac, is_port=config.bridge is not None) as device:
        record.mac = mac
        device_drops = Counter[str]()
        writers = [DeviceWriter(queue, device_drops, ethernet=is_tap) for queue in device.queues]
        with making_sessions(len(config.clients)):
            server = record.tunnel = await run_cooperatively(
                TunnelServer.in_steps(
                    config,
                    log,
                    writers,
                    device_drops,
                    mac=mac,
                    set_carrier=lambda up: device.set_carrier(up=up),
                )
            )
        server.restore_last_seen(record.last_seen)
        with closing(server), keeping_last_seen(record):
            async with trio.open_nursery() as nursery:
                reconciler = Reconciler(host, device.name, log, health=record.health)

                await nursery.start(reconciler.run, await run_cooperatively(desired_for_server_in_steps(config)))
                for writer in writers:
                    nursery.start_soon(writer.run)
                segment = server.segment
                if segment is None:
                    await nursery.start(server.watch_machine, host)
                    nursery.start_soon(read_device, device, server.classify, server.only_sender, log, server)
                else:
                    addressed = config.name if config.bridge is None else config.bridge.name
                    await nursery.start(server.watch_addressed, host, addressed)
                    read = partial(read_device, ethernet=segment.from_device)
                    nursery.start_soon(read, device, server.classify, server.only_sender, log, segment)
                    record.mac_table = segment.table_in_steps
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


def mac_of_server(config: ServerConfig) -> bytes | None:
    """The MAC address of a server's TAP interface; None: it is a TUN interface.

    The token of the first client is part of a derived one, so that copies of a machine differ.
    """
    if config.device == "tun" or config.mac is not None:
        return config.mac
    from ..host.mac import derive_mac, machine_id  # few need it

    secret = config.clients[0].token.digest.encode() if config.clients else b""
    return derive_mac(config.name, "server", secret, machine_id())


async def run_client(
    config: ClientConfig, host: Host, owned: OwnedName, record: Record, task_status: trio.TaskStatus[None]
) -> None:
    """Run a client. If the server's interface becomes one of another kind, replace the client and its device."""
    log, pause, status = interface_logger(config.name), RestartPause(), _StartedOnce(task_status)
    while True:
        began = trio.current_time()
        with keeping_last_seen(record):
            device = await _run_client_once(config, host, owned, record, status)
        record.health.set_degraded(None)  # what was missing was the old device's
        pause_s = pause.next_s(lived_s=trio.current_time() - began)
        changed = "TAP instead of TUN" if device == "tun" else "TUN instead of TAP"
        log.info("the server's interface is now %s; this one becomes the same in %.0f s", changed, pause_s)
        await trio.sleep(pause_s)
        assert isinstance(record.config, ClientConfig), "an interface of another kind is restarted"
        config = record.config  # a reload may have changed it


class _StartedOnce:
    """Passes the first `started` on."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status: trio.TaskStatus[None] | None = task_status

    def started(self) -> None:
        if self._task_status is not None:
            self._task_status.started()
            self._task_status = None


async def _run_client_once(
    config: ClientConfig, host: Host, owned: OwnedName, record: Record, status: _StartedOnce
) -> str:
    """Connection first, then the device: the server's answer has the device's address. Returns when the server's
    interface is of another kind: which one the device was."""
    from ..client.client import TunnelClient  # see `load_modules`
    from ..host.net.tls import open_tls

    log = interface_logger(config.name)
    tls = await open_tls(config.tls) if config.server.scheme == "https" else None

    # Without a device its own setting is not known. A program may switch IPv6 off whenever the device appears, such as
    # systemd-sysctl. Then the next start makes the device for IPv4 alone; unless that does not come to pass, as where
    # the server has only IPv6 for this client by now.
    ipv4_alone_until = trio.current_time() + IPV4_ALONE_S if record.ipv6_refused else -math.inf
    record.ipv6_refused = False

    def has_ipv6() -> bool:
        return trio.current_time() >= ipv4_alone_until and host.has_ipv6(addressed(config))

    client = record.tunnel = TunnelClient(
        config,
        log,
        require_free=owned.require_free,
        resolver=record.resolver,
        tls=tls,
        has_ipv6=has_ipv6,
        ipv6_outside=partial(host.has_ipv6, "all"),
    )
    client.restore_last_seen(record.last_seen)
    async with trio.open_nursery() as nursery:

        async def end_if_device_changes() -> None:
            await client.wait_device_changed()
            record.reconfigure = record.repair = record.mac = None
            nursery.cancel_scope.cancel()

        nursery.start_soon(client.run_download)
        nursery.start_soon(client.watch_path, host)
        nursery.start_soon(end_if_device_changes)
        status.started()
        desired = await client.wait_for_parameters()
        is_tap = client.device == "tap"

        with ExitStack() as stack:
            mac = _client_mac(config) if is_tap else None
            is_port = is_tap and config.bridge is not None
            device = stack.enter_context(host.open_device(config.name, mac=mac, is_port=is_port))
            record.mac = mac
            (queue,) = device.queues
            writer = DeviceWriter(queue, client.counters.drops, ethernet=is_tap)
            reconciler = Reconciler(host, device.name, log, client.guard, record.health)
            stack.enter_context(client.guard.rechecking(reconciler.recheck))
            async with trio.open_nursery() as device_nursery:
                try:
                    await device_nursery.start(reconciler.run, desired)
                except ItemsRefused as exc:
                    record.ipv6_refused = _is_ipv6_alone(exc, desired)
                    raise
                if not host.has_ipv6(addressed(config)):  # from here on, this says whether it was switched on again
                    ipv4_alone_until = -math.inf
                device_nursery.start_soon(client.guard.run)
                device_nursery.start_soon(writer.run)
                flows = client.flows
                read = partial(read_device, ethernet=flows.from_device if is_tap else None)
                device_nursery.start_soon(read, device, flows.classify, lambda: client.sender, log, flows)
                device_nursery.start_soon(client.run_upload)
                device_nursery.start_soon(client.run_clock)
                client.attach(writer, reconciler, device.set_carrier if is_tap else None)

                async def reconfigure(newer: InterfaceConfig) -> None:
                    assert isinstance(newer, ClientConfig), "an interface of another kind is restarted"
                    await client.reconfigure(newer)

                record.reconfigure, record.repair = reconfigure, reconciler.repair
    return client.device


def _is_ipv6_alone(refusal: ItemsRefused, desired: DesiredState) -> bool:
    """Whether the interface can start with its IPv4 addresses, since only IPv6 is switched off on it."""
    needed = refusal.refused.keys() - desired.pushed
    versions = {interface.version for item in desired.items if (interface := address_of(item)) is not None}
    return refusal.lacks_ipv6 and 4 in versions and all(version_of(item) == 6 for item in needed)


def _client_mac(config: ClientConfig) -> bytes:
    """The MAC address of a client's TAP interface: the config's, or one that stays the same as long as the interface's
    name, the token and the machine do."""
    if config.mac is not None:
        return config.mac
    from ..host.mac import derive_mac, machine_id  # few need it

    secret = hashlib.sha256(config.token.reveal().encode()).digest()
    return derive_mac(config.name, "client", secret, machine_id())
