"""What ends streams on the way, recognised by when it does: a limit on the age of a request, or on its silence.

Many proxies end every request at a fixed age (Envoy's route timeout, Google's timeoutSec, Caddy's read_body and write),
others one that has been silent for some time. Where streams of one kind are ended at agreeing ages, or after agreeing
silences, the next ones are replaced before that. The older stream goes on until its successor is there, so nothing is
lost. Now and then a stream is left alone, to see whether the limit is gone.

Downloads, uploads and WebSockets have limits of their own. `AgeLimits` is for all of them, `AgeLimit` for one kind.

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

# Two ends agree if they differ by no more than this, and this part of the greater. A proxy's timer is exact; what
# varies is when the end is noticed: after a round trip, or with the next write, and later on a busy machine.
TOLERANCE_S: Final = 0.5
TOLERANCE: Final = 0.03
# A limit below this cannot be told from streams that fail; and replacing streams ever faster would be a storm.
LEAST_AGE_S: Final = 0.8
LEAST_SILENCE_S: Final = 2.0
# A base server ends the older of two downloads cleanly. Two clients with one token end each other's in turns, after
# times that are often similar. So more of these have to agree, and better.
CLEAN_ENDS: Final = 3
CLEAN_TOLERANCE_S: Final = 0.25
# A stream is replaced at a random part of its limit between these two: late enough to be worth it, and early enough
# for a connection that has to be opened again. Random, so that many clients of one server do not come together.
SHARE: Final = (0.6, 0.8)
LEAST_SHARE: Final = 0.4  # of the limit, however long it takes to open a stream
LOWER: Final = 0.6  # a stream that is cut at more than this part of the known limit lowers that
# After this a stream is left alone, then after twice that, and so on. Each such attempt costs a cut while the limit
# stands.
RETRY_S: Final = 300.0
RETRY_LIMIT_S: Final = 6 * 3600.0
_REMEMBERED: Final = 3  # cuts


class StreamKind(Enum):
    """Each kind has limits of its own. The values are for people, in plural."""

    DOWNLOAD = "downloads"
    UPLOAD = "uploads"
    WEBSOCKET = "WebSockets"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One stream, now or at its end.

    Attributes:
        age_s: since it was opened.
        silent_s: since the last byte in its direction.
        longest_s: the longest silence before that. A lower bound.
    """

    age_s: float
    silent_s: float
    longest_s: float = 0.0


class SilenceMeter:
    """Measures the silences of one stream by samples, to be taken about once a second."""

    __slots__ = ("_began", "_last_at", "_longest_s", "_silent_until")

    def __init__(self, now: float) -> None:
        """The stream begins."""
        self._began = self._last_at = self._silent_until = now
        self._longest_s = 0.0

    def sample(self, now: float, ago_s: float | None) -> Lifetime:
        """``ago_s``: when the last byte passed, before ``now``; None: not known."""
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
        silence_s: they are ended after this silence; None: silence does not matter. Where nothing was sent but the
            beginning, both may be the cause, and both are set.
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
        """Seconds until then, if the stream stays silent. Not above 0: now."""
        return min(self.age_s - lifetime.age_s, self.silence_s - lifetime.silent_s)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A stream that was ended on the way. None: that cause was disproved meanwhile."""

    age_s: float | None
    silence_s: float | None
    clean: bool


def agree(one_s: float | None, other_s: float | None) -> bool:
    """Whether two ages or two silences can have one cause."""
    return (
        one_s is not None
        and other_s is not None
        and abs(one_s - other_s) <= TOLERANCE_S + TOLERANCE * max(one_s, other_s)
    )


def _disproved(bound_s: float | None, lived_s: float) -> bool:
    """A stream that lived so much longer than this was not ended, so there is no such limit."""
    return bound_s is not None and lived_s > bound_s + 2 * (TOLERANCE_S + TOLERANCE * bound_s)


class AgeLimit:
    """What is known of the limit for one kind of stream.

    Attributes:
        limit: None: none is known.
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
            normal_s: its age where there is no limit.
            opening_s: how long it took to open the newest stream. The next one must be there before the limit.
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
        """A stream has come so far. Returns whether the limit that was known has turned out to be gone."""
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
        """A stream was ended on the way. Returns whether a limit was recognised that was not known.

        Args:
            clean: as if the server had ended it, which a base server may do.
            by_clock: the answer said that it took too long (408), so one is enough.
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
        """Whether a cut is the known limit's. One that came somewhat earlier lowers it: a proxy may notice only with
        the next write that its limit is over."""
        limit = self.limit
        if limit is None:
            return False
        age, silence = _lowered(limit.age_s, new.age_s), _lowered(limit.silence_s, new.silence_s)
        if age is None and silence is None:
            return False
        self.limit = Limit(limit.age_s if age is None else age, limit.silence_s if silence is None else silence)
        if now >= self._retry_at:  # it was left alone
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
        """There is no limit, as far as is known: it has gone, or this is another path."""
        self.limit = None
        self._cuts.clear()
        self._pause_s = RETRY_S
        self._retry_at = math.inf


def _lowered(bound_s: float | None, cut_s: float | None) -> float | None:
    """The bound, lowered to a cut that is not far below it; None: the cut is not the bound's."""
    if bound_s is None or cut_s is None or cut_s < LOWER * bound_s:
        return None
    return min(bound_s, cut_s)


