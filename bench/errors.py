"""An error that is shown to a person in one line."""

from __future__ import annotations


class BenchError(Exception):
    """The bench cannot be made here; the text says what to do about it."""
