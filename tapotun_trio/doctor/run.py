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
from .machine import Machine, look

# Of the JSON. It grows by one when a field goes, or changes what it means; not when one is added.
VERSION: Final = 1

_WORDS: Final = {"ok": "ok", "note": "note", "warning": "WARNING", "failure": "FAILURE"}


def doctor(arguments: Namespace, tls_validator: TlsValidator, see: Callable[[Iterable[str]], Machine] = look) -> int:
    """Look, judge, print. Returns 0 unless there is a failure."""
    interfaces: tuple[InterfaceConfig, ...] = ()
    admin: AdminConfig | None = None
    found: list[Finding] = []
    if arguments.file is not None:
        config, problems = check(arguments.file, tls_validator)
        found += [
            Finding("failure" if it.severity == "error" else "warning", "config", it.text(arguments.file))
            for it in problems
        ]
        interfaces = _interfaces(config)
        admin = None if config is None else config.admin
        if not problems:
            found.append(Finding("ok", "config", f"{arguments.file} is valid"))
    found += judge(see([it.name for it in interfaces]), interfaces, admin)
    print(report_json(found) if arguments.json else report_text(found))
    return exit_codes.FAILED if any(it.severity == "failure" for it in found) else exit_codes.OK


def _interfaces(config: Config | None) -> tuple[InterfaceConfig, ...]:
    return () if config is None else config.interfaces


def report_text(found: Iterable[Finding]) -> str:
    """A line each."""
    lines = [f"{_WORDS[it.severity]:<8}{it.check:<13}{it.text}{f'; {it.remedy}' if it.remedy else ''}" for it in found]
    return "\n".join(map(one_line, lines))


def report_json(found: Iterable[Finding]) -> str:
    """One object."""
    return json.dumps({"version": VERSION, "findings": [asdict(it) for it in found]}, indent=2)
