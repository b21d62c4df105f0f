"""A disk that stops answering, as a dead NFS does: a file system in user space (FUSE) whose daemon stays silent.

    python dead_disk.py SOURCE MOUNTPOINT

shows the files of the directory SOURCE in MOUNTPOINT. While SOURCE has a file ``dead``, no request is answered; a
process that makes one waits, as for a dead NFS, until it is killed or this program ends. The layout of the messages is
in linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
import time
from pathlib import Path
from typing import Final

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE, _FLUSH, _INIT = 1, 2, 3, 14, 15, 18, 25, 26
_BATCH_FORGET, _INTERRUPT = 42, 36
_REQUEST: Final = struct.Struct("=IIQQIIII")  # fuse_in_header
_ANSWER: Final = struct.Struct("=IiQ")  # fuse_out_header
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")  # fuse_attr
_ROOT_NODE: Final = 1
_BUFFER_BYTES: Final = 256 * 1024


def _attributes(node: int, size: int) -> bytes:
    mode, links = (0o040755, 2) if node == _ROOT_NODE else (0o100600, 1)
    return _ATTR.pack(node, size, 1, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)


def _answer(source: Path, names: list[str], opcode: int, node: int, body: bytes) -> bytes | int:
    """The body of the answer, or the number of an error. ``names``: the files, whose nodes count from 2."""
    if opcode == _INIT:
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 128 * 1024, 1, 0, 0, 0)
    if opcode == _LOOKUP:
        name = os.fsdecode(body.rstrip(b"\0"))
        if not (source / name).is_file():
            return errno.ENOENT
        if name not in names:
            names.append(name)
        found = names.index(name) + 2
        return struct.pack("=QQQQII", found, 0, 0, 0, 0, 0) + _attributes(found, (source / name).stat().st_size)
    if opcode == _GETATTR:
        size = 0 if node == _ROOT_NODE else (source / names[node - 2]).stat().st_size
        return struct.pack("=QII", 0, 0, 0) + _attributes(node, size)
    if opcode == _OPEN:
        return struct.pack("=QII", 0, 1, 0)  # FOPEN_DIRECT_IO: every read comes here
    if opcode == _READ:
        offset, size = struct.unpack_from("=QI", body, 8)
        return (source / names[node - 2]).read_bytes()[offset : offset + size]
    return b"" if opcode in (_FLUSH, _RELEASE) else errno.ENOSYS


def main(source: Path, mountpoint: Path) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"dead-disk", os.fsencode(mountpoint), b"fuse", 0, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(mountpoint))
    names: list[str] = []
    print("mounted", flush=True)
    while True:
        select.select([fd], [], [])
        # A request that was read here would be waited for even by a process that is killed.
        while (source / "dead").exists():
            time.sleep(0.05)
        request = os.read(fd, _BUFFER_BYTES)
        _, opcode, unique, node, *_ = _REQUEST.unpack_from(request)
        if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            continue
        answer = _answer(source, names, opcode, node, request[_REQUEST.size :])
        if isinstance(answer, int):
            os.write(fd, _ANSWER.pack(_ANSWER.size, -answer, unique))
        else:
            os.write(fd, _ANSWER.pack(_ANSWER.size + len(answer), 0, unique) + answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
