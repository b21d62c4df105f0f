"""What this program notes beside its pyz for the launcher: an update on trial, and the end of its trial.

launcher.py says what the files are, and reads them at the next start.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from ..errors import HostError, shortage_of
from ..log import Log
from ..text import one_line, shorten
from .installed import Installation
from .launcher import Trial, read, remove, write
from .version import is_newer

# A version on trial that has not started by then is hung. Under systemd TimeoutStartSec= ends it before; s6 and runit
# would wait for ever.
START_S: Final = 300.0
_VERSION_CHARS: Final = 64


@asynccontextmanager
async def starting(installation: Installation, version: str, log: Log) -> AsyncIterator[None]:
    """The body starts the interfaces. If this is a pyz whose update is on trial, the end of the body ends the trial.

    Then it is logged which newer versions did not start here. Raises HostError if a version on trial takes too long.
    """
    pyz = installation.pyz
    if pyz is None:
        yield
        return
    with trio.move_on_after(START_S if has_open_trial(pyz.path) else float("inf")) as deadline:
        yield
    if deadline.cancelled_caught:
        raise HostError(f"version {version} is on trial, and has not started within {START_S:.0f} s")
    end_trial(installation, version, log)
    for refused in refused_versions(pyz.path):
        if _is_newer(refused, version):
            text = "update: version %s did not start here; this version is back, and that one is not installed again"
            log.error(f"{text} unless %s.refused is removed", refused, pyz.path)


def end_trial(installation: Installation, version: str, log: Log) -> None:
    """This version has started. If it is on trial, that ends, and the log says so, or why not."""
    if installation.pyz is None:
        return
    try:
        if (accepted := close_trial(installation.pyz.path, version)) is not None:
            log.info("update: version %s has started, and stays", one_line(shorten(accepted, _VERSION_CHARS)))
    except HostError as exc:
        log.error("update: %s", exc)


def _is_newer(refused: str, version: str) -> bool:
    try:
        return is_newer(refused, version)
    except ValueError:  # a person has written it
        return False


def open_trial(pyz: str, trial: Trial) -> None:
    """Note that the next starts of ``pyz`` are those of an update on trial. Durable. Raises OSError."""
    write(f"{pyz}.trial", trial.encode())


def abandon_trial(pyz: str) -> None:
    """Undo `open_trial`. Raises OSError."""
    remove(f"{pyz}.trial")


def close_trial(pyz: str, version: str) -> str | None:
    """End the trial, because this version has started. Returns the version that was on trial; None: there was none, or
    another one is: it was installed while this process started, and has yet to show what it can.

    Raises HostError if the note cannot be removed: then the launcher goes on counting starts.
    """
    path = f"{pyz}.trial"
    try:
        text = read(path)
        if not text:
            return None
        try:
            on_trial = Trial.decode(text).version
        except (ValueError, KeyError, TypeError, RecursionError):  # the launcher has said so
            on_trial = None
        if on_trial is None or on_trial == version:
            remove(path)
    except OSError as exc:
        remedy = f"remove {path}, or after some more starts the version before is put back"
        raise HostError(f"the trial of this version cannot be ended: {exc.strerror}; {remedy}") from exc
    return on_trial if on_trial == version else None


def refused_versions(pyz: str) -> list[str]:
    """The versions that did not start and are not installed again, the newest last. Those of a person's too: it is a
    file with a version a line. A file that cannot be read counts as empty; see `require_readable_refusals`."""
    try:
        lines = read(f"{pyz}.refused").splitlines()
    except OSError:
        return []
    return [one_line(shorten(version, _VERSION_CHARS)) for line in lines if (version := line.strip())]


def require_readable_refusals(pyz: str) -> None:
    """Raises HostError if the list of these versions is there and cannot be read. Root may have written it, with an
    umask of 077, to keep a version from being installed, or somebody else who may write to the directory."""
    try:
        read(f"{pyz}.refused")
    except OSError as exc:
        text = f"{pyz}.refused cannot be read: {exc.strerror}; nothing is installed, since it may name the new version"
        if shortage := shortage_of(exc, text):
            raise shortage from exc
        remedy = "let the user of this process read it"
        if exc.errno in (errno.EPERM, errno.ELOOP, errno.EISDIR):
            remedy = "make it a regular file of root's, of that user or of its directory's owner"
        raise HostError(f"{text}: {remedy}") from exc


def has_open_trial(pyz: str) -> bool:
    """Whether an update is on trial."""
    return os.path.lexists(f"{pyz}.trial")
