"""Pythons of other kinds of machine, which run here: qemu runs another processor, musl's loader runs programs for musl.

With glibc it is Debian's Python. With musl it is the interpreter in PyPI's freeze-core, from which cx_Freeze makes
programs: no registry that a test machine reaches has a package that is just that. freeze-core lacks zlib, which is
compiled here, and the standard library, which comes from Debian's Python of the same version. The loader is in Debian's
package of musl.

Everything is downloaded into build/foreign and kept there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import ROOT, CommandError

SUITE: Final = "trixie"  # bookworm's musl is too old for Pythons that are built today
PYTHON: Final = "3.13"  # the suite's
FREEZE_CORE: Final = "freeze-core==0.8.1"
PLACE: Final = ROOT / "build" / "foreign"
_DEBIAN: Final = {"x86_64": "amd64", "aarch64": "arm64"}
# zlib without its gz*.c, which Python does not use.
_ZLIB: Final = (
    *("adler32", "compress", "crc32", "deflate", "infback", "inffast"),
    *("inflate", "inftrees", "trees", "uncompr", "zutil"),
)

# freeze-core's executable imports this and calls run(), instead of having a command line.
_COMMAND_LINE: Final = """
import sys

del sys.argv[0]
sys.path.append({library!r})


def run(_):
    if sys.argv[0] == "-c":
        exec(sys.argv.pop(1), {{"__name__": "__main__"}})
    else:
        import runpy

        runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Foreign:
    """One Python. It runs a file, or ``-c`` and a program; it reads no environment and no other options."""

    machine: str
    libc: str

    def __str__(self) -> str:
        return f"{self.machine}-{self.libc}"

    def run(self, argv: Sequence[str | Path]) -> str:
        """Run it to its end. Returns what it wrote to both; raises CommandError if it fails."""
        return _run([*self._interpreter(), *argv], environment={})

    def _interpreter(self) -> list[str | Path]:
        root = PLACE / _DEBIAN[self.machine]
        argv: list[str | Path] = []
        if self.machine != platform.machine():
            argv += [f"qemu-{self.machine}-static", "-L", root]
        if self.libc == "gnu":
            return [*argv, root / f"usr/bin/python{PYTHON}", "-I"]
        return [*argv, root / f"usr/lib/ld-musl-{self.machine}.so.1", PLACE / str(self) / "python"]

    def make(self) -> None:
        """Put it into its place. Raises CommandError."""
        debian = PLACE / _DEBIAN[self.machine]
        if not debian.exists():
            _debian(debian, "python3", "musl")
        if self.libc == "musl":
            _musl(PLACE / str(self), self.machine, debian / f"usr/lib/python{PYTHON}")


FOREIGN: Final = tuple(
    Foreign(machine, libc)
    for machine in _DEBIAN
    for libc in ("gnu", "musl")
    if (machine, libc) != (platform.machine(), "gnu")
)


def make_all() -> None:
    """All of them, unless they are there already."""
    stamp = PLACE / "made-by"
    wanted = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
        shutil.rmtree(PLACE, ignore_errors=True)
        for python in FOREIGN:
            python.make()
        stamp.write_text(wanted, encoding="ascii")


def _debian(root: Path, *packages: str) -> None:
    """These packages of that processor's Debian with all that they depend on, unpacked and not configured."""
    with tempfile.TemporaryDirectory(prefix="foreign-") as place:
        environment = _apt(Path(place), root.name)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "--download-only", *packages]
        _run(install, environment=environment)
        root.mkdir(parents=True)
        for package in sorted(Path(place, "cache/archives").glob("*.deb")):
            _run(["dpkg-deb", "-x", package, root])
    for name in ("bin", "lib", "lib64", "sbin"):  # base-files makes these when it is configured
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")


def _apt(place: Path, architecture: str) -> Mapping[str, str]:
    """An environment for apt-get in which another Debian is all that it knows. Its lists are fetched."""
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True)
    (place / "status").touch()
    uri = _mirror()
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    (place / "sources.list").write_text(
        f"deb {signed} {uri} {SUITE} main\ndeb-src {signed} {uri} {SUITE} main\n", encoding="ascii"
    )
    (place / "apt.conf").write_text(
        f'APT {{ Architecture "{architecture}"; Architectures {{ "{architecture}"; }}; Sandbox::User "root"; }};\n'
        f'Dir {{ State "{place}/state"; State::status "{place}/status"; Cache "{place}/cache"; }};\n'
        f'Dir::Etc {{ SourceList "{place}/sources.list"; SourceParts "/dev/null"; }};\n',
        encoding="ascii",
    )
    environment = {**os.environ, "APT_CONFIG": str(place / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "update", "-qq"], environment=environment)
    return environment


def _mirror() -> str:
    """Where this machine's own apt gets its Debian from, whichever that is: all are in one place."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Origin: Debian"]
    found = [uri for uri in _run(argv).split() if "security" not in uri]
    if not found:
        raise CommandError("apt of this machine knows no Debian; without it no other machine's Python can be had")
    return found[0]


def _musl(place: Path, machine: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="foreign-") as directory:
        wheels = Path(directory)
        only = ["--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
        only += ["--platform", f"musllinux_1_2_{machine}", "--dest", directory]
        _run([sys.executable, "-m", "pip", "download", "-qq", *only, FREEZE_CORE])
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(wheels)
        place.mkdir(parents=True)
        base = f"console-cpython-{PYTHON.replace('.', '')}-{machine}-linux-musl"
        shutil.copy(wheels / "freeze_core/bases" / base, place / "python")
        shutil.copytree(wheels / "freeze_core/lib", place / "lib")
        shutil.copytree(wheels / "freeze_core.libs", place / "lib", dirs_exist_ok=True)
    (place / "python").chmod(0o755)
    (place / "lib/__init__python.py").write_text(_COMMAND_LINE.format(library=str(library)), encoding="utf-8")
    _zlib(place / "lib/libz.so.1", machine)


def _zlib(made: Path, machine: str) -> None:
    """Compile it from Debian's source with the compiler of the packages, which `make pyz` has installed."""
    with tempfile.TemporaryDirectory(prefix="foreign-") as directory:
        place = Path(directory)
        _run(
            ["apt-get", "source", "-qq", "--download-only", "--tar-only", "zlib"],
            environment=_apt(place / "apt", "amd64"),
            cwd=place,
        )
        (source,) = place.glob("*.orig.tar.*")
        (place / "zlib").mkdir()
        _run(["tar", "-xf", source, "-C", place / "zlib", "--strip-components=1"])
        files = [place / "zlib" / f"{name}.c" for name in _ZLIB]
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
        caches = {f"ZIG_{it}_CACHE_DIR": str(ROOT / "build/zig") for it in ("GLOBAL", "LOCAL")}
        _run(
            [*zig, "-O2", "-fPIC", "-shared", "-DHAVE_UNISTD_H", "-Wl,-soname,libz.so.1", *files, "-o", made],
            environment={**os.environ, **caches},
        )


def _run(argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, cwd: str | Path = "/") -> str:
    done = subprocess.run(
        argv,
        check=False,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,  # qemu, on a busy machine
    )
    if done.returncode:
        raise CommandError(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout
