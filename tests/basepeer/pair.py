"""The two roles joined to each other over loopback, for the tests of the peers themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from . import packets
from .client import BaseClient
from .journal import Timers
from .routing import ClientSpec
from .server import BaseServer
from .wire import Frame

FAST: Final = Timers(retry_s=(0.02, 0.05), retry_2_s=(0.02, 0.05), reput_s=0.1, answer_s=5.0)
CLIENT: Final = ClientSpec.of("test", "10.10.0.2", pushed=["192.168.7.0/24"])


def up(number: int = 0, size: int = 8) -> Frame:
    """A numbered packet from the client."""
    return Frame(packets.udp("10.10.0.2", "10.10.0.1", number.to_bytes(4, "big") * (size // 4)))


def down(number: int = 0, size: int = 8) -> Frame:
    """A numbered packet for the client."""
    return Frame(packets.udp("10.10.0.1", "10.10.0.2", number.to_bytes(4, "big") * (size // 4)))


def serve(**options: Any) -> BaseServer:
    """A server that keeps frames however slow the machine is."""
    return BaseServer([CLIENT], **{"max_age_s": None, "timers": FAST, **options})


def connect(server: BaseServer, token: str = "test", **options: Any) -> BaseClient:
    """A client of it, not started."""
    return BaseClient(server.url, token, **{"timers": FAST, "seed": 1, **options})


@contextmanager
def joined(
    server_options: dict[str, Any] | None = None, **client_options: Any
) -> Iterator[tuple[BaseServer, BaseClient]]:
    """Both roles, connected; neither has a complaint at the end."""
    with serve(**server_options or {}) as server, connect(server, **client_options) as client:
        client.wait_connected()
        yield server, client
    assert client.violations == []
    assert server.violations == []
    assert client.exited is None
    assert server.exited is None


def exchange(server: BaseServer, client: BaseClient, count: int = 3) -> None:
    """Frames both ways, whole and in order."""
    seat = server["test"]
    sent_up = [up(number) for number in range(count)]
    sent_down = [down(number) for number in range(count)]
    client.send(*sent_up)
    seat.send(*sent_down)
    assert [seat.recv() for _ in sent_up] == sent_up
    assert [client.recv() for _ in sent_down] == sent_down
