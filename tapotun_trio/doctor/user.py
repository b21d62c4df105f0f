"""Checks whether the user that a config runs as has the permissions it needs. Blocking; forks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Final

from ..config.model import Config, ListenAddress, ServerConfig, UnixAddress
from ..errors import HostError
from ..host.process.privileges import TUN_PATH
from ..host.process.user import User, ask_as, find_user, unreadable, unreadable_program
from .checks import Finding

SERVICE_USER: Final = "tapotun"
SERVICE_DIRECTORY: Final = "/etc/tapotun"
"""The shipped services run the configs in this directory, as the user `tapotun`."""


def check_user(config: Config, file: str) -> list[Finding]:
    """Return the findings about ``config.user``. If it is not set and the shipped services run this file, check their
    user."""
    name = config.user
    if name is None:
        if os.path.dirname(os.path.abspath(file)) != SERVICE_DIRECTORY:
            return []
        name = SERVICE_USER
    try:
        user = find_user(name)
    except HostError as exc:
        problem, _, remedy = str(exc).partition("; ")
        if config.user is None:
            problem += f", as whom the shipped services run the configs in {SERVICE_DIRECTORY}"
        return [Finding("failure" if config.user is not None else "warning", "user", problem, remedy)]
    if os.geteuid() not in (0, user.uid):
        text = f'whether user "{name}" may read the files of this config is not known'
        return [Finding("note", "user", text, "run it as root")]
    try:
        problems = ask_as(user, lambda: list(_problems(config, user)))
    except HostError as exc:
        return [Finding("note", "user", str(exc))]
    if not problems:
        return [Finding("ok", "user", f'user "{name}" may read the files of this config')]
    return [Finding("failure", "user", *problem.split("; ", 1)) for problem in problems]


def _problems(config: Config, user: User) -> Iterator[str]:
    """Find missing permissions. Must be called in a process that has become the user."""
    yield from unreadable(config.files)
    if (blocked := unreadable_program()) is not None:
        text = f'user "{user.name}" cannot read this program (no access to {blocked})'
        yield f"{text}; install it where every user can read it"
    if os.path.exists(TUN_PATH) and not os.access(TUN_PATH, os.R_OK | os.W_OK):
        yield f'user "{user.name}" cannot open {TUN_PATH}; chmod 0666 {TUN_PATH}, which is the default'
    for directory in dict.fromkeys(os.path.dirname(path) for path in _sockets(config)):
        if os.path.isdir(directory) and not os.access(directory, os.W_OK | os.X_OK):
            text = f'user "{user.name}" may not write to {directory}, where a Unix socket of this config has to be'
            yield f"{text}; chown {shlex.quote(user.name)} {shlex.quote(directory)}, or choose another directory"


def _sockets(config: Config) -> Iterator[str]:
    listen: list[ListenAddress] = [] if config.admin is None else [config.admin.listen]
    for entry in config.interfaces:
        if isinstance(entry, ServerConfig):
            listen += entry.listen
    yield from (endpoint.path for endpoint in listen if isinstance(endpoint, UnixAddress))
