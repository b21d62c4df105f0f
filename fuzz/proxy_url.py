"""A proxy's URL, from a config or from the environment: no password in what is said of a wrong one."""

from __future__ import annotations

from typing import Final

from tapotun_trio.config.diagnostics import InvalidValue
from tapotun_trio.config.model import Proxy, Url
from tapotun_trio.config.urls import bypasses_proxy, parse_proxy, proxy_from_environment

from .feeding import assert_hidden, assert_printable

_URL: Final = Url("https", "h.example.com", 443, "/ip")
_PASSWORD: Final = "xYzZy-9"

SEEDS: Final = [
    b"http://proxy.example.com:3128",
    b"http://user:p%40ss@[2001:db8::1]:3128/",
    b"user:pass@proxy:3128",
    b"socks5://proxy:1080",
    b"none",
    b"*.example.com, 10.0.0.0/8 [::1]",
]


def check(data: bytes) -> None:
    text = data.decode("latin-1")
    _parse(text)
    # What stands before an @ shows in no error.
    for login in (f"http://user:{_PASSWORD}@{text}", f"user:{_PASSWORD}@{text}", f"{text}:{_PASSWORD}@h:1"):
        _parse(login)
    assert isinstance(bypasses_proxy("h.example.com", text), bool)
    assert isinstance(bypasses_proxy("2001:db8::1", text), bool)
    try:
        found = proxy_from_environment(_URL, {"https_proxy": text, "no_proxy": ""})
        assert (found is None) == (not text)
    except InvalidValue as exc:
        assert_printable(exc)


def _parse(text: str) -> None:
    try:
        found = parse_proxy(text)
    except InvalidValue as exc:
        assert_hidden(_PASSWORD, exc.shown, exc.problem, exc.remedy)
        return
    if isinstance(found, Proxy):
        assert 0 < found.port < 65536
        assert_hidden(_PASSWORD, repr(found), found.authority)
