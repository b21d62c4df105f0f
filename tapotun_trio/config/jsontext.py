"""JSON text to plain objects, and the line and column of each value.

As in JSONC, comments (``// ...`` and ``/* ... */``) are allowed, and a comma after the last element of a list or an
object.

Untrusted input; `to_text` and `parse` raise `JsonProblem` only. No message quotes the text, because the quoted part may
be a token without its quotation marks.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from .diagnostics import item, member

_INT_DIGITS: Final = 100  # far below 4300, from where CPython's int() raises a bare ValueError


class JsonProblem(Exception):
    """The text is not JSON. ``line`` and ``column`` count from 1; a column is one character."""

    def __init__(self, problem: str, remedy: str, line: int, column: int) -> None:
        super().__init__(f"line {line} column {column}: {problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.line = line
        self.column = column


class JsonObject(dict[str, object]):
    """A JSON object. ``repeated`` has the keys that it has more than once; their last value is kept."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.repeated: tuple[str, ...] = ()
        if len(self) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated = tuple(key for key, n in counts.items() if n > 1)


class NotANumber:
    """A number that no field can hold, kept as its text: NaN, Infinity, an integer of 5000 digits."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    @property
    def is_finite(self) -> bool:
        """Whether it is finite; NaN and the infinities, which JSON does not allow, are not."""
        return self._text.lstrip("-").isdigit()


def to_text(data: bytes) -> str:
    """Decode UTF-8 with or without a byte order mark. Raises JsonProblem."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode()
        line, column = _line_column(before, len(before))
        raise JsonProblem(f"byte 0x{data[exc.start]:02x} is not UTF-8", "save the file as UTF-8", line, column) from exc


def parse(text: str) -> object:
    """Parse text to lists, JsonObjects, strings, numbers, NotANumbers, booleans and None. Raises JsonProblem."""
    try:
        return _loads(text)
    except json.JSONDecodeError:
        text = plain(text)  # only if needed: most files are plain JSON already, and may be large
    try:
        value = _loads(text)
    except json.JSONDecodeError as exc:
        at, problem, remedy = _explain(text, exc)
        raise JsonProblem(problem, remedy, *_line_column(text, at)) from exc
    return value


def _loads(text: str) -> object:
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=JsonObject,
            parse_constant=NotANumber,
            parse_int=_parse_int,
        )
    except RecursionError as exc:
        raise JsonProblem("nests lists or objects too deeply", "write a list of interface definitions", 1, 1) from exc
    return value


# A string, a comment, a comma, a bracket, or other text. An unclosed quote or /* is a piece of its own.
_PIECE: Final = re.compile(
    r""""[^"\\\n]*(?:\\.[^"\\\n]*)*"|//[^\r\n]*|/\*(?s:.*?)\*/|/\*|"|[,\[\]{}:/]|[^\s",\[\]{}:/]+"""
)


def plain(text: str) -> str:
    """Replace comments, and commas after last elements, with spaces. All other text keeps its position.

    Raises JsonProblem if a comment has no end.
    """
    blanked: list[tuple[int, int]] = []
    comma = -1  # position of a comma that may be the last in its list or object; -1: none
    after_value = False
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece == '"':  # a string without an end; the parser reports it
            break
        if piece == "/*":
            place = _line_column(text, match.start())
            raise JsonProblem("this comment has no end", "close it with */, or begin it with //", *place)
        if piece.startswith(("//", "/*")):
            blanked.append(match.span())
            continue
        if piece in ("]", "}") and comma >= 0:
            blanked.append((comma, comma + 1))
        comma = match.start() if piece == "," and after_value else -1
        after_value = piece not in ("[", "{", ",", ":")
    kept: list[str] = []
    done = 0
    for start, end in sorted(blanked):
        kept += text[done:start], _blank(text[start:end])
        done = end
    return "".join([*kept, text[done:]])


def _blank(piece: str) -> str:
    """Return spaces of the same length, with the same line breaks."""
    return "\n".join(" " * len(line) for line in piece.split("\n"))


def _parse_int(digits: str) -> int | NotANumber:
    return int(digits) if len(digits) <= _INT_DIGITS else NotANumber(digits)


