"""The program and all that it needs as one tree of files, for every platform at once.

What is pure Python is there once. Of what is compiled there is a file for each version of Python, processor and C
library, and all of them may lie in one directory, since their names say for which they are:
``_core.cpython-311-x86_64-linux-gnu.so``.

The wheels come from pip, into build/wheels; what is there already is not fetched again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
BUILD: Final = ROOT / "build"

PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
# Newest first: what musl and glibc of these machines can load.
LIBCS: Final = {
    "gnu": ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014"),
    "musl": ("musllinux_1_2", "musllinux_1_1"),
}
MACHINES: Final = ("x86_64", "aarch64")

# Of no use where it runs. RECORD would be untrue of a tree of many wheels.
_LEFT_OUT: Final = ("/_tests/", ".dist-info/RECORD", ".dist-info/WHEEL", ".pyi")


class Target(NamedTuple):
    """One kind of machine."""

    python: str
    machine: str
    libc: str

    @property
    def suffix(self) -> str:
        """With which the name of a module compiled for it ends."""
        return f".cpython-{self.python.replace('.', '')}-{self.machine}-linux-{self.libc}.so"


TARGETS: Final = tuple(Target(python, machine, libc) for python in PYTHONS for machine in MACHINES for libc in LIBCS)


def project() -> dict[str, Any]:
    """What pyproject.toml has in [project]."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def version() -> str:
    """Of the program, read and not imported: it need not be installed here."""
    for line in (ROOT / "tapotun_trio" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__ = "):
            return line.split('"')[1]
    raise SystemExit("tapotun_trio/__init__.py has no __version__")


def make_tree(tree: Path, targets: Iterable[Target] = TARGETS) -> None:
    """Fill a new directory with the program and what it needs on these targets."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    suffixes = {target.suffix for target in targets}
    for wheel in (own_wheel(), *fetch()):
        _unpack(wheel, tree, suffixes)
    _check(tree, suffixes)


def own_wheel() -> Path:
    """The wheel of this checkout, as pip builds it, without the C module."""
    place = BUILD / "own-wheel"
    shutil.rmtree(place, ignore_errors=True)
    _pip("wheel", "--no-deps", "--wheel-dir", place, ROOT, environment={**os.environ, "TAPOTUN_NATIVE": "no"})
    (wheel,) = place.glob("*.whl")
    return wheel


def fetch() -> list[Path]:
    """The wheels of everything that pyproject.toml depends on, for every target."""
    wanted = project()["dependencies"]
    place = BUILD / "wheels"
    stamp = "\n".join([*wanted, *map(repr, TARGETS)])
    stamp_file = place / "fetched"
    if not stamp_file.exists() or stamp_file.read_text(encoding="utf-8") != stamp:
        shutil.rmtree(place, ignore_errors=True)
        # One version of each package for all targets: that which the first one, with the oldest Python, gets.
        constraints: list[str] = []
        for target in TARGETS:
            print(f"fetching wheels for Python {target.python} on {target.machine}, {target.libc}...", flush=True)
            options: list[str | Path] = ["--python-version", target.python, "--implementation", "cp", "--dest", place]
            for libc in LIBCS[target.libc]:
                options += ["--platform", f"{libc}_{target.machine}"]
            _pip("download", "--only-binary", ":all:", *options, *(constraints or wanted))
            constraints = constraints or [f"{name}=={number}" for name, number in map(_identity, place.glob("*.whl"))]
        stamp_file.write_text(stamp, encoding="utf-8")
    return sorted(place.glob("*.whl"))


def _pip(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-qq", *arguments], check=False, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed, see above")


def _identity(wheel: Path) -> tuple[str, str]:
    """Name and version, by PEP 427."""
    name, number, *_ = wheel.name.split("-")
    return name, number


def _unpack(wheel: Path, tree: Path, suffixes: Set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.is_dir() or any(part in f"/{info.filename}" for part in _LEFT_OUT):
                continue
            if _compiled_for(info.filename) not in {"", *suffixes}:
                continue
            if ".data/" in info.filename:
                raise SystemExit(f"{wheel.name} has {info.filename}, which belongs outside of site-packages: see to it")
            file = tree / info.filename
            data = archive.read(info)
            if file.exists():
                if file.read_bytes() != data:
                    raise SystemExit(f"{wheel.name} has another {info.filename} than a wheel before it")
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def _check(tree: Path, suffixes: Set[str]) -> None:
    """Every compiled module is there for every target."""
    modules: dict[str, set[str]] = {}
    for file in files(tree):
        if suffix := _compiled_for(file.name):
            modules.setdefault(str(file).removesuffix(suffix), set()).add(suffix)
    for module, found in modules.items():
        if found != suffixes:
            raise SystemExit(f"{module} is compiled for {sorted(found)}, and should be for {sorted(suffixes)}")


def _compiled_for(name: str) -> str:
    """The end of a compiled module's name that says for what it is; empty: it is none."""
    _, dot, suffix = name.rpartition("/")[2].partition(".")
    if not suffix.endswith("so"):
        return ""
    if dot + suffix not in {target.suffix for target in TARGETS}:
        raise SystemExit(f"{name}: a compiled module for which its name does not say for what; see to it")
    return dot + suffix


def files(tree: Path) -> Iterator[Path]:
    """Relative to the tree, in a fixed order."""
    return iter(sorted(path.relative_to(tree) for path in tree.rglob("*") if path.is_file()))


def source_date() -> int:
    """Seconds since the epoch that everything built is dated with: $SOURCE_DATE_EPOCH, else the last commit's."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], check=False, cwd=ROOT, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else 315532800  # 1980-01-01, zip's first
