"""The launcher, as a service manager starts it: it counts the starts of an update on trial, and takes it back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.shell.typed import _RUN_OPTIONS, VERBS
from tapotun_trio.update import launcher
from tapotun_trio.update.launcher import (
    MAX_REFUSED,
    MAX_SERVICES,
    OTHERS,
    RUNS,
    STARTS,
    VALUED,
    Trial,
    begin,
    is_start,
    locked,
    read_trial,
    service,
)
from tapotun_trio.update.take import install
from tapotun_trio.update.trial import close_trial, refused_versions
from tapotun_trio.update.version import VERSION_CHARS, version_key
from tests.pyz_files import found, install_launcher, launch, program, running, sha256

OLD = program("1.0")
NOBODY = 65534
# What a version does that does not start, and with which exit code its launcher ends while it is on trial.
FAILURES = {
    "raise ZeroDivisionError": 3,
    "import nothing_of_that_name": 3,
    "sys.exit(1)": 3,
    "sys.exit(2)": 3,
    "sys.exit('why')": 3,
    "sys.exit(3)": 3,
    "sys.exit(0)": 0,
    "import os; os.kill(os.getpid(), 9)": -signal.SIGKILL,
    "import os; os.abort()": -signal.SIGABRT,
}


@pytest.fixture
def pyz(tmp_path: Path) -> Path:
    made = tmp_path / "tapotun.pyz"
    made.write_bytes(OLD)
    made.chmod(0o755)
    return made


def update(pyz: Path, version: str, data: bytes) -> None:
    """As the daemon does."""
    with running(pyz) as running_pyz, found(version, data) as new:
        assert new.memfd is not None
        install(new.memfd, new, running_pyz, "1.0")


def test_without_an_update_the_program_runs(pyz: Path) -> None:
    done = launch(pyz, "run", "x.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0 run x.json\n", "")
    assert sorted(os.listdir(pyz.parent)) == ["tapotun", "tapotun.pyz"]


def test_by_a_symbolic_link_elsewhere(pyz: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "bin" / "tapotun"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(install_launcher(pyz))
    done = subprocess.run([elsewhere, "run", "x"], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1.0 run x\n"


def test_the_program_learns_of_its_launcher(pyz: Path) -> None:
    pyz.write_bytes(program("1.0", "import os; print(os.environ['TAPOTUN_LAUNCHER'], sys.argv[0], __name__)"))
    assert launch(pyz, "run", "x").stdout.splitlines()[0] == f"{pyz.with_suffix('')} {pyz} __main__"


def test_signals_wait_for_the_program(pyz: Path) -> None:
    pyz.write_bytes(program("1.0", "import signal; print(sorted(map(int, signal.pthread_sigmask(0, ()))))"))
    assert launch(pyz, "run", "x").stdout.splitlines()[0] == str(sorted(map(int, (1, 2, 15))))


@pytest.mark.parametrize(("body", "code"), FAILURES.items())
def test_a_version_that_does_not_start_is_taken_back_after_three_starts(pyz: Path, body: str, code: int) -> None:
    update(pyz, "2.0", program("2.0", body))
    for number in range(1, STARTS + 1):
        done = launch(pyz, "run", "x.json")
        assert done.returncode == code
        assert f"version 2.0 on trial, start {number} of 3" in done.stderr
        assert "2.0" not in done.stdout
    done = launch(pyz, "run", "x.json")
    assert (done.returncode, done.stdout) == (0, "1.0 run x.json\n")
    assert "version 2.0 has not started 3 times: VERSION 1.0 IS BACK" in done.stderr
    assert pyz.read_bytes() == OLD
    assert refused_versions(str(pyz)) == ["2.0"]
    assert sorted(os.listdir(pyz.parent)) == ["tapotun", "tapotun.pyz", "tapotun.pyz.lock", "tapotun.pyz.refused"]
    assert launch(pyz, "run", "x.json").stderr == ""


def test_services_that_start_in_the_same_moment_do_not_use_up_each_others_starts(pyz: Path) -> None:
    """As all of them do when the machine starts."""
    update(pyz, "2.0", program("2.0", "sys.exit(1) if sys.argv[3:] == ['bad.json'] else None"))
    for number in range(2 * STARTS):
        done = launch(pyz, "run", "--name", f"{number}.json")
        assert done.stdout == f"2.0 run --name {number}.json\n", done.stderr
    for _ in range(STARTS):
        assert launch(pyz, "run", "--name", "bad.json").returncode == 3
    assert launch(pyz, "run", "--name", "bad.json").stdout == "1.0 run --name bad.json\n"


def test_the_services_that_are_counted_are_bounded(pyz: Path) -> None:
    update(pyz, "2.0", program("2.0"))
    for number in range(MAX_SERVICES + STARTS):
        begin(str(pyz), ["run", str(number)])
    trial = read_trial(str(pyz))
    assert trial is not None
    assert len(trial.starts) == MAX_SERVICES + 1
    assert trial.starts["others"] == STARTS


def test_a_traceback_is_not_lost(pyz: Path) -> None:
    update(pyz, "2.0", program("2.0", "raise ZeroDivisionError('why')"))
    stderr = launch(pyz, "run", "x").stderr
    assert "ZeroDivisionError: why" in stderr
    assert "__main__.py" in stderr


@pytest.mark.parametrize("body", ["sys.exit(1)", "sys.exit(2)", "raise ZeroDivisionError"])
def test_without_a_trial_the_programs_exit_code_is_the_launchers(pyz: Path, body: str) -> None:
    pyz.write_bytes(program("1.0", body))
    assert launch(pyz, "run", "x").returncode == (2 if "2" in body else 1)


def test_a_version_that_starts_ends_its_trial(pyz: Path) -> None:
    update(pyz, "2.0", program("2.0", "sys.exit(1)"))
    launch(pyz, "run", "x")
    assert close_trial(str(pyz), "2.0") == "2.0"  # what the daemon does
    done = launch(pyz, "run", "x")
    assert (done.returncode, done.stderr) == (1, "")
    assert (pyz.parent / "tapotun.pyz.previous").read_bytes() == OLD
    assert close_trial(str(pyz), "2.0") is None


def test_a_version_does_not_end_the_trial_of_another(pyz: Path) -> None:
    """A process of the old version may still be starting when another service installs the new one."""
    update(pyz, "2.0", program("2.0", "sys.exit(1)"))
    assert close_trial(str(pyz), "1.0") is None
    assert read_trial(str(pyz)) is not None
    trial = pyz.with_suffix(".pyz.trial")
    trial.write_text("{")
    assert close_trial(str(pyz), "1.0") is None
    assert not trial.exists()


def test_a_failure_after_the_trial_is_what_it_is(pyz: Path) -> None:
    """The daemon ends its trial, and fails later in the same process."""
    ending = f"import os; os.unlink({str(pyz) + '.trial'!r}); sys.exit(1)"
    update(pyz, "2.0", program("2.0", ending))
    done = launch(pyz, "run", "x")
    assert done.returncode == 1
    assert "again" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["--name", "hub", "status"],
        ["--version"],
        ["run", "--help"],
        ["server", "-h"],
        ["--log-level", "info", "--version"],
        ["validate-config", "/etc/x.json"],
        ["doctor", "x.json"],
        ["update", "x.json"],
    ],
)
def test_what_runs_no_interface_is_no_start(pyz: Path, words: list[str]) -> None:
    update(pyz, "2.0", program("2.0"))
    assert not is_start(words)
    assert launch(pyz, *words).stderr == ""
    trial = read_trial(str(pyz))
    assert trial is not None
    assert trial.starts == {}


@pytest.mark.parametrize(
    "words",
    [
        ["run", "x"],
        ["server", "x"],
        ["client", "x"],
        ["x.json"],
        ["/etc/tapotun/x"],
        ["--name", "hub", "run", "x"],
        ["--name", "status", "x"],
        ["run", "--", "-h"],
    ],
)
def test_what_runs_interfaces_is_a_start(words: list[str]) -> None:
    assert is_start(words)


def test_a_file_that_is_named_like_a_verb(pyz: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three times `tapotun status`, typed where such a file lies, took a version back."""
    monkeypatch.chdir(tmp_path)
    for word in ("status", "office"):
        Path(word).touch()
    assert not is_start(["status"])
    assert is_start(["office"])
    assert {*RUNS, *OTHERS} == VERBS
    assert VALUED == _RUN_OPTIONS


