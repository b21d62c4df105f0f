"""Several files as one: the form in which metadata passes between processes, and lies in the state directory.

One JSON object, file name to content in Base64. Untrusted input; raises ValueError only.
"""

from __future__ import annotations

import msgspec

BUNDLE_BYTES = 24 * 1024 * 1024
"""No bundle is longer. Real ones have 10 kB; this is room for 32 new roots of the largest size."""

EMPTY = b"{}"
"""The bundle without files."""


def encode(files: dict[str, bytes]) -> bytes:
    """Return the bundle. Raises ValueError if it would be longer than BUNDLE_BYTES."""
    data = msgspec.json.encode(files)
    if len(data) > BUNDLE_BYTES:
        raise ValueError(f"has {len(data)} bytes of metadata, and at most {BUNDLE_BYTES} are kept")
    return data


def decode(data: bytes) -> dict[str, bytes]:
    """Return the files. Raises ValueError."""
    if len(data) > BUNDLE_BYTES:
        raise ValueError(f"longer than {BUNDLE_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=dict[str, bytes])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError("damaged") from exc
