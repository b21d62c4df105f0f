"""http.client: one request on a connection, and the head of its answer."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing

from tapotun_trio.config.model import Url
from tapotun_trio.errors import PeerError
from tapotun_trio.http.client import check_status, read_response, send_request
from tapotun_trio.http.heads import REASONS, ResponseHead
from tapotun_trio.wire.body import ChunkedBody

from ..streams import memory_pair
from ..tables import table

URL = Url("https", "vpn.example.org", 443, "/ip?x=y")
ANSWER = b"HTTP/1.1 200 OK\r\nx-tun-conf: conf\r\nTransfer-Encoding: chunked\r\n\r\n"


@table(
    "url host",
    ("the scheme's own port", Url("http", "h", 80, "/"), b"h"),
    ("another port", Url("http", "h", 8080, "/"), b"h:8080"),
    ("IPv6", Url("https", "2001:db8::1", 8443, "/"), b"[2001:db8::1]:8443"),
)
async def test_send_request(url: Url, host: bytes) -> None:
    ours, theirs = memory_pair()
    await send_request(ours, "PUT", url, [("x-api-key", "t"), ("Transfer-Encoding", "chunked")])
    head = b"PUT / HTTP/1.1\r\nHost: %b\r\nx-api-key: t\r\nTransfer-Encoding: chunked\r\n\r\n" % host
    assert theirs.unread == head


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_read_response(before: bytes) -> None:
    ours, theirs = memory_pair()
    await theirs.send_all(before + ANSWER + b"5\r\n")
    head, rest = await read_response(ours, "GET")
    assert head.status == 200
    assert head.headers["x-tun-conf"] == "conf"
    assert isinstance(head.body(), ChunkedBody)
    assert rest == b"5\r\n"


async def test_read_response_byte_by_byte() -> None:
    ours, theirs = memory_pair(capacity_bytes=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, ANSWER)
        head, rest = await read_response(ours, "GET")
    assert (head.status, rest) == (200, b"")


async def test_an_answer_whose_head_ends_with_the_connection() -> None:
    ours, theirs = memory_pair()
    await theirs.send_all(b"HTTP/1.0 200 OK\r\n\r\n")
    theirs.close()
    head, rest = await read_response(ours, "GET")
    body = head.body()
    assert rest == b""
    body.eof()
    assert body.ended


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 O"])
async def test_closed_without_an_answer(method: str, before: bytes) -> None:
    ours, theirs = memory_pair()
    await theirs.send_all(before)
    theirs.close()
    with pytest.raises(PeerError, match="closed the connection without an answer") as caught:
        await read_response(ours, method)
    assert caught.value.reason == "closed"


async def test_an_endless_answer_is_given_up() -> None:
    ours, theirs = memory_pair()
    await theirs.send_all(ANSWER[:-2] + b"x: " + bytes([ord("y")]) * 100_000)
    with pytest.raises(PeerError):
        await read_response(ours, "GET")


async def test_endless_interim_answers_leave_room_for_others(autojump_clock: trio.testing.MockClock) -> None:
    """A deadline around it holds, whatever comes."""
    ours, theirs = memory_pair(10_000)

    async def flood() -> None:
        while True:
            await theirs.send_all(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        with trio.move_on_after(30) as deadline:
            await read_response(ours, "GET")
        assert deadline.cancelled_caught
        nursery.cancel_scope.cancel()


def test_check_status_lets_a_200_pass() -> None:
    check_status(ResponseHead(200, "OK", {}), URL)


@pytest.mark.parametrize("status", [status for status in REASONS if status > 200] + [301, 401, 502, 503, 504, 204, 999])
def test_check_status_names_the_url_and_the_status(status: int) -> None:
    with pytest.raises(PeerError, match=rf"https://vpn\.example\.org/ip\?\*\*\* answered {status} ") as caught:
        check_status(ResponseHead(status, "Why", {}), URL)
    assert caught.value.reason == f"http-{status}"
    assert "\n" not in str(caught.value)


@table(
    "status remedy",
    ("a login in between", 401, '"headers"'),
    ("a wrong token", 403, "token"),
    ("a wrong path", 404, "path"),
    ("a web page", 405, "methods"),
    ("another machine", 409, "another machine"),
    ("a limit", 413, "client_max_body_size"),
    ("no server behind the proxy", 502, "does not reach the tapotun server"),
    ("nor here", 503, "does not reach the tapotun server"),
    ("a slow one", 504, "waited too long"),
    ("anything else", 418, "check the URL"),
    ("a redirect to nowhere", 302, "check the URL"),
)
def test_check_status_says_what_to_do(status: int, remedy: str) -> None:
    with pytest.raises(PeerError, match=remedy):
        check_status(ResponseHead(status, "", {}), URL)


@table(
    "challenge words",
    ("with a realm", 'Basic realm="members"', 'Basic auth (realm="members")'),
    ("without one", "basic", "Basic auth,"),
    ("a long one on two lines", f'Basic realm="a\u2028{"x" * 200}"', "\\u2028"),
)
def test_check_status_names_basic_auth(challenge: str, words: str) -> None:
    with pytest.raises(PeerError, match=re.escape(words)) as caught:
        check_status(ResponseHead(401, "Unauthorized", {"www-authenticate": challenge}), URL)
    assert '"user" and "password_file"' in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_check_status_masks_the_query_of_a_redirect() -> None:
    with pytest.raises(PeerError, match="answered 302") as caught:
        check_status(ResponseHead(302, "Found", {"location": "https://elsewhere/login?back=/ip?x=y"}), URL)
    assert "'https://elsewhere/login?***'" in str(caught.value)


def test_check_status_names_cloudflare_access() -> None:
    location = "https://corp.cloudflareaccess.com/cdn-cgi/access/login/vpn.example.org?meta=eyJ"
    with pytest.raises(PeerError, match="CF-Access-Client-Id") as caught:
        check_status(ResponseHead(302, "Found", {"location": location}), URL)
    assert "eyJ" not in str(caught.value)


def test_check_status_names_where_it_moved_to() -> None:
    with pytest.raises(PeerError, match="'https://elsewhere/'"):
        check_status(ResponseHead(301, "Moved", {"location": "https://elsewhere/"}), URL)


@table(
    "head",
    ("the reason phrase", ResponseHead(404, "\x1b[2J\x1b]0;owned\x07", {})),
    ("the new location", ResponseHead(302, "Found", {"location": "\x1b[2J"})),
)
def test_check_status_passes_no_terminal_sequence_on(head: ResponseHead) -> None:
    """The text goes to a log, and the log to a terminal."""
    with pytest.raises(PeerError) as caught:
        check_status(head, URL)
    assert str(caught.value).isprintable()


@table(
    "head",
    ("the reason phrase", ResponseHead(404, "x" * 15_000, {})),
    ("the new location", ResponseHead(302, "Found", {"location": "x" * 15_000})),
)
def test_check_status_keeps_the_line_short(head: ResponseHead) -> None:
    with pytest.raises(PeerError) as caught:
        check_status(head, URL)
    assert len(str(caught.value)) < 500