def test_another_user_cannot_keep_starts_from_being_counted(pyz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody may read the directory, and so lock it. A version that does not start would then stay for ever."""
    monkeypatch.setattr(launcher, "LOCK_S", 0.0)
    theirs = os.open(pyz.parent, os.O_RDONLY)
    try:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        update(pyz, "2.0", program("2.0", "sys.exit(1)"))
        for _ in range(STARTS + 1):
            begin(str(pyz), ["run", "x"])
    finally:
        os.close(theirs)
    assert pyz.read_bytes() == OLD
    assert refused_versions(str(pyz)) == ["2.0"]


def locked_by(pyz: Path, user: int, group: int) -> str:
    """What comes of taking the lock beside this pyz as an ordinary user."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
            with locked(str(pyz)):
                os.write(write, b"locked")
        except OSError as exc:
            os.write(write, str(exc.strerror).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, encoding="ascii") as told:
        return told.read()


def as_nobody(pyz: Path) -> str:
    return locked_by(pyz, NOBODY, NOBODY)


@contextmanager
def pyz_in(mode: int) -> Iterator[Path]:
    """A pyz in a directory of root's with this mode."""
    assert os.geteuid() == 0, "run this as root"
    with tempfile.TemporaryDirectory(prefix="launcher-") as directory:
        Path(directory).chmod(mode)
        made = Path(directory, "tapotun.pyz")
        made.write_bytes(OLD)
        made.chmod(0o755)
        yield made


@pytest.fixture
def shared() -> Iterator[Path]:
    """A pyz in a directory that every user may enter."""
    with pyz_in(0o755) as made:
        yield made


def test_who_can_replace_the_program_can_lock_and_nobody_else(shared: Path) -> None:
    lock = shared.with_name("tapotun.pyz.lock")
    assert as_nobody(shared) == "Permission denied"
    with locked(str(shared)):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        assert as_nobody(shared) == "Permission denied"
    lock.unlink()
    os.chown(shared.parent, NOBODY, NOBODY)
    with locked(str(shared)):  # root may be the first
        assert (lock.stat().st_uid, lock.stat().st_gid) == (NOBODY, NOBODY)
    assert as_nobody(shared) == "locked"
    os.chown(lock, 0, 0)  # the directory was root's, and another process may hold the lock
    remedy = "Permission denied (it belongs to uid 0): give it the owner and group of its directory"
    assert as_nobody(shared) == remedy
    assert lock.stat().st_uid == 0
    lock.unlink()
    shared.parent.chmod(0o775)
    os.chown(shared.parent, 0, NOBODY)  # a group may write there
    with locked(str(shared)):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o660
    assert as_nobody(shared) == "locked"


@pytest.mark.parametrize("mode", [0o775, 0o2775])
def test_every_member_of_a_group_that_may_write_can_lock(shared: Path, mode: int) -> None:
    """Whoever of them is the first."""
    os.chown(shared.parent, 0, NOBODY)
    shared.parent.chmod(mode)
    for user in (NOBODY - 1, NOBODY - 2):
        assert locked_by(shared, user, NOBODY) == "locked"
    with locked(str(shared)):
        status = shared.with_name("tapotun.pyz.lock").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY - 1, NOBODY, 0o660)


