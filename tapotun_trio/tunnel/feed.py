"""What one stream is fed: everything at once while it takes everything, by the spoon while its path is narrow."""

from __future__ import annotations

from typing import Final, Protocol

from ..host.ports import PathState
from ..host.sockets import NOTSENT_LOWAT_BYTES
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

# BBR leaves its queue short by itself, but 10 s after it began, and every 10 s from then on, it stops for 200 ms to
# measure the round trip. For a tunnel that is every packet's pause, and longer than our outbox keeps any. Two remedies:
#
# A stream that is not paced has BBR begin anew before that is due. It then starts as a new stream does, but with the
# window it had, and probes for more only when there is more to send. Then the stream is paced, which is why this is
# not done there: on a full link each beginning costs what it overshoots, and others their share (measured, beside
# a cubic flow: 14 % sent twice, and 13.0 of 17.5 Mbit/s).
#
# A stream that is paced anyway runs without BBR (measured at 20 Mbit/s: 15.3 Mbit/s and pings up to 116 ms late,
# against 18.0 and 23 with cubic), unless the path loses packets that no queue of ours explains: that is what people
# choose BBR for, and cubic is slow there.
RESTLESS: Final = "bbr"
CALM: Final = "cubic"
RENEW_S: Final = 4.0
# During its pause BBR sends four segments a round trip: 100 Mbit/s on a path as short as this, hence no pause.
SHORT_S: Final = 0.0005
CALM_AFTER_S: Final = 0.5
# A path is lossy that is so twice running. Each time so many segments are judged, or fewer, if that is plain before.
LOSS_SEGMENTS: Final = 2000
LOSSY: Final = 0.002  # of these
LOSS_S: Final = 0.5  # in between, and at first: BBR's own losses, and what is lost together but sent again one by one


class Path(Protocol):
    """What a `Connection` tells of its path, and what of it can be chosen."""

    @property
    def congestion_control(self) -> str | None: ...

    def path(self) -> PathState | None: ...

    def try_congestion_control(self, name: str) -> None: ...

    def limit_unsent(self, limit_bytes: int) -> None: ...


class Feed:
    """Asked by the sender what to send next, and when.

    Args:
        connection: of the stream, owned by others.
        now: when it was opened.
    """

    __slots__ = (
        "_calmed",
        "_chosen_at",
        "_connection",
        "_fast_samples",
        "_held_at",
        "_judged_at",
        "_lossy",
        "_narrow_samples",
        "_pacing",
        "_resent",
        "_restless",
        "_roomy",
        "_sampled_at",
        "_sent",
        "_since",
        "_switches",
        "paced",
    )

    def __init__(self, connection: Path, now: float) -> None:
        self.paced = False  # everything is to go through the outbox, piece by piece
        self._connection = connection
        self._pacing = Pacing()
        self._narrow_samples = 0  # in a row
        self._fast_samples = 0  # likewise
        self._roomy = False  # FAST_UNSENT_BYTES are allowed
        self._sampled_at = self._held_at = self._since = 0.0
        self._restless = self._switches = connection.congestion_control == RESTLESS
        self._chosen_at = now  # when BBR began
        self._calmed = self._lossy = False
        self._judged_at = 0.0
        self._sent = self._resent = 0  # segments, since when losses are counted

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
        elif self._restless and now - self._chosen_at > RENEW_S:
            self._sample(now)

    def _sample(self, now: float) -> bool:
        path = self._connection.path()
        self._sampled_at = now
        if path is None:
            return False
        self._pacing.sample(path, now)
        self._fast_samples = 0 if self._pacing.narrow else self._fast_samples + 1
        if self._fast_samples >= FAST_SAMPLES and not self._roomy:
            self._connection.limit_unsent(FAST_UNSENT_BYTES)
            self._roomy = True
        if self._restless and not self.paced:
            if now - self._chosen_at > RENEW_S and path.min_rtt_s > SHORT_S and not self._roomy:
                self._connection.try_congestion_control(CALM)  # what is chosen already does not begin anew
                self._choose_restless(now)
        elif self._switches:
            self._choose_congestion_control(path.sent_segments, path.resent_segments, now)
        return True

    def _choose_restless(self, now: float) -> None:
        self._connection.try_congestion_control(RESTLESS)
        self._chosen_at = now

    def _pace(self, paced: bool, now: float) -> None:
        if paced and not self.paced:
            self._since = self._held_at = now
            if self._roomy:
                self._connection.limit_unsent(NOTSENT_LOWAT_BYTES)
                self._roomy = False
        elif self._calmed and not paced:
            self._choose_restless(now)
            self._calmed = False
        self.paced = paced

    def _choose_congestion_control(self, sent: int, resent: int, now: float) -> None:
        if not self._calmed:
            if now - self._since > CALM_AFTER_S:
                self._connection.try_congestion_control(CALM)
                self._calmed = True
                self._judge(sent, resent, now, lossy=False)
            return
        if now - self._judged_at <= LOSS_S:
            self._sent, self._resent = sent, resent
            return
        more, lost = sent - self._sent, resent - self._resent
        lossy = lost > LOSSY * max(more, LOSS_SEGMENTS)
        if lossy and self._lossy:
            self._choose_restless(now)
            self._switches = self._calmed = False
        elif lossy or more >= LOSS_SEGMENTS:
            self._judge(sent, resent, now, lossy=lossy)

    def _judge(self, sent: int, resent: int, now: float, *, lossy: bool) -> None:
        self._lossy, self._judged_at = lossy, now
        self._sent, self._resent = sent, resent
