"""Untrusted text, made safe for one line of a log or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from unicodedata import category

_ESCAPE_CHARS: Final = 12  # length of a JSON escape for a character beyond the BMP
# Their category is printable, but they are blank on a screen: joiners, fillers of scripts, the empty Braille pattern.
_BLANK: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# One character that is drawn across many columns: ligatures of whole sentences, long dashes, a Javanese ornament, and
# two cuneiform signs.
_OVERWIDE: Final = frozenset("\u2e3a\u2e3b\ua9c5\ufdfa\ufdfb\ufdfd\U00012219\U0001242b")
_MARKS: Final = 2  # combining marks that a letter may carry: Thai and Hebrew need two


def one_line(text: str) -> str:
    """Escape every character that a terminal or a log may act upon, or that a reader cannot see, as ``\\u....``.

    These are control characters, line and paragraph separators, bidirectional overrides, lone surrogates and characters
    that look blank. So are characters that are drawn over their neighbours: combining marks without a letter, or too
    many of them.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = _MARKS  # at the start there is no letter that could carry a mark
    for c in text:
        kind = category(c)
        if kind == "Mn":
            marks += 1
            visible = marks <= _MARKS and c not in _BLANK
        else:
            visible = c.isprintable() and kind != "Me" and c not in _BLANK and c not in _OVERWIDE
            marks = 0 if visible and c != " " else _MARKS
        shown.append(c if visible else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}")
    return "".join(shown)


def one_line_json(text: str) -> str:
    """Return a JSON text on one line. The same characters are escaped, with JSON's own escapes, so that the meaning
    stays the same."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _json_escape(ord(c)) for c in text)


def _json_escape(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000  # a surrogate pair, RFC 8259 section 7
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def interface_setting(family: str, interface: str, setting: str) -> str:
    """The name of a network setting of an interface for `sysctl`, which takes a ``/`` for a dot in the interface's name
    (sysctl(8))."""
    return f"net.{family}.conf.{interface.replace('.', '/')}.{setting}"


def listed(items: Sequence[object], limit: int = 8) -> str:
    """Join the items with commas. If there are more than ``limit``, show the first ones and the number of the
    others."""
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def shorten_escaped(text: str, limit: int) -> str:
    """As `shorten`, but each character that must be escaped counts as long as the longest escape. Takes O(``limit``)
    time."""
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
