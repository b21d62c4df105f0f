"""A new version in the place of the old one, and what is left of an installation that was killed or refused."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.errors import HostError
from tapotun_trio.update import launcher
from tapotun_trio.update.installed import Pyz
from tapotun_trio.update.launcher import begin, read_trial
from tapotun_trio.update.outcome import Found
from tapotun_trio.update.take import ReplacedError, adopt, install, require_replaceable
from tapotun_trio.update.trial import refused_versions
from tests.pyz_files import found, launch, program, running, sha256
from tests.unit.killed_update import ARGV, MODE, NEW, OLD

ROOT: Final = Path(__file__).parents[2]
NOBODY: Final = 65534


@pytest.fixture
def path() -> Iterator[Path]:
    """In a directory that every user may enter. pytest takes that from its own whenever it starts."""
    with tempfile.TemporaryDirectory(prefix="take-") as directory:
        made = Path(directory, "tapotun.pyz")
        made.parent.chmod(0o755)
        made.write_bytes(OLD)
        made.chmod(MODE)
        yield made


@pytest.fixture
def pyz(path: Path) -> Iterator[Pyz]:
    with running(path) as found:
        yield found


@pytest.fixture
def new() -> Iterator[Found]:
    with found("2.0", NEW) as new:
        yield new


def take(new: Found, pyz: Pyz) -> None:
    assert new.memfd is not None
    install(new.memfd, new, pyz, "1.0")


def files(directory: Path) -> dict[str, bytes]:
    """All but the one that is locked, which stays."""
    return {entry.name: entry.read_bytes() for entry in directory.iterdir() if entry.name != "tapotun.pyz.lock"}


def test_the_new_version_the_old_one_and_the_trial(path: Path, pyz: Pyz, new: Found) -> None:
    take(new, pyz)
    trial = read_trial(str(path))
    assert trial is not None
    assert vars(trial) == {
        "version": "2.0",
        "sha256": sha256(NEW),
        "previous_version": "1.0",
        "previous_sha256": sha256(OLD),
        "starts": {},
    }
    left = files(path.parent)
    assert left.pop("tapotun.pyz.trial")
    assert left == {"tapotun.pyz": NEW, "tapotun.pyz.previous": OLD}
    assert os.pread(pyz.fd, 1 << 16, 0) == OLD  # what runs


def test_mode_and_attributes_are_those_of_the_old_file(path: Path, pyz: Pyz, new: Found) -> None:
    path.chmod(0o2751)
    os.setxattr(path, "user.deployed-by", b"me")
    take(new, pyz)
    assert stat.S_IMODE(path.stat().st_mode) == 0o2751
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {"user.deployed-by": b"me"}


def test_owner_acl_and_selinux_label_are_those_of_the_old_file(path: Path, pyz: Pyz, new: Found) -> None:
    """As root, which may give all of them."""
    assert os.geteuid() == 0, "run this as root"
    os.chown(path, 810, 811)
    path.chmod(0o4750)
    label = b"system_u:object_r:bin_t:s0\0"
    os.setxattr(path, "security.selinux", label)
    # linux/posix_acl_xattr.h: version 2, then tag, permissions and id of each entry: user 812 may read it.
    entries = [(1, 7, -1), (2, 4, 812), (4, 5, -1), (16, 5, -1), (32, 0, -1)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, bits, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", acl)
    os.setxattr(path, "security.ima", b"\x04\x04" + bytes(32))  # of the old content
    take(new, pyz)
    made = path.stat()
    assert (made.st_uid, made.st_gid) == (810, 811)
    assert stat.S_IMODE(made.st_mode) == 0o4750
    has = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    assert has == {"security.selinux": label, "system.posix_acl_access": acl}


# Installs a version on a disk that has room for it, and for as many bytes more as the first argument says.
_NEARLY_FULL: Final = """
import os, sys
from pathlib import Path
from tapotun_trio.errors import HostError
from tapotun_trio.update import launcher
from tapotun_trio.update.take import install
from tests.pyz_files import found, program, running
path = Path(sys.argv[2], "tapotun.pyz")
path.write_bytes(program("1.0"))
path.chmod(0o755)
data = program("2.0") + bytes(40_000)
launcher.open_lock(f"{path}.lock")
disk = os.statvfs(path.parent)
blocks = disk.f_bavail - -(-(len(data) + int(sys.argv[1])) // disk.f_frsize)
with open(path.with_name("filler"), "wb") as filler:
    filler.write(bytes(blocks * disk.f_frsize))
try:
    with running(path) as pyz, found("2.0", data) as new:
        install(new.memfd, new, pyz, "1.0")
except HostError as exc:
    print(exc)
print(launcher.begin(str(path), ["run", "x"]) is not None, path.read_bytes() == data, sorted(os.listdir(path.parent)))
"""


def on_a_disk(tmp_path: Path, slack_bytes: int, files: int = 0) -> list[str]:
    """``files``: how many the disk can have; 0: no limit."""
    disk = f'mount -t tmpfs -o size=512k,nr_inodes={files} tmpfs "$1"; shift; exec "$@"'
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    argv: list[str | Path] = ["unshare", *root, "--mount", "sh", "-ec", disk, "sh", tmp_path]
    argv += [sys.executable, "-c", _NEARLY_FULL, str(slack_bytes), tmp_path]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.stdout.splitlines()


def test_a_version_whose_starts_could_not_be_counted_is_not_installed(tmp_path: Path) -> None:
    """The launcher would take it back, which makes the room in which the next check installs it again."""
    told, after = on_a_disk(tmp_path, 4096)
    assert "tapotun.pyz: cannot be replaced: the new version leaves less than 64 KiB on that disk" in told
    assert after.startswith("False False ['filler', 'tapotun.pyz', ")
    assert "trial" not in after
    assert "new" not in after
    [after] = on_a_disk(tmp_path, 65536)
    assert after.startswith("True True ")


def test_a_version_for_whose_notes_the_disk_has_no_file_is_not_installed(tmp_path: Path) -> None:
    told, after = on_a_disk(tmp_path, 65536, files=8)
    assert "the new version leaves less than 3 files (inodes) on that disk" in told
    assert after.startswith("False False ['filler', 'tapotun.pyz', ")
    [after] = on_a_disk(tmp_path, 65536, files=9)
    assert after.startswith("True True ")


def test_bytes_that_could_still_be_changed_are_a_bug(path: Path, pyz: Pyz) -> None:
    for seals in (0, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK):
        with found("2.0", NEW, seals=seals) as new, pytest.raises(AssertionError, match="not sealed"):
            take(new, pyz)
    assert files(path.parent) == {"tapotun.pyz": OLD}


def test_other_bytes_than_those_that_were_verified(path: Path, pyz: Pyz) -> None:
    with found("2.0", b"something else") as other, pytest.raises(HostError, match="its bytes have changed"):
        take(replace(other, sha256=sha256(NEW)), pyz)
    assert files(path.parent) == {"tapotun.pyz": OLD}


@pytest.mark.parametrize("stale", ["tapotun.pyz.new", "tapotun.pyz.previous.new", "tapotun.pyz.trial.new"])
def test_what_a_killed_process_has_left_is_no_hindrance(path: Path, pyz: Pyz, new: Found, stale: str) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"mine")
    path.with_name(stale).symlink_to(victim)
    take(new, pyz)
    assert sorted(files(path.parent)) == ["tapotun.pyz", "tapotun.pyz.previous", "tapotun.pyz.trial", "victim"]
    assert victim.read_bytes() == b"mine"


def test_where_a_file_can_have_one_name_only_the_old_one_is_copied(
    path: Path, pyz: Pyz, new: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT, or fs.protected_hardlinks=1 and a file of another owner."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    take(new, pyz)
    previous = path.with_name("tapotun.pyz.previous")
    assert previous.read_bytes() == OLD
    assert stat.S_IMODE(previous.stat().st_mode) == MODE
    assert path.read_bytes() == NEW
    assert len(files(path.parent)) == 3


# ------------------------------------------------------------------ somebody else


def by_hand(path: Path, data: bytes) -> None:
    mine = path.with_suffix(".mine")
    mine.write_bytes(data)
    mine.replace(path)


def test_what_a_person_has_installed_meanwhile_stays(path: Path, pyz: Pyz, new: Found) -> None:
    by_hand(path, program("1.5"))
    with pytest.raises(ReplacedError, match="somebody has replaced it since this process started; restart to run it"):
        take(new, pyz)
    with pytest.raises(ReplacedError):
        require_replaceable(pyz)
    with pytest.raises(ReplacedError):
        adopt(new, pyz, "1.0")
    assert files(path.parent) == {"tapotun.pyz": program("1.5")}


@pytest.mark.parametrize("moment", ["link", "rename"])
def test_also_in_the_middle_of_it(
    path: Path, pyz: Pyz, new: Found, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    call = getattr(os, moment)

    def meanwhile(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(os, moment, call)
        by_hand(path, program("1.5"))
        call(*arguments, **options)

    monkeypatch.setattr(os, moment, meanwhile)
    with pytest.raises(ReplacedError):
        take(new, pyz)
    left = files(path.parent)
    left.pop("tapotun.pyz.previous", None)
    assert left == {"tapotun.pyz": program("1.5")}


def test_a_pyz_that_was_removed(path: Path, pyz: Pyz, new: Found) -> None:
    path.unlink()
    with pytest.raises(HostError, match="cannot be replaced: No such file or directory"):
        take(new, pyz)
    assert files(path.parent) == {}


def test_a_version_that_another_process_has_installed_is_only_started(path: Path, pyz: Pyz, new: Found) -> None:
    assert not adopt(new, pyz, "1.0")
    take(new, pyz)
    path.with_name("tapotun.pyz.trial").unlink()  # the other process has started by now
    assert adopt(new, pyz, "1.0")
    trial = read_trial(str(path))  # this one has not
    assert trial is not None
    assert (trial.version, trial.previous_version, trial.previous_sha256) == ("2.0", "1.0", sha256(OLD))
    assert adopt(new, pyz, "1.0")


def test_two_processes_with_the_same_pyz_do_not_install_at_once(path: Path, pyz: Pyz, new: Found) -> None:
    """Their files have the same names. Without a lock, one of them renamed what the other had half written."""
    inside, go_on = threading.Event(), threading.Event()
    link = os.link

    def slow(*arguments: object, **options: object) -> None:
        if arguments[0] == str(path):
            inside.set()
            assert go_on.wait(60)
        link(*arguments, **options)  # type: ignore[arg-type]

    seen: list[HostError] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", slow)
        first = threading.Thread(target=take, args=(new, pyz))
        first.start()
        try:
            assert inside.wait(60)
            patch.setattr(launcher, "LOCK_S", 0.0)
            for attempt in (lambda: take(new, pyz), lambda: adopt(new, pyz, "1.0")):
                with pytest.raises(HostError, match="another process installs an update there; wait for it") as caught:
                    attempt()
                seen.append(caught.value)
            assert path.with_name("tapotun.pyz.new").read_bytes() == NEW
        finally:
            go_on.set()
            first.join()
    assert len(seen) == 2
    assert path.read_bytes() == NEW


# ------------------------------------------------------------------ killed


def killed(what: str, directory: Path) -> list[Path]:
    argv = [sys.executable, "-m", "tests.unit.killed_update", what, str(directory)]
    subprocess.run(argv, check=True, cwd=ROOT, timeout=240)
    return sorted(directory.iterdir(), key=lambda place: int(place.name))


def test_a_kill_at_any_moment_leaves_a_program_that_runs(tmp_path: Path) -> None:
    """Before each system call; what can be seen on the disk between two is the same as before the second."""
    places = killed("install", tmp_path)
    assert len(places) > 40
    seen: dict[tuple[tuple[str, bytes], ...], str] = {}
    versions = []
    for place in places:
        path = place / "tapotun.pyz"
        assert path.read_bytes() in (OLD, NEW)
        assert stat.S_IMODE(path.stat().st_mode) == MODE
        if path.read_bytes() == NEW:  # which may have to be taken back
            trial = read_trial(str(path))
            assert trial is not None
            assert sha256((place / "tapotun.pyz.previous").read_bytes()) == trial.previous_sha256 == sha256(OLD)
        state = tuple(sorted(files(place).items()))
        if state not in seen:
            seen[state] = launch(path, "run", "x").stdout
        versions.append(seen[state])
        if path.read_bytes() == OLD:  # the next attempt
            with running(path) as pyz, found("2.0", NEW) as new:
                take(new, pyz)
            assert path.read_bytes() == NEW
        assert not [name for name in files(place) if name.endswith(".new")]
    assert re.fullmatch("(1[.]0 run x\n)+(2[.]0 run x\n)+", "".join(versions))
    assert len(seen) > 6


def test_a_kill_while_the_old_version_is_put_back(tmp_path: Path) -> None:
    places = killed("begin", tmp_path)
    assert len(places) > 20
    for place in places:
        path = place / "tapotun.pyz"
        assert path.read_bytes() in (OLD, NEW)
        begin(str(path), ARGV)  # the next start
        assert path.read_bytes() == OLD
        assert stat.S_IMODE(path.stat().st_mode) == MODE
        assert refused_versions(str(path)) == ["1.5", "2.0"]
        begin(str(path), ARGV)  # if that start was only one of the old version
        assert not (place / "tapotun.pyz.trial").exists()


# ------------------------------------------------------------------ this machine refuses


def test_no_room(path: Path, pyz: Pyz, tmp_path: Path) -> None:
    """A limit of the size of files stands in for the disk: tests/packages/test_update.py has a full one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with found("2.0", program("2.0") + bytes(1 << 20)) as new:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            with pytest.raises(HostError, match="cannot be replaced: File too large"):
                take(new, pyz)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(path.parent) == {"tapotun.pyz": OLD}


# With what a daemon keeps of root's rights, or as another user: done in a child, which prints the error.
_AS: Final = """
import sys
from pathlib import Path
from tapotun_trio.errors import HostError
from tapotun_trio.host.process.privileges import CAP_NET_ADMIN, drop_privileges
from tapotun_trio.update.take import install, require_replaceable
from tests.unit.killed_update import NEW
from tests.pyz_files import found, running
import os

with running(Path(sys.argv[1])) as pyz, found("2.0", NEW) as new:
    if sys.argv[2] == "root":
        assert drop_privileges(1 << CAP_NET_ADMIN) is None
    else:
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    for attempt in (lambda: require_replaceable(pyz), lambda: install(new.memfd, new, pyz, "1.0")):
        try:
            attempt()
            print("done")
        except HostError as exc:
            print(exc)
"""


def refusals(path: Path, who: str) -> list[str]:
    """What the two functions say to that user."""
    argv = [sys.executable, "-c", _AS, str(path), who]
    done = subprocess.run(argv, check=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()


def test_root_as_the_daemon_has_it_may_replace_a_file_of_its_own(path: Path) -> None:
    assert refusals(path, "root") == ["done", "done"]
    assert path.read_bytes() == NEW


def test_a_directory_that_this_user_may_not_write_to(path: Path) -> None:
    both = refusals(path, str(NOBODY))
    remedy = "let the user of this process write to its directory, or install updates by hand"
    assert both == [
        f"{path}: cannot be replaced: Permission denied; {remedy}",
        f"{path}: cannot be replaced: {path}.lock.new: Permission denied; {remedy}",
    ]
    assert files(path.parent) == {"tapotun.pyz": OLD}


def test_a_lock_that_cannot_be_opened_is_named(path: Path, pyz: Pyz, new: Found) -> None:
    """The text was about the pyz."""
    lock = path.with_name("tapotun.pyz.lock")
    lock.symlink_to("/dev/null")
    with pytest.raises(HostError) as caught:
        take(new, pyz)
    assert str(caught.value).startswith(f"{path}: cannot be replaced: {lock}: Too many levels of symbolic links; ")


def test_a_file_of_another_owner(path: Path) -> None:
    os.chown(path.parent, NOBODY, NOBODY)
    both = refusals(path, str(NOBODY))
    assert "belongs to uid 0, and this process runs as uid 65534, which cannot keep that owner" in both[0]
    assert "a new file could not keep its owner: Operation not permitted" in both[1]
    assert files(path.parent) == {"tapotun.pyz": OLD}
    for entry in (path.parent, path.with_name("tapotun.pyz.lock")):
        os.chown(entry, 0, 0)
    os.chown(path, NOBODY, 0)
    both = refusals(path, "root")
    assert "belongs to uid 65534, and this process runs as uid 0" in both[0]
    assert "a new file could not keep its owner" in both[1]
    assert files(path.parent) == {"tapotun.pyz": OLD}


def test_a_label_that_cannot_be_kept(path: Path, pyz: Pyz, new: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SELinux refuses a label that the policy does not let this process give."""
    os.setxattr(path, "security.selinux", b"system_u:object_r:bin_t:s0\0")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(HostError, match=r"could not keep its attribute security\.selinux: Permission denied"):
        take(new, pyz)
    assert files(path.parent) == {"tapotun.pyz": OLD}


def test_a_directory_to_which_everybody_may_write(path: Path, pyz: Pyz, new: Found) -> None:
    """A person who types update --install is told as well."""
    path.parent.chmod(0o777)
    text = "everybody may write to it, and so replace the program; run chmod o-w"
    with pytest.raises(HostError, match=text):
        require_replaceable(pyz)
    with pytest.raises(HostError, match=text):
        take(new, pyz)
    assert files(path.parent) == {"tapotun.pyz": OLD}
    path.parent.chmod(0o1777)
    require_replaceable(pyz)
    path.parent.chmod(0o755)


def test_nothing_is_open_afterwards(path: Path, pyz: Pyz, new: Found) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    before = descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(HostError, match="Input/output error; install the update by hand"):
            take(new, pyz)
    assert files(path.parent) == {"tapotun.pyz": OLD}
    take(new, pyz)
    assert descriptors() == before
