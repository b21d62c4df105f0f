"""What a client sends its frames over, as `TransportSelector` decides it."""

from __future__ import annotations

import logging

import pytest

from tapotun_trio.client.transport_choice import (
    CUTS,
    CUTS_S,
    GET_ANSWER_S,
    GET_RETRY_S,
    RETRY_LIMIT_S,
    RETRY_S,
    UPLOAD_SEEN_S,
    TransportSelector,
    TransportState,
)
from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.http.refusal import RefusedError
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
    selector.websocket_opened(20.0)
    (text,) = told(caplog)
    assert "h:80 holds the upload back" in text
    assert "proxy_request_buffering off" in text
    selector.websocket_opened(20.0)  # at its rotation
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
        selector.websocket_opened(20.0)
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
    assert selector.features == {control.CTL, control.INET6, control.TAP}
    assert selector.no_fallback
    upload(selector, 0.0)
    assert selector.held_back(3.0)
    assert not selector.try_websocket(3.0)
    assert selector.problem(3.0) is None
    selector.warn_held_back(3.0)
    selector.warn_held_back(3.0)
    assert "holds the upload back" in (selector.problem(3.0) or "")
    assert len(told(caplog)) == 1


def test_websocket_is_websocket() -> None:
    selector = TransportSelector("websocket", "h:80", interface_logger("tun0"))
    assert selector.features == {control.CTL, control.WS, control.INET6, control.TAP}
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


# ------------------------------------------------------------------ uploads that are refused


def refused(status: int, *, own: bool = False) -> RefusedError:
    return RefusedError(f"http://h/ip answered {status}", status=status, is_own=own)


CLOSED = PeerError("the server closed the connection without an answer", reason=EndReason.CLOSED, key="no answer")
RESET = PeerError("connection broke: Connection reset by peer", reason=EndReason.BROKEN)


@pytest.mark.parametrize("failure", [refused(405), refused(403), refused(413), CLOSED, RESET], ids=lambda it: it.reason)
@pytest.mark.parametrize("pending", [False, True], ids=["all refused", "another one under way"])
def test_a_refused_upload_is_not_held_back(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture, failure: PeerError, pending: bool
) -> None:
    for now in (0.0, 0.1, 1.0):
        upload(selector, now)
        selector.upload_failed(failure)
    if pending:
        upload(selector, 2.5)
    assert selector.try_websocket(4.5)
    selector.websocket_opened(4.5)
    (text,) = told(caplog)
    assert text == f"no upload to h:80 passes: {failure}; using a WebSocket instead"


@pytest.mark.parametrize("failure", [CLOSED, RESET], ids=lambda it: it.reason)
def test_an_answer_says_more_than_the_reset_after_it(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture, failure: PeerError
) -> None:
    for it in (failure, refused(405), failure):
        upload(selector, 0.0)
        selector.upload_failed(it)
    assert selector.try_websocket(4.0)
    selector.websocket_opened(4.0)
    assert told(caplog) == [f"no upload to h:80 passes: {refused(405)}; using a WebSocket instead"]


def test_one_that_waits_behind_a_refused_one_is_held_back(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture
) -> None:
    upload(selector, 0.0)
    selector.upload_failed(CLOSED)
    upload(selector, 0.1)
    assert selector.try_websocket(3.2)
    selector.websocket_opened(3.2)
    assert "holds the upload back" in told(caplog)[0]


def test_an_upload_that_was_seen_was_not_refused(selector: TransportSelector, caplog: pytest.LogCaptureFixture) -> None:
    selector.upload_seen(upload(selector, 0.0), 0.1)
    selector.upload_failed(CLOSED)
    upload(selector, 1.0)
    selector.upload_failed(PeerError("x", reason=EndReason.SILENT))
    assert selector.try_websocket(4.0)
    selector.websocket_opened(4.0)
    assert "holds the upload back" in told(caplog)[0]


def test_an_upload_that_was_lost_for_its_size_was_not_held_back(selector: TransportSelector) -> None:
    """A WebSocket would lose its large segments on the same path. The next upload has smaller ones, and the full
    time."""
    upload(selector, 0.0)
    selector.upload_failed(PeerError("small packets pass, large ones do not", reason=EndReason.PATH_MTU))
    upload(selector, 2.5)
    assert not selector.try_websocket(4.5)
    assert selector.try_websocket(2.5 + UPLOAD_SEEN_S)


