"""tapotun.pyz: one file that runs wherever there is a Python."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.harness import EXAMPLES, ROOT, Lab, Process, ping, upload, wait_for_ping
from tests.harness.updates import Repository, serving
from tests.netns.topologies import RETRY_S, TUNNEL_SERVER, UPLOADING, allowed, cable, client_config, server_config
from tests.unit.test_early_signals import SITE

from .conftest import machine, make
from .foreign import FOREIGN, Foreign
from .pythons import EXERCISE, EXERCISED, NATIVE, PURE, pythons

pytestmark = pytest.mark.netns

NOBODY: Final = 65534
ADMIN: Final = {"listen": "127.0.0.1:9090", "token": "raw-token-of-admin"}
SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


def run(argv: Sequence[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    """With nothing of our environment, so without HOME too."""
    options = {"cwd": "/", "env": {"PATH": SYSTEM_PATH}, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        argv, check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )
    return done


@pytest.mark.parametrize("moment", ["_tapotun_pyz", "tapotun_trio.cli", "msgspec", "trio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_it_is_being_imported(pyz: Path, tmp_path: Path, number: signal.Signals, moment: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    config = tmp_path / "client.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps([client_config(server="http://127.0.0.1:1/ip")]), encoding="utf-8")
    env = {"PATH": SYSTEM_PATH, "PYTHONPATH": str(tmp_path), "MOMENT": moment, "SIGNAL": str(int(number))}
    done = run([sys.executable, pyz, config], env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def public(pyz: Path) -> Iterator[Path]:
    """A copy in a directory that every user may enter, and nobody but root may write to."""
    directory = Path(tempfile.mkdtemp(prefix="tapotun-", dir="/opt"))
    try:
        shutil.copy(pyz, directory)
        (directory / "tapotun.pyz").chmod(0o555)
        directory.chmod(0o555)
        yield directory / "tapotun.pyz"
    finally:
        shutil.rmtree(directory)


def test_it_starts_by_itself_with_an_empty_environment(pyz: Path) -> None:
    done = run([pyz, "--version"])
    assert (done.stdout, done.stderr, done.returncode) == (NATIVE, "", 0)


@pytest.mark.parametrize("python", list(pythons()), ids=lambda it: it.name)
def test_it_runs_with_every_python_of_this_machine(pyz: Path, python: Path, tmp_path: Path) -> None:
    assert run([python, pyz, "--version"]).stdout == NATIVE
    config = tmp_path / "hub.json"
    config.write_text((EXAMPLES / "server-corp.json").read_text(encoding="utf-8"), encoding="utf-8")
    done = run([python, "-W", "error", pyz, "validate-config", config])
    assert (done.stdout, done.stderr, done.returncode) == (f"{config}: valid: 1 server\n", "", 0)
    config.write_text('[{"name": "tun0", "port": "8080"}]', encoding="utf-8")
    assert run([python, pyz, "validate-config", config]).returncode == 1
    tokens = run([python, pyz, "token"])
    assert tokens.stdout.startswith('client:  "token": ')
    assert tokens.returncode == 0


@pytest.mark.parametrize("python", list(pythons()), ids=lambda it: it.name)
def test_it_looks_for_updates(pyz: Path, python: Path, tmp_path: Path) -> None:
    """With processes that have no rights, and load nothing once they have none: only root can read the program here."""
    repository = Repository(tmp_path / "repository")
    content = os.urandom(100_000)
    repository.add("99.0", content)
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    program = shutil.copy(pyz, place / "tapotun.pyz")
    with serving(repository.directory) as server:
        source = ["--url", server.url, "--root-file", str(repository.root_file)]
        output = tmp_path / "new"
        argv = [python, "-W", "error", program, "update", *source, "--output", output]
        done = run(argv, env={"PATH": SYSTEM_PATH, "STATE_DIRECTORY": str(tmp_path / "state")})
    assert (done.returncode, done.stderr) == (4, "")
    assert output.read_bytes() == content


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.10"])
def test_an_old_python_is_told_so_in_one_line(pyz: Path, version: str) -> None:
    """Also one that this machine does not have: what it would run is compiled, and asked."""
    with zipfile.ZipFile(pyz) as archive:
        source = archive.read("__main__.py").decode()
    major, minor = map(int, version.split("."))
    as_old = f"import sys\nsys.version_info = ({major}, {minor}, 0, 'final', 0)\nsys.argv[0] = 'tapotun.pyz'\n"
    done = run([sys.executable, "-I", "-c", as_old + source])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("tapotun: needs Python 3.11 or newer, and ")
    assert f" is {version}.0: start it with another, such as python3.13 tapotun.pyz\n" in done.stderr
    assert done.stderr.count("\n") == 1
    for word in ("f'", 'f"', " -> ", ":=", "import annotations"):  # what the oldest could not even read
        assert word not in source


def test_another_user_and_a_read_only_place_without_a_home(public: Path) -> None:
    for user in (NOBODY, 4242):  # who has no entry in /etc/passwd
        done = run([public, "--version"], user=user, group=user, extra_groups=[])
        assert (done.stdout, done.stderr) == (NATIVE, "")
    assert os.listdir(public.parent) == ["tapotun.pyz"]


# The machine's files in a directory, as it may find them: $1. Then the command.
_ELSEWHERE: Final = """
set -e
mount --make-rprivate /
mount --bind / "$1"
[ $2 = rw ] || mount -o remount,ro,bind "$1"
[ $3 = none ] || mount -t proc proc "$1/proc"
root=$1
shift 3
exec chroot "$root" env -i PATH=/usr/local/bin:/usr/bin:/bin "$@"
"""


@pytest.mark.parametrize(("disk", "proc"), [("ro", "proc"), ("rw", "none")])
def test_nothing_can_be_written_or_there_is_no_proc(
    public: Path, lab: Lab, tmp_path: Path, disk: str, proc: str
) -> None:
    """Each alone is enough to run in. Nothing is left where it could be written."""
    before = set(os.listdir("/tmp"))
    there: list[str | Path] = ["unshare", "--mount", "sh", "-c", _ELSEWHERE, "sh", tmp_path, disk, proc]
    host = lab.host("machine")
    if disk == "ro":
        assert host.run([*there, "touch", "/tmp/x"], check=False).returncode != 0
    done = host.run([*there, "/usr/bin/python3", public, "token"])
    assert done.stdout.startswith('client:  "token": ')
    assert done.stderr == ""
    assert not [name for name in set(os.listdir("/tmp")) - before if name.endswith(".so")]


def started(public: Path, first: str) -> str:
    """A program for python -c: some lines, and then the pyz as if it had been started itself."""
    argv = [str(public), "--version"]
    return f"import os, runpy, sys\n{first}\nsys.argv = {argv!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"


def test_where_there_is_no_such_memory_a_temporary_file_does(public: Path, tmp_path: Path) -> None:
    """As vm.memfd_noexec=2 has it, or a seccomp filter."""
    refuse = "def refuse(*_): raise PermissionError(1, 'Operation not permitted')\nos.memfd_create = refuse"
    environment = {"PATH": SYSTEM_PATH, "TMPDIR": str(tmp_path)}
    done = run([sys.executable, "-I", "-c", started(public, refuse)], env=environment)
    assert (done.stdout, done.stderr) == (NATIVE, "")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_for_which_it_has_nothing_is_told_so(public: Path) -> None:
    other = "import importlib.machinery as it\nit.EXTENSION_SUFFIXES[:] = ['.cpython-313-riscv64-linux-gnu.so', '.so']"
    done = run([sys.executable, "-I", "-c", started(public, other)])
    assert done.returncode == 1
    assert "has msgspec._core for other machines or versions of Python, not for this one" in done.stderr
    assert "(cpython-313-riscv64-linux-gnu)" in done.stderr
    assert "cpython-314-aarch64-linux-musl" in done.stderr
    assert done.stderr.count("\n") == 1


# OpenWrt configures Python so that it does not name the machine.
AS_OPENWRT: Final = """
import importlib.machinery, sys
found = importlib.machinery.EXTENSION_SUFFIXES
found[:] = [f".cpython-{sys.version_info.major}{sys.version_info.minor}.so", ".abi3.so", ".so"]
"""


def test_a_python_that_does_not_name_its_machine(public: Path) -> None:
    done = run([sys.executable, "-I", "-W", "error", "-c", started(public, AS_OPENWRT)])
    assert (done.stdout, done.stderr) == (NATIVE, "")


def test_nor_its_c_library(pyz: Path, foreign: object) -> None:
    assert Foreign(platform.machine(), "musl").run(["-c", started(pyz, AS_OPENWRT)]) == NATIVE


def test_two_starts_at_once(public: Path) -> None:
    both = [
        subprocess.Popen([public, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")
        for _ in range(4)
    ]
    assert [it.communicate(timeout=60)[0] for it in both] == [NATIVE] * 4


def test_a_tunnel_out_of_the_zip_also_when_a_newer_one_takes_its_place(pyz: Path, lab: Lab, tmp_path: Path) -> None:
    server, client = cable(lab)
    mine = tmp_path / "tapotun.pyz"
    shutil.copy(pyz, mine)

    def start(host_name: str, config: dict[str, object]) -> Process:
        host = server if host_name == "server" else client
        file = host.tmp / "config.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps({"interfaces": [config], "admin": ADMIN}), encoding="utf-8")
        return host.start(
            ["env", "-i", f"PATH={SYSTEM_PATH}", mine, "--name", host_name, file], name="tapotun", cwd="/"
        )

    def hello(path: str) -> str:
        """The server's admin listener."""
        bearer = f"Authorization: Bearer {ADMIN['token']}"
        return server.run(["curl", "-sSf", "-H", bearer, f"http://127.0.0.1:9090{path}"]).stdout

    config = server_config()
    with start("server", config) as hub, start("client", client_config()) as laptop:
        hub.wait_for_log("started: ")
        laptop.wait_for_log(UPLOADING, timeout=RETRY_S)
        wait_for_ping(client, TUNNEL_SERVER)
        assert upload(client, server, TUNNEL_SERVER, 20_000_000).size == 20_000_000
        assert hello("/healthz")
        newer = tmp_path / "newer"
        newer.write_bytes(b"not a zip at all")
        newer.replace(mine)
        # A reload needs modules that nothing has needed so far.
        config["clients"].append(allowed("second", "10.10.0.3"))
        content = json.dumps({"interfaces": [config], "admin": ADMIN})
        (server.tmp / "config.json").write_text(content, encoding="utf-8")
        done = server.run([sys.executable, pyz, "reload", "--name", "server"])
        assert "second" in done.stdout
        assert "tapotun_" in hello("/metrics")
        panel = hello("/")
        pieces = re.findall(r'(?:src|href)="(/?[\w./-]+\.(?:js|css))"', panel)
        assert pieces
        assert all(hello("/" + piece.removeprefix("/")) for piece in pieces)
        done = server.run([sys.executable, pyz, "status", "--json", "--name", "server"])
        assert json.loads(done.stdout)["processes"][0]["interfaces"][0]["peers"][1]["name"] == "second"
        assert ping(client, TUNNEL_SERVER).ok
        assert hub.stop(5) == 0
        assert laptop.stop(5) == 0
    assert "Traceback" not in hub.log + laptop.log


