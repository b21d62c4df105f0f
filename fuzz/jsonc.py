"""JSON with comments and last commas: a value or a JsonProblem, and the places of all values."""

from __future__ import annotations

import json
from typing import Final

from tapotun_trio.config.jsontext import JsonObject, JsonProblem, NotANumber, parse, plain, positions, to_text

SEEDS: Final = [
    b'// the hub\n[{"name": "tun0", /* of\r\n two lines */ "port": 8080,},]\n',
    b'{"a": "http://h/ip", "b": "/* no */ // no", "c": [1, [], {},], "d": "\\"//\\\\",}',
    b"/**/[/*/*/1/**/,//\n2//\n,]/***/",
    b"[1,,] [,] {,} / /* no end",
    b'[NaN, -Infinity, 1e999, "\\u2028", 5 # no\n]',
]


def check(data: bytes) -> None:
    try:
        text = to_text(data)
        value = parse(text)
    except JsonProblem as exc:
        if min(exc.line, exc.column) < 1:
            raise AssertionError("no place") from exc
        return
    told = plain(text)
    assert len(told) == len(text)
    again = parse(told)
    assert repr(again) == repr(value) or _has_odd_number(value)
    places = positions(text)
    assert places == positions(told)
    lines = text.split("\n")
    for path, (line, column) in places.items():
        assert column <= len(lines[line - 1]), path
        assert not lines[line - 1][column - 1].isspace(), path
    json.loads(told)  # the standard library agrees that it is JSON


def _has_odd_number(value: object) -> bool:
    """Whether it holds a NotANumber, whose repr has its address."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, NotANumber):
            return True
        if isinstance(part, JsonObject):
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False
