"""Why this process's user cannot read a file, and what to do about it. Blocking: asks the file system."""

from __future__ import annotations

import grp
import os
import shlex
from contextlib import suppress
from pathlib import PurePath


def blocked_at(path: str | os.PathLike[str]) -> str | None:
    """What keeps the real user, without any capability, from reading a file: the first directory on its path that this
    user may not enter, or the file itself. None: it may be read, or does not exist.

    Links are followed. The path may lead into an archive, as that of a module may.
    """
    return _blocked_at(os.path.abspath(path)) or _blocked_at(os.path.realpath(path))


def _blocked_at(path: str) -> str | None:
    for directory in reversed(PurePath(path).parents):
        if os.path.isfile(directory):
            return _blocked_at(str(directory))
        if not os.access(directory, os.X_OK):
            return str(directory) if os.path.lexists(directory) else None
    return path if os.path.exists(path) and not os.access(path, os.R_OK) else None


def permission_remedy(path: str | os.PathLike[str]) -> str:
    """What to do about a file that this process may not read."""
    if os.geteuid() == 0:
        return f"root may not read it without CAP_DAC_OVERRIDE: run chown root {shlex.quote(os.fspath(path))}"
    return f"run it as root, or {grant(blocked_at(path) or os.fspath(path))}"


def grant(path: str) -> str:
    """How root lets the group of this process read a file, or enter a directory."""
    group = str(os.getgid())
    with suppress(KeyError):
        group = shlex.quote(grp.getgrgid(os.getgid()).gr_name)
    name = shlex.quote(path)
    if os.path.isdir(path):
        return f"keep it elsewhere, such as in /etc/tapotun: group {group} may not enter {name}"
    return f"let group {group} read it: chgrp {group} {name}; chmod g+r {name}"
