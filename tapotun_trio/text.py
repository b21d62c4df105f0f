"""Untrusted text, made safe for one line of a log or a terminal."""

from __future__ import annotations


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


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters of the text; the last is an ellipsis if some were left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
