"""Starts, replaces and stops the admin listener of the process, as the config asks for.

Its modules are imported only if the config has an admin listener: most processes never need them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import trio

from ..config.model import AdminConfig, ListenAddress, TcpAddress
from ..control.handlers import Process
from ..errors import HostError, TapotunError
from ..host.net.listen import AbsentError, Listener, listen
from ..lifecycle.registry import Registry
from ..log import add_handler, process_logger, remove_handler

if TYPE_CHECKING:
    from .events import Events
    from .history import History
    from .server import AdminServer

_WILDCARDS = ("0.0.0.0", "::")


class Reload(Protocol):
    """Reloads the config. Returns one line for each change. Raises TapotunError: nothing was changed."""

    async def __call__(self, *, dry_run: bool = False) -> list[str]: ...


class AdminManager:
    """The admin listener, if there is one. Its tasks run in the nursery of the process."""

    def __init__(self, process: Process, registry: Registry, nursery: trio.Nursery) -> None:
        self.reload: Reload | None = None  # set once the Reloader exists
        self._process = process
        self._registry = registry
        self._nursery = nursery
        self._log = process_logger()
        self._config: AdminConfig | None = None
        self._server: AdminServer | None = None
        self._events: Events | None = None
        self._history: History | None = None
        self._sampling = trio.CancelScope()

    async def prepare(self, after: AdminConfig | None) -> None:
        """Import the modules that `changing` needs, in a thread: it takes 0.1 s, during which packets would wait."""
        if after is not None and self._server is None:
            await trio.to_thread.run_sync(load_modules)

    @contextmanager
    def changing(self, after: AdminConfig | None) -> Iterator[None]:
        """Apply the config at the end of the block. If the block raises, everything stays as it was.

        The new listener listens before the old one stops, unless their addresses conflict. Raises HostError before the
        block if the new one cannot listen.
        """
        before = self._config
        if after == before:
            yield
            return
        if before is not None and after is not None and _addresses_conflict(before.listen, after.listen):
            self._stop()
        try:
            server = None if after is None else self._server_or_none(after)
            try:
                yield
            except BaseException:
                if server is not None and (self._server is None or server.listener is not self._server.listener):
                    server.listener.close()
                raise
        except BaseException:
            if before is None:
                self._forget_past()
            elif self._server is None:
                self._start(before, self._server_for(before))
            raise
        if self._server is not None:
            self._stop(keep=None if server is None else server.listener)
        if after is not None and server is not None:
            self._start(after, server)
        else:
            self._forget_past()

    def _server_or_none(self, config: AdminConfig) -> AdminServer | None:
        """As `_server_for`. But if the process is starting and this machine does not have the address, this logs a
        warning and returns None, and the tunnels start without the admin listener."""
        try:
            return self._server_for(config)
        except AbsentError as exc:
            if self._config is not None:
                raise
            self._log.warning("%s; continuing without it until the next reload", exc)
            return None

    def _server_for(self, config: AdminConfig) -> AdminServer:
        """A server that listens and does not accept yet. It reuses the present listener if the address is the same.

        Raises HostError.
        """
        from .access import Access
        from .api import AdminApi
        from .events import Events
        from .history import History, keep_history
        from .pages import read_pages
        from .server import AdminServer

        events = self._events
        if events is None:
            events = self._events = Events()
            add_handler(events)
        history = self._history
        if history is None:
            history = self._history = History()
            self._sampling = trio.CancelScope()
            self._nursery.start_soon(self._sample, partial(keep_history, history, self._registry), self._sampling)
        pages, access = read_pages(), Access(config.token, config.read_token)
        return AdminServer(
            self._listener_for(config.listen),
            lambda on_authenticated: AdminApi(
                access, pages, events, history, self._process, self._registry, self._reload_to_its_end, on_authenticated
            ),
            self._log,
        )

    def _listener_for(self, endpoint: ListenAddress) -> Listener:
        server, now = self._server, self._config
        if server is not None and now is not None and now.listen.key == endpoint.key:
            return server.listener
        try:
            found = listen(endpoint)
        except HostError as exc:
            raise type(exc)(f"admin: {exc}") from exc
        assert found is not None, "this endpoint is not optional"
        return found

    def _start(self, config: AdminConfig, server: AdminServer) -> None:
        self._config, self._server = config, server
        self._nursery.start_soon(self._run, server)
        name = server.listener.name
        waits = server.listener.waits
        soon = ", as soon as this machine has that address" if waits else ""
        self._log.info("admin: listening on %s%s%s", name, soon, "" if config.has_token else ", without a token")
        if waits and not (isinstance(config.listen, TcpAddress) and config.listen.early):
            self._log.warning(
                "admin: %s: this machine does not have that address yet, and nobody can connect before it does; "
                "if it never will, correct admin.listen",
                name,
            )

    def _stop(self, *, keep: Listener | None = None) -> None:
        """Stop the present server. ``keep``: the listener that its successor uses."""
        server, self._server, self._config = self._server, None, None
        assert server is not None
        server.retire()
        if server.listener is not keep:
            server.listener.close()

    def _forget_past(self) -> None:
        """Discard what was kept for the admin listener, because it has ended."""
        self._history = None
        self._sampling.cancel()
        if self._events is not None:
            remove_handler(self._events)
            self._events = None

    @staticmethod
    async def _sample(keep: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        with scope:
            await keep()

    async def _run(self, server: AdminServer) -> None:
        try:
            await server.run()
        finally:
            if self._server is server:  # the process ends
                server.listener.close()

    async def _reload_to_its_end(self, dry_run: bool) -> list[str]:
        """As `reload`, in a task of the process: the reload may close the connection that asked for it."""
        done = trio.Event()
        changes: list[str] = []
        failures: list[TapotunError] = []

        async def run() -> None:
            try:
                if self.reload is None:
                    raise HostError("the interfaces are still starting; try again")
                changes.extend(await self.reload(dry_run=dry_run))
            except TapotunError as exc:
                failures.append(exc)
            except Exception:  # noqa: BLE001 - reported to the client
                self._log.exception("internal error during a reload")
                failures.append(HostError("internal error; the log has its traceback"))
            finally:
                done.set()

        self._nursery.start_soon(run)
        await done.wait()
        if failures:
            raise failures[0]
        return changes


def load_modules() -> None:
    """Import what `_server_for` needs. Blocking."""
    for name in ("access", "events", "history", "server", "api"):
        import_module(f"{__package__}.{name}")
    from .pages import read_pages

    read_pages()  # this imports more modules


def _addresses_conflict(old: ListenAddress, new: ListenAddress) -> bool:
    """Whether different addresses cannot be listened on at the same time."""
    if not isinstance(old, TcpAddress) or not isinstance(new, TcpAddress) or old.address == new.address:
        return False
    same_family = (":" in old.address) == (":" in new.address)
    return same_family and old.port == new.port and (old.address in _WILDCARDS or new.address in _WILDCARDS)