def test_nobody_finds_a_lock_that_they_cannot_open(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may be the first to need it, and be killed at any moment. What it has left there is removed."""
    os.chown(shared.parent, NOBODY, NOBODY)
    lock, part = shared.with_name("tapotun.pyz.lock"), shared.with_name("tapotun.pyz.lock.new")
    real = os.open
    found = []

    def other(path: str, flags: int, mode: int = 0o777) -> int:
        """Another process makes it, just after this one has looked for it."""
        if path == str(part):
            monkeypatch.setattr(os, "open", real)
            found.append(as_nobody(shared))
        return real(path, flags, mode)

    part.touch(0o600)
    assert as_nobody(shared) == "locked"
    lock.unlink()
    monkeypatch.setattr(os, "open", other)
    with locked(str(shared)):
        assert found == ["locked"]
        assert lock.stat().st_uid == NOBODY
    os.link(lock, part)  # killed when the lock was made
    assert as_nobody(shared) == "locked"
    assert sorted(os.listdir(shared.parent)) == ["tapotun.pyz", "tapotun.pyz.lock"]


def test_a_bare_name_is_of_the_working_directory(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shared.parent)
    with locked("tapotun.pyz"):
        assert os.path.exists("tapotun.pyz.lock")
    launcher.write("tapotun.pyz.refused", "1.0\n")
    assert launcher.read("tapotun.pyz.refused") == "1.0\n"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOENT], ids=["no hard links", "no /proc"])
def test_a_lock_that_cannot_be_linked(shared: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    os.chown(shared.parent, NOBODY, NOBODY)
    with locked(str(shared)):
        assert shared.with_name("tapotun.pyz.lock").stat().st_uid == NOBODY
    assert as_nobody(shared) == "locked"


def test_a_lock_of_somebody_else_is_not_waited_for(sticky: Path) -> None:
    """Where everybody makes files."""
    lock = sticky.with_name("tapotun.pyz.lock")
    lock.touch()
    os.chown(lock, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="belongs to uid 65534, and is not used: remove it"), locked(str(sticky)):
        pass
    lock.unlink()
    lock.symlink_to("/dev/null")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), locked(str(sticky)):
        pass


def test_the_program_before_is_on_the_disk_before_the_note_is_gone(pyz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure between the two, the bad version would run without a trial."""
    update(pyz, "2.0", program("2.0"))
    calls = []

    def noted(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object) -> object:
            calls.append((name, *(str(it).rpartition("/")[2] for it in arguments if name != "fsync")))
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("rename", "fsync", "unlink"):
        noted(name)
    for _ in range(STARTS + 1):
        begin(str(pyz), ["run", "x"])
    assert calls[-4:] == [
        ("rename", "tapotun.pyz.previous", "tapotun.pyz"),
        ("fsync",),
        ("unlink", "tapotun.pyz.trial"),
        ("fsync",),
    ]


def test_a_pyz_that_somebody_has_replaced_is_not_on_trial(pyz: Path) -> None:
    update(pyz, "2.0", program("2.0"))
    launch(pyz, "run", "x")
    by_hand = pyz.with_suffix(".mine")
    by_hand.write_bytes(program("1.5", "sys.exit(1)"))
    by_hand.replace(pyz)
    done = launch(pyz, "run", "x")
    assert (done.returncode, done.stderr) == (1, "")
    assert not pyz.with_suffix(".pyz.trial").exists()


def test_a_previous_file_that_is_another_is_not_put_back(pyz: Path) -> None:
    update(pyz, "2.0", program("2.0", "sys.exit(1)"))
    (pyz.parent / "tapotun.pyz.previous").unlink()
    for _ in range(STARTS):
        assert launch(pyz, "run", "x").returncode == 3
    done = launch(pyz, "run", "x")
    assert done.returncode == 1  # a service manager starts it no more
    assert "tapotun.pyz.previous is not version 1.0 any more; install a version by hand" in done.stderr
    (pyz.parent / "tapotun.pyz.previous").write_bytes(b"something else")
    assert "is not version 1.0 any more" in launch(pyz, "run", "x").stderr
    assert launch(pyz, "--version").stdout == ""


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"version": 1}', "null", "[" * 50_000, '{"starts": "x"}', "\0", "1e999", "\ud800"]
)
def test_a_note_that_is_broken_is_said_and_ignored(pyz: Path, text: str) -> None:
    (pyz.parent / "tapotun.pyz.trial").write_bytes(text.encode("utf-8", "surrogatepass"))
    done = launch(pyz, "run", "x")
    assert (done.returncode, done.stdout) == (0, "1.0 run x\n")
    assert "tapotun.pyz.trial: not understood and ignored" in done.stderr


