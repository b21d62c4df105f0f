"""http.refusal: what an answer that is no stream means, and whose it is."""

from __future__ import annotations

import pytest

from tapotun_trio.config.model import Url
from tapotun_trio.http.heads import REASONS, ResponseHead
from tapotun_trio.http.refusal import is_own, refusal
from tapotun_trio.http.server import refuse

from ..streams import memory_pair
from ..tables import table

URL = Url("https", "vpn.example.org", 443, "/ip")
PLAIN = {"content-type": "text/plain"}
HTML = {"content-type": "text/html; charset=utf-8"}


def own(status: int) -> tuple[ResponseHead, bytes]:
    return ResponseHead(status, "", PLAIN), b"%d\n" % status


@pytest.mark.parametrize("status", [status for status in REASONS if status >= 400])
async def test_what_our_server_sends_is_known_for_its_own(status: int) -> None:
    ours, theirs = memory_pair()
    await refuse(theirs, status)
    head, _, body = bytes(ours.unread).partition(b"\r\n\r\n")
    fields = dict(line.lower().split(": ") for line in head.decode().split("\r\n")[1:])
    assert is_own(ResponseHead(status, "", fields), body)


@table(
    "status words",
    ("a head that is too long", 431, "up to 16 KiB"),
    ("a wrong token", 403, "does not know this token"),
    ("a wrong path", 404, "path in its config"),
    ("a slow request", 408, "no whole request in time"),
    ("another machine", 409, "another machine uses the token"),
    ("a bug", 500, "its log"),
    ("a shortage", 503, "lacks memory"),
)
def test_our_own_server_s_answers_are_not_foreign(status: int, words: str) -> None:
    failure = refusal(*own(status)[:1], URL, own(status)[1])
    assert words in str(failure)
    assert "not an answer that a tapotun server gives" not in str(failure)
    assert failure.is_own


@table(
    "status served words absent",
    ("WAF", 403, True, "refuses PUT, although GET is served", "token"),
    ("methods", 405, True, "does not let PUT pass", "web page"),
    ("a path for GET only", 404, True, "but not PUT", "nothing is served"),
    ("no bodies of unknown length", 411, True, "unknown length", "check the URL"),
    ("an old proxy", 501, True, "does not know PUT", "check the URL"),
    ("no GET is served", 403, False, "a firewall, or access rules", "GET"),
    ("a time limit", 408, True, "how long a request may take", "check the URL"),
)
def test_a_refused_put(status: int, served: bool, words: str, absent: str) -> None:
    failure = refusal(ResponseHead(status, "No", HTML), URL, b"<html>", method="PUT", served=served)
    assert words in str(failure)
    assert absent not in str(failure)
    assert "to a PUT" in str(failure)
    assert not failure.is_own


def test_a_403_of_our_own_server_to_a_put_is_about_the_token() -> None:
    head, body = own(403)
    assert "does not know this token" in str(refusal(head, URL, body, method="PUT", served=True))


def test_a_409_beside_a_served_get_may_come_of_several_servers() -> None:
    head, body = own(409)
    text = str(refusal(head, URL, body, method="PUT", served=True))
    assert "several tapotun servers in turn" in text
    assert "hash $http_x_api_key consistent;" in text
    assert "several" not in str(refusal(head, URL, body))


@table(
    "status location words",
    ("a portal", 302, "http://portal.hotel.example/login?x", "captive portal"),
    ("a portal by 301", 301, "https://10.0.0.1/", "captive portal"),
    ("a portal by 307", 307, "//portal.example/", "captive portal"),
    ("a malformed one", 302, "http://[::1", "captive portal"),
    ("the same host, for good", 301, "https://VPN.example.org/other", "moved to .*put the new URL into the config"),
    ("the same host, 308", 308, "/other", "moved to .*put the new URL into the config"),
    ("the same host, for now", 302, "/login", "for now: a login page"),
    ("the network's login", 511, None, "wants a login of its own"),
)
def test_redirects(status: int, location: str | None, words: str) -> None:
    headers = {} if location is None else {"location": location}
    with pytest.raises(Exception, match=words):
        raise refusal(ResponseHead(status, "", headers), URL)
    if "moved" not in words:
        assert "put the new URL into the config" not in str(refusal(ResponseHead(status, "", headers), URL))


@table(
    "location shown",
    ("a login", "https://u:secret@vpn.example/ip", "'https://***@vpn.example/ip'"),
    ("a login without a scheme", "//u:secret@vpn.example/ip", "'//***@vpn.example/ip'"),
    ("a password with an @", "https://u:sec@ret@vpn.example/ip", "'https://***@vpn.example/ip'"),
    ("an @ in the path", "https://vpn.example/@ip", "'https://vpn.example/@ip'"),
    ("a query", "/login?back=secret#secret", "'/login?***'"),
    ("a fragment", "/login#secret?secret", "'/login#***'"),
)
def test_a_redirect_s_secrets_are_not_shown(location: str, shown: str) -> None:
    text = str(refusal(ResponseHead(302, "", {"location": location}), URL))
    assert shown in text
    assert "sec" not in text.replace("second", "")


def test_a_redirect_to_tls_on_the_same_host_is_for_the_config() -> None:
    plain = Url("http", "vpn.example.org", 80, "/ip")
    head = ResponseHead(307, "", {"location": "https://vpn.example.org/ip"})
    assert "put the new URL into the config" in str(refusal(head, plain))


def test_a_firewall_s_page_is_not_our_server_s() -> None:
    failure = refusal(ResponseHead(403, "Forbidden", HTML), URL, b"<html>")
    assert "a firewall" in str(failure)
    assert not failure.is_own


@pytest.mark.parametrize("headers", [{}, PLAIN, {"connection": "close"}])
def test_a_deployed_server_s_403_is_about_the_token(headers: dict[str, str]) -> None:
    """Its page is another one, so a client must not take it for something that lets a WebSocket pass."""
    failure = refusal(ResponseHead(403, "Forbidden", headers), URL, b"Forbidden")
    assert "does not know this token" in str(failure)
    assert failure.is_own


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_upload_that_worked_was_not_refused(status: int) -> None:
    """Neither does the proxy fail to reach the server, nor has it waited for it."""
    head = ResponseHead(status, "No", HTML)
    text = str(refusal(head, URL, b"<html>", method="PUT", served=True, worked=True))
    assert "has ended an upload that worked" in text
    assert "does not reach" not in text
    assert "has ended" not in str(refusal(head, URL, b"<html>", method="PUT", served=True))
