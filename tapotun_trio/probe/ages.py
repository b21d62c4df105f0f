"""Measures whether something on the path ends streams at a fixed age, although data flows on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..client.ages import AgeLimit, Lifetime, agree
from .measured import Ages
from .streams import Progress, Receiver, Uploader

MAX_AGE_S: Final = 3600.0
# Gives both streams more than 500 bytes a second. Apache's RequestReadTimeout ends an upload that is slower.
PING_S: Final = 0.25
PING_BYTES: Final = 1024
# A stream that lives to BEYOND times an age plus BEYOND_S shows that the age is not a limit.
BEYOND: Final = 1.15
BEYOND_S: Final = 1.0


class AgeSearch:
    """Searches for the age limits of both directions with one pair of streams after another.

    The search is over when each direction has either ended twice at the same age, or outlived the tested age.
    """

    def __init__(self, ages: Ages) -> None:
        """``ages``: receives the results."""
        self._ages = ages
        self._limits = AgeLimit(), AgeLimit()
        self.next_s = ages.limit_s  # how long to watch the next pair; 0: no further pair is needed

    async def watch(
        self, open_upload: Callable[[], Awaitable[Uploader]], down: Receiver, progress: Progress
    ) -> Uploader:
        """Keep a pair of streams busy until both have ended, or until `next_s`. Returns the newest upload.

        ``down`` has just begun. An upload that ends is followed by another, so that data still flows on the download: a
        proxy may end a download only when it has something to write.
        """
        began = trio.current_time()
        first = up = await open_upload()
        with trio.move_on_after(self.next_s):
            while not (first.ended and down.ended):
                if up.ended:
                    up = await open_upload()
                _, ping = up.ping(PING_BYTES, bytes(PING_BYTES))
                await up.send(ping)
                await progress.until(lambda: first.ended and down.ended, PING_S)
        self._learn(first, down, began)
        return up

    def _learn(self, up: Uploader, down: Receiver, began: float) -> None:
        ages, now = self._ages, trio.current_time()
        lifetimes = _lifetime(down, began, now), _lifetime(up, began, now)
        ages.download_tested_s = max(ages.download_tested_s, lifetimes[0].age_s)
        ages.upload_tested_s = max(ages.upload_tested_s, lifetimes[1].age_s)
        unclear: list[float] = []
        for limit, lifetime, ended in zip(self._limits, lifetimes, (down.ended, up.ended), strict=True):
            if not ended:
                limit.observe(lifetime)
            elif not limit.cut(lifetime, now) and limit.limit is None:
                unclear.append(lifetime.age_s)
        ages.download_s, ages.upload_s = map(_age_of, self._limits)
        self.next_s = max((BEYOND * age_s + BEYOND_S for age_s in unclear), default=0.0)


def _lifetime(stream: Uploader | Receiver, began: float, now: float) -> Lifetime:
    end = stream.ended_at if stream.ended else now
    return Lifetime(end - began, end - stream.last_at)


def _age_of(found: AgeLimit) -> float | None:
    """The age limit; None: there is none, or silence may be the cause, since a download is silent without PONGs."""
    return None if found.limit is None or found.limit.silence_s is not None else found.limit.age_s


def is_same_limit(age_s: float | None, silence_s: float) -> bool:
    """Whether the age limit alone explains that a silent stream ended after ``silence_s``."""
    return age_s is not None and (agree(age_s, silence_s) or silence_s > age_s)
