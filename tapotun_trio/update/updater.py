"""A daemon's task that looks for new versions, and installs them if the config wants that.

Everything that is large is imported when it is needed, because most processes do not look for updates.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import trio
from msgspec.structs import replace

from ..config.model import UpdateConfig
from ..errors import HostError, leaves, shortage_of
from ..log import Log
from ..status.model import UpdateStatus
from ..text import one_line, shorten
from .installed import Installation, Pyz, launcher_command, launcher_warning
from .outcome import Found, Outcome
from .trial import refused_versions, require_readable_refusals

RETRY_S: Final = 300.0  # after the first failure; doubled after each further one, up to the time between two checks
_TEXT_CHARS: Final = 500

Check: TypeAlias = Callable[..., Awaitable[Outcome]]


class Updater:
    """Checks, downloads and installs as `config.model.UpdateConfig` says. `configure` it, then `run` it.

    Args:
        installation: how this program was installed.
        version: of this process.
        config_file: the config, with which a new version has to work.
        state: see `state.state_directory`.
        changes_user: whether root has started this process, which then became another user.
        check: `check.check`; tests replace it.

    Attributes:
        status: what is known of new versions; None: the config does not want to know.
        ends_process: whether the process ends because a version was installed. Its owner sets this.
    """

    def __init__(
        self,
        installation: Installation,
        version: str,
        config_file: str,
        state: Path,
        log: Log,
        *,
        changes_user: bool = False,
        check: Check | None = None,
    ) -> None:
        self.installation = installation
        self._version = version
        self._config_file = config_file
        self._command = installation.command(config_file)
        self._state = state
        self._kept = str(state / "tapotun.pyz")
        self._log = log
        self._changes_user = changes_user
        self._check = check
        self._config: UpdateConfig | None = None
        self._changed = trio.Event()
        self._obstacle: str | None = None
        self.status: UpdateStatus | None = None
        self.ends_process = False
        self._installed: str | None = None
        self._fetched = False  # whether the last check has fetched a version
        self._told: dict[str, str] = {}  # the last line of each kind in the log

    def configure(self, config: UpdateConfig | None) -> None:
        """Use this config from now on; None: look for nothing. If it is a new one, the time to the next check starts
        again."""
        if config == self._config:
            return
        self._config = config
        self._told.clear()
        pyz = self.installation.pyz
        self._obstacle = None if config is None else self._why_only_told(config)
        if config is None:
            self.status = None
        else:
            self.status = UpdateStatus(
                mode=config.mode,
                channel=config.channel,
                installation=self.installation.kind,
                obstacle=self._obstacle,
                refused=self._refused(),
            )
            if self._obstacle is not None:
                self._log.warning("update: new versions are only reported: %s", self._obstacle)
            elif config.mode == "apply" and pyz is not None and (warning := launcher_warning(pyz)) is not None:
                self._tell("launcher", warning)
        self._changed.set()

    async def run(self) -> str:
        """Look for new versions until one was installed. Returns its version: the process has to end, and to be
        started again. What fails is logged, and tried again."""
        while self._installed is None:
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_after_change, nursery.cancel_scope)
                if self._config is not None:
                    await self._check_repeatedly(self._config)
                    nursery.cancel_scope.cancel()
        return self._installed

    async def _cancel_after_change(self, scope: trio.CancelScope) -> None:
        await self._changed.wait()
        scope.cancel()

    async def _check_repeatedly(self, config: UpdateConfig) -> None:
        """Returns when a version was installed."""
        failures = 0
        while True:
            # Machines that were started together do not check together, nor do they after a failure of the repository.
            await trio.sleep(random.uniform(0, config.spread_s))
            # What fails after a version was fetched waits for the next check, which fetches it again.
            while not await self._try(config) and not self._fetched:
                failures += 1
                pause_s = min(RETRY_S * 2 ** min(failures - 1, 20), config.every_s)
                await trio.sleep(pause_s * random.uniform(0.5, 1))
            failures = 0
            if self._installed is not None:
                return
            await trio.sleep(config.every_s)

    async def _try(self, config: UpdateConfig) -> bool:
        """One check and what follows of it. Returns whether it succeeded; a failure is logged and in the status."""
        failure: str | None = None
        bug: BaseException | None = None
        self._fetched = False
        try:
            await self._check_once(config)
        except* HostError as group:
            failure = str(next(leaves(group)))
        except* Exception as group:  # noqa: BLE001 - a bug ends this check, and not the daemon
            found = next(leaves(group))
            shortage = shortage_of(found, "cannot look for updates")
            failure = f"internal error: {found!r}" if shortage is None else str(shortage)
            bug = found if shortage is None else None
        text = None if failure is None else one_line(shorten(failure, _TEXT_CHARS))
        self._change_status(error=text)
        if text is None:
            self._told.pop("error", None)
        elif bug is not None:
            self._log.error("update: internal error", exc_info=bug)
        else:
            self._tell("error", text)
        return text is None

    async def _check_once(self, config: UpdateConfig) -> None:
        outcome = await self._ask(config, download=False)
        self._change_status(
            checked_at=datetime.now(UTC).replace(microsecond=0),
            available=outcome.version if isinstance(outcome, Found) else None,
            command=self._command if isinstance(outcome, Found) else None,
        )
        if not isinstance(outcome, Found):
            return
        pyz = self.installation.pyz
        if pyz is None or not self._is_wanted(outcome, config, pyz):
            return
        if await (self._adopt(outcome, pyz) if config.mode == "apply" else self._is_kept(outcome)):
            return
        outcome = await self._ask(config, download=True)
        if not isinstance(outcome, Found) or outcome.memfd is None:
            return  # the repository has changed in between; the next check finds out
        self._fetched = True
        try:
            if self._is_wanted(outcome, config, pyz):
                await self._take(outcome, outcome.memfd, config, pyz)
        finally:
            os.close(outcome.memfd)

    def _is_wanted(self, found: Found, config: UpdateConfig, pyz: Pyz) -> bool:
        """Whether this version is to be downloaded; otherwise the reason is told. Raises HostError."""
        version = one_line(found.version)
        if version in refused_versions(pyz.path):
            self._tell("found", f"version {version} is available, but did not start here, and is not installed again")
        elif config.mode == "check" or self._obstacle is not None:
            self._tell("found", f"version {version} is available: {self._command}")
        else:
            require_readable_refusals(pyz.path)
            return True
        return False

    async def _ask(self, config: UpdateConfig, *, download: bool) -> Outcome:
        from .check import check

        ask = self._check or check
        outcome = await ask(config, self._version, self._state, download=download)
        for number, warning in enumerate(outcome.warnings):
            self._tell(f"warning {number}", warning)
        return outcome

    async def _is_kept(self, found: Found) -> bool:
        """Whether this version was downloaded before, perhaps by an earlier process."""
        from .take import digest_at

        try:
            there = await trio.to_thread.run_sync(digest_at, self._kept)
        except OSError:  # it is fetched again, and replaced
            return False
        if there != found.sha256:
            return False
        self._note_kept(found)
        return True

    def _note_kept(self, found: Found) -> None:
        self._change_status(downloaded=one_line(str(self._kept)), downloaded_version=found.version)
        text = f"version {one_line(found.version)} is verified, works here, and lies in {self._kept}"
        self._tell("found", f"{text}; install it: {self._command}")

    async def _adopt(self, found: Found, pyz: Pyz) -> bool:
        """Whether another process with the same pyz has installed this version already."""
        from .take import adopt

        if not await trio.to_thread.run_sync(adopt, found, pyz, self._version):
            return False
        self._installed = found.version
        return True

    async def _take(self, found: Found, memfd: int, config: UpdateConfig, pyz: Pyz) -> None:
        """Install the version or, in mode ``download``, keep it. Raises HostError."""
        from .selfcheck import self_check
        from .take import install, store

        version = found.version
        await self_check(memfd, version, self._config_file, pyz.fd)
        if config.mode == "apply":
            # To its end, also if the process stops meanwhile: what counts is whether it is installed.
            await trio.to_thread.run_sync(install, memfd, found, pyz, self._version)
            self._installed = version
            self._log.info(
                "update: version %s is installed; %s is kept as %s.previous", version, self._version, pyz.path
            )
            return
        await trio.to_thread.run_sync(store, memfd, found, self._kept)
        self._note_kept(found)

    def _why_only_told(self, config: UpdateConfig) -> str | None:
        """Why this process cannot do what the mode says; None: it can, as far as can be seen now."""
        kind, pyz = self.installation.kind, self.installation.pyz
        if config.mode == "check":
            return None
        if pyz is None:
            return f"this program is installed as {kind}, which is updated by: {self._command}"
        if config.mode == "download":
            return None
        if pyz.launcher is None:
            text = f"{pyz.path} was not started by its launcher, so no version that does not start could be taken back"
            if (command := launcher_command(pyz)) is None:
                return f"{text}; give it a name that ends with .pyz, such as tapotun.pyz, and restart"
            return f"{text}; start {pyz.path.removesuffix('.pyz')} instead, once this has made it: {command}"
        if self._changes_user:
            return (
                'with "user" this program is started as root and must not be writable for that user; start the service '
                "as that user (User= of a systemd unit), or use the mode download"
            )
        from .confine import has_landlock
        from .take import ReplacedError, require_replaceable

        try:
            require_replaceable(pyz)
        except ReplacedError:  # perhaps by the version that the next check finds, see `_adopt`
            return None
        except HostError as exc:
            return str(exc)
        if os.geteuid() != 0 and not has_landlock():
            return (
                f"nothing keeps the process that speaks with the repository from writing to {pyz.path}, since it is of "
                "the same user, and there is no Landlock here: it takes kernel 5.13 or newer, lsm=landlock, and a "
                'container whose filter allows it; let root own the file, and use the mode "check"'
            )
        return None

    def _refused(self) -> list[str]:
        pyz = self.installation.pyz
        return [] if pyz is None else refused_versions(pyz.path)

    def _tell(self, kind: str, text: str) -> None:
        """Log a line, unless it was the last one of its kind."""
        if self._told.get(kind) != text:
            self._told[kind] = text
            level = logging.INFO if kind == "found" else logging.WARNING
            self._log.log(level, "update: %s", one_line(shorten(text, _TEXT_CHARS)))

    def _change_status(self, **changes: object) -> None:
        if self.status is not None:
            self.status = replace(self.status, **changes)
