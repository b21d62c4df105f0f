"""What browsers and programs send to the admin listener: headers in any form, and bodies."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from tapotun_trio.admin.access import Refused
from tapotun_trio.admin.answers import decode
from tapotun_trio.admin.api import Login
from tapotun_trio.admin.browser import is_same_origin, limited_as, session_ids
from tapotun_trio.admin.pages import Page
from tapotun_trio.control.protocol import DisconnectArguments, ReloadArguments

_ID: Final = "A" * 43
_PAGE: Final = Page(b"", "text/html", '"1"')

# A header's value, a line break, another one's.
SEEDS: Final = [
    f"a=b; tapotun_session={_ID}; c=d\nadmin.example.com".encode(),
    b"https://admin.example.com:8443\nadmin.example.com:8443",
    b"http://[::1]:9090\n[::1]:9090",
    b"203.0.113.7, 10.0.0.1\nfor=192.0.2.60",
    b'W/"0", "1"\n',
    b'{"token": "x"}\n{"client": "a", "interface": null}',
    b'{"dry_run": true}\n',
]


def check(data: bytes) -> None:
    first, _, second = data.partition(b"\n")
    value, other = first.decode("latin-1"), second.decode("latin-1")
    assert all(len(session) == len(_ID) for session in session_ids({"cookie": value}))
    assert session_ids({"cookie": f"tapotun_session={_ID}; {value}"})[0] == _ID
    if is_same_origin({"origin": value, "host": other}):
        assert not is_same_origin({"origin": value, "host": f"evil.{other}"})
    for remote in (None, "127.0.0.1", "192.0.2.7", value):
        name = limited_as(remote, {"x-forwarded-for": value, "forwarded": other})
        assert name.isprintable()
        assert 0 < len(name) < 64
    _PAGE.is_known(value)
    for kind in (Login, DisconnectArguments, ReloadArguments):
        with suppress(Refused):
            decode(data, kind)
