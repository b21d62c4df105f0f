"""Programs to update from and to, and what a check for updates would bring."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tapotun_trio.update import launcher as launcher_module
from tapotun_trio.update.installed import Pyz
from tapotun_trio.update.outcome import Found

LAUNCHER: Final = Path(launcher_module.__file__)
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def program(version: str, body: str = "") -> bytes:
    """A pyz that prints its version and arguments, after ``body``."""
    source = f"import sys\n{body}\nprint({version!r}, *sys.argv[1:])\n"
    packed = io.BytesIO()
    packed.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), source)  # without the time of day
    return packed.getvalue()


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def found(version: str, data: bytes, *, seals: int = _SEALS) -> Iterator[Found]:
    """What `update.check.check` returns for a version with these bytes, while the block runs."""
    memfd = os.memfd_create("new", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
        yield Found(version, sha256(data), len(data), memfd)
    finally:
        os.close(memfd)


@contextmanager
def running(path: Path) -> Iterator[Pyz]:
    """The pyz at that path, as a process has it that was started from it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Pyz(os.path.realpath(path), fd, None)
    finally:
        os.close(fd)


def install_launcher(pyz: Path) -> Path:
    """Put the launcher beside the pyz. Returns its path."""
    made = pyz.with_suffix("")
    made.write_bytes(LAUNCHER.read_bytes())
    made.chmod(0o755)
    return made


def launch(pyz: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Start the pyz by its launcher, and wait for its end."""
    argv = [sys.executable, str(install_launcher(pyz)), *arguments]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, env=env)


def derive(pyz: Path, made: Path, version: str, **changed: str) -> bytes:
    """A copy of a real pyz that calls itself another version. Returns its bytes.

    ``changed``: further modules of tapotun_trio that get another source.
    """
    sources = {"__init__": f'__version__ = "{version}"\nAGENT = f"tapotun-trio/{{__version__}}"\n', **changed}
    made.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pyz, made)
    # The last entry of a name is the one that counts, so the others need not be packed again.
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(made, "a") as archive:
        for module, source in sources.items():
            archive.writestr(zipfile.ZipInfo(f"tapotun_trio/{module}.py"), source)
    made.chmod(0o755)
    return made.read_bytes()
