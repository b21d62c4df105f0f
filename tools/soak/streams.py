"""The checked streams of a soak: one of each family."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from tests.harness import Host
from tests.integrity import CheckedUdp, Direction
from tests.netns.dual import HUB, LAPTOP

SIZE: Final = 600  # bytes of UDP payload
PORT: Final = 7000


class Streams:
    """As `CheckedUdp`, of both families: traffic flows only if it flows in both."""

    def __init__(self, client: Host, server: Host, rate: float) -> None:
        """``rate``: packets a second, of each family and each way."""
        self._families = [
            CheckedUdp(client, here, server, there, rate=rate, size=SIZE, port=PORT + number)
            for number, (here, there) in enumerate(zip(LAPTOP, HUB, strict=True))
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for udp in self._families:
            udp.__exit__(kind, error, traceback)

    def wait_for_flow(self, since_ns: int | None = None, timeout: float = 10.0) -> float:
        """The slower family's."""
        return max([udp.wait_for_flow(since_ns, timeout) for udp in self._families])

    def flows(self, since_ns: int) -> tuple[bool, ...]:
        """Each family's both directions."""
        return tuple(flows for udp in self._families for flows in udp.flows(since_ns))

    def silent_s(self) -> float:
        """How long nothing has come, where that is longest."""
        return max(udp.silent_s() for udp in self._families)

    def finish(self) -> list[Direction]:
        """The accounts of both directions of each family."""
        return [way for udp in self._families for way in udp.finish()]
