"""The carrier of a client's TAP interface follows the session: a bridge or a bond sees whether the tunnel works."""

from __future__ import annotations

from typing import Final, Protocol

# A download that breaks is back sooner in most cases. Without a carrier a bridge that speaks STP would then block its
# port for half a minute.
LOST_S: Final = 3.0


class SetCarrier(Protocol):
    """`host.interfaces.OwnDevice.set_carrier`."""

    def __call__(self, *, up: bool) -> None: ...


class Carrier:
    """Sets the carrier: at once when a session begins, and LOST_S after the last download has ended. Each method raises
    HostError if the interface is gone."""

    __slots__ = ("_lost_at", "_set", "_up")

    def __init__(self) -> None:
        self._set: SetCarrier | None = None
        self._up = False
        self._lost_at: float | None = None  # None: there is a download, or no carrier

    def attach(self, set_carrier: SetCarrier | None) -> None:
        """The interface is there, without a carrier. None: it is no TAP interface, and always has one."""
        self._set = set_carrier

    def session_began(self) -> None:
        """A download begins."""
        self._lost_at = None
        self._change(up=True)

    def tick(self, now: float, *, connected: bool) -> None:
        """Call it about once a second. ``connected``: there is a download."""
        if connected or not self._up:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at >= LOST_S:
            self._change(up=False)

    def _change(self, *, up: bool) -> None:
        if self._set is not None and up != self._up:
            self._set(up=up)
            self._up = up
