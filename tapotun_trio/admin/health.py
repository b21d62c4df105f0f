"""Readiness of this process: whether every interface of its config is up."""

from __future__ import annotations

from collections.abc import Iterable

from ..lifecycle.registry import Record
from ..lifecycle.snapshot import problem_of, state_of
from ..text import one_line


def not_ready(records: Iterable[Record]) -> list[str]:
    """One line for each interface that is not up, with the cause. Empty if the process is ready."""
    found = list(records)
    if not found:
        return ["no interface runs yet"]
    return [_reason(record) for record in found if state_of(record) != "up"]


def _reason(record: Record) -> str:
    problem = problem_of(record)
    text = f"{record.config.name}: {state_of(record)}"
    return one_line(f"{text}: {problem}" if problem else text)
