"""The panel's files: those of ``static/``, read once from this package (a directory or a zip), and ``reasons.js``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from ..datapath.counters import DropReason
from ..digests import digest
from ..errors import EndReason, RefusalReason

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "webmanifest": "application/manifest+json",
    "txt": "text/plain; charset=utf-8",
}
INDEX: Final = "index.html"
REASONS: Final = "reasons.js"


@dataclass(frozen=True, slots=True)
class Page:
    """One file. ``kind``: its Content-Type; ``tag``: its ETag, with the quotes."""

    body: bytes
    kind: str
    tag: str

    def is_known(self, if_none_match: str) -> bool:
        """Whether the browser has this version (RFC 9110 section 13.1.2). Untrusted input; never raises."""
        return if_none_match.strip() == "*" or any(
            tag.strip().removeprefix("W/") == self.tag for tag in if_none_match.split(",")
        )


def read_pages() -> dict[str, Page]:
    """The files by path; the index is at ``/`` only. Blocking."""
    pages = {f"/{REASONS}": _page(REASONS, _reasons_module().encode())}
    for file in files(__package__).joinpath("static").iterdir():
        if file.is_file() and _suffix(file.name) in _TYPES:
            path = "/" if file.name == INDEX else f"/{file.name}"
            pages[path] = _page(file.name, file.read_bytes())
    return pages


def _page(name: str, body: bytes) -> Page:
    return Page(body, _TYPES[_suffix(name)], f'"{digest("sha256", body).hex()[:32]}"')


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


def _reasons_module() -> str:
    """A JavaScript module with the meaning of each reason, grouped by what is counted. The texts are those of the
    enums."""
    ends = {reason.value: reason.meaning for reason in EndReason}
    meanings = {
        "packets": {reason.value: reason.meaning for reason in DropReason},
        "requests": ends | {reason.value: reason.meaning for reason in RefusalReason},
        "streams": ends,
    }
    http = EndReason.http(502).meaning
    return f"""// Made by admin/pages.py from the enums of errors.py and datapath/counters.py.

export const MEANINGS = {json.dumps(meanings, indent=2)};
export const HTTP_MEANING = {json.dumps(http)};
"""
