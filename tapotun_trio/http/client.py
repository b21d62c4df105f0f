"""The client's side: open a connection to a URL, send one request on it, read the head of the answer."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from ..config.model import Proxy, Url
from ..errors import EndReason, PeerError, ShortageError
from ..host.net.dial import Resolved, connect
from ..host.net.sockets import Connection
from ..host.net.tls import TlsClient
from ..host.net.tls_errors import NO_CERTIFICATE
from ..text import one_line, shorten
from .heads import READ_BYTES, ResponseHead, ResponseParser, encode_request

# Name, TCP and TLS together. SYNs go out after 0, 1, 3 and 7 s; a path that comes back while an attempt waits
# longer than that is found later than by the next attempt.
CONNECT_S: Final = 8.0
RESPONSE_S: Final = 30.0  # from the request to the head of the answer to a GET
REFUSAL_S: Final = 1.0


async def open_connection(
    url: Url,
    tls: TlsClient | None,
    mark: int | None = None,
    proxy: Proxy | None = None,
    resolved: Resolved | None = None,
) -> Connection:
    """Connect, through a proxy or not, with TLS if it is given, and with a fwmark. ``resolved`` as in `connect`: of
    the proxy, where there is one. The caller closes. Cancelled, nothing stays open.

    Raises PeerError: the name, every address, the handshake, or all of it within CONNECT_S failed.
    Raises HostError: the mark is not allowed.
    """
    try:
        with trio.fail_after(CONNECT_S):
            if proxy is None:
                connection = await connect(url.host, url.port, mark, resolved)
            else:
                connection = await _by_proxy(url, proxy, mark, resolved)
            return connection if tls is None else await tls.handshake(connection, url.host)
    except trio.TooSlowError as exc:
        place = url.authority if proxy is None else f"{url.authority} through proxy {proxy.authority}"
        raise PeerError(f"no connection to {place} within {CONNECT_S:.0f} s", reason=EndReason.CONNECT) from exc


async def _by_proxy(url: Url, proxy: Proxy, mark: int | None, resolved: Resolved | None) -> Connection:
    """Both names are resolved: the proxy's here, the URL's by the proxy."""
    from .connect import describe, open_tunnel  # most clients need none

    try:
        connection = await connect(proxy.host, proxy.port, mark, resolved)
    except ShortageError:
        raise
    except PeerError as exc:
        raise PeerError(f"{describe(url, proxy)}: {exc}", reason=exc.reason, key=exc.key) from exc
    try:
        await open_tunnel(connection, url, proxy)
    except BaseException:
        connection.close()
        raise
    return connection


async def send_request(connection: Connection, method: str, url: Url, headers: list[tuple[str, str]]) -> None:
    """Send a request head; the body, if it has one, is the caller's."""
    await connection.send_all(encode_request(method, url.target, [("Host", url.authority), *headers]))


async def read_response(connection: Connection, method: str) -> tuple[ResponseHead, bytes]:
    """The head of the final answer, and what of the body came with it. No deadline of its own: the answer to an
    upload comes when the upload ends. Raises PeerError: closed, or not HTTP. Cancelled, it is lost."""
    parser = ResponseParser(method)
    buffer = memoryview(bytearray(READ_BYTES))
    while True:
        received = await connection.receive(buffer)
        done = parser.feed(bytes(buffer[:received]))
        if done is not None:
            return done


async def rest_of_refusal(connection: Connection, head: ResponseHead, body: bytes) -> bytes:
    """What a 400 has to say, whether it came together with its head or behind it; within REFUSAL_S. ``body``: what has
    come. Of any other answer that is all. Cancelled, what came is lost."""
    buffer = memoryview(bytearray(READ_BYTES))
    with trio.move_on_after(REFUSAL_S), suppress(PeerError):  # the answer is what it is, whatever ends it
        while head.status == 400 and explain_400(body) is None and len(body) < READ_BYTES:
            received = await connection.receive(buffer)
            if received == 0:
                break
            body += buffer[:received]
    return body


# What servers write into their 400: nginx, Go's net/http (Caddy), Apache httpd.
_HTTPS_PORT: Final = (b"sent to HTTPS port", b"HTTP request to an HTTPS server", b"plain HTTP to an SSL-enabled")
_NO_CERTIFICATE: Final = b"No required SSL certificate was sent"  # nginx
_BAD_CERTIFICATE: Final = b"The SSL certificate error"  # nginx


def check_status(head: ResponseHead, url: Url, body: bytes = b"") -> None:
    """Raise PeerError unless the answer is a 200, saying what a person can do about it. ``body``: its beginning."""
    if head.status == 200:
        return
    place = f"{url.scheme}://{url.authority}{url.target}"
    hints = {
        401: "something before the server wants a login of its own",
        403: "the server does not know this token; compare its hash with the server's config (tapotun token)",
        404: "nothing is served at this path; compare the path with the proxy's config",
        405: "that is a web page, or a proxy that lets only some methods pass",
        409: "this session is over, or another machine uses the token",
        413: "a proxy limits the size of uploads; nginx: client_max_body_size 0",
        502: "the proxy does not reach the tapotun server behind it",
        503: "the proxy does not reach the tapotun server behind it",
        504: "the proxy waited too long for the tapotun server behind it",
    }
    hint = hints.get(head.status, "not an answer that a tapotun server gives; check the URL")
    if head.status == 400 and (told := explain_400(body)) is not None:
        hint = told
    if 300 <= head.status < 400 and "location" in head.headers:
        hint = f"moved to {head.headers['location'][:200]!r}; put the new URL into the config"
    reason = one_line(shorten(head.reason, 60))
    raise PeerError(f"{place} answered {head.status} {reason}: {hint}", reason=EndReason.http(head.status))


def explain_400(body: bytes) -> str | None:
    """What a 400 of a web server means for a client of ours; None: nothing of its own."""
    if any(words in body for words in _HTTPS_PORT):
        return "this port speaks TLS; write https:// into the config"
    if _NO_CERTIFICATE in body:
        return f"the server {NO_CERTIFICATE}"
    if _BAD_CERTIFICATE in body:
        return "the server does not accept the certificate of tls.cert_file; is it expired, or from another authority?"
    return None
