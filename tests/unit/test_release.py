"""tools/release: what it publishes, read by the client of The Update Framework, and what it refuses to do."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.ngclient import Updater

from tapotun_trio.update.trust import Refresh, Target
from tools.release import version
from tools.release.__main__ import _parser, main
from tools.release.keys import Keys, ReleaseError, make_key, read_public
from tools.release.repository import LOCK, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Pyz, Repository

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def pyz(number: str, *, python: str = ">=3.11", shebang: bytes = b"#!/usr/bin/env python3\n", more: str = "") -> bytes:
    """As much of a tapotun.pyz as is looked at."""
    out = io.BytesIO()
    out.write(shebang)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("tapotun_trio/__init__.py", f'"""Doc."""\n\n__version__ = "{number}"\n{more}')
        archive.writestr("tapotun_trio-1.dist-info/METADATA", f"Metadata-Version: 2.4\nRequires-Python: {python}\n\n__")
    return out.getvalue()


class Place:
    """A publisher's directories, and clients that read the repository by HTTP."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.keys = directory / "keys"
        self.repository = directory / "www"
        self.keys.mkdir()

    def make_keys(self, *names: str) -> list[SSlibKey]:
        return [make_key(self.keys / f"{name}.pem", None) for name in names]

    def at(self, now: datetime = NOW, keys: Path | None = None) -> Repository:
        """As it is used at that time, perhaps on a machine with other keys. None has a passphrase."""
        place = keys or self.keys
        return Repository(self.repository, Keys(place, pytest.fail), place / "root.json", now)

    def keys_of(self, *names: str) -> Path:
        """A directory with only these, and the trusted root: another machine's."""
        made = self.directory / "-".join(names)
        made.mkdir()
        for name in names:
            shutil.copy(self.keys / f"{name}.pem", made)
        for file in self.keys.glob("*.pub"):
            shutil.copy(file, made)
        shutil.copy(self.keys / "root.json", made)
        return made

    def publish(self, number: str, repository: Repository | None = None) -> bytes:
        file = self.directory / f"tapotun-{number}.pyz"
        file.write_bytes(pyz(number))
        assert (repository or self.at()).publish("stable", file) == number
        return file.read_bytes()

    def client(self, name: str = "client", channel: str = "stable") -> tuple[str, bytes] | None:
        """What a machine finds, which keeps what it trusts from one time to the next. The first root is its anchor.

        Raises tuf's errors.
        """
        state = self.directory / name
        state.mkdir(exist_ok=True)
        root = (self.repository / "metadata" / "1.root.json").read_bytes()
        updater = Updater(
            str(state), f"{self.url}/metadata/", str(state), f"{self.url}/targets/", bootstrap=root if name else None
        )
        updater.refresh()
        found = updater.get_targetinfo(f"{channel}/tapotun.pyz")
        if found is None:
            return None
        assert found.custom["python"] == "3.11"
        return found.custom["version"], Path(updater.download_target(found)).read_bytes()

    def files(self) -> Mapping[str, bytes]:
        return {
            str(it.relative_to(self.repository)): it.read_bytes() for it in self.repository.rglob("*") if it.is_file()
        }


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Place]:
    """No keys, no repository."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Nothing: pytest has the errors."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Place(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()


def initial(place: Place, *, threshold: int = 1, now: datetime = NOW) -> Place:
    root_1, root_2, targets, online = place.make_keys("root-1", "root-2", "targets", "online")
    keys = {ROOT: [root_1, root_2], TARGETS: [targets], SNAPSHOT: [online], TIMESTAMP: [online]}
    place.at(now).init(keys, threshold)
    return place


@pytest.fixture
def place(empty: Place) -> Place:
    """A repository without a target, and two root keys of which each suffices."""
    return initial(empty)


# ------------------------------------------------------------------ publishing


def test_clients_get_what_is_published_and_then_what_is_newer(place: Place) -> None:
    assert place.client() is None
    for number in ("0.2.0rc1", "0.2.0", "0.10.0"):
        data = place.publish(number)
        assert place.client() == (number, data)
    assert place.client("new") == ("0.10.0", data)
    # The files before stay, for clients that are about to fetch one.
    assert len(list((place.repository / "targets" / "stable").iterdir())) == 3
    assert {it.stat().st_mode & 0o777 for it in place.repository.rglob("*.json")} == {0o644}


def test_the_program_s_own_check_takes_it_and_follows_when_all_keys_are_replaced(place: Place) -> None:
    """What `tapotun update` reads, without its processes: tests/unit/test_update_check.py has those."""
    anchor = (place.repository / "metadata" / "1.root.json").read_bytes()

    def look(kept: dict[str, bytes]) -> tuple[Target, dict[str, bytes]]:
        refresh = Refresh(anchor, kept)
        steps = refresh.run()
        data: bytes | None = None
        with suppress(StopIteration):
            while True:
                file = place.repository / "metadata" / steps.send(data).name
                data = file.read_bytes() if file.exists() else None
        assert not refresh.discarded
        return refresh.target("stable"), refresh.kept

    kept: dict[str, bytes] = {}
    for number in ("1.0", "1.1"):
        content = place.publish(number)
        target, kept = look(kept)
        assert (target.version, target.python, target.length) == (number, (3, 11), len(content))
        assert (place.repository / "targets" / "stable" / f"{target.sha256}.tapotun.pyz").read_bytes() == content
        root, targets, online = place.make_keys(*(f"{role}-{number}" for role in ("root", "targets", "online")))
        place.at().rotate({ROOT: [root], TARGETS: [targets], SNAPSHOT: [online], TIMESTAMP: [online]}, None)
    assert look(kept)[0].version == look({})[0].version == "1.1"


def test_channels_do_not_know_each_other(place: Place) -> None:
    stable = place.publish("0.2.0")
    file = place.directory / "beta.pyz"
    file.write_bytes(pyz("0.3.0b1"))
    place.at().publish("beta", file)
    assert place.client() == ("0.2.0", stable)
    assert place.client(channel="beta") == ("0.3.0b1", file.read_bytes())


@pytest.mark.parametrize("number", ["0.2.0", "0.1.9", "0.2.0rc1", "0.2", "0.2.0.dev3", "latest", "1" * 70])
def test_what_no_client_would_take_is_refused(place: Place, number: str) -> None:
    place.publish("0.2.0")
    before = place.files()
    file = place.directory / "other.pyz"
    file.write_bytes(pyz(number))
    with pytest.raises(ReleaseError, match=r"clients take only what is newer|not a version number"):
        place.at().publish("stable", file)
    assert place.files() == before


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a tapotun.pyz"),
        (b"#!/usr/bin/env python3\nprint()", "not a tapotun.pyz"),
        (pyz("0.2.0", shebang=b""), "no #! line"),
        (pyz("0.2.0", python=">=3.11,<4"), "such as >=3.11"),
        (pyz("0.2.0").replace(b"__version__", b"__revision_"), "damaged"),
        (pyz("0.2.0")[:-10], "not a tapotun.pyz"),
    ],
    ids=["empty", "a script", "no shebang", "python", "damaged", "truncated"],
)
def test_a_file_that_is_no_pyz(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ReleaseError, match=text):
        Pyz.read(tmp_path / "file")


def test_a_pyz_that_is_damaged_anywhere(tmp_path: Path) -> None:
    """A packed one, as the real one is: zlib notices first."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(pyz("0.2.0"))) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    whole = b"#!/usr/bin/env python3\n" + packed.getvalue()
    file = tmp_path / "file"
    refused = 0
    for at in range(23, len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            Pyz.read(file)
        except ReleaseError:
            refused += 1
    assert refused > (len(whole) - 23) * 0.7  # dates and the like are not looked at


def test_a_file_that_is_too_large_for_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(pyz("0.2.0"))
    monkeypatch.setattr("tools.release.repository.TARGET_BYTES", len(pyz("0.2.0")) - 1)
    with pytest.raises(ReleaseError, match="bytes, and clients take"):
        Pyz.read(tmp_path / "file")


@pytest.mark.parametrize("channel", ["", "Stable", "../stable", "a/b", "a" * 33])
def test_a_channel_is_a_word(place: Place, channel: str) -> None:
    with pytest.raises(ReleaseError, match="not the name of a channel"):
        place.at().publish(channel, Path("nothing"))


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


@pytest.mark.parametrize("what", ["publish", "rotate"])
def test_a_run_that_is_killed_at_any_write_leaves_the_state_before_and_can_be_repeated(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    before = ("0.2.0", place.publish("0.2.0"))
    new_targets, new_online = place.make_keys("targets-2", "online-2")
    keys = {TARGETS: [new_targets], SNAPSHOT: [new_online], TIMESTAMP: [new_online]}
    replace = os.replace

    def change() -> tuple[str, bytes]:
        if what == "publish":
            return "0.3.0", place.publish("0.3.0")
        place.at().rotate(keys, None)
        return before

    for survived in range(10):
        left = [survived]

        def dying(source: str, target: Path, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            after = change()
        except Killed:
            monkeypatch.setattr(os, "replace", replace)
            assert place.client() in (before, ("0.3.0", pyz("0.3.0")))
            assert place.client(f"new-{survived}") in (before, ("0.3.0", pyz("0.3.0")))
        else:
            break
    monkeypatch.setattr(os, "replace", replace)
    assert survived >= 4, "targets, file or root, snapshot, timestamp: each was the one that failed"
    assert place.client() == after


def test_one_run_at_a_time(place: Place) -> None:
    with place.at()._locked(), pytest.raises(ReleaseError, match="in use by another run"):
        place.at().refresh()


# ------------------------------------------------------------------ expiry


def test_a_repository_that_nobody_refreshes_is_refused_and_a_refresh_mends_it(empty: Place) -> None:
    data = initial(empty, now=NOW - 8 * DAY).publish("0.2.0", empty.at(NOW - 8 * DAY))
    with pytest.raises(ExpiredMetadataError, match="timestamp"):
        empty.client()
    assert empty.at(keys=empty.keys_of("online")).refresh() == []
    assert empty.client() == ("0.2.0", data)


def test_a_refresh_signs_what_has_passed_half_of_its_life_and_asks_for_the_keys_that_it_lacks(empty: Place) -> None:
    initial(empty, now=NOW - 200 * DAY).publish("0.2.0", empty.at(NOW - 200 * DAY))
    online = empty.keys_of("online")
    warnings = empty.at(keys=online).refresh()
    assert [it.split()[0] for it in warnings] == ["targets", "root"]
    assert empty.client() is not None
    assert (empty.repository / "metadata" / "3.snapshot.json").exists(), "it lives for 30 days, so it was due"
    assert not (empty.repository / "metadata" / "3.targets.json").exists()
    warnings = empty.at(keys=empty.keys_of("online", "targets")).refresh()
    assert [it.split()[0] for it in warnings] == ["root"]
    assert (empty.repository / "metadata" / "3.targets.json").exists()
    empty.at().rotate({}, None)
    assert empty.at(keys=online).refresh() == []
    assert empty.client() is not None


def test_more_keys_than_must_sign_are_enough(empty: Place) -> None:
    initial(empty, now=NOW - 200 * DAY)
    (second,) = empty.make_keys("targets-2")
    empty.at(NOW - 199 * DAY).rotate({TARGETS: [_public(empty, "targets"), second]}, None)
    assert [it.split()[0] for it in empty.at().refresh()] == ["root"]
    assert len(empty.at()._load().targets.signatures) == 2
    assert empty.client() is None


def test_where_nothing_can_be_written(place: Place) -> None:
    (place.directory / "file").write_bytes(pyz("0.2.0"))
    (place.repository / "targets" / "stable").write_text("a file", encoding="ascii")
    with pytest.raises(ReleaseError, match="stable: File exists"):
        place.at().publish("stable", place.directory / "file")
    with pytest.raises(ReleaseError, match="Not a directory"):
        Repository(place.directory / "file", place.at()._keys, place.directory / "root.json", NOW).init({}, 1)


def test_a_day_later_only_the_timestamp_is_signed(place: Place) -> None:
    before = place.files()
    assert place.at(NOW + DAY).refresh() == []
    assert {name for name, data in place.files().items() if before.get(name) != data} == {"metadata/timestamp.json"}


# ------------------------------------------------------------------ other keys


@pytest.mark.parametrize("roles", [[TARGETS], [SNAPSHOT, TIMESTAMP], [ROOT], [ROOT, TARGETS, SNAPSHOT, TIMESTAMP]])
def test_other_keys_are_taken_by_clients_that_know_the_old_ones(place: Place, roles: Sequence[str]) -> None:
    place.publish("0.2.0")
    assert place.client("old") is not None
    (key,) = place.make_keys("new")
    (second,) = place.make_keys("second")
    assert place.at().rotate({role: [second if role == ROOT else key] for role in roles}, None) == 2
    # In the moment before the new root.json is there, those with the old one can read it all.
    shutil.move(place.repository / "metadata" / "2.root.json", place.directory / "2.root.json")
    assert place.client("between") is not None
    shutil.move(place.directory / "2.root.json", place.repository / "metadata" / "2.root.json")
    # Without the old ones: what they sign counts no more.
    for name in ("root-1", "root-2") if ROOT in roles else ():
        (place.keys / f"{name}.pem").unlink()
    for name in ("targets",) if TARGETS in roles else ():
        (place.keys / f"{name}.pem").unlink()
    for name in ("online",) if TIMESTAMP in roles else ():
        (place.keys / f"{name}.pem").unlink()
    data = place.publish("0.3.0")
    assert place.client("old") == ("0.3.0", data)
    assert place.client("between") == ("0.3.0", data)
    assert place.at().rotate({}, None) == 3
    assert place.client("new") == ("0.3.0", data)


def test_a_lost_root_key_is_replaced_by_the_other_one(place: Place) -> None:
    (place.keys / "root-1.pem").unlink()
    (third,) = place.make_keys("root-3")
    assert place.at().rotate({ROOT: [_public(place, "root-2"), third]}, None) == 2
    (place.keys / "root-2.pem").unlink()
    assert place.at().rotate({}, None) == 3
    assert place.client() is None


def test_a_stolen_online_key_that_ran_ahead_is_recovered_from(place: Place) -> None:
    """A thief signs a timestamp with a huge version, so that nobody takes ours any more."""
    place.publish("0.2.0")
    thief = place.at()
    state = thief._load()
    state.timestamp.signed.version = 10**6
    thief._sign(TIMESTAMP, state.timestamp, state.root.signed)
    ours = (place.repository / "metadata" / "timestamp.json").read_bytes()
    (place.repository / "metadata" / "timestamp.json").write_bytes(state.timestamp.to_bytes())
    assert place.client() is not None
    (place.repository / "metadata" / "timestamp.json").write_bytes(ours)
    with pytest.raises(RepositoryError):
        place.client()
    (place.keys / "online.pem").unlink()
    (online,) = place.make_keys("online-2")
    place.at().rotate({SNAPSHOT: [online], TIMESTAMP: [online]}, None)
    assert place.client() is not None


def _public(place: Place, name: str) -> SSlibKey:
    return read_public(place.keys / f"{name}.pub")


def test_as_many_root_keys_as_were_agreed_on_must_sign(empty: Place) -> None:
    initial(empty, threshold=2)
    for missing in ("root-1", "root-2"):
        other = empty.keys_of({"root-1": "root-2", "root-2": "root-1"}[missing], "online", "targets")
        before = empty.files()
        with pytest.raises(ReleaseError, match="root: 2 of root-1, root-2 must sign, and too few are here"):
            empty.at(keys=other).rotate({}, None)
        assert empty.files() == before
    assert empty.at().rotate({}, None) == 2
    assert empty.client() is None


@pytest.mark.parametrize("missing", ["targets", "online"])
def test_without_a_key_nothing_is_written(place: Place, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["check-keys", f"--repository={place.repository}", f"--keys={place.keys}"]
    assert main(check) == 0  # before the build, which takes minutes
    (place.keys / f"{missing}.pem").chmod(0o640)
    assert main(check) == 1
    assert f"{missing}.pem: others may read this private key" in capsys.readouterr().err
    (place.keys / f"{missing}.pem").unlink()
    before = place.files()
    assert main(check) == 1
    assert f"1 of {missing} must sign, and too few are here" in capsys.readouterr().err
    (place.directory / "file").write_bytes(pyz("0.2.0"))
    with pytest.raises(ReleaseError, match=f"1 of {missing} must sign, and too few are here"):
        place.at().publish("stable", place.directory / "file")
    assert place.files() == before


def test_root_s_keys_are_for_nothing_else(place: Place) -> None:
    with pytest.raises(ReleaseError, match="one of root's, which stay offline"):
        place.at().rotate({TARGETS: [_public(place, "root-1")]}, None)
    with pytest.raises(ReleaseError, match="3 keys must sign, and it has only 2"):
        place.at().rotate({}, 3)


# ------------------------------------------------------------------ what is there is not trusted


def _change(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_bytes())
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_target_that_somebody_slipped_in_is_not_signed(place: Place) -> None:
    place.publish("0.2.0")
    file = place.repository / "metadata" / "2.targets.json"
    _change(file, lambda it: it["signed"]["targets"].update(evil=it["signed"]["targets"]["stable/tapotun.pyz"]))
    for attempt in (place.at().refresh, place.at().describe, partial(place.at().rotate, {}, None)):
        with pytest.raises(ReleaseError, match=r"2.targets.json: not as it was signed"):
            attempt()


def test_somebody_else_s_repository_is_not_signed(place: Place, tmp_path: Path) -> None:
    """Who may write to the server replaces all of it, root.json too, and names our keys in it."""
    (tmp_path / "thief").mkdir()
    thief = Place(tmp_path / "thief", place.url)
    theirs = thief.make_keys("all", "root")
    ours = [_public(place, name) for name in ("targets", "online")]
    thief.at().init(
        {ROOT: theirs[1:], TARGETS: [theirs[0], ours[0]], SNAPSHOT: [theirs[0]], TIMESTAMP: [theirs[0], ours[1]]}, 1
    )
    shutil.rmtree(place.repository / "metadata")
    shutil.copytree(thief.repository / "metadata", place.repository / "metadata")
    before = place.files()
    with pytest.raises(ReleaseError, match=r"timestamp.json: not as it was signed"):
        place.at().refresh()
    # As a next root, it is not signed by the one before.
    shutil.move(place.repository / "metadata" / "1.root.json", place.repository / "metadata" / "2.root.json")
    _change(place.repository / "metadata" / "2.root.json", lambda it: it["signed"].update(version=2))
    with pytest.raises(ReleaseError, match=r"2.root.json: not signed by the keys of the root before it"):
        place.at().refresh()
    assert place.files().keys() - before.keys() == {"metadata/2.root.json"}


def test_a_second_repository_is_not_begun_over_the_first(place: Place) -> None:
    keys = {role: [_public(place, "online")] for role in (TARGETS, SNAPSHOT, TIMESTAMP)}
    with pytest.raises(ReleaseError, match="there is a repository already"):
        place.at().init({ROOT: [_public(place, "root-1")], **keys}, 1)


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[" * 100_000], ids=["missing", "empty", "object", "deep"])
def test_files_that_are_not_what_they_were(place: Place, name: str, content: bytes | None) -> None:
    file = place.repository / "metadata" / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(ReleaseError, match=name):
        place.at().refresh()


# ------------------------------------------------------------------ keys


def test_a_private_key_is_its_owner_s_alone(place: Place) -> None:
    assert {it.stat().st_mode & 0o777 for it in place.keys.glob("*.pem")} == {0o600}
    (place.keys / "online.pem").chmod(0o640)
    with pytest.raises(ReleaseError, match=r"online.pem: others may read this private key: chmod 600"):
        place.at().refresh()


def test_a_key_is_never_replaced(place: Place) -> None:
    before = (place.keys / "online.pem").read_bytes()
    with pytest.raises(ReleaseError, match="File exists"):
        make_key(place.keys / "online.pem", None)
    assert (place.keys / "online.pem").read_bytes() == before
    with pytest.raises(ReleaseError, match=r"must end with \.pem"):
        make_key(place.keys / "online", None)


def test_an_encrypted_key_asks_for_its_passphrase_when_it_signs(tmp_path: Path) -> None:
    key = make_key(tmp_path / "root.pem", "correct horse")
    asked: list[str] = []

    def ask(file: str) -> str:
        asked.append(file)
        return "correct horse"

    keys = Keys(tmp_path, ask)
    assert keys.can_sign(key.keyid)
    assert asked == []
    for _ in range(2):
        key.verify_signature(keys.signer(key.keyid).sign(b"payload"), b"payload")
    assert asked == [str(tmp_path / "root.pem")]
    for wrong in ("wrong", ""):
        with pytest.raises(ReleaseError, match="another passphrase"):
            Keys(tmp_path, lambda _, wrong=wrong: wrong).signer(key.keyid)  # type: ignore[misc]


def test_files_that_are_no_keys(tmp_path: Path) -> None:
    make_key(tmp_path / "a.pem", None)
    key = make_key(tmp_path / "b.pem", None)
    shutil.copy(tmp_path / "a.pem", tmp_path / "b.pem")
    with pytest.raises(ReleaseError, match=r"not the private key of .*b\.pub"):
        Keys(tmp_path, pytest.fail).signer(key.keyid)
    (tmp_path / "b.pem").write_text("", encoding="ascii")
    with pytest.raises(ReleaseError, match="not a private key in PEM"):
        Keys(tmp_path, pytest.fail).signer(key.keyid)
    rsa = generate_private_key(65537, 2048).public_key()
    (tmp_path / "b.pub").write_bytes(rsa.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ReleaseError, match=r"b\.pub: not an Ed25519 key"):
        Keys(tmp_path, pytest.fail)
    (tmp_path / "b.pub").write_text("-----BEGIN", encoding="ascii")
    with pytest.raises(ReleaseError, match=r"b\.pub: not a public key"):
        Keys(tmp_path, pytest.fail)
    with pytest.raises(ReleaseError, match="no such directory"):
        Keys(tmp_path / "nothing", pytest.fail)


# ------------------------------------------------------------------ as it is typed


def test_the_subcommands(empty: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[str] = []
    monkeypatch.setattr("tools.release.__main__.getpass", lambda _: typed.pop(0))
    here = [f"--repository={empty.repository}", f"--keys={empty.keys}"]
    keys = {name: str(empty.keys / f"{name}.pem") for name in ("root", "targets", "online")}

    def run(*argv: str, passphrases: Sequence[str] = (), code: int = 0) -> str:
        typed[:] = passphrases
        assert main(argv) == code
        assert typed == []
        said = capsys.readouterr()
        return said.err if code else said.out

    assert run("make-key", keys["root"], passphrases=["one", "two"], code=1).endswith("another one the second time\n")
    assert run("make-key", keys["root"], passphrases=["one", "one"]).startswith(keys["root"])
    for name in ("targets", "online"):
        run("make-key", "--no-passphrase", keys[name])
    roles = [f"--{role}={file}" for role, file in keys.items()]
    assert "a new repository" in run("init", *here, *roles, passphrases=["one"])
    file = empty.directory / "tapotun.pyz"
    file.write_bytes(pyz("0.2.0"))
    assert run("publish", *here, str(file)) == "stable: 0.2.0\n"
    assert run("refresh", *here) == ""
    assert run("rotate", *here, f"--targets={keys['targets']}", passphrases=["one"]) == "root: version 2\n"
    shown = run("show", *here).splitlines()
    assert [it.split(":")[0] for it in shown] == ["root", "targets", "snapshot", "timestamp", "stable/tapotun.pyz"]
    assert shown[0].endswith("; 1 of root")
    assert "0.2.0" in shown[4]
    assert run("publish", *here, str(file), code=1).startswith(f"release: {file}: version 0.2.0, and stable has 0.2.0")
    next((empty.repository / "targets" / "stable").iterdir()).write_bytes(b"other")
    assert "not the file that was signed" in run("show", *here, code=1)


def test_the_documented_commands_are_ones_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "releasing.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^ *python -m tools\.release (.+)$", page)
    assert {command.split()[0] for command in commands} == {"make-key", "init", "refresh", "rotate"}
    for command in [*commands, *re.findall(r"`python -m tools\.release ([^`]+)`", page)]:
        _parser().parse_args(shlex.split(command))


# ------------------------------------------------------------------ the version


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit of version 0.2.0 that can be released."""
    (tmp_path / "tapotun_trio").mkdir()
    (tmp_path / "tapotun_trio" / "__init__.py").write_text('__version__ = "0.2.0"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0 (2026-11-30)\n\n## 0.1.0 (2026-01-01)\n", "utf-8")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    git(tmp_path, "tag", "v0.2.0")
    return tmp_path


def git(place: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    subprocess.run(["git", *who, *arguments], cwd=place, check=True, capture_output=True, env=environment)


def commit(place: Path) -> None:
    git(place, "add", "-A")
    git(place, "commit", "-q", "--allow-empty", "-m", "x")


def test_tag_version_and_changelog_agree(checkout: Path) -> None:
    assert version.check(checkout, date(2026, 11, 30)) == "0.2.0: tag, __version__ and CHANGELOG.md agree"


@pytest.mark.parametrize(
    ("file", "old", "new", "text"),
    [
        ("tapotun_trio/__init__.py", "0.2.0", "0.2.1", "CHANGELOG.md begins with '0.2.0 (2026-11-30)', and must"),
        ("CHANGELOG.md", "## 0.2.0", "## Unreleased\n\n## 0.2.0", "CHANGELOG.md begins with 'Unreleased'"),
        ("CHANGELOG.md", "(2026-11-30)", "", "CHANGELOG.md begins with '0.2.0 '"),
        ("CHANGELOG.md", "2026-11-30", "2026-12-01", "2026-12-01 is in the future"),
        ("CHANGELOG.md", "2026-11-30", "2026-11-31", "2026-11-31 is no date"),
        ("CHANGELOG.md", "# Changelog", "# Changes", "this commit has no tag, and must have v0.2.0"),
    ],
)
def test_a_commit_that_is_not_released(checkout: Path, file: str, old: str, new: str, text: str) -> None:
    path = checkout / file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    commit(checkout)
    with pytest.raises(ReleaseError) as caught:
        version.check(checkout, date(2026, 11, 30))
    assert text in str(caught.value)


def test_what_is_not_committed_is_not_released(checkout: Path) -> None:
    (checkout / "new").touch()
    with pytest.raises(ReleaseError, match="new differs from the last commit"):
        version.check(checkout, date(2026, 11, 30))


@pytest.mark.parametrize("threshold", ["0", "-1"])
def test_a_root_that_nobody_has_to_sign(empty: Place, threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It was written, and no client and none of these tools could read it."""
    empty.make_keys("root", "targets", "online")
    here = [f"--repository={empty.repository}", f"--keys={empty.keys}", f"--root-threshold={threshold}"]
    roles = [f"--{role}={empty.keys / role}.pub" for role in ("root", "targets", "online")]
    assert main(["init", *here, *roles]) == 1
    refused = f"release: root: {threshold} keys must sign, which nobody could trust: give 1 or more\n"
    assert capsys.readouterr().err == refused
    assert main(["init", *here[:2], *roles]) == 0
    before = empty.files()
    assert main(["rotate", *here]) == 1
    assert capsys.readouterr().err == refused
    assert empty.files() == before


@pytest.mark.parametrize(
    ("raised", "code", "text"), [(EOFError, 1, "nobody has typed one"), (KeyboardInterrupt, 130, "")]
)
def test_nobody_types_the_passphrase(
    raised: type[BaseException],
    code: int,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under cron, or since the person gives up."""

    def nobody(_: str) -> str:
        raise raised

    monkeypatch.setattr("tools.release.__main__.getpass", nobody)
    assert main(["make-key", str(tmp_path / "root.pem")]) == code
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == (1 if text else 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("days", ["0", "-5"])
def test_an_apt_repository_that_is_never_valid(tmp_path: Path, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    """0 was taken as for ever."""
    where = ["--repository", str(tmp_path / "apt"), "--key", "A" * 40, "--url", "https://example.org/apt"]
    assert main(["apt", *where, f"--valid-days={days}", str(tmp_path / "x.deb")]) == 1
    assert capsys.readouterr().err.startswith(
        f"release: {days}: not a number of days for which apt accepts the repository"
    )


def test_the_web_server_cannot_lock_the_repository(place: Place) -> None:
    """It may read what it serves. It would only have to hold a lock until everything has expired."""
    theirs = os.open(place.repository / "metadata", os.O_RDONLY)
    try:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert place.at().refresh() == []
    finally:
        os.close(theirs)
    assert stat.S_IMODE((place.repository / LOCK).stat().st_mode) == 0o600


def test_a_lock_that_cannot_be_opened_is_named(place: Place) -> None:
    """The text said that `init` makes a repository, where there was one."""
    lock = place.repository / LOCK
    lock.unlink()
    lock.symlink_to("/dev/null")
    with pytest.raises(ReleaseError) as caught:
        place.at().refresh()
    assert str(caught.value) == f"{lock}: cannot be locked: Too many levels of symbolic links"
    shutil.rmtree(place.repository / "metadata")
    with pytest.raises(ReleaseError, match=f"{place.repository}/metadata: No such file .*; init makes a repository"):
        place.at().refresh()
