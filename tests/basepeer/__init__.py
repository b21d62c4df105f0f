"""A strict, independent base peer in both roles, for tests of the daemon's interoperability.

Written from docs/protocol.md alone; it shares no code with `tapotun_trio` and never will: where the two
disagree, the daemon or the protocol text is wrong.

    with BaseServer([ClientSpec.of("test", "10.10.0.2")]) as server, BaseClient(server.url, "test") as client:
        client.wait_connected()
        client.send_packet(packets.udp("10.10.0.2", "10.10.0.1", b"up"))
        assert server["test"].recv().packet
    assert client.violations == server.violations == []
"""

from . import packets, vnet
from .client import BaseClient
from .http1 import Chunking
from .journal import Timers
from .routing import ClientSpec, Router
from .server import BaseServer
from .server_seat import Seat
from .wire import Conf, Frame, sha1

__all__ = [
    "BaseClient",
    "BaseServer",
    "Chunking",
    "ClientSpec",
    "Conf",
    "Frame",
    "Router",
    "Seat",
    "Timers",
    "packets",
    "sha1",
    "vnet",
]
