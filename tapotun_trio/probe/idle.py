"""After how long a silence something on the way ends a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from .measured import Idle
from .streams import News, Receiver, Uploader

# A server pings a base client's download, and gives its upload up.
DOWNLOAD_LIMIT_S: Final = 54.0
LIMIT_S: Final = 80.0
LATE_S: Final = 3.0


async def measure_idle(
    idle: Idle, up: Uploader, down: Receiver, news: News, still_ours: Callable[[], Awaitable[bool]]
) -> None:
    """Both streams are silent, each for as long as it lives. Fills ``idle`` in, also if it is cancelled.

    ``still_ours``: asked after a download came to a clean end, as a server ends one that another client's replaces, and
    Caddy one that timed out.
    """
    up_began, down_began = up.last_at, down.last_at
    try:
        await _wait(idle, up, down, news)
    finally:
        now = trio.current_time()
        idle.upload_tested_s = (up.ended_at if up.ended else now) - up_began
        if up.ended:
            idle.upload_s, idle.upload_status = idle.upload_tested_s, up.status
        # The longest silence that is sure: since the last byte, or up to it.
        silent_s = (down.ended_at if down.ended else now) - down.last_at
        idle.download_tested_s = min(max(silent_s, down.last_at - down_began), DOWNLOAD_LIMIT_S)
        if down.failure is not None:
            idle.download_s = silent_s
    # Caddy keeps an upload whose other side has timed out, and answers when it has ended: so does the server to a good
    # one, with 200.
    if not up.ended and await up.finish(LATE_S) and up.status != 200:
        idle.upload_s, idle.upload_status, idle.upload_late = idle.upload_tested_s, up.status, True
    if down.clean:
        idle.download_tested_s = 0.0
        if await still_ours():
            idle.download_s = idle.download_tested_s = silent_s


async def _wait(idle: Idle, up: Uploader, down: Receiver, news: News) -> None:
    """Until both have ended, or time is up."""
    began = trio.current_time()
    if await news.until(lambda: up.ended or down.ended, idle.limit_s):
        ended_up = up.ended
        left_s = idle.limit_s - (trio.current_time() - began)
        await news.until(lambda: down.ended if ended_up else up.ended, left_s)
