"""Invalid JSON, and the line and column of each value in valid JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapotun_trio.config.diagnostics import item, member
from tapotun_trio.config.jsontext import JsonProblem, parse, plain, positions
from tapotun_trio.config.load import check_content

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # this machine may be busy

VALUE: Final = "write a text in double quotes, a number, true, false, a list or an object"
LIST: Final = "put all interface definitions in one list, [{...}, {...}]"
NUMBER: Final = "write one such as 8080 or 0.5, or a text in double quotes"
CLOSE: Final = 'close the quotes with " on the same line'

BAD: Final[list[tuple[bytes, str]]] = [
    (b"", "is empty; write a list of interface definitions, [{...}]"),
    (b"\xef\xbb\xbf \r\n", "is empty; write a list of interface definitions, [{...}]"),
    (b"[,]", "line 1 column 2: there is nothing before this comma; remove the comma"),
    (b'[\n  {"a": [1 ,,\n ]}\n]', "line 2 column 13: there is nothing before this comma; remove the comma"),
    (b"// ten\n/* \n */ [{,}\n]", "line 3 column 7: there is nothing before this comma; remove the comma"),
    (
        b"// nothing\n/* at all */",
        "line 1 column 1: there are only comments; write a list of interface definitions, [{...}]",
    ),
    (b"[\n  /* {} \n]", "line 2 column 3: this comment has no end; close it with */, or begin it with //"),
    (b"[{}]\n// x\n/* y */ [{}]", "line 3 column 9: there is more after the end of the list; " + LIST),
    (b'[{"a": /* x\n y */ 08}]', "line 2 column 8: this is not a number; " + NUMBER),
    (
        b'[/* x */ "http://a\n"]',
        "line 1 column 19: there is a line break or a control character inside quotes; " + CLOSE,
    ),
    (b'["a', 'line 1 column 2: this text has no closing quote; close it with "'),
    (
        b'[\r\n{"token": "s3cret\r\n"}]',
        "line 2 column 18: there is a line break or a control character inside quotes; "
        'close the quotes with " on the same line',
    ),
    (b'["\\q"]', "line 1 column 3: this backslash starts no known escape; write \\\\ for one backslash"),
    (b"[", "line 1 column 2: the file ends too early; close every [ and {"),
    (b'[\n{"a": 1\n', "line 3 column 1: the file ends too early; close every [ and {"),
    (
        b"[{}]\n[{}]",
        "line 2 column 1: there is more after the end of the list; "
        "put all interface definitions in one list, [{...}, {...}]",
    ),
    (b"[/ x\n]", "line 1 column 2: a comment does not begin like this; begin it with //, or write /* and */ around it"),
    (
        b'[{"a": 1 # x\n}]',
        "line 1 column 10: a comment does not begin like this; begin it with //, or write /* and */ around it",
    ),
    ("[\u201ca\u201d]".encode(), 'line 1 column 2: this is a typographic quotation mark; write " instead'),
    (
        "[\u00a01]".encode(),
        "line 1 column 2: there is an invisible character here (U+00A0); remove it, or write a space",
    ),
    (
        "[1\u200b]".encode(),
        "line 1 column 3: there is an invisible character here (U+200B); remove it, or write a space",
    ),
    (
        b"\xef\xbb\xbf\xef\xbb\xbf[]",
        "line 1 column 1: there is an invisible character here (U+FEFF); remove it, or write a space",
    ),
    ("[1]".encode("utf-16-le"), "line 1 column 2: there is a zero byte here, as in UTF-16; save the file as UTF-8"),
    (b"['a']", 'line 1 column 2: JSON has no single quotes; write " instead'),
    (b"[{'a': 1}]", 'line 1 column 3: JSON has no single quotes; write " instead'),
    (b'[{"a": 1 "b": 2}]', "line 1 column 10: a comma or a closing bracket is missing before this; add it"),
    *(
        (
            f'[{{"a": {number}}}]'.encode(),
            f"line 1 column {8 + at}: this is not a number; write one such as 8080 or 0.5, or a text in double quotes",
        )
        for number, at in (("08", 1), ("0x50", 1), ("8_080", 1), ("5.", 1), ("80ms", 2), ("10.10.0.1/24", 5))
    ),
    (b'[{"a" 1}]', "line 1 column 7: a colon is missing after the field's name; add it"),
    (b"[{name: 1}]", 'line 1 column 3: a field\'s name belongs here; write it in double quotes, such as "name"'),
    (b'[{"a": True}]', "line 1 column 8: this word is Python, not JSON; write true, false or null"),
    (b'[{"token": s3cret}]', f"line 1 column 12: a value belongs here; {VALUE}"),
    (b"[\n\xc3\xa9]", f"line 2 column 1: a value belongs here; {VALUE}"),
    (b'[\n"\xc3\xa9\xe9"]', "line 2 column 3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    ("[]".encode("utf-16"), "line 1 column 1: byte 0xff is not UTF-8; save the file as UTF-8"),
    (
        b"[" * 100_000,
        "line 1 column 1: nests lists or objects too deeply; write a list of interface definitions",
    ),
    (b'{"a":' * 100_000, "line 1 column 1: nests lists or objects too deeply; write a list of interface definitions"),
    (b'{"name": "tun0"}', "{...} is not a list; write a list of interface definitions, [{...}]"),
    (b'"s3cret"', "*** is not a list; write a list of interface definitions, [{...}]"),
    (b"null", "null is not a list; write a list of interface definitions, [{...}]"),
    (b"[]", "[] has nothing to run; write at least one interface definition"),
]


@pytest.mark.parametrize(("data", "line"), BAD, ids=[line[:60] for _, line in BAD])
def test_bad_json(data: bytes, line: str) -> None:
    config, findings = check_content(data, "F")
    assert config is None
    assert [finding.text("F") for finding in findings] == [f"F: {line}"]


def test_a_byte_order_mark_is_ignored() -> None:
    _, findings = check_content(b"\xef\xbb\xbf[5]", "F")
    assert [(f.path, f.line, f.column) for f in findings] == [("[0]", 1, 2)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@patient
@given(JSON, st.sampled_from([None, 0, 2]), st.booleans())
def test_parse_agrees_with_the_standard_library(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse(text) == json.loads(text) == value


@patient
@given(JSON, st.sampled_from([None, 0, 2]), st.sampled_from([(",", ":"), (" , ", " : "), (",\n", ":\n ")]))
def test_positions_point_at_every_value(value: object, indent: int | None, separators: tuple[str, str]) -> None:
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
    lines = text.split("\n")
    places = positions(text)
    expected = dict(_values(value, ""))
    assert places.keys() == expected.keys()
    for path, (line, column) in places.items():
        decoder = json.JSONDecoder()
        found, _ = decoder.raw_decode("\n".join([lines[line - 1][column - 1 :], *lines[line:]]))
        assert found == expected[path]


def _values(value: object, path: str) -> Iterator[tuple[str, object]]:
    yield path, value
    if isinstance(value, list):
        for i, element in enumerate(value):
            yield from _values(element, item(path, i))
    if isinstance(value, dict):
        for key, field in value.items():
            yield from _values(field, member(path, key))


# ------------------------------------------------------------------ comments and last commas

NOISE: Final = st.sampled_from(
    [
        "",
        "",
        " ",
        "\n",
        "\t\r\n",
        '// a "b [ , ]\n',
        "//\r\n",
        "// \u00e9 /* \n",
        "/**/",
        "/*/ */",
        '/* " // \n , } */',
        "/* **/",
    ]
)
TEXT: Final = st.lists(
    st.sampled_from(["//", "/*", "*/", ",]", ",}", '"', "\\", "http://h/ip", "\n", "\u00e9"]) | st.text(max_size=2),
    max_size=4,
).map("".join)
LEAVES: Final = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES: Final = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


class Writer:
    """Writes a value with comments and last commas, and notes where each value begins."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.text = ""
        self.places: dict[str, tuple[int, int]] = {}

    def write(self, value: object, path: str = "") -> None:
        self._noise()
        self.places[path] = (self.text.count("\n") + 1, len(self.text) - self.text.rfind("\n"))
        if isinstance(value, list | dict) and value:
            self.text += "[" if isinstance(value, list) else "{"
            for at, part in enumerate(value):
                if at:
                    self.text += ","
                if isinstance(value, dict):
                    self._noise()
                    self.text += json.dumps(part)
                    self._noise()
                    self.text += ":"
                    self.write(value[part], member(path, part))
                else:
                    self.write(part, item(path, at))
            if self._data.draw(st.booleans()):
                self.text += ","
            self._noise()
            self.text += "]" if isinstance(value, list) else "}"
        else:
            self.text += json.dumps(value, ensure_ascii=False)
        self._noise()

    def _noise(self) -> None:
        self.text += self._data.draw(NOISE)


