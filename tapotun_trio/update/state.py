"""What is kept of one check for the next: the repository's newest metadata, so that old metadata is recognised.

One file, `FILE`, in the state directory. To this process its content is opaque. `LOCK` is locked by the process that
uses it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from ..errors import reason_of
from ..files import UnreadableFile, read_file
from .bundle import BUNDLE_BYTES
from .launcher import FULL, open_lock, sync_directory
from .outcome import UpdateError

FILE: Final = "update-metadata.json"
LOCK: Final = "update.lock"
_NEW: Final = f".{FILE}.new"
SYSTEM: Final = "/var/lib/tapotun"


def state_directory(environ: Mapping[str, str], user: str | None = None) -> Path:
    """Where this program keeps things: systemd's directory, root's or the user's (XDG Base Directory Specification).

    A user without a home of their own, as a service's user is, gets root's: whoever installs the service can let it
    write there. If somebody has made one for that user below such a home, as 0.2.0 needed it, that is kept: it has what
    is remembered.

    ``user``: the user that root's process has become. The directory below root's is made for that user by root before.
    """
    if given := environ.get("STATE_DIRECTORY", ""):  # systemd.exec(5): several are separated by colons
        return Path(given.partition(":")[0])
    if user is not None:
        return Path(SYSTEM, user)
    if os.geteuid() == 0:
        return Path(SYSTEM)
    base = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "tapotun")
    home = Path(os.path.expanduser("~"))  # "~" itself if this user is not in the user database
    own = home / ".local/state/tapotun"
    return own if home.is_absolute() and (_is_own(home) or _is_own(own)) else Path(SYSTEM)


def _is_own(directory: Path) -> bool:
    try:
        return directory.stat().st_uid == os.geteuid()
    except OSError:
        return False


class StateDirectory:
    """The state directory, while it is locked. ``lock``: the descriptor with the lock, which stays the caller's."""

    def __init__(self, path: Path, lock: int) -> None:
        self._path = path
        self._lock = lock

    def read(self) -> bytes:
        """What the last check has kept; empty: there was none. Raises UpdateError: it cannot be read."""
        file = self._path / FILE
        if not os.path.lexists(file):
            return b""
        try:
            return read_file(file, BUNDLE_BYTES, regular=True).data
        except UnreadableFile as exc:
            remedy = exc.remedy or "remove it; old metadata of the repository is not recognised once then"
            raise UpdateError(f"{file} cannot be read: {exc}; {remedy}") from exc

    def write(self, data: bytes) -> None:
        """Replace it, durably: afterwards there is the old content or the new, whatever happens. Blocks for the disk.
        Raises UpdateError."""
        new = self._path / _NEW
        try:
            with open(_create(new), "wb") as file:
                # Nothing in it is secret, and the next check may run as another user.
                os.fchmod(file.fileno(), 0o644)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, self._path / FILE)
            sync_directory(str(self._path / FILE))
        except OSError as exc:
            with suppress(OSError):  # a full disk; the next check removes it
                os.unlink(new)
            raise _unusable(self._path, exc) from exc

    async def store(self, data: bytes) -> None:
        """As `write`, in a thread. If this is cancelled, it does not wait for the disk: the thread goes on, and holds
        the lock until it has written. Raises UpdateError."""
        held = [os.dup(self._lock)]

        def write() -> None:
            try:
                lock = held.pop()
            except IndexError:  # cancelled before this began
                return
            try:
                self.write(data)
            finally:
                os.close(lock)

        try:
            await trio.to_thread.run_sync(write, abandon_on_cancel=True)
        finally:
            with suppress(IndexError):
                os.close(held.pop())


@contextmanager
def locked(path: Path) -> Iterator[StateDirectory]:
    """The state directory, made if it is missing. Nobody else uses it in this block.

    Raises UpdateError: it cannot be used, cannot be written to, or another check is running.
    """
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = open_lock(str(path / LOCK))
    except OSError as exc:
        raise _unusable(path, exc) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UpdateError(f"another process looks for updates now ({path / LOCK} is locked); wait for it") from exc
        except OSError as exc:
            raise _unusable(path, exc) from exc
        try:  # now, and not after everything was fetched
            os.close(_create(path / _NEW))
            os.unlink(path / _NEW)
        except OSError as exc:
            raise _unusable(path, exc) from exc
        yield StateDirectory(path, fd)
    finally:
        os.close(fd)


def _create(file: Path) -> int:
    """A new file in place of one that a killed process has left. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(file)
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _unusable(path: Path, exc: OSError) -> UpdateError:
    if exc.errno in FULL:
        remedy = "make room there"
    else:
        remedy = "let this user write to it (StateDirectory=tapotun in a systemd unit), or set STATE_DIRECTORY"
    return UpdateError(f"the state directory {path} cannot be used: {reason_of(exc, path)}; {remedy}")
