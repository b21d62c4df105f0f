"""Time spans as text for people. Apart from `render`, because every process logs spans but few render a status."""

from __future__ import annotations

from datetime import datetime


def ago(then: datetime, now: datetime) -> str:
    """The time between ``then`` and ``now`` in its two largest units: ``3 h 12 min``. ``0 s`` if ``then`` is later."""
    return span(max(int((now - then).total_seconds()), 0))


def span(seconds: float) -> str:
    """The time in its two largest units: ``3 h 12 min``; tenths only below one second: ``0.3 s``."""
    if 0.05 <= seconds < 0.95:
        return f"{seconds:.1f} s"
    left = round(seconds)
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, length)
        if parts and not number:
            break
        if number:
            parts.append(f"{number} {name}")
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"
