"""Which reverse proxy an answer came from, by its headers. Untrusted input; never raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .measured import Kind

# Words in a Server header. OpenResty, Tengine and Angie are derived from nginx.
_SERVERS: Final[tuple[tuple[str, Kind], ...]] = (
    ("nginx", "nginx"),
    ("openresty", "nginx"),
    ("tengine", "nginx"),
    ("angie", "nginx"),
    ("caddy", "caddy"),
    ("apache", "apache"),
    ("cloudflare", "cloudflare"),
    ("cloudfront", "cloudfront"),
)
_VIAS: Final[tuple[tuple[str, Kind], ...]] = (("cloudfront", "cloudfront"), ("caddy", "caddy"))
# CDNs that forward another Server header are recognised by headers of their own.
_OWN_HEADERS: Final[tuple[tuple[str, Kind], ...]] = (
    ("cf-ray", "cloudflare"),
    ("x-amz-cf-id", "cloudfront"),
    ("x-fastly-request-id", "fastly"),
)


def identify(headers: Mapping[str, str], names: Sequence[str]) -> Kind:
    """The proxy that sent these headers. ``headers``: lower-case name to value; ``names``: the names as they were sent.

    HAProxy does not name itself, but sends every name in lower case. Our server sends ``Content-Type``, and neither
    Date nor Server.
    """
    for name, kind in _OWN_HEADERS:
        if name in headers:
            return kind
    if headers.get("x-served-by", "").startswith("cache-"):
        return "fastly"
    for table, header in ((_VIAS, headers.get("via", "")), (_SERVERS, headers.get("server", ""))):
        for word, kind in table:
            if word in header.lower():
                return kind
    if "server" in headers or "via" in headers or not names:
        return "unknown"
    if all(name.islower() for name in names):
        return "haproxy"
    return "none" if "Content-Type" in names and "date" not in headers else "unknown"
