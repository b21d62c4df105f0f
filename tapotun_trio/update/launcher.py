#!/usr/bin/env python3
"""Starts the tapotun.pyz beside it, and takes an update back that does not start.

``tapotun launcher`` prints this file. It is installed once, beside the pyz and under its name without ``.pyz``:
/opt/tapotun/tapotun beside /opt/tapotun/tapotun.pyz. An update replaces the pyz and never this file. So this file needs
nothing but Python's standard library, imports nothing of the program, and has to understand what later versions leave
beside the pyz:

NAME.pyz.trial      an update is on trial: JSON with its version, both SHA-256, and how often each service has
                    started it
NAME.pyz.previous   the program before that update
NAME.pyz.refused    versions that did not start, one a line, the newest last; they are not installed again
NAME.pyz.lock       empty; a process that changes one of these files, or the pyz, holds a lock on it

A start counts before the program runs. The program ends the trial when it has *started*: its interfaces run, whether or
not the other end answers. After STARTS starts that did not get as far, the program before is put back. Several services
may run one pyz, and start in the same moment. So each has a count of its own; its arguments tell which one it is.

The program runs in this process, on trial and later alike, so that a service manager sees one process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STARTS = 3
# After these exit codes a service manager starts nothing again (docs/deploy.md#under-a-service-manager): it cannot know
# that the program before may come back. So it gets the other one while an update is on trial.
FINAL_CODES = (1, 2)
RESTART = 3
# Who gets one of these gets it at each start: without a count and a program to put back, to be started again after a
# FINAL_CODE would go on for ever.
NEVER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.EISDIR)
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk or a quota, where somebody may make room
RUNS = ("run", "server", "client")
# A file of this name in the working directory is not meant: for the program, too, a verb comes first.
OTHERS = (
    *("validate-config", "token", "status", "wait", "disconnect", "reload", "probe", "doctor"),
    *("schema", "launcher", "completion", "update"),
)
NO_RUN = ("-h", "--help", "--version")
VALUED = (
    "--log-level",
    "--log-format",
    "--name",
    "--user",
    "--notify-fd",
    "--ready-timeout",
)  # the next word is theirs
MAX_BYTES = 64 * 1024  # of a file beside the pyz
MAX_REFUSED = 20  # versions
VERSION_CHARS = 64  # that of version.py: what is refused must be the whole version, or it is installed again
MAX_SERVICES = 100  # that have a count of their own; all others share one
NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # a file system without hard links, as vfat
LOCK_TRIES = 10  # several processes may make the lock in the same moment
LOCK_S = 10.0  # an installation holds the lock for as long as it takes to write a program, a start for less


class Trial:
    """What NAME.pyz.trial says. ``previous_version``: the program before, which NAME.pyz.previous has. ``starts``: of
    each service, by `service`."""

    def __init__(
        self,
        version: str,
        sha256: str,
        previous_version: str,
        previous_sha256: str,
        starts: dict[str, int] | None = None,
    ) -> None:
        self.version, self.sha256 = version, sha256
        self.previous_version, self.previous_sha256 = previous_version, previous_sha256
        self.starts: dict[str, int] = starts or {}

    @classmethod
    def decode(cls, text: str) -> Trial:
        """Raises KeyError, TypeError or ValueError if the text is something else. Unknown fields are ignored."""
        found: Any = json.loads(text)
        version, sha256 = str(found["version"]), str(found["sha256"])
        starts = {str(name): int(str(count)) for name, count in dict(found["starts"]).items()}
        return cls(version, sha256, str(found["previous_version"]), str(found["previous_sha256"]), starts)

    def encode(self) -> str:
        """The text of the file."""
        return json.dumps(vars(self)) + "\n"


def main() -> None:
    """Run the program. It ends with SystemExit, or as Python ends."""
    # As the pyz does, which is not loaded yet: a signal waits until the program can obey it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    from runpy import run_path

    launcher = os.path.realpath(sys.argv[0])
    pyz = launcher + ".pyz"
    trial = begin(pyz, sys.argv[1:]) if is_start(sys.argv[1:]) else None
    os.environ["TAPOTUN_LAUNCHER"] = launcher
    sys.argv[0] = pyz
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        del sys.path[0]  # this file's directory; the program does not import from there
    try:
        run_path(pyz, run_name="__main__")
    except SystemExit as exc:
        code = 1 if isinstance(exc.code, str) else exc.code
        if trial is None or code not in FINAL_CODES or not is_open(pyz, trial):
            raise
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
    except Exception:
        if trial is None or not is_open(pyz, trial):
            raise
        from traceback import print_exc

        print_exc()
    else:
        return
    assert trial is not None
    say(f"version {printable(trial.version)} did not start, and is to be started again")
    sys.exit(RESTART)


def is_start(argv: list[str]) -> bool:
    """Whether these arguments run interfaces, rather than ask or print something."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    if not argv or not set(options).isdisjoint(NO_RUN):
        return False
    first = argv[0]
    if first.startswith("-"):  # options of `run`, which may come before any verb
        words = (word for at, word in enumerate(argv) if not word.startswith("-") and argv[at - 1] not in VALUED)
        return next(words, "") not in OTHERS
    return first in RUNS or "/" in first or "." in first or (first not in OTHERS and os.path.isfile(first))