def test_a_present_upload_passes_while_a_websocket_is_tried_in_place_of_the_next(selector: TransportSelector) -> None:
    selector.upload_seen(upload(selector, 0.0), 0.1)
    for now, failure in ((10.0, PeerError("no route", reason=EndReason.CONNECT)), (20.0, NO_WEBSOCKET)):
        number = selector.next_upload_number()
        selector.upload_began(number, now, follows=True)
        assert selector.try_websocket(now + UPLOAD_SEEN_S)
        selector.upload_given_up()
        assert selector.uploads_pass(now + 4)
        selector.websocket_failed(failure, now + 5)
        assert selector.uploads_pass(now + 6)
    upload(selector, 30.0)  # the present one has ended, and this one is not seen either
    assert not selector.uploads_pass(31.0)


def test_a_websocket_in_place_of_a_next_upload_names_the_reason(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture
) -> None:
    selector.upload_began(selector.next_upload_number(), 0.0, follows=True)
    assert selector.try_websocket(UPLOAD_SEEN_S)
    selector.upload_given_up()
    selector.websocket_opened(4.0)
    assert "holds the upload back" in told(caplog)[0]


# ------------------------------------------------------------------ GETs that are refused or not answered

SILENT = PeerError("h:80 did not answer within 5 s", reason=EndReason.SILENT)
A_PAGE = PeerError("h:80 answered without x-tun-conf", reason=EndReason.BAD_CONF)


@pytest.fixture
def first() -> TransportSelector:
    """Of a client that has had no answer yet."""
    return TransportSelector("auto", "h:80", interface_logger("tun0"))


@pytest.mark.parametrize(
    "failure",
    [SILENT, A_PAGE, *map(refused, (400, 403, 404, 405, 426, 444, 302, 501))],
    ids=lambda it: it.reason,
)
def test_a_websocket_is_tried_once_where_no_get_passes(
    first: TransportSelector, caplog: pytest.LogCaptureFixture, failure: PeerError
) -> None:
    assert first.get_failed(failure, 0.0)
    first.websocket_failed(NO_WEBSOCKET, 0.0)
    assert not first.get_failed(failure, RETRY_S - 1)
    assert first.get_failed(failure, RETRY_S)
    first.websocket_failed(NO_WEBSOCKET, RETRY_S)
    assert not first.get_failed(failure, 2 * RETRY_S)
    assert told(caplog) == []  # the failure of the GET is logged as ever
    first.get_answered()
    assert first.state is TransportState.HTTP
    assert first.get_failed(failure, 2 * RETRY_S)


@pytest.mark.parametrize(
    "failure",
    [
        *(refused(status, own=True) for status in (400, 403, 404, 409, 431, 500, 503)),
        *map(refused, (401, 407, 429, 500, 502, 503, 504, 511)),
        *(PeerError("x", reason=it) for it in (EndReason.REFUSED, EndReason.CONNECT, EndReason.DNS, EndReason.TLS)),
        *(CLOSED, RESET),
    ],
    ids=lambda it: f"{it.reason}",
)
def test_a_failure_that_a_websocket_would_share_is_no_reason(first: TransportSelector, failure: PeerError) -> None:
    assert not first.get_failed(failure, 0.0)
    assert first.state is TransportState.HTTP


def test_a_get_that_is_closed_again_and_again_is_refused(first: TransportSelector) -> None:
    """nginx's 444. A server that restarts does that, too, but not for long."""
    assert not first.get_failed(CLOSED, 0.0)
    assert not first.get_failed(PeerError("x", reason=EndReason.REFUSED), 0.0)
    assert [first.get_failed(CLOSED, 0.0) for _ in range(3)] == [False, False, True]


def test_no_websocket_where_it_is_known_or_configured_that_there_is_none(selector: TransportSelector) -> None:
    selector.offered = False  # a base server
    assert not selector.get_failed(SILENT, 0.0)
    for choice in ("http", "websocket"):
        fixed = TransportSelector(choice, "h:80", interface_logger("tun0"))
        assert not fixed.get_failed(SILENT, 0.0)
        assert fixed.get_answer_s(0.0, 30.0) == 30.0


