"""A config that is read again while the process runs: all of it, or, at any error, nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
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
from .lifecycle.registry import Registry
from .lifecycle.supervisor import Interfaces
from .log import Log, set_up_logging
from .peer.boottime import boottime, wall_time
from .status.model import ReloadStatus
from .text import one_line, shorten

RELOAD_ERROR_CHARS: Final = 2000
LINES: Final = 20  # that are logged in one go, a millisecond
READ_S: Final = 30.0  # a dead network disk or a FIFO shall not keep all later reloads waiting

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
        self, config: Config, read: Read, registry: Registry, admin: AdminManager, manager: ServiceManager, log: Log
    ) -> None:
        self._interfaces: Interfaces | None = None
        self._started = trio.Event()
        self._config = config
        self._admin = admin
        self._read = read
        self._registry = registry
        self._manager = manager
        self._log = log
        self._lock = trio.Lock()

    def start(self, interfaces: Interfaces) -> None:
        """They run. Who came before waits for that: the file may have changed since it was read."""
        self._interfaces = interfaces
        self._started.set()

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
            await self._started.wait()
            try:
                if dry_run:
                    return (await self._plan())[2]
                self._manager.reloading()
                try:
                    return await self._reload()
                finally:
                    self._manager.reloaded()
            except (ConfigError, HostError) as exc:
                raise await self._refused(_for_people(exc), dry_run=dry_run) from exc
            except Exception as exc:
                if (shortage := shortage_of(exc, "cannot reload")) is not None:
                    raise await self._refused(str(shortage), dry_run=dry_run) from exc
                self._log.exception("a bug ended the reload")
                raise await self._refused(f"a bug, which the log has: {exc!r}", dry_run=dry_run) from exc

    async def _plan(self) -> tuple[Config, list[Change], list[str]]:
        """What the file says, what of its interfaces differs, and all that differs, for people."""
        running, before = [record.config for record in self._registry], self._config

        def look() -> tuple[Config, list[Change], list[str]]:
            config = self._read()
            found = changes(running, config.interfaces)
            lines = [line for change in found for line in change.lines]
            return config, found, lines + process_lines(before, config)

        # In a thread: to read and check a hundred thousand routes takes a second. The event loop gets the interpreter
        # soon whenever it wants it; held from here, so that a thread that is given up holds nothing.
        with switching_often(), collecting_later(), trio.move_on_after(READ_S) as deadline:
            with passing_shortages("the config cannot be read"):
                plan = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        if deadline.cancelled_caught:
            raise ConfigError(f"the config could not be read within {READ_S:.0f} s; is it on a disk that answers?")
        await self._say(logging.WARNING, plan[0].warnings)
        return plan

    async def _say(self, level: int, lines: Iterable[str]) -> None:
        """Log them; there may be one for each of thousands of clients, and to write it takes a while."""
        for number, line in enumerate(lines, 1):
            self._log.log(level, "%s", line)
            if number % LINES == 0:
                await trio.lowlevel.checkpoint()

    async def _reload(self) -> list[str]:
        assert self._interfaces is not None
        config, found, lines = await self._plan()
        await self._say(logging.INFO, (f"reload: {line}" for line in lines))
        await self._admin.prepare(config.admin)
        with self._admin.changing(config.admin):
            await self._interfaces.change(found)
        self._registry.sort(it.name for it in config.interfaces)
        if config.log != self._config.log:
            set_up_logging(config.log.level, config.log.format)
        self._config = config
        self._log.info("reload: done" if lines else "reload: the config has not changed")
        self._note(lines, None)
        return lines

    async def _refused(self, text: str, *, dry_run: bool) -> RefusedError:
        """``text``: a line for each reason. A dry run leaves no trace but its answer."""
        lines = text.splitlines()
        # Each is longer than a character, so these are more than can be shown.
        reason = shorten("; ".join(map(one_line, lines[:RELOAD_ERROR_CHARS])), RELOAD_ERROR_CHARS)
        if dry_run:
            return RefusedError(f"a reload would be refused: {reason}")
        await self._say(logging.ERROR, lines)
        self._log.error("reload: nothing was changed, the old config runs on")
        self._note([], reason)
        return RefusedError(f"nothing was changed, the old config runs on: {reason}")

    def _note(self, lines: list[str], error: str | None) -> None:
        self._registry.last_reload = ReloadStatus(at=wall_time(boottime()), changes=lines, error=error)


def _for_people(exc: ConfigError | HostError) -> str:
    """What was wrong, a line each, and, where it may help, that rights which were given up come back with a restart."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    if isinstance(exc, ConfigError) or cause is None:
        return str(exc)
    return f"{exc}; this process gave up at its start what its config did not need then: restart it"
