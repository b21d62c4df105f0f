"""The log lines of a server about one client. Each kind of line has its own rate limit."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from ..log import FLAPPING_S, RateLimitedLog, client_logger, flap_damped

# After this many early exits within this time, a warning names the option `peers`. A client that exits because of
# `peers` comes back that often, because a service manager restarts it within seconds.
EARLY_EXITS: Final = 3
EARLY_EXITS_WITHIN_S: Final = 90.0


class ClientLog:
    """The log lines of one session.

    Attributes:
        plain: the log without a rate limit. Its lines begin with the names of the interface and the client.
    """

    __slots__ = ("_early_exits", "_limits", "plain")

    def __init__(self, interface: str, client: str) -> None:
        self.plain = client_logger(interface, client)
        # Each limit is created with its first line. There may be thousands of clients, most of which never log one.
        self._limits: dict[str, RateLimitedLog] = {}
        self._early_exits: deque[float] | None = None  # when a base client left right after the answer to its download

    def connected(self, text: str) -> None:
        self._log("connected", logging.INFO, text, flap_damped)

    def stream_ended(self, level: int, text: str) -> None:
        self._log("stream ended", level, text, flap_damped)

    def refused(self, text: str) -> None:
        self._log("refused", logging.WARNING, text)

    def taken_over(self, text: str) -> None:
        self._log("taken over", logging.WARNING, text)

    def goodbye(self, text: str) -> None:
        self._log("goodbye", logging.INFO, text)

    def left_early(self, peers: int) -> None:
        """A base client left right after the answer to its download. If that repeats, warn about `peers`."""
        now = trio.current_time()
        if self._early_exits is None:
            self._early_exits = deque(maxlen=EARLY_EXITS)
        self._early_exits.append(now)
        if len(self._early_exits) == EARLY_EXITS and now - self._early_exits[0] <= EARLY_EXITS_WITHIN_S:
            text = (
                f"the client left within a second of its download's answer, {EARLY_EXITS} times: a deployed client"
                f' exits if x-tun-conf is not of its generation; this interface has "peers": {peers}, try {3 - peers}'
            )
            self._log("left early", logging.WARNING, text, lambda: RateLimitedLog(FLAPPING_S))

    def _log(self, kind: str, level: int, text: str, limit: Callable[[], RateLimitedLog] = RateLimitedLog) -> None:
        limited = self._limits.get(kind)
        if limited is None:
            limited = self._limits[kind] = limit()
        limited.log(self.plain, level, trio.current_time(), text)
