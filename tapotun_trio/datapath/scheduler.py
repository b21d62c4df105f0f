"""What one stream is fed: everything at once while it takes everything, by the spoon while its path is narrow."""

from __future__ import annotations

from typing import Final, Protocol

from ..host.net.sockets import NOTSENT_LOWAT_BYTES
from .congestion import Congestion, CongestionSocket
from .pacing import Pacing

# One piece of a backlog on a stream that is not paced. What is committed can no longer be dropped, so this is small;
# large enough that a fast link still takes whole super-packets at a time.
PIECE_BYTES: Final = 64 * 1024
SAMPLE_S: Final = 0.01  # how often a backlog makes us look at the path of a stream that is not paced
WATCH_S: Final = 0.05  # and how often what is sent does, where there is none
WATCH_BYTES: Final = 128 * 1024  # after how much we ask the time for that: 50 ms at 20 Mbit/s
# A single delivery rate may be that of one small segment: on a veth, one sample of ten (measured at 4 Gbit/s).
NARROW_SAMPLES: Final = 3
# A stream that was fast so many times in a row may have more unsent in the kernel, which then sends while we do
# something else: with NOTSENT_LOWAT_BYTES every second burst found the socket full and went through the outbox, copied
# and with a wake-up of its own (measured at 3 Gbit/s: 2.3 against 1.75 CPU seconds per GB). At NARROW_BYTES_S this is
# 20 ms, and less the faster a stream is.
FAST_SAMPLES: Final = 3
FAST_UNSENT_BYTES: Final = 1024 * 1024
CALM_S: Final = 3.0  # a paced stream that was not held back for so long is let go


class Path(CongestionSocket, Protocol):
    """What a `Connection` tells of its path, and what of it can be chosen."""

    def limit_unsent(self, limit_bytes: int) -> None: ...


class SendScheduler:
    """Asked by the sender what to send next, and when.

    Args:
        connection: of the stream, owned by others.
        now: when it was opened.
    """

    __slots__ = (
        "_congestion",
        "_connection",
        "_fast_samples",
        "_has_room",
        "_held_at",
        "_narrow_samples",
        "_pacing",
        "_sampled_at",
        "paced",
    )

    def __init__(self, connection: Path, now: float) -> None:
        self.paced = False  # everything is to go through the outbox, piece by piece
        self._connection = connection
        self._pacing = Pacing()
        self._narrow_samples = 0  # in a row
        self._fast_samples = 0  # likewise
        self._has_room = False  # FAST_UNSENT_BYTES are allowed
        self._sampled_at = self._held_at = 0.0
        self._congestion = Congestion(connection, now)

    def allowance(self, now: float) -> tuple[float, int]:
        """For the next piece of a backlog: how many seconds it has to wait, and how many bytes it may be."""
        if self.paced or now - self._sampled_at > SAMPLE_S:
            self._narrow_samples = self._narrow_samples + 1 if self._sample(now) and self._pacing.narrow else 0
            self._pace(self._narrow_samples >= (1 if self.paced else NARROW_SAMPLES), now)
        if not self.paced:
            return 0.0, PIECE_BYTES
        wait_s = self._pacing.wait_s()
        if wait_s:
            self._held_at = now
        return wait_s, self._pacing.piece_bytes

    def watch(self, now: float) -> None:
        """While everything is taken at once, look now and then whether it only fills a queue on the path."""
        if not self.paced and now - self._sampled_at > WATCH_S:
            self._pace(self._sample(now) and self._pacing.crowded, now)

    def tick(self, now: float) -> None:
        """Now and then: let a stream go that needed no care lately, and see to one that nothing is sent on."""
        if self.paced:
            self._pace(now - self._held_at < CALM_S, now)
        elif self._congestion.is_due(now):
            self._sample(now)

    def _sample(self, now: float) -> bool:
        path = self._connection.path()
        self._sampled_at = now
        if path is None:
            return False
        self._pacing.sample(path, now)
        self._fast_samples = 0 if self._pacing.narrow else self._fast_samples + 1
        if self._fast_samples >= FAST_SAMPLES and not self._has_room:
            self._connection.limit_unsent(FAST_UNSENT_BYTES)
            self._has_room = True
        self._congestion.sample(path, now, paced=self.paced, fast=self._has_room)
        return True

    def _pace(self, paced: bool, now: float) -> None:
        if paced and not self.paced:
            self._held_at = now
            if self._has_room:
                self._connection.limit_unsent(NOTSENT_LOWAT_BYTES)
                self._has_room = False
        self.paced = paced
