"""The real `Host`: this machine's kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager

from .interfaces import Change, Device, InterfaceChange, Network, OwnedName
from .items import RouteKey
from .ownership import own_name
from .process.privileges import raise_fd_limit, require_tun_privileges
from .tun import open_tun
from .tun_queues import open_tun_queues

__all__ = ["RealHost", "raise_fd_limit", "require_tun_privileges"]


class RealHost:
    """A `Host` on this machine's kernel, in the network namespace of the calling thread."""

    def __init__(self, config_file: str = "") -> None:
        """``config_file``: where our interfaces come from; reported to another process that wants one of their
        names."""
        self._config_file = config_file
        # All names that were ever opened are kept, since the kernel reports the end of an interface only after it is
        # gone.
        self._own: set[str] = set()

    def own_name(self, name: str) -> AbstractAsyncContextManager[OwnedName]:
        return own_name(name, self._config_file)

    def open_device(self, name: str, queues: int = 1) -> AbstractContextManager[Device]:
        self._own.add(name)
        return open_tun(name) if queues == 1 else open_tun_queues(name, queues)

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
