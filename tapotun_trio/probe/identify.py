"""Identifies reverse proxies by the headers of the answers that they forward. Untrusted input; never raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .measured import Kind

# Words in Server and Via. The first match counts. OpenResty, Tengine and Angie are derived from nginx.
_WORDS: Final[tuple[tuple[str, Kind], ...]] = (
    ("cloudfront", "cloudfront"),
    ("cloudflare", "cloudflare"),
    ("nginx", "nginx"),
    ("openresty", "nginx"),
    ("tengine", "nginx"),
    ("angie", "nginx"),
    ("caddy", "caddy"),
    ("varnish", "varnish"),
    ("squid", "squid"),
    ("lighttpd", "lighttpd"),
    ("trafficserver", "trafficserver"),
    ("traffic_server", "trafficserver"),
    ("ats/", "trafficserver"),
    ("envoy", "envoy"),
    ("traefik", "traefik"),
    ("haproxy", "haproxy"),
    ("apache", "apache"),
    ("node", "node"),
    ("express", "node"),
)
# Headers that only one kind of proxy adds. It adds them even if it forwards the Server header of its upstream.
_OWN_HEADERS: Final[tuple[tuple[str, Kind], ...]] = (
    ("cf-ray", "cloudflare"),
    ("x-amz-cf-id", "cloudfront"),
    ("x-fastly-request-id", "fastly"),
    ("x-varnish", "varnish"),
    ("x-squid-error", "squid"),
    ("x-envoy-upstream-service-time", "envoy"),
)
_TRAEFIK_ISSUER: Final = "TRAEFIK DEFAULT CERT"


def identify(
    headers: Mapping[str, str], names: Sequence[str], *, https: bool = False, issuer: str | None = None
) -> list[Kind]:
    """The proxies that these headers show, at least one. The nearest comes first, as far as the headers show the order.

    A proxy that forwards the Server header of another one is listed before that one, although the headers do not show
    which is nearer.

    Args:
        headers: lower-case name to value.
        names: the names of the headers as they were sent.
        https: the connection used TLS. Since our server has no TLS, a proxy terminated it.
        issuer: the issuer of the certificate.
    """
    found: list[Kind] = [kind for name, kind in _OWN_HEADERS if name in headers]
    if headers.get("x-served-by", "").startswith("cache-"):
        found.append("fastly")
    # Each proxy adds itself to the end of Via (RFC 9110 section 7.6.3).
    for entry in reversed(headers.get("via", "").split(",")):
        found += _named_in(_product(entry))
    for name in ("server", "x-powered-by"):
        found += _named_in(headers.get(name, ""))
    if found:
        return list(dict.fromkeys(found))
    return [_by_behaviour(headers, names, https=https, issuer=issuer)]


def _product(entry: str) -> str:
    """The program that an entry of Via names: in its comment, as in ``1.1 host (squid/5.7)``, or else as its name, as
    in ``1.1 Caddy``. A host name is not a program."""
    comment = entry.partition("(")[2]
    name = entry.split()[-1] if entry.split() else ""
    return comment or (name if any(name.lower() == word for word, _ in _WORDS) else "")


def _named_in(text: str) -> list[Kind]:
    """The proxy that the text names, as a list of one; empty: it names none."""
    return [kind for word, kind in _WORDS if word in text.lower()][:1]


def _by_behaviour(headers: Mapping[str, str], names: Sequence[str], *, https: bool, issuer: str | None) -> Kind:
    """The kind of a proxy that does not name itself."""
    if issuer == _TRAEFIK_ISSUER:
        return "traefik"
    if "server" in headers or "via" in headers or not names:
        return "unknown"
    if "date" in headers:
        if "keep-alive" in headers:  # Node's http module adds Date, Connection and Keep-Alive
            return "node"
        return "traefik" if _is_gos(names) else "unknown"
    if all(name.islower() for name in names):
        return "haproxy"
    return "none" if "Content-Type" in names and not https else "unknown"


def _is_gos(names: Sequence[str]) -> bool:
    """Whether the headers have the order of Go's net/http: sorted names, then Date, then the headers that it adds about
    the body and the connection. This recognises Traefik, which is written in Go and adds no header of its own."""
    before = list(names[: names.index("Date")]) if "Date" in names else []
    added = {"Content-Length", "Content-Type", "Connection", "Transfer-Encoding"}
    return len(before) > 1 and before == sorted(before) and set(names[len(before) + 1 :]) <= added