@given(st.text())
def test_a_note_is_decoded_or_refused(text: str) -> None:
    try:
        trial = Trial.decode(text)
    except (ValueError, KeyError, TypeError):
        return
    assert Trial.decode(trial.encode()).encode() == trial.encode()


def test_a_note_of_a_later_version_with_more_in_it() -> None:
    trial = Trial("2.0", "ab", "1.0", "cd", {"a": 2})
    assert vars(Trial.decode(json.dumps({**vars(trial), "more": [1]}))) == vars(trial)


def test_links_are_not_followed(pyz: Path, tmp_path: Path) -> None:
    """Where others may write beside the pyz, root's launcher must not write to a file of theirs."""
    update(pyz, "2.0", program("2.0", "sys.exit(1)"))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (pyz.parent / "tapotun.pyz.trial.new").symlink_to(victim)
    launch(pyz, "run", "x")
    assert victim.read_text() == "mine"
    trial = read_trial(str(pyz))
    assert trial is not None
    assert trial.starts == {service(["run", "x"]): 1}
    (pyz.parent / "tapotun.pyz.refused").symlink_to(victim)
    for _ in range(STARTS):
        done = launch(pyz, "run", "x")
    assert "VERSION 1.0 IS BACK" in done.stderr
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("owner", "[Errno 1] belongs to uid 65534, and is not used: remove it"),
        ("link", "[Errno 40] Too many levels of symbolic links"),
        ("directory", "[Errno 21] Is a directory"),
        ("mode", "[Errno 13] Permission denied"),
    ],
)
def test_no_list_of_refused_versions_keeps_the_program_before_from_coming_back(
    shared: Path, kind: str, why: str
) -> None:
    """Whatever is there under its name. The bad version would run, uncounted, at every start."""
    update(shared, "2.0", program("2.0", "sys.exit(1)"))
    refused = shared.with_suffix(".pyz.refused")
    if kind == "link":
        refused.symlink_to("nowhere")
    elif kind == "directory":
        refused.mkdir()
    else:
        refused.touch(0o600)
    argv: list[str | Path] = [sys.executable, install_launcher(shared), "run", "x"]
    if kind == "owner":
        os.chown(refused, NOBODY, NOBODY)
    if kind == "mode":  # root's, and the launcher is not root
        for path in (shared.parent, *(it for it in shared.parent.iterdir() if it != refused)):
            os.chown(path, NOBODY, NOBODY)
        argv[:0] = ["setpriv", "--reuid", str(NOBODY), "--clear-groups"]
    for _ in range(STARTS):
        assert subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode == 3
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1.0 run x\n")
    assert "version 2.0 has not started 3 times: VERSION 1.0 IS BACK; " in done.stderr
    assert f".refused cannot be kept ({why}), so 2.0 may be installed again" in done.stderr
    assert shared.read_bytes() == OLD


