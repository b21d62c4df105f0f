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


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters of the text; the last is an ellipsis if some were left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
