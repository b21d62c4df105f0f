"""The program and all that it needs as one tree of files, for every platform at once.

What is pure Python is there once. Of what is compiled there is a file for each version of Python, processor and C
library, and all of them may lie in one directory, since their names say for which they are:
``_core.cpython-311-x86_64-linux-gnu.so``.

The wheels come from pip, into build/wheels; what is there already is not fetched again. requirements.txt beside this
file has the version and the digests of each (lock.py), and no other file is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from build.env import DefaultIsolatedEnv

from build import ProjectBuilder

ROOT: Final = Path(__file__).resolve().parents[1]
BUILD: Final = ROOT / "build"

LOCK: Final = ROOT / "packaging" / "requirements.txt"
"""What goes into the packages: each with its version, and the digests of its wheels for all targets."""
BUILD_LOCK: Final = ROOT / "packaging" / "requirements-build.txt"
"""What builds our own wheel, in the same way."""
WANTED: Final = "# wanted: "
"""How a line of a lock begins that says which requirement of pyproject.toml it was made for."""

PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
# Newest first: what musl and glibc of these machines can load.
LIBCS: Final = {
    "gnu": ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014"),
    "musl": ("musllinux_1_2", "musllinux_1_1"),
}
MACHINES: Final = ("x86_64", "aarch64")

# Of no use where it runs. RECORD would be untrue of a tree of many wheels.
_LEFT_OUT: Final = (
    *("/_tests/", "/test_data/", "/test-ed25519-upstream.sh", "/.gitignore"),
    *(".dist-info/RECORD", ".dist-info/WHEEL", ".pyi"),
)


class Target(NamedTuple):
    """One kind of machine."""

    python: str
    machine: str
    libc: str

    def __str__(self) -> str:
        return f"Python {self.python} on {self.machine}, {self.libc}"

    @property
    def suffix(self) -> str:
        """With which the name of a module compiled for it ends."""
        return f".cpython-{self.python.replace('.', '')}-{self.machine}-linux-{self.libc}.so"

    @property
    def pip_options(self) -> list[str]:
        """How pip is told that it is for such a machine."""
        tags = [f"{libc}_{self.machine}" for libc in LIBCS[self.libc]]
        return ["--python-version", self.python, "--implementation", "cp", *(f"--platform={tag}" for tag in tags)]


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


def wanted() -> list[str]:
    """What the packages need, as pyproject.toml says it: the program's dependencies and those of the update check."""
    found = project()
    return [*found["dependencies"], *found["optional-dependencies"].get("update", [])]


def wanted_to_build() -> list[str]:
    """What pyproject.toml has in [build-system]."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    return found


def own_wheel() -> Path:
    """The wheel of this checkout without the C module."""
    place = BUILD / "own-wheel"
    shutil.rmtree(place, ignore_errors=True)
    with build_environment() as backend:
        return build_wheel(ROOT, place, backend, {**os.environ, "TAPOTUN_NATIVE": "no"})


@contextmanager
def build_environment() -> Iterator[DefaultIsolatedEnv]:
    """A virtual environment with what BUILD_LOCK has, and nothing else. Raises SystemExit."""
    _fetch(BUILD_LOCK, wanted_to_build(), BUILD / "wheels-build", {"that build": []})
    with DefaultIsolatedEnv() as backend:
        # These lines are a requirements file of pip's.
        offline = ["--no-index", f"--find-links {(BUILD / 'wheels-build').as_uri()}", "--require-hashes"]
        backend.install([*offline, *(str(it) for it in locked(BUILD_LOCK))])
        yield backend


def build_wheel(source: Path, place: Path, backend: DefaultIsolatedEnv, environment: Mapping[str, str]) -> Path:
    """A wheel of that source tree, built with these environment variables. Raises SystemExit."""

    def run(cmd: Sequence[str], cwd: str | None = None, extra_environ: Mapping[str, str] | None = None) -> None:
        """As pyproject_hooks has its runners, in this environment and not in ours."""
        done = subprocess.run(
            cmd, check=False, cwd=cwd, env={**environment, **(extra_environ or {})}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}no wheel, see above")

    return Path(ProjectBuilder.from_isolated_env(backend, source, run).build("wheel", place))


class Locked(NamedTuple):
    """One package of a lock."""

    name: str
    version: str
    sha256: frozenset[str]

    def __str__(self) -> str:
        """As pip's requirements files have it, in one line."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{it}" for it in sorted(self.sha256))])


def locked(lock: Path) -> list[Locked]:
    """What a lock has, in its order. Raises SystemExit for a line that lock.py does not write."""
    found = []
    for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement, *options = line.split()
        name, equal, number = requirement.partition("==")
        digests = frozenset(it.removeprefix("--hash=sha256:") for it in options)
        if not equal or not digests or any(len(it) != 64 for it in digests):
            raise SystemExit(
                f"{lock.relative_to(ROOT)}: {line}: not a package with its sha256; make lock renews the file"
            )
        found.append(Locked(name, number, digests))
    return found


def fetch() -> list[Path]:
    """The wheels of everything that goes into the packages, for every target. Raises SystemExit."""
    return _fetch(LOCK, wanted(), BUILD / "wheels", {f"for {target}": target.pip_options for target in TARGETS})


def _fetch(lock: Path, requirements: Sequence[str], place: Path, platforms: Mapping[str, Sequence[str]]) -> list[Path]:
    text = lock.read_text(encoding="utf-8")
    if [line.removeprefix(WANTED) for line in text.splitlines() if line.startswith(WANTED)] != list(requirements):
        raise SystemExit(f"{lock.relative_to(ROOT)} was made for other requirements than pyproject.toml has: make lock")
    digests = {digest for it in locked(lock) for digest in it.sha256}
    stamp = f"{text}{platforms}"
    stamp_file = place / "fetched"
    if not stamp_file.exists() or stamp_file.read_text(encoding="utf-8") != stamp:
        shutil.rmtree(place, ignore_errors=True)
        for purpose, options in platforms.items():
            print(f"fetching wheels {purpose}...", flush=True)
            pip(
                "download",
                "--require-hashes",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--dest",
                place,
                *options,
                "-r",
                lock,
            )
        stamp_file.write_text(stamp, encoding="utf-8")
    wheels = sorted(place.glob("*.whl"))
    for wheel in wheels:  # pip has compared those that it fetched just now; these may be older
        if hashlib.sha256(wheel.read_bytes()).hexdigest() not in digests:
            raise SystemExit(f"{wheel.relative_to(ROOT)} is not the file of {lock.relative_to(ROOT)}: remove {place}")
    return wheels


def pip(*arguments: str | Path) -> None:
    """Run it. Raises SystemExit if it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", "-qq", *arguments], check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed, see above")


def serves(wheel: Path, suffixes: Set[str]) -> bool:
    """Whether something of this wheel is in a tree for these targets: what they load, or what is for every machine."""
    with zipfile.ZipFile(wheel) as archive:
        compiled = {_compiled_for(name) for name in archive.namelist()} - {""}
    return not compiled or not compiled.isdisjoint(suffixes)


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
