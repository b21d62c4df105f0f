"""Learns the timeouts that proxies on the path apply to streams, from the times at which streams are ended.

Many proxies end every request at a fixed age (Envoy's route timeout, Google's timeoutSec, Caddy's read_body and write).
Others end a request that has been silent for some time. If several streams of one kind end at about the same age, or
after about the same silence, that is taken to be a limit. Later streams are replaced before they reach it. The older
stream continues until its successor is open, so nothing is lost. Now and then a stream is not replaced, to test whether
the limit still exists.

Downloads, uploads and WebSockets have separate limits. `AgeLimit` handles one kind of stream, `AgeLimits` all of them.

Pure: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from ..errors import EndReason, PeerError

# Two ages agree if they differ by no more than TOLERANCE_S plus the fraction TOLERANCE of the greater one. A proxy's
# timer is exact, but the end is noticed only after a round trip or at the next write, and later on a busy machine.
TOLERANCE_S: Final = 0.5
TOLERANCE: Final = 0.03
# A limit below these values cannot be told from failures with another cause. Besides, replacing streams more often than
# this would load the server too much.
LEAST_AGE_S: Final = 0.8
LEAST_SILENCE_S: Final = 2.0
# A base server ends the older of two downloads cleanly. Two clients with the same token therefore end each other's
# downloads in turn, often at similar ages. So a limit is concluded from clean ends only if more of them agree, and
# more closely.
CLEAN_ENDS: Final = 3
CLEAN_TOLERANCE_S: Final = 0.25
# A stream is replaced at a random age between these fractions of its limit. That leaves time to open a new connection.
# The age is random so that the many clients of one server do not reconnect at the same time.
SHARE: Final = (0.6, 0.8)
LEAST_SHARE: Final = 0.4  # of the limit; no stream is replaced earlier, even if opening one takes long
LOWER: Final = 0.6  # a stream that is cut at more than this fraction of the known limit lowers the limit
# RETRY_S after a limit was recognised, a stream is not replaced, as a test. If the limit still exists, the test costs a
# cut stream, so the time to the next test doubles, up to RETRY_LIMIT_S.
RETRY_S: Final = 300.0
RETRY_LIMIT_S: Final = 6 * 3600.0
_REMEMBERED: Final = 3  # the number of cuts that are remembered


class StreamKind(Enum):
    """Each kind has its own limits. The values are plural nouns for log lines."""

    DOWNLOAD = "downloads"
    UPLOAD = "uploads"
    WEBSOCKET = "WebSockets"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long one stream has existed and been silent, now or when it ended.

    Attributes:
        age_s: the time since it was opened.
        silent_s: the time since the last byte in its direction.
        longest_s: the longest earlier silence. A lower bound, because it is found by sampling.
    """

    age_s: float
    silent_s: float
    longest_s: float = 0.0


class SilenceMeter:
    """Measures the silences of one stream. Call `sample` about once a second."""

    __slots__ = ("_began", "_last_at", "_longest_s", "_silent_until")

    def __init__(self, now: float) -> None:
        """The stream begins."""
        self._began = self._last_at = self._silent_until = now
        self._longest_s = 0.0

    def sample(self, now: float, ago_s: float | None) -> Lifetime:
        """Return the lifetime so far. ``ago_s``: seconds between the last byte and ``now``; None: not known."""
        if ago_s is not None:
            if (last_at := now - ago_s) > self._last_at + 0.05:  # the kernel's clock ticks every few milliseconds
                self._longest_s = max(self._longest_s, self._silent_until - self._last_at)
                self._last_at = last_at
            self._silent_until = now
        return Lifetime(now - self._began, now - self._last_at, self._longest_s)


@dataclass(frozen=True, slots=True)
class Limit:
    """A recognised limit.

    Attributes:
        age_s: streams are ended at this age; None: their age does not matter.
        silence_s: streams are ended after this silence; None: silence does not matter. If the streams were silent
            from their beginning on, either may be the cause, and both are set.
    """

    age_s: float | None
    silence_s: float | None

    def __str__(self) -> str:
        parts = []
        if self.age_s is not None:
            parts.append(f"at an age of {self.age_s:.1f} s")
        if self.silence_s is not None:
            parts.append(f"after {self.silence_s:.1f} s of silence")
        return " or ".join(parts)

    @property
    def least_s(self) -> float:
        """The shorter of the two."""
        return min(bound for bound in (self.age_s, self.silence_s) if bound is not None)