def _line_column(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def _explain(text: str, exc: json.JSONDecodeError) -> tuple[int, str, str]:
    """Position, problem and remedy of a syntax error.

    Mistakes are recognised by the text around the position where that is possible, because the parser's messages differ
    between versions of Python.
    """
    at = exc.pos
    here = text[at : at + 1]
    if here == "," and exc.msg.startswith(("Expecting value", "Expecting property name")):
        return at, "there is nothing before this comma", "remove the comma"
    # For the next three errors the parser gives the start of the text, or the position of the character in it.
    if exc.msg.startswith("Unterminated string"):
        return at, "this text has no closing quote", 'close it with "'
    if exc.msg.startswith("Invalid control character"):
        return (
            at,
            "there is a line break or a control character inside quotes",
            'close the quotes with " on the same line',
        )
    if exc.msg.startswith("Invalid \\"):
        return at, "this backslash starts no known escape", "write \\\\ for one backslash"
    if not text.strip():
        return 0, "there are only comments", "write a list of interface definitions, [{...}]"
    if not here:
        return at, "the file ends too early", "close every [ and {"
    if here == "\0":
        return at, "there is a zero byte here, as in UTF-16", "save the file as UTF-8"
    if here in "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb":
        return at, "this is a typographic quotation mark", 'write " instead'
    if not here.isascii() and not (here.isprintable() and here.strip()):
        return at, f"there is an invisible character here (U+{ord(here):04X})", "remove it, or write a space"
    if exc.msg.startswith("Extra data"):
        return (
            at,
            "there is more after the end of the list",
            "put all interface definitions in one list, [{...}, {...}]",
        )
    if here in ("/", "#"):
        return at, "a comment does not begin like this", "begin it with //, or write /* and */ around it"
    if here == "'":
        return at, "JSON has no single quotes", 'write " instead'
    if at and text[at - 1].isdigit() and (here.isalnum() or here in (".", "_")):
        return at, "this is not a number", "write one such as 8080 or 0.5, or a text in double quotes"
    if exc.msg.startswith("Expecting ',' delimiter"):
        return at, "a comma or a closing bracket is missing before this", "add it"
    if exc.msg.startswith("Expecting ':' delimiter"):
        return at, "a colon is missing after the field's name", "add it"
    if exc.msg.startswith("Expecting property name"):
        return at, "a field's name belongs here", 'write it in double quotes, such as "name"'
    if text.startswith(("True", "False", "None"), at):
        return at, "this word is Python, not JSON", "write true, false or null"
    return (
        at,
        "a value belongs here",
        "write a text in double quotes, a number, true, false, a list or an object",
    )


_TOKEN: Final = re.compile(r""""[^"\\]*(?:\\.[^"\\]*)*"|//[^\r\n]*|/\*.*?\*/|[\[\]{},:]|[^\s\[\]{},:"/]+""", re.DOTALL)


def positions(text: str) -> dict[str, tuple[int, int]]:
    """Return the line and column of every value, by its path, in a text that `parse` has accepted.

    If an object has a key more than once, its last value counts. Does not recurse.
    """
    return {path: (line, column) for path, line, column in _walk(text)}


def _walk(text: str) -> Iterator[tuple[str, int, int]]:
    paths: list[str] = []  # the paths of the open lists and objects
    counts: list[int] = []  # the index of the next element of each list; -1 for an object
    path = ""  # the path of the next value
    expects_key = False
    line, line_start = 1, 0
    done = 0
    for match in _TOKEN.finditer(text):
        start, token = match.start(), match.group()
        newlines = text.count("\n", done, start)
        if newlines:
            line += newlines
            line_start = text.rindex("\n", done, start) + 1
        done = start
        if token[0] == "/":  # a comment
            continue
        if token == ",":
            if counts[-1] < 0:
                expects_key = True
            else:
                counts[-1] += 1
                path = item(paths[-1], counts[-1])
        elif token in ("]", "}"):
            paths.pop()
            counts.pop()
            expects_key = False
        elif token == ":":
            continue
        elif expects_key:
            path = member(paths[-1], json.loads(token))
            expects_key = False
        else:
            yield path, line, start - line_start + 1
            if token in ("[", "{"):
                paths.append(path)
                counts.append(0 if token == "[" else -1)
                expects_key = token == "{"
                path = item(path, 0)
