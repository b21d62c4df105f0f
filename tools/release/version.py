"""What has to agree before a version is published: the tag of the commit, `__version__` and CHANGELOG.md."""

from __future__ import annotations

import re
import subprocess
from datetime import date
from pathlib import Path

from .keys import ReleaseError


def check(root: Path, today: date) -> str:
    """Returns a line for people. Raises ReleaseError.

    Args:
        root: the checkout.
        today: no version is from the future.
    """
    source = (root / "tapotun_trio" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'(?m)^__version__ = "(.+)"$', source)
    if found is None:
        raise ReleaseError("tapotun_trio/__init__.py has no __version__")
    version = found[1]
    headings: list[str] = re.findall(r"(?m)^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"))
    newest = headings[0] if headings else "nothing"
    dated = re.fullmatch(rf"{re.escape(version)} \((\d{{4}}-\d\d-\d\d)\)", newest)
    if dated is None:
        raise ReleaseError(f"CHANGELOG.md begins with {newest!r}, and must begin with '## {version} ({today})'")
    try:
        late = date.fromisoformat(dated[1]) > today
    except ValueError as exc:
        raise ReleaseError(f"CHANGELOG.md: {dated[1]} is no date") from exc
    if late:
        raise ReleaseError(f"CHANGELOG.md: {dated[1]} is in the future")
    if changed := _git(root, "status", "--porcelain"):
        raise ReleaseError(
            f"{changed.split(maxsplit=1)[1].splitlines()[0]} differs from the last commit: commit it first"
        )
    tags = _git(root, "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        others = ", ".join(tags) or "no tag"
        raise ReleaseError(f"this commit has {others}, and must have v{version}: git tag --sign v{version}")
    return f"{version}: tag, __version__ and CHANGELOG.md agree"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
