"""The state that the validators of one config file share: findings, conflicts, and the files that the config names.

Blocking: reads files. A process does that when it starts and when it reloads its config.
"""

from __future__ import annotations

import os
import select
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from ..errors import shortage_of
from .conflicts import ConflictChecker
from .diagnostics import Findings, InvalidValue, quote
from .model import TlsValidator
from .typecheck import Node

T = TypeVar("T")

PIPE_WAIT_MS: Final = 5000  # for each piece that is written to a pipe
_PIECE_BYTES: Final = 64 * 1024  # as much as a pipe holds


@dataclass(frozen=True, slots=True)
class FileContent:
    """``public_mode`` is the permission bits if every user of the machine may read the file, else None."""

    data: bytes
    public_mode: int | None


class UnreadableFile(Exception):
    """A file cannot be read.

    The text gives the reason in a few words, without a full stop. ``remedy`` is set only if the reason has nothing to
    do with the file, such as a lack of memory.
    """

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


def read_file(path: str | os.PathLike[str], limit_bytes: int, *, regular: bool = False) -> FileContent:
    """The whole content of a file or a pipe. Takes no more memory than the content.

    It waits for the disk, and for a pipe without a writer PIPE_WAIT_MS; for nothing else, since nobody can end a thread
    that waits in a system call.

    ``regular``: another reader will open the file again, so a pipe will not do.

    Raises UnreadableFile, also if the content is longer than the limit: ``/dev/zero`` has no end.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if regular and not stat.S_ISREG(status.st_mode) and not stat.S_ISCHR(status.st_mode):
                raise UnreadableFile("Is a directory" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
            data = _read(fd, status, limit_bytes)
        finally:
            os.close(fd)
    except BlockingIOError as exc:  # such as a terminal, or /proc/kmsg
        raise UnreadableFile("it has nothing to read now, and would have to be waited for") from exc
    except (OSError, MemoryError) as exc:
        if (shortage := shortage_of(exc, "")) is not None:
            raise UnreadableFile(shortage.lack, shortage.remedy) from exc
        raise UnreadableFile(getattr(exc, "strerror", None) or type(exc).__name__) from exc
    except ValueError as exc:  # os.open() raises it for a NUL or a lone surrogate in the path
        raise UnreadableFile("not a valid path") from exc
    mode = stat.S_IMODE(status.st_mode)
    public = stat.S_ISREG(status.st_mode) and mode & stat.S_IROTH
    return FileContent(data, mode if public else None)


def _read(fd: int, status: os.stat_result, limit_bytes: int) -> bytes:
    """Read to the end of the file. Raises OSError, MemoryError, UnreadableFile."""
    too_long = UnreadableFile(f"longer than {limit_bytes} bytes")
    if stat.S_ISREG(status.st_mode) and status.st_size > limit_bytes:
        raise too_long
    waits = select.poll() if stat.S_ISFIFO(status.st_mode) else None
    if waits is not None:
        waits.register(fd, select.POLLIN)
    # A regular file comes in one piece. Those of /proc say that they have no size.
    piece_bytes = max(_PIECE_BYTES, min(status.st_size, limit_bytes) + 1)
    pieces: list[bytes] = []
    total = 0
    while True:
        if waits is not None and not waits.poll(PIPE_WAIT_MS):
            raise UnreadableFile(f"nobody wrote to this pipe within {PIPE_WAIT_MS / 1000:g} s")
        piece = os.read(fd, piece_bytes)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        total += len(piece)
        if total > limit_bytes:
            raise too_long
        piece_bytes = _PIECE_BYTES


class LoadContext:
    """The state of loading one file: its findings so far, and what its entries have claimed.

    A definition with errors still claims its names, addresses and ports, so that a conflict with it is reported in the
    same run.
    """

    def __init__(self, file: str, findings: Findings, tls_validator: TlsValidator | None = None) -> None:
        self.findings = findings
        self.conflicts = ConflictChecker(findings)
        self.tls_validator = tls_validator
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
                f"run chmod 600 {shlex.quote(name)}",
            )
