"""Puts a verified new version in the place of the pyz that runs. Blocking; a kill at any moment leaves a program that
runs: the old one, or the new one on trial.

::

    tapotun.pyz.new          a copy of the sealed memory, with owner, mode and attributes of the old file; fsync
    tapotun.pyz.previous     the old file, by one more link; fsync of the directory
    tapotun.pyz.trial        what the launcher has to know of both; fsync
    tapotun.pyz              tapotun.pyz.new renamed; fsync of the directory

What a killed process leaves is removed by the next one. A trial whose pyz was not renamed yet is recognised by its
hash, and dropped.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ..digests import new_digest
from ..errors import HostError, reason_of
from .installed import Pyz
from .launcher import Trial, locked, sync_directory
from .outcome import Found
from .trial import abandon_trial, has_open_trial, open_trial

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_PIECE_BYTES: Final = 1 << 20
# What a trial may need on the disk: its note, one more while a start is counted, and the list of refused versions.
_SLACK_BYTES: Final = 64 << 10
_SLACK_FILES: Final = 3
# Of the content, not of the file: signatures and hashes that IMA keeps (ima_policy), and what a script cannot have.
_CONTENTS_ATTRIBUTES: Final = frozenset({"security.ima", "security.evm", "security.capability"})
# With these the old file is copied, because its file system, or the sysctl fs.protected_hardlinks, allows no second
# name.
_NO_LINK: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
_REMEDIES: Final = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within that quota",
    errno.EROFS: "mount it writable, or under systemd name its directory in ReadWritePaths=",
    errno.EACCES: "let the user of this process write to its directory, or install updates by hand",
    errno.EPERM: "let the user of this process own it, or install updates by hand",
    errno.EAGAIN: "another process installs an update there; wait for it",
}


class ReplacedError(HostError):
    """Somebody else has replaced the pyz since this process started."""


def require_replaceable(pyz: Pyz) -> None:
    """Raises HostError, with the remedy, if `install` is bound to fail as things are. Changes nothing."""
    directory = os.path.dirname(pyz.path)
    with _explained(pyz.path):
        _require_same(pyz)
        found = os.fstat(pyz.fd)
        _require_own_place(directory)
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if found.st_uid != os.geteuid():
            raise HostError(
                f"{pyz.path}: belongs to uid {found.st_uid}, and this process runs as uid {os.geteuid()}, which cannot "
                "keep that owner; let the user of this process own it, or install updates by hand"
            )


def install(source: int, new: Found, pyz: Pyz, running_version: str) -> None:
    """Install the new version, on trial. Blocking.

    Args:
        source: the descriptor of the sealed memfd with its bytes, ``new.memfd`` or a duplicate of it. Stays open.
        running_version: that of this process, whose file becomes the one to return to.

    Raises:
        HostError: nothing was changed.
        ReplacedError: the same, because somebody has replaced the pyz.
    """
    if fcntl.fcntl(source, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise AssertionError("the memory is not sealed, and could be changed after it was verified")
    if digest(source) != new.sha256:
        raise HostError(f"version {new.version}: its bytes have changed since they were verified")
    path = pyz.path
    trial = Trial(new.version, new.sha256, running_version, digest(pyz.fd))
    with _explained(path), locked(path):
        _require_own_place(os.path.dirname(path))
        _require_same(pyz)
        with _file_like(pyz, source, f"{path}.new") as made:
            if digest(made) != new.sha256:
                raise HostError(f"{path}.new: the disk does not return what was written; check it")
            _keep_previous(pyz)
            _require_slack(path)
            open_trial(path, trial)
            try:
                _require_same(pyz)
                os.rename(f"{path}.new", path)
            except BaseException:
                abandon_trial(path)
                raise
        sync_directory(path)


def adopt(new: Found, pyz: Pyz, running_version: str) -> bool:
    """If another process has installed this very version in the meantime, put it on trial for this one too. Blocking.

    Returns whether it is installed and this process may end to start it. Raises HostError.
    """
    path = pyz.path
    with _explained(path), locked(path):
        try:
            _require_same(pyz)
        except ReplacedError:
            if digest_at(path) != new.sha256:
                raise
        else:
            return False
        running = digest(pyz.fd)
        if not has_open_trial(path) and digest_at(f"{path}.previous") == running:
            open_trial(path, Trial(new.version, new.sha256, running_version, running))
        return True


def store(source: int, found: Found, path: str) -> None:
    """Keep the new version in a file of this process, in place of the one that was kept before. Blocking.

    ``source``: as in `install`. Raises HostError.
    """
    with _explained(path, "written"), locked(path):
        part = f"{path}.new"
        with suppress(FileNotFoundError):
            os.unlink(part)  # of a process that was killed
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o755)
        try:
            _copy(source, fd)
            os.fsync(fd)
            if digest(fd) != found.sha256:
                raise HostError(f"{part}: the disk does not return what was written; check it")
            os.rename(part, path)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(part)
        sync_directory(path)


def _require_own_place(directory: str) -> None:
    """Raises HostError if everybody could put a file of theirs in the place of one that is about to be renamed."""
    mode = os.stat(directory).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise HostError(f"{directory}: everybody may write to it, and so replace the program; run chmod o-w on it")


def _require_slack(path: str) -> None:
    """Raises HostError if the disk is full but for a little, once the new file is there: its starts could not be
    counted then. It would be taken back, which makes room, and so be installed again at the next check, for ever."""
    found = os.statvfs(os.path.dirname(path))  # a file system that has no limit says 0 of 0
    free = found.f_bfree if os.geteuid() == 0 else found.f_bavail  # the difference is kept for root
    lacks_room = found.f_blocks and free * found.f_frsize < _SLACK_BYTES
    lacks_files = found.f_files and found.f_favail < _SLACK_FILES
    if lacks_room or lacks_files:
        left = f"{_SLACK_BYTES >> 10} KiB" if lacks_room else f"{_SLACK_FILES} files (inodes)"
        text = f"{path}: cannot be replaced: the new version leaves less than {left} on that disk"
        raise HostError(f"{text}, and its starts could not be counted; make room there")


def _keep_previous(pyz: Pyz) -> None:
    """Make PYZ.previous the file that runs. Raises OSError, ReplacedError."""
    previous, part = f"{pyz.path}.previous", f"{pyz.path}.previous.new"
    old = os.fstat(pyz.fd)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(previous), old):  # rename(2) would do nothing
            return
    with suppress(FileNotFoundError):
        os.unlink(part)
    try:
        os.link(pyz.path, part, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        with _file_like(pyz, pyz.fd, part):
            os.rename(part, previous)
    else:
        try:
            if not os.path.samestat(os.lstat(part), old):
                raise _replaced(pyz)
            os.rename(part, previous)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(part)
            raise
    sync_directory(pyz.path)


@contextmanager
def _file_like(pyz: Pyz, source: int, path: str) -> Iterator[int]:
    """A new file with the bytes of ``source`` and owner, mode and extended attributes of the pyz, on the disk. Yields
    its descriptor. The block renames it, or it is removed. Raises OSError, HostError."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a process that was killed
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _copy(source, fd)
        _copy_attributes(pyz, fd)
        os.fsync(fd)
        yield fd
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            os.unlink(path)


