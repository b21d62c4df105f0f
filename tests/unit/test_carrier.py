"""What carries a client's frames, as `Carrier` decides it."""

from __future__ import annotations

import logging

import pytest

from tapotun_trio.client.transport_choice import RETRY_LIMIT_S, RETRY_S, UPLOAD_SEEN_S, Carrier
from tapotun_trio.errors import PeerError
from tapotun_trio.log import interface_logger
from tapotun_trio.wire import control

NO_WEBSOCKET = PeerError("http://h/ip answered 426 to a WebSocket", reason="no-websocket")


@pytest.fixture
def carrier() -> Carrier:
    carrier = Carrier("auto", "h:80", interface_logger("tun0"))
    carrier.offered = True
    return carrier


def upload(carrier: Carrier, now: float) -> int:
    number = carrier.number()
    carrier.upload_begins(number, now)
    return number


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]


def test_changes_when_an_upload_was_not_seen_in_time(carrier: Carrier, caplog: pytest.LogCaptureFixture) -> None:
    upload(carrier, 10.0)
    assert not carrier.change(10.0 + UPLOAD_SEEN_S - 0.01)
    assert carrier.change(10.0 + UPLOAD_SEEN_S)
    assert carrier.websocket
    assert not carrier.change(20.0)  # it is under way
    assert told(caplog) == []
    carrier.changed()
    (text,) = told(caplog)
    assert "h:80 holds the upload back" in text
    assert "proxy_request_buffering off" in text
    carrier.changed()  # at its rotation
    assert len(told(caplog)) == 1


def test_stays_when_it_was(carrier: Carrier) -> None:
    number = upload(carrier, 0.0)
    carrier.upload_seen(number, 2.9)
    assert not carrier.change(100.0)
    upload(carrier, 100.0)
    carrier.upload_seen(None, 101.0)  # by a server that does not say which
    assert not carrier.change(200.0)


def test_uploads_that_break_have_the_time_together(carrier: Carrier) -> None:
    """A proxy that refuses with a 413 what it would have held back."""
    for now in (0.0, 1.0, 2.0):
        upload(carrier, now)
    assert carrier.change(3.0)


def test_what_is_delivered_late_was_held_back(carrier: Carrier) -> None:
    first = upload(carrier, 0.0)
    upload(carrier, 4.0)
    carrier.upload_seen(first, 4.1)
    assert carrier.change(4.2)


def test_without_a_download_nothing_is_known(carrier: Carrier) -> None:
    upload(carrier, 0.0)
    carrier.download_ends()
    assert not carrier.change(100.0)


def test_a_refused_websocket_is_tried_again_ever_more_rarely(
    carrier: Carrier, caplog: pytest.LogCaptureFixture
) -> None:
    upload(carrier, 0.0)
    now, pause_s = 3.0, RETRY_S
    for _ in range(12):
        assert carrier.change(now)
        assert carrier.fails(NO_WEBSOCKET, now, established=False)
        assert not carrier.websocket
        assert not carrier.change(now + pause_s - 0.1)
        now += pause_s
        pause_s = min(2 * pause_s, RETRY_LIMIT_S)
    (text,) = told(caplog)
    assert "does not pass either" in text
    assert "staying with HTTP" in text


def test_what_was_said_is_said_again_if_it_was_well_in_between(
    carrier: Carrier, caplog: pytest.LogCaptureFixture
) -> None:
    for start in (0.0, 100.0):
        number = upload(carrier, start)
        assert carrier.change(start + 3)
        carrier.changed()
        carrier.back_to_http()
        number = upload(carrier, start + 50)
        carrier.upload_seen(number, start + 50.1)
    assert len(told(caplog)) == 2


def test_a_server_that_restarts_does_not_end_websockets(carrier: Carrier) -> None:
    carrier.websocket = True
    restarting = PeerError("502", reason="http-502")
    assert not carrier.fails(restarting, 0.0, established=True)
    assert carrier.websocket
    assert carrier.fails(restarting, 0.0, established=False)
    assert not carrier.websocket


def test_a_path_that_is_down_is_nobodys_fault(carrier: Carrier, caplog: pytest.LogCaptureFixture) -> None:
    upload(carrier, 0.0)
    assert carrier.change(3.0)
    assert not carrier.fails(PeerError("no connection", reason="connect"), 4.0, established=False)
    assert not carrier.websocket
    assert told(caplog) == []


def test_another_path_begins_anew(carrier: Carrier) -> None:
    upload(carrier, 0.0)
    assert carrier.change(3.0)
    assert carrier.fails(NO_WEBSOCKET, 3.0, established=False)
    carrier.forget()
    upload(carrier, 5.0)
    assert not carrier.change(7.0)
    assert carrier.change(8.0)


def test_numbers_are_remembered_for_a_while(carrier: Carrier) -> None:
    first = upload(carrier, 0.0)
    for _ in range(100):
        upload(carrier, 0.0)
    carrier.upload_seen(first, 0.1)
    assert carrier.change(3.0)


@pytest.mark.parametrize("offered", [False, True])
def test_http_is_http(offered: bool, caplog: pytest.LogCaptureFixture) -> None:
    carrier = Carrier("http", "h:80", interface_logger("tun0"))
    carrier.offered = offered
    assert carrier.features == {control.CTL}
    assert carrier.helpless
    upload(carrier, 0.0)
    assert carrier.held_back(3.0)
    assert not carrier.change(3.0)
    carrier.blame()
    carrier.blame()
    assert len(told(caplog)) == 1


def test_websocket_is_websocket() -> None:
    carrier = Carrier("websocket", "h:80", interface_logger("tun0"))
    assert carrier.features == {control.CTL, control.WS}
    assert not carrier.fails(NO_WEBSOCKET, 0.0, established=False)
    carrier.back_to_http()
    carrier.forget()
    assert carrier.websocket
