"""Frames on their way to whichever stream is the newest."""

import threading
import time
from collections import deque
from typing import Final

from .link import Bell

_TAKE_BYTES: Final = 1 << 20


class Outbox:
    """A queue that one stream at a time owns: "the newest GET of a token gets all frames from then on".

    `max_bytes` and `max_age_s` are a base server's limits: "at most 12 MiB of frames per client and drops
    queued frames older than 100 ms".
    """

    def __init__(self, max_bytes: int | None = None, max_age_s: float | None = None) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._lock = threading.Lock()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._owner: Bell | None = None
        self.dropped = 0

    def put(self, frame: bytes) -> None:
        """Queue an encoded frame; never blocks."""
        with self._lock:
            self._expire()
            self._queue.append((time.monotonic(), frame))
            self._bytes += len(frame)
            while self._max_bytes is not None and self._bytes > self._max_bytes:
                self._drop()
            if self._owner is not None:
                self._owner.ring()

    def claim(self, bell: Bell) -> None:
        """Make this stream the one that gets the frames; the one before it is woken."""
        with self._lock:
            before, self._owner = self._owner, bell
            if before is not None:
                before.ring()

    def release(self, bell: Bell) -> None:
        """The stream is over; a later owner keeps the queue."""
        with self._lock:
            if self._owner is bell:
                self._owner = None

    def owned_by(self, bell: Bell) -> bool:
        """Whether no newer stream has claimed the queue."""
        with self._lock:
            return self._owner is bell

    def take(self, bell: Bell) -> list[bytes]:
        """Some frames, oldest first; none for a stream that owns nothing (any more)."""
        taken: list[bytes] = []
        with self._lock:
            if self._owner is not bell:
                return taken
            self._expire()
            size = 0
            while self._queue and size < _TAKE_BYTES:
                frame = self._queue.popleft()[1]
                size += len(frame)
                taken.append(frame)
            self._bytes -= size
        return taken

    def _expire(self) -> None:
        if self._max_age_s is None:
            return
        oldest = time.monotonic() - self._max_age_s
        while self._queue and self._queue[0][0] < oldest:
            self._drop()

    def _drop(self) -> None:
        self._bytes -= len(self._queue.popleft()[1])
        self.dropped += 1