def test_an_answer_is_waited_for_as_long_as_ever_where_no_websocket_passes(first: TransportSelector) -> None:
    assert first.get_answer_s(0.0, 30.0) == GET_ANSWER_S
    first.get_failed(SILENT, 0.0)
    first.websocket_failed(NO_WEBSOCKET, 0.0)
    assert first.get_answer_s(1.0, 30.0) == 30.0
    assert first.get_answer_s(RETRY_S, 30.0) == GET_ANSWER_S


def test_a_websocket_that_replaces_a_get_stays(first: TransportSelector, caplog: pytest.LogCaptureFixture) -> None:
    """A GET beside it would end it, if the server got it and the proxy kept the answer."""
    first.get_failed(SILENT, 0.0)
    first.websocket_opened(0.0)
    assert told(caplog) == [f"{SILENT}; using a WebSocket instead"]
    assert not first.probes_http(GET_RETRY_S - 1)
    assert first.probes_http(GET_RETRY_S)
    first.websocket_opened(GET_RETRY_S)  # the probe failed
    assert not first.probes_http(GET_RETRY_S + 1)
    first.path_changed()
    assert first.probes_http(GET_RETRY_S + 1)
    assert len(told(caplog)) == 1


def test_a_proxy_whose_server_is_away_for_a_moment_costs_no_minute(first: TransportSelector) -> None:
    """A WebSocket has worked, and then the proxy knows no such path, until the server is back."""
    first.get_failed(refused(404), 0.0)
    first.websocket_opened(0.0)
    assert first.websocket_failed(NO_WEBSOCKET, 10.0)
    for now in (10.0, 11.0, 12.0):
        assert first.get_failed(refused(404), now)
        first.websocket_failed(NO_WEBSOCKET, now)
    assert first.get_failed(refused(404), 13.0)
    first.websocket_opened(13.0)
    assert first.websocket


# ------------------------------------------------------------------ uploads that are ended again and again


def cut(selector: TransportSelector, now: float, failure: PeerError = RESET, *, timed: bool = False) -> bool:
    selector.upload_seen(upload(selector, now - 1.0), now - 0.9)
    return selector.upload_cut(failure, now, timed=timed)


def test_a_limit_of_their_size_is_known_from_two(selector: TransportSelector, caplog: pytest.LogCaptureFixture) -> None:
    """Also next to a limit of time, for which they are replaced."""
    assert not cut(selector, 10.0, refused(413), timed=True)
    assert cut(selector, 11.0, refused(413), timed=True)
    assert selector.websocket
    selector.websocket_opened(11.0)
    (text,) = told(caplog)
    assert text == (f"uploads to h:80 arrive, and are ended again and again: {refused(413)}; using a WebSocket instead")
    assert not selector.probes_http(11.0 + GET_RETRY_S - 1)
    assert selector.probes_http(11.0 + GET_RETRY_S)
    selector.http_works()
    assert not cut(selector, 5000.0, refused(413))


@pytest.mark.parametrize("failure", [RESET, CLOSED, refused(502)], ids=lambda it: it.reason)
def test_other_ends_take_a_few_more(selector: TransportSelector, failure: PeerError) -> None:
    assert [cut(selector, 10.0 * number, failure) for number in range(1, CUTS + 1)] == [False] * (CUTS - 1) + [True]


def test_ends_now_and_then_are_no_reason(selector: TransportSelector) -> None:
    assert not any(cut(selector, CUTS_S * number) for number in range(1, 3 * CUTS))


def test_nor_are_those_which_a_rotation_prevents(selector: TransportSelector) -> None:
    assert not any(cut(selector, float(number), timed=True) for number in range(1, 3 * CUTS))


def test_nor_are_those_that_end_the_download_too(selector: TransportSelector) -> None:
    for number in range(1, 3 * CUTS):
        assert not cut(selector, float(number))
        selector.download_ended()


def test_where_no_websocket_passes_either_http_stays(
    selector: TransportSelector, caplog: pytest.LogCaptureFixture
) -> None:
    cut(selector, 10.0, refused(413))
    assert cut(selector, 11.0, refused(413))
    assert selector.websocket_failed(NO_WEBSOCKET, 11.1)
    assert not selector.websocket
    assert not cut(selector, 12.0, refused(413))
    assert cut(selector, 11.1 + RETRY_S, refused(413))
    (text,) = told(caplog)
    assert "a WebSocket does not pass either" in text
    assert "holds the upload back" not in text
