"""What the Debian package does to files in /etc/tapotun when it is installed; tests/packages installs it for real."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

POSTINST: Final = Path(__file__).resolve().parents[2] / "packaging/deb/postinst"


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about files of root")
def test_only_where_nobody_else_may_write(tmp_path: Path) -> None:
    """Root's files become readable to the group, but not where others could put a link in the place of one."""
    found = re.search(r"^ *(find (?:.*\\\n)*.*)$", POSTINST.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    etc = tmp_path / "etc"
    modes = {"own": 0o750, "own/deep": 0o700, "group": 0o770, "all": 0o777, "theirs": 0o755, "theirs/deep": 0o755}
    for name, mode in ({".": 0o2755} | modes).items():
        directory = etc / name
        directory.mkdir(exist_ok=True)
        directory.chmod(mode)
        (directory / "file").touch(mode=0o600)
    os.chown(etc, 0, 65534)
    os.chown(etc / "theirs", 65534, 65534)
    (etc / "link").symlink_to(tmp_path)
    text = found[1].replace("/etc/tapotun", str(etc)).replace("chgrp tapotun", "chgrp 65534")
    subprocess.run(["sh", "-ec", text], check=True)
    given = {str(file.parent.relative_to(etc)) for file in etc.rglob("file") if file.stat().st_gid == 65534}
    assert given == {".", "own", "own/deep"}
    assert all((etc / name / "file").stat().st_mode & 0o777 == 0o640 for name in given)
    assert tmp_path.stat().st_gid == 0
