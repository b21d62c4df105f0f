"""What fails again and again is told once for each cause, whatever its text; and again when all had been well."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tapotun_trio.client.failure_log import SHORTAGE_S, FailureLog
from tapotun_trio.errors import EndReason, PeerError, ShortageError, shortage_of
from tapotun_trio.host.net.sockets import GONE
from tapotun_trio.log import interface_logger

from .hostile import logged


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    with logged() as records:
        yield records


def lines(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if record.levelno >= logging.INFO]


def short() -> ShortageError:
    found = shortage_of(OSError(errno.EMFILE, ""), "cannot connect")
    assert found is not None
    return found


async def test_one_cause_with_several_texts_is_one_line(log: list[logging.LogRecord]) -> None:
    failure_log = FailureLog(interface_logger("tun0"))
    for text in ("refused by 192.0.2.1, 192.0.2.2", "refused by 192.0.2.2, 192.0.2.1", "refused by 192.0.2.3"):
        failure_log.log("download", PeerError(text, reason=EndReason.REFUSED, key="refused"), 1.0)
    assert lines(log) == ["download: refused by 192.0.2.1, 192.0.2.2; trying again in 1.0 s"]
    assert failure_log.latest == "download: refused by 192.0.2.3"


@pytest.mark.parametrize("first", [0, 1, 2])
async def test_a_server_that_goes_is_one_failure(log: list[logging.LogRecord], first: int) -> None:
    """A reset, an end within a frame, an end within a chunk: that is a matter of moments."""
    signs = [
        PeerError("connection to 192.0.2.1:80 broke: Connection reset by peer", reason=EndReason.BROKEN, key=GONE),
        PeerError("the connection closed within a frame", reason=EndReason.CLOSED),
        PeerError("connection closed inside a chunked body", reason=EndReason.CLOSED),
    ]
    failure_log = FailureLog(interface_logger("tun0"))
    for failure in signs[first:] + signs[:first]:
        failure_log.log("download", failure, 0.0)
    assert len(lines(log)) == 1
    failure_log.log("download", PeerError("connection broke: No route to host", reason=EndReason.BROKEN), 0.0)
    assert len(lines(log)) == 2


async def test_a_shortage_is_one_failure_of_all_streams(log: list[logging.LogRecord]) -> None:
    failure_log = FailureLog(interface_logger("tun0"))
    for _ in range(3):
        for stream in ("download", "upload", "WebSocket"):
            failure_log.log(stream, short(), 1.0)
    assert len(lines(log)) == 1


async def test_a_shortage_that_comes_and_goes_is_told_now_and_then(
    log: list[logging.LogRecord], autojump_clock: trio.testing.MockClock
) -> None:
    failure_log = FailureLog(interface_logger("tun0"))
    for _ in range(int(2.5 * SHORTAGE_S)):
        failure_log.log("download", short(), 1.0)
        failure_log.clear()  # one attempt in between was good
        await trio.sleep(1)
    assert len(lines(log)) == 3
    assert "more since the last such line" in lines(log)[1]


async def test_what_fails_after_all_was_well_is_news(log: list[logging.LogRecord]) -> None:
    failure_log = FailureLog(interface_logger("tun0"))
    for _ in range(2):
        failure_log.log("upload", PeerError("x", reason=EndReason.SILENT), 0.0)
        failure_log.clear()
        assert failure_log.latest is None
    assert len(lines(log)) == 2


async def test_when_it_is_tried_again(log: list[logging.LogRecord]) -> None:
    failure_log = FailureLog(interface_logger("tun0"))
    for number, wait_s in enumerate((0.0, 0.04, 0.1, 2.0)):
        failure_log.log("download", PeerError(f"x{number}", reason=EndReason.SILENT), wait_s)
    assert [line.partition("; ")[2] for line in lines(log)] == [
        "trying again at once",
        "trying again at once",
        "trying again in 0.1 s",
        "trying again in 2.0 s",
    ]


async def test_one_stream_that_works_says_nothing_about_the_other(log: list[logging.LogRecord]) -> None:
    failure_log = FailureLog(interface_logger("tun0"))

    def fail(stream: str) -> int:
        before = len(lines(log))
        failure_log.log(stream, PeerError("refused", reason=EndReason.REFUSED), 1.0)
        return len(lines(log)) - before

    assert (fail("upload"), fail("download")) == (1, 1)
    failure_log.clear(keep="upload")
    assert failure_log.latest == "upload: refused"
    assert (fail("upload"), fail("download")) == (0, 1)
    failure_log.clear("upload")
    assert (fail("upload"), fail("download")) == (1, 0)
