"""Measures how long a silent stream lives before something on the path ends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from .measured import Idle
from .streams import Progress, Receiver, Uploader

# Both limits are below the times at which a server itself pings a base client's download (55 s) or ends its upload (90
# s).
DOWNLOAD_LIMIT_S: Final = 54.0
LIMIT_S: Final = 80.0
LATE_S: Final = 3.0


async def measure_idle(
    idle: Idle, up: Uploader, down: Receiver, progress: Progress, still_ours: Callable[[], Awaitable[bool]]
) -> None:
    """Keep both streams silent until they end, and fill ``idle`` in, even if this is cancelled.

    ``still_ours``: whether no other client has taken the token over. Called after a clean end of the download, which
    may come from a server whose download was replaced, or from Caddy after a timeout.
    """
    up_began, down_began = up.last_at, down.last_at
    try:
        await _wait(idle, up, down, progress)
    finally:
        now = trio.current_time()
        idle.upload_tested_s = (up.ended_at if up.ended else now) - up_began
        if up.ended:
            idle.upload_s, idle.upload_status = idle.upload_tested_s, up.status
        # The longest silence that is certain is the one after the last byte, or the one before it.
        silent_s = (down.ended_at if down.ended else now) - down.last_at
        idle.download_tested_s = min(max(silent_s, down.last_at - down_began), DOWNLOAD_LIMIT_S)
        if down.failure is not None:
            idle.download_s = silent_s
    # Caddy keeps an upload open after its upstream has timed out, and responds only when the upload ends. The server
    # also responds at the end of a good upload, with 200.
    if not up.ended and await up.finish(LATE_S) and up.status != 200:
        idle.upload_s, idle.upload_status, idle.upload_late = idle.upload_tested_s, up.status, True
    if down.clean:
        idle.download_tested_s = 0.0
        if await still_ours():
            idle.download_s = idle.download_tested_s = silent_s


async def _wait(idle: Idle, up: Uploader, down: Receiver, progress: Progress) -> None:
    """Wait until both have ended or the time is up."""
    began = trio.current_time()
    if await progress.until(lambda: up.ended or down.ended, idle.limit_s):
        ended_up = up.ended
        left_s = idle.limit_s - (trio.current_time() - began)
        await progress.until(lambda: down.ended if ended_up else up.ended, left_s)
