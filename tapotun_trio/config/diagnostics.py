"""What is wrong with a config file, said to a person or a program.

Rules of this module: a finding is one line whatever the file holds; a raw token is never shown;
every finding says what to write instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ..errors import ConfigError
from ..text import one_line, shorten
from .model import ClientConfig, Config, ServerConfig

Severity: TypeAlias = Literal["error", "warning"]

MASK: Final = "***"
"""Stands wherever a value is, or may be, a secret."""

_SHOWN_CHARS: Final = 80
_SHOWN_KEY_CHARS: Final = 40
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)


def quote(text: str) -> str:
    """The text in double quotes as it stands in JSON, on one line, shortened."""
    return f'"{one_line(json.dumps(shorten(text, _SHOWN_CHARS), ensure_ascii=False)[1:-1])}"'


def show(value: object) -> str:
    """A value of the file as JSON shows it. Containers give their brackets only: one may hold a
    token. The caller masks what is secret."""
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
    """The path of a field: ``[0].net``, or ``[0]["odd key"]``; of the root object's ``log``."""
    if len(key) <= _SHOWN_KEY_CHARS and _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{quote(shorten(key, _SHOWN_KEY_CHARS))}]"


def item(path: str, index: int) -> str:
    """The path of an element: ``[0].clients[2]``."""
    return f"{path}[{index}]"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the operator should know.

    ``path`` is the place in the JSON (``[0].clients[2].ip``), empty if the file as a whole is
    meant. ``value`` is what stands there as JSON shows it, masked if secret, empty if nothing does.
    ``line`` and ``column`` count from 1, in characters, and are None where there is no such place.
    """

    severity: Severity
    path: str
    value: str
    problem: str
    remedy: str
    line: int | None = None
    column: int | None = None

    def text(self, file: str) -> str:
        """One line: ``FILE: [0].clients[2].ip: "10.10.1.9" is outside net 10.10.0.0/24; choose an
        address in it (line 12)``. A warning has ``warning:`` after the file."""
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
        """The same for ``--json``; the keys are a promise. No value holds a line break."""
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
    """Where every check puts what it found. It goes on after an error: all are reported together."""

    found: list[Finding] = field(default_factory=list)

    def error(self, path: str, value: str, problem: str, remedy: str) -> None:
        self.found.append(Finding("error", path, value, problem, remedy))

    def warning(self, path: str, value: str, problem: str, remedy: str) -> None:
        self.found.append(Finding("warning", path, value, problem, remedy))


class InvalidConfig(ConfigError):
    """The file has errors. The text is one line for each, in the order of the file.

    Attributes:
        file: the path as the operator gave it.
        findings: all of them, warnings too.
    """

    def __init__(self, file: str, findings: Iterable[Finding]) -> None:
        self.file = file
        self.findings = tuple(findings)
        errors = (f.text(file) for f in self.findings if f.severity == "error")
        super().__init__("\n".join(errors))


def report_text(file: str, config: Config | None, findings: Iterable[Finding]) -> str:
    """What ``validate-config`` prints: one line per finding and one that sums up. Pure."""
    found = list(findings)
    lines = [finding.text(file) for finding in found]
    errors = sum(f.severity == "error" for f in found)
    counts = [_count(len(found) - errors, "warning")] if len(found) > errors else []
    if config is None:
        counts.insert(0, _count(errors, "error"))
        lines.append(one_line(f"{file}: not valid: {', '.join(counts)}"))
    else:
        servers = sum(isinstance(i, ServerConfig) for i in config.interfaces)
        clients = sum(isinstance(i, ClientConfig) for i in config.interfaces)
        kinds = [_count(n, kind) for n, kind in ((servers, "server"), (clients, "client")) if n]
        lines.append(one_line(f"{file}: valid: {', '.join(kinds + counts)}"))
    return "\n".join(lines)


def report_json(file: str, findings: Iterable[Finding]) -> str:
    """What ``validate-config --json`` prints: one JSON object, whose keys are a promise. Pure."""
    found = list(findings)
    errors = [f.as_dict() for f in found if f.severity == "error"]
    warnings = [f.as_dict() for f in found if f.severity == "warning"]
    report = {"file": file, "valid": not errors, "errors": errors, "warnings": warnings}
    return json.dumps(report, indent=2)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
