"""What the program parses of the processes that look for updates, and how it compares versions."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import update_answer, update_metadata
from tapotun_trio.update import bundle
from tapotun_trio.update.answers import ANSWER_BYTES, TEXT_CHARS, Answer, Failed, Fetched, Verified, decode, encode
from tapotun_trio.update.outcome import UpdateError
from tapotun_trio.update.version import is_newer, version_key

VERIFIED: Final = Verified("0.2.0", 64 * "a", 1000, False, "3.11", True)
ANSWERS: Final[list[Answer]] = [Fetched(), VERIFIED, Verified("1rc1", 64 * "0", 1, True, "", None), Failed("no")]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_survives(answer: Answer) -> None:
    assert decode(encode(answer)) == answer


@given(st.text())
def test_any_text_of_a_failure_is_short_and_harmless(text: str) -> None:
    text *= 50
    line = encode(Failed(text))
    assert len(line) <= ANSWER_BYTES
    answer = decode(line)
    assert isinstance(answer, Failed)
    assert answer.text.isprintable()
    assert len(answer.text) <= TEXT_CHARS


@given(st.binary(max_size=300) | st.sampled_from(update_answer.SEEDS))
def test_any_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    update_answer.check(data)
    update_answer.check(data + b"\n")


@given(st.data())
def test_any_change_of_an_answer(data: st.DataObject) -> None:
    changed = bytearray(encode(data.draw(st.sampled_from(ANSWERS))))
    at = data.draw(st.integers(0, len(changed)))
    changed[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=10))
    update_answer.check(bytes(changed))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        encode(VERIFIED)[:-1],
        encode(VERIFIED) * 2,
        encode(VERIFIED).replace(b"0.2.0", b"newest"),
        encode(VERIFIED).replace(b"0.2.0", b"0" * 65),
        encode(VERIFIED).replace(b"1000", b"0"),
        encode(VERIFIED).replace(b"1000", b"67108865"),
        encode(VERIFIED).replace(b"1000", b"1e3"),
        encode(VERIFIED).replace(b"aaaa", b"AAAA"),
        encode(VERIFIED).replace(b"aaaa", b"aaa"),
        encode(VERIFIED).replace(b"3.11", b"3.11.2"),
        encode(VERIFIED).replace(b"verified", b"proven"),
        encode(VERIFIED).replace(b'"whole"', b'"more"'),
        b" " * ANSWER_BYTES + encode(Fetched()),
    ],
)
def test_an_answer_that_is_none(data: bytes) -> None:
    with pytest.raises(UpdateError, match=r"^the process that looks for updates gave no usable answer$"):
        decode(data)


@pytest.mark.parametrize("target", [update_answer, update_metadata], ids=lambda module: module.__name__)
def test_what_the_fuzzer_begins_with(target: ModuleType) -> None:
    check: Callable[[bytes], None] = target.check
    for seed in target.SEEDS:
        check(seed)
        check(seed[: len(seed) // 2])


@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=50), max_size=5), st.binary(max_size=50))
def test_a_bundle(files: dict[str, bytes], data: bytes) -> None:
    assert bundle.decode(bundle.encode(files)) == files
    with pytest.raises(ValueError, match="damaged"):
        bundle.decode(b"[" + data)


def test_a_bundle_is_bounded() -> None:
    with pytest.raises(ValueError, match="at most"):
        bundle.encode({"a": bytes(bundle.BUNDLE_BYTES)})
    with pytest.raises(ValueError, match="longer than"):
        bundle.decode(bytes(bundle.BUNDLE_BYTES + 1))


# ------------------------------------------------------------------ versions

# In their order, by PEP 440.
ORDER: Final = (
    *("0", "0.0.1.dev1", "0.0.1", "0.1.0", "0.1.1", "0.2.dev1", "0.2a1.dev2", "0.2a1", "0.2a2", "0.2b1", "0.2rc1.dev1"),
    *("0.2rc1", "0.2", "0.2.post1.dev1", "0.2.post1", "0.2.1", "0.10", "1", "1.0.0.1", "2026.11.30"),
)


def test_the_order_of_versions() -> None:
    for at, version in enumerate(ORDER):
        for other_at, other in enumerate(ORDER):
            assert is_newer(version, other) == (at > other_at), (version, other)
    for same in ("1", "1.0", "1.0.0", "01.0"):
        assert not is_newer(same, "1")
        assert not is_newer("1", same)


@pytest.mark.parametrize(
    "text",
    ["", "v1", "1.", ".1", "1..2", "1.0-1", "1+local", "1.0 ", "1.0\n", "1e9", "\u0661", "1.2.3.4.5.6.7", "9" * 10],
)
def test_a_version_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a version number"):
        version_key(text)


@given(st.text() | st.from_regex(re.compile(r"[0-9.abrcpostdev]{0,20}", re.ASCII), fullmatch=True))
def test_any_text_is_a_version_or_a_value_error(text: str) -> None:
    try:
        version_key(text)
    except ValueError:
        return
    assert not is_newer(text, text)
