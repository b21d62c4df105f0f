"""The daemon's task: when it looks, what it does with what it finds, and what it says."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tapotun_trio import app
from tapotun_trio.config.model import Config, UpdateConfig, Url
from tapotun_trio.control.handlers import Process
from tapotun_trio.errors import HostError
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.process.sd_notify import ServiceManager
from tapotun_trio.log import process_logger
from tapotun_trio.peer.boottime import boottime
from tapotun_trio.status.model import UpdateStatus
from tapotun_trio.update import confine, selfcheck, updater
from tapotun_trio.update.installed import Installation, Kind, Pyz
from tapotun_trio.update.launcher import Trial
from tapotun_trio.update.outcome import Found, Outcome, UpdateError, UpToDate
from tapotun_trio.update.trial import START_S, open_trial, starting
from tapotun_trio.update.updater import RETRY_S, Updater
from tests.pyz_files import found, install_launcher, program, running, sha256

OLD, NEW = program("1.0"), program("2.0")
DAY_S = 86400.0
CONFIG = UpdateConfig(Url("https", "updates.example.com", 443, "/"), mode="apply", every_s=DAY_S, spread_s=3600.0)


class Repository:
    """What a check finds, one answer after the other; the last one for ever."""

    def __init__(self, *answers: Outcome | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[float, bool]] = []

    async def check(self, config: UpdateConfig, installed: str, state: Path, *, download: bool) -> Outcome:
        assert installed == "1.0"
        self.asked.append((trio.current_time(), download))
        await trio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Found) and download and answer.memfd is not None:
            return Found(answer.version, answer.sha256, answer.length, os.dup(answer.memfd), answer.warnings)
        return answer


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions that were tried. test_update_selfcheck.py is about the trying."""
    versions: list[str] = []

    async def self_check(program: int, version: str, config_file: str, running: int) -> None:
        assert config_file == "/etc/x.json"
        versions.append(version)

    monkeypatch.setattr(selfcheck, "self_check", self_check)
    return versions


