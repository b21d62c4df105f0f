"""How the program was installed, and what a person types for a newer version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tapotun_trio import cli, exit_codes
from tapotun_trio.update import installed
from tapotun_trio.update.installed import (
    LAUNCHER_VARIABLE,
    Installation,
    Pyz,
    find_installation,
    launcher_command,
    launcher_warning,
)
from tapotun_trio.update.run import foreign_program
from tests.harness.updates import Repository
from tests.pyz_files import program, running


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "_tapotun_pyz", raising=False)
    monkeypatch.delenv(LAUNCHER_VARIABLE, raising=False)


def lies_in(monkeypatch: pytest.MonkeyPatch, directory: str) -> None:
    monkeypatch.setattr(installed, "__file__", f"{directory}/tapotun_trio/update/installed.py")


def test_a_checkout() -> None:
    assert find_installation() == Installation("checkout")


def test_a_pyz_is_named_by_its_place(tmp_path: Path) -> None:
    file = tmp_path / "tapotun.pyz"
    file.touch(0o644)
    of_pyz = Installation("pyz", Pyz(str(file), 64, None))
    assert of_pyz.command("/etc/a b.json") == f"{sys.executable} {file} update --install '/etc/a b.json'"
    file.chmod(0o755)
    assert of_pyz.command("/etc/x.json") == f"{file} update --install /etc/x.json"


def test_the_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    lies_in(monkeypatch, "/usr/lib/tapotun")
    assert find_installation() == Installation("deb")


def test_pip_and_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lies_in(monkeypatch, str(tmp_path / "lib" / "python3.11" / "site-packages"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    found = find_installation()
    assert found == Installation("pip")
    assert found.command("x.json") == f"{sys.executable} -m pip install --upgrade 'tapotun-trio[update]'"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python-net-admin").touch()
    assert find_installation() == Installation("container")


def test_the_images_own_interpreter_is_what_the_container_is_known_by() -> None:
    """And the Debian package by its directory: both are where packaging puts them."""
    packaging = Path(__file__).parents[2] / "packaging"
    text = (packaging / "Containerfile").read_text(encoding="utf-8")
    assert f"/opt/tapotun/bin/{installed._CONTAINER_PYTHON}" in text
    assert f'sys.path.insert(0, "{installed._DEB}")' in (packaging / "deb" / "tapotun").read_text(encoding="utf-8")


def pyz_module(**values: Any) -> ModuleType:
    module = ModuleType("_tapotun_pyz")
    vars(module).update(values)
    return module


def test_a_pyz_and_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/packages/test_update.py has real ones."""
    module = pyz_module(running_path="/opt/tapotun/tapotun.pyz", running_fd=64)
    monkeypatch.setitem(sys.modules, "_tapotun_pyz", module)
    assert find_installation() == Installation("pyz", Pyz("/opt/tapotun/tapotun.pyz", 64, None))
    monkeypatch.setenv(LAUNCHER_VARIABLE, "/opt/tapotun/tapotun")
    assert find_installation() == Installation("pyz", Pyz("/opt/tapotun/tapotun.pyz", 64, "/opt/tapotun/tapotun"))
    monkeypatch.setenv(LAUNCHER_VARIABLE, "/opt/other/tapotun")  # of a process that has started this one
    assert find_installation() == Installation("pyz", Pyz("/opt/tapotun/tapotun.pyz", 64, None))


def test_a_pyz_that_is_not_held_open_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, as packaging/pyz/_tapotun_pyz.py has it."""
    monkeypatch.setitem(sys.modules, "_tapotun_pyz", pyz_module(running_path=None, running_fd=None))
    assert find_installation().pyz is None


# ------------------------------------------------------------------ tapotun update --install


def test_only_a_pyz_installs_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "x.json"
    config.touch(mode=0o600)
    root_file = str(Repository(tmp_path / "repository").root_file)
    client = {"name": "tun0", "server": "http://127.0.0.1:9/", "token": "raw-token-of-laptop"}
    update = {"url": "http://127.0.0.1:9/", "root_file": root_file}
    config.write_text(json.dumps({"interfaces": [client], "update": update}))
    assert cli.main(["update", "--install", str(config)]) == exit_codes.FAILED
    assert "this program is installed as checkout, which is updated by: git pull" in capsys.readouterr().err


def test_it_needs_a_config_to_try_the_version_with(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["update", "--install", "--url", "http://127.0.0.1:9/", "--root-file", "root.json"]
    assert cli.main(words) == exit_codes.USAGE
    assert "--install needs the config FILE, with which the new version has to work" in capsys.readouterr().err


def test_the_launcher_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["launcher"]) == exit_codes.OK
    source = Path(str(sys.modules["tapotun_trio"].__file__)).parent / "update" / "launcher.py"
    assert capsys.readouterr().out == source.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", [0o755, 0o644])
@pytest.mark.parametrize("place", ["plain", "it's mine; exit 1 #", "-n"])
def test_the_command_for_a_launcher_works_wherever_the_pyz_lies(tmp_path: Path, place: str, mode: int) -> None:
    file = tmp_path / place / f"{place}.pyz"
    file.parent.mkdir()
    file.write_bytes(program("1.0"))
    file.chmod(mode)
    old = file.with_suffix("")
    old.write_text("an old one: .pyz.trial")
    with running(file) as pyz:
        command = launcher_command(pyz)
        assert command is not None
        assert str(launcher_warning(pyz)).endswith(f"; print it again: {command}")
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert old.read_text() == "1.0 launcher\n"
    assert old.stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(file.parent)) == sorted([old.name, file.name])
    file.write_bytes(program("1.0", "sys.exit('No space left on device')"))
    assert subprocess.run(["sh", "-c", command], check=False, capture_output=True, timeout=60).returncode == 1
    assert old.read_text() == "1.0 launcher\n"  # it is whole


@pytest.mark.parametrize("name", ["tapotun", ".pyz"])
def test_a_name_that_no_launcher_can_have(name: str) -> None:
    assert launcher_command(Pyz(f"/opt/{name}", 64, None)) is None


@pytest.mark.parametrize(
    ("uid", "name", "ends"), [(65534, "nobody", "runuser -u nobody -- ..."), (54321, "uid 54321", "")]
)
def test_root_is_warned_of_a_program_that_another_user_can_replace(
    tmp_path: Path, uid: int, name: str, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the directory can, whoever owns the file."""
    file = tmp_path / "tapotun.pyz"
    file.write_bytes(b"")
    with running(file) as pyz:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert foreign_program(pyz) is None
        for place in (tmp_path, file):
            os.chown(place, uid, uid)
            warning = foreign_program(pyz)
            assert warning is not None
            assert warning.startswith(
                f"{place} belongs to {name}, who could replace what root starts there; start it as that"
            )
            assert warning.endswith(ends)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        assert foreign_program(pyz) is None