def test_the_same_sources_make_the_same_bytes(pyz: Path) -> None:
    before = hashlib.sha256(pyz.read_bytes()).hexdigest()
    pyz.unlink()
    assert hashlib.sha256((make("pyz") / "tapotun.pyz").read_bytes()).hexdigest() == before


# Once the program has run out of the zip, the optional C module is used in the same process.
_THEN_EXERCISE: Final = f"""
import runpy, sys

try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exc:
    assert exc.code == 0, exc.code
del sys.argv[1:]
{EXERCISE}"""


def exercised(pyz: Path) -> list[str | Path]:
    """A command line, and what it writes."""
    return ["-c", f"import sys\nsys.argv = [{str(pyz)!r}, '--version']\n{_THEN_EXERCISE}"]


def found_in(said: str) -> str:
    """The file of the zip that was loaded; checks all the rest that `exercised` wrote."""
    version, plane, ran = said.splitlines(keepends=True)
    assert version + plane == NATIVE
    found = re.fullmatch(EXERCISED.format(r"/proc/self/fd/\d+/(.+)"), ran)
    assert found is not None, ran
    return found[1]


@pytest.mark.parametrize("python", list(pythons()), ids=lambda it: it.name)
def test_the_c_module_of_this_machine_is_loaded_and_run(pyz: Path, python: Path) -> None:
    done = run([python, "-I", "-W", "error", *exercised(pyz)])
    assert (done.returncode, done.stderr) == (0, "")
    assert found_in(done.stdout) == f"tapotun_trio/datapath/_pump.abi3-{platform.machine()}-linux-gnu.so"


