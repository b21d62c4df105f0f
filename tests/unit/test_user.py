"""The user to become: who it may be, and what keeps a user from a file. tests/netns/test_user.py becomes one."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tapotun_trio.errors import HostError
from tapotun_trio.files import blocked_at
from tapotun_trio.host.process.user import find_user, unreadable, user_name


def test_a_user_has_all_of_its_groups() -> None:
    entry = next(it for it in pwd.getpwall() if it.pw_uid)
    user = find_user(entry.pw_name)
    assert (user.name, user.uid, user.gid) == (entry.pw_name, entry.pw_uid, entry.pw_gid)
    assert set(user.groups) == {entry.pw_gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)}


def test_an_unknown_user_and_user_0_are_refused_in_one_line() -> None:
    with pytest.raises(
        HostError, match=r'^user "no-such-user": this machine has no such user; make one \(useradd [^\n]+$'
    ):
        find_user("no-such-user")
    with pytest.raises(HostError, match=r'^user "root": is user 0, [^\n]+; name an ordinary user$'):
        find_user("root")


def test_what_may_be_read_is_not_blocked(tmp_path: Path) -> None:
    file = tmp_path / "a.pyz"
    file.write_bytes(b"PK")
    (tmp_path / "link").symlink_to(file)
    paths = [str(file), f"{file}/tapotun_trio/app.py", str(tmp_path / "link"), str(tmp_path / "missing" / "file")]
    assert [blocked_at(path) for path in paths] == [None] * 4
    assert list(unreadable(paths)) == []


def test_a_user_without_a_name_is_called_by_its_number() -> None:
    free = next(uid for uid in range(60_000, 65_000) if uid not in {it.pw_uid for it in pwd.getpwall()})
    assert user_name(free) == f"uid {free}"
    assert user_name(0) == '"root"'