def begin(pyz: str, argv: list[str]) -> Trial | None:
    """Count this start if an update is on trial, or put the program before back if the update has had its starts.
    ``argv``: the service's arguments.

    Returns the trial that this start belongs to.
    """
    trial = None
    try:
        if not read(pyz + ".trial"):  # then nothing is locked either, which any user who may read the directory can
            return None
        with locked(pyz):
            trial = read_trial(pyz)
            if trial is None:
                return None
            if (found := digest(pyz)) != trial.sha256:
                # It was interrupted when it was installed or taken back, or somebody has replaced the pyz since.
                if found == trial.previous_sha256 and max(trial.starts.values(), default=0) >= STARTS:
                    say_back(pyz, trial, not_started(trial), refuse(pyz, printable(trial.version)))
                remove(pyz + ".trial")
                return None
            name = service(argv)
            if name not in trial.starts and len(trial.starts) >= MAX_SERVICES:
                name = "others"
            before = trial.starts.get(name, 0)
            if before >= STARTS:
                take_back(pyz, trial, not_started(trial), refuses=True)
                return None  # if nothing could be put back, another start helps no more than without a trial
            trial.starts[name] = before + 1
            try:
                write(pyz + ".trial", trial.encode())
            except OSError as exc:
                # Uncounted, a version that never starts would be started for ever.
                why = f"version {printable(trial.version)} is on trial, and its starts cannot be counted: {exc}"
                if exc.errno in FULL and take_back(pyz, trial, why, refuses=False):
                    return None
                raise
            say(f"version {printable(trial.version)} on trial, start {before + 1} of {STARTS}")
    except OSError as exc:
        say(f"this start cannot be counted, and the version on trial cannot be taken back: {exc}")
        if exc.errno in NEVER:
            return None
        if trial is None:  # not even the lock could be made, or it is held
            with suppress(OSError):
                trial = read_trial(pyz)
                return trial if trial is not None and digest(pyz) == trial.sha256 else None
    return trial


