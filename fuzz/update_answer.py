"""The answer of a process that looks for updates: all that the program parses of it."""

from __future__ import annotations

from typing import Final

from tapotun_trio.update.answers import (
    ANSWER_BYTES,
    TARGET_BYTES,
    TEXT_CHARS,
    Failed,
    Fetched,
    Verified,
    decode,
    encode,
)
from tapotun_trio.update.outcome import UpdateError
from tapotun_trio.update.version import version_key

from .feeding import assert_printable

SEEDS: Final = [
    encode(Fetched()),
    encode(Verified("0.2.0", 64 * "a", 5_000_000, False, "3.11", True)),
    encode(Verified("1.0rc1.post2.dev3", 64 * "0", 1, True, "", None)),
    encode(Failed("https://updates.example.com/: answers 404 Not Found")),
    b'{"type":"failed","text":"\\u001b[31m\\ud83d\\ude00"}\n',
    b'{"type":"verified","version":"' + 60 * b"1." + b'"}\n',
    b'{"type":' + b"[" * 2000,
]


def check(data: bytes) -> None:
    try:
        answer = decode(data)
    except UpdateError as exc:
        assert_printable(exc)
        return
    assert len(data) <= ANSWER_BYTES
    if isinstance(answer, Failed):
        assert answer.text.isprintable()
        assert len(answer.text) <= TEXT_CHARS
    if isinstance(answer, Verified):
        version_key(answer.version)
        assert 0 < answer.length <= TARGET_BYTES
        assert int(answer.sha256, 16) >= 0
        assert decode(encode(answer)) == answer
