"""Renews requirements.txt, requirements-build.txt and requirements-zig.txt: what the packages are built from.

`make lock` takes the newest versions that pyproject.toml allows. Nothing is installed, and with an index that serves
the metadata of wheels (PEP 658) nothing is downloaded. Read the difference before you commit it: from then on these
files are what the packages consist of, and a file with another digest is refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vendor import BUILD_LOCK, LIBCS, LOCK, MACHINES, ROOT, TARGETS, WANTED, Target, wanted, wanted_to_build

ZIG_LOCK: Final = ROOT / "packaging" / "requirements-zig.txt"
# Pinned by hand, unlike the others: another compiler makes other bytes, and its C library headers decide which machines
# can load the module (cross.py).
ZIG: Final = "ziglang==0.17.1"
_HEADER: Final = "# Made by `make lock`, which packaging/lock.py explains. Not edited by hand.\n"


class Lock:
    """What pip has answered, for one target after the other."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}
        self._digests: dict[str, set[str]] = {}
        self._requires: dict[str, list[Requirement]] = {}

    def add(self, requirements: Sequence[str], options: Sequence[str]) -> None:
        """Resolve these. What was resolved before keeps its version: the packages have one of each for all targets."""
        for entry in _resolved([*requirements, *(f"{name}=={it}" for name, it in self._versions.items())], options):
            metadata, archive = entry["metadata"], entry["download_info"]["archive_info"]
            name = canonicalize_name(metadata["name"])
            self._versions[name] = metadata["version"]
            self._digests.setdefault(name, set()).add(archive["hashes"]["sha256"])
            self._requires[name] = [Requirement(it) for it in metadata.get("requires_dist", [])]

    def check(self, targets: Iterable[Target], requirements: Sequence[str]) -> None:
        """Everything that something in here needs on a target is in here.

        pip answers for the Python that runs it, whatever --python-version says: it evaluates the markers of
        dependencies for its own. Raises SystemExit.
        """
        for target in targets:
            ahead = [Requirement(it) for it in requirements]
            seen: set[tuple[str, frozenset[str]]] = set()
            while ahead:
                requirement = ahead.pop()
                name = canonicalize_name(requirement.name)
                extras = frozenset(requirement.extras)
                if (name, extras) in seen:
                    continue
                seen.add((name, extras))
                if name not in self._versions:
                    raise SystemExit(
                        f"{name} is needed on {target}, but not here: run make lock with Python {target.python}"
                    )
                ahead += [it for it in self._requires[name] if _applies(it, target, extras)]

    def text(self, requirements: Sequence[str]) -> str:
        """The file."""
        lines = [_HEADER, *(f"{WANTED}{it}\n" for it in requirements)]
        for name in sorted(self._versions):
            digests = [f"    --hash=sha256:{it}" for it in sorted(self._digests[name])]
            lines.append(" \\\n".join([f"{name}=={self._versions[name]}", *digests]) + "\n")
        return "".join(lines)


def _resolved(requirements: Sequence[str], options: Sequence[str]) -> list[Mapping[str, Any]]:
    """What pip would install. Raises SystemExit."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report", "-"]
    with tempfile.TemporaryDirectory() as place:
        command += ["--only-binary", ":all:", "--target", place, *options, *requirements]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit("pip could not resolve the requirements, see above")
    found: list[Mapping[str, Any]] = json.loads(done.stdout)["install"]
    return found


def _applies(requirement: Requirement, target: Target, extras: Iterable[str]) -> bool:
    if requirement.marker is None:
        return True
    environment = {
        "implementation_name": "cpython",
        "implementation_version": f"{target.python}.0",
        "os_name": "posix",
        "platform_machine": target.machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{target.python}.0",
        "python_version": target.python,
        "sys_platform": "linux",
    }
    return any(requirement.marker.evaluate({**environment, "extra": it}) for it in ("", *extras))


def main() -> None:
    """Write the files."""
    packages = Lock()
    for target in TARGETS:
        print(f"resolving for {target}...", flush=True)
        packages.add(wanted(), target.pip_options)
    packages.check(TARGETS, wanted())
    _write(LOCK, packages.text(wanted()))
    # Pure Python, so what this machine gets is right for every other.
    build = Lock()
    build.add(wanted_to_build(), [])
    build.check(TARGETS, wanted_to_build())
    _write(BUILD_LOCK, build.text(wanted_to_build()))
    zig = Lock()
    for machine in MACHINES:
        for libc in LIBCS:
            zig.add([ZIG], Target("3.11", machine, libc).pip_options)
    _write(ZIG_LOCK, zig.text([ZIG]))


def _write(lock: Path, text: str) -> None:
    lock.write_text(text, encoding="utf-8")
    print(lock.relative_to(ROOT))


if __name__ == "__main__":
    main()