@dataclass(frozen=True, slots=True)
class Plan:
    """When to replace a stream: at this age, or after this silence."""

    age_s: float
    silence_s: float = math.inf

    def left_s(self, lifetime: Lifetime) -> float:
        """Seconds until the replacement if the stream stays silent; 0 or less: replace it now."""
        return min(self.age_s - lifetime.age_s, self.silence_s - lifetime.silent_s)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A stream that a proxy may have ended. An age or silence of None cannot have been the cause."""

    age_s: float | None
    silence_s: float | None
    clean: bool


def agree(one_s: float | None, other_s: float | None) -> bool:
    """Whether two ages, or two silences, are close enough to have the same cause."""
    return (
        one_s is not None
        and other_s is not None
        and abs(one_s - other_s) <= TOLERANCE_S + TOLERANCE * max(one_s, other_s)
    )


def _disproved(bound_s: float | None, lived_s: float) -> bool:
    """Whether a stream outlived the bound by so much that there is no such limit."""
    return bound_s is not None and lived_s > bound_s + 2 * (TOLERANCE_S + TOLERANCE * bound_s)


class AgeLimit:
    """Learns the limit for one kind of stream.

    Attributes:
        limit: the recognised limit; None: none is known.
    """

    __slots__ = ("_cuts", "_pause_s", "_retry_at", "limit")

    def __init__(self) -> None:
        self.limit: Limit | None = None
        self._cuts: deque[_Cut] = deque(maxlen=_REMEMBERED)
        self._pause_s = RETRY_S
        self._retry_at = math.inf

    def plan(self, now: float, normal_s: float, opening_s: float, rng: random.Random) -> Plan:
        """When to replace a stream that begins now.

        Args:
            normal_s: the age at which to replace it if there is no limit.
            opening_s: how long it took to open the newest stream. Its successor must be open before the limit.
        """
        limit = self.limit
        if limit is None or now >= self._retry_at:
            return Plan(normal_s)
        share = rng.uniform(*SHARE)

        def part(bound_s: float | None) -> float:
            if bound_s is None:
                return math.inf
            return max((bound_s - 2 * opening_s) * share, bound_s * LEAST_SHARE)

        return Plan(min(normal_s, part(limit.age_s)), part(limit.silence_s))

    def observe(self, lifetime: Lifetime) -> bool:
        """Record that a stream has reached this lifetime. Returns whether this shows that the known limit is gone."""
        silence_s = max(lifetime.silent_s, lifetime.longest_s)
        for _ in range(len(self._cuts)):
            cut = self._cuts.popleft()
            age = None if _disproved(cut.age_s, lifetime.age_s) else cut.age_s
            silence = None if _disproved(cut.silence_s, silence_s) else cut.silence_s
            if age is not None or silence is not None:
                self._cuts.append(replace(cut, age_s=age, silence_s=silence))
        before = self.limit
        if before is None:
            return False
        age = None if _disproved(before.age_s, lifetime.age_s) else before.age_s
        silence = None if _disproved(before.silence_s, silence_s) else before.silence_s
        if (age, silence) == (before.age_s, before.silence_s):
            return False
        if age is None and silence is None:
            self.forget()
            return True
        self.limit = Limit(age, silence)
        return False

    def cut(self, lifetime: Lifetime, now: float, *, clean: bool = False, by_clock: bool = False) -> bool:
        """Record that a proxy may have ended a stream. Returns whether a new limit was recognised.

        Args:
            clean: it ended cleanly, so a base server may have ended it.
            by_clock: the answer was a 408 (Request Timeout). One such end is enough to recognise a limit.
        """
        self.observe(lifetime)
        if lifetime.age_s < LEAST_AGE_S:
            return False
        silent = lifetime.silent_s >= LEAST_SILENCE_S and not _disproved(lifetime.silent_s, lifetime.longest_s)
        new = _Cut(lifetime.age_s, lifetime.silent_s if silent else None, clean)
        if self._confirms(new, now):
            self._cuts.append(new)
            return False
        found = self._agreed(new)
        if found is None and by_clock:
            found = Limit(new.age_s, new.silence_s)
        self._cuts.append(new)
        if found is None:
            return False
        self.limit = found
        self._pause_s = max(RETRY_S, 10 * found.least_s)
        self._retry_at = now + self._pause_s
        return True

    def _confirms(self, new: _Cut, now: float) -> bool:
        """Whether the known limit explains a cut. A cut that came somewhat earlier lowers the limit: a proxy may act
        on its limit only at the next write, so the previous cuts may have come late."""
        limit = self.limit
        if limit is None:
            return False
        age, silence = _lowered(limit.age_s, new.age_s), _lowered(limit.silence_s, new.silence_s)
        if age is None and silence is None:
            return False
        self.limit = Limit(limit.age_s if age is None else age, limit.silence_s if silence is None else silence)
        if now >= self._retry_at:  # this stream tested the limit, which still exists
            self._pause_s = min(2 * self._pause_s, RETRY_LIMIT_S)
            self._retry_at = now + self._pause_s
        return True

    def _agreed(self, new: _Cut) -> Limit | None:
        if new.clean:
            alike = [cut for cut in self._cuts if _agree_well(new.age_s, cut.age_s)]
            if len(alike) < CLEAN_ENDS - 1:
                return None
        age, silence = None, None
        for cut in self._cuts:
            if agree(new.age_s, cut.age_s):
                age = _least(age, new.age_s, cut.age_s)
            if agree(new.silence_s, cut.silence_s):
                silence = _least(silence, new.silence_s, cut.silence_s)
        return None if age is None and silence is None else Limit(age, silence)

    def forget(self) -> None:
        """Forget the limit, because it is gone or the path has changed."""
        self.limit = None
        self._cuts.clear()
        self._pause_s = RETRY_S
        self._retry_at = math.inf


def _lowered(bound_s: float | None, cut_s: float | None) -> float | None:
    """The bound, lowered to a cut that is not far below it; None: the bound does not explain the cut."""
    if bound_s is None or cut_s is None or cut_s < LOWER * bound_s:
        return None
    return min(bound_s, cut_s)


def _agree_well(one_s: float | None, other_s: float | None) -> bool:
    return one_s is not None and other_s is not None and abs(one_s - other_s) <= CLEAN_TOLERANCE_S


def _least(*bounds_s: float | None) -> float:
    return min(bound for bound in bounds_s if bound is not None)


# Ends that a proxy's timeout may cause. Others are caused by this end, or by a fault that has nothing to do with time.
_CUTS: Final = frozenset(
    {
        EndReason.BAD_CHUNK,  # a proxy closed the connection within a chunk
        EndReason.BAD_FRAME,  # a proxy ended the body cleanly, but within a frame
        EndReason.BROKEN,
        EndReason.CLOSED,
        EndReason.ENDED,
        EndReason.WS_CLOSED,
        EndReason.http(408),
        EndReason.http(500),
        EndReason.http(502),
        EndReason.http(503),
        EndReason.http(504),
    }
)


def is_cut(failure: PeerError | None) -> bool:
    """Whether a proxy's timeout may have ended a stream that had worked. ``failure``: None for a clean end."""
    return failure is None or failure.reason in _CUTS


