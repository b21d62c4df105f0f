"""The panel's own files, read once: `static/` of this package, wherever it is installed (a wheel, a zip)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Page:
    """``tag``: its ETag, quotes included."""

    body: bytes
    kind: str
    tag: str

    def is_known(self, if_none_match: str) -> bool:
        """Whether who asks has it already (RFC 9110 section 13.1.2). Untrusted input; never raises."""
        return if_none_match.strip() == "*" or any(
            tag.strip().removeprefix("W/") == self.tag for tag in if_none_match.split(",")
        )


def read_pages() -> dict[str, Page]:
    """By path; the index is at ``/`` alone. Blocking."""
    pages: dict[str, Page] = {}
    for file in files(__package__).joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is None or not file.is_file():
            continue
        body = file.read_bytes()
        path = "/" if file.name == INDEX else f"/{file.name}"
        pages[path] = Page(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return pages
