"""What reading a server's definition and a client's have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeVar

from . import fields, files
from .checks import ConflictChecker
from .decode import Node
from .diagnostics import Findings, quote, show
from .fields import Invalid
from .model import Mark, TlsValidator

T = TypeVar("T")

# linux/rtnetlink.h: RT_TABLE_UNSPEC, _DEFAULT, _MAIN, _LOCAL. A default route in one of them would
# take packets that carry no mark.
_RESERVED_TABLES: Final = {
    0: "the kernel's word for the main table",
    253: "the default table of this machine",
    254: "the main table of this machine",
    255: "the local table of this machine",
}


class LoadContext:
    """One reading of one file: where its findings go and what its entries have claimed so far.

    A definition with errors still claims its names, addresses and ports, so that a clash with it
    is reported in the same run.
    """

    def __init__(self, file: str, findings: Findings, tls_validator: TlsValidator | None = None) -> None:
        self.findings = findings
        self.claims = ConflictChecker(findings)
        self.tls_validator = tls_validator
        self._directory = os.path.dirname(os.path.abspath(file))

    def parse(self, path: str, text: str | None, parser: Callable[[str], T]) -> T | None:
        """The parsed text. None if there is none, or if it is wrong, which is reported."""
        if text is None:
            return None
        try:
            return parser(text)
        except Invalid as exc:
            self.findings.error(path, exc.shown or quote(text), exc.problem, exc.remedy)
            return None

    def each(self, node: Node, name: str, parser: Callable[[str], T]) -> list[tuple[str, T]]:
        """Path and value of every good element of a list."""
        parsed = ((path, self.parse(path, text, parser)) for path, text in node.texts(name))
        return [(path, value) for path, value in parsed if value is not None]

    def beside(self, name: str) -> str:
        """The absolute path of a file that the config names relative to itself."""
        return os.path.join(self._directory, name)

    def file(self, path: str, name: str, limit_bytes: int) -> files.FileContent | None:
        """The content of a file that the config names; None if it cannot be read, which is
        reported."""
        try:
            return files.read(self.beside(name), limit_bytes)
        except files.Unreadable as exc:
            self.findings.error(
                path,
                quote(name),
                f"cannot be read: {exc}",
                "write the path of a file, absolute or relative to this one",
            )
            return None

    def name(self, node: Node) -> str | None:
        """The interface's name."""
        name = self.parse(node.at("name"), node.get("name", str), fields.interface_name)
        if name is not None:
            self.claims.name(node.at("name"), name)
        return name

    def mark(self, node: Node) -> Mark | None:
        """Policy routing, if the definition has it."""
        inner = node.get("mark", Node)
        if inner is None:
            return None
        value, table = inner.get("value", int), inner.get("table", int)
        if value == 0:
            # The kernel gives a rule with fwmark 0 the mask 0 (net/core/fib_rules.c).
            self.findings.error(inner.at("value"), "0", "would match every packet", "choose a mark from 1 on")
        if table in _RESERVED_TABLES:
            self.findings.error(
                inner.at("table"),
                show(table),
                f"is {_RESERVED_TABLES[table]}, where a default route would take all traffic",
                "choose a table of its own, such as 100",
            )
        if value is None or table is None:
            return None
        mark = Mark(value, table)
        self.claims.mark(inner.path, mark)
        return mark
