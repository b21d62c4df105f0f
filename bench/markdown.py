"""Tables of a run, written into a document, between two comments. Pure but for `write`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import BenchError


def fill(document: str, name: str, lines: Sequence[str]) -> str:
    """The document with these lines between ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``, which must be there.

    The first comment may go on after the name, to say who fills the place. Raises BenchError.
    """
    rows = document.split("\n")
    begins = [number for number, row in enumerate(rows) if row.startswith(f"<!-- {name}:")]
    ends = [number for number, row in enumerate(rows) if row == f"<!-- end of {name} -->"]
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
        raise BenchError(
            f"no place for {name}: two lines make one, `<!-- {name}: ... -->` and `<!-- end of {name} -->`"
        )
    return "\n".join([*rows[: begins[0] + 1], "", *lines, "", *rows[ends[0] :]])


def check(file: Path, name: str) -> None:
    """Whether `write` can fill the file. Raises BenchError."""
    try:
        document = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BenchError(
            f"cannot write the tables into {file}: {exc}: name a document that has a place for them"
        ) from exc
    fill(document, name, ())


def write(file: Path, name: str, lines: Sequence[str]) -> None:
    """`fill` a file. Raises BenchError, OSError."""
    file.write_text(fill(file.read_text("utf-8"), name, lines), encoding="utf-8")
