"""Becomes an ordinary user who keeps a few capabilities, and finds out what that user cannot read.

User 0 without any capability still owns /etc/cron.d, /root and most other files, and may write to them. So dropping
capabilities alone does not contain a process that was started as root.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pwd
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ...errors import HostError
from ...files import blocked_at, grant
from .privileges import drop_privileges

_PR_SET_KEEPCAPS: Final = 8  # linux/prctl.h
_NOLOGIN: Final = "--no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin"


@dataclass(frozen=True, slots=True)
class User:
    """An ordinary user of this machine. ``groups``: of all groups the user is in, ``gid`` among them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(name: str) -> User:
    """The user of that name. Raises HostError: there is none, or it is root under another name."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError as exc:
        remedy = f"make one (useradd --system --user-group {_NOLOGIN} {shlex.quote(name)}), or name another"
        raise HostError(f'user "{name}": this machine has no such user; {remedy}') from exc
    if entry.pw_uid == 0:
        raise HostError(f'user "{name}": is user 0, who may write root\'s files; name an ordinary user')
    groups = dict.fromkeys((entry.pw_gid, *os.getgrouplist(name, entry.pw_gid)))
    return User(name, entry.pw_uid, entry.pw_gid, tuple(groups))


def become_user(user: User, keep: int) -> None:
    """Become this user for good, with no capability but those in ``keep`` (a bit mask), and no_new_privs set.

    To be called while the process has one thread: the C library changes the user of all threads, but prctl(2) and
    capset(2) change the calling one only. The kernel then lets no other process of this user read our memory or trace
    us, since we are not dumpable (prctl(2), PR_SET_DUMPABLE). A process that runs as this user already only drops
    privileges.

    Raises HostError: the process is neither root nor this user, or the kernel refuses a step. Then the process must
    end, because it may have taken some of the steps.
    """
    if os.getresuid() != (user.uid,) * 3:
        if os.geteuid() != 0:
            text = f'cannot become user "{user.name}": this process was started as {user_name(os.geteuid())}'
            raise HostError(f"{text}, and only root can; start it as root, or leave user out")
        _change_user(user)
    if (refused := drop_privileges(keep)) is not None:
        raise HostError(f'cannot become user "{user.name}": {refused}')


def _change_user(user: User) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0):
        reason = os.strerror(ctypes.get_errno())
        raise HostError(f'cannot become user "{user.name}": prctl: {reason}; start it as that user instead')
    step = "setgroups"
    try:
        os.setgroups(user.groups)
        step = "setresgid"
        os.setresgid(user.gid, user.gid, user.gid)
        step = "setresuid"
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as exc:
        remedy = "let it have CAP_SETUID and CAP_SETGID"
        if exc.errno == errno.EINVAL:
            remedy = "the user namespace has no such user or group"
        text = f'cannot become user "{user.name}": {step}: {exc.strerror}; {remedy}'
        raise HostError(f"{text}, or start it as that user with the capability CAP_NET_ADMIN") from exc


def ask_as(user: User, question: Callable[[], list[str]]) -> list[str]:
    """What the question's answer is for this user, without any capability. Asks in a child process if we are root.

    Raises HostError: the child could not become the user, or did not answer. Not for a process with several threads.
    """
    if os.geteuid() == user.uid:
        return question()
    unknown = f'what user "{user.name}" may read is not known'
    try:
        receive, send = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
    except OSError as exc:  # no descriptor, no memory, or too many processes; this one ends soon
        raise HostError(f"{unknown}: {exc.strerror}") from exc
    if child == 0:
        try:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            answer = json.dumps(question()).encode()
            while answer:
                answer = answer[os.write(send, answer) :]
        finally:
            os._exit(0)  # nothing of the parent's is run twice; without an answer it notices
    os.close(send)
    with open(receive, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    try:
        return list(json.loads(answer))
    except ValueError as exc:
        raise HostError(f"{unknown}: this process cannot become that user") from exc


def user_name(uid: int) -> str:
    """The user's name, or ``uid 810`` for one that this machine does not know."""
    try:
        return f'"{pwd.getpwuid(uid).pw_name}"'
    except KeyError:
        return f"uid {uid}"


def unreadable(paths: Iterable[str]) -> Iterator[str]:
    """What keeps this process's real user, without any capability, from reading these files: one text for each, with
    the remedy. Files that do not exist are passed over."""
    for path in dict.fromkeys(paths):
        if (blocked := blocked_at(path)) is not None:
            yield f"user {user_name(os.getuid())} cannot read {path}; {grant(blocked)}"


def unreadable_program() -> str | None:
    """What keeps this process's real user from reading this program or its Python, parts of which are loaded at their
    first use; None: nothing. Either is a path."""
    modules = (sys.modules[__name__], os)
    files = [file for module in modules if (file := getattr(module, "__file__", None)) is not None]
    return next((blocked for file in files if (blocked := blocked_at(file)) is not None), None)


def prepare_directory(base: str, user: User) -> str | None:
    """As root: make the directory ``base``, and in it one of the user's own, mode 0755, which has the user's name.

    Returns the path of the latter. None, and nothing is changed, if that cannot be done, or if it is not safe: ``base``
    belongs to another user, who could lead us to any directory of the machine.
    """
    made = False
    with suppress(OSError):  # it exists, or opening it shows why it cannot be made
        os.mkdir(base, 0o755)
        made = True
    try:
        outer = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if made:
            os.fchmod(outer, 0o755)  # whatever the umask is
        status = os.fstat(outer)
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        with suppress(FileExistsError):
            os.mkdir(user.name, 0o755, dir_fd=outer)
        inner = os.open(user.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)
        try:
            os.fchown(inner, user.uid, user.gid)
            os.fchmod(inner, 0o755)
        finally:
            os.close(inner)
    except OSError:
        return None
    finally:
        os.close(outer)
    return os.path.join(base, user.name)
