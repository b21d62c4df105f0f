"""The state that the validators of one config file share: findings, conflicts, and the files that the config names.

Blocking: reads files. A process does that when it starts and when it reloads its config.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import TypeVar

from ..files import FileContent, UnreadableFile, read_file
from .conflicts import ConflictChecker
from .diagnostics import Findings, InvalidValue, quote
from .model import TlsValidator
from .typecheck import Node

T = TypeVar("T")


class LoadContext:
    """The state of loading one file: its findings so far, and what its entries have claimed.

    A definition with errors still claims its names, addresses and ports, so that a conflict with it is reported in the
    same run.
    """

    def __init__(self, file: str, findings: Findings, tls_validator: TlsValidator | None = None) -> None:
        self.findings = findings
        self.conflicts = ConflictChecker(findings)
        self.tls_validator = tls_validator
        self.files: list[str] = []  # the absolute paths of the files that were read
        self._directory = os.path.dirname(os.path.abspath(file))

    def parse(self, path: str, text: str | None, parser: Callable[[str], T]) -> T | None:
        """The parsed text; None if there is no text, or if it is invalid, which is reported."""
        if text is None:
            return None
        try:
            return parser(text)
        except InvalidValue as exc:
            self.findings.error(path, exc.shown or quote(text), exc.problem, exc.remedy)
            return None

    def parse_field(self, node: Node, name: str, parser: Callable[[str], T]) -> T | None:
        """The parsed text of a field; None if the field has no text, or if it is invalid, which is reported."""
        return self.parse(node.at(name), node.get(name, str), parser)

    def parse_list(self, node: Node, name: str, parser: Callable[[str], T]) -> list[tuple[str, T]]:
        """Path and value of every valid element of a list. The others are reported."""
        parsed = ((path, self.parse(path, text, parser)) for path, text in node.texts(name))
        return [(path, value) for path, value in parsed if value is not None]

    def absolute_path(self, name: str) -> str:
        """The absolute path of a file that the config names, relative to the config's own directory."""
        return os.path.join(self._directory, name)

    def read_file(self, path: str, name: str, limit_bytes: int, *, regular: bool = False) -> FileContent | None:
        """The content of a file that the config names; None if it cannot be read, which is reported."""
        self.files.append(self.absolute_path(name))
        try:
            return read_file(self.absolute_path(name), limit_bytes, regular=regular)
        except UnreadableFile as exc:
            self.findings.error(
                path,
                quote(name),
                f"cannot be read: {exc}",
                exc.remedy or "write the path of a file, absolute or relative to this one",
            )
            return None

    def warn_if_public(self, path: str, name: str, content: FileContent) -> None:
        """Report a file with a secret that every user of the machine may read."""
        if content.public_mode is not None:
            self.findings.warning(
                path,
                quote(name),
                f"can be read by every user of this machine (mode {content.public_mode:04o})",
                f"run chmod o-rwx {shlex.quote(name)}",
            )
