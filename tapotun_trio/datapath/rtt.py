"""Round trip times of one session, in seconds."""

from __future__ import annotations

from typing import Final

# Longer than the round trip of any path. A PONG that shows more does not answer a PING of this process.
MAX_S: Final = 600.0
_GAIN: Final = 1 / 8  # RFC 6298 section 2


class RoundTrip:
    """The last, the smoothed and the smallest sample; None until there is one."""

    __slots__ = ("last_s", "minimum_s", "smoothed_s")

    def __init__(self) -> None:
        self.last_s: float | None = None
        self.smoothed_s: float | None = None
        self.minimum_s: float | None = None

    def sample(self, sent_ns: int, now_ns: int) -> None:
        """Take a sample. ``sent_ns``: our own clock, which a PONG brought back; a value that cannot be ours is
        ignored."""
        rtt_s = (now_ns - sent_ns) / 1e9
        if not 0 <= rtt_s <= MAX_S:
            return
        self.last_s = rtt_s
        self.smoothed_s = rtt_s if self.smoothed_s is None else self.smoothed_s + _GAIN * (rtt_s - self.smoothed_s)
        self.minimum_s = rtt_s if self.minimum_s is None else min(self.minimum_s, rtt_s)

    def __str__(self) -> str:
        if self.last_s is None or self.smoothed_s is None or self.minimum_s is None:
            return "not measured"
        last, mean, least = (f"{s * 1e3:.1f} ms" for s in (self.last_s, self.smoothed_s, self.minimum_s))
        return f"last {last}, mean {mean}, min {least}"
