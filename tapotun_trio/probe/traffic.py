"""Measures the streams: whether they forward bytes as they arrive, the round trip, and the throughput.

Only control frames are sent: PINGs, whose payload of any size comes back, and PADDING, which every peer skips. No
packet is sent, so none reaches the server's network.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Final

import trio

from ..client.transport_choice import UPLOAD_SEEN_S
from ..wire import control
from .measured import Direction, Rtt, Throughput
from .streams import Progress, Receiver, Uploader

# The total of the bytes sent after each step, until something arrives: Apache's prefetch and HAProxy's buffer are 16
# KiB, nginx's buffers in our recipe 64 KiB.
GROWTH_BYTES: Final = tuple(1 << n for n in range(10, 20))
STEP_S: Final = 0.3
# More than nginx's default limit of 1 MiB (client_max_body_size).
BEYOND_BYTES: Final = 1_300_000
BEYOND_S: Final = 1.5
END_S: Final = 3.0

PINGS: Final = 10
PING_S: Final = 2.0
PAUSE_S: Final = 0.02

# Fills two full segments and a small one. If the full ones are lost, the other end sees a gap before the small one.
LARGE_BYTES: Final = 3_000
# The kernel retransmits a lost segment five times within this time.
LARGE_S: Final = 10.0

LOAD_S: Final = 1.5
LOAD_BYTES: Final = 64 << 20
# Send at least this much, even on a slow path, so that a limit of 1 MiB is noticed.
LEAST_BYTES: Final = 2_000_000
LEAST_S: Final = 8.0
PIECE_BYTES: Final = 32 * 1024
WINDOW_BYTES: Final = (2 * PIECE_BYTES, 1 << 20)
SETTLE_S: Final = 8.0

_NOISE: Final = os.urandom(PIECE_BYTES)  # incompressible


def padding(size_bytes: int) -> bytes:
    """PADDING frames of about ``size_bytes``, which the other end skips."""
    pieces = [
        control.encode(control.PADDING, _NOISE[: min(PIECE_BYTES, size_bytes - at)])
        for at in range(0, size_bytes, PIECE_BYTES)
    ]
    return b"".join(pieces)


async def wait_for_first(
    stream: Direction,
    up: Uploader,
    progress: Progress,
    arrived: Callable[[], bool],
    fill: Callable[[int], bytes],
    rtt_s: float,
) -> bool:
    """Send a little and wait, then more and more until ``arrived``, and finally the end of the body. Fills ``stream``
    in.

    Returns whether the path forwards bytes as they arrive.
    """
    began = trio.current_time()
    done = lambda: arrived() or up.ended  # noqa: E731
    await up.send(fill(16))
    if await progress.until(done, UPLOAD_SEEN_S) and arrived():
        stream.state = "streams"
        stream.held_ms = max(0.0, (trio.current_time() - began - rtt_s) * 1e3)
        return True
    for total in GROWTH_BYTES:
        if up.ended or not await up.send(fill(max(16, total - up.sent_bytes))):
            break
        if await progress.until(done, STEP_S + 3 * rtt_s) and arrived():
            stream.state, stream.held_bytes = "held-back", up.sent_bytes
            return False
    if not up.ended:
        await up.send(fill(BEYOND_BYTES - up.sent_bytes))
        if await progress.until(done, BEYOND_S + 3 * rtt_s) and arrived():
            stream.state, stream.held_bytes = "held-back", up.sent_bytes
            return False
    if up.ended:
        stream.status, stream.ended_after_bytes = up.status, up.sent_bytes
        stream.error = up.refusal or (None if up.failure is None else str(up.failure))
        limited = up.status == 413 and up.sent_bytes >= GROWTH_BYTES[0]  # otherwise it was refused at once
        stream.state = "held-back" if limited else "broken"
        return False
    stream.state = "held-back"
    await up.finish(END_S)
    stream.held_until_end = arrived() or up.status == 200
    return False


async def round_trips(up: Uploader, down: Receiver, progress: Progress) -> Rtt | None:
    """Measure round trips with one PING at a time. None: no PING was answered."""
    samples: list[float] = []
    for _ in range(PINGS):
        number, ping = up.ping()
        began = trio.current_time()
        if not await up.send(ping):
            break
        await progress.until(lambda number=number: down.pong >= number or down.ended or up.ended, PING_S)  # type: ignore[misc]
        if down.pong < number:
            break
        samples.append((trio.current_time() - began) * 1e3)
        await trio.sleep(PAUSE_S)
    if not samples:
        return None
    return Rtt(len(samples), min(samples), statistics.median(samples), max(samples))


async def large_packets(up: Uploader, down: Receiver, progress: Progress) -> bool:
    """Whether a PING and its PONG of several full segments pass. If they do not, `segments.LossWatch` finds out why."""
    number, ping = up.ping(LARGE_BYTES, _NOISE)
    await up.send(ping)
    await progress.until(lambda: down.pong >= number or down.ended or up.ended, LARGE_S)
    return down.pong >= number


async def throughput(up: Uploader, down: Receiver, progress: Progress, rtt_s: float) -> Throughput:
    """Measure up with PADDING, until a PONG shows that all of it has arrived; then down with the echoes of PINGs."""
    result = Throughput()
    before, began = up.sent_bytes, trio.current_time()
    frame = padding(PIECE_BYTES)
    while await up.send(frame):
        sent, took = up.sent_bytes - before, trio.current_time() - began
        if sent >= LOAD_BYTES or took >= (LOAD_S if sent >= LEAST_BYTES else LEAST_S):
            break
    number, ping = up.ping()
    await up.send(ping)
    await progress.until(lambda: down.pong >= number or down.ended or up.ended, SETTLE_S)
    result.sent_bytes = up.sent_bytes - before
    if down.pong >= number:
        took = max(trio.current_time() - began - rtt_s, 1e-4)
        result.up_mbit_s = result.sent_bytes * 8 / took / 1e6
        window = result.sent_bytes / took * 2 * (rtt_s + 0.05)
        await _echo(result, up, down, progress, int(min(max(window, WINDOW_BYTES[0]), WINDOW_BYTES[1])))
    return result


async def _echo(result: Throughput, up: Uploader, down: Receiver, progress: Progress, window_bytes: int) -> None:
    ahead = max(2, window_bytes // PIECE_BYTES)
    began = trio.current_time()
    down.measure_pongs()
    before = up.sent_bytes
    number = down.pong
    while trio.current_time() - began < LOAD_S and up.sent_bytes - before < LOAD_BYTES:
        number, ping = up.ping(PIECE_BYTES, _NOISE)
        if not await up.send(ping):
            break
        await progress.until(lambda number=number: number - down.pong < ahead or down.ended or up.ended, 1.0)  # type: ignore[misc]
    await progress.until(lambda: down.pong >= number or down.ended or up.ended, 1.0)
    result.sent_bytes += up.sent_bytes - before
    took = down.pong_at - down.first_pong_at
    if took > 0 and down.pong_bytes > down.first_pong_bytes:
        result.down_mbit_s = (down.pong_bytes - down.first_pong_bytes) * 8 / took / 1e6
