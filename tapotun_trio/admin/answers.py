"""Responses before they are bytes. They are complete, have a length, and are not cached unless they say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from ..text import one_line, shorten
from .access import Refused

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
ANSWER_ERROR_CHARS: Final = 2000

# Nothing from other origins, no inline script or style, no embedding into other pages.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ALWAYS: Final = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. ``kind``: its Content-Type; empty: it has no body."""

    status: int
    body: bytes = b""
    kind: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def fields(self) -> list[tuple[str, str]]:
        """All header fields of the response."""
        names = {name for name, _ in self.headers}
        caching = [] if "Cache-Control" in names else [("Cache-Control", "no-store")]
        return [*([("Content-Type", self.kind)] if self.kind else []), *self.headers, *caching, *_ALWAYS]


def text(status: int, lines: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, f"{lines}\n".encode(), TEXT, headers)


def document(value: Any, status: int = 200) -> Answer:
    """A JSON response. ``value``: anything that msgspec can encode."""
    return Answer(status, msgspec.json.encode(value), JSON)


def error(status: int, message: str, *headers: tuple[str, str], plain: bool = False) -> Answer:
    """An error, as JSON; with ``plain`` as text, for people."""
    line = one_line(shorten(message, ANSWER_ERROR_CHARS))
    if plain:
        return text(status, line, *headers)
    return Answer(status, msgspec.json.encode({"error": line}), JSON, headers)


def decode(body: bytes, kind: type[T]) -> T:
    """The JSON of a request. Untrusted input; raises Refused, which never quotes the body: it may hold a token."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(kind))  # type: ignore[arg-type]
        raise Refused(400, f"the body is not a JSON object of: {fields}") from None
