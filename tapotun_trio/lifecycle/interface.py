"""One interface: every task and resource of it lives in one nursery. Cancel the nursery, and the interface is gone.

::

    run_interface                 owns the interface's name from before the first connection until the device is gone
    ├─ run_server
    │  └─ device                  the TUN interface
    │     └─ nursery
    │        ├─ device reader     TUN -> the sender of the client that has the destination
    │        ├─ device writers    streams -> TUN, when the TUN was full; one for each queue
    │        ├─ reconciler        addresses, routes, rules: makes, watches and repairs them, undoes them at the end
    │        ├─ machine watch     this machine's addresses, from which no client may send
    │        ├─ transport         listeners; one task for each connection
    │        └─ clock             keepalive, queue ageing, rates
    └─ run_client
       └─ nursery
          ├─ download             GET after GET, or a WebSocket
          ├─ path watch           replaces the streams when their address, their link or the route to the server changes
          └─ device               made when the server's first answer has given the address
             └─ nursery
                ├─ device reader, device writer, reconciler    as above
                ├─ transport guard    keeps the connections to the server out of the tunnel
                ├─ upload             PUT after PUT
                └─ clock              as above
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from ..config.model import InterfaceConfig, ServerConfig
from ..host.interfaces import Host
from ..http.virtual_hosts import ListenerManager
from ..log import interface_logger
from ..netconf.leftovers import remove_left_over_routes
from .registry import Record, keeping_last_seen


def load_modules(configs: Iterable[InterfaceConfig]) -> None:
    """Import what `run_interface` needs for these interfaces. The modules of servers and those of clients take 1 to
    2 MB, so a process loads only what its config has.

    `run_interface` loads them too, but meanwhile the packets of other interfaces wait. So a reload calls this first, in
    a thread.
    """
    for is_server in {isinstance(config, ServerConfig) for config in configs}:
        if is_server:
            from . import server_interface  # noqa: F401
        else:
            from . import client_interface  # noqa: F401


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
        if isinstance(config, ServerConfig):
            from .server_interface import run_server

            await run_server(config, host, listeners, record, task_status)
        else:
            from .client_interface import run_client

            with keeping_last_seen(record):
                await run_client(config, host, owned, record, task_status)
