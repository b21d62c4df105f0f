"""The optional C module: built from source where that is possible, compiled for other machines, and loaded there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio import __version__
from tests.harness import ROOT

from .conftest import machine
from .foreign import FOREIGN, Foreign
from .pythons import EXERCISE, EXERCISED, pythons

pytestmark = pytest.mark.netns  # `make dist` installs what builds it

NAME: Final = f"tapotun_trio-{__version__}"
MODULE: Final = "tapotun_trio/datapath/_pump.abi3.so"
PLATFORMS: Final = tuple(f"{libc}_{it}" for it in ("x86_64", "aarch64") for libc in ("manylinux_2_28", "musllinux_1_2"))
FORTIFIED: Final = r"\b__\w+_chk\b"  # such as __memcpy_chk, and not __stack_chk_fail
_OURS: Final = ("TAPOTUN_NATIVE", "TAPOTUN_NATIVE_PLATFORM", "TAPOTUN_NATIVE_INCLUDE", "CC", "CFLAGS", "LDFLAGS")


def environment(**more: str) -> Mapping[str, str]:
    """Ours, without what says how to build."""
    return {**{name: value for name, value in os.environ.items() if name not in _OURS}, **more}


def run(argv: Sequence[str | Path], **more: str) -> subprocess.CompletedProcess[str]:
    """With these variables."""
    return subprocess.run(
        argv, check=False, capture_output=True, text=True, cwd="/", env=environment(**more), timeout=600
    )


def wheel_for(dist: Path, tag: str) -> Path:
    return dist / f"{NAME}-cp311-abi3-{tag}.whl"


@pytest.fixture(scope="session")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The wheels as directories that a Python can import from, by the tag of the platform."""
    found = {tag: tmp_path_factory.mktemp(tag) for tag in PLATFORMS}
    for tag, place in found.items():
        with zipfile.ZipFile(wheel_for(dist, tag)) as archive:
            archive.extractall(place)
    return found


# ------------------------------------------------------------------ wheels


@pytest.mark.parametrize("tag", PLATFORMS)
def test_a_wheel_with_the_module_has_what_the_pure_one_has(dist: Path, tag: str) -> None:
    with (
        zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as pure,
        zipfile.ZipFile(wheel_for(dist, tag)) as native,
    ):
        assert set(native.namelist()) - set(pure.namelist()) == {MODULE}
        assert set(pure.namelist()) <= set(native.namelist())
        for name in pure.namelist():
            if not name.endswith((".dist-info/RECORD", ".dist-info/WHEEL")):
                assert native.read(name) == pure.read(name), name
        said = native.read(f"{NAME}.dist-info/WHEEL").decode()
    assert f"\nTag: cp311-abi3-{tag}\n" in said
    assert "\nRoot-Is-Purelib: false\n" in said


