"""Takes away, for good, what a worker does not need, before it reads a byte that came from elsewhere.

What is taken, in this order:

user            Root becomes `nobody`. A process of another user stays that user: it cannot become another one.
privileges      all capabilities; and no program that it starts can regain any (no_new_privs)
other processes None may trace it or read its memory, which holds a login; it may signal or trace none (Landlock).
files           Landlock (kernel 5.13): none may be written, made, removed or run; few may be read.
resources       memory, CPU time, core dumps, sizes of files. For `seal_off` also: no new descriptor of any kind, so no
                file and no socket, and no new thread or process.

Each step that the kernel must provide raises HostError if it fails. Landlock is taken where the kernel has it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import resource
from collections.abc import Iterable
from contextlib import suppress
from struct import Struct
from typing import Final

from ..errors import HostError
from ..host.process.privileges import drop_privileges

_NOBODY: Final = 65534  # the kernel's own overflowuid, where the machine has no user of this name
_MEMORY_BYTES: Final = 1 << 30  # of address space: Python, OpenSSL and the stacks of a few threads take 300 MB
_CPU_S: Final = 120
_OPEN_FILES: Final = 128

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h

# linux/landlock.h. The numbers of these system calls are the same on every architecture.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_RULESET_ATTR: Final = Struct("=QQQ")  # handled_access_fs, handled_access_net, scoped
_PATH_BENEATH_ATTR: Final = Struct("=Qi")  # allowed_access, parent_fd
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_BIND_TCP: Final = 1 << 0
_CONNECT_TCP: Final = 1 << 1
_SCOPES: Final = 0b11  # no abstract Unix socket and no process outside may be reached
# The rights over files that each version of Landlock knows: 13, and one more from versions 2, 3 and 5 on.
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}


def become_nobody(file_bytes: int) -> None:
    """Give up the user, all privileges, and the right to use much of anything. Call this with one thread only.

    ``file_bytes``: no file, a memfd included, may become longer. Raises HostError.
    """
    if os.geteuid() == 0:
        uid, gid = _nobody()
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError as exc:
            text = f"cannot look for updates as an unprivileged user: {exc.strerror}"
            if exc.errno == errno.EPERM:
                # `host.process.privileges.needed_capabilities` keeps them if the config had ``update`` at the start.
                text += "; this process has given up CAP_SETUID and CAP_SETGID: restart it"
            raise HostError(text) from exc
    if (refused := drop_privileges(0)) is not None:
        raise HostError(f"cannot look for updates: {refused}")
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.umask(0o777)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_AS, _MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, _CPU_S)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)


def has_landlock() -> bool:
    """Whether `confine` can do anything here."""
    return _landlock_version(ctypes.CDLL(None)) >= 1


def confine(readable: Iterable[str], *, connects: bool) -> bool:
    """Forbid all use of files except to read these, and what is beneath those of them that are directories.

    ``connects``: TCP connections may be made. Returns whether this kernel has Landlock; otherwise nothing was done.
    Raises HostError if it has, and refuses. Call this after `become_nobody`, which sets no_new_privs.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = _landlock_version(libc)
    if version < 1:
        return False
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    network = _BIND_TCP | (0 if connects else _CONNECT_TCP) if version >= 4 else 0
    attributes = _RULESET_ATTR.pack(rights, network, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise _refused("landlock_create_ruleset")
    try:
        for path in readable:
            with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
                _allow_reading(libc, ruleset, path)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0):
            raise _refused("landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True


def seal_off() -> None:
    """Forbid new descriptors, files, sockets, threads and processes, for good. What is open stays usable."""
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, 0)


def _landlock_version(libc: ctypes.CDLL) -> int:
    """Below 1: not built in, or not switched on (lsm= of the kernel's command line), or filtered."""
    version: int = libc.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION)
    return version


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    """Raises OSError: there is no such file."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
        rule = ctypes.c_char_p(_PATH_BENEATH_ATTR.pack(allowed, fd))
        if libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0):
            raise _refused("landlock_add_rule")
    finally:
        os.close(fd)


def _refused(call: str) -> HostError:
    return HostError(f"cannot look for updates: {call}: {os.strerror(ctypes.get_errno())}")


def _limit(what: int, most: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return _NOBODY, _NOBODY
    return (entry.pw_uid, entry.pw_gid) if entry.pw_uid and entry.pw_gid else (_NOBODY, _NOBODY)
