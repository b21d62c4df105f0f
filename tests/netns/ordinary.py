"""What an ordinary user of a host needs to run this program: /dev/net/tun, the program itself, an account."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Final

from tests.harness import ROOT, Host, command

PLAIN: Final = (command()[0], "-m", "tapotun_trio")
"""The program without what measures coverage, which would write a file of its own."""


def open_to_everybody(host: Host) -> None:
    """Ordinary users of this host can open /dev/net/tun, and read this program wherever it is."""
    host.run(["mknod", "-m", "666", host.tmp / "tun", "c", "10", "200"])
    host.run(["mount", "--bind", host.tmp / "tun", "/dev/net/tun"])
    host.tmp.chmod(0o755)
    # A home that only root may enter is replaced by one with nothing in it but what is needed.
    blocked: dict[Path, list[Path]] = {}
    for path in {Path(sys.base_prefix), Path(sys.prefix).resolve(), ROOT}:
        for directory in reversed(path.parents):
            if not directory.stat().st_mode & stat.S_IXOTH:
                blocked.setdefault(directory, []).append(path)
                break
    for directory, paths in blocked.items():
        for number, path in enumerate(paths):
            staged = host.tmp / f"{directory.name}-{number}"
            staged.mkdir()
            host.run(["mount", "--rbind", path, staged])
        host.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", directory])
        for number, path in enumerate(paths):
            host.run(["mkdir", "-p", path])
            host.run(["mount", "--rbind", host.tmp / f"{directory.name}-{number}", path])


def add_user(host: Host, name: str, uid: int) -> None:
    """An account on this host alone, with a group of the same name and number. It takes the place of one of that name
    that this machine has, such as that of an installed package."""
    for file, line in (
        ("passwd", f"{name}:x:{uid}:{uid}::/nonexistent:/usr/sbin/nologin\n"),
        ("group", f"{name}:x:{uid}:\n"),
    ):
        ours = host.tmp / file
        if not ours.exists():
            ours.write_text(Path("/etc", file).read_text(encoding="utf-8"), encoding="utf-8")
            ours.chmod(0o644)
            host.run(["mount", "--bind", ours, Path("/etc", file)])
        others = [it for it in ours.read_text(encoding="utf-8").splitlines(True) if not it.startswith(f"{name}:")]
        ours.write_text("".join([*others, line]), encoding="utf-8")  # in place: it is mounted
