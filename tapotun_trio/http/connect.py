"""A tunnel through an outgoing HTTP proxy: CONNECT (RFC 9110 section 9.3.6), with Basic login (RFC 7617).

The heads are sans-IO. The proxy's answer is untrusted input: it has the limits of every head, and raises PeerError
only. Only its status and its reason reach a log.
"""

from __future__ import annotations

from ..config.model import Proxy, Url
from ..errors import EndReason, PeerError
from ..host.net.sockets import GONE, Connection
from ..text import one_line, shorten
from .heads import ResponseHead, ResponseParser, basic, encode_request

_HINTS = {
    400: "it does not understand CONNECT; is that a proxy for outgoing connections?",
    403: "it does not allow this target; allow its host and port there",
    404: "is that a proxy for outgoing connections?",
    405: "it does not allow CONNECT; is that a proxy for outgoing connections?",
    500: "it cannot reach the target",
    501: "it does not know CONNECT; is that a proxy for outgoing connections?",
    502: "it cannot reach the target",
    503: "it cannot reach the target",
    504: "it waited too long for the target",
}


def target_of(url: Url) -> str:
    """Host and port of a URL, in the form that CONNECT uses (authority-form, RFC 9112 section 3.2.3)."""
    host = url.host_without_zone
    return f"[{host}]:{url.port}" if ":" in host else f"{host}:{url.port}"


def describe(url: Url, proxy: Proxy) -> str:
    """The connection that is being made, for errors."""
    return f"proxy {proxy.authority} to {target_of(url)}"


def encode_connect(url: Url, proxy: Proxy) -> bytes:
    """The head of the CONNECT request."""
    target = target_of(url)
    headers = [("Host", target)]
    if proxy.login is not None:
        headers.append(("Proxy-Authorization", basic(proxy.login)))
    return encode_request("CONNECT", target, headers)


class ConnectParser:
    """Parses the head of a proxy's answer."""

    __slots__ = ("_parser", "_proxy", "_url")

    def __init__(self, url: Url, proxy: Proxy) -> None:
        self._url, self._proxy = url, proxy
        self._parser = ResponseParser("CONNECT")

    def feed(self, data: bytes) -> bytes | None:
        """The bytes behind the head of a good answer, which belong to the tunnel; None: the head is incomplete. Empty
        ``data`` means that the proxy closed. Raises PeerError, naming proxy and target, unless the answer is a 2xx."""
        try:
            done = self._parser.feed(data)
        except PeerError as exc:
            if exc.reason == EndReason.CLOSED:
                raise self.closed() from exc
            text = "it speaks TLS; use its port for plain HTTP" if exc.reason == EndReason.TLS else one_line(str(exc))
            text = shorten(text, 200)
            raise PeerError(f"{describe(self._url, self._proxy)}: {text}", reason=EndReason.PROXY) from exc
        if done is None:
            return None
        head, rest = done
        if not 200 <= head.status < 300:
            raise self._refused(head)
        return rest

    def closed(self) -> PeerError:
        """The error for a connection that the proxy closed or reset."""
        return PeerError(
            f"{describe(self._url, self._proxy)}: it closed the connection without an answer", reason=EndReason.PROXY
        )

    def _refused(self, head: ResponseHead) -> PeerError:
        if head.status in (401, 407):  # tinyproxy answers a wrong login with 401
            given = self._proxy.login is not None
            hint = "it does not accept the login in proxy" if given else "it requires a login: set user:pass in proxy"
        else:
            hint = _HINTS.get(head.status, "not an answer to CONNECT; is that a proxy for outgoing connections?")
        answer = f"{head.status} {one_line(shorten(head.reason, 60))}".strip()
        return PeerError(f"{describe(self._url, self._proxy)} answered {answer}: {hint}", reason=EndReason.PROXY)


async def open_tunnel(connection: Connection, url: Url, proxy: Proxy) -> None:
    """Have the proxy at the other end of ``connection`` open a tunnel to ``url``. The caller sets a deadline, and
    closes the connection. Raises PeerError."""
    parser = ConnectParser(url, proxy)
    try:
        await connection.send_all(encode_connect(url, proxy))
        # Byte by byte: the bytes behind the head must stay in the socket, where TLS reads them. A head is short.
        buffer = memoryview(bytearray(1))
        while parser.feed(bytes(buffer[: await connection.receive(buffer)])) is None:
            pass
    except PeerError as exc:
        if exc.key != GONE:
            raise
        raise parser.closed() from exc
    connection.name = f"{target_of(url)} through {connection.name}"
