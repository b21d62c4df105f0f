"""URLs with a login: the server's, and a proxy's from a config or from the environment. No password in what is said of
a wrong one. Also the other parsers of secrets: headers and logins."""

from __future__ import annotations

from typing import Final

from tapotun_trio.config.diagnostics import InvalidValue
from tapotun_trio.config.model import Proxy, Url
from tapotun_trio.config.parsers import parse_header_name, parse_header_value, parse_password, parse_user
from tapotun_trio.config.urls import bypasses_proxy, parse_proxy, parse_url, proxy_from_environment
from tapotun_trio.http.heads import basic, encode_request

from .feeding import assert_hidden, assert_printable

_URL: Final = Url("https", "h.example.com", 443, "/ip")
_PASSWORD: Final = "xYzZy-9"

SEEDS: Final = [
    b"http://proxy.example.com:3128",
    b"http://user:p%40ss@[2001:db8::1]:3128/",
    b"user:pass@proxy:3128",
    b"socks5://proxy:1080",
    b"none",
    b"https://user:p%40ss@vpn.example.com:8443/ip?key=k",
    b"CF-Access-Client-Id",
    b"*.example.com, 10.0.0.0/8 [::1]",
]


def check(data: bytes) -> None:
    text = data.decode("latin-1")
    _parse(text)
    # What stands before an @ shows in no error.
    for login in (f"http://user:{_PASSWORD}@{text}", f"user:{_PASSWORD}@{text}", f"{text}:{_PASSWORD}@h:1"):
        _parse(login)
        _parse_server(login)
    _parse_server(text)
    _make_headers(text)
    assert isinstance(bypasses_proxy("h.example.com", text), bool)
    assert isinstance(bypasses_proxy("2001:db8::1", text), bool)
    try:
        found = proxy_from_environment(_URL, {"https_proxy": text, "no_proxy": ""})
        assert (found is None) == (not text)
    except InvalidValue as exc:
        assert_printable(exc)


def _parse_server(text: str) -> None:
    try:
        url, login = parse_url(text)
    except InvalidValue as exc:
        assert_hidden(_PASSWORD, exc.shown, exc.problem, exc.remedy)
        return
    assert 0 < url.port < 65536
    # A path is no secret, and may look like a login.
    if _PASSWORD not in url.target:
        assert_hidden(_PASSWORD, repr(url), url.shown, repr(login))
    if login is not None:
        encode_request("GET", url.target, [("Host", url.authority), ("Authorization", basic(login))])


def _make_headers(text: str) -> None:
    """What is accepted can be sent, as one header with this name and value."""
    fields = [("Host", "h")]
    for parse in (parse_header_name, parse_header_value, parse_user, parse_password):
        try:
            found = parse(text)
        except InvalidValue as exc:
            assert_printable(exc)
            continue
        if parse is parse_header_name:
            fields.append((found, "v"))
        elif parse is parse_header_value:
            fields.append(("n", text))
    head = encode_request("GET", "/", fields)
    assert head.count(b"\r\n") == len(fields) + 2
    assert head.count(b"\n") == len(fields) + 2


def _parse(text: str) -> None:
    try:
        found = parse_proxy(text)
    except InvalidValue as exc:
        assert_hidden(_PASSWORD, exc.shown, exc.problem, exc.remedy)
        return
    if isinstance(found, Proxy):
        assert 0 < found.port < 65536
        assert_hidden(_PASSWORD, repr(found), found.authority)