class AgeLimits:
    """The limits for all kinds of streams of one client. Logs each limit that is recognised or gone."""

    __slots__ = ("_limits", "_random", "_rotate_s", "_tell")

    def __init__(
        self, rotate_s: tuple[float, float], tell: Callable[[int, str], None], rng: random.Random | None = None
    ) -> None:
        """
        Args:
            rotate_s: without a limit, a stream is replaced at a random age between these two.
            tell: logs a line; called with the level and the text.
        """
        self._rotate_s = rotate_s
        self._tell = tell
        self._random = rng or random.Random()
        self._limits = {kind: AgeLimit() for kind in StreamKind}

    def plan(self, kind: StreamKind, now: float, opening_s: float) -> Plan:
        """When to replace a stream that begins now. ``opening_s``: how long it took to open it."""
        return self._limits[kind].plan(now, self._random.uniform(*self._rotate_s), opening_s, self._random)

    def observe(self, kind: StreamKind, lifetime: Lifetime) -> None:
        """Record that a stream has reached this lifetime. Call about once a second, and when it has been replaced."""
        limit = self._limits[kind].limit
        if self._limits[kind].observe(lifetime):
            self._tell(
                logging.INFO, f"{kind.value} are no longer ended {limit}: they are replaced at the usual times again"
            )

    def cut(self, kind: StreamKind, lifetime: Lifetime, failure: PeerError | None, now: float, *, base: bool) -> None:
        """Record that a stream that had worked was ended, and that neither end has said why.

        ``base``: the server is a base server.
        """
        found = self._limits[kind]
        by_clock = failure is not None and failure.reason == EndReason.http(408)
        if found.cut(lifetime, now, clean=base and failure is None, by_clock=by_clock):
            assert found.limit is not None, "it was just recognised"
            self._tell(logging.WARNING, describe(kind, found.limit))

    def limit(self, kind: StreamKind) -> Limit | None:
        """The limit for this kind of stream; None: none is known."""
        return self._limits[kind].limit

    def forget(self) -> None:
        """Forget all limits, because the path has changed."""
        for limit in self._limits.values():
            limit.forget()


