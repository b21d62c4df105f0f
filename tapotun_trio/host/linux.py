"""This machine, as `app` hands it to the interfaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager

from .interfaces import Change, Device, Network, OwnedName
from .ownership import own_name
from .process.privileges import raise_fd_limit, require_tun_privileges
from .tun import open_tun
from .tun_queues import open_tun_queues

__all__ = ["RealHost", "raise_fd_limit", "require_tun_privileges"]


class RealHost:
    """The `Host` that is the kernel below us, in the network namespace of the thread that calls."""

    def __init__(self, config_file: str = "") -> None:
        """``config_file``: where our interfaces come from, for a second start that wants to have one of them."""
        self._config_file = config_file
        # Every name ever opened: the kernel tells of an interface's end when it is gone already.
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

    def open_link(self, name: str) -> AbstractAsyncContextManager[AsyncIterator[bool]]:
        from .netlink.monitor import open_link

        return open_link(name)
