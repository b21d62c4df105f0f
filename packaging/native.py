"""Compiles the optional C module, tapotun_trio/datapath/_pump.c. Only the standard library is needed.

The program is complete without it. So an installation from source on a machine without a compiler gets the program
without the module, and no error. TAPOTUN_NATIVE decides:

    auto      (default) compile it if this machine can
    no        do not; remove what an earlier build left in the source tree
    require   fail if it cannot be compiled: for packages and tests, which must not lack it unnoticed

The module uses CPython's limited API of 3.11, so one file serves every CPython from 3.11 on. PyPy and the free-threaded
CPython have no stable ABI that it could use.

$CC, $CFLAGS and $LDFLAGS are respected; these flags come last on the command line. To build for another machine, set
$CC to a cross compiler, and:

    TAPOTUN_NATIVE_PLATFORM   the platform tag of the wheel, such as manylinux_2_28_aarch64
    TAPOTUN_NATIVE_INCLUDE    the directory of Python.h
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = "tapotun_trio/datapath/_pump.c"
MODULE: Final = "tapotun_trio/datapath/_pump.abi3.so"
# Of the wheel with the module: the oldest CPython, and the stable ABI.
TAG: Final = "cp311-abi3"

# The module reads what strangers send, in a process with privileges.
HARDENING: Final = (
    "-fstack-protector-strong",
    "-U_FORTIFY_SOURCE",  # some distributions' compilers define it, and a second definition is a warning
    "-D_FORTIFY_SOURCE=2",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,-z,noexecstack",
)
WARNINGS: Final = ("-Wall", "-Wextra")
# For us only: what another compiler thinks of a conversion need not trouble anybody who installs the program.
STRICT: Final = ("-Werror", "-Wconversion", "-Wshadow")
FLAGS: Final = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-s", *HARDENING, *WARNINGS)
_COMPILERS: Final = ("cc", "gcc", "clang")
_STAMP: Final = "build/native/in-place"


class NotBuilt(Exception):
    """The module cannot be compiled here. The text is one line for people; `output` is what the compiler wrote."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


def wish(environment: Mapping[str, str] = os.environ) -> str:
    """What TAPOTUN_NATIVE says: auto, no or require. Raises SystemExit if it says something else."""
    said = environment.get("TAPOTUN_NATIVE") or "auto"
    if said not in ("auto", "no", "require"):
        raise SystemExit(f"TAPOTUN_NATIVE={said}: must be auto, no or require")
    return said


def compile_module(output: Path, *extra: str, root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> None:
    """Compile it to this file. `extra`: more flags. Raises NotBuilt, and then leaves no such file."""
    command = [*_compiler(environment), *FLAGS, f"-I{_include(environment)}", *extra]
    # By their relative names, so that no path of this machine is in the file.
    command += [SOURCE, "-o", os.path.relpath(output, root)]
    command += [*shlex.split(environment.get("CFLAGS", "")), *shlex.split(environment.get("LDFLAGS", ""))]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    done = subprocess.run(
        command, check=False, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    if done.returncode:
        output.unlink(missing_ok=True)
        raise NotBuilt(f"{command[0]} failed, exit code {done.returncode}", f"{shlex.join(command)}\n{done.stdout}")
    if done.stdout:
        print(done.stdout, end="", file=sys.stderr)  # warnings


def build_in_place(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> bool:
    """Put the module beside its source, for a program that runs from the source tree.

    Does nothing if it is up to date. Returns whether it is there. Raises NotBuilt, and then removes what is there: a
    module of another source is worse than none.
    """
    module, stamp = root / MODULE, root / _STAMP
    if wish(environment) == "no":
        module.unlink(missing_ok=True)
        stamp.unlink(missing_ok=True)
        return False
    try:
        wanted = _fingerprint(root, environment)
        if module.exists() and stamp.exists() and stamp.read_text(encoding="ascii") == wanted + _digest(module):
            return True
        # To another name first: a process may have loaded the old file, and must keep it.
        part = module.with_name(f"_pump.{os.getpid()}.part")
        compile_module(part, root=root, environment=environment)
    except NotBuilt:
        module.unlink(missing_ok=True)
        raise
    part.replace(module)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(wanted + _digest(module), encoding="ascii")
    return True


def _fingerprint(root: Path, environment: Mapping[str, str]) -> str:
    """A digest of everything that decides what the compiled file is."""
    parts = [str(_compiler(environment)), str(_include(environment)), str(FLAGS)]
    parts += [environment.get(name, "") for name in ("CFLAGS", "LDFLAGS")]
    # The source, and what it includes from beside it.
    parts += [_digest(file) for file in sorted((root / SOURCE).parent.glob("*.c"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() + " "


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _compiler(environment: Mapping[str, str]) -> list[str]:
    path = environment.get("PATH")
    if command := shlex.split(environment.get("CC", "")):
        if shutil.which(command[0], path=path) is None:
            raise NotBuilt(f"no {command[0]}, which $CC names")
        return command
    for name in _COMPILERS:
        if shutil.which(name, path=path):
            return [name]
    raise NotBuilt("no C compiler")


def _include(environment: Mapping[str, str]) -> Path:
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise NotBuilt("this Python has no stable ABI")
    place = Path(environment.get("TAPOTUN_NATIVE_INCLUDE") or sysconfig.get_path("include"))
    if not (place / "Python.h").exists():
        raise NotBuilt(f"no {place}/Python.h")
    return place


def main(argv: Sequence[str] | None = None) -> None:
    """What the Makefile calls."""
    parser = argparse.ArgumentParser(description="Compiles the optional C module; see the file itself.")
    parser.add_argument("action", choices=("in-place", "check"), help="check: all warnings are errors; kept nowhere")
    action = parser.parse_args(argv).action
    try:
        if action == "in-place":
            build_in_place()
            return
        with tempfile.TemporaryDirectory() as place:
            compile_module(Path(place, "_pump.abi3.so"), *STRICT)
            for compiler in ("gcc", "clang"):  # each warns of other things
                if "CC" not in os.environ and shutil.which(compiler):
                    compile_module(Path(place, "_pump.abi3.so"), *STRICT, environment={**os.environ, "CC": compiler})
    except NotBuilt as exc:
        if action == "in-place" and wish() == "auto":
            print(f"without the optional C module: {exc}")
            return
        raise SystemExit(f"{exc.output}{SOURCE}: {exc}") from None


if __name__ == "__main__":
    main()
