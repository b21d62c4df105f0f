"""Reads the config again while the process runs, and applies all of it, or nothing if there is any error."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeAlias

import trio

from .admin.manager import AdminManager
from .config.diff import Change, changes, process_lines
from .config.model import Config
from .control.protocol import ReloadArguments, ReloadResult
from .control.server import Command
from .errors import ConfigError, HostError, TapotunError, passing_shortages, shortage_of
from .host.process.interpreter import collecting_later, switching_often
from .host.process.sd_notify import ServiceManager
from .lifecycle.interface import load_modules
from .lifecycle.registry import Registry
from .lifecycle.supervisor import Interfaces
from .log import Log, set_up_logging
from .peer.boottime import boottime, wall_time
from .status.model import ReloadStatus
from .text import one_line, shorten

RELOAD_ERROR_CHARS: Final = 2000
LINES: Final = 20  # logged in one step, which takes a millisecond
READ_S: Final = 30.0  # so that a dead network disk does not block all later reloads
# Threads that read the config. A thread that waits for a dead disk cannot be cancelled, so a second thread may read
# meanwhile. There are no more, because each keeps its memory. They have a limit of their own, so that trio's threads
# stay free for other work.
READERS: Final = 2

Read: TypeAlias = Callable[[], Config]


class RefusedError(TapotunError):
    """The new config was refused, and the old one stays in use. The text is for the person who asked."""


class Reloader:
    """Reads the config, compares it with the running one, logs the changes and makes them. One reload at a time.

    Args:
        config: the running config.
        read: returns the new config, checked. Blocking; raises ConfigError.
        admin: the admin listener, if the config has one.

    Attributes:
        on_reloaded: called with each new config once it is in use.
    """

    def __init__(
        self, config: Config, read: Read, registry: Registry, admin: AdminManager, manager: ServiceManager, log: Log
    ) -> None:
        self.on_reloaded: Callable[[Config], None] = lambda _: None
        self._interfaces: Interfaces | None = None
        self._started = trio.Event()
        self._config = config
        self._admin = admin
        self._read = read
        self._registry = registry
        self._manager = manager
        self._log = log
        self._lock = trio.Lock()
        self._readers = trio.CapacityLimiter(READERS)  # an abandoned thread keeps its place until it ends

    def start(self, interfaces: Interfaces) -> None:
        """Allow reloads, because the interfaces run now. A reload that was requested before has waited for this; it
        reads the file again, since the file may have changed since the start."""
        self._interfaces = interfaces
        self._started.set()

    def commands(self) -> dict[str, Command]:
        """The command for the control socket."""

        async def run(arguments: ReloadArguments) -> ReloadResult:
            return ReloadResult(await self.reload(dry_run=arguments.dry_run))

        return {"reload": Command(ReloadArguments, run, waits=True)}  # it waits for earlier reloads and for a slow disk

    async def reload_for_a_signal(self) -> None:
        """As `reload`, with the outcome in the log. Signals while a reload waits for its turn are merged."""
        if self._lock.statistics().tasks_waiting:
            return
        with suppress(RefusedError):  # logged, and in the status
            await self.reload()

    async def reload(self, *, dry_run: bool = False) -> list[str]:
        """Apply the present content of the config file. Returns one line for each change. Raises RefusedError.

        When it is cancelled, some changes may be made and others not: only the end of the process cancels it.
        """
        async with self._lock:
            await self._started.wait()
            try:
                if dry_run:
                    return (await self._compare())[2]
                self._manager.reloading()
                try:
                    return await self._reload()
                finally:
                    self._manager.reloaded()
            except (ConfigError, HostError) as exc:
                raise await self._refused(_explain(exc), dry_run=dry_run) from exc
            except Exception as exc:
                if (shortage := shortage_of(exc, "cannot reload")) is not None:
                    raise await self._refused(str(shortage), dry_run=dry_run) from exc
                self._log.exception("internal error during the reload")
                raise await self._refused(
                    f"internal error (the log has its traceback): {exc!r}", dry_run=dry_run
                ) from exc

    async def _compare(self) -> tuple[Config, list[Change], list[str]]:
        """The config in the file, the changes to interfaces, and one line for each difference. Raises ConfigError."""
        running, before = [record.config for record in self._registry], self._config

        def read_and_compare() -> tuple[Config, list[Change], list[str]]:
            config = self._read()
            interface_changes = changes(running, config.interfaces)
            lines = [line for change in interface_changes for line in change.lines]
            return config, interface_changes, lines + process_lines(before, config)

        stuck = self._readers.borrowed_tokens
        if stuck >= READERS:
            raise ConfigError(
                f"{stuck} earlier reloads still wait for the config's disk; reload when it answers again, or restart"
            )
        # This runs in a thread, since reading and checking a hundred thousand routes takes a second. `switching_often`
        # keeps the event loop responsive. It is held here and not in the thread, so that an abandoned thread holds
        # nothing.
        with switching_often(), collecting_later(), trio.move_on_after(READ_S) as deadline:
            with passing_shortages("the config cannot be read"):
                found = await trio.to_thread.run_sync(read_and_compare, abandon_on_cancel=True, limiter=self._readers)
        if deadline.cancelled_caught:
            raise ConfigError(f"the config could not be read within {READ_S:.0f} s; is it on a disk that answers?")
        await self._log_lines(logging.WARNING, found[0].warnings)
        return found

    async def _log_lines(self, level: int, lines: Iterable[str]) -> None:
        """Log the lines, with pauses for other tasks: thousands of clients may have a line each."""
        for number, line in enumerate(lines, 1):
            self._log.log(level, "%s", line)
            if number % LINES == 0:
                await trio.lowlevel.checkpoint()

    async def _reload(self) -> list[str]:
        assert self._interfaces is not None
        config, interface_changes, lines = await self._compare()
        await self._log_lines(logging.INFO, (f"reload: {line}" for line in lines))
        await self._admin.prepare(config.admin)
        await trio.to_thread.run_sync(load_modules, config.interfaces)  # packets would wait for it
        with self._admin.changing(config.admin):
            await self._interfaces.change(interface_changes)
        # After a reload the operator expects the kernel to match the config, even where the config has not changed.
        repaired = await self._interfaces.repair()
        await self._log_lines(logging.INFO, (f"reload: {line}" for line in repaired))
        lines = lines + repaired
        self._registry.sort(interface.name for interface in config.interfaces)
        if config.log != self._config.log:
            set_up_logging(config.log.level, config.log.format)
        self._config = replace(config, user=self._config.user)  # the user cannot change while the process runs
        self.on_reloaded(self._config)
        self._log.info("reload: done" if lines else "reload: the config has not changed")
        self._note(lines, None)
        return lines

    async def _refused(self, text: str, *, dry_run: bool) -> RefusedError:
        """The error for a refused reload, after it was logged and put into the status. A dry run is neither logged nor
        put into the status.

        ``text``: a line for each reason.
        """
        lines = text.splitlines()
        # Each line has at least one character, so no more lines than this can fit.
        reason = shorten("; ".join(map(one_line, lines[:RELOAD_ERROR_CHARS])), RELOAD_ERROR_CHARS)
        if dry_run:
            return RefusedError(f"a reload would be refused: {reason}")
        await self._log_lines(logging.ERROR, lines)
        self._log.error("reload: nothing was changed, the old config stays in use")
        self._note([], reason)
        return RefusedError(f"nothing was changed, the old config stays in use: {reason}")

    def _note(self, lines: list[str], error: str | None) -> None:
        self._registry.last_reload = ReloadStatus(at=wall_time(boottime()), changes=lines, error=error)


def _explain(exc: ConfigError | HostError) -> str:
    """The error, one line for each finding. It suggests a restart where a dropped capability may be the cause."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    if isinstance(exc, ConfigError) or cause is None:
        return str(exc)
    if os.geteuid() != 0 and cause.filename is not None:  # file access depends on this user alone
        return str(exc)
    return f"{exc}; restart this process: at its start it dropped the capabilities that it did not need"
