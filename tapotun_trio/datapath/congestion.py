"""Which congestion control a stream uses on a host that prefers BBR.

BBR keeps its queue short by itself, but it pauses for 200 ms, 10 s after it began and every 10 s from then on, to
measure the round trip. In a tunnel that pause stops every packet, for longer than our queue keeps any. BBR also paces:
on a short path its timers are the largest avoidable cost, in time and in CPU. People choose BBR for paths that lose
packets. There cubic is slow, and the longer the path, the slower it is. Hence these rules:

- A stream that is *paced* uses cubic (measured at 20 Mbit/s: 15.3 Mbit/s and pings up to 116 ms late with BBR, 18.0
  Mbit/s and 23 ms with cubic).
- So does any other stream on a short path (docs/performance-notes.md#bbr-on-a-short-path).
- But if the path loses packets and no queue of ours explains that, the stream uses BBR from then on.
- On any other stream BBR is restarted before its pause is due. It then starts as a new stream does, but with the window
  that it had, and probes for more only when there is more to send. A paced stream is not restarted: on a full link each
  start overshoots, so segments are sent twice, and other flows get less than their share (measured next to a cubic
  flow: 14 % sent twice, and 13.0 of 17.5 Mbit/s taken).

No clock of its own: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

from typing import Final, Protocol

from ..host.interfaces import PathState
from ..host.net.sockets import BBR, CUBIC, RENO

RENEW_S: Final = 4.0  # BBR is restarted after this long
NEAR_S: Final = 0.005  # the round trip of a short path
CUBIC_AFTER_S: Final = 0.5  # how long a stream must have been paced, or its path short, before cubic replaces BBR
# A path counts as lossy after two lossy samples in a row. A sample ends after this many segments, or earlier if it has
# more losses than such a sample may have.
LOSS_SEGMENTS: Final = 2000
LOSSY: Final = 0.002  # share of the segments of a sample that were sent again
# Before each sample losses are not counted for this long: BBR may have caused them, or segments that were lost together
# are still being sent again one by one.
LOSS_S: Final = 0.5


class CongestionSocket(Protocol):
    """The socket whose congestion control is chosen."""

    @property
    def congestion_control(self) -> str | None: ...

    @property
    def preferred_congestion_control(self) -> str | None: ...

    def try_congestion_control(self, name: str) -> None: ...

    def path(self) -> PathState | None: ...


class Congestion:
    """Chooses the congestion control of one stream.

    Args:
        connection: the connection of the stream, owned by the caller. Its handshake has measured the path.
        now: the time at which the stream was opened.
    """

    __slots__ = (
        "_bbr_since",
        "_connection",
        "_cubic_wanted_since",
        "_is_cubic",
        "_lossy",
        "_may_use_cubic",
        "_prefers_bbr",
        "_resent_then",
        "_sampled_at",
        "_sent_then",
    )

    def __init__(self, connection: CongestionSocket, now: float) -> None:
        self._connection = connection
        self._prefers_bbr = self._may_use_cubic = connection.preferred_congestion_control == BBR
        self._is_cubic = False
        self._bbr_since = now
        self._cubic_wanted_since: float | None = None
        self._lossy = False
        self._sampled_at = now
        self._sent_then = self._resent_then = 0  # segments, when the present sample began
        if self._prefers_bbr and connection.congestion_control == RENO:
            path = connection.path()
            self._is_cubic = path is not None and path.min_rtt_s < NEAR_S
            connection.try_congestion_control(CUBIC if self._is_cubic else BBR)

    def is_due(self, now: float) -> bool:
        """Whether BBR has run for so long that `sample` may restart it."""
        return self._prefers_bbr and not self._is_cubic and now - self._bbr_since > RENEW_S

    def sample(self, path: PathState, now: float, *, paced: bool, fast: bool) -> None:
        """Choose the congestion control for the present state of the path.

        ``paced``: the stream is paced. ``fast``: it is so fast that nothing has to wait for BBR's pause.
        """
        if not self._prefers_bbr:
            return
        if not paced and path.min_rtt_s >= NEAR_S:
            self._cubic_wanted_since = None
            if self._is_cubic:
                self._use_bbr(now)
            elif not fast and self.is_due(now):
                self._connection.try_congestion_control(CUBIC)  # choosing BBR while it is in use would not restart it
                self._use_bbr(now)
        elif self._is_cubic:
            self._watch_losses(path.sent_segments, path.resent_segments, now)
        elif self._may_use_cubic:
            if self._cubic_wanted_since is None:
                self._cubic_wanted_since = now
            elif now - self._cubic_wanted_since > CUBIC_AFTER_S:
                self._connection.try_congestion_control(CUBIC)
                self._is_cubic = True
                self._begin_sample(path.sent_segments, path.resent_segments, now, lossy=False)

    def _use_bbr(self, now: float) -> None:
        self._connection.try_congestion_control(BBR)
        self._bbr_since, self._is_cubic = now, False

    def _watch_losses(self, sent: int, resent: int, now: float) -> None:
        if now - self._sampled_at <= LOSS_S:
            self._sent_then, self._resent_then = sent, resent
            return
        more, lost = sent - self._sent_then, resent - self._resent_then
        lossy = lost > LOSSY * max(more, LOSS_SEGMENTS)
        if lossy and self._lossy:
            self._may_use_cubic = False
            self._use_bbr(now)
        elif lossy or more >= LOSS_SEGMENTS:
            self._begin_sample(sent, resent, now, lossy=lossy)

    def _begin_sample(self, sent: int, resent: int, now: float, *, lossy: bool) -> None:
        self._lossy, self._sampled_at = lossy, now
        self._sent_then, self._resent_then = sent, resent
