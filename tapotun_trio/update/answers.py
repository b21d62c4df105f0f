"""What a worker answers: one line of JSON. It is all that the parent parses of a worker.

Untrusted input: a worker has read what came from the network. Raises `UpdateError` only. Every text is bounded.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ..text import one_line, shorten
from .outcome import UpdateError
from .version import VERSION_CHARS, version_key

ANSWER_BYTES: Final = 4096
TEXT_CHARS: Final = 600
TARGET_BYTES: Final = 64 * 1024 * 1024
_SHA256: Final = "^[0-9a-f]{64}$"
_NOT_ONE: Final = "the process that looks for updates gave no usable answer"


class Fetched(Struct, frozen=True, tag="fetched", forbid_unknown_fields=True):
    """Metadata was fetched, and the file if that was asked for and is newer. Nothing is verified yet."""


class Verified(Struct, frozen=True, tag="verified", forbid_unknown_fields=True):
    """What the repository's keys vouch for.

    Attributes:
        discarded: metadata of earlier runs was not usable, and was not used.
        python: the oldest Python that can run this version, as 3.11; empty: not said.
        whole: whether the file that was passed has this hash and length. None: there was none.
    """

    version: Annotated[str, Meta(max_length=VERSION_CHARS)]
    sha256: Annotated[str, Meta(pattern=_SHA256)]
    length: Annotated[int, Meta(ge=1, le=TARGET_BYTES)]
    discarded: bool
    python: Annotated[str, Meta(pattern=r"^(3\.[0-9]{1,2})?$")]
    whole: bool | None


class Failed(Struct, frozen=True, tag="failed", forbid_unknown_fields=True):
    """``text``: one line for people."""

    text: str


Answer: TypeAlias = Fetched | Verified | Failed

_decoder: Final = msgspec.json.Decoder(Answer)
_encoder: Final = msgspec.json.Encoder()


def encode(answer: Answer) -> bytes:
    """One line, of at most ANSWER_BYTES."""
    if isinstance(answer, Failed):
        answer = Failed(_bounded(answer.text))
    return _encoder.encode(answer) + b"\n"


def decode(data: bytes) -> Answer:
    """Parse a worker's whole output. Raises UpdateError."""
    if len(data) > ANSWER_BYTES or not data.endswith(b"\n"):
        raise UpdateError(_NOT_ONE)
    try:
        answer = _decoder.decode(data)
        if isinstance(answer, Verified):
            version_key(answer.version)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise UpdateError(_NOT_ONE) from exc
    if isinstance(answer, Failed):
        return Failed(_bounded(answer.text))
    return answer


def _bounded(text: str) -> str:
    """On one line, of at most TEXT_CHARS, also where characters become escapes."""
    return shorten(one_line(shorten(text, TEXT_CHARS)), TEXT_CHARS)