# For each kind of stream: well-known default timeouts by their seconds, and the settings to check if none is close.
_AGES: Final[dict[StreamKind, tuple[dict[float, str], str]]] = {
    StreamKind.DOWNLOAD: (
        {
            15.0: "Envoy's route timeout (15 s by default; 0 is none)",
            30.0: "timeoutSec of Google's backend service (30 s by default)",
            300.0: "Cloud Run's request timeout (300 s by default)",
            3600.0: "a base server, which ends a download after 60 minutes",
        },
        "Envoy: route timeout; Caddy: timeouts write; Go: WriteTimeout; Google: timeoutSec of the backend service",
    ),
    StreamKind.UPLOAD: (
        {
            10.0: "Apache's RequestReadTimeout body=10 (Debian's default; body=0 is none)",
            20.0: "Apache's RequestReadTimeout body=20 (the default; body=0 is none)",
            30.0: "timeoutSec of Google's backend service (30 s by default)",
            60.0: "Traefik's respondingTimeouts.readTimeout (60 s by default; 0 is none)",
            300.0: "Node's requestTimeout (300 s by default; 0 is none)",
        },
        "Caddy: timeouts read_body; Traefik: readTimeout; Node: requestTimeout; Apache: RequestReadTimeout body; "
        "Go: ReadTimeout",
    ),
    StreamKind.WEBSOCKET: (
        {
            30.0: "timeoutSec of Google's backend service (30 s by default)",
            300.0: "Cloud Run's request timeout (300 s by default)",
        },
        "Google: timeoutSec of the backend service; Envoy: max_stream_duration; HAProxy: timeout tunnel",
    ),
}
_SILENCES: Final[dict[StreamKind, tuple[dict[float, str], str]]] = {
    StreamKind.DOWNLOAD: (
        {
            50.0: "HAProxy's timeout server (50 s in Debian's file)",
            60.0: "nginx's proxy_read_timeout (60 s by default)",
        },
        "nginx: proxy_read_timeout; HAProxy: timeout server and timeout client; Varnish: between_bytes_timeout",
    ),
    StreamKind.UPLOAD: (
        {
            5.0: "Varnish's timeout_idle (5 s by default)",
            50.0: "HAProxy's timeout client (50 s in Debian's file)",
            60.0: "nginx's client_body_timeout (60 s by default)",
        },
        "nginx: client_body_timeout; HAProxy: timeout client; Varnish: timeout_idle; lighttpd: server.max-read-idle",
    ),
    StreamKind.WEBSOCKET: (
        {60.0: "nginx's proxy_read_timeout (60 s by default)"},
        "nginx: proxy_read_timeout and proxy_send_timeout; HAProxy: timeout tunnel; Apache: ProxyTimeout",
    ),
}


def likely(kind: StreamKind, limit: Limit) -> str:
    """The settings that are probably the cause, as text for a log line."""
    known, others = [], []
    for table, bound_s in ((_AGES, limit.age_s), (_SILENCES, limit.silence_s)):
        if bound_s is not None:
            defaults, other = table[kind]
            known += [text for seconds, text in defaults.items() if agree(seconds, bound_s)]
            others.append(other)
    return "; ".join(known or others)


def describe(kind: StreamKind, limit: Limit) -> str:
    """The log line about a limit: its probable cause, the remedy, and what the client does until then."""
    least_s, most_s = (share * limit.least_s for share in SHARE)
    return (
        f"something on the way ends {kind.value} {limit}, probably {likely(kind, limit)}; raise that limit. Until then "
        f"each is replaced in time, after {least_s:.1f} to {most_s:.1f} s, and nothing is lost"
    )
