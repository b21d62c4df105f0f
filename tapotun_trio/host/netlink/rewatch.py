"""Keeps watching the kernel while an interface lives, across temporary failures of the host."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ...errors import HostError, shortage_of
from ...log import Log, flap_damped

RETRY_S: Final = (1.0, 60.0)  # the first pause, doubled up to the last


class Rewatch:
    """Opens a watch again after it failed.

    Attributes:
        lapsed: the watch has failed since it last worked, so a change may have been missed.
    """

    def __init__(self, log: Log, consequence: str) -> None:
        """``consequence``: what does not work while nothing is watched, for the log."""
        self._log = log
        self._consequence = consequence
        self._rate_limited = flap_damped()
        self._logged: str | None = None
        self._pause_s = RETRY_S[0]
        self.lapsed = False

    def worked(self) -> None:
        """Call when the watch is open."""
        self.lapsed = False
        self._logged = None
        self._pause_s = RETRY_S[0]

    async def keep(self, watch: Callable[[], Awaitable[None]]) -> None:
        """Run ``watch`` until cancelled: again after a pause whenever it raises HostError or meets a shortage."""
        while True:
            try:
                await watch()
            except Exception as exc:
                failure = exc if isinstance(exc, HostError) else shortage_of(exc, "cannot watch this machine's network")
                if failure is None:
                    raise
                self._log_failure(str(failure))
            self.lapsed = True
            await trio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    def _log_failure(self, reason: str) -> None:
        text = f"{reason}; {self._consequence}"
        if reason == self._logged:
            self._log.debug("%s", text)
        else:
            self._logged = reason
            self._rate_limited.log(self._log, logging.WARNING, trio.current_time(), text)
