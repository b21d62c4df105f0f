"""One check for updates: what is fetched, by whom it is verified, and what is kept of it.

::

    this process                    fetch worker                 verify worker
    root, metadata kept ──────────▶ GET metadata, file
    seals both         ◀────────── metadata, file (memfds)
    root, metadata kept, what was fetched ─────────────────────▶ no network, no descriptor to spare
    stores metadata, compares hash ◀──────────────────────────── version, SHA-256, length; metadata to keep

Of all that came from the network this process parses one line of JSON for each worker, by `answers`. It passes on the
rest unread, and hashes the file. Both workers are `worker`, which says what each could do if it were taken over.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ..config.model import UpdateConfig
from ..config.validate_update import ROOT_FILE_BYTES, shipped_root
from ..cooperative import Steps, run_cooperatively
from ..digests import new_digest
from ..errors import passing_shortages
from ..files import UnreadableFile, read_file
from ..http.client import effective_proxy
from .answers import TARGET_BYTES, Failed, Verified
from .bundle import BUNDLE_BYTES, EMPTY
from .outcome import Found, Outcome, UpdateError, UpToDate
from .process import run_worker
from .state import StateDirectory, locked
from .task import Source, Task
from .version import is_newer

METADATA_S: Final = 120.0
TARGET_S: Final = 1800.0  # 64 MiB at 300 kbit/s
STALL_S: Final = 30.0
VERIFY_S: Final = 120.0  # three signatures in pure Python, and the hash of 64 MiB, on a slow machine that is busy
_SPARE_S: Final = 30.0  # to start Python
_PIECE_BYTES: Final = 128 * 1024  # half a millisecond of hashing
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_DISCARDED: Final = (
    "the repository's metadata that was kept from earlier checks is of other keys, or damaged, and was not used: old "
    "metadata could not be recognised this time"
)


async def check(config: UpdateConfig, installed: str, state: Path, *, download: bool) -> Outcome:
    """Look for a version that is newer than ``installed``; with ``download``, also fetch it.

    ``state``: the directory for what is kept between two checks. It is locked meanwhile.

    Cancel-safe: afterwards no process runs, and no descriptor is open. It may wait for the disk. Raises UpdateError: no
    check was made, or what it brought cannot be trusted; HostError; ShortageError.
    """
    root = _root(config)
    proxy = effective_proxy(config.url, config.proxy)
    with locked(state) as directory, ExitStack() as files:

        def memfd(data: bytes = b"") -> int:
            return files.enter_context(_memfd(data))

        with passing_shortages("cannot look for updates"):
            kept = memfd(directory.read())
            task = Task(
                kind="fetch",
                channel=config.channel,
                installed=installed,
                root=memfd(root),
                kept=kept,
                bundle=memfd(),
                result=None,
                target=memfd() if download else None,
                source=Source.of(config, proxy),
                metadata_s=METADATA_S,
                target_s=TARGET_S if download else 0.0,
                stall_s=STALL_S,
            )
            result = memfd()
        fetched = await run_worker(task, METADATA_S + task.target_s + _SPARE_S)
        _seal(task.bundle, BUNDLE_BYTES)
        if isinstance(fetched, Failed) and os.fstat(task.bundle).st_size <= len(EMPTY):
            raise UpdateError(fetched.text)  # nothing to verify
        if task.target is not None:
            _seal(task.target, TARGET_BYTES)
        has_target = task.target is not None and os.fstat(task.target).st_size > 0
        verify = Task(
            kind="verify",
            channel=config.channel,
            installed=installed,
            root=task.root,
            kept=kept,
            bundle=task.bundle,
            result=result,
            target=task.target if has_target else None,
            source=None,
            metadata_s=VERIFY_S,
            target_s=0.0,
            stall_s=STALL_S,
        )
        verified = await run_worker(verify, VERIFY_S + _SPARE_S)
        # After a failure, too: what was genuine until then must not be replaced by older.
        await _store(directory, result)
        for answer in (fetched, verified):
            if isinstance(answer, Failed):
                raise UpdateError(answer.text)
        if not isinstance(verified, Verified):
            raise UpdateError("the process that verifies updates gave an answer to another question")
        warnings = (_DISCARDED,) if verified.discarded else ()
        if not is_newer(verified.version, installed):
            return UpToDate(verified.version, warnings)
        _require_python(verified)
        if task.target is None:
            return Found(verified.version, verified.sha256, verified.length, None, warnings)
        if not verified.whole or await _digest(task.target, verified.length) != verified.sha256:
            raise UpdateError(f"the file of version {verified.version} is not the one that the repository's keys name")
        os.lseek(task.target, 0, os.SEEK_SET)  # for who reads it: the worker that wrote it shared the offset
        return Found(verified.version, verified.sha256, verified.length, os.dup(task.target), warnings)


def _root(config: UpdateConfig) -> bytes:
    """The trusted root metadata. Raises UpdateError."""
    if config.root_file is None:
        if (data := shipped_root()) is None:
            text = "update.root_file is not given, and this build of the program has no root metadata of its own"
            raise UpdateError(f"{text}; give the root.json of the repository")
        return data
    try:
        return read_file(config.root_file, ROOT_FILE_BYTES, regular=True).data
    except UnreadableFile as exc:
        remedy = exc.remedy or "give the root.json of the repository"
        raise UpdateError(f"update.root_file {config.root_file} cannot be read: {exc}; {remedy}") from exc


def _require_python(verified: Verified) -> None:
    """Raises UpdateError if this machine's Python is too old for that version."""
    if not verified.python:
        return
    wanted = tuple(int(number) for number in verified.python.split("."))
    if wanted > sys.version_info[:2]:
        here = ".".join(map(str, sys.version_info[:2]))
        text = f"version {verified.version} is there, and needs Python {verified.python} or newer; this is {here}"
        raise UpdateError(f"{text}: install a newer Python")


@contextmanager
def _memfd(data: bytes) -> Iterator[int]:
    """A file in memory that can be sealed, closed at the end. Raises OSError."""
    fd = os.memfd_create("tapotun-update", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        yield fd
    finally:
        os.close(fd)


def _seal(fd: int, limit_bytes: int) -> None:
    """Make the file unchangeable, for everyone who has a descriptor of it, too. Raises UpdateError."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as exc:  # EBUSY: it is mapped somewhere, by a process that should be gone
        raise UpdateError(f"what was fetched cannot be sealed: {exc.strerror}") from exc
    if os.fstat(fd).st_size > limit_bytes:
        raise UpdateError(f"what was fetched is longer than {limit_bytes} bytes")


async def _store(directory: StateDirectory, result: int) -> None:
    """Keep the verified metadata for the next check; none is kept if not even the root could be read."""
    _seal(result, BUNDLE_BYTES)
    if size := os.fstat(result).st_size:
        await directory.store(os.pread(result, size, 0))


async def _digest(fd: int, length: int) -> str:
    """The SHA-256 of the file in hex; empty if it has another length."""

    def steps() -> Steps[str]:
        digest = new_digest("sha256")
        for offset in range(0, length, _PIECE_BYTES):
            digest.update(os.pread(fd, _PIECE_BYTES, offset))
            yield
        found: str = digest.hexdigest()
        return found

    return await run_cooperatively(steps()) if os.fstat(fd).st_size == length else ""
