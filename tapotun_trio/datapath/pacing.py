"""How much of what waits for one peer may be committed to its stream now, so that it waits where it can be dropped.

A packet on its way out can wait in three places: in our outbox, where CoDel keeps the queue short; unsent in the
socket; and, once the transport's congestion window lets it go, in the queue of the path's narrowest link, which a
loss-based TCP fills to the brim, whatever it holds. Of the latter two nothing can be taken back. So while a stream is
narrow we keep both nearly empty: just enough that the link never idles.

Pure: the state of the path is handed in, times are seconds on whatever monotonic clock the caller reads.
"""

from __future__ import annotations

from typing import Final

from ..host.interfaces import PathState

# A faster stream is left to the kernel. What waits unsent below TCP_NOTSENT_LOWAT is less than 3 ms then, and
# queues on machines this fast, which are mostly waits for a CPU, are not ours to shorten.
NARROW_BYTES_S: Final = 50e6
# The queue that we allow the path, and begin to shorten beyond.
SLACK_S: Final = 0.012
UNSENT_S: Final = 0.008
PIECE_S: Final = 0.003
MIN_PIECE_BYTES: Final = 3 * 1024
MAX_PIECE_BYTES: Final = 64 * 1024
MIN_WINDOW_BYTES: Final = 16 * 1024
# A window starts with no less than this of what the path holds by its last delivery rate, which says up to 1.4 times
# the true rate where acknowledgements come in clumps (measured).
START_SHARE: Final = 0.7
MIN_RATE_BYTES_S: Final = 1e5  # taken for what is not known yet
# A queue that stays this long, however little we send, is somebody else's, or the path has become longer. Holding
# back would only leave the link to them (as it starved TCP Vegas): let the kernel compete, and try again later.
FOREIGN_S: Final = 2.0
COMPETE_S: Final = 60.0


class Pacing:
    """The allowance of one stream.

    The limit of what may be under way follows FAST TCP (Wei et al., 2006): a window scaled so that the round trip
    settles at its minimum plus a fixed slack. The kernel's congestion control stays in charge below that limit.
    """

    __slots__ = ("_compete_until", "_foreign_since", "_sampled_at", "_state", "_window")

    def __init__(self) -> None:
        self._state = PathState(0.0, 0.0, 0.0, 0, 0, 0, 0)
        self._window: float | None = None  # None: the path's queue is short, no limit of ours is needed
        self._sampled_at = 0.0
        self._foreign_since: float | None = None
        self._compete_until = 0.0

    @property
    def narrow(self) -> bool:
        """The last sample was of a stream that has to be fed by the spoon."""
        return self._state.rate_bytes_s < NARROW_BYTES_S

    @property
    def crowded(self) -> bool:
        """The last sample saw a queue that we should shorten, on a narrow stream."""
        return self.narrow and self._state.queue_s > SLACK_S

    @property
    def window_bytes(self) -> float | None:
        """How much may be under way, sent or unsent; None: no limit."""
        return self._window

    @property
    def piece_bytes(self) -> int:
        return int(min(max(self._state.rate_bytes_s * PIECE_S, MIN_PIECE_BYTES), MAX_PIECE_BYTES))

    def sample(self, state: PathState, now: float) -> None:
        """Take note of how the path is now."""
        elapsed, self._sampled_at = now - self._sampled_at, now
        self._state = state
        queue_s, window = state.queue_s, self._window
        if not self.narrow or now < self._compete_until or not state.rtt_s:  # 0: not known yet
            self._window = None
            return
        under_way = state.flying_bytes + state.unsent_bytes
        scale = (state.min_rtt_s + SLACK_S) / state.rtt_s
        if window is None:
            if queue_s > SLACK_S:
                # Behind a stall or a loss little may be flying while the round trip still looks long.
                least = START_SHARE * state.rate_bytes_s * state.min_rtt_s
                self._window = max(state.flying_bytes * scale, least, MIN_WINDOW_BYTES)
                self._foreign_since = None
            return
        window *= 1 + (scale - 1) * min(0.5 * elapsed / state.rtt_s, 0.5)
        if window > 2 * under_way + MAX_PIECE_BYTES:
            self._window = None
            return
        self._window = max(window, MIN_WINDOW_BYTES)
        # At its least the window may be more than a slow path holds, and the queue ours.
        own_s = max(0.0, MIN_WINDOW_BYTES / max(state.rate_bytes_s, MIN_RATE_BYTES_S) - state.min_rtt_s)
        if queue_s <= 2 * SLACK_S + own_s:
            self._foreign_since = None
        elif self._foreign_since is None:
            self._foreign_since = now
        elif now - self._foreign_since > FOREIGN_S:
            self._window = None
            self._compete_until = now + COMPETE_S

    def wait_s(self) -> float:
        """Until the next piece may be committed, judged by the last sample: 0 if now."""
        state, piece = self._state, self.piece_bytes
        rate = max(state.rate_bytes_s, MIN_RATE_BYTES_S)
        over = state.unsent_bytes + piece - max(rate * UNSENT_S, 2 * piece)
        if self._window is not None:
            over = max(over, state.flying_bytes + state.unsent_bytes + piece - self._window)
        return 0.0 if over <= 0 else min(max(over / rate, 0.001), 0.01)
