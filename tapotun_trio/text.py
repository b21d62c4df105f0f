"""Text from elsewhere, made fit for one line of a log or a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    """The same text with everything that a terminal or a log might act upon (controls, line and paragraph
    separators, bidirectional overrides, lone surrogates) as ``\\u....``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text
    )


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters, the last an ellipsis if some were left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
