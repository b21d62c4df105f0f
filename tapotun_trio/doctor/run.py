"""`tapotun doctor`, from the command line to its exit code."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Final

from .. import exit_codes
from ..config.load import check
from ..config.model import AdminConfig, Config, InterfaceConfig, TlsValidator
from ..text import one_line
from .checks import Finding, judge
from .machine import Machine, inspect_machine
from .user import check_user

# The version of the JSON. Incremented when a field is removed or changes its meaning, not when one is added.
VERSION: Final = 1

_WORDS: Final = {"ok": "ok", "note": "note", "warning": "WARNING", "failure": "FAILURE"}


def doctor(
    arguments: Namespace, tls_validator: TlsValidator, inspect: Callable[[Iterable[str]], Machine] = inspect_machine
) -> int:
    """Inspect the machine, evaluate, print. Returns the exit code, which is 0 unless there is a failure.

    ``inspect``: collects the facts, given the names of the interfaces and bridges; tests replace it.
    """
    interfaces: tuple[InterfaceConfig, ...] = ()
    admin: AdminConfig | None = None
    found: list[Finding] = []
    if arguments.file is not None:
        config, problems = check(arguments.file, tls_validator)
        found += [
            Finding("failure" if problem.severity == "error" else "warning", "config", problem.text(arguments.file))
            for problem in problems
        ]
        interfaces = _interfaces(config)
        admin = None if config is None else config.admin
        if not problems:
            found.append(Finding("ok", "config", f"{arguments.file} is valid"))
        if config is not None:
            found += check_user(config, arguments.file)
    names = [interface.name for interface in interfaces]
    names += [interface.bridge.name for interface in interfaces if interface.bridge is not None]
    found += judge(inspect(dict.fromkeys(names)), interfaces, admin)
    print(report_json(found) if arguments.json else report_text(found))
    return exit_codes.FAILED if any(finding.severity == "failure" for finding in found) else exit_codes.OK


def _interfaces(config: Config | None) -> tuple[InterfaceConfig, ...]:
    return () if config is None else config.interfaces


def report_text(found: Iterable[Finding]) -> str:
    """One line for each finding."""
    return "\n".join(one_line(_line(finding)) for finding in found)


def _line(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"{_WORDS[finding.severity]:<8}{finding.check:<13}{finding.text}{remedy}"


def report_json(found: Iterable[Finding]) -> str:
    """One JSON object."""
    return json.dumps({"version": VERSION, "findings": [asdict(finding) for finding in found]}, indent=2)
