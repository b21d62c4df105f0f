"""Findings about a config file, and their texts for people and for programs.

Rules: a finding is one line, for any content of the file; a raw token is never shown; every finding says what to write
instead.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ..errors import ConfigError
from ..text import one_line, shorten
from .model import Config

Severity: TypeAlias = Literal["error", "warning"]

MASK: Final = "***"
"""Shown instead of a value that is, or may be, a secret."""

_SHOWN_CHARS: Final = 80
_SHOWN_KEY_CHARS: Final = 40
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)


def quote(text: str) -> str:
    """The text as a JSON string in double quotes, on one line, shortened."""
    return f'"{one_line(json.dumps(shorten(text, _SHOWN_CHARS), ensure_ascii=False)[1:-1])}"'


def show(value: object) -> str:
    """A value of the file as JSON. For a list or an object it is only the brackets, because those may hold a token.

    The caller masks a single value that is secret.
    """
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list):
        return "[...]" if value else "[]"
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if value is None or isinstance(value, bool | int | float):
        return shorten(json.dumps(value), _SHOWN_CHARS)
    return shorten(str(value), _SHOWN_CHARS)


def member(path: str, key: str) -> str:
    """The path of a field: ``[0].net``, ``[0]["odd key"]``, or ``log`` in the root object."""
    if len(key) <= _SHOWN_KEY_CHARS and _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{quote(shorten(key, _SHOWN_KEY_CHARS))}]"


def item(path: str, index: int) -> str:
    """The path of a list's element: ``[0].clients[2]``."""
    return f"{path}[{index}]"


@dataclass(frozen=True, slots=True)
class Finding:
    """One error or warning for the operator.

    Attributes:
        path: the place in the JSON (``[0].clients[2].ip``); empty for the file as a whole.
        value: the value there as JSON, masked if secret; empty if there is none.
        line: the line of the value, from 1; None if the value has no place in the file.
        column: the column of the value, from 1, in characters; None if ``line`` is None.
    """

    severity: Severity
    path: str
    value: str
    problem: str
    remedy: str
    line: int | None = None
    column: int | None = None

    def text(self, file: str) -> str:
        """The finding as one line. A warning has ``warning:`` after the file.

        ``FILE: [0].clients[2].ip: "10.10.1.9" is outside net 10.10.0.0/24; choose an address in it (line 12)``
        """
        place, note = self.path, ""
        if self.line is not None:
            if place:
                note = f" (line {self.line})"
            else:
                place = f"line {self.line} column {self.column}"
        severity = "warning" if self.severity == "warning" else ""
        head = ": ".join(part for part in (file, severity, place) if part)
        what = f"{self.value} {self.problem}" if self.value else self.problem
        return one_line(f"{head}: {what}; {self.remedy}{note}")

    def as_dict(self) -> dict[str, str | int | None]:
        """The finding for ``--json``. The keys are a public interface. No value holds a line break."""
        return {
            "path": one_line(self.path),
            "value": one_line(self.value),
            "problem": one_line(self.problem),
            "remedy": one_line(self.remedy),
            "line": self.line,
            "column": self.column,
        }


@dataclass(slots=True)
class Findings:
    """Collects the findings of all checks. A check continues after an error, so that all errors are reported
    together."""

    found: list[Finding] = field(default_factory=list)

    def error(self, path: str, value: str, problem: str, remedy: str) -> None:
        self.found.append(Finding("error", path, value, problem, remedy))

    def warning(self, path: str, value: str, problem: str, remedy: str) -> None:
        self.found.append(Finding("warning", path, value, problem, remedy))

    def has_error_below(self, path: str) -> bool:
        """Whether an error was reported for a field of the object at ``path``."""
        return any(finding.severity == "error" and finding.path.startswith(f"{path}.") for finding in self.found)


class InvalidValue(Exception):
    """A text that cannot be parsed: what is wrong with it, and what to write instead.

    ``shown`` replaces the value in the finding if only a part of it may be shown.
    """

    def __init__(self, problem: str, remedy: str, *, shown: str | None = None) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.shown = shown


class InvalidConfig(ConfigError):
    """The file has errors. The exception's text has one line for each error, in the order of the file.

    Attributes:
        file: the path as the operator gave it.
        findings: all findings, including warnings.
    """

    def __init__(self, file: str, findings: Iterable[Finding]) -> None:
        self.file = file
        self.findings = tuple(findings)
        errors = (f.text(file) for f in self.findings if f.severity == "error")
        super().__init__("\n".join(errors))


def report_text(file: str, config: Config | None, findings: Iterable[Finding]) -> str:
    """The output of ``validate-config``: one line for each finding, and a summary."""
    found = list(findings)
    lines = [finding.text(file) for finding in found]
    errors = sum(f.severity == "error" for f in found)
    counts = [_count(len(found) - errors, "warning")] if len(found) > errors else []
    if config is None:
        counts.insert(0, _count(errors, "error"))
        lines.append(one_line(f"{file}: not valid: {', '.join(counts)}"))
    else:
        counted = Counter(interface.kind for interface in config.interfaces)
        kinds = [_count(counted[kind], kind) for kind in ("server", "client") if counted[kind]]
        lines.append(one_line(f"{file}: valid: {', '.join(kinds + counts)}"))
    return "\n".join(lines)


def report_json(file: str, findings: Iterable[Finding]) -> str:
    """The output of ``validate-config --json``: one JSON object, whose keys are a public interface."""
    found = list(findings)
    errors = [f.as_dict() for f in found if f.severity == "error"]
    warnings = [f.as_dict() for f in found if f.severity == "warning"]
    report = {"file": file, "valid": not errors, "errors": errors, "warnings": warnings}
    return json.dumps(report, indent=2)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
