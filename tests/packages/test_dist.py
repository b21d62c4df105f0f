"""Wheel and sdist: what is in them, and that they can be used."""

from __future__ import annotations

import email
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tapotun_trio import __version__
from tests.harness import ROOT

from .pythons import EXERCISE, NATIVE, PURE

pytestmark = pytest.mark.netns  # `make dist` installs what builds it

NAME = f"tapotun_trio-{__version__}"


def in_checkout(directory: Path) -> set[str]:
    """The files that are ours, by git: relative to the checkout."""
    done = subprocess.run(["git", "ls-files", directory], check=True, cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.splitlines())


def test_the_pure_wheel_has_the_program_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
        licence = wheel.read(f"{NAME}.dist-info/licenses/LICENSE").decode()
        entry_points = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    # Every file of the package, whatever its kind: the panel's pages too.
    assert {name for name in in_checkout(ROOT / "tapotun_trio") if not name.endswith(".c")} <= names
    assert not [name for name in names if name.endswith((".c", ".so"))]
    assert {name.split("/")[0] for name in names} == {"tapotun_trio", f"{NAME}.dist-info"}
    assert not [name for name in names if "test" in name or "__pycache__" in name]
    assert "tapotun_trio/py.typed" in names
    assert metadata["Name"] == "tapotun-trio"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Summary"]
    assert "# tapotun-trio" in str(metadata.get_payload())
    required = [it for it in metadata.get_all("Requires-Dist", []) if "extra ==" not in it]
    names_required = {re.split(r"[<>=]", requirement)[0] for requirement in required}
    assert names_required >= {"trio", "h11", "pyroute2", "msgspec", "trio-websocket"}
    assert licence == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "tapotun = tapotun_trio.__main__:main" in entry_points


def test_the_sdist_has_what_is_needed_to_build_and_to_test(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert in_checkout(ROOT / "tapotun_trio") | in_checkout(ROOT / "packaging") | in_checkout(ROOT / "conf") <= names
    for directory in ("bench", "fuzz", "tests", "tools"):  # what the Makefile runs
        assert in_checkout(ROOT / directory) <= names
    assert {"pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv", "build", "dist"))]


@pytest.mark.parametrize(
    "kind", ["-py3-none-any.whl", f"-cp311-abi3-manylinux_2_28_{platform.machine()}.whl", ".tar.gz"]
)
def test_it_installs_into_a_fresh_environment(dist: Path, tmp_path: Path, kind: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install: list[str | Path] = [python, "-m", "pip", "install", "-qq", f"{dist}/{NAME}{kind}"]
    done = subprocess.run(install, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    tapotun = tmp_path / "venv" / "bin" / "tapotun"
    for argv in ([tapotun], [python, "-m", "tapotun_trio"]):
        done = subprocess.run([*argv, "--version"], check=True, capture_output=True, text=True, cwd="/")
        assert done.stdout == (PURE if kind.endswith("-any.whl") else NATIVE)
    # The sdist has it too: these machines have a compiler.
    done = subprocess.run([python, "-I", "-c", EXERCISE], check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == kind.startswith("-py3"), done.stderr
