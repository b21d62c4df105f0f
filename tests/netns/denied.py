"""Run a program to which the kernel refuses some system calls: ``python -m tests.netns.denied CALL... -- PROGRAM...``.

A CALL is ``capset``, or with one argument's value ``ioctl:1:0x400454d0``, counted from 0. Each is answered with EPERM,
as filters of containers and service managers do (seccomp(2), linux/filter.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterator
from typing import Final

# asm/unistd.h
NUMBERS: Final = {
    "x86_64": {"ioctl": 16, "setsockopt": 54, "capset": 126, "capget": 125, "prctl": 157, "prlimit64": 302},
    "aarch64": {"ioctl": 29, "setsockopt": 208, "capset": 91, "capget": 90, "prctl": 167, "prlimit64": 261},
}
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARGUMENTS_AT = 0, 16  # struct seccomp_data: nr, arch, instruction pointer, arguments of 8 bytes


def instructions(call: str) -> Iterator[tuple[int, int, int, int]]:
    """Refuse this one, else go on: code, jumps if true and if false, k."""
    name, *rest = call.split(":")
    yield _LOAD, 0, 0, _NUMBER_AT
    yield _EQUAL, 0, 3 if rest else 1, NUMBERS[platform.machine()][name]
    if rest:
        index, value = (int(number, 0) for number in rest)
        yield _LOAD, 0, 0, _ARGUMENTS_AT + 8 * index  # its lower half, as little-endian machines have it
        yield _EQUAL, 0, 1, value
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM


def main() -> None:
    end = sys.argv.index("--")
    program = [instruction for call in sys.argv[1:end] for instruction in instructions(call)]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    head = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0):
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])


if __name__ == "__main__":
    main()
