"""A config that is read again while the process runs: all of it, or, at any error, nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import trio

from .admin.seat import AdminSeat
from .config.changes import changes, process_lines
from .config.model import Config
from .control.protocol import ReloadArguments, ReloadResult
from .control.server import Command
from .errors import ConfigError, HostError, TapotunError
from .host.notify import ServiceManager
from .log import Log, set_up_logging
from .status.model import ReloadStatus
from .text import one_line, shorten
from .tunnel.clocks import date_of, moment
from .tunnel.registry import Registry
from .tunnel.supervisor import Interfaces

ERROR_CHARS: Final = 2000

Read: TypeAlias = Callable[[], Config]


class RefusedError(TapotunError):
    """The new config was not taken, and the old one runs on. The text is for the one who asked."""


class Reloader:
    """Reads, compares, says what it will do, and does it. One at a time.

    Args:
        config: what runs now.
        read: the config, checked. Blocking; raises ConfigError.
        admin: the admin listener, or its absence.
    """

    def __init__(
        self, config: Config, read: Read, registry: Registry, admin: AdminSeat, manager: ServiceManager, log: Log
    ) -> None:
        self.interfaces: Interfaces | None = None  # as soon as they run
        self._config = config
        self._admin = admin
        self._read = read
        self._registry = registry
        self._manager = manager
        self._log = log
        self._lock = trio.Lock()

    def commands(self) -> dict[str, Command]:
        """For the control socket."""

        async def run(arguments: ReloadArguments) -> ReloadResult:
            return ReloadResult(await self.reload(dry_run=arguments.dry_run))

        return {"reload": Command(ReloadArguments, run)}

    async def reload_for_a_signal(self) -> None:
        """As `reload`; whoever sent it looks into the log. One that waits for its turn stands for those that come."""
        if self._lock.statistics().tasks_waiting:
            return
        with suppress(RefusedError):  # logged, and in the status
            await self.reload()

    async def reload(self, *, dry_run: bool = False) -> list[str]:
        """Have the config's present content run. Returns what was changed, a line each. Raises RefusedError.

        Cancelled, a part of it may be done: the process ends then.
        """
        async with self._lock:
            try:
                return await self._reload(dry_run=dry_run)
            except (ConfigError, HostError) as exc:
                text = shorten("; ".join(map(one_line, str(exc).splitlines())), ERROR_CHARS)
                for line in str(exc).splitlines():
                    self._log.error("%s", line)
                self._log.error("reload: nothing was changed, the old config runs on")
                self._note([], text)
                raise RefusedError(f"nothing was changed, the old config runs on: {text}") from exc

    async def _reload(self, *, dry_run: bool) -> list[str]:
        if self.interfaces is None:
            raise HostError("the interfaces are still starting; try again")
        # In a thread: to read and check a hundred thousand routes takes a second.
        config = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        for warning in config.warnings:
            self._log.warning("%s", warning)
        found = changes([record.config for record in self._registry], config.interfaces)
        lines = [line for change in found for line in change.lines] + process_lines(self._config, config)
        if dry_run:
            return lines
        self._manager.reloading()
        try:
            for line in lines:
                self._log.info("reload: %s", line)
            with self._admin.changing(config.admin):
                await self.interfaces.change(found)
            self._registry.sort(it.name for it in config.interfaces)
            if config.log != self._config.log:
                set_up_logging(config.log.level, config.log.format)
            self._config = config
        finally:
            self._manager.ready()
        self._log.info("reload: done" if lines else "reload: the config has not changed")
        self._note(lines, None)
        return lines

    def _note(self, lines: list[str], error: str | None) -> None:
        self._registry.last_reload = ReloadStatus(at=date_of(moment()), changes=lines, error=error)
