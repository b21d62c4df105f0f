"""Untrusted text, made safe for one line of a log or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_ESCAPE_CHARS: Final = 12  # of a JSON escape beyond the BMP


def one_line(text: str) -> str:
    """Escape every character that a terminal or a log may act upon, as ``\\u....``.

    These are control characters, line and paragraph separators, bidirectional overrides and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text
    )


def one_line_json(text: str) -> str:
    """A JSON text on one line, with the same characters escaped, by escapes of JSON, so that its meaning stays."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _json_escape(ord(c)) for c in text)


def _json_escape(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000  # a surrogate pair, RFC 8259 section 7
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def listed(items: Sequence[object], limit: int = 8) -> str:
    """The items with commas between them. Of more than ``limit``, the first ones and the number of the others."""
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def shorten_escaped(text: str, limit: int) -> str:
    """As `shorten`, but a character that has to be escaped counts as the longest escape. In time O(``limit``)."""
    if len(text) <= limit and text.isprintable():
        return text
    room = limit - 1
    for at, c in enumerate(text):
        room -= 1 if c.isprintable() else _ESCAPE_CHARS
        if room < 0:
            return text[:at] + "…"
    return text


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters of the text; the last is an ellipsis if some were left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
