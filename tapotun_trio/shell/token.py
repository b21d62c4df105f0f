"""Implements `tapotun token`: makes a token, or hashes one, and prints the lines for the configs.

Raw tokens are printed only when a new one is made without ``--write``.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import secrets
import shlex
import stat
import sys
from contextlib import suppress
from typing import Final

from .. import exit_codes
from ..config.diagnostics import InvalidValue, quote
from ..config.parsers import TOKEN_FILE_BYTES, looks_hashed, parse_token_file
from ..text import one_line

TOKEN_BYTES: Final = 32
_MODE: Final = 0o600
_OTHERS: Final = 0o007


def token(arguments: argparse.Namespace) -> int:
    """Print a new token and its hashes, or the hashes of the token on standard input. Returns the exit code."""
    if arguments.force and arguments.write is None:
        return _fail("--force says that --write may replace a file; give both", exit_codes.USAGE)
    try:
        raw = _given() if arguments.hash else secrets.token_urlsafe(TOKEN_BYTES)
    except InvalidValue as exc:
        return _fail(f"the token on standard input {exc.problem}; {exc.remedy}")
    except (OSError, EOFError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or "nothing was typed"
        return _fail(f"the token cannot be read from standard input: {reason}")
    if arguments.write is not None:
        try:
            _write(arguments.write, f"{raw}\n".encode(), replace=arguments.force)
        except FileExistsError:
            known = shlex.join(["tapotun", "token", "--hash"]) + f" <{shlex.quote(arguments.write)}"
            text = f"{quote(arguments.write)} exists already, and is left as it is"
            return _fail(f"{text}; --force replaces it, and {known} prints the hash of a token in it")
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
            reason = getattr(exc, "strerror", None) or exc
            is_full = getattr(exc, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            remedy = "make room there" if is_full else "name a file in a directory of yours"
            return _fail(f"{quote(arguments.write)} cannot be written: {reason}; {remedy}")
        _line("client", "token_file", os.path.abspath(arguments.write))
    elif not arguments.hash:
        _line("client", "token", raw)
    _print_hashes(raw)
    return exit_codes.OK


def _given() -> str:
    """Read the token from standard input; on a terminal it is typed without an echo.

    Raises InvalidValue, OSError and EOFError.
    """
    if sys.stdin is None:
        raise OSError("it is closed")
    if sys.stdin.isatty():
        from getpass import getpass

        data = getpass("token: ").encode(errors="surrogateescape")
    else:
        data = sys.stdin.buffer.read(TOKEN_FILE_BYTES + 1)
    raw = parse_token_file(data).reveal()
    if looks_hashed(raw):
        text = "the token on standard input looks like a hash; hash the raw token, unless this is the raw token"
        print(f"tapotun token: warning: {text}", file=sys.stderr)
    return raw


def _print_hashes(raw: str) -> None:
    import hashlib  # imported here, because it loads OpenSSL

    _line("server", "token", "sha256:" + hashlib.sha256(raw.encode()).hexdigest())
    sha1 = hashlib.sha1(raw.encode(), usedforsecurity=False).hexdigest()
    _line("server", "token", sha1, "    (SHA-1: for servers that know no other hash)")


def _line(side: str, field: str, value: str, note: str = "") -> None:
    print(f'{side}:  "{field}": {json.dumps(value)}{note}')


def _write(path: str, content: bytes, *, replace: bool) -> None:
    """Make a file that only its owner can read. Raises OSError and ValueError; then no new file is left behind.

    ``replace``: atomically replace a regular file of this name. The new file keeps the owner and the group. The group
    can still read the file if it could before, unless everybody could.
    """
    if not replace:
        _create(path, content)
        return
    try:
        old = os.lstat(path)
    except FileNotFoundError:
        _create(path, content)
        return
    if not stat.S_ISREG(old.st_mode):
        raise OSError("it is not a regular file")
    fresh = f"{path}.{secrets.token_hex(4)}"
    _create(fresh, content, old)
    try:
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise


def _create(path: str, content: bytes, old: os.stat_result | None = None) -> None:
    """Make a file with mode 0600. Raises FileExistsError if the name exists, even as a dangling symbolic link.

    ``old``: the file whose place it takes. Owner and mode are set by the descriptor: whoever may write to the directory
    could put a link to another file in the place of the name.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, _MODE)  # the umask may have removed more bits
            file.write(content)
            file.flush()
            if old is not None and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, old.st_uid, old.st_gid)
            if old is not None and not old.st_mode & _OTHERS:
                os.fchmod(fd, _MODE | (old.st_mode & stat.S_IRGRP))
            os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def _fail(text: str, code: int = exit_codes.FAILED) -> int:
    print(f"tapotun token: error: {one_line(text)}", file=sys.stderr)
    return code
