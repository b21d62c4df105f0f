"""tapotun token: what it makes, reads, writes, and never overwrites."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tapotun_trio import exit_codes
from tapotun_trio.cli import main

from ..tables import table
from .conftest import NOBODY
from .test_cli import CLIENT, SERVER, config_file

RAW: Final = "correct-horse-battery-staple"


def values(out: str) -> list[str]:
    return [json.loads(line.split(": ", 2)[2].split("    ")[0]) for line in out.splitlines()]


def hashes(raw: str) -> list[str]:
    return ["sha256:" + hashlib.sha256(raw.encode()).hexdigest(), hashlib.sha1(raw.encode()).hexdigest()]


def given(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """On standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_token(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What it prints goes into two config files as it stands."""
    shown: list[str] = []
    for _ in range(2):
        assert main(["token"]) == exit_codes.OK
        out, err = capsys.readouterr()
        assert err == ""
        raw, sha256, sha1 = (json.loads(line.split('"token": ')[1].split("    ")[0]) for line in out.splitlines())
        assert sha256 == "sha256:" + hashlib.sha256(raw.encode()).hexdigest()
        assert sha1 == hashlib.sha1(raw.encode()).hexdigest()
        assert len(raw) * 6 >= 256
        assert re.fullmatch(r"[A-Za-z0-9_-]+", raw)
        shown.append(raw)
        clients = [{"token": digest, "ip": f"10.10.0.{n}"} for n, digest in enumerate([sha256, sha1], 2)]
        assert main(["validate-config", config_file(tmp_path, {**SERVER, "clients": clients[:1]})]) == exit_codes.OK
        assert main(["validate-config", config_file(tmp_path, {**SERVER, "clients": clients[1:]})]) == exit_codes.OK
        assert main(["validate-config", config_file(tmp_path, {**CLIENT, "token": raw})]) == exit_codes.OK
        capsys.readouterr()
    assert shown[0] != shown[1]


# ------------------------------------------------------------------ --hash


@table(
    "content",
    ("as a file has it", RAW.encode() + b"\n"),
    ("without a line break", RAW.encode()),
    ("of Windows", b"\xef\xbb\xbf" + RAW.encode() + b"\r\n"),
    ("between blank lines", b"\n  \n" + RAW.encode() + b"\n\t\n\n"),
)
def test_hash(content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given(monkeypatch, content)
    assert main(["token", "--hash"]) == exit_codes.OK
    out, err = capsys.readouterr()
    assert values(out) == hashes(RAW)
    assert RAW not in out + err
    assert err == ""


@table(
    "content said",
    ("nothing", b"", "is empty"),
    ("blank", b"\n \n", "is empty"),
    ("two", b"raw-1\nraw-2\n", "has 2 lines"),
    ("not ASCII", "r\xe4w".encode(), "has characters"),
    ("UTF-16", "raw-1\n".encode("utf-16"), "is UTF-16"),
    ("endless", b"raw" * 100_000, "has more than"),
    ("a space in front", b" raw-1\n", "starts or ends with a space"),
)
def test_hash_of_no_token(
    content: bytes, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, content)
    assert main(["token", "--hash"]) == exit_codes.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert f"the token on standard input {said}" in err
    assert "raw" not in err.replace("the raw token", "")
    assert len(err.splitlines()) == 1


def test_hash_of_a_hash(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given(monkeypatch, hashes(RAW)[0].encode())
    assert main(["token", "--hash"]) == exit_codes.OK
    assert "looks like a hash" in capsys.readouterr().err


def test_hash_without_an_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["token", "--hash"]) == exit_codes.FAILED
    assert "cannot be read from standard input: it is closed" in capsys.readouterr().err


# ------------------------------------------------------------------ --write


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o777])
def test_write(umask: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file for `token_file`, which only its owner can read; the token is not printed."""
    file = tmp_path / "token"
    before = os.umask(umask)
    try:
        assert main(["token", "--write", str(file)]) == exit_codes.OK
    finally:
        os.umask(before)
    out, err = capsys.readouterr()
    raw = file.read_text().removesuffix("\n")
    assert mode(file) == 0o600
    assert values(out) == [str(file), *hashes(raw)]
    assert raw not in out + err
    client: dict[str, Any] = {**CLIENT, "token_file": str(file)}
    del client["token"]
    assert main(["validate-config", config_file(tmp_path, client)]) == exit_codes.OK


@table(
    "name said",
    ("a file", "file", "exists already"),
    ("a link", "link", "exists already"),
    ("a link to nowhere", "dangling", "exists already"),
    ("a directory", "directory", "exists already"),
    ("no such directory", "none/file", "No such file or directory"),
    ("a bad name", "a\0b", "null byte"),
)
def test_write_never_overwrites(name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    before = sorted(os.listdir(tmp_path))
    assert main(["token", "--write", str(tmp_path / name)]) == exit_codes.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(("old", "new"), [(0o600, 0o600), (0o640, 0o640), (0o644, 0o600), (0o400, 0o600)])
def test_force(old: int, new: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The new file can be read by whom the old one was meant for."""
    file = tmp_path / "token"
    file.write_text("precious")
    file.chmod(old)
    if os.geteuid() == 0:
        os.chown(file, NOBODY, NOBODY)
    owner = file.stat().st_uid, file.stat().st_gid
    assert main(["token", "--write", str(file), "--force"]) == exit_codes.OK
    assert file.read_text() != "precious"
    assert mode(file) == new
    assert (file.stat().st_uid, file.stat().st_gid) == owner
    assert os.listdir(tmp_path) == ["token"]


def test_force_where_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They put a link in the place of the new file as soon as it is there. The file that it leads to stays as it is."""
    directory, victim = tmp_path / "shared", tmp_path / "victim"
    directory.mkdir()
    victim.touch(mode=0o600)
    file = directory / "token"
    file.touch(mode=0o640)
    if os.geteuid() == 0:
        os.chown(file, NOBODY, NOBODY)
    before, fchmod, swapped = victim.stat(), os.fchmod, list[str]()

    def swap(fd: int, mode: int) -> None:
        for fresh in directory.glob("token.*"):
            if not fresh.is_symlink():
                swapped.append(fresh.name)
                fresh.unlink()
                fresh.symlink_to(victim)
        fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", swap)
    main(["token", "--write", str(file), "--force"])
    after = victim.stat()
    assert len(swapped) == 1
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@pytest.mark.parametrize("name", ["link", "directory", "pipe"])
def test_force_replaces_files_only(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    assert main(["token", "--force", "--write", str(tmp_path / name)]) == exit_codes.FAILED
    assert "it is not a regular file" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


def test_force_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--force"]) == exit_codes.USAGE
    assert capsys.readouterr().out == ""


def test_a_full_disk(tmp_path: Path) -> None:
    disk = 'mount -t tmpfs -o size=4k tmpfs "$1" && echo >"$1/filler"; shift; exec "$@"'
    root = [] if os.geteuid() == 0 else ["--map-root-user"]  # who else may mount nothing
    argv: list[str | Path] = ["unshare", *root, "--mount", "sh", "-c", disk, "sh", tmp_path]
    argv += [sys.executable, "-m", "tapotun_trio", "token", "--write", tmp_path / "token"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_codes.FAILED
    assert done.stdout == ""
    assert done.stderr.endswith("cannot be written: No space left on device; make room there\n")
