"""Which congestion control a stream has where the host prefers BBR.

BBR leaves its queue short by itself, but it stops for 200 ms, 10 s after it began and every 10 s from then on, to
measure the round trip. For a tunnel that is every packet's pause, and longer than our outbox keeps any. And it paces:
on a short path its timers cost more than anything else that could be saved there, in time and in CPU. What people
choose it for are paths that lose packets, where cubic is slow, the more so the longer they are. So:

- A stream that is *paced* has cubic (measured at 20 Mbit/s: 15.3 Mbit/s and pings up to 116 ms late with BBR, 18.0 and
  23 with cubic).
- So has any other on a short path (docs/performance-notes.md#bbr-on-a-short-path).
- Unless the path loses packets that no queue of ours explains: then it has BBR for good.
- On any other stream BBR begins anew before its pause is due. It then starts as a new stream does, but with the window
  it had, and probes for more only when there is more to send. Then the stream is paced, which is why this is not done
  there: on a full link each beginning costs what it overshoots, and others their share (measured, beside a cubic flow:
  14 % sent twice, and 13.0 of 17.5 Mbit/s).

No clock of its own: times are seconds on whatever monotonic clock the caller reads.
"""

from __future__ import annotations

from typing import Final, Protocol

from ..host.interfaces import PathState
from ..host.net.sockets import BBR, CUBIC, RENO

RENEW_S: Final = 4.0
NEAR_S: Final = 0.005  # the round trip of a short path
CALM_AFTER_S: Final = 0.5
# A path is lossy that is so twice running. Each time so many segments are judged, or fewer, if that is plain before.
LOSS_SEGMENTS: Final = 2000
LOSSY: Final = 0.002  # of these
LOSS_S: Final = 0.5  # in between, and at first: BBR's own losses, and what is lost together but sent again one by one


class CongestionSocket(Protocol):
    """Where the choice is made."""

    @property
    def congestion_control(self) -> str | None: ...

    @property
    def preferred_congestion_control(self) -> str | None: ...

    def try_congestion_control(self, name: str) -> None: ...

    def path(self) -> PathState | None: ...


class Congestion:
    """The choice for one stream.

    Args:
        connection: of the stream, owned by others. Its handshake has measured the path.
        now: when it was opened.
    """

    __slots__ = (
        "_began_at",
        "_calmed",
        "_connection",
        "_judged_at",
        "_lossy",
        "_preferred",
        "_resent",
        "_sent",
        "_switches",
        "_wanted_at",
    )

    def __init__(self, connection: CongestionSocket, now: float) -> None:
        self._connection = connection
        self._preferred = self._switches = connection.preferred_congestion_control == BBR
        self._calmed = False
        self._began_at = now  # BBR did
        self._wanted_at: float | None = None  # since when CUBIC is
        self._lossy = False
        self._judged_at = now
        self._sent = self._resent = 0  # segments, since when losses are counted
        if self._preferred and connection.congestion_control == RENO:
            path = connection.path()
            self._calmed = path is not None and path.min_rtt_s < NEAR_S
            connection.try_congestion_control(CUBIC if self._calmed else BBR)

    def is_due(self, now: float) -> bool:
        """Whether `sample` would have BBR begin anew, if that is wanted."""
        return self._preferred and not self._calmed and now - self._began_at > RENEW_S

    def sample(self, path: PathState, now: float, *, paced: bool, fast: bool) -> None:
        """Choose, by how the path is. ``fast``: BBR's pause is one that nobody waits through."""
        if not self._preferred:
            return
        if not paced and path.min_rtt_s >= NEAR_S:
            self._wanted_at = None
            if self._calmed:
                self._begin(now)
            elif not fast and self.is_due(now):
                self._connection.try_congestion_control(CUBIC)  # what is chosen already does not begin anew
                self._begin(now)
        elif self._calmed:
            self._look_for_losses(path.sent_segments, path.resent_segments, now)
        elif self._switches:
            if self._wanted_at is None:
                self._wanted_at = now
            elif now - self._wanted_at > CALM_AFTER_S:
                self._connection.try_congestion_control(CUBIC)
                self._calmed = True
                self._judge(path.sent_segments, path.resent_segments, now, lossy=False)

    def _begin(self, now: float) -> None:
        self._connection.try_congestion_control(BBR)
        self._began_at, self._calmed = now, False

    def _look_for_losses(self, sent: int, resent: int, now: float) -> None:
        if now - self._judged_at <= LOSS_S:
            self._sent, self._resent = sent, resent
            return
        more, lost = sent - self._sent, resent - self._resent
        lossy = lost > LOSSY * max(more, LOSS_SEGMENTS)
        if lossy and self._lossy:
            self._switches = False
            self._begin(now)
        elif lossy or more >= LOSS_SEGMENTS:
            self._judge(sent, resent, now, lossy=lossy)

    def _judge(self, sent: int, resent: int, now: float, *, lossy: bool) -> None:
        self._lossy, self._judged_at = lossy, now
        self._sent, self._resent = sent, resent
