"""The real `Host`: this machine's kernel."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final

from ..log import interface_logger
from .interfaces import Change, InterfaceChange, Network, OwnDevice, OwnedName
from .ipv6 import has_ipv6
from .items import RouteKey
from .ownership import own_name
from .process.descriptors import share_of_limit
from .process.privileges import raise_fd_limit, require_tun_privileges
from .tun import open_tun
from .tun_queues import open_tun_queues

__all__ = ["RealHost", "raise_fd_limit", "require_tun_privileges"]


# The queues of all interfaces together use at most 1/QUEUE_PART of the limit on open files. At the common limit of
# 1,024, eight servers have all of their 16 queues. At 32 there are four queues, and room for the rest of the program.
QUEUE_PART: Final = 8


class RealHost:
    """A `Host` on this machine's kernel, in the network namespace of the calling thread."""

    def __init__(self, config_file: str = "") -> None:
        """``config_file``: where our interfaces come from; reported to another process that wants one of their
        names."""
        self._config_file = config_file
        # All names that were ever opened are kept, since the kernel reports the end of an interface only after it is
        # gone.
        self._own: set[str] = set()
        self._had_ipv6: dict[str, bool] = {}  # the last answers that were known
        self._queues = 0  # of all interfaces that are open

    def has_ipv6(self, name: str) -> bool:
        if (known := has_ipv6(name)) is not None:
            self._had_ipv6[name] = known
        return self._had_ipv6.get(name, True)

    def own_name(self, name: str) -> AbstractAsyncContextManager[OwnedName]:
        return own_name(name, self._config_file)

    @contextmanager
    def open_device(
        self, name: str, queues: int = 1, mac: bytes | None = None, *, is_port: bool = False
    ) -> Iterator[OwnDevice]:
        self._own.add(name)
        count = max(min(queues, share_of_limit(sys.maxsize, QUEUE_PART, 1) - self._queues), 1)
        if count < queues:
            text = "%d instead of %d queues between the kernel and this program, because the limit of open files is low"
            interface_logger(name).info(text, count, queues)
        with (
            open_tun(name, mac=mac, is_port=is_port)
            if count == 1
            else open_tun_queues(name, count, mac, is_port=is_port) as device
        ):
            self._queues += count
            try:
                yield device
            finally:
                self._queues -= count

    def open_network(self) -> AbstractAsyncContextManager[Network]:
        # Imported at first use: pyroute2's message classes cost memory and time, see `light_pyroute2`.
        from .netlink.network import open_netlink

        return open_netlink()

    def open_changes(self) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        from .netlink.monitor import open_changes

        return open_changes(self._own)

    def open_interface(
        self, index: int, is_route: Callable[[RouteKey], bool]
    ) -> AbstractAsyncContextManager[AsyncIterator[InterfaceChange]]:
        from .netlink.monitor import open_interface

        return open_interface(index, is_route)