def service(argv: list[str]) -> str:
    """A short name for a service with these arguments."""
    from hashlib import sha256

    return sha256("\0".join(argv).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def is_open(pyz: str, trial: Trial) -> bool:
    """Whether this trial still goes on."""
    try:
        found = read_trial(pyz)
    except OSError:
        return False
    return found is not None and found.sha256 == trial.sha256


def take_back(pyz: str, trial: Trial, why: str, *, refuses: bool) -> bool:
    """Put the program before back, which takes no room on a disk, and say so.

    ``refuses``: the version on trial is noted, so that it is not installed again. Returns False, and says so, if the
    program before is not there any more. Raises OSError; may be called again then.
    """
    version, before = printable(trial.version), printable(trial.previous_version)
    found = None
    with suppress(FileNotFoundError):
        status = os.lstat(pyz + ".previous")
        if stat.S_ISREG(status.st_mode):
            require_ours(status, pyz + ".previous")
            found = digest(pyz + ".previous")
    if found != trial.previous_sha256:
        say(f"{why}, and {pyz}.previous is not version {before} any more; install a version by hand")
        return False
    failure = refuse(pyz, version) if refuses else None
    os.rename(pyz + ".previous", pyz)
    sync_directory(pyz)  # before the note is gone: without it, the other version would run uncounted
    if failure is not None:
        failure = refuse(pyz, version)  # what was replaced has made room
    remove(pyz + ".trial")  # last: whoever is killed before this, the next start refuses the version
    if refuses:
        say_back(pyz, trial, why, failure)
    else:
        say(f"{why}: VERSION {before} IS BACK; {version} may be installed again once there is room")
    return True


def say_back(pyz: str, trial: Trial, why: str, failure: OSError | None) -> None:
    """Say that the program before is back. ``failure``: why the version on trial could not be refused."""
    version, before = printable(trial.version), printable(trial.previous_version)
    if failure is None:
        then = f"{version} will not be installed again, unless {pyz}.refused is removed"
    else:
        reason = f"[Errno {failure.errno}] {failure.strerror}"
        then = f"{pyz}.refused cannot be kept ({reason}), so {version} may be installed again"
    say(f"{why}: VERSION {before} IS BACK; {then}")


def not_started(trial: Trial) -> str:
    """Why a version is taken back."""
    return f"version {printable(trial.version)} has not started {STARTS} times"


def refuse(pyz: str, version: str) -> OSError | None:
    """Note a version that is not to be installed again. Returns why that is impossible: no trouble with the list,
    whoever made it, may keep the program before from being put back. None: it is noted."""
    try:
        refused = read(pyz + ".refused").splitlines()
        if version not in refused:
            write(pyz + ".refused", "".join(f"{line}\n" for line in [*refused, version][-MAX_REFUSED:]))
    except OSError as exc:
        return exc
    return None


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Nobody else installs, counts or takes back beside ``path`` in this block: two services may have the same pyz, and
    all their files have the same names. Blocks for at most LOCK_S; raises OSError then."""
    fd = open_lock(path + ".lock")
    try:
        end = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def open_lock(path: str) -> int:
    """Open a file for flock(2), made if it is missing. Returns the descriptor. Raises OSError, with the file's name.

    Who may write to the directory can open it, and nobody else. A file or a directory that others may read they can
    also lock, and so keep updates from being installed and taken back.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for _ in range(LOCK_TRIES):
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            make_lock(path)
            continue
        except PermissionError as exc:
            raise foreign_lock(path, exc) from exc
        try:
            status = os.fstat(fd)
            if os.stat(directory_of(path)).st_mode & stat.S_ISVTX:  # elsewhere, who made it could replace the program
                require_ours(status, path)
            if status.st_nlink > 1:
                remove_part(path)  # of a process that was killed in `make_lock`
        except BaseException:
            os.close(fd)
            raise
        return fd
    raise FileNotFoundError(errno.ENOENT, "was removed each time that it was made", path)


def make_lock(path: str) -> None:
    """Make that file, unless another process makes it just now. Raises OSError.

    It belongs to the directory's owner, because root may be the first to need it. It gets its name when it has its
    owner and mode: nobody finds one that they cannot open, whenever this process is killed.
    """
    directory = os.stat(directory_of(path))
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path + ".new", flags, 0o600)
    except FileExistsError:
        time.sleep(0.05)  # for one who is making it, rather than one who was killed
        if not os.path.lexists(path):
            remove_part(path)
        return
    try:
        share(fd, directory)
        # This very file: somebody else may have replaced the one of that name. Without a src_dir_fd, which counts for
        # nothing here, Python calls link(2), which does not follow.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:  # by another process, just now
        pass
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            if not os.fstat(fd).st_nlink:  # removed by another process, which makes the lock itself
                return
        elif exc.errno not in NO_LINK:
            raise
        # No hard links, or no /proc. Then it gets its owner a moment after its name.
        with suppress(FileExistsError):
            whole = os.open(path, flags, 0o600)
            try:
                share(whole, directory)
            finally:
                os.close(whole)
    finally:
        os.close(fd)
        remove_part(path)


