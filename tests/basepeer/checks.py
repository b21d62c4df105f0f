"""What a strict base peer finds wrong with the other side's heads. Each function returns violations."""

from typing import Final

from .http1 import Head

MAX_SHORT_BODY: Final = 1024  # "a short body"

# The one part of the extended protocol that a base server must see: the client cannot know yet.
_OFFERS: Final = ("x-tun-features", "x-tun-session")


def _extended(head: Head, allowed: tuple[str, ...]) -> list[str]:
    return [
        f"header {name}: {value} reached a base peer"
        for name, value in head.headers
        if name.startswith("x-tun-") and name not in allowed
    ]


def request_faults(head: Head, *, proxied: bool) -> list[str]:
    """A client's request at a deployed server.

    "`GET <url>` with `x-api-key: <raw token>`"; "`PUT <url>` with `x-api-key: <raw token>`,
    `Transfer-Encoding: chunked`"; behind a proxy also HTTP/1.0 and "A PUT may carry a Content-Length".
    """
    method, target, version = head.request()
    faults = _extended(head, _OFFERS)
    if method not in ("GET", "PUT"):
        faults.append(f"method {method}")
    if not target.startswith("/"):
        faults.append(f"request target {target!r}")
    if version != "1.1" and not proxied:
        faults.append(f"HTTP/{version} request")
    if version == "1.1" and len(head.every("host")) != 1:
        faults.append(f"Host headers {head.every('host')!r}")
    if len(head.every("x-api-key")) > 1:
        faults.append("several x-api-key headers")
    if head.every("upgrade"):
        faults.append("WebSocket upgrade at a base server")
    if head.every("content-encoding"):
        faults.append("compressed body")
    codings, lengths = head.every("transfer-encoding"), head.every("content-length")
    if method == "GET" and (codings or lengths):
        faults.append("GET with a body")
    if method == "PUT" and not proxied and (codings != ["chunked"] or lengths):
        faults.append(f"PUT with Transfer-Encoding {codings!r}, Content-Length {lengths!r}")
    if any(value.lower() != "100-continue" for value in head.every("expect")):
        faults.append(f"Expect {head.every('expect')!r}")
    return faults


def get_faults(head: Head, *, http10: bool, proxied: bool) -> list[str]:
    """A 200 for a GET: "header `x-tun-conf: <base64>`, body = frames, `Transfer-Encoding: chunked`".

    "a 1.0 GET gets an unchunked body that ends with the connection."
    """
    version, _ = head.status()
    faults = _answer_faults(head, ("x-tun-conf",), http10=http10, proxied=proxied)
    chunked = [coding.lower() for coding in head.every("transfer-encoding")] == ["chunked"]
    if head.every("content-length"):
        faults.append("Content-Length on an endless body")
    if http10 and head.every("transfer-encoding"):
        faults.append("Transfer-Encoding in the answer to an HTTP/1.0 GET")
    if not http10 and not proxied and (not chunked or version != "1.1"):
        faults.append(f"GET answered with HTTP/{version}, not chunked in HTTP/1.1")
    if len(head.every("x-tun-conf")) > 1:
        faults.append("several x-tun-conf headers")
    return faults


def put_faults(head: Head, *, http10: bool, proxied: bool) -> list[str]:
    """The final 200 of a PUT: nothing extended, and the connection lives on."""
    return _answer_faults(head, (), http10=http10, proxied=proxied)


def _answer_faults(head: Head, allowed: tuple[str, ...], *, http10: bool, proxied: bool) -> list[str]:
    faults = _extended(head, allowed)
    if head.every("content-encoding"):
        faults.append("compressed body (never compress)")
    if head.every("upgrade"):
        faults.append("Upgrade header")
    if head.has("connection", "close") and not http10 and not proxied:
        faults.append("Connection: close on a 200: a server serves request after request")
    return faults


def continue_faults(head: Head, *, expected: bool) -> list[str]:
    """A `100 Continue`: only for who asked, with nothing in it."""
    faults = [] if expected else ["100 Continue unasked, or twice"]
    version, status = head.status()
    if status != 100 or version != "1.1":
        faults.append(f"interim answer {head.start!r}")
    if head.headers:
        faults.append(f"headers in a 100: {head.headers!r}")
    return faults


def refusal_faults(head: Head, *, proxied: bool) -> list[str]:
    """ "Refusal: `403 Forbidden`, `Connection: close`, a short body"."""
    faults = _extended(head, ())
    if proxied:
        return faults
    if head.start not in ("HTTP/1.1 403 Forbidden", "HTTP/1.0 403 Forbidden"):
        faults.append(f"refused with {head.start!r}, not 403 Forbidden")
    if not head.has("connection", "close"):
        faults.append("403 without Connection: close")
    return faults
