"""SHA-1 and SHA-256 of tokens, and a comparison that takes the same time for equal and unequal texts.

`hashlib` and `hmac` have both, but importing either loads OpenSSL: 3.5 MB that a server without TLS needs for nothing
else. So this takes the modules of the interpreter on which `hashlib` itself falls back, and `hashlib` only where a
distribution has built Python without them.
"""

from __future__ import annotations

from _operator import _compare_digest
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

# Python 3.12 has renamed _sha256.
_MODULES: Final = {"sha1": ("_sha1",), "sha256": ("_sha2", "_sha256")}


def digest(algorithm: str, data: bytes) -> bytes:
    """The hash of ``data``. ``algorithm``: ``sha1`` or ``sha256``."""
    result: bytes = new_digest(algorithm, data).digest()
    return result


def new_digest(algorithm: str, data: bytes = b"") -> Any:
    """A hash object of the form that `hashlib` has, which has got ``data`` already."""
    return _NEW[algorithm](data)


def are_equal(one: bytes, other: bytes) -> bool:
    """Whether both are equal. The time depends on their lengths only, as for `hmac.compare_digest`."""
    return bool(_compare_digest(one, other))


def _constructor(algorithm: str) -> Callable[[bytes], Any]:
    for name in _MODULES[algorithm]:
        try:
            found: Callable[[bytes], Any] = getattr(import_module(name), algorithm)
        except (ImportError, AttributeError):
            continue
        return found
    import hashlib

    # Not "for security" as FIPS means it: a host that forbids SHA-1 must still accept deployed tokens.
    return lambda data: hashlib.new(algorithm, data, usedforsecurity=False)


# At once and not at first use: the first token may come when no descriptor is left to open a module with.
_NEW: Final = {algorithm: _constructor(algorithm) for algorithm in _MODULES}
