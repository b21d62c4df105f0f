"""Which congestion control a stream uses.

A tunnel puts many flows into one TCP connection. If the path loses packets, cubic gives that connection what one flow
would get, which is little, and less the longer the path is (docs/streams-measured.md). BBR does not slow down at each
loss. But it has faults of its own:

- It pauses for 200 ms, 10 s after it began and every 10 s from then on, to measure the round trip. In a tunnel that
  pause stops every packet, for longer than our queue keeps any.
- It paces: on a short path its timers are the largest avoidable cost, in time and in CPU.
- Where a full link has a short queue, it takes much more than its share from flows that do slow down at a loss.

Hence these rules:

- A stream uses what the host prefers. If that is BBR, a *paced* stream still uses cubic (measured at 20 Mbit/s: 15.3
  Mbit/s and pings up to 116 ms late with BBR, 18.0 Mbit/s and 23 ms with cubic), and so does any stream on a short
  path (docs/performance-notes.md#bbr-on-a-short-path).
- A stream that uses cubic, or another algorithm in LOSS_BASED, changes to BBR if its path loses packets while there is
  no queue on it. A loss with a queue is what a full link does to everybody. On a short path this holds only where the
  host prefers BBR.
- It changes back when the path has stopped losing packets. It also changes back, for RETREAT_S, if more packets are
  lost with BBR than before. A bad cable or radio link loses the same share at any rate; if the share grows, the link
  is full, its queue is too short to be seen, and BBR takes from others.
- On a stream that is not paced BBR is restarted before its pause is due. It then starts as a new stream does, but with
  the window that it had, and probes for more only when there is more to send. A paced stream is not restarted: on a
  full link each start overshoots, so segments are sent twice, and other flows get less than their share (measured next
  to a cubic flow: 14 % sent twice, and 13.0 of 17.5 Mbit/s taken).

No clock of its own: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

import errno
from typing import Final, Protocol

import trio

from ..host.interfaces import PathState
from ..host.net.sockets import BBR, CUBIC, RENO
from ..log import process_logger

# Algorithms that take every loss for a full link, and that nobody chooses for a path that loses packets. Others stay.
LOSS_BASED: Final = frozenset({CUBIC, RENO, "bic", "htcp"})

RENEW_S: Final = 4.0  # BBR is restarted after this long
NEAR_S: Final = 0.005  # the round trip of a short path
CUBIC_AFTER_S: Final = 0.5  # how long cubic must have been the better choice before it replaces BBR

# Losses count as one if they follow each other within this many round trips, and this time at most: segments that were
# lost together are still being sent again one by one, or the algorithm before has caused the losses.
LOSS_ROUND_TRIPS: Final = 10
LOSS_S: Final = 0.5
QUEUE_S: Final = 0.005  # a longer queue explains a loss. It is the one that CoDel allows (RFC 8289, section 4.3).
# A path counts as lossy after this many losses without a queue, more than those with one. They have to come within
# LOSSY_SEGMENTS, a share of 0.04 %; then cubic gets at most 20 Mbit/s over 40 ms, and half of that over 80.
LOSSES: Final = 4
LOSSY_SEGMENTS: Final = 10_000
NEAR_LOSSY_SEGMENTS: Final = 2_000  # 0.2 % on a short path, where cubic recovers soon

# BBR has this long for its start, which overshoots. Then the share of the segments that are sent again must not exceed
# twice the one before BBR, plus HARM, in HARM_SAMPLES samples in a row: what is lost in one moment falls into two at
# most. A sample takes SETTLE_S too, and longer until it has HARM_SEGMENTS.
SETTLE_S: Final = 1.0
HARM_SEGMENTS: Final = 500
HARM_SAMPLES: Final = 3
HARM: Final = 0.02  # what versions 2 and 3 of BBR allow themselves (draft-ietf-ccwg-bbr, BBR.LossThresh)
RETREAT_S: Final = 300.0

# The path has stopped losing packets if at most CLEAN_LOSSES come in this time and in these segments. With that cubic
# does well: over 40 ms it reaches 48 Mbit/s within 5 s after a loss, and 130 within 7 (RFC 9438, section 4.2).
CLEAN_S: Final = 30.0
CLEAN_SEGMENTS: Final = 30_000
CLEAN_LOSSES: Final = 3

_U32: Final = 0xFFFFFFFF  # the kernel's counters of segments
_REFUSAL_TOLD: Final = trio.lowlevel.RunVar[bool]("bbr_refusal_told", default=False)


class CongestionSocket(Protocol):
    """The socket whose congestion control is chosen."""

    name: str

    @property
    def congestion_control(self) -> str | None: ...

    @property
    def preferred_congestion_control(self) -> str | None: ...

    def try_congestion_control(self, name: str) -> OSError | None: ...

    def path(self) -> PathState | None: ...


class Congestion:
    """Chooses the congestion control of one stream.

    Args:
        connection: the connection of the stream, owned by the caller. Its handshake has measured the path.
        now: the time at which the stream was opened.
    """

    __slots__ = (
        "_bbr_not_before",
        "_bbr_since",
        "_connection",
        "_cubic_wanted_since",
        "_harm",
        "_is_bbr",
        "_losses",
        "_may_choose",
        "_other",
        "_prefers_bbr",
    )

    def __init__(self, connection: CongestionSocket, now: float) -> None:
        self._connection = connection
        present = connection.congestion_control
        self._prefers_bbr = connection.preferred_congestion_control == BBR
        self._other = present if present in LOSS_BASED and not self._prefers_bbr else CUBIC
        self._may_choose = self._prefers_bbr or present in LOSS_BASED
        self._is_bbr = present == BBR
        self._bbr_since = now
        self._bbr_not_before = now
        self._cubic_wanted_since: float | None = None
        self._losses = _Losses(now)
        self._harm: _Harm | None = None  # None: the path does not count as lossy
        if self._prefers_bbr and present == RENO:
            path = connection.path()
            if path is not None and path.min_rtt_s < NEAR_S:
                self._leave_bbr(now)
            else:
                self._use_bbr(now)

    def is_due(self, now: float) -> bool:
        """Whether BBR has run for so long that `sample` may restart it."""
        return self._may_choose and self._is_bbr and now - self._bbr_since > RENEW_S

    def sample(self, path: PathState, now: float, *, paced: bool, fast: bool) -> None:
        """Choose the congestion control for the present state of the path.

        ``paced``: the stream is paced. ``fast``: it is so fast that nothing has to wait for BBR's pause.
        """
        if not self._may_choose:
            return
        near = path.min_rtt_s < NEAR_S
        if self._harm is not None:
            self._judge_bbr(self._harm, path, now)
        elif not self._is_bbr and now >= self._bbr_not_before and (self._prefers_bbr or not near):
            self._judge_path(path, now, near=near)
        if self._harm is not None or (self._prefers_bbr and not paced and not near):
            self._cubic_wanted_since = None
            if not self._is_bbr:
                self._use_bbr(now)
            elif not paced and not near and not fast and self.is_due(now):
                self._set_other()  # choosing BBR while it is in use would not restart it
                self._use_bbr(now)
        elif self._is_bbr:
            if self._cubic_wanted_since is None:
                self._cubic_wanted_since = now
            elif now - self._cubic_wanted_since > CUBIC_AFTER_S:
                self._leave_bbr(now)

    def _judge_path(self, path: PathState, now: float, *, near: bool) -> None:
        """Find out whether the path loses packets that no queue explains."""
        losses = self._losses
        losses.note(path, now)
        if losses.quiet - losses.queued >= LOSSES:
            share = losses.resent / max(losses.segments, 1)  # an emulated kernel may not count them
            self._tell(f"loses packets ({share:.2%})")
            self._harm, self._losses = _Harm(share, path, now), _Losses(now)
        elif losses.segments >= (NEAR_LOSSY_SEGMENTS if near else LOSSY_SEGMENTS):
            self._losses = _Losses(now)

    def _judge_bbr(self, harm: _Harm, path: PathState, now: float) -> None:
        """Find out whether BBR does harm on the path, or is no longer needed."""
        losses = self._losses
        losses.note(path, now)
        if harm.is_seen(path, now):
            self._tell("loses more packets with BBR than before")
            self._harm, self._bbr_not_before = None, now + RETREAT_S
        elif now - losses.since >= CLEAN_S and losses.segments >= CLEAN_SEGMENTS:
            if losses.quiet + losses.queued <= CLEAN_LOSSES:
                self._tell("has stopped losing packets")
                self._harm = None
            self._losses = _Losses(now)

    def _tell(self, text: str) -> None:
        process_logger().debug("the path to %s %s", self._connection.name, text)

    def _use_bbr(self, now: float) -> None:
        error = self._connection.try_congestion_control(BBR)
        self._is_bbr, self._bbr_since = error is None, now
        if error is not None:
            self._may_choose = False
            if self._harm is not None:
                _tell_refusal(self._connection.name, error)

    def _leave_bbr(self, now: float) -> None:
        if self._set_other():
            self._is_bbr, self._losses = False, _Losses(now)
        else:
            self._may_choose = False

    def _set_other(self) -> bool:
        """Leave BBR, if that is possible. A process that may not use cubic can still use Reno, which no kernel
        restricts."""
        return any(self._connection.try_congestion_control(name) is None for name in (self._other, RENO))


class _Losses:
    """Counts the losses of a path, and which of them a queue explains.

    Attributes:
        since: when it began.
        segments: sent since the first sample.
        resent: segments that were sent again since then.
        quiet: losses without a queue.
        queued: losses with one.
    """

    __slots__ = ("_blind_until", "_resent_then", "_sent_then", "queued", "quiet", "resent", "segments", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.segments = self.resent = self.quiet = self.queued = 0
        self._sent_then = self._resent_then = -1
        self._blind_until = now + LOSS_S

    def note(self, path: PathState, now: float) -> None:
        """Take a sample into account."""
        if self._sent_then < 0:
            self._sent_then, self._resent_then = path.sent_segments, path.resent_segments
        self.segments = (path.sent_segments - self._sent_then) & _U32
        resent, self.resent = self.resent, (path.resent_segments - self._resent_then) & _U32
        if self.resent > resent and now >= self._blind_until:
            self._blind_until = now + min(LOSS_ROUND_TRIPS * path.rtt_s, LOSS_S)
            if path.queue_s > QUEUE_S:
                self.queued += 1
            else:
                self.quiet += 1


class _Harm:
    """Whether BBR makes the path lose more.

    Args:
        share: of the segments that were sent again before.
        path: its state when BBR began.
        now: when that was.
    """

    __slots__ = ("_allowed", "_at", "_resent_then", "_samples", "_sent_then", "_settled")

    def __init__(self, share: float, path: PathState, now: float) -> None:
        self._allowed = 2 * share + HARM
        self._at = now  # when the present sample began
        self._settled = False  # the first sample is over, which does not count
        self._samples = 0  # harmful samples in a row
        self._sent_then, self._resent_then = path.sent_segments, path.resent_segments

    def is_seen(self, path: PathState, now: float) -> bool:
        """Take a sample into account. Returns whether it shows harm."""
        sent = (path.sent_segments - self._sent_then) & _U32
        resent = (path.resent_segments - self._resent_then) & _U32
        if now - self._at <= SETTLE_S or (self._settled and sent < HARM_SEGMENTS):
            return False
        if self._settled and resent > self._allowed * sent:
            self._samples += 1
        else:
            self._samples = 0
        self._settled, self._at = True, now
        self._sent_then, self._resent_then = path.sent_segments, path.resent_segments
        return self._samples >= HARM_SAMPLES


def _tell_refusal(name: str, error: OSError) -> None:
    """Log that a path needs BBR and the kernel refuses it: once for the process. To be called within Trio."""
    if _REFUSAL_TOLD.get():
        return
    _REFUSAL_TOLD.set(True)
    if error.errno == errno.ENOENT:
        why = "this kernel has no BBR, or its module tcp_bbr is not loaded"
    elif error.errno == errno.EPERM:
        why = "it is not allowed: see net.ipv4.tcp_allowed_congestion_control, and `congctl lock` in the route"
    else:
        why = f"it cannot be used: {error.strerror}"
    process_logger().info("the path to %s loses packets, and BBR would carry more over it, but %s", name, why)
