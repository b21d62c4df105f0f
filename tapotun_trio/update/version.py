"""Version numbers of this program: the simple kind of PEP 440, ``1.2.3`` with ``a1``, ``b1``, ``rc1``, ``.post1`` or
``.dev1`` after it.

Untrusted input; raises ValueError only.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

VERSION_CHARS: Final = 64
_VERSION: Final = re.compile(
    r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,5})(?:(a|b|rc)([0-9]{1,9}))?(?:\.post([0-9]{1,9}))?(?:\.dev([0-9]{1,9}))?"
)
_PHASES: Final = {"dev": -1, "a": 0, "b": 1, "rc": 2, "": 3}

Key: TypeAlias = tuple[tuple[int, ...], int, int, int, int, int]


def version_key(text: str) -> Key:
    """A key that orders versions as PEP 440 does. Raises ValueError if the text is no such version."""
    match = _VERSION.fullmatch(text) if len(text) <= VERSION_CHARS else None
    if match is None:
        raise ValueError("not a version number such as 1.2.3")
    numbers, phase, phase_number, post, dev = match.groups()
    release = [int(number) for number in numbers.split(".")]
    while len(release) > 1 and release[-1] == 0:  # 1.0 is 1
        release.pop()
    if dev is not None and phase is None and post is None:
        phase = "dev"  # 1.0.dev1 comes before 1.0a1
    return (
        tuple(release),
        _PHASES[phase or ""],
        int(phase_number or 0),
        -1 if post is None else int(post),
        0 if dev is not None else 1,
        int(dev or 0),
    )


def is_newer(version: str, installed: str) -> bool:
    """Whether ``version`` is strictly newer than ``installed``. Raises ValueError if either is no version number."""
    return version_key(version) > version_key(installed)
