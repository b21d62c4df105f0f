"""The packages, built once, and a small Debian to install them in."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT
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
    ours = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        ["make", "--no-print-directory", *target],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,  # a minute on two idle cores
    )
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


@pytest.fixture(scope="session")
def bookworm() -> Iterator[Path]:
    """An untouched minimal Debian 12, to be copied."""
    with tempfile.TemporaryDirectory(prefix="bookworm-") as directory:
        root = Path(directory, "root")
        debootstrap(root)
        yield root


@pytest.fixture
def minimal(bookworm: Path) -> Iterator[Chroot]:
    """A copy of it to work in."""
    with tempfile.TemporaryDirectory(prefix="debian-") as directory:
        yield Chroot.copy_of(bookworm, Path(directory, "root"))


@pytest.fixture(scope="session")
def bookworm_with_python(bookworm: Path) -> Iterator[Path]:
    """One with Debian's own Python, to be copied."""
    with tempfile.TemporaryDirectory(prefix="bookworm-python-") as directory:
        made = Chroot.copy_of(bookworm, Path(directory, "root"))
        made.install("python3")
        yield made.root


@pytest.fixture
def debian(bookworm_with_python: Path) -> Iterator[Chroot]:
    """A copy of that to work in."""
    with tempfile.TemporaryDirectory(prefix="debian-") as directory:
        yield Chroot.copy_of(bookworm_with_python, Path(directory, "root"))


@pytest.fixture(scope="session")
def bookworm_with_systemd(bookworm_with_python: Path) -> Iterator[Path]:
    """One that boots, to be copied."""
    with tempfile.TemporaryDirectory(prefix="bookworm-systemd-") as directory:
        made = Chroot.copy_of(bookworm_with_python, Path(directory, "root"))
        made.install("systemd-sysv", "adduser", "iproute2", "iputils-ping")
        yield made.root
