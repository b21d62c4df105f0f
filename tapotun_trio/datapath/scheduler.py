"""How a backlog is sent: whole while the path keeps up, in small paced pieces when the path is the bottleneck."""

from __future__ import annotations

from typing import Final, Protocol

from ..host.net.sockets import NOTSENT_LOWAT_BYTES
from .congestion import Congestion, CongestionSocket
from .pacing import Pacing

# One piece of a backlog on a stream that is not paced. Small, because what is handed to the writer can no longer be
# dropped; large enough that a fast link takes whole super-packets at a time.
PIECE_BYTES: Final = 64 * 1024
SAMPLE_S: Final = 0.01  # how often to look at the path of a stream that is not paced, while it has a backlog
WATCH_S: Final = 0.05  # how often to look at it while there is no backlog
WATCH_BYTES: Final = 128 * 1024  # the clock for that is read after this many bytes: 50 ms at 20 Mbit/s
# A single sample is not enough: its delivery rate may be that of one small segment (measured on a veth at 4 Gbit/s: one
# sample of ten).
NARROW_SAMPLES: Final = 3
# After this many fast samples in a row a stream may have more unsent bytes in the kernel, which then sends while we do
# something else. With NOTSENT_LOWAT_BYTES every second burst found the socket full and went through the queue, which
# costs a copy and a wake-up (measured at 3 Gbit/s: 2.3 against 1.75 CPU seconds per GB). At NARROW_BYTES_S these bytes
# take 20 ms, and less on a faster stream.
FAST_SAMPLES: Final = 3
FAST_UNSENT_BYTES: Final = 1024 * 1024
UNPACE_AFTER_S: Final = 3.0  # pacing ends when no piece has had to wait for this long


class Path(CongestionSocket, Protocol):
    """The connection of a stream: the state of its path, and what can be set."""

    def limit_unsent(self, limit_bytes: int) -> None: ...


class SendScheduler:
    """Decides how much of a stream's backlog to send next, and when.

    Args:
        connection: the connection of the stream, owned by the caller.
        now: when it was opened.

    Attributes:
        paced: everything has to go through the queue, piece by piece.
    """

    __slots__ = (
        "_congestion",
        "_connection",
        "_fast_samples",
        "_large_unsent",
        "_narrow_samples",
        "_pacing",
        "_sampled_at",
        "_waited_at",
        "paced",
    )

    def __init__(self, connection: Path, now: float) -> None:
        self.paced = False
        self._connection = connection
        self._pacing = Pacing()
        self._narrow_samples = 0  # narrow samples in a row
        self._fast_samples = 0  # fast samples in a row
        self._large_unsent = False  # FAST_UNSENT_BYTES are in force
        self._sampled_at = self._waited_at = 0.0
        self._congestion = Congestion(connection, now)

    def allowance(self, now: float) -> tuple[float, int]:
        """How long the next piece of a backlog has to wait, in seconds, and how many bytes it may have."""
        if self.paced or now - self._sampled_at > SAMPLE_S:
            if self._sample(now) and self._pacing.narrow:
                self._narrow_samples += 1
            else:
                self._narrow_samples = 0
            self._set_paced(self._narrow_samples >= (1 if self.paced else NARROW_SAMPLES), now)
        if not self.paced:
            return 0.0, PIECE_BYTES
        wait_s = self._pacing.wait_s()
        if wait_s:
            self._waited_at = now
        return wait_s, self._pacing.piece_bytes

    def watch(self, now: float) -> None:
        """Call it while there is no backlog. Starts pacing if the stream only fills a queue on the path.

        Looks at the path every WATCH_S at most.
        """
        if not self.paced and now - self._sampled_at > WATCH_S:
            self._set_paced(self._sample(now) and self._pacing.congested, now)

    def tick(self, now: float) -> None:
        """To be called once a second or so: stop pacing when it is no longer needed, and sample a path that is idle."""
        if self.paced:
            self._set_paced(now - self._waited_at < UNPACE_AFTER_S, now)
        elif self._congestion.is_due(now):
            self._sample(now)

    def _sample(self, now: float) -> bool:
        """Look at the path. Returns whether its state is known."""
        path = self._connection.path()
        self._sampled_at = now
        if path is None:
            return False
        self._pacing.sample(path, now)
        self._fast_samples = 0 if self._pacing.narrow else self._fast_samples + 1
        if self._fast_samples >= FAST_SAMPLES and not self._large_unsent:
            self._connection.limit_unsent(FAST_UNSENT_BYTES)
            self._large_unsent = True
        self._congestion.sample(path, now, paced=self.paced, fast=self._large_unsent)
        return True

    def _set_paced(self, paced: bool, now: float) -> None:
        if paced and not self.paced:
            self._waited_at = now
            if self._large_unsent:
                self._connection.limit_unsent(NOTSENT_LOWAT_BYTES)
                self._large_unsent = False
        self.paced = paced
