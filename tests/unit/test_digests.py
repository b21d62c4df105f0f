"""The hashes of tokens, which need no OpenSSL."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from tapotun_trio import digests
from tapotun_trio.digests import are_equal, digest


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
@pytest.mark.parametrize("built_in", [True, False])
def test_they_are_those_of_hashlib(algorithm: str, built_in: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_found", {})
    if not built_in:
        monkeypatch.setattr(digests, "_MODULES", {"sha1": ("no_such_module",), "sha256": ("json",)})
    for data in (b"", b"test", bytes(range(256)) * 100):
        assert digest(algorithm, data) == hashlib.new(algorithm, data, usedforsecurity=False).digest()


def test_a_comparison() -> None:
    assert are_equal(b"same", b"same")
    assert not are_equal(b"same", b"sama")
    assert not are_equal(b"same", b"sam")


@pytest.mark.parametrize("module", ["tapotun_trio.server.server", "tapotun_trio.admin.access"])
def test_openssl_is_not_loaded(module: str) -> None:
    code = f"""
import sys
from tapotun_trio.cli import NEEDED_BY_FEW
from tapotun_trio.lazy_import import lazy_import
for name in NEEDED_BY_FEW:
    lazy_import(name)
import {module}
from tapotun_trio.digests import are_equal, digest
assert are_equal(digest("sha1", b"a"), digest("sha1", b"a")) and digest("sha256", b"a")
print([name for name in ("_ssl", "_hashlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
