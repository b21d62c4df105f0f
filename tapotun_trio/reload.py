"""A config that is read again while the process runs: all of it, or, at any error, nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

import trio

from .config.changes import changes
from .config.model import InterfaceConfig
from .control.protocol import ReloadArguments, ReloadResult
from .control.server import Command
from .errors import ConfigError, HostError, TapotunError
from .host.notify import ServiceManager
from .log import Log
from .status.model import ReloadStatus
from .text import one_line, shorten
from .tunnel.clocks import date_of, moment
from .tunnel.registry import Registry
from .tunnel.supervisor import Interfaces

ERROR_CHARS: Final = 2000

Read: TypeAlias = Callable[[], Sequence[InterfaceConfig]]


class RefusedError(TapotunError):
    """The new config was not taken, and the old one runs on. The text is for the one who asked."""


class Reloader:
    """Reads, compares, says what it will do, and does it. One at a time.

    Args:
        read: the config, checked. Blocking; raises ConfigError.
    """

    def __init__(self, read: Read, registry: Registry, manager: ServiceManager, log: Log) -> None:
        self.interfaces: Interfaces | None = None  # as soon as they run
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
        configs = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        found = changes([record.config for record in self._registry], configs)
        lines = [line for change in found for line in change.lines]
        if dry_run:
            return lines
        self._manager.reloading()
        try:
            for line in lines:
                self._log.info("reload: %s", line)
            await self.interfaces.change(found)
            self._registry.sort(config.name for config in configs)
        finally:
            self._manager.ready()
        self._log.info("reload: done" if lines else "reload: the config has not changed")
        self._note(lines, None)
        return lines

    def _note(self, lines: list[str], error: str | None) -> None:
        self._registry.last_reload = ReloadStatus(at=date_of(moment()), changes=lines, error=error)