@pytest.fixture(autouse=True)
def middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance chooses the middle of each range."""
    monkeypatch.setattr(updater.random, "uniform", lambda least, most: (least + most) / 2)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps does not wait for a thread."""

    async def run_sync(work: Callable[..., object], *arguments: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
def pyz(tmp_path: Path) -> Iterator[Pyz]:
    path = tmp_path / "tapotun.pyz"
    path.write_bytes(OLD)
    path.chmod(0o755)
    with running(path) as found:
        yield Pyz(found.path, found.fd, found.path.removesuffix(".pyz"))


@pytest.fixture
def new() -> Iterator[Found]:
    with found("2.0", NEW) as new:
        yield new


def made(
    pyz: Pyz | None, repository: Repository, tmp_path: Path, *, kind: Kind = "pyz", changes_user: bool = False
) -> Updater:
    installation = Installation(kind, pyz)
    log = process_logger()
    state = tmp_path / "state"
    state.mkdir()  # as the real check does
    return Updater(installation, "1.0", "/etc/x.json", state, log, changes_user=changes_user, check=repository.check)


def installed(pyz: Pyz) -> bytes:
    return Path(pyz.path).read_bytes()


def replace_by_hand(pyz: Pyz, data: bytes) -> None:
    Path(pyz.path).write_bytes(data)


def note(pyz: Pyz, suffix: str, text: str) -> None:
    Path(f"{pyz.path}.{suffix}").write_text(text, encoding="ascii")


def is_on_trial(pyz: Pyz) -> bool:
    return Path(f"{pyz.path}.trial").exists()


def status_of(updater: Updater) -> UpdateStatus:
    assert updater.status is not None
    return updater.status


async def run_for(seconds: float, updater: Updater) -> str | None:
    """Run it for that long. Returns what was installed."""
    with trio.move_on_after(seconds):
        return await updater.run()
    return None


def with_mode(mode: Any, **changes: Any) -> UpdateConfig:
    from dataclasses import replace

    return replace(CONFIG, mode=mode, **changes)


async def test_nothing_is_looked_for_unless_the_config_says_so(
    pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock
) -> None:
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(None)
    assert await run_for(10 * DAY_S, it) is None
    assert (it.status, repository.asked) == (None, [])


async def test_each_check_waits_for_a_part_of_the_spread(pyz: Pyz, tmp_path: Path, autojump_clock: MockClock) -> None:
    repository = Repository(UpToDate("1.0"))
    it = made(pyz, repository, tmp_path)
    it.configure(CONFIG)
    began = trio.current_time()
    assert await run_for(3 * DAY_S, it) is None
    times = [at - began for at, _ in repository.asked]
    assert times == pytest.approx([1800, 1800 + DAY_S + 1800, 1800 + 2 * (DAY_S + 1800)])
    status = status_of(it)
    assert (status.available, status.error, status.obstacle) == (None, None, None)
    assert status.checked_at is not None


async def test_a_failure_is_tried_again_later_and_later(
    pyz: Pyz, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    repository = Repository(*[UpdateError("no answer")] * 9, UpdateError("the metadata has expired"), UpToDate("1.0"))
    it = made(pyz, repository, tmp_path)
    it.configure(CONFIG)
    with caplog.at_level("INFO", "tapotun"):
        await run_for(DAY_S, it)
        times = [at for at, _ in repository.asked]
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert pauses[:8] == pytest.approx([0.75 * min(RETRY_S * 2**n, DAY_S) for n in range(8)])
        assert status_of(it).error == "no answer"
        await run_for(9 * DAY_S, it)
    assert status_of(it).error is None
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["update: no answer", "update: the metadata has expired"]  # each once


async def test_a_bug_ends_a_check_and_not_the_daemon(
    pyz: Pyz, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    repository = Repository(ZeroDivisionError("x"), MemoryError(), UpToDate("1.0"))
    it = made(pyz, repository, tmp_path)
    it.configure(CONFIG)
    await run_for(2 * DAY_S, it)
    assert len(repository.asked) > 2
    first, second = caplog.records
    assert (first.getMessage(), first.exc_info is not None) == ("update: internal error", True)
    assert "Cannot allocate memory" in second.getMessage()


async def test_apply(pyz: Pyz, tmp_path: Path, new: Found, checked: list[str], autojump_clock: MockClock) -> None:
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(CONFIG)
    assert await run_for(DAY_S, it) == "2.0"
    assert [download for _, download in repository.asked] == [False, True]
    assert checked == ["2.0"]
    assert installed(pyz) == NEW
    assert new.memfd is not None
    os.fstat(new.memfd)  # the test's own is still open; test_no_descriptor_stays_open has the updater's


async def test_no_descriptor_stays_open(
    pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise HostError("version 2.0 would not work on this machine")

    it = made(pyz, Repository(new), tmp_path)
    it.configure(CONFIG)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(selfcheck, "self_check", refuse)
        assert await run_for(5 * DAY_S, it) is None
    assert installed(pyz) == OLD
    assert status_of(it).error == "version 2.0 would not work on this machine"
    assert await run_for(5 * DAY_S, it) == "2.0"
    assert len(os.listdir("/proc/self/fd")) == before


async def test_check_only_reports(
    pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(with_mode("check"))
    caplog.set_level("INFO", "tapotun")
    assert await run_for(5 * DAY_S, it) is None
    assert not any(download for _, download in repository.asked)
    command = f"{pyz.path} update --install /etc/x.json"
    assert (status_of(it).available, status_of(it).command) == ("2.0", command)
    assert [record.getMessage() for record in caplog.records] == [f"update: version 2.0 is available: {command}"]


async def test_download_keeps_a_file_that_was_tried(
    pyz: Pyz, tmp_path: Path, new: Found, checked: list[str], autojump_clock: MockClock
) -> None:
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(with_mode("download"))
    assert await run_for(5 * DAY_S, it) is None
    assert [download for _, download in repository.asked].count(True) == 1  # it is there already
    kept = tmp_path / "state" / "tapotun.pyz"
    assert kept.read_bytes() == NEW
    assert sorted(os.listdir(kept.parent)) == ["tapotun.pyz", "tapotun.pyz.lock"]
    assert status_of(it).downloaded == str(kept)
    assert checked == ["2.0"]
    assert installed(pyz) == OLD
    # Nor does the next process fetch it again.
    later = Updater(it.installation, "1.0", "/etc/x.json", kept.parent, process_logger(), check=repository.check)
    later.configure(with_mode("download"))
    assert await run_for(5 * DAY_S, later) is None
    assert [download for _, download in repository.asked].count(True) == 1
    assert status_of(later).downloaded == str(kept)


async def test_what_fails_after_a_download_waits_for_the_next_check(
    pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise HostError("version 2.0 would not work on this machine")

    monkeypatch.setattr(selfcheck, "self_check", refuse)
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(CONFIG)
    assert await run_for(3 * DAY_S, it) is None
    assert [download for _, download in repository.asked].count(True) == 3
    assert status_of(it).error == "version 2.0 would not work on this machine"


OTHERS: dict[Kind, str] = {
    "deb": "apt update && apt install --only-upgrade tapotun",
    "pip": "-m pip install --upgrade 'tapotun-trio[update]'",
    "container": "build or pull the newer image",
    "checkout": "git pull",
}


@pytest.mark.parametrize(("kind", "command"), OTHERS.items())
async def test_other_packages_are_only_reported(
    kind: Kind, command: str, tmp_path: Path, new: Found, autojump_clock: MockClock
) -> None:
    repository = Repository(new)
    it = made(None, repository, tmp_path, kind=kind)
    it.configure(CONFIG)
    assert await run_for(5 * DAY_S, it) is None
    assert not any(download for _, download in repository.asked)
    status = status_of(it)
    assert (status.available, status.installation) == ("2.0", kind)
    assert status.command is not None
    assert command in status.command
    assert status.obstacle is not None
    assert command in status.obstacle


@pytest.mark.parametrize("why", ["no launcher", "user", "place", "no Landlock"])
async def test_what_cannot_be_installed_is_said_at_the_start_and_only_reported(
    why: str,
    pyz: Pyz,
    tmp_path: Path,
    new: Found,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = Repository(new)
    expected = {
        "no launcher": f"start {pyz.path.removesuffix('.pyz')} instead, once this has made it: cd ",
        "user": "is started as root and must not be writable for that user",
        "place": "everybody may write to it",
        "no Landlock": "there is no Landlock here",
    }[why]
    of = Pyz(pyz.path, pyz.fd, None) if why == "no launcher" else pyz
    it = made(of, repository, tmp_path, changes_user=why == "user")
    if why == "place":
        Path(pyz.path).parent.chmod(0o777)
    if why == "no Landlock":
        monkeypatch.setattr(confine, "_landlock_version", lambda libc: 0)
        it.configure(CONFIG)
        assert status_of(it).obstacle is None  # root's workers become another user
        it.configure(None)
        for path in (pyz.path, os.path.dirname(pyz.path)):
            os.chown(path, 1000, 1000)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    it.configure(CONFIG)
    assert expected in caplog.records[0].getMessage()
    assert caplog.records[0].levelname == "WARNING"
    assert await run_for(5 * DAY_S, it) is None
    assert not any(download for _, download in repository.asked)
    assert expected in str(status_of(it).obstacle)
    assert installed(pyz) == OLD


def test_an_older_launcher_is_told_of_at_the_start(
    pyz: Pyz, tmp_path: Path, new: Found, caplog: pytest.LogCaptureFixture
) -> None:
    """It locks the directory, and this program locks a file of its own: neither waits for the other."""
    it = made(pyz, Repository(new), tmp_path)
    install_launcher(Path(pyz.path))
    it.configure(CONFIG)
    assert not caplog.records
    launcher = Path(pyz.path.removesuffix(".pyz"))
    launcher.write_text(launcher.read_text().replace(".pyz.lock", ""))
    it.configure(None)
    it.configure(CONFIG)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    _, _, command = record.getMessage().partition("print it again: ")
    old = launcher.stat().st_ino
    subprocess.run(["sh", "-c", command], check=True)
    assert launcher.read_text() == "1.0 launcher\n"  # what this pyz prints
    assert os.access(launcher, os.X_OK)
    assert launcher.stat().st_ino != old  # whoever starts it meanwhile finds the whole of one of them
    assert status_of(it).obstacle is None


async def test_a_version_that_did_not_start_is_not_taken_again(
    pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    note(pyz, "refused", "1.5\n2.0\n")
    caplog.set_level("INFO", "tapotun")
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(CONFIG)
    assert await run_for(5 * DAY_S, it) is None
    assert not any(download for _, download in repository.asked)
    assert status_of(it).refused == ["1.5", "2.0"]
    assert "version 2.0 is available, but did not start here" in caplog.text


async def test_refusals_that_it_may_not_read_are_no_permission(
    pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root has gone back by hand, with an umask of 077. (Here, root may read everything.)"""
    note(pyz, "refused", "2.0\n")
    real = os.open

    def guarded(path: str, *arguments: Any, **more: Any) -> int:
        if str(path).endswith(".refused"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", guarded)
    it = made(pyz, Repository(new), tmp_path)
    it.configure(CONFIG)
    assert await run_for(5 * DAY_S, it) is None
    assert installed(pyz) == OLD
    assert "tapotun.pyz.refused cannot be read: Permission denied; nothing is installed" in str(status_of(it).error)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("owner", "belongs to uid 65534, and is not used: remove it"),
        ("link", "Too many levels of symbolic links"),
        ("directory", "Is a directory"),
    ],
)
async def test_refusals_that_nobody_can_read_are_no_permission(
    kind: str, why: str, pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock
) -> None:
    """A member of the group that may write to the directory may have gone back by hand."""
    refused = f"{pyz.path}.refused"
    if kind == "link":
        os.symlink("elsewhere", refused)
    elif kind == "directory":
        os.mkdir(refused)
    else:
        note(pyz, "refused", "2.0\n")
        os.chown(refused, 65534, 65534)
    it = made(pyz, Repository(new), tmp_path)
    it.configure(CONFIG)
    assert await run_for(5 * DAY_S, it) is None
    assert installed(pyz) == OLD
    error = str(status_of(it).error)
    assert f"tapotun.pyz.refused cannot be read: {why}; nothing is installed" in error
    assert "make it a regular file of root's" in error


async def test_a_pyz_that_can_have_no_launcher_is_told_of_no_command_that_would_overwrite_it(
    pyz: Pyz, tmp_path: Path, new: Found
) -> None:
    it = made(Pyz(pyz.path.removesuffix(".pyz"), pyz.fd, None), Repository(new), tmp_path)
    it.configure(CONFIG)
    remedy = "; give it a name that ends with .pyz, such as tapotun.pyz, and restart"
    assert str(status_of(it).obstacle).endswith(remedy)


async def test_a_reload_begins_anew(pyz: Pyz, tmp_path: Path, new: Found, autojump_clock: MockClock) -> None:
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(with_mode("check"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run)
        await trio.sleep(DAY_S / 2)
        assert len(repository.asked) == 1
        it.configure(with_mode("check"))  # the same
        await trio.sleep(DAY_S / 4)
        assert len(repository.asked) == 1
        it.configure(None)
        await trio.sleep(5 * DAY_S)
        assert (len(repository.asked), it.status) == (1, None)
        it.configure(CONFIG)
        await trio.sleep(3600)
    assert installed(pyz) == NEW


async def test_a_version_of_another_process_is_started_and_not_installed_again(
    pyz: Pyz, tmp_path: Path, new: Found, checked: list[str], autojump_clock: MockClock
) -> None:
    os.rename(pyz.path, f"{pyz.path}.previous")
    replace_by_hand(pyz, NEW)
    repository = Repository(new)
    it = made(pyz, repository, tmp_path)
    it.configure(with_mode("apply"))
    assert await run_for(DAY_S, it) == "2.0"
    assert not any(download for _, download in repository.asked)
    assert checked == []


# ------------------------------------------------------------------ the end of the process


@pytest.mark.parametrize(
    ("failure", "code"), [(None, 0), (HostError("tun0: cannot be undone"), 1), (ZeroDivisionError("x"), 3)]
)
@pytest.mark.parametrize("updated", [False, True])
def test_a_process_that_fails_while_it_stops_for_an_update_is_started_again(
    updated: bool, failure: Exception | None, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A service manager would not start the new version after 1."""

    def run(serve: object, *arguments: object) -> None:
        (updater,) = (it for it in arguments if isinstance(it, Updater))
        updater.ends_process = updated
        if failure is not None:
            raise ExceptionGroup("", [failure])

    for name in ("set_mmap_threshold", "raise_fd_limit", "_give_up_privileges"):
        monkeypatch.setattr(app, name, lambda *_: None)
    monkeypatch.setattr(trio, "run", run)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    config = Config(())
    found = app.run(
        config, lambda: config, name="it", config_file=str(tmp_path / "x.json"), notify_fd=None, ready_timeout_s=1.0
    )
    assert found == (75 if updated else code)


@pytest.mark.parametrize("user", ["nobody", None])
def test_a_process_that_becomes_another_user_ends_a_trial_before(
    user: str | None, pyz: Pyz, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later it could not, and root's launcher would take a good version back after three starts."""
    assert os.geteuid() == 0, "run this as root"
    seen: list[bool] = []
    installation = on_trial(pyz)
    monkeypatch.setattr(app, "find_installation", lambda: installation)
    monkeypatch.setattr(app, "__version__", "1.0")
    monkeypatch.setattr(app, "_give_up_privileges", lambda *_: seen.append(is_on_trial(pyz)))
    for name in ("set_mmap_threshold", "raise_fd_limit"):
        monkeypatch.setattr(app, name, lambda *_: None)
    monkeypatch.setattr(trio, "run", lambda *_: None)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    config = Config((), user=user)
    app.run(config, lambda: config, name="it", config_file="/etc/x.json", notify_fd=None, ready_timeout_s=1.0)
    assert seen == [user is None]


# ------------------------------------------------------------------ the end of a trial


def on_trial(pyz: Pyz) -> Installation:
    open_trial(pyz.path, Trial("1.0", sha256(OLD), "0.9", "x"))
    return Installation("pyz", pyz)


async def test_a_start_ends_the_trial(pyz: Pyz, caplog: pytest.LogCaptureFixture) -> None:
    installation = on_trial(pyz)
    with caplog.at_level("INFO", "tapotun"):
        async with starting(installation, "1.0", process_logger()):
            assert is_on_trial(pyz)
        assert not is_on_trial(pyz)
        assert caplog.messages == ["update: version 1.0 has started, and stays"]
        caplog.clear()
        async with starting(installation, "1.0", process_logger()):
            pass
        assert caplog.messages == []


async def test_a_start_that_fails_does_not(pyz: Pyz) -> None:
    with pytest.raises(HostError, match="x"):
        async with starting(on_trial(pyz), "1.0", process_logger()):
            raise HostError("x")
    assert is_on_trial(pyz)


@pytest.mark.parametrize("broken", [True, False])
async def test_a_version_that_could_not_update_itself_has_not_started(
    broken: bool, pyz: Pyz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task for updates comes last. A version that fails there would be started again and again, and stay."""

    async def run_interfaces(*_: object, task_status: trio.TaskStatus[list[object]]) -> None:
        task_status.started([])

    async def open_admin(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    def configure(_: object) -> None:
        assert is_on_trial(pyz)
        if broken:
            raise ZeroDivisionError

    async def run() -> str:
        return "2.0"  # ends the process

    it = made(pyz, Repository(UpToDate("1.0")), tmp_path)
    it.installation = on_trial(pyz)
    monkeypatch.setattr(it, "configure", configure)
    monkeypatch.setattr(it, "run", run)
    monkeypatch.setattr(app, "__version__", "1.0")
    monkeypatch.setattr(app, "run_interfaces", run_interfaces)
    monkeypatch.setattr(app, "_open_admin", open_admin)
    monkeypatch.setattr(app, "_control_socket", lambda *_: nullcontext())
    config = Config(())
    process = Process("it", "x.json", boottime())
    failed = False
    with ServiceManager({}, None, process_logger()) as manager:
        try:
            await app.serve(config, lambda: config, RealHost("x.json"), process, manager, it, 1.0)
        except* ZeroDivisionError:
            failed = True
    assert (failed, is_on_trial(pyz), it.ends_process) == (broken, broken, not broken)


async def test_a_start_that_hangs_fails(pyz: Pyz, autojump_clock: MockClock) -> None:
    with pytest.raises(HostError, match=r"version 1\.0 is on trial, and has not started within 300 s"):
        async with starting(on_trial(pyz), "1.0", process_logger()):
            await trio.sleep_forever()
    assert is_on_trial(pyz)
    os.unlink(f"{pyz.path}.trial")
    began = trio.current_time()
    async with starting(Installation("pyz", pyz), "1.0", process_logger()):
        await trio.sleep(START_S * 2)  # not on trial
    assert trio.current_time() - began >= START_S * 2
    async with starting(Installation("deb"), "1.0", process_logger()):
        pass


async def test_a_trial_that_cannot_be_ended_is_said(
    pyz: Pyz, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installation = on_trial(pyz)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "unlink", refuse)
    async with starting(installation, "1.0", process_logger()):
        pass
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert f"Read-only file system; remove {pyz.path}.trial, or" in record.getMessage()


async def test_newer_versions_that_did_not_start_are_said_at_each_start(
    pyz: Pyz, caplog: pytest.LogCaptureFixture
) -> None:
    note(pyz, "refused", "0.9\nnonsense\n2.0\n")
    async with starting(Installation("pyz", pyz), "1.0", process_logger()):
        pass
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "version 2.0 did not start here; this version is back" in record.getMessage()
