"""Explains a refusal, that is, an HTTP answer that is not a stream: what it means, and what to do about it.

The explanation is derived from the status, the head and the body. Pure. The answer is untrusted input, so quotations
from it are bounded in length and fit into one line.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from ..config.model import Url
from ..errors import EndReason, PeerError
from ..host.net.tls_errors import NO_CERTIFICATE
from ..text import one_line, shorten
from .heads import ResponseHead

_LOCATION_CHARS: Final = 200
_REASON_CHARS: Final = 60

# Found in the body of a 400 for plain HTTP on a TLS port: by nginx, Go's net/http (Caddy), Apache httpd.
_HTTPS_PORT: Final = (b"sent to HTTPS port", b"HTTP request to an HTTPS server", b"plain HTTP to an SSL-enabled")
_NO_CERTIFICATE: Final = b"No required SSL certificate was sent"  # nginx
_BAD_CERTIFICATE: Final = b"The SSL certificate error"  # nginx

ONE_BACKEND: Final = (
    "if none does, the proxy sends requests to several tapotun servers in turn: have it send all requests of a client "
    "to the same one (nginx: hash $http_x_api_key consistent; in the upstream block)"
)
_PORTAL: Final = "log in to this network with a browser"
_LIMIT_OF_HEADS: Final = "raise its limit (nginx: large_client_header_buffers), or send fewer headers"
_PROXY_FAILS: Final = "the proxy does not reach the tapotun server behind it"
_UNKNOWN: Final = "not an answer that a tapotun server gives; check the URL"

# What these statuses mean if a tapotun server sent them. Other programs use some of them differently.
_OWN: Final = {
    400: "the tapotun server cannot read the request: something on the way has changed it",
    403: "the server does not know this token; compare its hash with the server's config (tapotun token)",
    404: "the tapotun server has no interface with this path; compare the path with path in its config",
    405: "the tapotun server got another method than GET and PUT: something on the way has changed it",
    406: "the tapotun server has only IPv6 addresses for this client, which did not offer IPv6: this machine has none, "
    "or it is switched off (disable_ipv6)",
    408: "the tapotun server got no whole request in time: something on the way holds it back",
    409: "this session is over, or another machine uses the token",
    431: "the tapotun server takes request heads of up to 16 KiB; something on the way adds headers",
    500: "an error in the tapotun server; its log has a traceback",
    503: "the tapotun server lacks memory, descriptors or threads; its log has more",
    505: "the tapotun server takes HTTP/1.x only; have the proxy use HTTP/1.1 to it",
}
_FOREIGN: Final = {
    # A proxy may replace the server's page by its own, so this may still be the server's answer.
    403: "the server does not know this token; compare its hash with the server's config (tapotun token)",
    404: "nothing is served at this path; compare the path with the proxy's config",
    405: "this URL is a web page, or a proxy lets only some methods pass",
    408: "a proxy limits how long a request may take, which is no fault of the URL (Node: requestTimeout; Apache: "
    "RequestReadTimeout; Google: timeoutSec)",
    409: "this session is over, or another machine uses the token",
    413: "a proxy limits the size of uploads; nginx: client_max_body_size 0",
    426: "a proxy in front of the server lets only WebSockets pass",
    429: "a proxy in front of the server limits the rate of requests",
    431: f"a proxy in front of the server refuses the request's headers as too long; {_LIMIT_OF_HEADS}",
    444: "a proxy in front of the server refuses the request",
    502: _PROXY_FAILS,
    503: _PROXY_FAILS,
    504: "the proxy waited too long for the tapotun server behind it",
    511: f"this network wants a login of its own; {_PORTAL}",
}
# For a 403 with an HTML page. Our server never sends HTML.
_FIREWALL: Final = (
    "something in front of the server refuses the request with a page of its own: a firewall, or access rules; if it "
    "replaces the server's pages by its own, the server may not know this token (tapotun token)"
)
# For a refused PUT while the same URL serves a GET. Then path and token are right, and a tapotun server is there.
_PUT_REMEDY: Final = (
    "have it let PUT pass (nginx: limit_except, Apache: Limit and LimitExcept, a web application firewall: its rules)"
)
_REFUSED_PUT: Final = {
    400: f"something in front of the server refuses uploads; {_PUT_REMEDY}",
    403: f"something in front of the server refuses PUT, although GET is served; {_PUT_REMEDY}",
    404: f"something in front of the server serves GET at this path, but not PUT; {_PUT_REMEDY}",
    405: f"something in front of the server does not let PUT pass; {_PUT_REMEDY}",
    406: f"something in front of the server refuses PUT, although GET is served; {_PUT_REMEDY}",
    409: f"another machine uses the token; {ONE_BACKEND}",
    411: "a proxy in front of the server takes no body of unknown length (chunked); have it pass a WebSocket",
    501: f"something in front of the server does not know PUT, or no chunked body; {_PUT_REMEDY}",
}


class RefusedError(PeerError):
    """An HTTP answer with another status than the expected one.

    Attributes:
        status: the HTTP status.
        is_own: a tapotun server may have sent the answer, and not something in front of it. This is so for the page of
            such a server, and for any 403 that is not HTML, because deployed servers refuse a token with a 403.
    """

    def __init__(self, text: str, *, status: int, is_own: bool) -> None:
        super().__init__(text, reason=EndReason.http(status))
        self.status = status
        self.is_own = is_own


# For the answer to an upload of which the server has already received something.
_ENDED_UPLOAD: Final = (
    "a proxy in front of the server has ended an upload that worked; it limits how long a request may take or be "
    "silent, or the server behind it has gone"
)
_MAY_END_UPLOAD: Final = frozenset({500, 502, 503, 504})


def refusal(
    head: ResponseHead, url: Url, body: bytes = b"", *, method: str = "GET", served: bool = False, worked: bool = False
) -> RefusedError:
    """The error for an HTTP answer that is not a stream.

    Args:
        body: the beginning of the answer's body.
        served: the same URL serves a GET at the moment, so a tapotun server is there.
        worked: the server had already received a part of this upload.
    """
    own = is_own(head, body)
    is_html = head.headers.get("content-type", "").startswith("text/html")
    if own:
        hint = _OWN.get(head.status, _UNKNOWN)
        if head.status == 409 and method == "PUT" and served:
            hint = _REFUSED_PUT[409]
    elif head.status == 400 and (explanation := explain_400(body)) is not None:
        hint = explanation
    elif 300 <= head.status < 400 and "location" in head.headers:
        hint = _redirect(head.status, head.headers["location"], url)
    elif head.status == 401:
        hint = _explain_401(head)
    elif worked and head.status in _MAY_END_UPLOAD:
        hint = _ENDED_UPLOAD
    elif method == "PUT" and served and head.status in _REFUSED_PUT:
        hint = _REFUSED_PUT[head.status]
    elif head.status == 403 and is_html:
        hint = _FIREWALL
    else:
        hint = _FOREIGN.get(head.status, _UNKNOWN)
    place = url.shown
    reason = one_line(shorten(head.reason, _REASON_CHARS))
    to = f" to a {method}" if method != "GET" else ""
    text = f"{place} answered {head.status} {reason}{to}: {hint}"
    return RefusedError(text, status=head.status, is_own=own or (head.status == 403 and not is_html))


def is_own(head: ResponseHead, body: bytes) -> bool:
    """Whether the body is that of a tapotun server's refusal (`server.refuse`)."""
    return body == b"%d\n" % head.status and head.headers.get("content-type", "").startswith("text/plain")