@pytest.mark.parametrize("python", FOREIGN, ids=str)
def test_it_runs_on_other_machines_with_their_own_module(pyz: Path, foreign: object, python: Foreign) -> None:
    said = python.run(exercised(pyz))
    assert found_in(said) == f"tapotun_trio/datapath/_pump.abi3-{python.machine}-linux-{python.libc}.so"
    config = python.run([pyz, "token"])
    assert config.startswith('client:  "token": ')


def changed(pyz: Path, made: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy in which each file is what `change` makes of it; None: it is left out."""
    with zipfile.ZipFile(pyz) as source, zipfile.ZipFile(made, "w") as target:
        for info in source.infolist():
            data = change(info.filename, source.read(info))
            if data is not None:
                target.writestr(info, data)
    return made


def without_modules(name: str, data: bytes) -> bytes | None:
    if name == "compiled.txt":
        return b"\n".join(line for line in data.split(b"\n") if b".abi3-" not in line)
    return None if ".abi3-" in name else data


def of_another_machine(name: str, data: bytes) -> bytes:
    """What no loader takes."""
    return data[:18] + b"\xf3\0" + data[20:] if ".abi3-" in name else data  # e_machine: RISC-V


def for_others_only(name: str, data: bytes) -> bytes | None:
    here = f".abi3-{platform.machine()}-linux-gnu.so"
    return data.replace(here.encode(), b".abi3-riscv64-linux-gnu.so") if name == "compiled.txt" else data


@pytest.mark.parametrize("change", [without_modules, of_another_machine, for_others_only])
def test_without_a_module_that_can_be_loaded_it_runs(
    pyz: Path, tmp_path: Path, change: Callable[[str, bytes], bytes | None]
) -> None:
    """It says nothing of it, since nothing is missing. Whoever imports the module gets ImportError. `--version` tells a
    module that is there from none."""
    made = changed(pyz, tmp_path / "tapotun.pyz", change)
    done = run([sys.executable, "-W", "error", made, "token"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('client:  "token": ')
    done = run([sys.executable, "-I", "-W", "error", *exercised(made)])
    assert done.returncode == 1
    if change is of_another_machine:
        assert "\nplane: python: the native module cannot be loaded: " in done.stdout
    else:
        assert done.stdout == PURE
    assert re.match(r"ImportError: ", done.stderr.splitlines()[-1])


def test_compiled_modules_are_there_for_every_machine_that_is_promised(pyz: Path) -> None:
    versions, processors, libraries = ("311", "312", "313", "314"), ("x86_64", "aarch64"), ("gnu", "musl")
    kinds = {f"{processor}-linux-{library}" for processor in processors for library in libraries}
    promised = {f".cpython-{version}-{kind}.so" for version in versions for kind in kinds}
    stable = {f".abi3-{kind}.so" for kind in kinds}
    found: dict[str, set[str]] = {}
    with zipfile.ZipFile(pyz) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                module, dot, suffix = name.partition(".")
                found.setdefault(module, set()).add(dot + suffix)
                assert f"-{machine(archive.read(name))}-" in suffix
    assert "msgspec/_core" in found
    assert found.pop("tapotun_trio/datapath/_pump") == stable
    assert all(suffixes == promised for suffixes in found.values())


def test_it_has_every_licence_and_no_tests(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
    distributions = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert len(distributions) > 5
    for it in distributions:
        assert any(name.startswith(it) and "licen" in name.removeprefix(it).lower() for name in names), it
    assert not [name for name in names if name.startswith("tests/") or "/_tests/" in name]
    ours = subprocess.run(["git", "ls-files", "tapotun_trio"], check=True, cwd=ROOT, capture_output=True, text=True)
    expected = {name for name in ours.stdout.splitlines() if not name.endswith((".c", ".pyi"))}  # the panel's pages too
    assert expected <= set(names)
    assert not [name for name in names if name.endswith(".c")]