@pytest.mark.parametrize("tag", PLATFORMS)
def test_the_module_is_hardened_and_asks_for_no_more_than_its_tag_says(unpacked: Mapping[str, Path], tag: str) -> None:
    file = unpacked[tag] / MODULE
    assert machine(file.read_bytes()) == ("aarch64" if tag.endswith("aarch64") else "x86_64")
    said = {option: run(["readelf", "-W", option, file]).stdout for option in ("-d", "-l", "--dyn-syms")}
    # Full RELRO, and no stack that can be executed.
    assert "GNU_RELRO" in said["-l"]
    assert "BIND_NOW" in said["-d"]
    assert re.search(r"GNU_STACK.* RW +0", said["-l"])
    assert "PATH" not in said["-d"]  # RPATH, RUNPATH
    assert "TEXTREL" not in said["-d"]
    symbols = said["--dyn-syms"]
    assert "__stack_chk_fail" in symbols
    # _FORTIFY_SOURCE: glibc has checking functions, musl has none.
    assert bool(re.search(FORTIFIED, symbols)) == ("many" in tag)
    # libc and nothing else. (Before glibc 2.34 dlopen was in a part of its own, which is still there.)
    libraries = set(re.findall(r"\(NEEDED\).*\[(.+)]", said["-d"]))
    glibc = {"libc.so.6", "libdl.so.2", "ld-linux-aarch64.so.1"}
    assert libraries <= glibc if "many" in tag else libraries == {"libc.so"}
    versions = [tuple(map(int, it.split("."))) for it in re.findall(r"@GLIBC_([\d.]+)", symbols)]
    assert max(versions, default=(0,)) <= (2, 28)
    assert bool(versions) == ("many" in tag)
    # Visible is what Python looks for.
    visible = re.findall(r"(?m) GLOBAL +DEFAULT +\d+ (\S+)$", symbols)
    assert visible == ["PyInit__pump"]
    assert str(ROOT).encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("version", "accepted", "expected"),
    [
        ("3.11", ["manylinux_2_28_x86_64", "manylinux2014_x86_64"], "cp311-abi3-manylinux_2_28_x86_64"),
        ("3.13", ["manylinux_2_28_aarch64"], "cp311-abi3-manylinux_2_28_aarch64"),
        ("3.13", ["musllinux_1_2_x86_64"], "cp311-abi3-musllinux_1_2_x86_64"),
        ("3.11", ["musllinux_1_2_aarch64"], "cp311-abi3-musllinux_1_2_aarch64"),
        ("3.12", ["manylinux2014_x86_64"], "py3-none-any"),  # an older glibc
        ("3.14", ["linux_armv7l"], "py3-none-any"),
        ("3.12", ["manylinux_2_31_riscv64"], "py3-none-any"),
    ],
)
def test_pip_takes_the_one_for_its_machine(
    dist: Path, tmp_path: Path, version: str, accepted: Sequence[str], expected: str
) -> None:
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-qq",
        "--no-deps",
        "--no-index",
        "--find-links",
        dist,
    ]
    argv += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", version, "--dest", tmp_path]
    done = run([*argv, *(word for it in accepted for word in ("--platform", it)), f"tapotun-trio=={__version__}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [it.name for it in tmp_path.iterdir()] == [f"{NAME}-{expected}.whl"]


@pytest.mark.parametrize("python", list(pythons()), ids=lambda it: it.name)
def test_one_file_is_loaded_and_run_by_every_python_of_this_machine(unpacked: Mapping[str, Path], python: Path) -> None:
    place = unpacked[f"manylinux_2_28_{platform.machine()}"]
    done = run([python, "-I", "-W", "error", "-c", EXERCISE, place])
    assert (done.returncode, done.stdout, done.stderr) == (0, EXERCISED.format(place / MODULE), "")


@pytest.mark.parametrize("python", FOREIGN, ids=str)
def test_on_other_machines_it_is_loaded_and_run_too(
    unpacked: Mapping[str, Path], foreign: object, python: Foreign
) -> None:
    place = unpacked[f"{ {'gnu': 'manylinux_2_28', 'musl': 'musllinux_1_2'}[python.libc] }_{python.machine}"]
    assert python.run(["-c", EXERCISE, place]) == EXERCISED.format(place / MODULE)


# ------------------------------------------------------------------ from source


@pytest.fixture
def source(dist: Path, tmp_path: Path) -> Path:
    """The sdist, unpacked."""
    subprocess.run(["tar", "-xf", dist / f"{NAME}.tar.gz", "-C", tmp_path], check=True)
    return tmp_path / NAME


def build(source: Path, place: Path, *options: str, **more: str) -> tuple[list[Path], subprocess.CompletedProcess[str]]:
    """What `pip wheel` makes of it, with the hatchling of this environment."""
    argv: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    argv += ["--disable-pip-version-check", "--wheel-dir", place, *options, source]
    done = run(argv, **more)
    return sorted(place.glob("*.whl")), done


def test_with_a_compiler_the_module_is_compiled(source: Path, tmp_path: Path) -> None:
    (wheel,), done = build(source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(rf"{NAME}-cp311-abi3-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "tree")
    done = run([sys.executable, "-I", "-c", EXERCISE, tmp_path / "tree"])
    assert (done.stdout, done.stderr) == (EXERCISED.format(tmp_path / "tree" / MODULE), "")


@pytest.mark.parametrize(
    "lacking",
    [{"PATH": "/nonexistent"}, {"CC": "/nonexistent/cc"}, {"TAPOTUN_NATIVE_INCLUDE": "/nonexistent"}, {"CC": "false"}],
    ids=["no compiler", "CC is not there", "no Python.h", "it does not compile"],
)
def test_without_one_it_is_built_all_the_same_and_nothing_alarms(
    source: Path, tmp_path: Path, lacking: dict[str, str]
) -> None:
    (wheel,), done = build(source, tmp_path / "out", **lacking)
    assert done.returncode == 0, done.stdout + done.stderr
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert MODULE not in archive.namelist()
    assert not re.search(r"(?i)error|fail|warning|compiler|_pump", done.stdout + done.stderr)
    # The reason is there for anyone who asks.
    done = build(source, tmp_path / "out", "--verbose", **lacking)[1]
    assert "Without the optional C module: " in done.stdout + done.stderr
    # It is an error where that was asked for.
    wheels, done = build(source, tmp_path / "required", TAPOTUN_NATIVE="require", **lacking)
    assert done.returncode != 0
    assert wheels == []
    assert "TAPOTUN_NATIVE=require, but tapotun_trio/datapath/_pump.c: " in done.stdout + done.stderr


def test_it_can_be_left_out(source: Path, tmp_path: Path) -> None:
    (wheel,), done = build(source, tmp_path / "out", TAPOTUN_NATIVE="no")
    assert done.returncode == 0, done.stdout + done.stderr
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    wheels, done = build(source, tmp_path / "maybe", TAPOTUN_NATIVE="maybe")
    assert done.returncode != 0
    assert wheels == []
    assert "TAPOTUN_NATIVE=maybe: must be auto, no or require" in done.stdout + done.stderr


def test_an_editable_installation_has_it_beside_its_source(source: Path, tmp_path: Path) -> None:
    """What lies in the source tree then gets into no wheel and no sdist."""
    out, python = tmp_path / "out", tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    done = run([python, "-m", "pip", "install", "-qq", "--no-deps", "--editable", source])
    assert done.returncode == 0, done.stdout + done.stderr
    assert run([python, "-I", "-c", EXERCISE]).stdout == EXERCISED.format(source / MODULE)
    (wheel,), done = build(source, out, TAPOTUN_NATIVE="no")
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(wheel) as archive:
        assert MODULE not in archive.namelist()
    done = run([sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, source])
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(out / f"{NAME}.tar.gz") as sdist:
        assert f"{NAME}/{MODULE}" not in sdist.getnames()
        assert f"{NAME}/{MODULE.replace('abi3.so', 'c')}" in sdist.getnames()


def test_in_place_it_is_compiled_when_its_source_has_changed(source: Path) -> None:
    module, c_file = source / MODULE, source / "tapotun_trio/datapath/_pump.c"

    def compiled(**more: str) -> subprocess.CompletedProcess[str]:
        return run([sys.executable, source / "packaging/native.py", "in-place"], **more)

    def number() -> int:
        """Of the file: another one after each compilation."""
        return module.stat().st_ino

    assert compiled().returncode == 0
    kept = module.with_name("kept")  # so that its inode is not used again
    os.link(module, kept)
    first = number()
    done = compiled()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert number() == first
    # Another compilation, whatever the dates say, also of a file that it includes.
    text = c_file.read_text(encoding="utf-8")
    for changed in (c_file, c_file.with_name("_tls.c")):
        date = changed.stat()
        changed.write_text(changed.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        os.utime(changed, ns=(date.st_atime_ns, date.st_mtime_ns))
        before = module.with_name(f"before-{changed.name}")
        os.link(module, before)
        assert compiled().returncode == 0
        assert number() != before.stat().st_ino
    assert number() != first
    assert compiled(CFLAGS="-O1").returncode == 0
    assert b"_pump" in module.read_bytes()
    # A file that somebody else put there does not stay.
    shutil.copy(kept, module)
    module.write_bytes(b"other")
    assert compiled().returncode == 0
    assert module.read_bytes() != b"other"
    # What does not compile any more is not there any more: an old module with new Python would be worse.
    c_file.write_text(text + "#error no\n", encoding="utf-8")
    done = compiled()
    assert (done.returncode, done.stderr) == (0, "")
    assert "without the optional C module: " in done.stdout
    assert not module.exists()
    done = compiled(TAPOTUN_NATIVE="require")
    assert done.returncode == 1
    assert "error no" in done.stderr
    c_file.write_text(text, encoding="utf-8")
    assert compiled().returncode == 0
    assert module.exists()
    assert compiled(TAPOTUN_NATIVE="no").returncode == 0
    assert not module.exists()


def test_a_warning_is_an_error_for_developers_only(source: Path) -> None:
    c_file = source / "tapotun_trio/datapath/_pump.c"
    native: list[str | Path] = [sys.executable, source / "packaging/native.py"]
    done = run([*native, "check"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    c_file.write_text(c_file.read_text(encoding="utf-8") + "static int unused;\n", encoding="utf-8")
    done = run([*native, "check"])
    assert done.returncode == 1
    assert "unused" in done.stderr
    assert not (source / MODULE).exists()
    done = run([*native, "in-place"])
    assert done.returncode == 0
    assert (source / MODULE).exists()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_warning_is_an_error_for_the_packages(source: Path, machine: str) -> None:
    """The compiler that builds for other machines sees code that the compilers here do not."""
    c_file = source / "tapotun_trio/datapath/_pump.c"
    c_file.write_text(
        c_file.read_text(encoding="utf-8") + f"#ifdef __{machine}__\nstatic int unused;\n#endif\n", encoding="utf-8"
    )
    program = "import cross, sys; cross.module(cross.Platform(sys.argv[1], 'musl'))"
    done = run([sys.executable, "-c", program, machine], PYTHONPATH=str(source / "packaging"))
    assert done.returncode == 1, done.stdout
    assert re.search(r"error: .*unused", done.stderr), done.stderr


def test_what_is_compiled_here_is_hardened_too() -> None:
    """The one that the tests of this tree run with: there is one, unless somebody asked for none."""
    if os.environ.get("TAPOTUN_NATIVE") == "no":
        pytest.skip("TAPOTUN_NATIVE=no")
    said = run(["readelf", "-W", "-d", "-l", "--dyn-syms", ROOT / MODULE]).stdout
    for word in ("GNU_RELRO", "BIND_NOW", "__stack_chk_fail"):
        assert word in said
    assert re.search(FORTIFIED, said)