@patient
@given(VALUES, st.data())
def test_comments_and_last_commas_change_nothing(value: object, data: st.DataObject) -> None:
    """Neither a value, nor its place; nor what looks like a comment in a string."""
    writer = Writer(data)
    writer.write(value)
    assert parse(writer.text) == value
    assert positions(writer.text) == writer.places


PIECES: Final = [
    "//",
    "/*",
    "*/",
    "/",
    "*",
    '"',
    "\\",
    ",",
    "[",
    "]",
    "{",
    "}",
    ":",
    "1",
    "a",
    " ",
    "\n",
    "\r",
    "\u2028",
]


@patient
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_any_text_keeps_its_places(text: str) -> None:
    """Only what stands in comments, and commas, may become spaces."""
    problem = None
    told = ""
    try:
        told = plain(text)
    except JsonProblem as exc:
        problem = exc.problem, text.split("\n")[exc.line - 1][exc.column - 1 :][:2]
    if problem is not None:
        assert problem == ("this comment has no end", "/*")
        return
    assert plain(told) == told
    assert len(told) == len(text)
    assert all(b in (a, " ") for a, b in zip(text, told, strict=True))
    assert [at for at, c in enumerate(text) if c == "\n"] == [at for at, c in enumerate(told) if c == "\n"]
    if "//" not in text and "/*" not in text:
        assert {a for a, b in zip(text, told, strict=True) if a != b} <= {","}


@pytest.mark.parametrize(
    "text", ["[1,,]", "[,]", "{,}", '{"a":,}', "[:,]", ",", "[],", '{"a",}', "[1,}", "/**/", "[1 /**/ 2]"]
)
def test_what_stays_wrong(text: str) -> None:
    with pytest.raises(JsonProblem):
        parse(text)


def test_an_error_in_a_file_with_comments_has_its_line() -> None:
    data = b"""\
// The hub of the office.
[
  {
    "name": "tun0", /* the name
                       of it */ "mtu": 5,
    "server": "http://192.0.2.1/ip", // a URL, not a comment
    "token": "raw",
  },
]
"""
    _, findings = check_content(data, "F")
    assert [(f.path, f.line, f.column) for f in findings] == [("[0].mtu", 5, 40)]


def test_positions_do_not_recurse() -> None:
    text = "[" * 900 + "]" * 900
    assert positions(text)["[0]" * 899] == (1, 900)
