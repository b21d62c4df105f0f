"""How long to wait before something that failed is started again: an interface, the admin listener."""

from __future__ import annotations

from typing import Final

RESTART_S: Final = (1.0, 30.0)  # the first pause, doubled up to the last
HEALTHY_S: Final = 60.0  # after a run of this length, the next failure gets the first pause again


class RestartPause:
    """Pauses that grow from failure to failure. They have no jitter, since they spare this machine and not a shared
    server."""

    __slots__ = ("_next_s",)

    def __init__(self) -> None:
        self._next_s = RESTART_S[0]

    def next_s(self, *, lived_s: float) -> float:
        """The pause, in seconds, after a failure of a run that had lasted ``lived_s``."""
        pause_s = RESTART_S[0] if lived_s >= HEALTHY_S else self._next_s
        self._next_s = min(2 * pause_s, RESTART_S[1])
        return pause_s
