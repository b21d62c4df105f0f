"""After how long a silence something on the way ends a stream."""

from __future__ import annotations

from typing import Final

import trio

from .measured import Idle, Measured
from .streams import News, Receiver, Uploader

# A server pings a base client's download, and gives its upload up.
DOWNLOAD_LIMIT_S: Final = 54.0
LIMIT_S: Final = 80.0


async def measure_idle(it: Measured, limit_s: float, up: Uploader, down: Receiver, news: News) -> None:
    """Both streams are silent, each as long as it lives. Fills ``it`` in, also if it is cancelled."""
    idle = it.idle = Idle(limit_s)
    up_began, down_began = up.last_at, down.last_at
    with trio.move_on_after(limit_s):
        while not (up.ended and down.ended):
            await news.until(lambda: up.ended or down.ended, limit_s)
            _note(it, idle, up, down, up_began)
            if up.ended != down.ended:
                ended_up = up.ended
                await news.until(lambda ended_up=ended_up: down.ended if ended_up else up.ended, limit_s)  # type: ignore[misc]
    _note(it, idle, up, down, up_began)
    now = trio.current_time()
    if idle.upload_s is None and not up.ended:
        idle.upload_tested_s = now - up_began
    if idle.download_s is None and not down.ended:
        # The longest silence that is sure: from the last byte on, or from the first to a ping in between.
        idle.download_tested_s = max(now - down.last_at, down.last_at - down_began)
        idle.download_tested_s = min(idle.download_tested_s, DOWNLOAD_LIMIT_S)


def _note(it: Measured, idle: Idle, up: Uploader, down: Receiver, up_began: float) -> None:
    """What has ended by now, each once."""
    if up.ended and idle.upload_s is None:
        idle.upload_s, idle.upload_status = up.ended_at - up_began, up.status
        idle.upload_tested_s = idle.upload_s
    if down.ended and idle.download_s is None:
        if down.clean:  # which no timeout does
            if "idle download: the server ended it" not in it.not_tested:
                it.not_tested.append("idle download: the server ended it")
        else:
            idle.download_s = trio.current_time() - down.last_at
            idle.download_tested_s = idle.download_s
