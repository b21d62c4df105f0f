"""How this program was installed. Only a pyz can be replaced by the program itself."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["pyz", "deb", "pip", "container", "checkout"]

LAUNCHER_VARIABLE: Final = "TAPOTUN_LAUNCHER"  # set by launcher.py
_LAUNCHER_BYTES: Final = 64 * 1024  # several times its size
_DEB: Final = "/usr/lib/tapotun"  # packaging/build_deb.py
_CONTAINER_PYTHON: Final = "python-net-admin"  # packaging/Containerfile


@dataclass(frozen=True, slots=True)
class Pyz:
    """The pyz out of which this process runs.

    Attributes:
        path: where it lay when the process started, absolute and without symbolic links.
        fd: the open file, which stays the same if the path gets another one.
        launcher: the launcher that has started it; None: it was started itself, or by another launcher than its own.
    """

    path: str
    fd: int
    launcher: str | None


@dataclass(frozen=True, slots=True)
class Installation:
    """``pyz`` is set for that kind only."""

    kind: Kind
    pyz: Pyz | None = None

    def command(self, config_file: str) -> str:
        """What a person types to install the newest version. ``config_file``: whose ``update`` counts."""
        match self.kind:
            case "pyz":
                path = "tapotun.pyz" if self.pyz is None else self.pyz.path
                return shlex.join([*_program(path, path), "update", "--install", config_file])
            case "deb":
                return "apt update && apt install --only-upgrade tapotun"
            case "pip":
                return f"{shlex.quote(sys.executable)} -m pip install --upgrade 'tapotun-trio[update]'"
            case "container":
                return "build or pull the newer image, and make the container anew from it"
            case "checkout":
                return "git pull"


def find_installation() -> Installation:
    """Find out how this process's program was installed. Reads files of the program only."""
    if (pyz := _running_pyz()) is not None:
        return Installation("pyz", pyz)
    place = Path(str(getattr(sys.modules[__name__], "__file__", None))).resolve().parents[2]  # of the package
    if place == Path(_DEB):
        return Installation("deb")
    if (Path(sys.prefix) / "bin" / _CONTAINER_PYTHON).exists():
        return Installation("container")
    if (place / "pyproject.toml").exists():
        return Installation("checkout")
    return Installation("pip")


def _running_pyz() -> Pyz | None:
    """What packaging/pyz/_tapotun_pyz.py has noted; None: we do not run out of a pyz, or its file is not held open."""
    module = sys.modules.get("_tapotun_pyz")
    path, fd = getattr(module, "running_path", None), getattr(module, "running_fd", None)
    if not isinstance(path, str) or not isinstance(fd, int):
        return None
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    return Pyz(path, fd, launcher if launcher is not None and f"{launcher}.pyz" == path else None)


def _program(path: str, typed: str) -> list[str]:
    """How a person starts the pyz at ``path``, whose name they type as ``typed``."""
    return [typed] if os.access(path, os.X_OK) else [sys.executable, typed]


def launcher_command(pyz: Pyz) -> str | None:
    """What a person types to put the launcher beside the pyz. None: that name is not one that a launcher can have."""
    directory, name = os.path.split(pyz.path)
    launcher = name.removesuffix(".pyz")
    if launcher in ("", name):
        return None
    printed = shlex.join([*_program(pyz.path, f"./{name}"), "launcher"])
    new, old = shlex.quote(f"./{launcher}.new"), shlex.quote(f"./{launcher}")
    # Not over an old one: a service may start it just now, and a disk may be full.
    return f"cd {shlex.quote(directory)} && {printed} >{new} && chmod 755 {new} && mv -T {new} {old}"


def launcher_warning(pyz: Pyz) -> str | None:
    """A warning if the launcher is that of an early checkout of 0.2.0. It locks the directory, not the file that this
    program locks: the two do not exclude each other. None: all is well, or there is no launcher. Blocking."""
    launcher = pyz.path.removesuffix(".pyz")
    try:
        with open(launcher, "rb") as file:
            text = file.read(_LAUNCHER_BYTES)
    except OSError:  # nothing depends on it, and who cannot read it cannot start it either
        return None
    if launcher == pyz.path or b".pyz.trial" not in text or b".pyz.lock" in text:
        return None
    why = f"{launcher} is an older launcher, which may count a start while an update is being installed"
    return f"{why}; print it again: {launcher_command(pyz)}"
