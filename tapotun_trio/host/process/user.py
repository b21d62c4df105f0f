"""Makes this process an ordinary user with a few capabilities, and finds the files that such a user cannot read.

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
    """An ordinary user of this machine. ``groups``: the ids of all groups of the user, including ``gid``."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(name: str) -> User:
    """Look up the user of that name. Raises HostError if there is none, or if it is root under another name."""
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

    Call this while the process has only one thread: the C library changes the user of all threads, but prctl(2) and
    capset(2) change only the calling thread. Afterwards no other process of this user can read our memory or trace us,
    because the process is not dumpable (prctl(2), PR_SET_DUMPABLE). If the process already runs as this user, it only
    drops privileges.

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
    """Call ``question`` as this user, without any capability, and return its answer. If we are root, a child process
    calls it.

    Raises HostError if the child could not become the user, or did not answer. Must not be called in a process with
    several threads.
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
            os._exit(0)  # skips the parent's exit handlers; a missing answer is noticed there
    os.close(send)
    with open(receive, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    try:
        return list(json.loads(answer))
    except ValueError as exc:
        raise HostError(f"{unknown}: this process cannot become that user") from exc


def user_name(uid: int) -> str:
    """Return the user's name, or text such as ``uid 810`` if this machine does not know the id."""
    try:
        return f'"{pwd.getpwuid(uid).pw_name}"'
    except KeyError:
        return f"uid {uid}"


def unreadable(paths: Iterable[str]) -> Iterator[str]:
    """Find the files that this process's real user could not read without any capability. Yields one text for each,
    with the reason and the remedy. Files that do not exist are skipped."""
    for path in dict.fromkeys(paths):
        if (blocked := blocked_at(path)) is not None:
            yield f"user {user_name(os.getuid())} cannot read {path}; {grant(blocked)}"


def unreadable_program() -> str | None:
    """Return the path that keeps this process's real user from reading this program or its Python. None: both can be
    read. Parts of them are loaded at first use, so they must stay readable."""
    modules = (sys.modules[__name__], os)
    files = [file for module in modules if (file := getattr(module, "__file__", None)) is not None]
    return next((blocked for file in files if (blocked := blocked_at(file)) is not None), None)


def prepare_directory(base: str, user: User) -> str | None:
    """As root, make the directory ``base``, and in it a directory that belongs to the user and has the user's name,
    mode 0755.

    Returns the path of the user's directory. Returns None and changes nothing if it cannot be made, or if that is not
    safe. It is not safe if ``base`` belongs to another user, who could redirect us to any directory of the machine.
    """
    made = False
    with suppress(OSError):  # it exists already, or the open below fails with the reason
        os.mkdir(base, 0o755)
        made = True
    try:
        outer = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if made:
            os.fchmod(outer, 0o755)  # independent of the umask
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