def _copy(source: int, target: int) -> None:
    at = 0
    while piece := os.pread(source, _PIECE_BYTES, at):
        at += len(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(target, rest) :]


def _copy_attributes(pyz: Pyz, target: int) -> None:
    """Owner, mode and extended attributes: among these are the SELinux label and the ACL."""
    old, made = os.fstat(pyz.fd), os.fstat(target)
    if (old.st_uid, old.st_gid) != (made.st_uid, made.st_gid):
        _or_not_kept(pyz, "owner", lambda: os.fchown(target, old.st_uid, old.st_gid))
    os.fchmod(target, stat.S_IMODE(old.st_mode))
    has = _attributes(target)
    for name, value in _attributes(pyz.fd).items():
        if has.get(name) != value:
            _or_not_kept(pyz, f"attribute {name}", lambda name=name, value=value: os.setxattr(target, name, value))  # type: ignore[misc]


def _attributes(fd: int) -> dict[str, bytes]:
    try:
        names = set(os.listxattr(fd)) - _CONTENTS_ATTRIBUTES
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return {}
    return {name: os.getxattr(fd, name) for name in names}


def _or_not_kept(pyz: Pyz, what: str, change: Callable[[], None]) -> None:
    try:
        change()
    except PermissionError as exc:
        text = f"{pyz.path}: a new file could not keep its {what}: {exc.strerror}"
        raise HostError(f"{text}; install updates by hand, or give it one that this process may give") from exc


def _require_same(pyz: Pyz) -> None:
    """Raises ReplacedError unless the file at the path is the one that runs, FileNotFoundError if there is none."""
    if not os.path.samestat(os.lstat(pyz.path), os.fstat(pyz.fd)):
        raise _replaced(pyz)


def _replaced(pyz: Pyz) -> ReplacedError:
    return ReplacedError(f"{pyz.path}: somebody has replaced it since this process started; restart to run it")


def digest(fd: int) -> str:
    """SHA-256 of an open file, in hexadecimal, wherever its offset is. Raises OSError."""
    found, at = new_digest("sha256"), 0
    while piece := os.pread(fd, _PIECE_BYTES, at):
        found.update(piece)
        at += len(piece)
    result: str = found.hexdigest()
    return result


def digest_at(path: str) -> str | None:
    """The same of the file at that path; None: there is none. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return digest(fd)
    finally:
        os.close(fd)


@contextmanager
def _explained(path: str, what: str = "replaced") -> Iterator[None]:
    """Turn an OSError of the block into a HostError with its remedy."""
    try:
        yield
    except OSError as exc:
        remedy = _REMEDIES.get(exc.errno or 0, "install the update by hand")
        raise HostError(f"{path}: cannot be {what}: {reason_of(exc, path)}; {remedy}") from exc
