"""Decides how much of a peer's queue to hand to its stream now, so that packets wait where they can be dropped.

A packet on its way out can wait in three places: in our own queue, which CoDel keeps short; unsent in the socket; and,
once TCP's congestion window lets it go, in the queue in front of the path's narrowest link, which a loss-based TCP
fills completely, however large it is. Nothing can be taken back from the last two. So while a stream is narrow we keep
both nearly empty, with just enough in them that the link never idles.

No I/O and no clock of its own: the state of the path is an argument, and times are seconds on any monotonic clock that
the caller reads.
"""

from __future__ import annotations

from typing import Final

from ..host.interfaces import PathState

# A faster stream is left to the kernel. At this rate the bytes that may wait unsent (TCP_NOTSENT_LOWAT) are sent within
# 3 ms, and a queue on the path is mostly a wait for a CPU, which we cannot shorten.
NARROW_BYTES_S: Final = 50e6
SLACK_S: Final = 0.012  # the queue on the path that we allow; a longer one is shortened
UNSENT_S: Final = 0.008  # what may wait unsent in the socket
PIECE_S: Final = 0.003  # what is handed over at a time
MIN_PIECE_BYTES: Final = 3 * 1024
MAX_PIECE_BYTES: Final = 64 * 1024
MIN_WINDOW_BYTES: Final = 16 * 1024
# A window starts with at least this share of what the path holds by its last delivery rate. Where acknowledgements come
# in clumps that rate is up to 1.4 times the true one (measured).
START_SHARE: Final = 0.7
MIN_RATE_BYTES_S: Final = 1e5  # assumed while the rate is not known
# A queue that stays for this long although we hold back belongs to another sender, or the path has become longer. If we
# held back any longer, the other senders would take the link (TCP Vegas starved in this way). So the kernel competes
# for COMPETE_S, and then we try again.
FOREIGN_S: Final = 2.0
COMPETE_S: Final = 60.0


class Pacing:
    """How much one stream may have under way, and when it gets its next piece.

    The limit of what may be under way is a window as in FAST TCP (Wei et al., 2006). It is scaled so that the round
    trip settles at its minimum plus a fixed slack. Below the limit the kernel's congestion control decides.
    """

    __slots__ = ("_compete_until", "_foreign_since", "_sampled_at", "_state", "_window")

    def __init__(self) -> None:
        self._state = PathState(0.0, 0.0, 0.0, 0, 0, 0, 0)
        self._window: float | None = None  # None: the path's queue is short, so no limit of ours is needed
        self._sampled_at = 0.0
        self._foreign_since: float | None = None
        self._compete_until = 0.0

    @property
    def narrow(self) -> bool:
        """Whether the last sample shows a stream that is slow enough to be paced."""
        return self._state.rate_bytes_s < NARROW_BYTES_S

    @property
    def congested(self) -> bool:
        """Whether the last sample shows a narrow stream, and a queue on its path that we should shorten."""
        return self.narrow and self._state.queue_s > SLACK_S

    @property
    def window_bytes(self) -> float | None:
        """How much may be under way, in flight or unsent; None: no limit."""
        return self._window

    @property
    def piece_bytes(self) -> int:
        """How much to hand over at a time: at most half of the window.

        The rate may be far too high, as that of a few segments which followed each other closely. If a piece were
        larger than the window, it would have to wait even with nothing under way. Then nothing would be sent, no
        acknowledgement would bring a better rate, and the wait would not end.
        """
        largest = MAX_PIECE_BYTES if self._window is None else min(MAX_PIECE_BYTES, self._window / 2)
        return int(min(max(self._state.rate_bytes_s * PIECE_S, MIN_PIECE_BYTES), largest))

    def sample(self, state: PathState, now: float) -> None:
        """Adapt to the state of the path."""
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
                # After a stall or a loss little may be in flight while the round trip still looks long.
                least = START_SHARE * state.rate_bytes_s * state.min_rtt_s
                self._window = max(state.flying_bytes * scale, least, MIN_WINDOW_BYTES)
                self._foreign_since = None
            return
        window *= 1 + (scale - 1) * min(0.5 * elapsed / state.rtt_s, 0.5)
        if window > 2 * under_way + MAX_PIECE_BYTES:
            self._window = None
            return
        self._window = max(window, MIN_WINDOW_BYTES)
        # The smallest window may be more than a slow path holds; then the queue is our own.
        own_s = max(0.0, MIN_WINDOW_BYTES / max(state.rate_bytes_s, MIN_RATE_BYTES_S) - state.min_rtt_s)
        if queue_s <= 2 * SLACK_S + own_s:
            self._foreign_since = None
        elif self._foreign_since is None:
            self._foreign_since = now
        elif now - self._foreign_since > FOREIGN_S:
            self._window = None
            self._compete_until = now + COMPETE_S

    def wait_s(self) -> float:
        """How long the next piece has to wait by the last sample: 1 to 10 ms, in seconds; 0: send it now."""
        state, piece = self._state, self.piece_bytes
        rate = max(state.rate_bytes_s, MIN_RATE_BYTES_S)
        excess = state.unsent_bytes + piece - max(rate * UNSENT_S, 2 * piece)
        if self._window is not None:
            excess = max(excess, state.flying_bytes + state.unsent_bytes + piece - self._window)
        return 0.0 if excess <= 0 else min(max(excess / rate, 0.001), 0.01)
