"""The packages, built once, and small Debians to install them in."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT
from tests.makes import run_make
from tests.netns.conftest import _logs_are_clean

from .chroot import Chroot, debootstrap
from .foreign import make_all

__all__ = ["_logs_are_clean"]


TIMEOUT_S: Final = 1800.0  # the first test of a kind downloads and builds what the others share


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time for the tests in this directory."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def make(*target: str) -> Path:
    """Run `make TARGET` as a developer would, perhaps with variables. Returns dist/."""
    done = run_make(*target)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "dist"


def machine(module: bytes) -> str:
    """For which processor a compiled module is, by its ELF header (e_machine, elf(5))."""
    assert module[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
    return {62: "x86_64", 183: "aarch64"}[int.from_bytes(module[18:20], "little")]


@pytest.fixture(scope="session")
def dist() -> Path:
    """dist/ with wheel and sdist, of this version only."""
    for old in (ROOT / "dist").glob("tapotun_trio-*"):
        old.unlink()
    return make("dist")


@pytest.fixture(scope="session")
def pyz() -> Path:
    """tapotun.pyz."""
    return make("pyz") / "tapotun.pyz"


@pytest.fixture(scope="session")
def deb() -> Path:
    """The Debian package."""
    for old in (ROOT / "dist").glob("*.deb"):
        old.unlink()
    (made,) = make("deb", "DEB_ARCH=amd64").glob("*.deb")
    return made


@pytest.fixture(scope="session")
def foreign(pyz: Path) -> None:
    """The Pythons of `foreign.FOREIGN` can be run."""
    assert pyz.exists()  # what builds it compiles a part of them
    make_all()


FRESH_S: Final = 86_400.0  # for how long a Debian serves: its packages must still be those of the archive


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """A Debian in build/debian, made by `make` unless there is one of today. Only to be copied.

    All workers of a test run share it, and the runs of one day.
    """
    place = ROOT / "build" / "debian"
    place.mkdir(parents=True, exist_ok=True)
    made, unfinished = place / name, place / f"{name}.part"
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists() or time.time() - made.stat().st_mtime > FRESH_S:
            for old in (made, unfinished):
                shutil.rmtree(old, ignore_errors=True)
            make(unfinished)
            os.utime(unfinished)
            unfinished.rename(made)
    return made


def with_packages(base: Path, root: Path, *packages: str) -> None:
    """Make a copy of that Debian with more packages."""
    Chroot.copy_of(base, root).install(*packages)


BOOTS: Final = ("python3", "systemd-sysv", "adduser", "iproute2", "iputils-ping")


@pytest.fixture(scope="session")
def bookworm() -> Path:
    """An untouched minimal Debian 12, to be copied."""
    return cached("bookworm", lambda root: debootstrap(root, "bookworm"))


@pytest.fixture(scope="session")
def trixie() -> Path:
    """An untouched minimal Debian 13, to be copied."""
    return cached("trixie", lambda root: debootstrap(root, "trixie"))


@pytest.fixture
def minimal(bookworm: Path) -> Iterator[Chroot]:
    """A copy of Debian 12 to work in."""
    with tempfile.TemporaryDirectory(prefix="debian-") as directory:
        yield Chroot.copy_of(bookworm, Path(directory, "root"))


@pytest.fixture(scope="session")
def bookworm_with_python(bookworm: Path) -> Path:
    """One with Debian's own Python, to be copied."""
    return cached("bookworm-python", lambda root: with_packages(bookworm, root, "python3"))


@pytest.fixture
def debian(bookworm_with_python: Path) -> Iterator[Chroot]:
    """A copy of that to work in."""
    with tempfile.TemporaryDirectory(prefix="debian-") as directory:
        yield Chroot.copy_of(bookworm_with_python, Path(directory, "root"))


@pytest.fixture(scope="session")
def bookworm_with_systemd(bookworm_with_python: Path) -> Path:
    """One that boots, to be copied."""
    return cached("bookworm-systemd", lambda root: with_packages(bookworm_with_python, root, *BOOTS))


@pytest.fixture(scope="session")
def trixie_with_systemd(trixie: Path) -> Path:
    """A Debian 13 that boots, and has what downloads a key of apt, to be copied."""
    packages = (*BOOTS, "ca-certificates", "curl")
    return cached("trixie-systemd-curl", lambda root: with_packages(trixie, root, *packages))