def share(fd: int, directory: os.stat_result) -> None:
    """Let those open a new file who may write to its directory. Raises OSError."""
    # The group by itself: a member may give it, and who may not give files away works in no directory of another's.
    with suppress(PermissionError):
        os.fchown(fd, -1, directory.st_gid)
    if directory.st_mode & stat.S_IWGRP and os.fstat(fd).st_gid == directory.st_gid:
        os.fchmod(fd, 0o660)
    with suppress(PermissionError):
        os.fchown(fd, directory.st_uid, -1)


def remove_part(path: str) -> None:
    """Remove what `make_lock` makes the lock of. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path + ".new")


def foreign_lock(path: str, refused: PermissionError) -> OSError:
    """The same error, with a remedy if the file is not the directory's. It stays: another process may hold it."""
    try:
        status, directory = os.lstat(path), os.stat(directory_of(path))
    except OSError:
        return refused
    if (status.st_uid, status.st_gid) == (directory.st_uid, directory.st_gid):
        return refused
    text = f"{refused.strerror} (it belongs to uid {status.st_uid}): give it the owner and group of its directory"
    return PermissionError(refused.errno, text, path)


def directory_of(path: str) -> str:
    """The directory that a file is in."""
    return os.path.dirname(path) or "."


def read_trial(pyz: str) -> Trial | None:
    """The trial that goes on; None: there is none. Raises OSError."""
    text = read(pyz + ".trial")
    if not text:
        return None
    try:
        return Trial.decode(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        say(f"{pyz}.trial: not understood and ignored; remove it")
        return None


def read(path: str) -> str:
    """The text of a small file; empty: there is none. Raises OSError, also if somebody else may have made it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        require_ours(os.fstat(fd), path)
        return os.read(fd, MAX_BYTES).decode("utf-8", "replace")
    finally:
        os.close(fd)


def require_ours(status: os.stat_result, path: str) -> None:
    """Raises PermissionError if the file is of somebody who could not replace the program: in a directory such as /tmp,
    where everybody makes files, a note of theirs would have root put a program of theirs in the place of the pyz."""
    if status.st_uid not in (0, os.geteuid(), os.stat(directory_of(path)).st_uid):
        raise PermissionError(errno.EPERM, f"belongs to uid {status.st_uid}, and is not used: remove it", path)


def write(path: str, text: str) -> None:
    """Replace a file. Whoever reads it finds the old text or this one, even after a power failure. Raises OSError."""
    part = path + ".new"
    with suppress(FileNotFoundError):
        os.unlink(part)  # of a process that was killed
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        data = text.encode()
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
        os.rename(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)  # such as the beginning of it, on a full disk
        raise
    finally:
        os.close(fd)
    sync_directory(path)


def remove(path: str) -> None:
    """Remove a file durably, if it is there. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(path)


def sync_directory(path: str) -> None:
    """Make what was renamed or removed beside ``path`` durable. Raises OSError."""
    fd = os.open(directory_of(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def digest(path: str) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    from hashlib import sha256  # loads OpenSSL, and only a trial needs it

    found = sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            found.update(piece)
    return found.hexdigest()


def printable(text: str) -> str:
    """At most VERSION_CHARS, safe for a terminal."""
    return "".join(c if " " < c < "\x7f" else "?" for c in text[:VERSION_CHARS])


def say(text: str) -> None:
    """Write a line to standard error, which a service manager keeps."""
    priority = "<3>" if "JOURNAL_STREAM" in os.environ else ""  # sd-daemon(3): an error
    with suppress(OSError):  # nobody reads it
        os.write(2, f"{priority}tapotun: update: {text}\n".encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    main()
