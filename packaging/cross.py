"""Compiles the optional C module for every machine that the packages are for, whatever machine this is.

The compiler is the clang in PyPI's ziglang. It brings the headers and symbol versions of every glibc, and musl. So this
machine contributes nothing but Python's headers. native.py compiles, with the same flags for all. Warnings are errors.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import native
from vendor import BUILD, MACHINES


class Platform(NamedTuple):
    """A kind of machine, whatever its Python."""

    machine: str
    libc: str

    @property
    def tag(self) -> str:
        """What the wheel's name has, by PEP 600 and PEP 656: the oldest C library that can load the module."""
        return f"{ {'gnu': 'manylinux_2_28', 'musl': 'musllinux_1_2'}[self.libc] }_{self.machine}"

    @property
    def zig_target(self) -> str:
        """The same for zig, which takes the processor's baseline."""
        return f"{self.machine}-linux-{ {'gnu': 'gnu.2.28', 'musl': 'musl'}[self.libc] }"


PLATFORMS: Final = tuple(Platform(machine, libc) for machine in MACHINES for libc in ("gnu", "musl"))
_OURS: Final = ("CC", "CFLAGS", "LDFLAGS", "TAPOTUN_NATIVE", "TAPOTUN_NATIVE_PLATFORM", "TAPOTUN_NATIVE_INCLUDE")


def environment(platform: Platform | None) -> Mapping[str, str]:
    """The environment for a build with the module for that platform, which cannot be left out; None: without it."""
    found = {name: value for name, value in os.environ.items() if name not in _OURS}
    if platform is None:
        return found | {"TAPOTUN_NATIVE": "no"}
    return found | {
        "TAPOTUN_NATIVE": "require",
        "TAPOTUN_NATIVE_PLATFORM": platform.tag,
        "TAPOTUN_NATIVE_INCLUDE": str(_include()),
        "CC": shlex.join([*_zig(), "cc", "-target", platform.zig_target]),
        # This compiler is always the same one, so a warning is news. It sees code that those here do not (ARM64, musl).
        "CFLAGS": shlex.join(native.STRICT),
        # Else in the home directory. Compiled C libraries are in the first, what is ours is in the second.
        "ZIG_GLOBAL_CACHE_DIR": str(BUILD / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(BUILD / "zig-local"),
    }


def module(platform: Platform) -> Path:
    """The module for that platform, compiled. Raises SystemExit."""
    made = BUILD / "native" / platform.tag / Path(native.MODULE).name
    try:
        native.compile_module(made, environment=environment(platform))
    except native.NotBuilt as exc:
        raise SystemExit(f"{exc.output}{native.SOURCE} for {platform.tag}: {exc}") from None
    return made


def _zig() -> list[str]:
    if find_spec("ziglang") is None:
        raise SystemExit("no ziglang here; `make dist`, `make pyz` and `make deb` install it")
    return [sys.executable, "-m", "ziglang"]


@cache
def _include() -> Path:
    """A copy of Python's headers that serves every platform.

    Debian's pyconfig.h includes one of another directory for each processor, and this machine has that of its own
    processor only. What the limited API needs of it is the same on every 64-bit Linux, so it is used for all.
    """
    source = Path(sysconfig.get_path("include"))
    if not (source / "Python.h").exists():
        raise SystemExit(f"no {source}/Python.h")
    own = source.parent / str(sysconfig.get_config_var("MULTIARCH")) / source.name / "pyconfig.h"
    made = BUILD / "native" / "include"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(source, made)
    if own.exists():
        shutil.copyfile(own, made / "pyconfig.h")
    return made
