"""What a client sends its frames over, as `TransportSelector` decides it."""

from __future__ import annotations

import logging

import pytest

from tapotun_trio.client.transport_choice import (
    RETRY_LIMIT_S,
    RETRY_S,
    UPLOAD_SEEN_S,
    TransportSelector,
    TransportState,
)
from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.log import interface_logger
from tapotun_trio.wire import control

NO_WEBSOCKET = PeerError("http://h/ip answered 426 to a WebSocket", reason=EndReason.NO_WEBSOCKET)


@pytest.fixture
def selector() -> TransportSelector:
    selector = TransportSelector("auto", "h:80", interface_logger("tun0"))
    selector.offered = True
    return selector


def upload(selector: TransportSelector, now: float) -> int:
    number = selector.next_upload_number()
    selector.upload_began(number, now)
    return number


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]


def test_changes_when_an_upload_was_not_seen_in_time(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture
) -> None:
    upload(selector, 10.0)
    assert not selector.try_websocket(10.0 + UPLOAD_SEEN_S - 0.01)
    assert selector.try_websocket(10.0 + UPLOAD_SEEN_S)
    assert selector.websocket
    assert not selector.try_websocket(20.0)  # it is under way
    assert told(caplog) == []
    selector.websocket_opened(0.0)
    (text,) = told(caplog)
    assert "h:80 holds the upload back" in text
    assert "proxy_request_buffering off" in text
    selector.websocket_opened(0.0)  # at its rotation
    assert len(told(caplog)) == 1


def test_stays_when_it_was(selector: TransportSelector) -> None:
    number = upload(selector, 0.0)
    selector.upload_seen(number, 2.9)
    assert not selector.try_websocket(100.0)
    upload(selector, 100.0)
    selector.upload_seen(None, 101.0)  # by a server that does not say which
    assert not selector.try_websocket(200.0)


def test_uploads_that_break_have_the_time_together(selector: TransportSelector) -> None:
    """A proxy that refuses with a 413 what it would have held back."""
    for now in (0.0, 1.0, 2.0):
        upload(selector, now)
    assert selector.try_websocket(3.0)


def test_what_is_delivered_late_was_held_back(selector: TransportSelector) -> None:
    first = upload(selector, 0.0)
    upload(selector, 4.0)
    selector.upload_seen(first, 4.1)
    assert selector.try_websocket(4.2)


def test_without_a_download_nothing_is_known(selector: TransportSelector) -> None:
    upload(selector, 0.0)
    selector.download_ended()
    assert not selector.try_websocket(100.0)


def test_a_refused_websocket_is_tried_again_ever_more_rarely(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture
) -> None:
    upload(selector, 0.0)
    now, pause_s = 3.0, RETRY_S
    for _ in range(12):
        assert selector.try_websocket(now)
        assert selector.websocket_failed(NO_WEBSOCKET, now)
        assert not selector.websocket
        assert not selector.try_websocket(now + pause_s - 0.1)
        now += pause_s
        pause_s = min(2 * pause_s, RETRY_LIMIT_S)
    (text,) = told(caplog)
    assert "does not pass either" in text
    assert "staying with HTTP" in text


def test_what_was_said_is_said_again_if_it_was_well_in_between(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture
) -> None:
    for start in (0.0, 100.0):
        number = upload(selector, start)
        assert selector.try_websocket(start + 3)
        selector.websocket_opened(0.0)
        selector.http_works()
        number = upload(selector, start + 50)
        selector.upload_seen(number, start + 50.1)
    assert len(told(caplog)) == 2


def test_a_server_that_restarts_does_not_end_websockets(selector: TransportSelector) -> None:
    restarting = PeerError("502", reason=EndReason.http(502))
    selector.state = TransportState.WEBSOCKET
    assert not selector.websocket_failed(restarting, 0.0)
    assert selector.websocket
    selector.state = TransportState.TRYING_WEBSOCKET
    assert selector.websocket_failed(restarting, 0.0)
    assert not selector.websocket


def test_a_path_that_is_down_is_nobodys_fault(selector: TransportSelector, caplog: pytest.LogCaptureFixture) -> None:
    upload(selector, 0.0)
    assert selector.try_websocket(3.0)
    assert not selector.websocket_failed(PeerError("no connection", reason=EndReason.CONNECT), 4.0)
    assert not selector.websocket
    assert told(caplog) == []


def test_another_path_begins_anew(selector: TransportSelector) -> None:
    upload(selector, 0.0)
    assert selector.try_websocket(3.0)
    assert selector.websocket_failed(NO_WEBSOCKET, 3.0)
    selector.path_changed()
    upload(selector, 5.0)
    assert not selector.try_websocket(7.0)
    assert selector.try_websocket(8.0)


def test_numbers_are_remembered_for_a_while(selector: TransportSelector) -> None:
    first = upload(selector, 0.0)
    for _ in range(100):
        upload(selector, 0.0)
    selector.upload_seen(first, 0.1)
    assert selector.try_websocket(3.0)


@pytest.mark.parametrize("offered", [False, True])
def test_http_is_http(offered: bool, caplog: pytest.LogCaptureFixture) -> None:
    selector = TransportSelector("http", "h:80", interface_logger("tun0"))
    selector.offered = offered
    assert selector.features == {control.CTL}
    assert selector.no_fallback
    upload(selector, 0.0)
    assert selector.held_back(3.0)
    assert not selector.try_websocket(3.0)
    selector.warn_held_back(0.0)
    selector.warn_held_back(0.0)
    assert len(told(caplog)) == 1


def test_websocket_is_websocket() -> None:
    selector = TransportSelector("websocket", "h:80", interface_logger("tun0"))
    assert selector.features == {control.CTL, control.WS}
    assert not selector.websocket_failed(NO_WEBSOCKET, 0.0)
    selector.http_works()
    selector.path_changed()
    assert selector.websocket


def test_a_download_that_replaces_a_lost_one_has_time_to_say_what_arrived(selector: TransportSelector) -> None:
    """What the server said of the upload may be lost with the older download; it says so again on the new one."""
    number = upload(selector, 10.0)
    selector.download_began(12.5)
    assert not selector.try_websocket(10.0 + UPLOAD_SEEN_S)
    assert not selector.uploads_pass(13.0)
    selector.upload_seen(number, 12.5 + UPLOAD_SEEN_S - 0.1)
    assert selector.uploads_pass(13.0)
    assert not selector.try_websocket(100.0)


def test_an_upload_that_is_held_back_is_so_beside_a_new_download_too(selector: TransportSelector) -> None:
    upload(selector, 10.0)
    selector.download_began(12.5)
    assert selector.try_websocket(12.5 + UPLOAD_SEEN_S)


def test_a_new_download_doubts_no_upload_that_has_arrived(selector: TransportSelector) -> None:
    selector.upload_seen(upload(selector, 10.0), 10.1)
    selector.download_began(12.5)
    assert selector.uploads_pass(12.6)
    assert not selector.try_websocket(100.0)