def explain_400(body: bytes) -> str | None:
    """The remedy for a 400 of a web server; None: the body has none of the known texts."""
    if any(words in body for words in _HTTPS_PORT):
        return "this port speaks TLS; write https:// into the config"
    if _NO_CERTIFICATE in body:
        return f"the server {NO_CERTIFICATE}"
    if _BAD_CERTIFICATE in body:
        return "the server does not accept the certificate of tls.cert_file; is it expired, or from another authority?"
    return None


def _explain_401(head: ResponseHead) -> str:
    """Name the authentication scheme that a proxy requires, and the realm if it has one (RFC 9110, 11.6.1)."""
    challenge = head.headers.get("www-authenticate", "")
    if challenge.lower().startswith("basic"):
        realm = one_line(shorten(challenge[len("basic") :].strip(), _REASON_CHARS))
        asks = f"a proxy in front of the server wants Basic auth ({realm})" if realm else "a proxy wants Basic auth"
        return (
            f'{asks}, and does not accept what it got; set "user" and "password_file" of this client, or correct them'
        )
    return 'a proxy in front of the server requires a login of its own; "headers" can carry one'


def _without_secrets(location: str) -> str:
    """Return the URL without login, query and fragment: a redirect often repeats those of the request."""
    at = min((i for i in map(location.find, "?#") if i >= 0), default=len(location))
    where = re.sub(r"^([^/]*//)[^/]*@", r"\1***@", location[:at])
    return f"{where}{location[at]}***" if at < len(location) else where


def _redirect(status: int, location: str, url: Url) -> str:
    """What a redirect means. A permanent one, or one to TLS, on the same host is a moved server. Others may come from
    a captive portal or a login page."""
    where = _without_secrets(location)
    shown = repr(where[:_LOCATION_CHARS])
    if ".cloudflareaccess.com/" in where:
        return (
            f"Cloudflare Access wants a login ({shown}); set CF-Access-Client-Id and CF-Access-Client-Secret of a "
            'service token in "headers"'
        )
    try:
        parts = urlsplit(location)
        host, to_tls = parts.hostname or url.host_without_zone, url.scheme == "http" and parts.scheme == "https"
    except ValueError:  # a malformed address in brackets
        host, to_tls = "", False
    if host.partition("%")[0].lower() != url.host_without_zone.lower():
        return (
            f"redirected to {shown}, on another host: a captive portal or a login page; {_PORTAL}. Only if you know "
            "that the server has moved there, change the URL in the config"
        )
    if status in (301, 308) or to_tls:
        return f"moved to {shown}; put the new URL into the config"
    return f"redirected to {shown} for now: a login page, or a proxy that does not pass this path on to the server"