def test_who_is_killed_while_a_version_is_taken_back_refuses_it_at_the_next_start(
    pyz: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a full disk, the program before is put back first: that makes the room for the list."""
    update(pyz, "2.0", program("2.0"))
    for _ in range(STARTS):
        begin(str(pyz), ["run", "x"])

    class Killed(BaseException):
        pass

    def kill(_: str) -> None:
        raise Killed

    def full(path: str, _: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "write", full)
        patch.setattr(launcher, "sync_directory", kill)  # what comes after the rename
        with pytest.raises(Killed):
            begin(str(pyz), ["run", "x"])
    assert pyz.read_bytes() == OLD
    assert refused_versions(str(pyz)) == []
    capfd.readouterr()
    assert begin(str(pyz), ["run", "x"]) is None
    assert refused_versions(str(pyz)) == ["2.0"]
    assert "VERSION 1.0 IS BACK; 2.0 will not be installed again" in capfd.readouterr().err
    assert not pyz.with_suffix(".pyz.trial").exists()
    assert begin(str(pyz), ["run", "x"]) is None
    assert capfd.readouterr().err == ""


def test_an_installation_that_was_interrupted_refuses_nothing(pyz: Path) -> None:
    """It has the same note, and the old program, too."""
    trial = Trial("2.0", sha256(program("2.0")), "1.0", sha256(OLD), {service(["run", "x"]): STARTS - 1})
    launcher.write(f"{pyz}.trial", trial.encode())
    assert launch(pyz, "run", "x").stderr == ""
    assert refused_versions(str(pyz)) == []
    assert not pyz.with_suffix(".pyz.trial").exists()


def test_where_starts_cannot_be_counted_an_exit_code_is_what_it_is(sticky: Path) -> None:
    """Root has installed it by hand, and the service may not write there: the trial would never end."""
    sticky.parent.chmod(0o755)
    update(sticky, "2.0", program("2.0", "sys.exit(1)"))
    argv = ["setpriv", "--reuid", str(NOBODY), "--clear-groups", str(install_launcher(sticky)), "run", "x"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert "this start cannot be counted, and the version on trial cannot be taken back: " in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("replaced", [False, True])
def test_on_a_full_disk_an_exit_code_is_not_final_on_trial(
    pyz: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Not even a lock can be made there. Somebody may make room; a service manager would not start it again."""

    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    update(pyz, "2.0", program("2.0"))
    pyz.with_suffix(".pyz.lock").unlink()
    if replaced:
        pyz.write_bytes(OLD)
    monkeypatch.setattr(launcher, "make_lock", full)
    trial = begin(str(pyz), ["run", "x"])
    assert (trial is None) == replaced
    assert trial is None or launcher.is_open(str(pyz), trial)


# Runs the program there with the disk full, by its launcher, and then lists what is there.
_ON_A_FULL_DISK: Final = """
mount -t tmpfs -o size=256k,mode=755 tmpfs "$1"
cp -a "$2"/. "$1"
cat /dev/zero >"$1/filler" 2>/dev/null || true
shift 2
"$@" || echo "exit code $?"
ls -I filler "${2%/*}"
"""


def on_a_full_disk(pyz: Path, tmp_path: Path, *arguments: str) -> tuple[list[str], list[str]]:
    """Start the pyz and what is beside it, copied to a disk that has room for nothing more. Returns the lines of its
    output, which end with the names there, and those of its errors."""
    install_launcher(pyz)
    disk = tmp_path / "disk"
    disk.mkdir(exist_ok=True)
    argv: list[str | Path] = ["unshare", "--mount", "sh", "-ec", _ON_A_FULL_DISK, "sh", disk, pyz.parent]
    argv += [sys.executable, disk / "tapotun", *arguments]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines(), done.stderr.splitlines()


BESIDE: Final = ["tapotun", "tapotun.pyz", "tapotun.pyz.lock"]


@pytest.mark.parametrize("body", ["sys.exit(1)", "pass"])
def test_a_start_that_cannot_be_counted_on_a_full_disk_is_one_of_the_version_before(
    shared: Path, tmp_path: Path, body: str
) -> None:
    """A version that never starts would be started for ever."""
    update(shared, "2.0", program("2.0", body))
    out, told = on_a_full_disk(shared, tmp_path, "run", "x")
    assert out == ["1.0 run x", *BESIDE]
    [line] = told
    assert "version 2.0 is on trial, and its starts cannot be counted: [Errno 28] No space left on device" in line
    assert line.endswith(": VERSION 1.0 IS BACK; 2.0 may be installed again once there is room")


def test_a_version_that_does_not_start_is_taken_back_on_a_full_disk(shared: Path, tmp_path: Path) -> None:
    update(shared, "2.0", program("2.0", "sys.exit(1)"))
    for _ in range(STARTS):
        assert launch(shared, "run", "x").returncode == 3
    out, told = on_a_full_disk(shared, tmp_path, "run", "x")
    assert out == ["1.0 run x", *BESIDE, "tapotun.pyz.refused"]  # it had the room of what was replaced
    [line] = told
    assert "version 2.0 has not started 3 times: VERSION 1.0 IS BACK; 2.0 will not be installed again" in line


def test_on_a_full_disk_without_the_version_before_an_exit_code_is_not_final(shared: Path, tmp_path: Path) -> None:
    update(shared, "2.0", program("2.0", "sys.exit(1)"))
    shared.with_suffix(".pyz.previous").unlink()
    out, told = on_a_full_disk(shared, tmp_path, "run", "x")
    assert out == ["exit code 3", *BESIDE, "tapotun.pyz.trial"]
    assert "tapotun.pyz.previous is not version 1.0 any more; install a version by hand" in told[0]


def test_a_version_that_cannot_be_refused_is_taken_back_all_the_same(
    pyz: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where others use the room at once. A disk of its own cannot be made to fill in that moment."""
    update(pyz, "2.0", program("2.0"))
    for _ in range(STARTS):
        begin(str(pyz), ["run", "x"])
    real = launcher.write

    def full(path: str, text: str) -> None:
        if path.endswith(".refused"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), path)
        real(path, text)

    monkeypatch.setattr(launcher, "write", full)
    assert begin(str(pyz), ["run", "x"]) is None
    assert pyz.read_bytes() == OLD
    assert read_trial(str(pyz)) is None
    assert "VERSION 1.0 IS BACK; " in (said := capfd.readouterr().err)
    assert ".refused cannot be kept ([Errno 122] Disk quota exceeded), so 2.0 may be installed again" in said


def test_the_longest_version_is_refused_as_a_whole(pyz: Path) -> None:
    version = ".".join(["123456789"] * 6) + ".dev1"
    assert VERSION_CHARS - 10 < len(version) <= VERSION_CHARS
    version_key(version)
    update(pyz, version, program(version, "sys.exit(1)"))
    for _ in range(STARTS + 1):
        launch(pyz, "run", "x")
    assert refused_versions(str(pyz)) == [version]


@pytest.fixture
def sticky() -> Iterator[Path]:
    """A pyz in a directory such as /tmp."""
    with pyz_in(0o1777) as made:
        yield made


@pytest.mark.parametrize("foreign", ["trial", "previous", "link"])
def test_what_somebody_else_puts_beside_the_pyz_is_not_used(sticky: Path, foreign: str) -> None:
    theirs = program("evil")
    previous, trial = sticky.with_suffix(".pyz.previous"), sticky.with_suffix(".pyz.trial")
    target = previous.with_name("theirs") if foreign == "link" else previous
    target.write_bytes(theirs)
    if foreign == "link":
        previous.symlink_to(target)
    starts = {service(["run", "x"]): STARTS}
    trial.write_text(Trial("1.0", sha256(OLD), "0.9", sha256(theirs), starts).encode())
    for path in (target, previous, *([trial] if foreign == "trial" else [])):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    done = launch(sticky, "run", "x")
    assert done.stdout == "1.0 run x\n"
    assert sticky.read_bytes() == OLD
    told = {"trial": "tapotun.pyz.trial", "previous": "tapotun.pyz.previous", "link": "is not version 0.9 any more"}
    assert told[foreign] in done.stderr
    assert ("belongs to uid 65534, and is not used: remove it" in done.stderr) == (foreign != "link")


def test_the_list_of_refused_versions_is_bounded(pyz: Path) -> None:
    refused = pyz.parent / "tapotun.pyz.refused"
    refused.write_text("".join(f"0.{n}\n" for n in range(MAX_REFUSED)))
    update(pyz, "2.0", program("2.0", "sys.exit(1)"))
    for _ in range(STARTS + 1):
        launch(pyz, "run", "x")
    assert refused_versions(str(pyz)) == [*(f"0.{n}" for n in range(1, MAX_REFUSED)), "2.0"]


def test_journald_gets_an_error(pyz: Path) -> None:
    update(pyz, "2.0", program("2.0"))
    assert launch(pyz, "run", "x", env={**os.environ, "JOURNAL_STREAM": "8:1"}).stderr.startswith(
        "<3>tapotun: update: "
    )


def test_it_needs_nothing_of_the_program(pyz: Path) -> None:
    """In isolated mode, where this checkout cannot be imported."""
    update(pyz, "2.0", program("2.0", "print('tapotun_trio' in sys.modules)"))
    argv: list[str | Path] = [sys.executable, "-I", "-S", install_launcher(pyz), "run", "x"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.stdout == "False\n2.0 run x\n"
