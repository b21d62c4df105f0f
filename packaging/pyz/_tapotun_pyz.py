"""Lets the program run out of its zip, tapotun.pyz, without unpacking it: nothing is written to any disk.

Python imports from a zip whatever is no compiled module. One of those has to be a file for the dynamic loader, so it is
copied into memory that has a descriptor (memfd_create(2)), and loaded from /proc/self/fd. Where there is no such
memory, or none that may be executed, a file in a directory for temporary ones does, which is removed once it is
loaded.

The zip itself is read through a descriptor that is held: a newer one may be moved into its place while we run, and what
is imported later must not come out of that.
"""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile
import threading
import zipimport
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Final

# Above those that a supervisor hands over by number (s6's notification, systemd's sockets).
_LEAST_FD: Final = 64
_unused_fd = _LEAST_FD  # and all above it; see _new_path
_lock: Final = threading.Lock()
# For tapotun_trio/update/installed.py: where the pyz lay when we started, and its open file; None: it is not held open.
running_path: str | None = None
running_fd: int | None = None
# In the name of a module with the stable ABI, before the machine: _pump.abi3-x86_64-linux-gnu.so.
_STABLE: Final = ".abi3-"


def _suffixes() -> Iterator[str]:
    """The endings of compiled modules that this interpreter can load, as our files are called.

    OpenWrt's Python leaves the machine and the C library out of its own: .cpython-311.so instead of
    .cpython-311-x86_64-linux-musl.so.
    """
    for suffix in EXTENSION_SUFFIXES:
        yield suffix
        if re.fullmatch(r"\.cpython-\d+\.so", suffix) and sys.maxsize > 2**32:
            yield f"{suffix[:-3]}-{os.uname().machine}-linux-{_libc()}.so"


def _libc() -> str:
    try:
        return "gnu" if os.confstr("CS_GNU_LIBC_VERSION") else "musl"
    except (ValueError, OSError):
        return "musl"


_SUFFIXES: Final = tuple(_suffixes())


def main() -> int:
    """Run the program. Returns its exit code."""
    loader = globals()["__loader__"]
    assert isinstance(loader, zipimport.zipimporter)
    archive = _held(loader.archive)
    finder = CompiledModules(archive)
    sys.meta_path.insert(0, finder)
    sys.path[0] = archive.archive
    if missing := finder.missing():
        here = max(_SUFFIXES, key=len).strip(".").removesuffix(".so")
        print(
            f"tapotun: {sys.argv[0]} has {missing} for other machines or versions of Python, not for this one ({here});"
            " install it with pip instead, or use one of: " + ", ".join(finder.kinds()),
            file=sys.stderr,
        )
        return 1
    from tapotun_trio.__main__ import main as program

    return program()


def _held(path: str) -> zipimport.zipimporter:
    """The archive by a path that stays the same file whatever becomes of its name."""
    global running_path, running_fd
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    held = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LEAST_FD)
    os.close(fd)
    try:
        found = zipimport.zipimporter(f"/proc/self/fd/{held}")
    except zipimport.ZipImportError:  # no /proc here
        os.close(held)
        return zipimport.zipimporter(path)
    running_path, running_fd = os.path.realpath(path), held
    return found


class CompiledModules:
    """Finds compiled modules in the archive."""

    def __init__(self, archive: zipimport.zipimporter) -> None:
        self._archive = archive
        names: list[str] = archive.get_data("compiled.txt").decode().split()
        self._names: Final = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib.abc.MetaPathFinder has it."""
        for suffix in (*_SUFFIXES, *_stable_suffixes()):
            name = fullname.replace(".", "/") + suffix
            if name in self._names:
                return importlib.util.spec_from_loader(fullname, _Loader(fullname, name, self._archive))
        return None

    def missing(self) -> str | None:
        """A module that is compiled for others, and not for this interpreter.

        Modules with the stable ABI do not count: the program works without them.
        """
        for name in sorted(self._names):
            if _STABLE in name:
                continue
            module = name.partition(".")[0]
            if not any(module + suffix in self._names for suffix in _SUFFIXES):
                return module.replace("/", ".")
        return None

    def kinds(self) -> list[str]:
        """What there is, as Python's own suffixes call it."""
        return sorted({name.split(".")[1] for name in self._names if _STABLE not in name})


def _stable_suffixes() -> Iterator[str]:
    """The endings here of modules that every CPython on this processor, with this C library, can load.

    Outside of the pyz each of them ends with .abi3.so, which does not say for which machine it is.
    """
    if ".abi3.so" in EXTENSION_SUFFIXES:
        for suffix in _SUFFIXES:
            implementation, _, machine = suffix.partition("-")  # .cpython-311-x86_64-linux-gnu.so
            if implementation == ".cpython" and "-" in machine:
                yield _STABLE + machine.partition("-")[2]


class _Loader(ExtensionFileLoader):
    def __init__(self, fullname: str, name: str, archive: zipimport.zipimporter) -> None:
        super().__init__(fullname, os.path.join(archive.archive, name))
        self._data: Final[Callable[[], bytes]] = lambda: archive.get_data(name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        try:
            with _in_memory(self._data()) as path:
                return self._load(spec.name, path)
        except (OSError, ImportError):
            with _in_temporary_file(self._data()) as path:
                return self._load(spec.name, path)

    def _load(self, fullname: str, path: str) -> ModuleType:
        found = ModuleSpec(fullname, self, origin=path)
        return super().create_module(found)


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path at which the dynamic loader finds these bytes, for as long as the block. Raises OSError."""
    fd = os.memfd_create("tapotun.pyz", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        with _new_path(fd) as path:
            yield path
    finally:
        os.close(fd)


@contextmanager
def _in_temporary_file(data: bytes) -> Iterator[str]:
    """The same where there is no such memory. Raises OSError."""
    with tempfile.NamedTemporaryFile(prefix="tapotun-", suffix=".so") as file:  # mode 0600
        file.write(data)
        file.flush()
        # By its descriptor: where others may write to the directory, its name may lead to a file of theirs by now.
        with _new_path(file.fileno()) as held:
            yield held if os.path.exists(held) else file.name


@contextmanager
def _new_path(fd: int) -> Iterator[str]:
    """A path to this open file, for as long as the block, that no compiled module has been loaded from before.

    glibc compares names first: for a path that it has loaded a module from, it returns that module, without a look at
    the file. Numbers of descriptors are used again once they are closed, so each module gets a higher one.
    """
    global _unused_fd
    with _lock:
        held = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _unused_fd)
        _unused_fd = held + 1
    try:
        yield f"/proc/self/fd/{held}"
    finally:
        os.close(held)