def _agree_well(one_s: float | None, other_s: float | None) -> bool:
    return one_s is not None and other_s is not None and abs(one_s - other_s) <= CLEAN_TOLERANCE_S


def _least(*bounds_s: float | None) -> float:
    return min(bound for bound in bounds_s if bound is not None)


# Ends that something on the way may cause. Anything else is an end of our own, or a fault that time does not explain.
_CUTS: Final = frozenset(
    {
        EndReason.BAD_CHUNK,  # a proxy that ends the connection within a chunk
        EndReason.BAD_FRAME,  # one that ends the body cleanly, wherever it is
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
    """Whether something on the way may have ended a stream that had worked. None: it ended cleanly."""
    return failure is None or failure.reason in _CUTS


class AgeLimits:
    """The limits of all kinds of streams of one client, and what it says of them."""

    __slots__ = ("_limits", "_random", "_rotate_s", "_tell")

    def __init__(
        self, rotate_s: tuple[float, float], tell: Callable[[int, str], None], rng: random.Random | None = None
    ) -> None:
        """
        Args:
            rotate_s: where there is no limit, a stream is replaced at a random age between these two.
            tell: logs a line, at a level.
        """
        self._rotate_s = rotate_s
        self._tell = tell
        self._random = rng or random.Random()
        self._limits = {kind: AgeLimit() for kind in StreamKind}

    def plan(self, kind: StreamKind, now: float, opening_s: float) -> Plan:
        """When to replace a stream that begins now. ``opening_s``: how long it took to open it."""
        return self._limits[kind].plan(now, self._random.uniform(*self._rotate_s), opening_s, self._random)

    def observe(self, kind: StreamKind, lifetime: Lifetime) -> None:
        """A stream has come so far. To be called about once a second, and when a stream has been replaced."""
        limit = self._limits[kind].limit
        if self._limits[kind].observe(lifetime):
            self._tell(
                logging.INFO, f"{kind.value} are no longer ended {limit}: they are replaced at the usual times again"
            )

    def cut(self, kind: StreamKind, lifetime: Lifetime, failure: PeerError | None, now: float, *, base: bool) -> None:
        """A stream that had worked was ended, and neither end has said why. ``base``: the server is a base server."""
        found = self._limits[kind]
        by_clock = failure is not None and failure.reason == EndReason.http(408)
        if found.cut(lifetime, now, clean=base and failure is None, by_clock=by_clock):
            assert found.limit is not None, "it was just recognised"
            self._tell(logging.WARNING, describe(kind, found.limit))

    def limit(self, kind: StreamKind) -> Limit | None:
        """The limit of a kind, if one is known."""
        return self._limits[kind].limit

    def forget(self) -> None:
        """This is another path."""
        for limit in self._limits.values():
            limit.forget()


# Defaults that are well known, by the seconds; then what to look for where none of them is near.
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
    """The settings that are probably the cause, for people."""
    known, others = [], []
    for table, bound_s in ((_AGES, limit.age_s), (_SILENCES, limit.silence_s)):
        if bound_s is not None:
            defaults, other = table[kind]
            known += [text for seconds, text in defaults.items() if agree(seconds, bound_s)]
            others.append(other)
    return "; ".join(known or others)


def describe(kind: StreamKind, limit: Limit) -> str:
    """The line that names a limit, what it probably is, and what follows from it."""
    least_s, most_s = (share * limit.least_s for share in SHARE)
    return (
        f"something on the way ends {kind.value} {limit}, probably {likely(kind, limit)}; raise that limit. Until then "
        f"each is replaced in time, after {least_s:.1f} to {most_s:.1f} s, and nothing is lost"
    )
