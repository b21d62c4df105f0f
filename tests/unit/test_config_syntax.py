"""Invalid JSON, and the line and column of each value in valid JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapotun_trio.config.diagnostics import item, member
from tapotun_trio.config.jsontext import parse, positions
from tapotun_trio.config.load import check_content

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # this machine may be busy

VALUE: Final = "write a text in double quotes, a number, true, false, a list or an object"

BAD: Final[list[tuple[bytes, str]]] = [
    (b"", "is empty; write a list of interface definitions, [{...}]"),
    (b"\xef\xbb\xbf \r\n", "is empty; write a list of interface definitions, [{...}]"),
    (b'[\n  {"a": 1,}\n]', "line 2 column 10: there is a comma before a closing bracket; remove the comma"),
    (b'[\n  {"a": [1 ,\n ]}\n]', "line 2 column 12: there is a comma before a closing bracket; remove the comma"),
    (b"[{},\n]", "line 1 column 4: there is a comma before a closing bracket; remove the comma"),
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
    (b"[// x\n]", "line 1 column 2: JSON has no comments; remove the comment"),
    (b'[{"a": 1 # x\n}]', "line 1 column 10: JSON has no comments; remove the comment"),
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


def test_positions_do_not_recurse() -> None:
    text = "[" * 900 + "]" * 900
    assert positions(text)["[0]" * 899] == (1, 900)
